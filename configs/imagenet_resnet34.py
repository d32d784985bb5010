"""`resnet_jax/configs/imagenet_resnet34.py`, where `train.py` is given it."""

from resnet_jax.configs.imagenet_resnet34 import get_config

__all__ = ["get_config"]
