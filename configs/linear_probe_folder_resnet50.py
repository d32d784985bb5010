"""`resnet_jax/configs/linear_probe_folder_resnet50.py`, where `train.py` is given it."""

from resnet_jax.configs.linear_probe_folder_resnet50 import get_config

__all__ = ["get_config"]
