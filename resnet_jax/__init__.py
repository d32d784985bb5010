"""ResNets in JAX and Flax Linen, equal to PyTorch's."""

from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.layers import UnbiasedBatchNorm, conv1x1, conv3x3
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import (
    cifar_resnet20,
    cifar_resnet32,
    cifar_resnet44,
    cifar_resnet56,
    cifar_resnet110,
    create_model,
    list_models,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from resnet_jax.version import __version__
from resnet_jax.weights.convert import from_torch, to_torch

__all__ = [
    "__version__",
    "BasicBlock",
    "Bottleneck",
    "ResNet",
    "UnbiasedBatchNorm",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "conv1x1",
    "conv3x3",
    "create_model",
    "from_torch",
    "list_models",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "to_torch",
    "wide_resnet50_2",
    "wide_resnet101_2",
]
