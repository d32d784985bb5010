"""Which network a file holds: its tensors' names and shapes against those of the entries of the table."""

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from resnet_jax.models.variants import ALIASES, VARIANTS, create_model
from resnet_jax.weights.convert import input_channels, torch_shapes
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.names import DETECTRON2, TRANSFORMERS, Renamed, rename

logger = logging.getLogger(__name__)

Shapes = Mapping[str, tuple[int, ...]]
# What stands beside the backbone in torchvision's and mmsegmentation's networks.
SEGMENTATION = {"classifier", "aux_classifier", "decode_head", "auxiliary_head"}


class Candidate(NamedTuple):
    """A network of the table: its name, the fields to override, and how many tensors differ from those given."""

    name: str
    fields: dict[str, Any]
    differences: int


class LeftOpen(NamedTuple):
    """Something that tensors do not tell: the field of `ResNet` that decides, and a sentence on it."""

    decides: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Identity(NamedTuple):
    """What the tensors of a file tell of their network.

    Attributes:
      name: one of `list_models()`.
      fields: of `ResNet`, that differ from that entry of the table.
      left_open: what they do not tell.
    """

    name: str
    fields: dict[str, Any]
    left_open: tuple[LeftOpen, ...]


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
    renamed = rename(tensors)
    renamed.log()
    found = identify_renamed(renamed)
    for item in found.left_open:
        logger.warning("%s", item)
    return found.name, found.fields


def identify_renamed(renamed: Renamed) -> Identity:
    """`identify`, of tensors whose names are torchvision's by now; it logs nothing.

    Raises:
      ConversionError: as there.
    """
    native = renamed.tensors
    found = {name: tuple(tensor.shape) for name, tensor in native.items()}
    near = sorted(_candidates(found, input_channels(native)), key=lambda candidate: candidate.differences)
    matches = [candidate for candidate in near if not candidate.differences]
    if renamed.blurred:
        matches = [candidate for candidate in matches if VARIANTS[candidate.name].get("anti_alias") == "blur"]
    plain = [candidate for candidate in matches if _is_plain(candidate.name)] or matches
    if len(plain) != 1:
        raise ConversionError(_message(found, plain, near))
    taken, others = plain[0], [candidate.name for candidate in matches if candidate != plain[0]]
    alike = [
        LeftOpen("anti_alias", f"taken for {taken.name}; {' and '.join(others)} would have the same tensors: say which")
    ]
    return Identity(taken.name, taken.fields, (*alike * bool(others), *left_open(taken.fields, renamed)))


def left_open(fields: Mapping[str, Any], renamed: Renamed) -> Iterator[LeftOpen]:
    """What neither tensors nor names tell of a network of such `fields`."""
    if fields.get("stem") == "cifar":
        yield LeftOpen(
            "stem_pool",
            "the first convolution is 3x3: taken for stem='cifar', with stride 1 and no pool; the tensors would be the "
            "same with stem_pool='max'",
        )
    if renamed.whose == DETECTRON2 and "layer1.0.conv3.weight" in renamed.tensors:
        yield LeftOpen(
            "stride_in_1x1",
            "detectron2's names do not tell where the stride is: taken for stride_in_1x1=False, as in its torchvision "
            "weights; those of MSRA's and what was trained from them have stride_in_1x1=True",
        )
    if renamed.whose == TRANSFORMERS and not fields.keys() & {"stride_in_1x1", "first_stage_stride"}:
        yield LeftOpen(
            "first_stage_stride",
            "transformers' names do not tell what its config.json does: taken for its default, "
            "first_stage_stride=1 and stride_in_1x1=False",
        )
    if SEGMENTATION & {group.rpartition(".")[2] for group in renamed.passed_over}:
        yield LeftOpen(
            "output_stride",
            "beside it stand the parts of a segmentation network, whose backbone is often dilated: taken for "
            "output_stride=None; the tensors would be the same with 8 or 16",
        )


def overrides(name: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the network `name`, beside those of the table, that its tensors tell."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return _overrides(VARIANTS[ALIASES.get(name, name)], shapes)


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
    projected = found.get("layer1.0.downsample.0.weight", (0, 1))
    if "layer1.0.conv3.weight" not in found and projected[0] == projected[1]:  # needless, if it halved nothing
        fields["first_stage_stride"] = 2
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
