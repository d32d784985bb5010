r"""A wide ResNet-18 on CIFAR-10, fast: 30 epochs at a high rate that rises and falls in straight lines.

  resnet-jax prepare cifar10 --source=cifar-10-binary.tar.gz --data-dir=DATA
  resnet-jax train --config=cifar10_resnet18 --workdir=runs/c18 --config.data.data_dir=DATA

The ImageNet net with the CIFAR stem: 11.2 M parameters, 40 times those of cifar_resnet20. Hardware: one GPU or TPU core
in bfloat16; minutes (the Airbench README has 96.0 % in 7 minutes of an A100 for "standard ResNet-18 training").
Expected: about 95 % of the 10,000 test images, by others' runs of such schedules; not run by this project.
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 512
    config.num_epochs = 30.0
    config.model.name = "resnet18"
    config.model.kwargs.stem = "cifar"
    config.model.kwargs.dtype = "bfloat16"

    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.padding = 4
    config.data.flip = True

    config.optimizer.learning_rate = config.get_oneway_ref("batch_size").to_float() * (0.1 / 128)  # linear scaling
    config.optimizer.weight_decay = 5e-4
    config.optimizer.decayed = "not_norm"
    config.optimizer.label_smoothing = 0.1

    config.schedule.name = "linear"
    config.schedule.warmup_epochs = 6.0
    return config
