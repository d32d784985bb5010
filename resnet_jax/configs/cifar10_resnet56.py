r"""ResNet-56 on CIFAR-10 as He et al. 2015 (arXiv:1512.03385), section 4.2, train it; cifar10_resnet20.py says how.

  resnet-jax train --config=cifar10_resnet56 --workdir=runs/c56 --config.data.data_dir=DATA

Hardware: one GPU or TPU core; about 2.9 times as long as ResNet-20. Expected: 6.97 % error of the 10,000 test images
(their table 6), 6.61 % in another's hands, the best epoch (github.com/akamaster/pytorch_resnet_cifar10); not run by
this project.
"""

import ml_collections

from resnet_jax.configs import cifar10_resnet20


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_resnet20.get_config()
    config.model.name = "cifar_resnet56"
    return config
