"""ResNet: a stem, stages of residual blocks, a head (He et al. 2015, arXiv:1512.03385), after torchvision's.

The parameter tree flattened with dots is PyTorch's: `layer1.0.downsample.0.kernel` is torchvision's
`layer1.0.downsample.0.weight`. So every name below is part of a file format.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models.blocks import Block
from resnet_jax.models.layers import (
    Conv,
    ModuleDef,
    bind_norm,
    conv3x3,
    global_avg_pool,
    linear,
    max_pool3x3,
)

Array = jax.Array


def imagenet_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Callable[[Array], Array]) -> Array:
    """7x7 convolution with stride 2, norm, activation, 3x3 max-pool: `[..., h, w, c] -> [..., h/4, w/4, features]`."""
    x = conv(features, (7, 7), strides=(2, 2), padding=((3, 3), (3, 3)), name="conv1")(x)
    return max_pool3x3(act(norm(name="bn1")(x)))


def cifar_stem(x: Array, features: int, *, conv: ModuleDef, norm: ModuleDef, act: Callable[[Array], Array]) -> Array:
    """3x3 convolution, norm, activation at full resolution (section 4.2): `[..., h, w, c] -> [..., h, w, features]`."""
    x = conv3x3(features, conv=conv, name="conv1")(x)
    return act(norm(name="bn1")(x))


STEMS = {"imagenet": imagenet_stem, "cifar": cifar_stem}
SHORTCUTS = ("A", "B")


class Stage(nn.Module):
    """`num_blocks` residual blocks named `0`, `1`, ...; the first one carries the stride."""

    num_blocks: int
    stride: int
    block: ModuleDef

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.num_blocks):
            x = self.block(stride=self.stride if i == 0 else 1, name=str(i))(x)
        return x


class ResNet(nn.Module):
    """A residual network: images in, logits out.

    `train` has no default. Give it either at the call, `model.apply(variables, x, train=False)`, or as a field,
    `resnet50(train=False)`, after which `jax.jit(model.apply)(variables, x)` just works; both or neither is an error.

    Example:

      >>> import jax, jax.numpy as jnp
      >>> from resnet_jax import BasicBlock, ResNet
      >>> model = ResNet(BasicBlock, (1, 1), num_classes=10, train=False)
      >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
      >>> model.apply(variables, jnp.zeros((2, 32, 32, 3))).shape
      (2, 10)

    Attributes:
      block: `BasicBlock`, `Bottleneck`, or a class with their fields.
      stage_sizes: number of blocks in each stage.
      num_classes: width of `fc`.
      stage_features: width of each stage before the block's expansion; by default 64, 128, 256, 512.
      stem: "imagenet" (7x7, stride 2, max-pool), "cifar" (3x3), or a function with their signature.
      stem_features: channels that the stem gives.
      shortcut: "B" projects where shape changes, "A" is parameter-free (He et al. 2015, section 3.3).
      zero_init_residual: start each block's last norm scale at 0 (torchvision's default is False).
      groups, width_per_group: ResNeXt and wide ResNet; `Bottleneck` only.
      norm: "batch", "batch_unbiased" (PyTorch's running variance), "group", or a callable that builds a norm layer.
      act: activation function.
      axis_name: mapped axis over which batch norm averages its statistics under `pmap` and `shard_map`. With None
        they are per device there; under plain `jit` on a sharded batch XLA always takes the whole batch.
      dtype: dtype of the computation and of the logits; None promotes inputs and parameters.
      param_dtype: dtype of the parameters. Batch statistics are at least float32.
      precision: precision of convolutions and of `fc`. The default is bfloat16 products on TPU and TF32 on recent
        NVIDIA GPUs, about 1e-3 from float32; "highest" is float32.
      train: training mode, as a field.

    Raises (at `init` and `apply`):
      ValueError: `train` given twice or not at all; images that are not `[..., h, w, c]`; fields that contradict.
      TypeError: a traced `train`.
    """

    block: type[Block]
    stage_sizes: Sequence[int]
    num_classes: int = 1000
    stage_features: Sequence[int] | None = None
    stem: str | Callable[..., Array] = "imagenet"
    stem_features: int = 64
    shortcut: str = "B"
    zero_init_residual: bool = False
    groups: int = 1
    width_per_group: int = 64
    norm: str | ModuleDef = "batch"
    act: Callable[[Array], Array] = nn.relu
    axis_name: str | None = None
    dtype: Any = None
    param_dtype: Any = jax.numpy.float32
    precision: Any = None
    train: bool | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool | None = None) -> Array:
        """Maps images `[batch, h, w, c]` (or one image `[h, w, c]`) to logits `[batch, num_classes]`.

        With `capture_intermediates=is_stage` the stages' outputs, and always `stem` and `pre_logits`, are in the
        `intermediates` collection when that is mutable.
        """
        train = _resolve_train(self.train, train)
        _check_images(x)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(Conv, precision=self.precision, **dtypes)
        norm = bind_norm(self.norm, train=train, axis_name=self.axis_name, **dtypes)
        block = functools.partial(
            self.block,
            conv=conv,
            norm=norm,
            act=self.act,
            groups=self.groups,
            width_per_group=self.width_per_group,
            shortcut=_one_of("shortcut", self.shortcut, SHORTCUTS),
            zero_init_residual=self.zero_init_residual,
        )
        stem = STEMS[_one_of("stem", self.stem, STEMS)] if isinstance(self.stem, str) else self.stem

        x = stem(x, self.stem_features, conv=conv, norm=norm, act=self.act)
        self.sow("intermediates", "stem", x)
        for i, (num_blocks, features) in enumerate(zip(self.stage_sizes, self._stage_features(), strict=True)):
            stage = functools.partial(block, features=features)
            x = Stage(num_blocks, stride=1 if i == 0 else 2, block=stage, name=f"layer{i + 1}")(x)
        x = global_avg_pool(x)
        self.sow("intermediates", "pre_logits", x)
        return linear(self.num_classes, x.shape[-1], precision=self.precision, name="fc", **dtypes)(x)

    def _stage_features(self) -> Sequence[int]:
        if self.stage_features is None:
            return [64 * 2**i for i in range(len(self.stage_sizes))]
        if len(self.stage_features) != len(self.stage_sizes):
            raise ValueError(
                f"stage_features {tuple(self.stage_features)} and stage_sizes {tuple(self.stage_sizes)} "
                "must have one entry for each stage."
            )
        return self.stage_features


def is_stage(module: nn.Module, method: str) -> bool:
    """Filter for `model.apply(..., capture_intermediates=is_stage)`: outputs of `layer1`, `layer2`, ..."""
    return isinstance(module, Stage)


def _resolve_train(field: bool | None, argument: bool | None) -> bool:
    for value in (field, argument):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                "`train` is traced, but it selects the program and must be a Python bool. Either build the model with "
                'it, as in resnet50(train=False), or use jax.jit(model.apply, static_argnames="train").'
            )
    if (field is None) == (argument is None):
        got = "neither is given" if field is None else f"got the field train={field} and the argument train={argument}"
        raise ValueError(
            "`train` has no default, since a wrong one is silent: give it either as a field, resnet50(train=False), "
            f"or at the call, model.apply(variables, images, train=False); {got}."
        )
    return bool(field if argument is None else argument)


def _check_images(x: Array) -> None:
    if x.ndim < 3:
        raise ValueError(f"images must be [batch, height, width, channels], got shape {x.shape}.")
    if x.shape[-3] in (1, 3) and x.shape[-1] > 32:
        raise ValueError(
            f"images must be [batch, height, width, channels], but shape {x.shape} looks like PyTorch's "
            "[batch, channels, height, width]: use jnp.moveaxis(images, -3, -1)."
        )


def _one_of(field: str, value: Any, known: Any) -> Any:
    if value not in known:
        raise ValueError(f"unknown {field} {value!r}: give one of {sorted(known)}.")
    return value
