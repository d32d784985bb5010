"""Channel attention: modules that a block applies to its residual branch after the last norm, under the name `se`.

Each takes `features`, the nominal width of the branch, and `conv`, a convolution that already knows the net's dtypes,
and maps `[..., h, w, c] -> [..., h, w, c]`. A new one is a class like these, given as `ResNet(attn=...)`.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.layers import Conv, ModuleDef, conv1x1, uniform_init

Array = jax.Array


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507): mean, 1x1, ReLU, 1x1, sigmoid, times the input.

    Attributes:
      features: channels that the reduction is taken from.
      conv: the convolution to build with.
      rd_ratio: reduced channels over `features`, rounded to a multiple of 8, at least 8.
    """

    features: int
    conv: ModuleDef = Conv
    rd_ratio: float = 1 / 16

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        reduced = max(8, int(self.features * self.rd_ratio + 4) // 8 * 8)
        y = jnp.mean(x, axis=(-3, -2), keepdims=True)
        y = nn.relu(self._biased(reduced, channels, "fc1")(y))
        return x * nn.sigmoid(self._biased(channels, reduced, "fc2")(y))

    def _biased(self, features: int, fan_in: int, name: str) -> nn.Module:
        biased: nn.Module = conv1x1(features, conv=self.conv, use_bias=True, bias_init=uniform_init(fan_in), name=name)
        return biased


class EfficientChannelAttention(nn.Module):
    """ECA (Wang et al. 2020, arXiv:1910.03151): mean, 1-D convolution along the channels, sigmoid, times the input.

    Attributes:
      features: channels that the kernel size is computed from: the odd one nearest to (log2(features) + 1) / 2.
      conv: the convolution to build with.
    """

    features: int
    conv: ModuleDef = Conv

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = int(abs(math.log2(self.features) + 1) / 2)
        size = max(3, size if size % 2 else size + 1)
        y = jnp.mean(x, axis=(-3, -2))[..., None]
        padding = ((size // 2, size // 2),)
        y = self.conv(1, (size,), padding=padding, kernel_init=uniform_init(size), name="conv")(y)
        return x * nn.sigmoid(y)[..., None, None, :, 0]


ATTENTIONS: dict[str, ModuleDef] = {
    "se": SqueezeExcite,
    "se4": functools.partial(SqueezeExcite, rd_ratio=1 / 4),
    "eca": EfficientChannelAttention,
}
