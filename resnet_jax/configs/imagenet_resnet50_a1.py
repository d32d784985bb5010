r"""ResNet-50 on ImageNet, recipe A1 of Wightman et al. 2021 (ResNet strikes back, arXiv:2110.00476): 600 epochs.

  resnet-jax train --config=imagenet_resnet50_a1 --workdir=runs/a1 --config.data.data_dir=DATA

As A2, but for twice as long, with label smoothing, more of mixup and less weight decay. With the smoothing each image
has targets of 1e-4 and 0.9, of which the threshold makes 0 and 1 again, as in timm. Hardware: 8 accelerators. Expected:
80.4 % of the 50,000 validation images at 224 pixels (the paper; timm measures 80.38 % of its own weights); not run by
this project, which has no such hardware.
"""

import ml_collections

from resnet_jax.configs import imagenet_resnet50_a2


def get_config() -> ml_collections.ConfigDict:
    config = imagenet_resnet50_a2.get_config()
    config.num_epochs = 600.0
    config.optimizer.weight_decay = 0.01
    config.optimizer.label_smoothing = 0.1
    config.mix.mixup = 0.2
    return config
