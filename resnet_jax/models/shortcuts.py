"""What is added to the residual branch: a table of functions that bring a block's input to its output's shape.

Each is called inside a block as `(x, features, *, stride, dilation, first_dilation, conv, norm)` and gives
`[..., h/stride, w/stride, features]`. Where nothing changes shape all of them but "none" are the identity.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.layers import ModuleDef, avg_pool2x2_ceil, conv1x1

Array = jax.Array


class Projection(nn.Module):
    """Option B (He et al. 2015, section 3.3): children `0` (convolution) and `1` (norm).

    A kernel of 3 is SENet-154's; where the resolution stays it is 1x1 all the same, as timm has it.
    """

    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    kernel_size: int = 1
    dilation: int = 1
    first_dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = 1 if self.stride == self.dilation == 1 else self.kernel_size
        dilation = self.first_dilation if size > 1 else 1
        padding = (self.stride - 1 + dilation * (size - 1)) // 2
        x = self.conv(
            self.features,
            (size, size),
            strides=(self.stride, self.stride),
            padding=((padding, padding), (padding, padding)),
            kernel_dilation=(dilation, dilation),
            name="0",
        )(x)
        return self.norm(name="1")(x)


class PooledProjection(nn.Module):
    """The shortcut of "D" nets (He et al. 2018, arXiv:1812.01187, figure 2c): 2x2 mean, children `1` (1x1), `2` (norm).

    Child `0` of PyTorch is the pool, also where that is the identity.
    """

    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if (self.stride, self.dilation) != (1, 1):
            x = avg_pool2x2_ceil(x, self.stride)
        x = conv1x1(self.features, conv=self.conv, name="1")(x)
        return self.norm(name="2")(x)


def projected(x: Array, features: int, *, stride: int, kernel_size: int = 1, **layers: Any) -> Array:
    """Option B where the shape changes, else the identity."""
    if stride == 1 and x.shape[-1] == features:
        return x
    y: Array = Projection(features, stride, kernel_size=kernel_size, name="downsample", **layers)(x)
    return y


def pooled(x: Array, features: int, *, stride: int, first_dilation: int, **layers: Any) -> Array:
    """Mean and projection where the shape changes, else the identity."""
    if stride == 1 and x.shape[-1] == features:
        return x
    y: Array = PooledProjection(features, stride, name="downsample", **layers)(x)
    return y


def padded(x: Array, features: int, *, stride: int, **_: Any) -> Array:
    """Option A, parameter-free: every `stride`-th pixel, zero channels on both sides of the real ones."""
    extra = features - x.shape[-1]
    if extra < 0:
        raise ValueError(
            f"shortcut 'A' pads channels with zeros and cannot take {x.shape[-1]} of them to {features}: use 'B'."
        )
    x = x[..., ::stride, ::stride, :]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(extra // 2, extra - extra // 2)])


def no_shortcut(x: Array, features: int, **_: Any) -> Array:
    """Nothing is added: the plain nets that He et al. 2015, section 3.3, compare residual ones with."""
    return jnp.zeros((), x.dtype)


SHORTCUTS: dict[str, Callable[..., Array]] = {
    "A": padded,
    "B": projected,
    "B3x3": functools.partial(projected, kernel_size=3),
    "avg": pooled,
    "none": no_shortcut,
}
