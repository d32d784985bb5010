"""Made-up images: a coarse pattern for each class under noise. Nothing is on disk, everything follows from the seed."""

import dataclasses
from typing import Any

import numpy as np

from resnet_jax.data.sources.base import SPLITS, Dataset

GRID = 4  # the pattern of a class is GRID x GRID patches of one colour


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """Example `index` is a pure function of the fields and `index`; classes take turns, so all are equally frequent."""

    split: str
    image_size: int
    channels: int
    num_examples: int
    num_classes: int
    seed: int

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        label = index % self.num_classes
        shape = (self.image_size, self.image_size, self.channels)
        noise = np.random.default_rng((self.seed, 1 + SPLITS.index(self.split), index)).integers(
            128, size=shape, dtype=np.uint8
        )
        return {"image": noise + self._pattern(label), "label": label}

    def _pattern(self, label: int) -> np.ndarray:
        """Values 0..127, [image_size, image_size, channels]; the same for both splits, and its own mirror image."""
        patches = np.random.default_rng((self.seed, 0, label)).integers(
            128, size=(GRID, GRID, self.channels), dtype=np.uint8
        )
        patches[:, GRID // 2 :] = patches[:, : GRID // 2][:, ::-1]
        nearest = np.arange(self.image_size) * GRID // self.image_size
        return patches[nearest][:, nearest]

    def origin(self, index: int) -> str:
        return f"synthetic/{self.split}, example {index}"


def open_synthetic(
    split: str, image_size: int, channels: int, num_examples: int, num_classes: int, seed: int
) -> Dataset:
    """See `datasets.open_dataset`."""
    for name, value in (("image_size", image_size), ("num_examples", num_examples), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"synthetic data with {name}={value}: it must be 1 or more.")
    if channels not in (1, 3):
        raise ValueError(f"synthetic data with channels={channels}: use 1 (grey) or 3 (RGB).")
    if seed < 0:
        raise ValueError(f"synthetic data with seed={seed}: it must be 0 or more.")
    source = SyntheticSource(split, image_size, channels, num_examples, num_classes, seed)
    return Dataset("synthetic", split, source, tuple(f"class {i}" for i in range(num_classes)), channels)
