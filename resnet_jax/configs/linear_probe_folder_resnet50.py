r"""A linear probe: of a ResNet-50 of ImageNet only the last layer is trained, on photographs of your own.

  resnet-jax train --config=linear_probe_folder_resnet50 --workdir=runs/probe --config.data.path=PATH

PATH as in finetune_folder_resnet50.py. No gradient is computed below the head, and batch norms stay as they are.
Hardware: one GPU or TPU core with 8 GiB, or patience with a CPU. Expected: depends on the photographs; not run by this
project with this net, for want of such hardware. The weights are torchvision's older ones: many common ways to better a
net on ImageNet, label smoothing among them, make its last features worse for other tasks (Kornblith et al. 2019,
arXiv:1805.08974).
"""

import ml_collections

from resnet_jax.configs import finetune_folder_resnet50


def get_config() -> ml_collections.ConfigDict:
    config = finetune_folder_resnet50.get_config()
    config.batch_size = 256
    config.init_from = "resnet50.tv_in1k"
    config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)

    config.optimizer.learning_rate = 0.1
    config.optimizer.rates = (("", 0.0), ("fc", 1.0))
    config.optimizer.weight_decay = 0.0
    config.optimizer.decayed = "all"  # there is none to decay
    config.optimizer.label_smoothing = 0.0
    return config
