"""The names that other repositories give to a ResNet's tensors, turned into torchvision's: tables, and a prefix."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.files.formats import as_numpy
from resnet_jax.weights.files.pickled.pickles import MAX_NAME

logger = logging.getLogger(__name__)

# Counts batches for a momentum that PyTorch's default does not use; Flax has no such thing.
COUNTER = "num_batches_tracked"
# Blur-pool's constant filter, which old files of timm's hold.
FILTER = "filt"
# Tensors without information for a network that is known.
IGNORED = (COUNTER, FILTER)

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


def _stage(match: re.Match[str]) -> str:
    """`encoder.stages.0.layers.2.` of Hugging Face's, which counts from 0."""
    return f"{match[1]}layer{int(match[2]) + 1}.{match[3]}."


def _residual(match: re.Match[str]) -> str:
    """`conv2_x.0.residual_function.4.`, the second norm: convolution, norm and activation take turns."""
    number = int(match[4])
    return f"{match[1]}layer{int(match[2]) - 1}.{match[3]}.{('conv', 'bn', 'act')[number % 3]}{number // 3 + 1}."


def _from_two(match: re.Match[str]) -> str:
    """`res2.0.` or `conv2_x.0.`, of those who count from 2."""
    return f"{match[1]}layer{int(match[2]) - 1}.{match[3]}."


