"""Which network a file holds: its tensors' names and shapes against those of the entries of the table."""

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from resnet_jax.models.variants import VARIANTS, create_model
from resnet_jax.weights.convert import input_channels, torch_shapes
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.names import native_names

__all__ = ["identify", "native_names"]

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]


class Candidate(NamedTuple):
    """A network of the table: its name, the fields to override, and how many tensors differ from those given."""

    name: str
    fields: dict[str, Any]
    differences: int


def identify(tensors: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The network that `tensors` belong to: `create_model(name, **overrides)` takes them.

    Names and shapes do not tell everything. Networks that differ from a plain one in their pools alone (`resnetaa50`,
    `resnetblur50`) or in having no shortcuts (`cifar_plain20`) have the same tensors: the plain one is then the answer,
    and a line of the log names the others. Nor do they tell dilation, or where in a block the stride is.

    Args:
      tensors: `{name: array}` under any names that `native_names` understands.

    Returns:
      The name, one of `list_models()`, and the fields of `ResNet` that differ from that entry of the table.

    Raises:
      ConversionError: no entry, or more than one, has these tensors; those that come near are named.
    """
    native = native_names(tensors)
    found = {name: tuple(tensor.shape) for name, tensor in native.items()}
    near = sorted(_candidates(found, input_channels(native)), key=lambda candidate: candidate.differences)
    matches = [candidate for candidate in near if not candidate.differences]
    if any(name.endswith(".filt") for name in tensors):  # blur-pool's constant, in old files of timm's
        matches = [candidate for candidate in matches if VARIANTS[candidate.name].get("anti_alias") == "blur"]
    plain = [candidate for candidate in matches if _is_plain(candidate.name)] or matches
    if len(plain) != 1:
        raise ConversionError(_message(found, plain, near))
    if others := [candidate.name for candidate in matches if candidate != plain[0]]:
        logger.warning("taken for %s; %s would have the same tensors", plain[0].name, " and ".join(others))
    return plain[0].name, plain[0].fields


def _candidates(found: Shapes, channels: int) -> Iterator[Candidate]:
    """The entries with as many blocks in each stage as `found` has, and its kinds of stem, attention and norm."""
    blocks = {(int(stage), int(block)) for stage, block in re.findall(r"layer(\d+)\.(\d+)\.", " ".join(found))}
    sizes = tuple(sum(stage == i for stage, _ in blocks) for i in sorted({stage for stage, _ in blocks}))
    for name, entry in VARIANTS.items():
        if tuple(entry["stage_sizes"]) == sizes and _kinds(entry) == _kinds_of(found):
            fields = _overrides(entry, found)
            yield Candidate(name, fields, _differences(found, _shapes(name, tuple(fields.items()), channels)))


def _kinds(entry: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    return entry.get("stem", "").startswith("deep"), "attn" in entry, entry.get("norm", "batch") == "batch"


def _kinds_of(found: Shapes) -> tuple[bool, bool, bool]:
    return "conv1.0.weight" in found, any(".se." in name for name in found), "bn1.running_mean" in found


def _overrides(entry: Mapping[str, Any], found: Shapes) -> dict[str, Any]:
    """Fields, beside those of the entry, that the tensors tell: the head, a stem for small images, projections."""
    fields: dict[str, Any] = {}
    classes = found["fc.weight"][0] if "fc.weight" in found else 0
    if classes != entry.get("num_classes", 1000):
        fields["num_classes"] = classes
    if found.get("conv1.weight", ())[2:] == (3, 3) and entry.get("stem", "imagenet") == "imagenet":
        fields["stem"] = "cifar"
    if entry.get("shortcut") == "A" and any(".downsample." in name for name in found):
        fields["shortcut"] = "B"
    return fields


@functools.lru_cache(maxsize=256)
def _shapes(name: str, fields: tuple[tuple[str, Any], ...], channels: int) -> Shapes:
    return torch_shapes(create_model(name, **dict(fields)), channels)


def _differences(found: Shapes, wanted: Shapes) -> int:
    return sum(found.get(name) != wanted.get(name) for name in found.keys() | wanted.keys())


def _is_plain(name: str) -> bool:
    return "anti_alias" not in VARIANTS[name] and VARIANTS[name].get("shortcut") != "none"


def _message(found: Shapes, matches: list[Candidate], near: list[Candidate]) -> str:
    if matches:
        names = ", ".join(candidate.name for candidate in matches)
        return f"the tensors are those of several networks alike: {names}. Say which one it is."
    nearest = [f"{candidate.name} ({candidate.differences} tensors differ)" for candidate in near[:4]]
    listed = (
        f"the nearest: {', '.join(nearest)}" if nearest else "none has as many blocks in each stage and such a stem"
    )
    some = ", ".join(f"{name} {shape}" for name, shape in list(found.items())[:3])
    return f"no network of the table (resnet_jax.list_models()) has these {len(found)} tensors ({some}, ...); {listed}."
