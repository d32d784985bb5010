"""ResNet-18 on made-up images of 64x64 pixels: no data on disk, to see a step run and to measure it.

  resnet-jax train --config=synthetic_resnet18 --workdir=runs/synthetic

Hardware: any. Expected: the loss falls from about ln(10) = 2.3 within a few steps; the accuracy means nothing.
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 32
    config.num_epochs = 1.0
    config.model.name = "resnet18"

    config.data.name = "synthetic"
    config.data.num_examples = 256
    config.data.image_size = 64
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.25, 0.25, 0.25)
    config.data.crop = "none"
    config.schedule.warmup_epochs = 0.0
    config.log_every_steps = 1
    return config
