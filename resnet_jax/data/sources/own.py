"""A user's own examples as a data set: whatever has a length and can be asked for an example by its number."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data.sources.base import Dataset

EXAMPLE = "an example is {'image': ..., 'label': ...} or (image, label)"
IMAGE = "an image is uint8 [height, width] or [height, width, channels], a Pillow image, or the bytes of a file"


def wrap(examples: Any, split: str, class_names: Sequence[str] = ()) -> Dataset:
    """A `Dataset` of anything with `__len__` and `__getitem__`: a list, a Grain source, a torch Dataset.

    Args:
      examples: of `{"image": ..., "label": ...}` or `(image, label)`; or two arrays, of images and of labels. An image
        is uint8 `[height, width]` or `[height, width, channels]`, a Pillow image, or the bytes of a file. Threads, and
        processes if there are any, read it at once.
      split: its name, for messages.
      class_names: a label is an index into them.

    Raises:
      ValueError: it is none of these, or empty, by its first example.
    """
    if isinstance(examples, Dataset):
        return examples
    if isinstance(examples, tuple) and len(examples) == 2 and np.ndim(examples[0]) >= 3:
        examples = _Arrays(*map(np.asarray, examples))
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        raise ValueError(
            f"{type(examples).__name__} has no length, or no examples by number: give something that has both."
        )
    if not len(examples):
        raise ValueError(f"there are no {split} examples.")
    source = Own(examples, split)
    image = source[0]["image"]
    return Dataset("given", split, source, tuple(class_names), 3 if isinstance(image, bytes) else image.shape[-1])


@dataclasses.dataclass(frozen=True)
class Own:
    """A source of examples that are somebody else's."""

    examples: Any
    split: str

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self.examples[index]
        if isinstance(example, Mapping) and {"image", "label"} <= example.keys():
            image, label = example["image"], example["label"]
        elif isinstance(example, Sequence) and not isinstance(example, str | bytes) and len(example) == 2:
            image, label = example
        else:
            raise ValueError(f"{self.origin(index)} is a {type(example).__name__}: {EXAMPLE}.")
        return {"image": self._image(image, index), "label": self._label(label, index)}

    def origin(self, index: int) -> str:
        return f"{self.split} example {index}"

    def _image(self, image: Any, index: int) -> np.ndarray | bytes:
        if isinstance(image, bytes):
            return image
        if isinstance(image, io.IOBase | str):
            raise ValueError(f"the image of {self.origin(index)} is a {type(image).__name__}: {IMAGE}.")
        array = np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        if array.dtype != np.uint8 or array.ndim != 3:
            raise ValueError(
                f"the image of {self.origin(index)} is {array.dtype} {list(array.shape)}: {IMAGE}; mean and std are "
                "taken away later, on the device."
            )
        return array

    def _label(self, label: Any, index: int) -> int:
        number = np.asarray(label)
        if number.size != 1 or not np.issubdtype(number.dtype, np.integer):
            raise ValueError(f"the label of {self.origin(index)} is {label!r:.60}, and must be a whole number.")
        return int(number.item())


@dataclasses.dataclass(frozen=True)
class _Arrays:
    """Images and labels in two arrays."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise ValueError(f"{len(self.images)} images and {len(self.labels)} labels: give as many of each.")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]
