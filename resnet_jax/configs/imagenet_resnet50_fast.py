r"""ResNet-50 on ImageNet in 16 to 88 epochs, after FFCV (github.com/libffcv/ffcv-imagenet): small images first.

  resnet-jax train --config=imagenet_resnet50_fast --workdir=runs/fast --config.data.data_dir=DATA \
      --config.num_epochs=16

160 pixels for three quarters of the run, then 192, tested at 256; the rate rises for two epochs and falls in a straight
line to 0. Other lengths: --config.num_epochs=88 --config.data.early_until="(66.0,)". The net has blur pooling, after
the 3x3 of stride 2 (timm's); theirs blurs before each convolution of stride 2. Hardware: 8 accelerators. Expected:
theirs have 73.8 % (16 epochs), 75.6 (24), 76.6 (32), 77.2 (40), 78.0 (56) and 78.4 (88) of the 50,000 validation
images, by the mean over each image and its mirror image, which is not made here: expect a little less. Not run by this
project, which has no such hardware. The rate of 1.7 is theirs for a batch of 8 times 512, which is what their loader
gives to each of 8 GPUs, and follows config.batch_size.
"""

import ml_collections

from resnet_jax.configs import imagenet_resnet50


def get_config() -> ml_collections.ConfigDict:
    config = imagenet_resnet50.get_config()
    config.batch_size = 4096
    config.num_epochs = 16.0
    config.model.name = "resnetblur50"
    config.model.kwargs.zero_init_residual = False
    config.model.kwargs.fc_init_std = None  # PyTorch's

    config.data.image_size = 192
    config.data.early_sizes = (160,)
    config.data.early_until = (12.0,)
    config.data.eval_size = 256
    config.data.eval_resize = 293  # of which 256 is 224 / 256

    config.optimizer.learning_rate = config.get_oneway_ref("batch_size").to_float() * (1.7 / 4096)
    config.optimizer.nesterov = False
    config.optimizer.label_smoothing = 0.1

    config.schedule.name = "linear"
    config.schedule.warmup_epochs = 2.0
    config.schedule.warmup_start = 1e-4
    config.schedule.boundaries = (0.0,)
    return config
