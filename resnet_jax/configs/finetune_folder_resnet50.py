r"""Fine-tuning: a ResNet-50 of ImageNet on photographs of your own, all layers, the new head ten times as fast.

  resnet-jax train --config=finetune_folder_resnet50 --workdir=runs/tuned --config.data.path=PATH

PATH is a folder, or a zip or tar of one, with {train,test}/CLASS/*.jpg. Other weights: --config.init_from and
config.model.name; `resnet-jax info TAG` tells their mean and std. Hardware: one GPU or TPU core with 16 GiB; minutes
for each 10,000 images. Expected: depends on the photographs; not run by this project with this net, for want of such
hardware. What was run, with small nets, is in docs/fine-tuning.md. Of twelve data sets, Kornblith et al. 2019
(arXiv:1805.08974) find little gain over training from scratch on two, which are small and fine-grained.
"""

import ml_collections

from resnet_jax.configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 64
    config.num_epochs = 20.0
    config.init_from = "resnet50.a1_in1k"
    config.init_anew = ("fc",)  # other classes
    config.model.name = "resnet50"
    config.model.kwargs.dtype = "bfloat16"

    config.data.name = "folder"
    config.data.image_size = 224
    config.data.eval_resize = 256
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.data.crop = "resized"
    config.data.flip = True
    config.data.color_jitter = (0.2, 0.2, 0.2, 0.0)

    config.optimizer.learning_rate = 0.01
    config.optimizer.rates = (("fc", 10.0),)
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decayed = "not_norm"
    config.optimizer.label_smoothing = 0.1
    return config
