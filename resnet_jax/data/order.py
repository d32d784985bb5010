"""Which example stands in which row of which batch: pure functions of the row's number."""

import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# Of an order: with fewer, successive passes would be related.
ROUNDS = 4


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
    """A layout for `Repeated`: copies of an example lie batch_size / repeats rows apart, beside different neighbours.

    The first copies of all examples come first, then the second ones, ...: devices do not share an example, and batch
    norm on one device sees as many different ones as it would without repeats. In the first block rows 2i and 2i + 1
    are neighbours in the order, in the second they are 2 or 3 apart there, then 4 to 7, ...: where these rows are mixed
    (`step.mixing`) two examples meet once in a batch, and not once for each copy. (In blocks of fewer than 2**repeats
    rows some meet again.)
    """
    if repeats == 1:
        return range(batch_size)
    rows: list[int] = []
    for copy in range(repeats):
        block = list(range(copy, batch_size, repeats))
        if len(rows) % 2 and block:  # the last row of the block before is still without a partner
            rows.append(block.pop(min(copy, len(block) - 1)))
        rows += _paired(block, 2**copy)
    return rows


def _paired(places: list[int], distance: int) -> list[int]:
    """The same places, but 2i and 2i + 1 were `distance` apart, and at the end up to twice as much: 0, 2, 1, 3, ...

    None goes further than that from where it was. Of an odd number, the last stays the last.
    """
    rows: list[int] = []
    while places:
        half = distance if len(places) >= 4 * distance else len(places) // 2
        rows += [place for pair in zip(places[:half], places[half : 2 * half], strict=True) for place in pair]
        places = places[2 * half :]
        if len(places) == 1:
            return rows + places
    return rows


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """All of `length` examples without end, each pass in an order of its own.

    A Feistel network (Luby and Rackoff 1988) of random functions: examples stand in a square, and by turns each row is
    rolled by a random number of columns, each column by a random number of rows. Of a pass nothing is kept but these
    numbers, a few for each row and column.
    """

    length: int
    seed: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: int) -> int:
        passes, place = divmod(position, self.length)
        height, width, rounds = _square(self.length, self.seed, passes)
        while True:
            row, column = divmod(place, width)
            for of_row, of_column in rounds:
                column = (column + of_row[row]) % width
                row = (row + of_column[column]) % height
            place = row * width + column
            if place < self.length:  # else it came to an empty place of the last row, and goes on from there
                return place


@functools.lru_cache(maxsize=16)
def _square(length: int, seed: int, passes: int) -> tuple[int, int, list[tuple[list[int], list[int]]]]:
    """Height and width, and for each round how far each row and each column is rolled."""
    width = math.isqrt(length - 1) + 1
    height = -(-length // width)
    words = np.random.SeedSequence((seed, 1, passes)).generate_state(ROUNDS * (height + width), np.uint64)
    rolled = [(each[:height] % width, each[height:] % height) for each in words.reshape(ROUNDS, height + width)]
    return height, width, [(of_row.tolist(), of_column.tolist()) for of_row, of_column in rolled]


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
