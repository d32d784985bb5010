"""What a data set is, whatever it is read from: random access to encoded or plain images with their labels."""

import dataclasses
import hashlib
import json
import operator
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from resnet_jax.data.images.pillow import UnreadableImage, open_image
from resnet_jax.data.sources.reading import patiently

TFDS_PREFIX = "tfds:"
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a run must know of a data set before it reads any of it: numbers of examples and classes, channels."""

    num_train: int
    num_test: int
    num_classes: int
    channels: int


# TFDS data sets that `resnet-jax prepare` makes, and that a run can be planned for without having them.
STOCK = {
    "imagenet2012": Facts(num_train=1_281_167, num_test=50_000, num_classes=1000, channels=3),
    "cifar10": Facts(num_train=50_000, num_test=10_000, num_classes=10, channels=3),
    "cifar100": Facts(num_train=50_000, num_test=10_000, num_classes=100, channels=3),
}


class Source(Protocol):
    """Random access to examples; many threads read it at once, and it is pickled to reach worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`image`: uint8 [height, width, channels], or the bytes of an encoded image; `label`: int.

        Raises:
          images.UnreadableImage: the example is not to be had.
          OSError: the operating system refused to read it, which is tried again and then ends the run.
        """

    def origin(self, index: int) -> str:
        """Where example `index` comes from, for messages: a file's path, or a data set and record number."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set. `channels` is 1 (grey) or 3 (RGB); a label is an index into `class_names`.

    Attributes:
      source: a `Source`, or anything with `__len__` and `__getitem__`, whose examples are what `Examples` takes.
    """

    name: str
    split: str
    source: Any = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    channels: int

    def __post_init__(self) -> None:
        if not hasattr(self.source, "origin"):
            object.__setattr__(self, "source", Examples(self.source, f"{self.name}/{self.split}", self.channels))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An example of the source; its label is one of the classes.

        Raises:
          ValueError: another label; `UnreadableImage`, as the source.
          reading.SourceFailed: the operating system refused to read it, again and again.
        """
        example: dict[str, Any] = patiently(lambda: self.source[index], lambda: self.source.origin(index))
        if not 0 <= example["label"] < self.num_classes:
            raise ValueError(
                f"{self.source.origin(index)}: label {example['label']}, but {self.name!r} has {self.num_classes} "
                f"classes, 0..{self.num_classes - 1}."
            )
        return example


@dataclasses.dataclass(frozen=True)
class Examples:
    """A `Source` of what has `__len__` and `__getitem__` alone: a list, a Grain `MapDataset`, a torch `Dataset`, ...

    An example is `{"image": ..., "label": ...}` (more keys do no harm) or a pair of both. An image is uint8
    [height, width, channels], of grey ones also [height, width], the bytes of an encoded image, or a Pillow image.

    Attributes:
      whole: where examples come from.
      name: the data set's, for messages.
      channels: of all images.
    """

    whole: Any
    name: str
    channels: int

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.whole[index]
        if isinstance(example, Mapping) and {"image", "label"} <= example.keys():
            image, label = example["image"], example["label"]
        elif isinstance(example, tuple | list) and len(example) == 2:
            image, label = example
        else:
            keys = f" with the keys {sorted(map(str, example))}" if isinstance(example, Mapping) else ""
            raise ValueError(
                f"{self.origin(index)} is of type {type(example).__name__}{keys}: give "
                '{"image": image, "label": label}, or a pair of both.'
            )
        try:
            return {"image": self._plain(image), "label": operator.index(label)}
        except TypeError as error:
            raise ValueError(f"{self.origin(index)}: {error}") from error

    def _plain(self, image: Any) -> np.ndarray | bytes:
        if isinstance(image, bytes):
            return image
        array = np.asarray(open_image(image, self.channels) if isinstance(image, Image.Image) else image)
        if array.ndim == 2 and self.channels == 1:
            array = array[..., None]
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != self.channels:
            raise TypeError(
                f"an image of shape {array.shape} and type {array.dtype}, where the data set's are uint8 [height, "
                f"width, {self.channels}], or the bytes of an encoded image."
            )
        return array

    def origin(self, index: int) -> str:
        return f"example {index} of {self.name}"


def facts(train: Dataset, test: Dataset) -> Facts:
    """The facts of a data set of which both splits are open."""
    return Facts(len(train), len(test), train.num_classes, train.channels)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some examples of a source, in their order."""

    whole: Source
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.whole[self.indices[index]]

    def origin(self, index: int) -> str:
        return self.whole.origin(self.indices[index])


def hold_out(train: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """The training split without its last `count` examples, and those, to test on instead of the test split.

    Raises:
      ValueError: nothing would be left of one of them.
    """
    if not 0 < count < len(train):
        raise ValueError(f"{count} examples cannot be held out of the {len(train)} that {train.name!r} trains on.")
    first = len(train) - count
    parts = (range(first), range(first, len(train)))
    kept, held = (dataclasses.replace(train, source=_Part(train.source, part)) for part in parts)
    return kept, dataclasses.replace(held, split="held out")


FINGERPRINTED = 16  # examples of each split


def fingerprint(train: Dataset, test: Dataset) -> str:
    """What tells two data sets apart: a hash of sizes, class names and some examples spread over both splits.

    An unreadable example counts as such; its message, which may hold a path, does not.
    """
    digest = hashlib.sha256(json.dumps([len(train), len(test), *train.class_names]).encode())
    for dataset in (train, test):
        count = min(len(dataset), FINGERPRINTED)
        for index in (len(dataset) * i // count for i in range(count)):
            try:
                example = dataset[index]
            except UnreadableImage:
                digest.update(b"unreadable")
                continue
            image = example["image"]
            digest.update(str(example["label"]).encode())
            digest.update(image if isinstance(image, bytes) else image.tobytes())
    return digest.hexdigest()[:16]
