r"""ResNet-20 on CIFAR-10 as He et al. 2015 (arXiv:1512.03385), section 4.2, train it: 64,000 steps of 128 images.

  resnet-jax prepare cifar10 --source=cifar-10-binary.tar.gz --data-dir=DATA
  resnet-jax train --config=cifar10_resnet20 --workdir=runs/c20 --config.data.data_dir=DATA

Their split of 45,000 images to train and 5,000 to choose on, in as many steps: --config.data.held_out=5000
--config.num_epochs=182.336182 --config.schedule.boundaries="(91.168091,136.752136)". Hardware: one GPU or TPU core,
well under an hour; on 2 CPU cores about 11 hours. Expected: 8.75 % error of the 10,000 test images (their table 6),
8.27 % in another's hands, the best epoch (github.com/akamaster/pytorch_resnet_cifar10); not run by this project, which
has no such hardware. Other than there, images are normalised by channel and not by pixel.
"""

import ml_collections

from resnet_jax.configs import default

STEPS_PER_EPOCH = 50_000 // 128
# num_epochs and boundaries of the same steps where 5,000 images are held out.
EPOCHS_45K = (64_000 / 351, (32_000 / 351, 48_000 / 351))


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 128
    config.num_epochs = 64_000 / STEPS_PER_EPOCH
    config.model.name = "cifar_resnet20"  # option A shortcuts

    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.padding = 4
    config.data.flip = True

    config.optimizer.learning_rate = 0.1
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 1e-4

    config.schedule.name = "step"
    config.schedule.warmup_epochs = 0.0
    config.schedule.boundaries = (32_000 / STEPS_PER_EPOCH, 48_000 / STEPS_PER_EPOCH)
    return config
