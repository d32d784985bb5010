"""Published weights: where they lie, their licence, preprocessing and reported accuracy.

The table is data, made by `tools/make_registry.py` from timm's and torchvision's own and read when it is first asked.
"""

import dataclasses
import difflib
import fnmatch
import functools
import json
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resnet_jax.models.variants import ALIASES, VARIANTS
from resnet_jax.weights.published import schema

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

HERE = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 in percent on ImageNet-1k's 50,000 validation images of `image_size` pixels, as reported."""

    image_size: int
    top1: float
    top5: float
    source: str


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """One set of published weights. The names of timm's fields are timm's.

    Attributes:
      tag: its name: "resnet50.a1_in1k" (timm), "resnet50.IMAGENET1K_V2" (torchvision).
      library: "timm" or "torchvision".
      architecture: the network's name for `create_model`.
      repo, file: repository on the Hugging Face Hub and the file in it; None where only `url` is known.
      url: of the `.pth` file; None where there is none.
      sha256: the first digits of that file's SHA-256 (not of the Hub's file), where they are published.
      license: as the source states it; None stands for "not stated".
      non_commercial: the licence forbids commercial use.
      num_classes: 0 for weights without a head.
      num_parameters: without batch statistics.
      reported: accuracies, if any are.
      input_size, crop_pct: channels, height and width in training, and the image's part that the crop keeps.
      test_input_size, test_crop_pct: those to evaluate with, where they are others.
      resize_size: pixels of the shorter side before the crop; torchvision gives it in place of `crop_pct`.
      interpolation, crop_mode, mean, std: of both preprocessings; mean and std for pixels in [0, 1].
      pool_size: height and width of the last feature map in training.
      first_conv, classifier: PyTorch's names of those layers.
      origin_url: where the weights come from; torchvision's recipe.
      paper_ids: such as "arXiv:2110.00476".
      gflops, file_size_mib, min_size: as torchvision's table has them.
    """

    tag: str
    library: str
    architecture: str
    repo: str | None
    file: str | None
    url: str | None
    sha256: str | None
    license: str | None
    non_commercial: bool
    num_classes: int
    num_parameters: int
    reported: tuple[Accuracy, ...]
    input_size: tuple[int, int, int]
    interpolation: str
    crop_mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    first_conv: str
    classifier: str
    crop_pct: float | None = None
    test_input_size: tuple[int, int, int] | None = None
    test_crop_pct: float | None = None
    resize_size: int | None = None
    pool_size: tuple[int, int] | None = None
    origin_url: str | None = None
    paper_ids: str | None = None
    gflops: float | None = None
    file_size_mib: float | None = None
    min_size: tuple[int, int] | None = None

    @property
    def terms(self) -> str:
        """The licence in words."""
        stated = self.license or "not stated"
        return f"{stated}, NO COMMERCIAL USE" if self.non_commercial else stated


def list_pretrained(pattern: str = "*") -> list[str]:
    """Tags of published weights that match the shell `pattern`.

    >>> list_pretrained("resnet50.tv*")
    ['resnet50.tv2_in1k', 'resnet50.tv_in1k']
    """
    return [tag for tag in _entries() if fnmatch.fnmatchcase(tag, pattern)]


def is_tag(name: str) -> bool:
    """Whether `get_pretrained` knows it."""
    return name in _entries() or name in _table()["aliases"]


