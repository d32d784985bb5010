"""The table of networks: a name -> arguments of `ResNet`, one line each. To add a network, add its line."""

import dataclasses
import difflib
import fnmatch
import functools
import warnings
from collections.abc import Callable
from typing import Any

from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.pruned import WIDTHS
from resnet_jax.models.resnet import ResNet

# Blocks of each stage, by the number of layers in the name.
_SIZES = {
    10: (1, 1, 1, 1),
    14: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    26: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    201: (3, 24, 36, 4),
    269: (3, 30, 48, 8),
    270: (4, 29, 53, 4),
    350: (4, 36, 72, 4),
    420: (4, 44, 87, 4),
}
_BASIC = (10, 18, 34)

# Parts that several lines share. Letters are those of He et al. 2018 (arXiv:1812.01187) and of timm.
_C: dict[str, Any] = {"stem": "deep", "stem_features": 64}
_S: dict[str, Any] = {"stem": "deep", "stem_features": 128}
_D: dict[str, Any] = _C | {"shortcut": "avg"}
_T: dict[str, Any] = {"stem": "deep_tiered", "stem_features": 64, "shortcut": "avg"}
_SE: dict[str, Any] = {"attn": "se"}
_ECA: dict[str, Any] = {"attn": "eca"}
_AA: dict[str, Any] = {"anti_alias": "avg"}
_BLUR: dict[str, Any] = {"anti_alias": "blur"}
_RS: dict[str, Any] = _D | {"stem_pool": "conv", "attn": "se4"}


def _next(groups: int, width_per_group: int) -> dict[str, Any]:
    return {"groups": groups, "width_per_group": width_per_group}


