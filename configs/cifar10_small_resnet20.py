"""`resnet_jax/configs/cifar10_small_resnet20.py`, where `train.py` is given it."""

from resnet_jax.configs.cifar10_small_resnet20 import get_config

__all__ = ["get_config"]
