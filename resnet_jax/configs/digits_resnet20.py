"""ResNet-20 on scikit-learn's handwritten digits: 1,437 real 8x8 images to learn from, 360 to test on.

  resnet-jax train --config=digits_resnet20 --workdir=runs/digits

Hardware: any; about a minute on 2 CPU cores. Expected: at least 98 % of the 360 test images (this project's own runs).
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.num_epochs = 40.0
    config.optimizer.label_smoothing = 0.1
    config.optimizer.weight_decay = 2e-3  # strong, for so few images
    config.log_every_steps = 0
    return config
