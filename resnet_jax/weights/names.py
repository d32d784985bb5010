"""The names that other repositories give to a ResNet's tensors, turned into torchvision's: tables, and a prefix."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from resnet_jax.weights.errors import ConversionError

logger = logging.getLogger(__name__)

# Counts batches for a momentum that PyTorch's default does not use; Flax has no such thing.
COUNTER = "num_batches_tracked"
# Tensors without information: that counter, and blur-pool's constant filter, which old files of timm's hold.
IGNORED = (COUNTER, "filt")

Rename = tuple[str, str | Callable[[re.Match[str]], str]]


def _stage(match: re.Match[str]) -> str:
    """`encoder.stages.0.layers.2.` of Hugging Face's, which counts from 0."""
    return f"{match[1]}layer{int(match[2]) + 1}.{match[3]}."


def _residual(match: re.Match[str]) -> str:
    """`conv2_x.0.residual_function.4.`, the second norm: convolution, norm and activation take turns."""
    number = int(match[4])
    return f"{match[1]}layer{int(match[2]) - 1}.{match[3]}.{('conv', 'bn', 'act')[number % 3]}{number // 3 + 1}."


# Hugging Face transformers' ResNet, mmpretrain's head, the CIFAR repositories.
RENAMES: tuple[Rename, ...] = (
    (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
    (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
    (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.", _stage),
    (r"\.layer\.(\d+)\.convolution\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda match: f".bn{int(match[1]) + 1}."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"(^|\.)classifier\.1\.", r"\1fc."),
    (r"(^|\.)head\.fc\.", r"\1fc."),
    (r"(^|\.)linear\.", r"\1fc."),
    (r"\.shortcut\.", ".downsample."),
)
# weiaicunzai/pytorch-cifar100, whose `conv1.0` is what others call `conv1`, and not a deep stem.
RESIDUAL_FUNCTION = "residual_function"
RESIDUAL_RENAMES: tuple[Rename, ...] = (
    (r"(^|\.)conv(\d)_x\.(\d+)\.residual_function\.(\d)\.", _residual),
    (r"(^|\.)conv(\d)_x\.(\d+)\.", lambda match: f"{match[1]}layer{int(match[2]) - 1}.{match[3]}."),
    (r"(^|\.)conv1\.0\.", r"\1conv1."),
    (r"(^|\.)conv1\.1\.", r"\1bn1."),
)
# By this a ResNet is found: what stands before it is the prefix.
FIRST_BLOCK = re.compile(r"(.*\.|)layer1\.0\.conv[12]\.weight")
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


def native_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the ResNet in `tensors`, under torchvision's names, without those that hold no information.

    Understood are prefixes of any depth (`module.`, `_orig_mod.`, `backbone.body.`, ...), Hugging Face transformers'
    names, and those of the CIFAR repositories. What stands beside the network in a self-supervised or detection
    checkpoint is left out, and a line of the log says what that was.

    Args:
      tensors: `{name: array}`, of NumPy, JAX or PyTorch.

    Raises:
      ConversionError: there are two networks, or two names mean one tensor.
    """
    originals: dict[str, str] = {}
    renames = RESIDUAL_RENAMES * any(RESIDUAL_FUNCTION in name for name in tensors) + RENAMES
    for original in tensors:
        _claim(originals, _renamed(original, renames), original)
    prefix = _prefix(originals)
    kept: dict[str, str] = {}
    for name, original in _named_head(originals, prefix, tensors).items():
        _claim(kept, name, original)
    _report(prefix, tensors.keys() - set(kept.values()))
    return {name: tensors[original] for name, original in kept.items() if name.split(".")[-1] not in IGNORED}


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


def _prefix(names: Iterable[str]) -> str:
    """What stands before the names of the network's tensors."""
    found = {match[1] for name in names if (match := FIRST_BLOCK.fullmatch(name))}
    leading = {prefix for prefix in found if not MOMENTUM & set(prefix.split("."))} or found
    if len(leading) > 1:
        raise ConversionError(
            f"the state_dict holds {len(leading)} networks, under {', '.join(map(repr, sorted(leading)))}: keep one."
        )
    return next(iter(leading), "")


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


def _report(prefix: str, dropped: Iterable[str]) -> None:
    groups: dict[str, int] = {}
    for name in sorted(dropped):
        parts = name.split(".")
        # The shortest beginning of the name that is not one of the prefix, too.
        depth = next((i for i in range(1, len(parts)) if not prefix.startswith(".".join(parts[:i]) + ".")), len(parts))
        group = ".".join(parts[:depth])
        groups[group] = groups.get(group, 0) + 1
    if groups:
        listed = ", ".join(f"{group} ({count})" for group, count in groups.items())
        logger.warning("took the network under %r and passed over %s", prefix, listed)
