r"""ResNet-110 on CIFAR-10 as He et al. 2015 (arXiv:1512.03385), section 4.2, train it; cifar10_resnet20.py says how.

  resnet-jax train --config=cifar10_resnet110 --workdir=runs/c110 --config.data.data_dir=DATA

The rate of 0.1 is too high for its start: they hold 0.01 until the training error is below 80 %, about 400 steps; here
it rises from 0.01 to 0.1 in 400 steps. Hardware: one GPU or TPU core; about 6 times as long as ResNet-20. Expected:
6.61 +- 0.16 % error of the 10,000 test images (their table 6, five runs; the best 6.43 %); not run by this project.
"""

import ml_collections

from resnet_jax.configs import cifar10_resnet20


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_resnet20.get_config()
    config.model.name = "cifar_resnet110"
    config.schedule.warmup_epochs = 400 / cifar10_resnet20.STEPS_PER_EPOCH
    config.schedule.warmup_start = 0.1
    return config
