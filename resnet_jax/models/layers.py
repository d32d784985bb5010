"""The leaves: convolution, linear, pooling and dropping layers, each equal to its PyTorch twin.

Nearly everything here is a thin `partial` over `flax.linen` or a plain function, so that a block reads as a list of
layers. Two rules keep the port exact: paddings are numbers (`'SAME'` pads (0, 1) where PyTorch pads (1, 1) in a
stride-2 layer on an even size), and initialisers are PyTorch's.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# A callable with the signature of a Linen layer's constructor: `nn.Conv`, `partial(nn.BatchNorm, ...)`, ...
ModuleDef = Callable[..., Any]
Array = jax.Array

# Kaiming-normal over fan-out, not truncated (He et al. 2015, arXiv:1502.01852, eq. 14; PyTorch's
# `kaiming_normal_(mode="fan_out")`). On an HWIO kernel fan-out is kh*kw*O, for grouped convolutions too.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform_init(fan_in: int) -> Callable[..., Array]:
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for both tensors of a linear layer."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


Conv: ModuleDef = functools.partial(nn.Conv, use_bias=False, kernel_init=conv_init)


def conv3x3(
    features: int,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    conv: ModuleDef = Conv,
    name: str | None = None,
) -> Any:
    """A 3x3 convolution, padded by its dilation: `[..., h, w, c] -> [..., h/stride, w/stride, features]`."""
    return conv(
        features,
        (3, 3),
        strides=(stride, stride),
        padding=((dilation, dilation), (dilation, dilation)),
        kernel_dilation=(dilation, dilation),
        feature_group_count=groups,
        name=name,
    )


def conv1x1(features: int, stride: int = 1, *, conv: ModuleDef = Conv, **kwargs: Any) -> Any:
    """A 1x1 convolution without padding: `[..., h, w, c] -> [..., h/stride, w/stride, features]`."""
    return conv(features, (1, 1), strides=(stride, stride), padding=((0, 0), (0, 0)), **kwargs)


def max_pool3x3(x: Array, stride: int = 2) -> Array:
    """3x3 maximum, padded by 1 with -inf: the pool of the stem (He et al. 2015, table 1)."""
    return nn.max_pool(x, (3, 3), strides=(stride, stride), padding=((1, 1), (1, 1)))


def avg_pool2x2_ceil(x: Array, stride: int) -> Array:
    """2x2 mean of a "D" shortcut; the output is rounded up, as by PyTorch's `ceil_mode` (He et al. 2018, figure 2c).

    With stride 2 the window at an odd edge averages the real pixels alone; with stride 1 (a dilated stage) one row and
    one column of zeros are padded at the end and count, as timm does it.
    """
    # An odd edge twice is the same mean. Windows that reach over the edge would do, too, but there XLA's CPU compiler
    # sums up wrong numbers in a process without the flag of `resnet_jax.compiler`, as of people who import this.
    for axis in (x.ndim - 3, x.ndim - 2):
        if stride == 1 or x.shape[axis] % 2:
            last = jax.lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
            x = jnp.concatenate([x, jnp.zeros_like(last) if stride == 1 else last], axis)
    return _average(x, 2, stride)


def _average(x: Array, size: int, stride: int) -> Array:
    """Mean over `size` x `size` windows that lie within the map."""
    return nn.avg_pool(_wide(x), (size, size), strides=(stride, stride)).astype(x.dtype)


def _wide(x: Array) -> Array:
    """float32 in place of float16, in which two large numbers have no sum; that they are halved first, XLA undoes."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


# Anti-aliasing: what takes the stride over from a convolution or a max-pool. (x, stride) -> x.

LARGER = "give larger images"


def avg_pool(x: Array, stride: int) -> Array:
    """Mean over `stride` x `stride` windows; rows and columns that fill no window are left out."""
    if min(x.shape[-3:-1]) < stride:
        raise ValueError(f"anti_alias='avg' averages {stride}x{stride} pixels of a map of {_size(x)}: {LARGER}.")
    return _average(x, stride, stride)


def blur_pool(x: Array, stride: int) -> Array:
    """Binomial 3x3 filter, [1, 2, 1] each way, after reflection (Zhang 2019, arXiv:1904.11486), then every `stride`-th.

    The filter is separable and constant, so it is a sum of shifted slices and not a depthwise convolution.
    """
    if min(x.shape[-3:-1]) < 2:
        raise ValueError(f"anti_alias='blur' mirrors the edge of a map, and {_size(x)} has none to mirror: {LARGER}.")
    y = _wide(x)
    for axis in (x.ndim - 3, x.ndim - 2):
        size = x.shape[axis]
        y = jnp.pad(y, [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)], mode="reflect")
        last = (size - 1) // stride * stride + 1
        left, middle, right = (jax.lax.slice_in_dim(y, i, i + last, stride, axis) for i in range(3))
        y = (left + 2 * middle + right) / 4
    return y.astype(x.dtype)


