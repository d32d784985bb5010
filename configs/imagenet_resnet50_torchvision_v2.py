"""`resnet_jax/configs/imagenet_resnet50_torchvision_v2.py`, where `train.py` is given it."""

from resnet_jax.configs.imagenet_resnet50_torchvision_v2 import get_config

__all__ = ["get_config"]
