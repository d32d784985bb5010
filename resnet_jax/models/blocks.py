"""The two residual blocks. They receive their layers and plug-ins, and never choose them."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from resnet_jax.models.layers import Conv, ModuleDef, conv1x1, conv3x3
from resnet_jax.models.norms import batch_norm
from resnet_jax.models.shortcuts import projected

Array = jax.Array


class Block(nn.Module):
    """What both blocks share: their fields, the convolution that carries the stride, and the end.

    Attributes:
      features: width of the block before `expansion` (PyTorch's `planes`).
      stride: stride of the block; sits on a 3x3 convolution, or where `stride_in_1x1` says.
      dilation: dilation of the stage.
      first_dilation: dilation of the convolution with the stride; in a stage's first block that of the stage before.
      conv, norm, act: the layers to build with. `norm` must already know its mode (`use_running_average`).
      groups, width_per_group: cardinality and base width of the 3x3 convolution (Xie et al. 2016, section 3).
      reduce_first: the first convolution's width is divided by this (2 in SENet-154).
      widths: output channels of each convolution, instead of those that `features` gives (pruned nets).
      shortcut: function of `shortcuts.SHORTCUTS`' form, that brings the input to the output's shape.
      attn: factory of a module like those in `attention.py`, or None.
      anti_alias: function of `layers.ANTI_ALIASES`' form, that takes the stride over from the convolution, or None.
      drop_block, drop_path: factories of modules that drop squares, or the whole branch, in training, or None.
      zero_init_residual: start the last norm's scale at 0, so that the block begins as the identity
        (Goyal et al. 2017, section 5.1).
      stride_in_1x1: the stride sits on a Bottleneck's first 1x1 convolution (He et al. 2015, table 1).
    """

    features: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    conv: ModuleDef = Conv
    norm: ModuleDef = batch_norm
    act: Callable[[Array], Array] = nn.relu
    groups: int = 1
    width_per_group: int = 64
    reduce_first: int = 1
    widths: Sequence[int] | None = None
    shortcut: Callable[..., Array] = projected
    attn: ModuleDef | None = None
    anti_alias: Callable[[Array, int], Array] | None = None
    drop_block: ModuleDef | None = None
    drop_path: ModuleDef | None = None
    zero_init_residual: bool = False
    stride_in_1x1: bool = False

    expansion: ClassVar[int] = 1

    def strided(self, x: Array, features: int, number: int, groups: int = 1) -> Array:
        """The 3x3 convolution with the block's stride, `bn<number>` and activation; the stride may be a pool's."""
        pool = self.anti_alias if self.stride == 2 or self.first_dilation != self.dilation else None
        stride = 1 if pool or self.stride_in_1x1 else self.stride
        name, dilation = f"conv{number}", self.first_dilation
        y = conv3x3(features, stride, groups=groups, dilation=dilation, conv=self.conv, name=name)(x)
        y = self.norm(name=f"bn{number}")(y)
        y = self.act(_plugged(self.drop_block)(y))
        return pool(y, self.stride) if pool else y

    def last_norm(self, name: str) -> Any:
        """The norm layer that closes the residual branch."""
        zero = {"scale_init": nn.initializers.zeros} if self.zero_init_residual else {}
        return self.norm(name=name, **zero)

    def merge(self, y: Array, x: Array) -> Array:
        """Ends the block: the branch `y` through attention and `drop_path`, plus the shortcut of `x`, activated."""
        unpruned = self.features * self.expansion  # what attention takes its own widths from
        branch = _plugged(self.attn, features=unpruned, conv=self.conv, name="se")(y)
        branch = _plugged(self.drop_path)(branch)
        shortcut = self.shortcut(
            x,
            y.shape[-1],
            stride=self.stride,
            dilation=self.dilation,
            first_dilation=self.first_dilation,
            conv=self.conv,
            norm=self.norm,
        )
        if shortcut.shape not in (branch.shape, ()):
            why = (
                "for images of this size anti-aliasing rounds down where the shortcut rounds up. A height and width "
                "divisible by 32 always fit."
                if self.anti_alias
                else "a shortcut or attention of your own must keep to the shapes that `shortcuts.py` describes."
            )
            raise ValueError(f"the residual branch gives {branch.shape} and the shortcut {shortcut.shape}: {why}")
        return self.act(branch + shortcut)

    def widths_or(self, *usual: int) -> tuple[int, ...]:
        """Output channels of the convolutions: `widths` or, without them, `usual`."""
        widths = tuple(self.widths or usual)
        if self.widths and (len(widths) != len(usual) or self.reduce_first != 1):
            raise ValueError(
                f"{type(self).__name__} has {len(usual)} convolutions, whose widths are stated as {widths}: give one "
                f"for each, and leave reduce_first ({self.reduce_first}) at 1, which has no effect then."
            )
        if min(widths) < 1 or self.groups < 1 or any(width % self.groups for width in widths[:-1]):
            raise ValueError(
                f"groups={self.groups} cannot split a 3x3 convolution of {widths[0]} to {widths[-2]} channels, or one "
                f"of {widths} is less than 1. That is what features={self.features}, width_per_group="
                f"{self.width_per_group}, reduce_first={self.reduce_first} and widths={self.widths} give."
            )
        return widths


class BasicBlock(Block):
    """Two 3x3 convolutions (He et al. 2015, figure 5, left): `[..., h, w, c] -> [..., h/stride, w/stride, features]`.

    Raises:
      ValueError: `groups`, `width_per_group` or `stride_in_1x1` is set: only a Bottleneck has them, in PyTorch too.
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if (self.groups, self.width_per_group) != (1, 64):
            raise ValueError(
                "BasicBlock has neither groups nor a base width "
                f"(got groups={self.groups}, width_per_group={self.width_per_group}): use Bottleneck."
            )
        if self.stride_in_1x1:
            raise ValueError("BasicBlock has no 1x1 convolution for the stride (stride_in_1x1=True): use Bottleneck.")
        first, out = self.widths_or(self.features // max(self.reduce_first, 1), self.features)
        y = self.strided(x, first, 1)
        y = conv3x3(out, dilation=self.dilation, conv=self.conv, name="conv2")(y)
        y = self.last_norm("bn2")(y)
        return self.merge(y, x)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 convolutions (figure 5, right): `[..., h, w, c] -> [..., h/stride, w/stride, 4 * features]`.

    The stride sits on the 3x3 convolution, as in torchvision ("ResNet v1.5"); with `stride_in_1x1` on the first 1x1, as
    in the paper, Caffe's weights and most detectors'.

    Raises:
      ValueError: `groups` does not divide the widths of the 3x3 convolution; `stride_in_1x1` with an `anti_alias` that
        takes the stride over.
    """

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: Array) -> Array:
        full = self.features * self.width_per_group // 64 * self.groups
        first, width, out = self.widths_or(full // max(self.reduce_first, 1), full, self.features * self.expansion)
        if self.stride_in_1x1 and self.anti_alias:
            raise ValueError(
                "anti_alias takes the stride of a 3x3 convolution over, which has none: stride_in_1x1=True."
            )
        y = conv1x1(first, self.stride if self.stride_in_1x1 else 1, conv=self.conv, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y))
        y = self.strided(y, width, 2, self.groups)
        y = conv1x1(out, conv=self.conv, name="conv3")(y)
        y = self.last_norm("bn3")(y)
        return self.merge(y, x)


def _plugged(factory: ModuleDef | None, **kwargs: Any) -> Callable[[Array], Array]:
    """The module of an optional plug-in, or the identity."""
    module: Callable[[Array], Array] = (lambda x: x) if factory is None else factory(**kwargs)
    return module
