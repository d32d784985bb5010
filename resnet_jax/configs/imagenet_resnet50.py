r"""ResNet-50 on ImageNet: 90 epochs, as Goyal et al. 2017 (arXiv:1706.02677) train it.

  resnet-jax prepare imagenet2012 --source=TARS --data-dir=DATA
  resnet-jax train --config=imagenet_resnet50 --workdir=runs/r50 --config.data.data_dir=DATA

Hardware: 8 accelerators; 128 images need 4.4 GiB of a TPU v5e, as `resnet-jax plan` tells. The learning rate follows
the batch size, so any that the devices divide will do. Expected: 76.4 % of the 50,000 validation images, one crop of
224 pixels (Goyal et al., table 1: 23.60 +- 0.12 % error at batch 256, 23.74 +- 0.09 at 8192); not run by this project,
which has no such hardware.
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 1024
    config.num_epochs = 90.0
    config.model.name = "resnet50"
    config.model.kwargs.zero_init_residual = True  # section 5.1: the last scale of each block starts at 0
    config.model.kwargs.fc_init_std = 0.01  # section 5.1: fc starts from a zero-mean Gaussian
    config.model.kwargs.dtype = "bfloat16"  # parameters and batch statistics stay float32

    config.data.name = "imagenet2012"
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop = "resized"
    config.data.flip = True
    config.data.num_threads = 16

    batch = config.get_oneway_ref("batch_size").to_float()
    config.optimizer.learning_rate = batch * (0.1 / 256)  # section 2.1
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True  # section 5.1
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decayed = "not_norm"  # section 5.1: not on scales and biases of batch norm

    config.schedule.name = "step"
    config.schedule.warmup_epochs = 5.0  # section 2.2: from the rate of a batch of 256, a little more each step
    config.schedule.warmup_start = 256 / ((batch + 256 + abs(batch - 256)) / 2)  # the larger of batch and 256
    config.schedule.boundaries = (30.0, 60.0, 80.0)
    return config
