"""What a data set is, whatever it is read from: random access to encoded or plain images with their labels."""

import dataclasses
import hashlib
import json
from typing import Any, Protocol

from resnet_jax.data.images.pillow import UnreadableImage

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
        """

    def origin(self, index: int) -> str:
        """Where example `index` comes from, for messages: a file's path, or a data set and record number."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set. `channels` is 1 (grey) or 3 (RGB); a label is an index into `class_names`."""

    name: str
    split: str
    source: Source = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    channels: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.source)


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
                example = dataset.source[index]
            except UnreadableImage:
                digest.update(b"unreadable")
                continue
            image = example["image"]
            digest.update(str(example["label"]).encode())
            digest.update(image if isinstance(image, bytes) else image.tobytes())
    return digest.hexdigest()[:16]