ANTI_ALIASES: dict[str, Callable[[Array, int], Array]] = {"avg": avg_pool, "blur": blur_pool}


# Global pooling: [..., h, w, c] -> [..., c], or twice the channels when two are concatenated.


def global_avg_pool(x: Array) -> Array:
    """Mean over height and width: `[..., h, w, c] -> [..., c]`."""
    return jnp.mean(x, axis=(-3, -2))


def global_max_pool(x: Array) -> Array:
    """Maximum over height and width: `[..., h, w, c] -> [..., c]`. The first of equals has the gradient, as in PyTorch.

    That of `jnp.max` is divided among those that equal the maximum: by 0, where XLA computes the map anew and rounds it
    otherwise.
    """
    return nn.max_pool(x, x.shape[-3:-1])[..., 0, 0, :]


def global_avgmax_pool(x: Array) -> Array:
    """Half the mean and half the maximum: `[..., h, w, c] -> [..., c]`."""
    y = _wide(x)
    return (0.5 * (global_avg_pool(y) + global_max_pool(y))).astype(x.dtype)


GLOBAL_POOLS: dict[str, Callable[[Array], Array]] = {
    "avg": global_avg_pool,
    "max": global_max_pool,
    "avgmax": global_avgmax_pool,
    "catavgmax": lambda x: jnp.concatenate([global_avg_pool(x), global_max_pool(x)], axis=-1),
    "none": lambda x: x,
}


def _size(x: Array) -> str:
    return f"{x.shape[-3]}x{x.shape[-2]}"


# The activations that configs can name; any function will do.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=0.01),
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "tanh": nn.tanh,
}


def linear(features: int, fan_in: int, std: float | None = None, **kwargs: Any) -> nn.Dense:
    """A dense layer with PyTorch's initialisation; the bias needs `fan_in`, which its own shape does not tell.

    With `std` the weights are drawn from a zero-mean Gaussian of that deviation instead, and the bias starts at 0.
    """
    init = uniform_init(fan_in)
    inits = (init, init) if std is None else (nn.initializers.normal(std), nn.initializers.zeros)
    return nn.Dense(features, kernel_init=inits[0], bias_init=inits[1], **kwargs)


# Regularisation, all without parameters. The random numbers are those of the `dropout` stream.


class Dropout(nn.Module):
    """`nn.Dropout`, bit for bit, and also where the axes of a mesh are explicit, as `jax.make_mesh` makes them.

    Attributes:
      rate: share that is zeroed; the rest is scaled by 1 / (1 - rate).
      deterministic: whether to let everything through.
      broadcast_dims: axes along which all or nothing is dropped.
    """

    rate: float
    deterministic: bool = False
    broadcast_dims: Sequence[int] = ()

    def __call__(self, x: Array) -> Array:
        if self.deterministic or self.rate == 0:
            return x
        shape = list(x.shape)
        for axis in self.broadcast_dims:
            shape[axis] = 1
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape)
        keep |= jnp.zeros_like(x, bool)  # lies as x does on the devices, which `select` wants of what it chooses by
        return jax.lax.select(keep, x / (1 - self.rate), jnp.zeros_like(x))


def drop_path(rate: float, *, deterministic: bool) -> nn.Module:
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): zeroes whole examples of a branch, scales the others."""
    return Dropout(rate, deterministic, broadcast_dims=(-3, -2, -1))


class DropBlock(nn.Module):
    """Zeroes squares of all channels at once and scales what is left (Ghiasi et al. 2018, arXiv:1810.12890).

    Attributes:
      rate: share of the positions that is to be dropped, before `gamma_scale`.
      block_size: side of a square; at most the side of the map.
      gamma_scale: factor of the rate.
      deterministic: whether to let everything through.
    """

    rate: float
    block_size: int
    gamma_scale: float = 1.0
    deterministic: bool = False

    def __call__(self, x: Array) -> Array:
        if self.deterministic or self.rate == 0:
            return x
        *batch, height, width, _ = x.shape
        kh, kw = min(self.block_size, height), min(self.block_size, width)
        # A square may be cut by the border, but is counted as often as it fits: the paper's equation 1.
        gamma = self.gamma_scale * self.rate * height * width / (kh * kw) / ((height - kh + 1) * (width - kw + 1))
        seeds = jax.random.bernoulli(self.make_rng("dropout"), min(gamma, 1.0), (*batch, height, width, 1))
        padding = [((k - 1) // 2, k // 2) for k in (kh, kw)]
        keep = 1 - nn.max_pool(seeds.astype(jnp.float32), (kh, kw), strides=(1, 1), padding=padding)
        return x * (keep * (keep.size / (jnp.sum(keep) + 1e-7))).astype(x.dtype)
