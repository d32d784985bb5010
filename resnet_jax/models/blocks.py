"""The two residual blocks. They receive convolution, norm and activation, and never choose them."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from resnet_jax.models.layers import (
    Conv,
    Downsample,
    ModuleDef,
    batch_norm,
    conv1x1,
    conv3x3,
    pad_shortcut,
)

Array = jax.Array


class Block(nn.Module):
    """What both blocks share: their fields and the shortcut.

    Attributes:
      features: width of the block before `expansion` (PyTorch's `planes`).
      stride: stride of the block; sits on the first 3x3 convolution.
      conv, norm, act: the layers to build with. `norm` must already know its mode (`use_running_average`).
      groups, width_per_group: cardinality and base width of the 3x3 convolution (Xie et al. 2016, section 3).
      shortcut: "B" projects where shape changes, "A" pads with zero channels (He et al. 2015, section 3.3).
      zero_init_residual: start the last norm's scale at 0, so that the block begins as the identity
        (Goyal et al. 2017, section 5.1).
    """

    features: int
    stride: int = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = batch_norm
    act: Any = nn.relu
    groups: int = 1
    width_per_group: int = 64
    shortcut: str = "B"
    zero_init_residual: bool = False

    expansion: ClassVar[int] = 1

    def identity(self, x: Array) -> Array:
        """The shortcut: `x` itself, or `x` brought to the shape of the block's output."""
        out = self.features * self.expansion
        if self.stride == 1 and x.shape[-1] == out:
            return x
        if self.shortcut == "A":
            return pad_shortcut(x, out, self.stride)
        return Downsample(out, self.stride, self.conv, self.norm, name="downsample")(x)

    def last_norm(self, name: str) -> Any:
        """The norm layer that closes the residual branch."""
        return (
            self.norm(name=name, scale_init=nn.initializers.zeros) if self.zero_init_residual else self.norm(name=name)
        )


class BasicBlock(Block):
    """Two 3x3 convolutions (He et al. 2015, figure 5, left): `[..., h, w, c] -> [..., h/stride, w/stride, features]`.

    Raises:
      ValueError: `groups` or `width_per_group` is set: only a Bottleneck has them, in PyTorch too.
    """

    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                "BasicBlock has neither groups nor a base width "
                f"(got groups={self.groups}, width_per_group={self.width_per_group}): use Bottleneck."
            )
        y = conv3x3(self.features, self.stride, conv=self.conv, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = conv3x3(self.features, conv=self.conv, name="conv2")(y)
        y = self.last_norm("bn2")(y)
        return self.act(y + self.identity(x))


class Bottleneck(Block):
    """1x1, 3x3, 1x1 convolutions (figure 5, right): `[..., h, w, c] -> [..., h/stride, w/stride, 4 * features]`.

    The stride sits on the 3x3 convolution, as in torchvision ("ResNet v1.5"), not on the first 1x1 as in the paper.
    """

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.features * self.width_per_group // 64 * self.groups
        y = conv1x1(width, conv=self.conv, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = conv3x3(width, self.stride, groups=self.groups, conv=self.conv, name="conv2")(y)
        y = self.act(self.norm(name="bn2")(y))
        y = conv1x1(self.features * self.expansion, conv=self.conv, name="conv3")(y)
        y = self.last_norm("bn3")(y)
        return self.act(y + self.identity(x))
