"""`resnet_jax/configs/cifar10_resnet110.py`, where `train.py` is given it."""

from resnet_jax.configs.cifar10_resnet110 import get_config

__all__ = ["get_config"]
