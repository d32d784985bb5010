r"""ResNet-50 on ImageNet by torchvision's newer recipe: 600 epochs, trained at 176 pixels and tested at 224.

  resnet-jax train --config=imagenet_resnet50_torchvision_v2 --workdir=runs/v2 --config.data.data_dir=DATA

The recipe of torchvision's IMAGENET1K_V2 weights (pytorch/vision issue 3995 and references/classification):
TrivialAugment, random erasing, mixup or CutMix, label smoothing, each image four times in an epoch of a quarter of the
images, cosine with a warm-up of 5 epochs, an average of the weights. Optimiser, schedule, loss and average equal theirs
step by step (tests/training/test_recipes.py). Hardware: 8 accelerators for days. Expected: 80.86 % of the 50,000
validation images (torchvision's own weights); not run by this project, which has no such hardware.
"""

import ml_collections

from resnet_jax.configs import imagenet_resnet50


def get_config() -> ml_collections.ConfigDict:
    config = imagenet_resnet50.get_config()
    config.batch_size = 1024
    config.num_epochs = 600.0
    config.model.kwargs.zero_init_residual = False
    config.model.kwargs.fc_init_std = None  # PyTorch's

    config.data.image_size = 176
    config.data.eval_resize = 232
    config.data.eval_size = 224
    config.data.augment = "trivial"
    config.data.augment_interpolation = "bilinear"
    config.data.erase = 0.1
    config.data.repeats = 4

    config.optimizer.learning_rate = config.get_oneway_ref("batch_size").to_float() * (0.5 / 1024)
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 2e-5
    config.optimizer.label_smoothing = 0.1

    config.schedule.name = "cosine"
    config.schedule.per_epoch = True
    config.schedule.warmup_start = 0.01
    config.schedule.boundaries = (0.0,)

    config.mix.mixup = 0.2
    config.mix.cutmix = 1.0

    # --model-ema-decay=0.99998, of which torchvision makes this for batches of 1024 and an average of every 32nd step.
    config.ema.decay = 1 - (1 - 0.99998) * 1024 * 32 / 600
    config.ema.every_steps = 32
    config.ema.copy_epochs = 5.0
    return config
