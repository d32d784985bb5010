"""From images to the first activation: a table of stems, and the pools that follow them.

A stem is called as `(x, features, *, conv, norm, act)` and gives `features` channels, ending with `act(bn1(...))`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resnet_jax.models.layers import ModuleDef, avg_pool, conv3x3, max_pool3x3

Array = jax.Array
Activation = Callable[[Array], Array]


def imagenet_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Activation) -> Array:
    """7x7 convolution with stride 2 (He et al. 2015, table 1): `[..., h, w, c] -> [..., h/2, w/2, features]`."""
    x = conv(features, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)), name="conv1")(x)
    return act(norm(name="bn1")(x))


def cifar_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Activation) -> Array:
    """3x3 convolution at full resolution (section 4.2): `[..., h, w, c] -> [..., h, w, features]`."""
    x = conv3x3(features, conv=conv, name="conv1")(x)
    return act(norm(name="bn1")(x))


class ThreeConvs(nn.Module):
    """Three 3x3 convolutions, the first with stride 2; children numbered as in PyTorch's `Sequential`: 0 1 3 4 6."""

    widths: tuple[int, int, int]
    conv: ModuleDef
    norm: ModuleDef
    act: Activation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if min(self.widths) < 1:
            raise ValueError(
                f"stem_features={self.widths[-1]} gives a deep stem of widths {self.widths}: give 8 or more."
            )
        first, second, third = self.widths
        x = self.act(self.norm(name="1")(conv3x3(first, 2, conv=self.conv, name="0")(x)))
        x = self.act(self.norm(name="4")(conv3x3(second, conv=self.conv, name="3")(x)))
        y: Array = conv3x3(third, conv=self.conv, name="6")(x)
        return y


def deep_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Activation) -> Array:
    """Widths (f/2, f/2, f), as in the C, D and S nets (He et al. 2018, arXiv:1812.01187, figure 2b)."""
    x = ThreeConvs((features // 2, features // 2, features), conv, norm, act, name="conv1")(x)
    return act(norm(name="bn1")(x))


def tiered_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Activation) -> Array:
    """Widths (3f/8, f/2, f): timm's T nets."""
    x = ThreeConvs((3 * (features // 2 // 4), features // 2, features), conv, norm, act, name="conv1")(x)
    return act(norm(name="bn1")(x))


class Stem(NamedTuple):
    """A stem: the function, its stride, and the name of the pool that belongs to it."""

    apply: Callable[..., Array]
    stride: int
    pool: str = "none"


STEMS = {
    "imagenet": Stem(imagenet_stem, 2, "max"),
    "cifar": Stem(cifar_stem, 1),
    "deep": Stem(deep_stem, 2, "max"),
    "deep_tiered": Stem(tiered_stem, 2, "max"),
}


# Pools, called as (x, *, anti_alias, conv, norm, act): [..., h, w, c] -> [..., h/2, w/2, c] --------------------------


class ConvPool(nn.Module):
    """3x3 convolution with stride 2 instead of the max-pool (Bello et al. 2021, arXiv:2103.07579, ResNet-RS)."""

    conv: ModuleDef
    norm: ModuleDef
    act: Activation
    anti_alias: Callable[[Array, int], Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.anti_alias is None:
            x = conv3x3(x.shape[-1], 2, conv=self.conv, name="0")(x)
            return self.act(self.norm(name="1")(x))
        x = self.anti_alias(conv3x3(x.shape[-1], conv=self.conv, name="0")(x), 2)
        return self.act(self.norm(name="2")(x))


def max_pool(x: Array, *, anti_alias: Callable[[Array, int], Array] | None, **_: Any) -> Array:
    """3x3 maximum with stride 2; anti-aliased it has stride 1, or gives way to the average pool altogether."""
    if anti_alias is None:
        return max_pool3x3(x)
    return anti_alias(x if anti_alias is avg_pool else max_pool3x3(x, stride=1), 2)


def conv_pool(x: Array, **layers: Any) -> Array:
    """`ConvPool`, under PyTorch's name."""
    y: Array = ConvPool(**layers, name="maxpool")(x)
    return y


class StemPool(NamedTuple):
    """What follows a stem: the function, and its stride."""

    apply: Callable[..., Array]
    stride: int


STEM_POOLS = {
    "max": StemPool(max_pool, 2),
    "conv": StemPool(conv_pool, 2),
    "none": StemPool(lambda x, **_: x, 1),
}
