"""ResNet: a stem, stages of residual blocks, a head (He et al. 2015, arXiv:1512.03385), after torchvision's and timm's.

The parameter tree flattened with dots is PyTorch's: `layer1.0.downsample.0.kernel` is torchvision's
`layer1.0.downsample.0.weight`. So every name below is part of a file format.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models.attention import ATTENTIONS
from resnet_jax.models.layers import (
    ANTI_ALIASES,
    GLOBAL_POOLS,
    Conv,
    DropBlock,
    ModuleDef,
    drop_path,
    linear,
)
from resnet_jax.models.norms import bind_norm, freeze
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEM_POOLS, STEMS, Stem

Array = jax.Array

# What the backward pass keeps of a block instead of computing it anew.
REMATS: dict[str, Callable[..., Any]] = {
    "block": jax.checkpoint_policies.nothing_saveable,
    "conv": lambda primitive, *_, **__: primitive is jax.lax.conv_general_dilated_p,
}
# Stage -> size of DropBlock's squares and factor of its rate, as timm sets them.
DROP_BLOCKS = {"layer3": (5, 0.25), "layer4": (3, 1.0)}


class Stage(nn.Module):
    """Residual blocks named `0`, `1`, ...; gives the output of each."""

    blocks: Sequence[ModuleDef]

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        outputs = [x]
        for i, block in enumerate(self.blocks):
            outputs.append(block(name=str(i))(outputs[-1]))
        return outputs[1:]


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

    Fields that choose a part take a name in its table or, to plug in your own, what the table's values are.

    Attributes:
      block: `BasicBlock`, `Bottleneck`, a class with their fields, or a `functools.partial` of one; or one per stage.
      stage_sizes: number of blocks in each stage.
      num_classes: width of `fc`; 0 leaves it out and gives the pooled vector.
      stage_features: width of each stage before the block's expansion; by default 64, 128, 256, 512.
      block_widths: for each stage, for each block, the output channels of its convolutions: for pruned nets, whose
        widths follow no rule. `stage_features` then only tells attention the width before pruning.
      groups, width_per_group: ResNeXt and wide ResNet; `Bottleneck` only.
      stem: "imagenet" (7x7, stride 2), "deep" or "deep_tiered" (three 3x3), "cifar" (3x3, stride 1), or a function
        with their signature.
      stem_features: channels that the stem gives; a deep stem's first convolutions have half as many.
      stem_pool: "max", "conv" (ResNet-RS) or "none"; by default "max", and "none" for "cifar" and for a function.
      shortcut: "B" projects where shape changes, "A" is parameter-free (He et al. 2015, section 3.3), "avg" averages
        before it projects (ResNet-D), "B3x3" projects with a 3x3 convolution (SENet), "none" leaves it out (plain).
      attn: "se", "eca" or a factory like those in `attention.py`, at the end of each residual branch.
      anti_alias: "avg", "blur", or a function `(x, stride) -> x` that takes over the strides of 3x3 convolutions
        and of the stem's pool.
      output_stride: 32, 16 or 8: where the stages reach it, dilation replaces stride (Chen et al. 2017,
        arXiv:1706.05587). A stem given as a function counts as stride 4.
      global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (side by side), or "none", where `fc` is applied
        at each position.
      drop_rate: dropout before `fc`.
      drop_path_rate: stochastic depth of the last block; earlier ones have less, linearly down to 0 in the first.
      drop_block_rate: DropBlock's rate in `layer3` (a quarter of it) and `layer4`.
      zero_init_residual: start each block's last norm scale at 0 (torchvision's default is False, timm's True).
      norm: "batch", "batch_unbiased" (PyTorch's running variance), "group", or a callable that builds a norm layer.
      freeze_norm: True, or names among "stem", "layer1", ...: norms there use their running statistics also when
        `train` is True, and their parameters get no gradient.
      act: activation function.
      axis_name: mapped axis over which batch norm averages its statistics under `pmap` and `shard_map`. With None
        they are per device there; under plain `jit` on a sharded batch XLA always takes the whole batch.
      remat: None; "block" keeps only what enters a block for the backward pass, "conv" the convolutions' outputs too;
        or a policy of `jax.checkpoint_policies`.
      dtype: dtype of the computation and of the logits; None promotes inputs and parameters.
      param_dtype: dtype of the parameters. Batch statistics are at least float32.
      precision: precision of convolutions and of `fc`. The default is bfloat16 products on TPU and TF32 on recent
        NVIDIA GPUs, about 1e-3 from float32; "highest" is float32.
      train: training mode, as a field. The `drop_*` rates then need an rng: `rngs={"dropout": key}`.

    Raises (at `init` and `apply`):
      ValueError: `train` given twice or not at all; images that are not `[..., h, w, c]`; fields that contradict, or
        that would have no effect.
      TypeError: a traced `train`.
    """

    block: ModuleDef | Sequence[ModuleDef]
    stage_sizes: Sequence[int]
    num_classes: int = 1000
    stage_features: Sequence[int] | None = None
    block_widths: Sequence[Sequence[Sequence[int]]] | None = None
    groups: int = 1
    width_per_group: int = 64
    stem: str | Callable[..., Array] = "imagenet"
    stem_features: int = 64
    stem_pool: str | Callable[..., Array] | None = None
    shortcut: str | Callable[..., Array] = "B"
    attn: str | ModuleDef | None = None
    anti_alias: str | Callable[[Array, int], Array] | None = None
    output_stride: int = 32
    global_pool: str | Callable[[Array], Array] = "avg"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0
    zero_init_residual: bool = False
    norm: str | ModuleDef = "batch"
    freeze_norm: bool | Sequence[str] = False
    act: Callable[[Array], Array] = nn.relu
    axis_name: str | None = None
    remat: str | Callable[..., Any] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    train: bool | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool | None = None, features: Sequence[str] | None = None) -> Any:
        """Maps images `[batch, h, w, c]` (or one image `[h, w, c]`) to logits `[batch, num_classes]`.

        With `features` it gives `{name: array}` of those outputs instead, and computes nothing beyond the last of them:
        "act1" (the stem before its pool), "stem" (after it), "layer1", ... (a stage), "layer1.0", ... (a block),
        "pre_logits" (pooled), "logits".

        Raises:
          ValueError: the network has no such feature.
        """
        train = _resolve_train(self.train, train)
        _check_images(x)
        found: dict[str, Array] = {}
        for name, value in self._outputs(x, train):
            found[name] = value
            if features is not None and found.keys() >= set(features):
                return {name: found[name] for name in features}
        if features is not None:
            raise ValueError(f"no features {sorted(set(features) - found.keys())}: the network has {', '.join(found)}.")
        return value

    def _outputs(self, x: Array, train: bool) -> Iterator[tuple[str, Array]]:
        """Every output by name, in order. Nothing is computed, and no parameter made, before it is asked for."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(Conv, precision=self.precision, **dtypes)
        norms = self._norms(train, dtypes)
        anti_alias = _entry("anti_alias", self.anti_alias, ANTI_ALIASES)
        stem = self._stem()
        stages = self._stages(train, stem.stride)  # refuses bad fields before anything runs

        layers = {"conv": conv, "norm": norms("stem"), "act": self.act}
        x = stem.apply(x, self.stem_features, **layers)
        yield "act1", x
        x = _entry("stem_pool", self.stem_pool or stem.pool, STEM_POOLS)(x, anti_alias=anti_alias, **layers)
        yield "stem", x
        for name, blocks in stages.items():
            plugs = {"conv": conv, "norm": norms(name), "act": self.act, "anti_alias": anti_alias}
            outputs = Stage([functools.partial(block, **plugs) for block in blocks], name=name)(x)
            yield from ((f"{name}.{i}", output) for i, output in enumerate(outputs))
            x = outputs[-1]
            yield name, x
        x = _entry("global_pool", self.global_pool, GLOBAL_POOLS)(x)
        x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
        yield "pre_logits", x
        if self.num_classes:
            yield "logits", linear(self.num_classes, x.shape[-1], precision=self.precision, name="fc", **dtypes)(x)

    def _norms(self, train: bool, dtypes: Mapping[str, Any]) -> Callable[[str], ModuleDef]:
        """Name of a part of the net -> its norm layer, frozen or not."""
        parts = ["stem", *(f"layer{i + 1}" for i in range(len(self.stage_sizes)))]
        frozen = parts if self.freeze_norm is True else self.freeze_norm or ()
        if isinstance(frozen, str) or set(frozen) - set(parts):
            raise ValueError(f"freeze_norm must be True, False or some of {parts}, got {frozen!r}.")
        bind = functools.partial(bind_norm, self.norm, axis_name=self.axis_name, **dtypes)
        return lambda part: freeze(bind(train=False)) if part in frozen else bind(train=train)

    def _stem(self) -> Stem:
        return STEMS[_one_of("stem", self.stem, STEMS)] if isinstance(self.stem, str) else Stem(self.stem, "none", 4)

    def _stages(self, train: bool, stem_stride: int) -> dict[str, list[ModuleDef]]:
        """Name of each stage -> its blocks, complete but for the layers that they are built with."""
        kinds, features, widths = self._per_stage()
        shared = {
            "groups": self.groups,
            "width_per_group": self.width_per_group,
            "shortcut": _entry("shortcut", self.shortcut, SHORTCUTS),
            "attn": _entry("attn", self.attn, ATTENTIONS),
            "zero_init_residual": self.zero_init_residual,
        }
        drop_blocks = self._drop_blocks(train)
        drop_paths = iter(self._drop_paths(train))
        stages: dict[str, list[ModuleDef]] = {}
        for i, (first, later) in enumerate(_strides(len(kinds), stem_stride, self.output_stride)):
            name = f"layer{i + 1}"
            block = functools.partial(
                self._rematted(kinds[i]), features=features[i], drop_block=drop_blocks.get(name), **shared
            )
            stages[name] = [
                functools.partial(block, **(later if j else first), widths=widths[i][j], drop_path=next(drop_paths))
                for j in range(self.stage_sizes[i])
            ]
        return stages

    def _per_stage(self) -> tuple[Sequence[Any], Sequence[int], Sequence[Any]]:
        """Block, width and widths of the convolutions for each stage."""
        sizes = tuple(self.stage_sizes)
        if not sizes or min(sizes) < 1 or self.num_classes < 0:
            raise ValueError(
                f"stage_sizes {sizes} must name at least one stage, each of 1 block or more, and num_classes="
                f"{self.num_classes} be 0 (no head) or more."
            )
        if self.block_widths and self.width_per_group != 64:
            raise ValueError(f"block_widths states every width: width_per_group={self.width_per_group} has no effect.")
        kinds = self.block if isinstance(self.block, Sequence) else [self.block] * len(sizes)
        features = self.stage_features or [64 * 2**i for i in range(len(sizes))]
        widths: Sequence[Any] = self.block_widths or [[None] * size for size in sizes]
        for field, given in {"block": kinds, "stage_features": features, "block_widths": widths}.items():
            if len(given) != len(sizes):
                raise ValueError(f"{field} {tuple(given)} and stage_sizes {sizes} must have one entry for each stage.")
        if tuple(map(len, widths)) != sizes:
            raise ValueError(f"block_widths is for stages of {tuple(map(len, widths))} blocks, stage_sizes is {sizes}.")
        return kinds, features, widths

    def _rematted(self, block: ModuleDef) -> ModuleDef:
        if self.remat is None:
            return block
        policy = _entry("remat", self.remat, REMATS)
        if isinstance(block, functools.partial):
            return functools.partial(nn.remat(block.func, policy=policy), *block.args, **block.keywords)
        return nn.remat(block, policy=policy)

    def _drop_paths(self, train: bool) -> list[ModuleDef | None]:
        """Stochastic depth of each block; its rate grows linearly from 0 (Huang et al. 2016, section 3)."""
        for field in ("drop_rate", "drop_path_rate", "drop_block_rate"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is a share of what is dropped, in [0, 1), got {getattr(self, field)}.")
        if self.shortcut == "none" and (self.zero_init_residual or self.drop_path_rate):
            raise ValueError("without shortcuts zero_init_residual and drop_path_rate leave nothing of a block.")
        count = sum(self.stage_sizes)
        rates = [self.drop_path_rate * i / max(count - 1, 1) for i in range(count)]
        return [functools.partial(drop_path, rate, deterministic=not train) if rate else None for rate in rates]

    def _drop_blocks(self, train: bool) -> dict[str, ModuleDef]:
        """DropBlock of the stages that have it."""
        if not self.drop_block_rate:
            return {}
        if len(self.stage_sizes) < 3:
            raise ValueError(f"drop_block_rate acts in {' and '.join(DROP_BLOCKS)}, which this network does not have.")
        build = functools.partial(DropBlock, self.drop_block_rate, deterministic=not train)
        return {name: functools.partial(build, size, scale) for name, (size, scale) in DROP_BLOCKS.items()}


def _strides(num_stages: int, stem_stride: int, output_stride: int) -> list[tuple[dict[str, int], dict[str, int]]]:
    """Stride and dilations of each stage's first block and of its later ones: timm's rule, and torchvision's."""
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}.")
    if output_stride != 32 and stem_stride * 2 ** (num_stages - 1) <= output_stride:
        raise ValueError(
            f"output_stride={output_stride} has no effect: a stem of stride {stem_stride} and {num_stages} stages do "
            f"not go beyond {stem_stride * 2 ** (num_stages - 1)}."
        )
    strides = []
    net_stride, dilation = stem_stride, 1
    for i in range(num_stages):
        stride, before = 1 if i == 0 else 2, dilation
        if net_stride >= output_stride:
            stride, dilation = 1, dilation * stride
        net_stride *= stride
        strides.append(
            (
                {"stride": stride, "dilation": dilation, "first_dilation": before},
                {"dilation": dilation, "first_dilation": dilation},
            )
        )
    return strides


class FeatureInfo(NamedTuple):
    """What a feature map is like: its name, its channels, and the image's pixels for one of its own."""

    name: str
    channels: int
    reduction: int


def feature_info(model: ResNet) -> tuple[FeatureInfo, ...]:
    """The stem's and the stages' outputs, for any way to build the network; shapes only, nothing is computed.

    >>> from resnet_jax import create_model, feature_info
    >>> feature_info(create_model("resnet50"))[1]
    FeatureInfo(name='layer1', channels=256, reduction=4)
    """
    names = ("act1", *(f"layer{i + 1}" for i in range(len(model.stage_sizes))))
    images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    model = model.clone(train=False, dtype=None, param_dtype=jnp.float32)  # float64 would need JAX's permission
    apply = functools.partial(model.init_with_output, features=names)
    found, _ = jax.eval_shape(apply, jax.random.key(0), images)
    return tuple(FeatureInfo(name, found[name].shape[-1], 256 // found[name].shape[-3]) for name in names)


def _entry(field: str, value: Any, table: Mapping[str, Any]) -> Any:
    """What `value` names in the table of `field`, or `value` itself where it is not a name."""
    return table[_one_of(field, value, table)] if isinstance(value, str) else value


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
