"""Batch norm folded into the convolution before it: for inference, a net without norm layers and with the same outputs.

In evaluation mode a batch norm is `x * factor + shift` with one number each for a channel. The factor goes into the
convolution's kernel; the shift stays, as the bias of a `norms.Shift` under the norm's name.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.models.blocks import BasicBlock, Bottleneck
from resnet_jax.models.layers import ANTI_ALIASES
from resnet_jax.models.norms import Shift, UnbiasedBatchNorm, bind_norm
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEM_POOLS, STEMS, Stem, StemPool
from resnet_jax.weights import convert, finite
from resnet_jax.weights.convert import ConversionError, Variables
from resnet_jax.weights.files.formats import as_numpy

Path = tuple[str, ...]

# Name of a norm -> the convolution that it follows. An anti-aliasing pool may lie between the two: it is linear, and
# acts on each channel alone.
CONVOLUTIONS = (
    (r"((?:layer\d+\.\d+\.)?)bn(\d+)", r"\1conv\2"),
    (r"bn1", "conv1.6"),  # the last of a deep stem
    (r"conv1\.1", "conv1.0"),
    (r"conv1\.4", "conv1.3"),
    (r"maxpool\.[12]", "maxpool.0"),
    (r"(layer\d+\.\d+)\.downsample\.1", r"\1.downsample.0"),
    (r"(layer\d+\.\d+)\.downsample\.2", r"\1.downsample.1"),
)
# Where the table holds: in the parts that the library has, by field of `ResNet`.
PARTS: dict[str, tuple[Any, ...]] = {
    "block": (BasicBlock, Bottleneck),
    "stem": tuple(STEMS.values()),
    "stem_pool": tuple(STEM_POOLS.values()),
    "shortcut": tuple(SHORTCUTS.values()),
    "anti_alias": tuple(ANTI_ALIASES.values()),
}
NORMS = (nn.BatchNorm, UnbiasedBatchNorm)


def fold_batch_norm(model: ResNet, variables: Mapping[str, Any]) -> tuple[ResNet, Variables]:
    """A net without norm layers that gives what `model` gives in evaluation mode; it is not meant to be trained.

    >>> import jax, jax.numpy as jnp
    >>> from resnet_jax import BasicBlock, ResNet, fold_batch_norm
    >>> model = ResNet(BasicBlock, (1,), num_classes=10, stem="cifar", train=False)
    >>> images = jnp.ones((1, 8, 8, 3))
    >>> folded, variables = fold_batch_norm(model, jax.jit(model.init)(jax.random.key(0), images))
    >>> jax.jit(folded.apply)(variables, images).shape
    (1, 10)

    Args:
      model: a network with batch norm, put together from this library's parts.
      variables: `{'params': ..., 'batch_stats': ...}` of it, NumPy or JAX arrays.

    Returns:
      The network, with `norm=Shift`, and its variables: NumPy arrays, computed in float64 and stored in the dtypes
      they had. There are no `batch_stats`.

    Raises:
      ValueError: another norm than batch norm, or parts of your own, of which the order of layers is not known.
      ConversionError: the variables are not those of `model`, or hold NaN, infinities or negative variances.
    """
    epsilon = _epsilon(model)
    _check_parts(model)
    convert.to_torch(model, variables, allow_nonfinite=True)  # strict, with its message
    finite.refuse(convert.torch_named(variables), "the tree of variables", "")
    leaves = {path[1:]: as_numpy(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    norms = [path[:-1] for path in leaves if path[-1] == "var"]
    for norm, conv in _pairs(norms, leaves).items():
        scale, bias, mean, var = (leaves.pop((*norm, leaf)) for leaf in ("scale", "bias", "mean", "var"))
        kernel = leaves[*conv, "kernel"]
        factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
        leaves[*conv, "kernel"] = (kernel.astype(np.float64) * factor).astype(kernel.dtype)
        leaves[*norm, "bias"] = (bias.astype(np.float64) - mean.astype(np.float64) * factor).astype(bias.dtype)
    folded = model.clone(
        norm=Shift, axis_name=None, axis_index_groups=None, freeze_norm=False, zero_init_residual=False
    )
    return folded, {"params": unflatten_dict(leaves)}


def _epsilon(model: ResNet) -> float:
    """Of the batch norm that `model` builds."""
    norm = bind_norm(model.norm, train=False, axis_name=None)()
    if type(norm) not in NORMS or not (norm.use_scale and norm.use_bias):
        raise ValueError(
            f"only batch norm, with its scale and bias, can be folded, but norm={model.norm!r} builds "
            f"{type(norm).__name__}: it needs the statistics of its input, or is not known."
        )
    return float(norm.epsilon)


def _check_parts(model: ResNet) -> None:
    for field, known in PARTS.items():
        value = getattr(model, field)
        for part in value if type(value) is tuple else (value,):  # a Stem is one, too
            if part is None or isinstance(part, str) or _function(part) in map(_function, known):
                continue
            raise ValueError(
                f"{field}={part!r} is no part of this library, and where its norms and convolutions sit is not known: "
                "only networks of its own parts can be folded."
            )


def _function(part: Any) -> Any:
    """What a part does, whatever arguments it has been given, or stride and pool it is said to have."""
    part = part.apply if isinstance(part, Stem | StemPool) else part
    return part.func if isinstance(part, functools.partial) else part


def _pairs(norms: list[Path], leaves: Mapping[Path, Any]) -> dict[Path, Path]:
    """Each norm -> the one convolution that it follows."""
    pairs: dict[Path, Path] = {}
    for norm in norms:
        names = (
            re.sub(pattern, conv, ".".join(norm))
            for pattern, conv in CONVOLUTIONS
            if re.fullmatch(pattern, ".".join(norm))
        )
        found = [conv for name in names if (*(conv := tuple(name.split("."))), "kernel") in leaves]
        if len(found) != 1 or (*found[0], "bias") in leaves or found[0] in pairs.values():
            raise ConversionError(
                f"the norm {'.'.join(norm)} follows {len(found)} convolutions by its name, or one with a bias, or one "
                "that another norm follows too: this network cannot be folded."
            )
        pairs[norm] = found[0]
    return pairs
