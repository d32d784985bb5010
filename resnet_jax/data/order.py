"""Which example stands in which row of which batch: pure functions of the row's number."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from grain.experimental import index_shuffle


class Order(Protocol):
    """Place in the endless stream of all hosts -> index of the example."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> int: ...


@dataclasses.dataclass(frozen=True)
class Host:
    """Which rows of a global batch are this host's.

    Attributes:
      index: the host, 0 or more.
      rows: of each batch that are its own.
      layout: row of a global batch -> its place in the batch's part of the stream.
    """

    index: int
    rows: int
    layout: Sequence[int]

    def position(self, row: int) -> int:
        """Place of this host's `row` (counted through all steps) in the stream of all hosts."""
        step, row = divmod(row, self.rows)
        return step * len(self.layout) + self.layout[self.index * self.rows + row]


def apart(batch_size: int, repeats: int) -> Sequence[int]:
    """A layout that puts neighbours in the stream batch_size / repeats rows apart, so that devices do not share them.

    Batch norm on one device then sees as many different examples as it would without repeats.
    """
    if repeats == 1:
        return range(batch_size)
    return sorted(range(batch_size), key=lambda place: place % repeats)  # stable: within a residue in order


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """All of `length` examples without end, each pass in an order of its own.

    The order of Grain's `MapDataset.range(length).seed(seed).shuffle().repeat()`, which would take ten times as long
    over each position. Nothing is stored: `index_shuffle` enciphers the number of the example.
    """

    length: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        passes, place = divmod(position, self.length)
        seed = (self._seed_of_first_pass + passes) % 2**32
        return int(index_shuffle(place, max_index=self.length - 1, seed=seed, rounds=4))

    @functools.cached_property
    def _seed_of_first_pass(self) -> int:
        return int(np.random.SeedSequence((self.seed, 1)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Of each pass of `length` examples over `order` the first ones only, each `repeats` times in a row."""

    order: Order
    length: int
    repeats: int

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> int:
        start = position // self.length * self.length
        return int(self.order[start + (position - start) // self.repeats])
