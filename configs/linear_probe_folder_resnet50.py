r"""A linear probe: of a ResNet-50 of ImageNet only the last layer is trained, on photographs of your own.

  python train.py --config=configs/linear_probe_folder_resnet50.py --workdir=runs/probe --config.data.path=PATH

PATH as in finetune_folder_resnet50.py. No gradient is computed below the head, and batch norms stay as they are.
Hardware: one GPU or TPU core with 8 GiB, or patience with a CPU. Expected: depends on the photographs; not run by this
project with this net, for want of such hardware. The weights are torchvision's older ones: many common ways to better a
net on ImageNet, label smoothing among them, make its last features worse for other tasks (Kornblith et al. 2019,
arXiv:1805.08974).
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.batch_size = 256
    config.num_epochs = 20.0
    config.init_from = "resnet50.tv_in1k"
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

    config.optimizer.rates = (("", 0.0), ("fc", 1.0))
    config.optimizer.weight_decay = 0.0
    return config