def _torchvision(depth: int, *parts: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A network as torchvision starts it: every scale at 1."""
    fields = {"block": BasicBlock if depth in _BASIC else Bottleneck, "stage_sizes": _SIZES[depth]}
    return functools.reduce(lambda a, b: a | b, parts, fields) | kwargs


def _timm(depth: int, *parts: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    """A network as timm starts it: the last scale of each block at 0."""
    return _torchvision(depth, *parts, zero_init_residual=True, **kwargs)


def _cifar(depth: int, shortcut: str) -> dict[str, Any]:
    """The nets of He et al. 2015, section 4.2: 6n+2 layers, three stages of n basic blocks."""
    return {
        "block": BasicBlock,
        "stage_sizes": ((depth - 2) // 6,) * 3,
        "stage_features": (16, 32, 64),
        "stem": "cifar",
        "stem_features": 16,
        "shortcut": shortcut,
        "num_classes": 10,
    }


VARIANTS: dict[str, dict[str, Any]] = {
    # torchvision's ten, with its initialisation
    "resnet18": _torchvision(18),
    "resnet34": _torchvision(34),
    "resnet50": _torchvision(50),
    "resnet101": _torchvision(101),
    "resnet152": _torchvision(152),
    "resnext50_32x4d": _torchvision(50, _next(32, 4)),
    "resnext101_32x8d": _torchvision(101, _next(32, 8)),
    "resnext101_64x4d": _torchvision(101, _next(64, 4)),
    "wide_resnet50_2": _torchvision(50, width_per_group=128),
    "wide_resnet101_2": _torchvision(101, width_per_group=128),
    # timm's others, with its initialisation: plain, and with a deep stem (C, S)
    "resnet26": _timm(26),
    "resnet200": _timm(200),
    "resnet50_gn": _timm(50, norm="group"),
    "resnext101_32x4d": _timm(101, _next(32, 4)),
    "resnext101_32x16d": _timm(101, _next(32, 16)),
    "resnext101_32x32d": _timm(101, _next(32, 32)),
    "resnext101_32x48d": _timm(101, _next(32, 48)),
    "resnet50c": _timm(50, _C),
    "resnet101c": _timm(101, _C),
    "resnet152c": _timm(152, _C),
    "resnet50s": _timm(50, _S),
    "resnet101s": _timm(101, _S),
    "resnet152s": _timm(152, _S),
    # a deep stem and averaging shortcuts (D), with a tiered stem (T)
    "resnet18d": _timm(18, _D),
    "resnet34d": _timm(34, _D),
    "resnet26d": _timm(26, _D),
    "resnet50d": _timm(50, _D),
    "resnet101d": _timm(101, _D),
    "resnet152d": _timm(152, _D),
    "resnet200d": _timm(200, _D),
    "resnext50d_32x4d": _timm(50, _D, _next(32, 4)),
    "resnet10t": _timm(10, _T),
    "resnet14t": _timm(14, _T),
    "resnet26t": _timm(26, _T),
    "resnet50t": _timm(50, _T),
    # squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507)
    "seresnet18": _timm(18, _SE),
    "seresnet34": _timm(34, _SE),
    "seresnet50": _timm(50, _SE),
    "seresnet101": _timm(101, _SE),
    "seresnet152": _timm(152, _SE),
    "seresnet50t": _timm(50, _T, _SE),
    "seresnet152d": _timm(152, _D, _SE),
    "seresnet200d": _timm(200, _D, _SE),
    "seresnet269d": _timm(269, _D, _SE),
    "seresnext50_32x4d": _timm(50, _SE, _next(32, 4)),
    "seresnext101_32x4d": _timm(101, _SE, _next(32, 4)),
    "seresnext101_32x8d": _timm(101, _SE, _next(32, 8)),
    "seresnext101_64x4d": _timm(101, _SE, _next(64, 4)),
    "seresnext26d_32x4d": _timm(26, _D, _SE, _next(32, 4)),
    "seresnext26t_32x4d": _timm(26, _T, _SE, _next(32, 4)),
    "seresnext101d_32x8d": _timm(101, _D, _SE, _next(32, 8)),
    "senet154": _timm(152, _S, _SE, _next(64, 4), reduce_first=2, shortcut="B3x3"),
    # efficient channel attention (Wang et al. 2020, arXiv:1910.03151)
    "ecaresnet26t": _timm(26, _T, _ECA),
    "ecaresnet50t": _timm(50, _T, _ECA),
    "ecaresnet50d": _timm(50, _D, _ECA),
    "ecaresnet101d": _timm(101, _D, _ECA),
    "ecaresnet200d": _timm(200, _D, _ECA),
    "ecaresnet269d": _timm(269, _D, _ECA),
    "ecaresnet50d_pruned": _timm(50, _D, _ECA, block_widths=WIDTHS["ecaresnet50d_pruned"]),
    "ecaresnet101d_pruned": _timm(101, _D, _ECA, block_widths=WIDTHS["ecaresnet101d_pruned"]),
    "ecaresnetlight": _timm(50, _ECA, stage_sizes=(1, 1, 11, 3), shortcut="avg"),
    "ecaresnext26t_32x4d": _timm(26, _T, _ECA, _next(32, 4)),
    "ecaresnext50t_32x4d": _timm(50, _T, _ECA, _next(32, 4)),
    # anti-aliasing by average pool, and by blur pool (Zhang 2019, arXiv:1904.11486)
    "resnetaa50": _timm(50, _AA),
    "resnetaa34d": _timm(34, _D, _AA),
    "resnetaa50d": _timm(50, _D, _AA),
    "resnetaa101d": _timm(101, _D, _AA),
    "seresnetaa50d": _timm(50, _D, _SE, _AA),
    "seresnextaa101d_32x8d": _timm(101, _D, _SE, _AA, _next(32, 8)),
    "seresnextaa201d_32x8d": _timm(201, _D, _SE, _AA, _next(32, 8), stem_features=128),
    "resnetblur18": _timm(18, _BLUR),
    "resnetblur50": _timm(50, _BLUR),
    "resnetblur50d": _timm(50, _D, _BLUR),
    "resnetblur101d": _timm(101, _D, _BLUR),
    # ResNet-RS (Bello et al. 2021, arXiv:2103.07579)
    "resnetrs50": _timm(50, _RS),
    "resnetrs101": _timm(101, _RS),
    "resnetrs152": _timm(152, _RS),
    "resnetrs200": _timm(200, _RS),
    "resnetrs270": _timm(270, _RS),
    "resnetrs350": _timm(350, _RS),
    "resnetrs420": _timm(420, _RS),
    # timm's smallest, for tests: 0.5 M parameters, both blocks
    "test_resnet": _timm(
        10,
        _D,
        block=(BasicBlock, BasicBlock, Bottleneck, BasicBlock),
        stem_features=32,
        stage_features=(32, 48, 48, 96),
    ),
    # He et al. 2015, section 4.2, and the networks without shortcuts that it compares them with (3.3 and 4.2)
    "cifar_resnet20": _cifar(20, "A"),
    "cifar_resnet32": _cifar(32, "A"),
    "cifar_resnet44": _cifar(44, "A"),
    "cifar_resnet56": _cifar(56, "A"),
    "cifar_resnet110": _cifar(110, "A"),
    "cifar_resnet1202": _cifar(1202, "A"),
    "cifar_plain20": _cifar(20, "none"),
    "cifar_plain32": _cifar(32, "none"),
    "cifar_plain44": _cifar(44, "none"),
    "cifar_plain56": _cifar(56, "none"),
    "plain18": _torchvision(18, shortcut="none"),
    "plain34": _torchvision(34, shortcut="none"),
}

# Names that timm once had for networks with particular weights. timm itself takes ig_resnext101_32x16d and the wider
# ones to 32x8d; here they are the networks that they name.
_PREFIXED = {
    "tv": ("resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d"),
    "ig": ("resnext101_32x8d", "resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d"),
    "ssl": ("resnet18", "resnet50", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d"),
    "swsl": ("resnet18", "resnet50", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d"),
    "gluon": (
        *("resnext50_32x4d", "resnext101_32x4d", "resnext101_64x4d"),
        *("seresnext50_32x4d", "seresnext101_32x4d", "seresnext101_64x4d", "senet154"),
    ),
}
ALIASES: dict[str, str] = {
    **{f"{prefix}_{name}": name for prefix, names in _PREFIXED.items() for name in names},
    **{f"gluon_resnet{depth}_v1b": f"resnet{depth}" for depth in (18, 34, 50, 101, 152)},
    **{f"gluon_resnet{depth}_v1{kind}": f"resnet{depth}{kind}" for depth in (50, 101, 152) for kind in "cds"},
    "seresnext26tn_32x4d": "seresnext26t_32x4d",
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

    Warns:
      DeprecationWarning: the name is an old one of timm's (`ALIASES`).
    """
    if name in ALIASES:
        warnings.warn(f"{name!r} is a deprecated name of {ALIASES[name]!r}.", DeprecationWarning, stacklevel=2)
        name = ALIASES[name]
    if name not in VARIANTS:
        raise ValueError(_unknown(name))
    fields = [field.name for field in dataclasses.fields(ResNet) if field.name != "parent"]
    for field in kwargs.keys() - fields:
        near = difflib.get_close_matches(field, fields, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}."
        raise TypeError(f"ResNet has no field {field!r}: {ELSEWHERE.get(field, hint).format(name=name)}")
    return ResNet(**(VARIANTS[name] | kwargs))


# What other libraries' builders take, and where it is here.
ELSEWHERE = {
    "pretrained": 'for weights too write model, variables = load_pretrained("{name}.<tag>"); list_pretrained has tags.',
    "in_chans": "channels are those of the images that init sees; adapt(..., in_channels=) fits weights to others.",
}
ELSEWHERE["weights"] = ELSEWHERE["pretrained"]


def _unknown(name: str) -> str:
    if not isinstance(name, str):
        return f"a model is called by its name, such as 'resnet50', got {name!r}."
    if name.partition(".")[0] in VARIANTS:
        return f"unknown model {name!r}: a tag names weights, and load_pretrained({name!r}) gives the model with them."
    near = difflib.get_close_matches(name, VARIANTS, n=3)
    return f"unknown model {name!r}: " + (
        f"did you mean {' or '.join(near)}?" if near else "resnet_jax.list_models() has all."
    )


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
resnet50c = _builder("resnet50c")
resnet50d = _builder("resnet50d")
resnet101d = _builder("resnet101d")
resnet152d = _builder("resnet152d")
seresnet50 = _builder("seresnet50")
seresnext50_32x4d = _builder("seresnext50_32x4d")
senet154 = _builder("senet154")
ecaresnet50d = _builder("ecaresnet50d")
resnetaa50 = _builder("resnetaa50")
resnetblur50 = _builder("resnetblur50")
resnetrs50 = _builder("resnetrs50")
cifar_resnet20 = _builder("cifar_resnet20")
cifar_resnet32 = _builder("cifar_resnet32")
cifar_resnet44 = _builder("cifar_resnet44")
cifar_resnet56 = _builder("cifar_resnet56")
cifar_resnet110 = _builder("cifar_resnet110")
plain18 = _builder("plain18")
plain34 = _builder("plain34")
