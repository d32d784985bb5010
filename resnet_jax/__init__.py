"""ResNets in JAX and Flax Linen, equal to PyTorch's."""

import importlib
from typing import TYPE_CHECKING, Any

from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.layers import conv1x1, conv3x3
from resnet_jax.models.norms import UnbiasedBatchNorm
from resnet_jax.models.resnet import FeatureInfo, ResNet, feature_info
from resnet_jax.models.variants import (
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    create_model,
    ecaresnet50d,
    list_models,
    plain18,
    plain34,
    resnet18,
    resnet34,
    resnet50,
    resnet50c,
    resnet50d,
    resnet101,
    resnet101d,
    resnet152,
    resnet152d,
    resnetaa50,
    resnetblur50,
    resnetrs50,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    senet154,
    seresnet50,
    seresnext50_32x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from resnet_jax.version import __version__
from resnet_jax.weights.adapt import Diff, adapt, graft
from resnet_jax.weights.convert import from_torch, to_torch
from resnet_jax.weights.errors import ConversionError, WeightFileError
from resnet_jax.weights.files.formats import load_state_dict
from resnet_jax.weights.fold import fold_batch_norm
from resnet_jax.weights.pretrained import load_pretrained, save_pretrained
from resnet_jax.weights.published.download import DownloadError
from resnet_jax.weights.published.registry import Accuracy, Pretrained, get_pretrained, list_pretrained
from resnet_jax.weights.recognise import identify
from resnet_jax.weights.sources import class_names, preprocessing

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing
    from resnet_jax.runs.reporting import Callback
    from resnet_jax.training.fit import Fitted, fit
else:
    # Public names that bring packages which the rest does without: where they are.
    _LATE = {
        "Preprocessing": "resnet_jax.data.transforms",
        "Callback": "resnet_jax.runs.reporting",
        "Fitted": "resnet_jax.training.fit",
        "fit": "resnet_jax.training.fit",
    }

    def __getattr__(name: str) -> Any:
        """What is imported when it is first asked for."""
        if name not in _LATE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            return getattr(importlib.import_module(_LATE[name]), name)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("resnet_jax"):
                raise
            raise ImportError(
                f"resnet_jax.{name} needs {error.name}, which is not installed: pip install 'resnet-linen[train]'"
            ) from error


__all__ = [
    "Accuracy",
    "BasicBlock",
    "Bottleneck",
    "Callback",
    "ConversionError",
    "Diff",
    "DownloadError",
    "FeatureInfo",
    "Fitted",
    "Preprocessing",
    "Pretrained",
    "ResNet",
    "UnbiasedBatchNorm",
    "WeightFileError",
    "__version__",
    "adapt",
    "cifar_resnet110",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "class_names",
    "conv1x1",
    "conv3x3",
    "create_model",
    "ecaresnet50d",
    "feature_info",
    "fit",
    "fold_batch_norm",
    "from_torch",
    "get_pretrained",
    "graft",
    "identify",
    "list_models",
    "list_pretrained",
    "load_pretrained",
    "load_state_dict",
    "plain18",
    "plain34",
    "preprocessing",
    "resnet101",
    "resnet101d",
    "resnet152",
    "resnet152d",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50c",
    "resnet50d",
    "resnetaa50",
    "resnetblur50",
    "resnetrs50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "save_pretrained",
    "senet154",
    "seresnet50",
    "seresnext50_32x4d",
    "to_torch",
    "wide_resnet101_2",
    "wide_resnet50_2",
]
