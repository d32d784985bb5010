"""What the backward pass keeps of a residual block, instead of computing it anew from what enters the block."""

from collections.abc import Callable
from typing import Any

import jax


def _statistics(primitive: Any, *_: Any, **__: Any) -> bool:
    """Sums over positions, and over devices: a few numbers for each channel, for a pass over all activations."""
    return primitive is jax.lax.reduce_sum_p or primitive.name.startswith("psum")


def _convolution(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive is jax.lax.conv_general_dilated_p


def _narrow_convolution(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Those with no more channels out than in: not the last of a Bottleneck, nor a shortcut that widens.

    The last one's output is four times the others', and one 1x1 convolution away from them.
    """
    if not _convolution(primitive):
        return False
    (x, kernel), dimensions = inputs[:2], params["dimension_numbers"]
    return bool(kernel.shape[dimensions.rhs_spec[0]] <= x.shape[dimensions.lhs_spec[1]])


def _any(*policies: Callable[..., bool]) -> Callable[..., bool]:
    return lambda *args, **kwargs: any(policy(*args, **kwargs) for policy in policies)


# Statistics are kept by all: without them each norm would read its input once more and, where it is synchronised,
# the devices would exchange them twice.
REMATS: dict[str, Callable[..., Any]] = {
    "block": _statistics,
    "narrow": _any(_statistics, _narrow_convolution),
    "conv": _any(_statistics, _convolution),
}
