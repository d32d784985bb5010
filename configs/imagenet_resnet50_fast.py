"""`resnet_jax/configs/imagenet_resnet50_fast.py`, where `train.py` is given it."""

from resnet_jax.configs.imagenet_resnet50_fast import get_config

__all__ = ["get_config"]
