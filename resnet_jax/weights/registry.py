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
        stated = self.license or "licence not stated"
        return f"{stated}, NO COMMERCIAL USE" if self.non_commercial else stated


def list_pretrained(pattern: str = "*") -> list[str]:
    """Tags of published weights that match the shell `pattern`.

    >>> list_pretrained("resnet50.tv*")
    ['resnet50.tv2_in1k', 'resnet50.tv_in1k']
    """
    return [tag for tag in _entries() if fnmatch.fnmatchcase(tag, pattern)]


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
    if entry.resize_size is not None:
        if train:
            raise ValueError(f"torchvision publishes no training size for {tag!r}; timm does, as {entry.repo!r}.")
        return _preprocessing(entry, entry.input_size[1], entry.resize_size)
    assert entry.crop_pct is not None
    if train:
        return _preprocessing(entry, entry.input_size[1], resize_size(entry.input_size[1], entry.crop_pct))
    size = (entry.test_input_size or entry.input_size)[1]
    return _preprocessing(entry, size, resize_size(size, entry.test_crop_pct or entry.crop_pct))


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


def resize_size(image_size: int, crop_pct: float) -> int:
    """Pixels of the shorter side before the middle crop, by timm's rule."""
    return math.floor(image_size / crop_pct)


def _preprocessing(entry: Pretrained, image_size: int, resize: int) -> "Preprocessing":
    return Preprocessing(image_size, resize, entry.interpolation, entry.mean, entry.std)


def _choose(name: str) -> str:
    """What to say to somebody who gives no tag."""
    tags = list_pretrained(f"{name}.*")
    if not tags:
        return f"there are no published weights of {name!r}: resnet_jax.list_pretrained() has all that there are."
    lines = []
    for entry in map(get_pretrained, tags):
        best = max(entry.reported, key=lambda accuracy: accuracy.top1, default=None)
        shown = f"top-1 {best.top1:.2f} % at {best.image_size}" if best else "no accuracy reported"
        lines.append(f"  {entry.tag:<44}{shown:<24}{entry.terms}")
    head = f"{name!r} names a network and not its weights, and none are taken silently; choose a tag:"
    return "\n".join([head, *lines])


@functools.cache
def _table() -> Mapping[str, Any]:
    table: Mapping[str, Any] = json.loads((HERE / "registry.json").read_text())
    return table


@functools.cache
def _entries() -> Mapping[str, Pretrained]:
    return {row["tag"]: _entry(row) for row in _table()["entries"]}


def _entry(row: Mapping[str, Any]) -> Pretrained:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Pretrained(**fields | {"reported": tuple(Accuracy(**accuracy) for accuracy in row["reported"])})
