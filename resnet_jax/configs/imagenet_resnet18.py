r"""ResNet-18 on ImageNet: 90 epochs by the recipe of imagenet_resnet50.py (Goyal et al. 2017, arXiv:1706.02677).

  resnet-jax train --config=imagenet_resnet18 --workdir=runs/r18 --config.data.data_dir=DATA

Hardware: 8 accelerators; `resnet-jax plan` tells memory and time. Expected: near 69.758 % of the 50,000 validation
images, which torchvision has by a like recipe of 90 epochs, and fb.resnet.torch 30.43 % error; one crop of 224 pixels.
Not run by this project, which has no such hardware.
"""

import ml_collections

from resnet_jax.configs import imagenet_resnet50


def get_config() -> ml_collections.ConfigDict:
    config = imagenet_resnet50.get_config()
    config.model.name = "resnet18"
    return config
