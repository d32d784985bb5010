"""`resnet_jax/configs/imagenet_resnet101.py`, where `train.py` is given it."""

from resnet_jax.configs.imagenet_resnet101 import get_config

__all__ = ["get_config"]
