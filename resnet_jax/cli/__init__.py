"""The `resnet-jax` command: a thin door to the rooms, one file a verb."""

from resnet_jax.cli.command import main

__all__ = ["main"]
