"""The table of networks: a name -> arguments of `ResNet`."""

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.resnet import ResNet

_SIZES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _basic(depth: int) -> dict[str, Any]:
    return {"block": BasicBlock, "stage_sizes": _SIZES[depth]}


def _bottleneck(depth: int, **kwargs: Any) -> dict[str, Any]:
    return {"block": Bottleneck, "stage_sizes": _SIZES[depth], **kwargs}


def _cifar(depth: int) -> dict[str, Any]:
    """The nets of He et al. 2015, section 4.2: 6n+2 layers, three stages of n basic blocks, option-A shortcuts."""
    return {
        "block": BasicBlock,
        "stage_sizes": ((depth - 2) // 6,) * 3,
        "stage_features": (16, 32, 64),
        "stem": "cifar",
        "stem_features": 16,
        "shortcut": "A",
        "num_classes": 10,
    }


VARIANTS: dict[str, dict[str, Any]] = {
    # torchvision's ten
    "resnet18": _basic(18),
    "resnet34": _basic(34),
    "resnet50": _bottleneck(50),
    "resnet101": _bottleneck(101),
    "resnet152": _bottleneck(152),
    "resnext50_32x4d": _bottleneck(50, groups=32, width_per_group=4),
    "resnext101_32x8d": _bottleneck(101, groups=32, width_per_group=8),
    "resnext101_64x4d": _bottleneck(101, groups=64, width_per_group=4),
    "wide_resnet50_2": _bottleneck(50, width_per_group=128),
    "wide_resnet101_2": _bottleneck(101, width_per_group=128),
    # He et al. 2015, section 4.2
    "cifar_resnet20": _cifar(20),
    "cifar_resnet32": _cifar(32),
    "cifar_resnet44": _cifar(44),
    "cifar_resnet56": _cifar(56),
    "cifar_resnet110": _cifar(110),
}


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` takes, those that match the shell `pattern`, in the order of the table.

    >>> list_models("wide_*")
    ['wide_resnet50_2', 'wide_resnet101_2']
    """
    return [name for name in VARIANTS if fnmatch.fnmatchcase(name, pattern)]


def create_model(name: str, /, **kwargs: Any) -> ResNet:
    """Builds the network called `name`; `kwargs` are fields of `ResNet` and win over the table's.

    `name=` among them is Linen's: the module's own name inside another module.

    Raises:
      ValueError: no such network.
      TypeError: no such field of `ResNet`.
    """
    if name not in VARIANTS:
        near = difflib.get_close_matches(name, VARIANTS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see resnet_jax.list_models()."
        raise ValueError(f"unknown model {name!r}: {hint}")
    fields = [field.name for field in dataclasses.fields(ResNet) if field.name not in ("parent",)]
    for unknown in kwargs.keys() - fields:
        near = difflib.get_close_matches(unknown, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}."
        raise TypeError(f"ResNet has no field {unknown!r}: {hint}")
    return ResNet(**(VARIANTS[name] | kwargs))


def _builder(name: str) -> Callable[..., ResNet]:
    build = functools.partial(create_model, name)
    build.__doc__ = f"`create_model({name!r}, **kwargs)`."
    return build


resnet18 = _builder("resnet18")
resnet34 = _builder("resnet34")
resnet50 = _builder("resnet50")
resnet101 = _builder("resnet101")
resnet152 = _builder("resnet152")
resnext50_32x4d = _builder("resnext50_32x4d")
resnext101_32x8d = _builder("resnext101_32x8d")
resnext101_64x4d = _builder("resnext101_64x4d")
wide_resnet50_2 = _builder("wide_resnet50_2")
wide_resnet101_2 = _builder("wide_resnet101_2")
cifar_resnet20 = _builder("cifar_resnet20")
cifar_resnet32 = _builder("cifar_resnet32")
cifar_resnet44 = _builder("cifar_resnet44")
cifar_resnet56 = _builder("cifar_resnet56")
cifar_resnet110 = _builder("cifar_resnet110")
