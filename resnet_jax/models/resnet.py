"""ResNet: a stem, stages of residual blocks, a head (He et al. 2015, arXiv:1512.03385), after torchvision's and timm's.

The parameter tree flattened with dots is PyTorch's: `layer1.0.downsample.0.kernel` is torchvision's
`layer1.0.downsample.0.weight`. So every name below is part of a file format.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.models import checks
from resnet_jax.models.attention import ATTENTIONS
from resnet_jax.models.layers import (
    ACTIVATIONS,
    ANTI_ALIASES,
    GLOBAL_POOLS,
    Conv,
    DropBlock,
    Dropout,
    ModuleDef,
    drop_path,
    linear,
)
from resnet_jax.models.norms import NORMS, bind_norm, freeze
from resnet_jax.models.remat import REMATS
from resnet_jax.models.shortcuts import SHORTCUTS
from resnet_jax.models.stems import STEM_POOLS, STEMS, Stem, StemPool
from resnet_jax.models.values import named, plain

Array = jax.Array

# Field that chooses a part -> the parts that have a name.
TABLES: dict[str, Mapping[str, Any]] = {
    "act": ACTIVATIONS,
    "anti_alias": ANTI_ALIASES,
    "attn": ATTENTIONS,
    "global_pool": GLOBAL_POOLS,
    "norm": NORMS,
    "remat": REMATS,
    "shortcut": SHORTCUTS,
    "stem": STEMS,
    "stem_pool": STEM_POOLS,
}
# Stage -> size of DropBlock's squares and factor of its rate, as timm sets them.
DROP_BLOCKS = {"layer3": (5, 0.25), "layer4": (3, 1.0)}


class Geometry(NamedTuple):
    """Stride and dilation of a block; `first_dilation` is that of its convolution with the stride."""

    stride: int
    dilation: int
    first_dilation: int


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

    Fields that choose a part take a name in its table, or a function or class of the same form to plug in your own.
    Lists and NumPy's arrays become tuples, NumPy's numbers Python's, what stands in a table its name there, and a
    `functools.partial` one that equals others of the same function and arguments. So equal networks compare, hash and
    are pickled as equal, and a network can be a static argument of `jax.jit`.

    Attributes:
      block: `BasicBlock`, `Bottleneck`, a class with their fields, or a `functools.partial` of one; or one per stage.
      stage_sizes: number of blocks in each stage.
      num_classes: width of `fc`; 0 leaves it out and gives the pooled vector.
      stage_features: width of each stage before the block's expansion; by default 64, 128, 256, 512.
      block_widths: for each stage, for each block, the output channels of its convolutions: for pruned nets, whose
        widths follow no rule. `stage_features` then only tells attention the width before pruning.
      groups, width_per_group: ResNeXt and wide ResNet; `Bottleneck` only.
      stem: "imagenet" (7x7, stride 2), "deep" or "deep_tiered" (three 3x3), "cifar" (3x3, stride 1), or your own: a
        `stems.Stem`, or a function, which is taken to have stride 4 and no pool.
      stem_features: channels that the stem gives; a deep stem's first convolutions have half as many.
      stem_pool: "max", "conv" (ResNet-RS) or "none"; by default "max", and "none" for "cifar" and for a function.
      shortcut: "B" projects where shape changes, "A" is parameter-free (He et al. 2015, section 3.3), "avg" averages
        before it projects (ResNet-D), "B3x3" projects with a 3x3 convolution (SENet), "none" leaves it out (plain).
      attn: "se", "se4" (a quarter of the channels inside, and not a sixteenth: ResNet-RS), "eca" or a factory like
        those in `attention.py`, at the end of each residual branch.
      anti_alias: "avg", "blur", or a function `(x, stride) -> x` that takes over the strides of 3x3 convolutions
        and of the stem's pool.
      output_stride: 32, 16 or 8: where the stages reach it, dilation replaces stride (Chen et al. 2017,
        arXiv:1706.05587). None leaves every stride as it is.
      global_pool: "avg", "max", "avgmax" (their mean), "catavgmax" (side by side), or "none", where `fc` is applied
        at each position.
      drop_rate: dropout before `fc`.
      drop_path_rate: stochastic depth of the last block; earlier ones have less, linearly down to 0 in the first.
      drop_block_rate: DropBlock's rate in `layer3` (a quarter of it) and `layer4`.
      stride_in_1x1: the stride of a `Bottleneck` sits on its first 1x1 convolution, as in He et al. 2015, in Caffe's
        weights and many detectors', and not on its 3x3, as in PyTorch. Tensors do not tell which of the two it was.
      first_stage_stride: 2 makes `layer1` halve its maps too (transformers' `downsample_in_first_stage`).
      reduce_first: the first convolution of each block has this many times fewer channels (2 in SENet-154).
      zero_init_residual: start each block's last norm scale at 0 (torchvision's default is False, timm's True).
      fc_init_std: draw `fc`'s weights from a zero-mean Gaussian of this standard deviation, and start its bias at 0
        (Goyal et al. 2017, section 5.1, has 0.01); None: PyTorch's uniform distribution.
      norm: "batch", "batch_unbiased" (PyTorch's running variance), "group", or a callable that builds a norm layer.
      freeze_norm: True, or names among "stem", "layer1", ...: norms there use their running statistics also when
        `train` is True, and their parameters get no gradient.
      act: "relu", "leaky_relu", "silu", "gelu", "tanh", or a function.
      axis_name: mapped axis over which batch norm averages its statistics under `pmap` and `shard_map`. With None
        they are per device there; under plain `jit` on a sharded batch XLA always takes the whole batch.
      axis_index_groups: groups of places on `axis_name`, equally many in each, that average among themselves, as
        ((0, 1), (2, 3)); None averages over all.
      remat: None; "block" keeps only what enters a block for the backward pass, "narrow" also the outputs of the
        convolutions that do not widen it, "conv" those of all; or a policy of `jax.checkpoint_policies`.
      dtype: dtype of the computation and of the logits; None promotes inputs and parameters.
      param_dtype: dtype of the parameters. Batch statistics are at least float32.
      precision: precision of convolutions and of `fc`. The default is bfloat16 products on TPU and TF32 on recent
        NVIDIA GPUs, about 1e-3 from float32; "highest" is float32.
      train: training mode, as a field. The `drop_*` rates then need an rng: `rngs={"dropout": key}`.

    Raises:
      ValueError: a number that no network can have, or True where one belongs. At `init` and `apply`: `train` given
        twice or not at all; images that are not `[..., h, w, c]`; fields that contradict, or that would have no effect.
      TypeError: at `init` and `apply`, a traced `train`.
    """

    block: ModuleDef | Sequence[ModuleDef]
    stage_sizes: Sequence[int]
    num_classes: int = 1000
    stage_features: Sequence[int] | None = None
    block_widths: Sequence[Sequence[Sequence[int]]] | None = None
    groups: int = 1
    width_per_group: int = 64
    stem: str | Stem | Callable[..., Array] = "imagenet"
    stem_features: int = 64
    stem_pool: str | StemPool | Callable[..., Array] | None = None
    shortcut: str | Callable[..., Array] = "B"
    attn: str | ModuleDef | None = None
    anti_alias: str | Callable[[Array, int], Array] | None = None
    output_stride: int | None = None
    global_pool: str | Callable[[Array], Array] = "avg"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    drop_block_rate: float = 0.0
    zero_init_residual: bool = False
    fc_init_std: float | None = None
    stride_in_1x1: bool = False
    first_stage_stride: int = 1
    reduce_first: int = 1
    norm: str | ModuleDef = "batch"
    freeze_norm: bool | Sequence[str] = False
    act: str | Callable[[Array], Array] = "relu"
    axis_name: str | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    remat: str | Callable[..., Any] | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    precision: Any = None
    train: bool | None = None

    def __post_init__(self) -> None:
        for field in _FIELDS:
            object.__setattr__(self, field, named(plain(getattr(self, field)), TABLES.get(field, {})))
        checks.check_values(self)
        super().__post_init__()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ResNet":
        """As `clone`: fields do not change, and of some of JAX's functions a copy is another."""
        return self.clone()

    @nn.compact
    def __call__(self, x: Array, *, train: bool | None = None, features: Sequence[str] | None = None) -> Any:
        """Maps images `[batch, h, w, c]` (or one image `[h, w, c]`) to logits `[batch, num_classes]`.

        With `features` it gives `{name: array}` of those outputs instead, and computes nothing beyond the last of them:
        "act1" (the stem before its pool), "stem" (after it), "layer1", ... (a stage), "layer1.0", ... (a block),
        "pre_logits" (pooled), "logits". In `init` it makes the variables that they need alone.

        Raises:
          ValueError: the network has no such feature.
        """
        train = checks.resolve_train(self.train, train)
        checks.check_images(x)
        checks.check_fields(self, *self._per_stage())
        names = self._feature_names()
        wanted = names[-1:] if features is None else checks.chosen(features, names)
        found = dict(self._outputs(x, train, last=max(wanted, key=names.index)))
        return found[names[-1]] if features is None else {name: found[name] for name in wanted}

    def _outputs(self, images: Array, train: bool, last: str) -> Iterator[tuple[str, Array]]:
        """Outputs by name, in order, up to `last`. Nothing that comes after it is computed, and no parameter made."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = functools.partial(Conv, precision=self.precision, **dtypes)
        norms = self._norms(train, dtypes)
        act = checks.entry("act", self.act, ACTIVATIONS)
        anti_alias = checks.optional("anti_alias", self.anti_alias, ANTI_ALIASES)
        global_pool = checks.entry("global_pool", self.global_pool, GLOBAL_POOLS)
        stem, pool = self._stem()
        stages = self._stages(train, stem.stride * pool.stride)

        layers = {"conv": conv, "norm": norms("stem"), "act": act}
        maps = stem.apply(images, self.stem_features, **layers)
        yield "act1", maps
        if last == "act1":
            return
        maps = pool.apply(maps, anti_alias=anti_alias, **layers)
        yield "stem", maps
        if last == "stem":
            return
        for name, blocks in stages.items():
            if last.startswith(f"{name}."):
                blocks = blocks[: int(last.removeprefix(f"{name}.")) + 1]
            plugs = {"conv": conv, "norm": norms(name), "act": act, "anti_alias": anti_alias}
            outputs = Stage([functools.partial(block, **plugs) for block in blocks], name=name)(maps)
            yield from ((f"{name}.{i}", output) for i, output in enumerate(outputs))
            maps = outputs[-1]
            yield name, maps
            if last.partition(".")[0] == name:
                return
        vector = Dropout(self.drop_rate, deterministic=not train)(global_pool(maps))
        yield "pre_logits", vector
        if last == "logits":
            numbers = {"std": self.fc_init_std, "precision": self.precision, **dtypes}
            yield "logits", linear(self.num_classes, vector.shape[-1], name="fc", **numbers)(vector)

    def _feature_names(self) -> list[str]:
        """The names of `_outputs`, in its order."""
        stages = [(f"layer{i + 1}", size) for i, size in enumerate(self.stage_sizes)]
        inside = [name for stage, size in stages for name in (*(f"{stage}.{j}" for j in range(size)), stage)]
        return ["act1", "stem", *inside, "pre_logits", *(["logits"] if self.num_classes else [])]

    def _norms(self, train: bool, dtypes: Mapping[str, Any]) -> Callable[[str], ModuleDef]:
        """Name of a part of the net -> its norm layer, frozen or not."""
        parts = ["stem", *(f"layer{i + 1}" for i in range(len(self.stage_sizes)))]
        frozen = {True: parts, False: ()}[self.freeze_norm] if isinstance(self.freeze_norm, bool) else self.freeze_norm
        if not isinstance(frozen, Sequence) or isinstance(frozen, str) or set(frozen) - set(parts):
            raise ValueError(f"freeze_norm must be True, False or some of {parts}, got {frozen!r}.")
        bind = functools.partial(
            bind_norm,
            self.norm,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            zero_init=self.zero_init_residual,
            **dtypes,
        )
        return lambda part: freeze(bind(train=False)) if part in frozen else bind(train=train)

    def _stem(self) -> tuple[Stem, StemPool]:
        """The stem and what follows it."""
        stem = self.stem if isinstance(self.stem, Stem) else checks.entry("stem", self.stem, STEMS)
        stem = stem if isinstance(stem, Stem) else Stem(stem, 4)
        pool = stem.pool if self.stem_pool is None else self.stem_pool
        pool = pool if isinstance(pool, StemPool) else checks.entry("stem_pool", pool, STEM_POOLS)
        return stem, pool if isinstance(pool, StemPool) else StemPool(pool, 2)

    def _stages(self, train: bool, stem_stride: int) -> dict[str, list[ModuleDef]]:
        """Name of each stage -> its blocks, complete but for the layers that they are built with."""
        kinds, features, widths = self._per_stage()
        shared = {
            "groups": self.groups,
            "width_per_group": self.width_per_group,
            "shortcut": checks.entry("shortcut", self.shortcut, SHORTCUTS),
            "attn": checks.optional("attn", self.attn, ATTENTIONS),
            "zero_init_residual": self.zero_init_residual,
            # a block of the user's own may not have them
            **({"stride_in_1x1": True} if self.stride_in_1x1 else {}),
            **({"reduce_first": self.reduce_first} if self.reduce_first != 1 else {}),
        }
        drop_blocks = self._drop_blocks(train)
        drop_paths = iter(self._drop_paths(train))
        stages: dict[str, list[ModuleDef]] = {}
        for i, (first, later) in enumerate(self._geometries(stem_stride)):
            name = f"layer{i + 1}"
            block = functools.partial(
                self._rematted(kinds[i]), features=features[i], drop_block=drop_blocks.get(name), **shared
            )
            stages[name] = [
                functools.partial(
                    block, **(later if j else first)._asdict(), widths=widths[i][j], drop_path=next(drop_paths)
                )
                for j in range(self.stage_sizes[i])
            ]
        return stages

    def _geometries(self, stem_stride: int) -> list[tuple[Geometry, Geometry]]:
        """Of each stage's first block and of its later ones: timm's rule for the output stride, and torchvision's."""
        strides = [2 if i else self.first_stage_stride for i in range(len(self.stage_sizes))]
        reached, output_stride = stem_stride * math.prod(strides), self.output_stride
        if output_stride in (8, 16) and reached <= output_stride:
            raise ValueError(
                f"output_stride={output_stride} has no effect: a stem of stride {stem_stride} and {len(strides)} "
                f"stages do not go beyond {reached}."
            )
        found = []
        net_stride, dilation = stem_stride, 1
        for stride in strides:
            before = dilation
            if output_stride is not None and net_stride >= output_stride:
                stride, dilation = 1, dilation * stride
            net_stride *= stride
            found.append((Geometry(stride, dilation, before), Geometry(1, dilation, dilation)))
        return found

    def _per_stage(self) -> tuple[Sequence[Any], Sequence[int], Sequence[Any]]:
        """Block, width and widths of the convolutions for each stage."""
        count = len(self.stage_sizes)
        kinds = self.block if isinstance(self.block, tuple) else (self.block,) * count
        features = tuple(64 * 2**i for i in range(count)) if self.stage_features is None else self.stage_features
        widths = [[None] * size for size in self.stage_sizes] if self.block_widths is None else self.block_widths
        return kinds, features, widths

    def _rematted(self, block: ModuleDef) -> ModuleDef:
        policy = checks.optional("remat", self.remat, REMATS)
        if policy is None:
            return block
        if isinstance(block, functools.partial):
            return functools.partial(nn.remat(block.func, policy=policy), *block.args, **block.keywords)
        return nn.remat(block, policy=policy)

    def _drop_paths(self, train: bool) -> list[ModuleDef | None]:
        """Stochastic depth of each block; its rate grows linearly from 0 (Huang et al. 2016, section 3)."""
        count = sum(self.stage_sizes)
        rates = [self.drop_path_rate * i / max(count - 1, 1) for i in range(count)]
        return [functools.partial(drop_path, rate, deterministic=not train) if rate else None for rate in rates]

    def _drop_blocks(self, train: bool) -> dict[str, ModuleDef]:
        """DropBlock of the stages that have it."""
        if not self.drop_block_rate:
            return {}
        build = functools.partial(DropBlock, self.drop_block_rate, deterministic=not train)
        return {name: functools.partial(build, size, scale) for name, (size, scale) in DROP_BLOCKS.items()}


_FIELDS = [field.name for field in dataclasses.fields(ResNet) if field.name not in ("name", "parent")]


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
    images = traced_images(model)
    model = model.clone(train=False, dtype=None, param_dtype=jnp.float32)  # float64 would need JAX's permission
    apply = functools.partial(model.init_with_output, features=names)
    found, _ = jax.eval_shape(apply, jax.random.key(0), images)
    side = images.shape[1]
    return tuple(FeatureInfo(name, found[name].shape[-1], side // found[name].shape[-3]) for name in names)


def traced_images(model: ResNet, channels: int = 3) -> jax.ShapeDtypeStruct:
    """An image to trace `model` with, `[1, side, side, channels]`: so large that no stage is left without pixels."""
    side = max(256, 2 ** (len(model.stage_sizes) + 4))
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