TRANSFORMERS = "transformers"
DETECTRON2 = "detectron2"
# Whose names they are -> a name that gives them away, and the renames. Those of None are understood everywhere.
RENAMES: dict[str | None, tuple[str, tuple[Rename, ...]]] = {
    # weiaicunzai/pytorch-cifar100, whose `conv1.0` is what others call `conv1`, and not a deep stem.
    "pytorch-cifar100": (
        r"(^|.*\.)conv\d_x\.\d+\.residual_function\.\d\..*",
        (
            (r"(^|\.)conv(\d)_x\.(\d+)\.residual_function\.(\d)\.", _residual),
            (r"(^|\.)conv(\d)_x\.(\d+)\.", _from_two),
            (r"(^|\.)conv1\.0\.", r"\1conv1."),
            (r"(^|\.)conv1\.1\.", r"\1bn1."),
        ),
    ),
    DETECTRON2: (
        r"(^|.*\.)res2\.0\.conv1\.weight",
        (
            (r"(^|\.)stem\.conv1\.norm\.", r"\1bn1."),
            (r"(^|\.)stem\.conv1\.", r"\1conv1."),
            (r"(^|\.)stem\.fc\.", r"\1fc."),
            (r"(^|\.)res(\d)\.(\d+)\.", _from_two),
            (r"\.conv(\d)\.norm\.", r".bn\1."),
            (r"\.shortcut\.norm\.", ".downsample.1."),
            (r"\.shortcut\.", ".downsample.0."),
        ),
    ),
    TRANSFORMERS: (
        r"(^|.*\.)embedder\.embedder\.convolution\.weight",
        (
            (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
            (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
            (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.", _stage),
            (r"\.layer\.(\d+)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
            (r"\.layer\.(\d+)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
            (r"(^|\.)classifier\.1\.", r"\1fc."),
        ),
    ),
    # mmpretrain's head, the CIFAR repositories, Cadene's SENets.
    None: (
        r".*",
        (
            (r"(^|\.)head\.fc\.", r"\1fc."),
            (r"(^|\.)(?:last_)?linear\.", r"\1fc."),
            (r"\.shortcut\.", ".downsample."),
            (r"\.se_module\.", ".se."),
            (r"(^|\.)layer0\.(conv|bn)(\d)\.", r"\1\2\3."),
            (r"(^|\.)layer0\.(\d)\.", r"\1stem.\2."),
        ),
    ),
}
# By this a ResNet is found: what stands before it is the prefix.
FIRST_BLOCK = re.compile(r"(.*\.|)layer1\.0\.conv[12]\.weight")
# The same of `Sequential(*resnet.children())`, whose stages have numbers for names, and of its other parts.
NUMBERED_BLOCK = re.compile(r"(.*\.|)(\d{1,2})\.0\.conv[12]\.weight")
# Deep stems that stand in one `Sequential` with their last norm, and those whose six layers have names of their own.
STEM = {"0": "conv1.0", "1": "conv1.1", "3": "conv1.3", "4": "conv1.4", "6": "conv1.6", "7": "bn1"}
NAMED_STEM = {
    **{"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4"},
    **{"conv3": "conv1.6", "bn3": "bn1"},
}
# Parts of a prefix that wrap a whole network, and so say nothing of a head.
WRAPPERS = {"", "module", "_orig_mod", "model", "net", "network", "resnet"}
# Parts of a prefix below which `fc` belongs to a self-supervised loss, also where it is one layer (MoCo).
CONTRASTIVE = {"encoder_q", "base_encoder", "online_encoder"}
# Slowly moving copies, which stand beside the network that they are copied from.
MOMENTUM = {
    *("encoder_k", "momentum_encoder", "momentum_backbone", "backbone_momentum", "teacher"),
    *("target_encoder", "target_backbone", "target_network", "ema", "ema_model", "model_ema"),
}
# Parts of self-supervised methods that may stand beside a network's own.
SELF_SUPERVISED = {"projector", "projection_head", "predictor", "prototypes", "queue", "queue_ptr"}
# A name that gives away a network that is none of these -> what it is of.
FOREIGN: tuple[tuple[str, str], ...] = (
    (r"(.*\.)?attnpool\..*", "CLIP's ResNet, which pools by attention: open_clip and transformers have it"),
    (r"(.*\.)?(root\.conv|body\.block\d\.unit\d+\..*|stages\.\d\.blocks\.\d+\.norm1)\.weight",
     "a BiT (ResNet v2, with norms before convolutions): timm has it as resnetv2_*"),
    (r"(.*\.)?layer1\.0\.prelu\.weight", "an IResNet (ArcFace's, with PReLU and a norm in front): insightface has it"),
    (r"(.*\.)?(cls_token|pos_embed|class_embedding|blocks\.0\.attn\.qkv\.weight|embeddings\.cls_token)",
     "a vision transformer"),
)  # fmt: skip


class Renamed(NamedTuple):
    """The tensors of one ResNet, and what their names told.

    Attributes:
      tensors: under torchvision's names, without those that hold no information.
      whose: the library that has such names, if they are not torchvision's, timm's or nearly so.
      blurred: filters of blur-pools are among them, which no other network has.
      passed_over: the first parts of the names of what else there was -> how many tensors.
      prefix: that the network stood under.
    """

    tensors: dict[str, Any]
    whose: str | None
    blurred: bool
    passed_over: dict[str, int]
    prefix: str

    def log(self) -> None:
        """Says what was passed over, in one line."""
        if self.passed_over:
            listed = ", ".join(f"{group} ({count})" for group, count in self.passed_over.items())
            logger.warning("took the network under %r and passed over %s", self.prefix, listed)


def native_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the ResNet in `tensors`, under torchvision's names, without those that hold no information.

    Understood are prefixes of any depth (`module.`, `_orig_mod.`, `backbone.body.`, ...), names of Hugging Face
    transformers, detectron2, mmpretrain and the CIFAR repositories, and the numbers of a `Sequential`. What stands
    beside the network in a self-supervised or detection checkpoint is left out, and a line of the log says what that
    was.

    Args:
      tensors: `{name: array}`, of NumPy, JAX or PyTorch.

    Raises:
      ConversionError: there are two networks, or two names mean one tensor; or it is a network of another kind.
    """
    renamed = rename(tensors)
    renamed.log()
    return renamed.tensors


def rename(tensors: Mapping[str, Any], *, prefix: str | None = None, drop: Sequence[str] = ()) -> Renamed:
    """`native_names`, with all that the names told.

    Args:
      tensors: as there.
      prefix: take what stands under this name alone ("teacher.backbone"), where there are several networks.
      drop: leave out what stands under these names ("fc").

    Raises:
      ConversionError: as `native_names`; or nothing stands under `prefix`, or under a name in `drop`.
    """
    taken = _chosen(tensors, prefix, drop)
    _refuse_foreign(taken)
    whose = [key for key, (sign, _) in RENAMES.items() if any(re.fullmatch(sign, name) for name in taken)]
    renames = [entry for key in whose for entry in RENAMES[key][1]]
    originals: dict[str, str] = {}
    for original in taken:
        _claim(originals, _renamed(original, renames), original)
    originals = _unnumbered(originals, taken)
    inner = _prefix(originals, taken)
    kept: dict[str, str] = {}
    for name, original in _named_head(_with_deep_stem(originals, inner, taken), inner, taken).items():
        _claim(kept, name, original)
    return Renamed(
        {name: taken[original] for name, original in kept.items() if name.split(".")[-1] not in IGNORED},
        next((key for key in whose if key), None),
        any(name.split(".")[-1] == FILTER for name in kept),
        _passed_over(inner, taken.keys() - set(kept.values())),
        inner,
    )


def _chosen(tensors: Mapping[str, Any], prefix: str | None, drop: Sequence[str]) -> dict[str, Any]:
    """The tensors under `prefix`, with their names from there on, and without those under names in `drop`."""
    for name in tensors:
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ConversionError(f"{name!r:.60} is the name of no network's tensor: give a flat {{name: tensor}}.")
    taken = dict(tensors)
    if prefix is not None:
        start = prefix.rstrip(".") + "."
        taken = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        if not taken:
            raise ConversionError(f"nothing stands under the prefix {prefix!r}: {_beginnings(tensors)}.")
    for part in drop:
        start = part.rstrip(".") + "."
        left = {name: tensor for name, tensor in taken.items() if not f"{name}.".startswith(start)}
        if len(left) == len(taken):
            raise ConversionError(f"there is nothing to drop under {part!r}: {_beginnings(taken)}.")
        taken = left
    return taken


def _beginnings(names: Iterable[str]) -> str:
    found = sorted({name.partition(".")[0] for name in names})
    return f"the names begin with {', '.join(found[:12])}" + (" and others" if len(found) > 12 else "")


def _refuse_foreign(tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        what = next((what for sign, what in FOREIGN if re.fullmatch(sign, name)), None)
        if what is None and name.endswith("weight") and len(getattr(tensor, "shape", ())) == 5:
            what = f"a network for video or volumes, with 3D convolutions ({name!r})"
        if what:
            raise ConversionError(
                f"these are the weights of {what}; none of resnet_jax.list_models() is such a network."
            )


def _unnumbered(originals: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names of `Sequential(*resnet.children())` by what stands at each place; others as they are."""
    stages: dict[str, set[int]] = {}
    for name in originals:
        if match := NUMBERED_BLOCK.fullmatch(name):
            stages.setdefault(match[1], set()).add(int(match[2]))
    result = dict(originals)
    for prefix, places in stages.items():
        first, last = min(places), max(places)
        own = [name for name in originals if re.match(re.escape(prefix) + r"\d+\.", name)]
        convolution = originals.get(f"{prefix}0.weight", originals.get(f"{prefix}0.0.weight"))
        if places != set(range(first, last + 1)) or first < 2 or convolution is None:
            continue
        for name in own:
            number, _, rest = name.removeprefix(prefix).partition(".")
            place = int(number)
            part = {0: "conv1", 1: "bn1"}.get(place, "maxpool" if place < first else f"layer{place - first + 1}")
            if place > last:
                part = "fc"
            original = result.pop(name)
            _claim(result, f"{prefix}{part}.{rest}", original)
    return result


def _with_deep_stem(originals: Mapping[str, str], prefix: str, tensors: Mapping[str, Any]) -> dict[str, str]:
    """The names with those of a deep stem as timm has them, however the file calls its three convolutions."""
    deep = f"{prefix}stem.3.weight" in originals
    stem = STEM if deep else {"0": "conv1", "1": "bn1"}
    named = f"{prefix}conv3.weight" in originals and f"{prefix}bn3.weight" in originals
    result: dict[str, str] = {}
    for name, original in originals.items():
        first, _, rest = name.removeprefix(prefix).partition(".")
        number, _, last = rest.partition(".")
        if name.startswith(prefix) and first == "stem" and number in stem:
            name = f"{prefix}{stem[number]}.{last}"
        elif name.startswith(prefix) and named and first in NAMED_STEM:
            name = f"{prefix}{NAMED_STEM[first]}.{rest}"
        _claim(result, name, original)
    return result


def _claim(names: dict[str, str], name: str, original: str) -> None:
    if name in names:
        raise ConversionError(
            f"the state_dict names {name!r} twice, as {names[name]!r} and as {original!r}: keep one of the two."
        )
    names[name] = original


def _renamed(name: str, renames: Iterable[Rename]) -> str:
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _prefix(names: Mapping[str, str], tensors: Mapping[str, Any]) -> str:
    """What stands before the names of the network's tensors; of copies that are equal to the bit, the first."""
    found = {match[1] for name in names if (match := FIRST_BLOCK.fullmatch(name))}
    leading = sorted({prefix for prefix in found if not MOMENTUM & set(prefix.split("."))} or found)
    different = [prefix for prefix in leading[1:] if not _same(names, tensors, leading[0], prefix)]
    if different:
        listed = ", ".join(map(repr, [leading[0], *different]))
        raise ConversionError(
            f"the state_dict holds {len(different) + 1} networks, under {listed}: say which one, as "
            f"prefix={leading[0].rstrip('.')!r} (--prefix)."
        )
    return leading[0] if leading else ""


def _same(names: Mapping[str, str], tensors: Mapping[str, Any], one: str, other: str) -> bool:
    """Whether two networks in a file are one, written twice."""
    parts = [
        {name.removeprefix(prefix): original for name, original in names.items() if name.startswith(prefix + "layer")}
        for prefix in (one, other)
    ]
    return parts[0].keys() == parts[1].keys() and all(
        _equal(tensors[original], tensors[parts[1][name]]) for name, original in parts[0].items()
    )


def _equal(left: Any, right: Any) -> bool:
    left, right = as_numpy(left), as_numpy(right)
    return left.dtype == right.dtype and np.array_equal(left, right)


def _named_head(originals: Mapping[str, str], prefix: str, tensors: Mapping[str, Any]) -> dict[str, str]:
    """The network's names without the prefix -> the original ones, with its classifier and without other heads."""
    inside = {name.removeprefix(prefix): original for name, original in originals.items() if name.startswith(prefix)}
    inside = {name: original for name, original in inside.items() if name.split(".")[0] not in SELF_SUPERVISED}
    head = [name for name in inside if name.startswith("fc.")]
    layers = [name for name in head if name.endswith(".weight") and len(tensors[inside[name]].shape) == 2]
    parts = set(prefix.split("."))
    if CONTRASTIVE & parts or (len(layers) > 1 and not parts <= WRAPPERS):
        return {name: original for name, original in inside.items() if name not in head}
    if len(layers) == 1 and len(head) <= 2:
        # One layer inside a Sequential, behind a dropout for instance, is a classifier all the same.
        return {re.sub(r"^fc\.\d+\.", "fc.", name): original for name, original in inside.items()}
    return inside if head else inside | _outer_classifier(originals, prefix, tensors)


def _outer_classifier(originals: Mapping[str, str], prefix: str, tensors: Mapping[str, Any]) -> dict[str, str]:
    """`fc` that stands beside the backbone and not in it, nearest first."""
    parts = prefix.split(".")[:-1]
    for depth in range(len(parts) - 1, -1, -1):
        outer = "".join(f"{part}." for part in parts[:depth]) + "fc."
        weight = originals.get(f"{outer}weight")
        if weight is not None and len(tensors[weight].shape) == 2:
            return {
                name: originals[outer[:-3] + name]
                for name in ("fc.weight", "fc.bias")
                if outer[:-3] + name in originals
            }
    return {}


def _passed_over(prefix: str, dropped: Iterable[str]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for name in sorted(dropped):
        parts = name.split(".")
        # The shortest beginning of the name that is not one of the prefix, too.
        depth = next((i for i in range(1, len(parts)) if not prefix.startswith(".".join(parts[:i]) + ".")), len(parts))
        group = ".".join(parts[:depth])
        groups[group] = groups.get(group, 0) + 1
    return groups