def get_pretrained(tag: str) -> Pretrained:
    """All that is known of the weights called `tag`.

    Args:
      tag: "resnet50.a1_in1k", "resnet50.IMAGENET1K_V2", or a name that timm had before it had tags (`swsl_resnet18`).

    Raises:
      ValueError: no such tag; for a network's name without one, the message lists those to choose from.

    Warns:
      DeprecationWarning: the name is an old one of timm's.
    """
    entries, old = _entries(), _table()["aliases"]
    if tag in old:
        warnings.warn(f"{tag!r} is a deprecated name of {old[tag]!r}.", DeprecationWarning, stacklevel=2)
        return entries[old[tag]]
    if tag in entries:
        return entries[tag]
    name = ALIASES.get(tag, tag)
    if name in VARIANTS:
        raise ValueError(_choose(name))
    near = difflib.get_close_matches(tag, entries, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "resnet_jax.list_pretrained() has all."
    raise ValueError(f"there are no published weights {tag!r}: {hint}")


def preprocessing(tag: str, *, train: bool = False) -> "Preprocessing":
    """The transform of an image that the weights called `tag` are evaluated with.

    It is torchvision's own for torchvision's tags, and for timm's that of timm's test size and crop.

    Args:
      tag: as in `get_pretrained`.
      train: the size and crop of timm's training instead; without augmentation.

    Raises:
      ValueError: no such tag; or `train`, where one of torchvision's publishes no such thing.
    """
    entry = get_pretrained(tag)
    if train and entry.resize_size is not None:
        raise ValueError(f"torchvision publishes no training size for {tag!r}; timm does, as {entry.repo!r}.")
    return from_config(dataclasses.asdict(entry), train=train)


def summary(entry: Pretrained) -> str:
    """One line: tag, best reported accuracy, licence."""
    best = max(entry.reported, key=lambda accuracy: accuracy.top1, default=None)
    shown = f"top-1 {best.top1:.2f} % at {best.image_size}" if best else "no accuracy reported"
    return f"{entry.tag:<44}{shown:<24}licence {entry.terms}"


def facts(entry: Pretrained) -> dict[str, str]:
    """Everything that is known, in words, in the order to be shown."""
    shown = {
        "tag": entry.tag,
        "network": f"{entry.architecture}, {entry.num_parameters:,} parameters",
        "classes": str(entry.num_classes) if entry.num_classes else "none: weights without a head",
        "licence": entry.terms,
        "from": entry.origin_url,
        "paper": entry.paper_ids,
        "repository": entry.repo and f"{entry.repo}, {entry.file}",
        "url": entry.url,
        "sha256 of url": entry.sha256 and f"begins with {entry.sha256}",
        "evaluation": _described(preprocessing(entry.tag)),
        "training size": _described(preprocessing(entry.tag, train=True)) if entry.crop_pct else None,
        "layers": f"{entry.first_conv} is the first, {entry.classifier} the last",
        "arithmetic": entry.gflops and f"{entry.gflops} G multiply-adds at {entry.input_size[1]} pixels",
        "size of url": entry.file_size_mib and f"{entry.file_size_mib} MiB",
    }
    reported = {
        f"at {accuracy.image_size} pixels": f"top-1 {accuracy.top1} %, top-5 {accuracy.top5} % ({accuracy.source})"
        for accuracy in entry.reported
    }
    return {key: value for key, value in shown.items() if value} | reported


def _described(transform: "Preprocessing") -> str:
    size, shorter = transform.image_size, transform.resize_size
    return (
        f"shorter side to {shorter} ({transform.interpolation}), middle {size}x{size}, "
        f"mean {transform.mean}, std {transform.std}"
    )


def from_config(config: Mapping[str, Any], *, train: bool = False) -> "Preprocessing":
    """The transform that a configuration of timm's describes: of evaluation, or of training without augmentation.

    Args:
      config: `input_size`, `crop_pct`, `interpolation`, `mean`, `std`, perhaps `test_input_size`, `test_crop_pct` and
        `crop_mode`; or `resize_size` in place of the percentages.
      train: the size and crop of training.

    Raises:
      ValueError: it states what is not supported here, or nothing where something has to be stated.
    """
    from resnet_jax.data.transforms import Preprocessing  # brings Pillow, which `import resnet_jax` does without

    size, crop_pct = config["input_size"], config.get("crop_pct")
    if not train:
        size, crop_pct = config.get("test_input_size") or size, config.get("test_crop_pct") or crop_pct
    resize_size = config.get("resize_size")
    for problem, found in {
        f"input_size={size!r}, which is not (channels, size, size) of a square image": not _is_square(size),
        f"crop_pct={crop_pct!r}, which is no share of 1": resize_size is None and not schema.share(crop_pct),
        f"crop_mode={config.get('crop_mode')!r}, and only 'center' is supported": (
            config.get("crop_mode", "center") != "center"
        ),
        f"interpolation={config['interpolation']!r}, and only 'bilinear' and 'bicubic' are supported": (
            config["interpolation"] not in ("bilinear", "bicubic")
        ),
        f"mean={config['mean']!r} and std={config['std']!r}, which are not a number for each channel": not (
            schema.numbers(config["mean"])
            and schema.numbers(config["std"])
            and len(config["mean"]) == len(config["std"])
        ),
    }.items():
        if found:
            raise ValueError(f"it states {problem}.")
    image_size = size[-1]
    # timm rounds down; torchvision states the number itself.
    resize_size = resize_size or math.floor(image_size / crop_pct)
    return Preprocessing(image_size, resize_size, config["interpolation"], tuple(config["mean"]), tuple(config["std"]))


def _is_square(size: Any) -> bool:
    return schema.wholes(size, most=schema.MOST_PIXELS) and len(size) == 3 and size[1] == size[2]


def class_names(tag: str) -> tuple[str, ...]:
    """Names of the classes, in the order of the logits: the 1000 of ImageNet-1k, as torchvision shortens them.

    Raises:
      ValueError: no such tag, or weights of other classes, whose names the package does not have.
    """
    entry = get_pretrained(tag)
    names = imagenet_names()
    if entry.num_classes != len(names):
        head = f"a head of {entry.num_classes} classes" if entry.num_classes else "no head"
        raise ValueError(f"{tag} has {head}, and this package has the names of ImageNet-1k's {len(names)} alone.")
    return names


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """ImageNet-1k's 1000 names."""
    return tuple(json.loads((HERE / "imagenet1k.json").read_text()))


def _choose(name: str) -> str:
    """What to say to somebody who gives no tag."""
    tags = list_pretrained(f"{name}.*")
    if not tags:
        return f"there are no published weights of {name!r}: resnet_jax.list_pretrained() has all that there are."
    head = f"{name!r} names a network and not its weights, and none are taken silently; choose a tag:"
    return "\n".join([head, *(f"  {summary(get_pretrained(tag))}" for tag in tags)])


@functools.cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads((HERE / "registry.json").read_text())
    return table


@functools.cache
def _entries() -> Mapping[str, Pretrained]:
    return {row["tag"]: _entry(row) for row in _table()["entries"]}


def _entry(row: Mapping[str, Any]) -> Pretrained:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Pretrained(**fields | {"reported": tuple(Accuracy(**accuracy) for accuracy in row["reported"])})
