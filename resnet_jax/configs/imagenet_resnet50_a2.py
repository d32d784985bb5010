r"""ResNet-50 on ImageNet, recipe A2 of Wightman et al. 2021 (ResNet strikes back, arXiv:2110.00476): 300 epochs.

  resnet-jax train --config=imagenet_resnet50_a2 --workdir=runs/a2 --config.data.data_dir=DATA

As A3 (imagenet_resnet50_a3.py has the sources), but longer, at 224 pixels, with stochastic depth and each image three
times in an epoch of a third of the images. Hardware: 8 accelerators. Expected: 79.8 % of the 50,000 validation images
at 224 pixels (the paper; timm measures 79.83 % of its own weights); not run by this project, which has no such
hardware.
"""

import ml_collections

from resnet_jax.configs import imagenet_resnet50_a3


def get_config() -> ml_collections.ConfigDict:
    config = imagenet_resnet50_a3.get_config()
    config.num_epochs = 300.0
    config.model.kwargs.drop_path_rate = 0.05

    config.data.image_size = 224
    config.data.augment = "rand-m7-mstd0.5-inc1"
    config.data.repeats = 3

    config.optimizer.learning_rate = 5e-3
    config.schedule.warmup_start = 1e-4 / 5e-3
    return config
