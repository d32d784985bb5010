"""The leaves: convolution, normalisation, pooling and shortcut parts, each equal to its PyTorch twin.

Everything here is either a thin `partial` over `flax.linen` or a plain function, so that a block reads as a
list of layers. Two rules keep the port exact: paddings are numbers (`'SAME'` pads (0, 1) where PyTorch pads
(1, 1) in a stride-2 layer on an even size), and initialisers are PyTorch's.
"""

import functools
import inspect
import math
from collections.abc import Callable
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


def conv1x1(features: int, stride: int = 1, *, conv: ModuleDef = Conv, name: str | None = None) -> Any:
    """A 1x1 convolution without padding: `[..., h, w, c] -> [..., h/stride, w/stride, features]`."""
    return conv(features, (1, 1), strides=(stride, stride), padding=((0, 0), (0, 0)), name=name)


def max_pool3x3(x: Array) -> Array:
    """3x3 maximum with stride 2, padded by 1 with -inf: the pool of the stem (He et al. 2015, table 1)."""
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def global_avg_pool(x: Array) -> Array:
    """Mean over height and width: `[..., h, w, c] -> [..., c]`."""
    return jnp.mean(x, axis=(-3, -2))


def linear(features: int, fan_in: int, **kwargs: Any) -> nn.Dense:
    """A dense layer with PyTorch's initialisation; the bias needs `fan_in`, which its own shape does not tell."""
    init = uniform_init(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, **kwargs)


# Normalisation ------------------------------------------------------------------------------------------


def batch_norm(*, param_dtype: Any = jnp.float32, cls: ModuleDef = nn.BatchNorm, **kwargs: Any) -> Any:
    """`nn.BatchNorm` as PyTorch sets it: decay 0.9 (PyTorch's momentum 0.1), epsilon 1e-5, two-pass variance.

    Flax's one-pass variance E[x^2] - E[x]^2 cancels, and can even turn negative. Statistics stay float32 when
    the net computes in bfloat16, and are float64 in a float64 net.
    """
    single = jnp.finfo(param_dtype).bits <= 32
    defaults = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False, "force_float32_reductions": single}
    return cls(param_dtype=param_dtype, **(defaults | kwargs))


class UnbiasedBatchNorm(nn.BatchNorm):
    """Batch norm whose running variance is PyTorch's: normalise with the biased variance, store the unbiased one.

    PyTorch multiplies the stored variance by n / (n - 1), n being the number of values a channel is averaged
    over (batch * height * width, over all devices of `axis_name` when synchronised). It matters where n is
    small, and it is what makes a training run, and not only inference, comparable step by step.

    Raises:
      ValueError: n is 1 in training mode: there is no variance to learn (PyTorch refuses it as well).
    """

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Array | None = None) -> Array:
        frozen = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        mode = None if self.use_running_average is not None else frozen  # merged again there, so given once
        if frozen or self.is_initializing():
            return super().__call__(x, mode, mask=mask)
        if mask is not None:
            raise ValueError("UnbiasedBatchNorm counts every position: it does not take a mask.")
        n = x.size // x.shape[self.axis]
        if self.axis_name is not None:
            n *= jax.lax.psum(1, self.axis_name, axis_index_groups=self.axis_index_groups)
        if n == 1:
            raise ValueError(
                f"batch norm in training mode needs more than 1 value per channel, got an input of shape {x.shape}: "
                "use a larger batch or image, or call the model with train=False."
            )
        old: Array = self.get_variable("batch_stats", "var")
        y = super().__call__(x, mode)
        decayed = self.momentum * old
        new: Array = self.get_variable("batch_stats", "var")
        self.put_variable("batch_stats", "var", decayed + (new - decayed) * (n / (n - 1)))
        return y


def group_norm(*, num_groups: int = 32, **kwargs: Any) -> nn.GroupNorm:
    """`nn.GroupNorm` as PyTorch sets it: epsilon 1e-5 (Flax: 1e-6), two-pass variance (Wu & He 2018)."""
    return nn.GroupNorm(num_groups=num_groups, **({"epsilon": 1e-5, "use_fast_variance": False} | kwargs))


NORMS: dict[str, ModuleDef] = {
    "batch": batch_norm,
    "batch_unbiased": functools.partial(batch_norm, cls=UnbiasedBatchNorm),
    "group": group_norm,
}


def bind_norm(norm: str | ModuleDef, *, train: bool, axis_name: str | None, **kwargs: Any) -> ModuleDef:
    """The norm layer of a whole net, its mode decided once: blocks then only name it.

    Args:
      norm: a name in `NORMS`, or any callable that builds a Linen norm layer (`nn.LayerNorm`,
        `partial(nn.GroupNorm, num_groups=8)`, ...).
      train: training mode; reaches only layers that have a `use_running_average`.
      axis_name: mapped axis over which batch statistics are averaged; refused by layers without statistics.
      **kwargs: further arguments for the layer, such as `dtype` and `param_dtype`.

    Raises:
      ValueError: an unknown name, or an `axis_name` for a norm layer that has no batch statistics.
    """
    if isinstance(norm, str):
        if norm not in NORMS:
            raise ValueError(
                f"unknown norm {norm!r}: give one of {sorted(NORMS)} or a callable that builds a Linen layer."
            )
        norm = NORMS[norm]
    if _accepts(norm, "use_running_average"):
        kwargs |= {"use_running_average": not train, "axis_name": axis_name}
    elif axis_name is not None:
        raise ValueError(
            f"axis_name={axis_name!r} synchronises batch statistics, but {norm} keeps none: leave it None."
        )
    return functools.partial(norm, **kwargs)


def _accepts(factory: ModuleDef, argument: str) -> bool:
    """Whether `factory`, or the layer class that `batch_norm` builds, is a batch norm taking `argument`."""
    while isinstance(factory, functools.partial):
        if argument in factory.keywords:
            return False  # the caller has fixed it
        factory = factory.func
    return factory is batch_norm or argument in inspect.signature(factory).parameters


# Shortcuts ----------------------------------------------------------------------------------------------


class Downsample(nn.Module):
    """Projection shortcut, option B (He et al. 2015, section 3.3): children `0` (1x1 convolution) and `1` (norm)."""

    features: int
    stride: int
    conv: ModuleDef
    norm: ModuleDef

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = conv1x1(self.features, self.stride, conv=self.conv, name="0")(x)
        return self.norm(name="1")(x)


def pad_shortcut(x: Array, features: int, stride: int) -> Array:
    """Parameter-free shortcut, option A: every `stride`-th pixel, zero channels on both sides of the real ones."""
    extra = features - x.shape[-1]
    x = x[..., ::stride, ::stride, :]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(extra // 2, extra - extra // 2)])
