"""`resnet_jax/configs/default.py`, where `train.py` is given it."""

from resnet_jax.configs.default import get_config

__all__ = ["get_config"]
