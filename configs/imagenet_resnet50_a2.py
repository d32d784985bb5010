"""`resnet_jax/configs/imagenet_resnet50_a2.py`, where `train.py` is given it."""

from resnet_jax.configs.imagenet_resnet50_a2 import get_config

__all__ = ["get_config"]
