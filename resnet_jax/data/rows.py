"""One host's rows of a batch: read, decoded, transformed and put into one array; a pure function of the step."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from resnet_jax.data.images.pillow import UnreadableImage, decode
from resnet_jax.data.order import Host, Order
from resnet_jax.data.sources.base import Dataset

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Image = np.ndarray | bytes  # decoded, or an encoded file
# What is left to do of a transform. It may write the image into the array that it is given, and then returns that.
Finish = Callable[[np.ndarray | None], np.ndarray]


def augment(transform: Callable[..., np.ndarray], seed: int, image: Image, channels: int, position: int) -> Finish:
    rng = _generator(seed, position)
    if isinstance(image, bytes) and hasattr(transform, "begin_encoded"):  # it may not need all of the image
        begun: Finish = transform.begin_encoded(image, channels, rng)
        return begun
    return lambda _: transform(decoded(image, channels), rng)


def _generator(seed: int, position: int) -> np.random.Generator:
    """`np.random.default_rng((seed, position))`, which has to look at what it is given and takes longer."""
    words = (seed, position) if position < 2**32 else (seed, position % 2**32, position >> 32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.array(words, np.uint32))))


def evaluate(transform: Callable[..., np.ndarray], image: Image, channels: int, position: int) -> Finish:
    return lambda _: transform(decoded(image, channels))


def decoded(image: Image, channels: int) -> np.ndarray:
    """uint8 `[height, width, channels]` of an image as a source gives it."""
    return decode(image, channels) if isinstance(image, bytes) else image


Row = tuple[np.ndarray, int, int]  # image, label, mask
FinishRow = Callable[[np.ndarray | None], Row]
# Rows that are begun together. Between two images, whose pixels fill the caches, Python takes four times as long over
# order, generator, header and window as it does for one row after the other. Far more rows would keep other threads
# waiting for the interpreter.
GROUP = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Rows:
    """This host's rows, batch after batch: a pure function of the step, as Grain's random access wants it."""

    dataset: Dataset
    order: Order  # position in the stream -> index of the example
    host: Host
    num_batches: int
    transform: Callable[[Image, int, int], Finish]  # of image, channels and position
    on_error: str

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """This host's rows of a step's batch, or one of so many parts of them.

        Each image is written into its place, or copied there at once, while it is in the cache: stacking them all at
        the end takes three times as long.
        """
        first, end = (step * self.host.rows + number * self.host.rows // parts for number in (part, part + 1))
        size = end - first
        images, labels, masks = np.empty(0), np.empty(size, np.int32), np.empty(size, np.float32)
        for place, finish in enumerate(self._begun(range(first, end))):
            room = images[place] if place else None
            image, labels[place], masks[place] = finish(room)
            if room is None:
                images = np.empty((size, *image.shape), image.dtype)
            check_alike(image, images[0])
            if image is not room:
                images[place] = image
        return {"image": images, "label": labels, "mask": masks}

    def _begun(self, rows: range) -> Iterator[FinishRow]:
        for start in range(0, len(rows), GROUP):
            yield from [self._begin(row) for row in rows[start : start + GROUP]]

    def _begin(self, row: int) -> FinishRow:
        """Does what is quick; the call of the result does the rest."""
        position = self.host.position(row)
        if position >= len(self.order):
            return lambda _: (self._blank, 0, 0)
        index = self.order[position]
        try:
            image, label = self._read(index)
            finish = self.transform(image, self.dataset.channels, position)
        except UnreadableImage as error:
            reason = error
            return lambda _: self._leave_out(index, reason)
        return functools.partial(self._finish, index, label, finish)

    def _finish(self, index: int, label: int, finish: Finish, room: np.ndarray | None) -> Row:
        try:
            return finish(room), label, 1
        except UnreadableImage as error:
            return self._leave_out(index, error)

    def _leave_out(self, index: int, error: UnreadableImage) -> Row:
        self._allow(index, error)
        _warn_once(self.dataset.source.origin(index), error)
        return self._blank, 0, 0

    def _allow(self, index: int, error: UnreadableImage) -> None:
        if self.on_error == "refuse":
            raise UnreadableImage(
                f"{self.dataset.source.origin(index)}: {error}. Repair or remove it, or leave such images out with "
                "on_error='skip'."
            ) from error

    def _read(self, index: int) -> tuple[Image, int]:
        example = self.dataset[index]
        return example["image"], example["label"]

    @property
    def bytes(self) -> int:
        """Of this host's images of a batch."""
        return self.host.rows * self._blank.nbytes

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """Zeros in the shape of a transformed image, which only a transformed image can tell."""
        for index in range(len(self.dataset)):
            try:
                return np.zeros_like(self.transform(self._read(index)[0], self.dataset.channels, 0)(None))
            except UnreadableImage as error:
                self._allow(index, error)
        raise ValueError(f"none of the {len(self.dataset)} images of {self.dataset.name!r} can be read.")


@dataclasses.dataclass(frozen=True, repr=False)
class Stacked:
    """This host's batches: rows, so many at a time. Grain's own batching would cost as much as a flip for each."""

    rows: Mapping[int, Rows]  # the first step that is made of them -> rows
    parts: int  # of a batch, one after the other
    passes: int

    def __len__(self) -> int:
        return self.rows[0].num_batches * self.parts * self.passes

    def __getitem__(self, index: int) -> Batch:
        step, part = divmod(index, self.parts)
        step %= self.rows[0].num_batches
        rows = self.rows[max(first for first in self.rows if first <= step)]
        return rows.batch(step, part, self.parts)


def join(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    for part in parts[1:]:
        check_alike(part["image"][0], parts[0]["image"][0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_alike(image: np.ndarray, before: np.ndarray) -> None:
    if (image.shape, image.dtype) != (before.shape, before.dtype):
        raise ValueError(
            f"the transform gave an image of shape {image.shape} and type {image.dtype}, and before it, in the same "
            f"batch, one of {before.shape} and {before.dtype}: all must be alike."
        )


_warned: set[str] = set()


def _warn_once(origin: str, error: UnreadableImage) -> None:
    if origin not in _warned:
        _warned.add(origin)
        logger.warning("%s: %s; it is left out", origin, error)
