"""Grain: (seed, step) -> batch, the same on any number of threads, worker processes and hosts.

A batch is `{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'mask': float32 [batch]}`. Where
`mask` is 0 the row is no example: padding of the last evaluation batch, or an image that could not be read.
"""

import dataclasses
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import grain
import numpy as np
from absl import flags

from resnet_jax import processes
from resnet_jax.data.images.pillow import UnreadableImage, decode
from resnet_jax.data.order import Host, Order, Repeated, Shuffled, apart
from resnet_jax.data.sources.base import Dataset

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Batches(Iterator[Batch]):
    """Iterator over batches that are made ahead of time; `close()`, or a `with` block, ends the threads that do so."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __next__(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        self._iterator.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def train_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    transform: Transform | Mapping[int, Transform],
    seed: int,
    start_step: int = 0,
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "refuse",
    repeats: int = 1,
) -> Batches:
    """Endless shuffled and augmented batches; the batch of a step is a pure function of `seed` and step.

    Each pass over the data set has an order of its own and has every example once; a batch may lie across two passes.
    With `repeats` > 1 a pass is as long, but has only the first examples of its order, each so many times and each time
    augmented differently (repeated augmentation, Hoffer et al. 2020, arXiv:1901.09335).

    Args:
      dataset: what to draw from.
      batch_size: examples a step, over all hosts. It may exceed the size of the data set.
      transform: function of (image, rng), such as `transforms.train_transform`; all results must have one shape. Or
        several, each with the step from which on it makes the batches: `{0: small, 5000: large}`.
      seed: of the order and of the augmentation, 0..2^32 - 1.
      start_step: the first step to deliver: a resumed run goes on with the batches that an uninterrupted one has.
      num_threads: that read and augment, in each process; 0 does it in the caller's thread, without reading ahead.
      num_workers: processes that do so in place of this one, for hosts with tens of cores. They are spawned, so a
        script needs `if __name__ == "__main__":`.
      process_index: this host, 0..process_count - 1.
      process_count: hosts. Host p receives rows p * batch_size / process_count onwards of the global batch, so the
        hosts' batches, one after the other, are the batch of a single host.
      on_error: an unreadable image: "refuse" raises, "skip" delivers a black image with mask 0 and logs a warning,
        once for each file; `batch_size - mask.sum()` counts them.
      repeats: of each example, in one batch but for those at its ends, which go on in the next. As torchvision's
        `RASampler` draws them: 1 / repeats of the data in a pass, in a new order each time. There, neighbours in the
        order go to different devices; here they lie batch_size / repeats rows apart, to the same effect where at least
        `repeats` devices share the batch. RASampler also ends a pass at a multiple of 256, which is left out here.

    Raises:
      ValueError: numbers that do not go together, or an empty data set; while iterating, `UnreadableImage`.
    """
    _check(dataset, batch_size, process_index, process_count, num_threads, num_workers, on_error)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} must lie in 0..2^32 - 1.")
    if start_step < 0:
        raise ValueError(f"start_step={start_step} must be 0 or more.")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be 1 or more.")
    transforms = dict(transform) if isinstance(transform, Mapping) else {0: transform}
    if min(transforms, default=-1) != 0:
        raise ValueError(f"transform has the steps {sorted(transforms)}, of which the first must be 0.")
    order: Order = Shuffled(len(dataset), seed)
    if repeats > 1:
        order = Repeated(order, len(dataset), repeats)
    host = Host(process_index, batch_size // process_count, apart(batch_size, repeats))
    rows = {
        first: _Rows(dataset, order, host, sys.maxsize // batch_size, functools.partial(_augment, each, seed), on_error)
        for first, each in transforms.items()
    }
    return _iterate(rows, start_step, num_threads, num_workers)


def eval_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    transform: Callable[[np.ndarray], np.ndarray],
    num_threads: int = 4,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    on_error: str = "refuse",
) -> Batches:
    """Every example exactly once, in order; the last batch is filled up with black images of mask 0.

    All batches have the same shape and every host has the same number of them. The arguments are those of
    `train_batches`, but `transform` is a function of the image alone, such as `transforms.eval_transform`.

    Raises:
      ValueError: numbers that do not go together, or an empty data set; while iterating, `UnreadableImage`.
    """
    _check(dataset, batch_size, process_index, process_count, num_threads, num_workers, on_error)
    order = range(len(dataset))
    host = Host(process_index, batch_size // process_count, range(batch_size))
    num_batches = -(-len(dataset) // batch_size)
    rows = _Rows(dataset, order, host, num_batches, functools.partial(_evaluate, transform), on_error)
    return _iterate({0: rows}, 0, num_threads, num_workers)


Image = np.ndarray | bytes  # decoded, or an encoded file
# What is left to do of a transform. It may write the image into the array that it is given, and then returns that.
Finish = Callable[[np.ndarray | None], np.ndarray]


def _augment(transform: Callable[..., np.ndarray], seed: int, image: Image, channels: int, position: int) -> Finish:
    rng = _generator(seed, position)
    if isinstance(image, bytes) and hasattr(transform, "begin_encoded"):  # it may not need all of the image
        begun: Finish = transform.begin_encoded(image, channels, rng)
        return begun
    return lambda _: transform(decoded(image, channels), rng)


def _generator(seed: int, position: int) -> np.random.Generator:
    """`np.random.default_rng((seed, position))`, which has to look at what it is given and takes longer."""
    words = (seed, position) if position < 2**32 else (seed, position % 2**32, position >> 32)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(np.array(words, np.uint32))))


def _evaluate(transform: Callable[..., np.ndarray], image: Image, channels: int, position: int) -> Finish:
    return lambda _: transform(decoded(image, channels))


def decoded(image: Image, channels: int) -> np.ndarray:
    """uint8 `[height, width, channels]` of an image as a source gives it."""
    return decode(image, channels) if isinstance(image, bytes) else image


# Rows ---------------------------------------------------------------------------------------------------


Row = tuple[np.ndarray, int, int]  # image, label, mask
FinishRow = Callable[[np.ndarray | None], Row]
# Rows that are begun together. Between two images, whose pixels fill the caches, Python takes four times as long over
# order, generator, header and window as it does for one row after the other. Far more rows would keep other threads
# waiting for the interpreter.
GROUP = 8


@dataclasses.dataclass(frozen=True, repr=False)
class _Rows:
    """This host's rows, batch after batch: a pure function of the step, as Grain's random access wants it."""

    dataset: Dataset
    order: Order  # position in the stream -> index of the example
    host: Host
    num_batches: int
    transform: Callable[[Image, int, int], Finish]  # of image, channels and position
    on_error: str

    def batch(self, step: int) -> Batch:
        """This host's part of a step's batch.

        Each image is written into its place, or copied there at once, while it is in the cache: stacking them all at
        the end takes three times as long.
        """
        size = self.host.rows
        images, labels, masks = np.empty(0), np.empty(size, np.int32), np.empty(size, np.float32)
        for place, finish in enumerate(self._begun(range(step * size, (step + 1) * size))):
            room = images[place] if place else None
            image, labels[place], masks[place] = finish(room)
            if room is None:
                images = np.empty((size, *image.shape), image.dtype)
            if (image.shape, image.dtype) != (images.shape[1:], images.dtype):
                raise ValueError(
                    f"the transform gave an image of shape {image.shape} and type {image.dtype}, and before it, in the "
                    f"same batch, one of {images.shape[1:]} and {images.dtype}: all must be alike."
                )
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
        origin = self.dataset.source.origin(index)
        if self.on_error == "refuse":
            raise UnreadableImage(
                f"{origin}: {error}. Repair or remove it, or leave such images out with on_error='skip'."
            ) from error
        _warn_once(origin, error)
        return self._blank, 0, 0

    def _read(self, index: int) -> tuple[Image, int]:
        example = self.dataset.source[index]
        image, label = example["image"], example["label"]
        if not 0 <= label < self.dataset.num_classes:
            raise ValueError(
                f"{self.dataset.source.origin(index)}: label {label}, but {self.dataset.name!r} has "
                f"{self.dataset.num_classes} classes, 0..{self.dataset.num_classes - 1}."
            )
        return image, label

    @functools.cached_property
    def _blank(self) -> np.ndarray:
        """Zeros in the shape of a transformed image, which only a transformed image can tell."""
        for index in range(len(self.dataset)):
            try:
                return np.zeros_like(self.transform(self._read(index)[0], self.dataset.channels, 0)(None))
            except UnreadableImage:
                continue
        raise ValueError(f"none of the {len(self.dataset)} images of {self.dataset.name!r} can be read.")


@dataclasses.dataclass(frozen=True, repr=False)
class _Stacked:
    """This host's batches: rows, so many at a time. Grain's own batching would cost as much as a flip for each."""

    rows: Mapping[int, _Rows]  # the first step that is made of them -> rows

    def __len__(self) -> int:
        return self.rows[0].num_batches

    def __getitem__(self, step: int) -> Batch:
        rows = self.rows[max(first for first in self.rows if first <= step)]
        return rows.batch(step)


_warned: set[str] = set()


def _warn_once(origin: str, error: UnreadableImage) -> None:
    if origin not in _warned:
        _warned.add(origin)
        logger.warning("%s: %s; it is left out", origin, error)


# Grain --------------------------------------------------------------------------------------------------


def _iterate(rows: Mapping[int, _Rows], start_step: int, num_threads: int, num_workers: int) -> Batches:
    # Batched before it becomes an iterator: then threads and workers are given whole batches, by their number.
    batches = grain.MapDataset.source(_Stacked(rows))[start_step:]
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # in a notebook or a test; Grain reads flags to start its workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
        iterable = iterable.mp_prefetch(options, worker_init_fn=_live_with_parent)
    return Batches(iter(iterable))


def _live_with_parent(_index: int, _count: int) -> None:
    """Makes a worker end when, and only when, the process that it works for does.

    SIGTERM and Ctrl-C often go to every process of a job. A run that is told so finishes its step, for which it needs
    the worker.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    processes.end_with_parent()


def _check(
    dataset: Dataset,
    batch_size: int,
    process_index: int,
    process_count: int,
    num_threads: int,
    num_workers: int,
    on_error: str,
) -> None:
    if not len(dataset):
        raise ValueError(
            f"the {dataset.split} split of {dataset.name!r} is empty: there is nothing to make batches of."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more.")
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index={process_index} must lie in 0..{process_count - 1}: process_count={process_count}."
        )
    if batch_size % process_count:
        low = batch_size // process_count * process_count
        raise ValueError(
            f"batch_size={batch_size} cannot be split evenly over process_count={process_count} hosts: "
            f"use {low or process_count} or {low + process_count}."
        )
    if num_threads < 0 or num_workers < 0:
        raise ValueError(f"num_threads={num_threads} and num_workers={num_workers} must be 0 or more.")
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error={on_error!r} is not known: use 'refuse' or 'skip'.")
