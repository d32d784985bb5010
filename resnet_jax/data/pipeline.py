"""Grain: (seed, step) -> batch, the same on any number of threads, worker processes and hosts.

A batch is `{'image': uint8 [batch, height, width, channels], 'label': int32 [batch], 'mask': float32 [batch]}`. Where
`mask` is 0 the row is no example: padding of the last evaluation batch, or an image that could not be read.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self

import grain
import numpy as np

from resnet_jax.data import workers
from resnet_jax.data.order import Host, Order, Repeated, Shuffled, apart
from resnet_jax.data.rows import Batch, Rows, Stacked, augment, evaluate, join
from resnet_jax.data.sources.base import Dataset

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# Bytes of the batches that are made ahead, or being made, in all threads and worker processes of an iterator.
AHEAD = 2**30


class Batches(Iterator[Batch]):
    """Iterator over batches that are made ahead of time; `close()`, or a `with` block, ends the threads that do so.

    While iterating it raises `UnreadableImage`, `reading.SourceFailed`, and `workers.WorkerDied`.
    """

    def __init__(self, iterator: Any, parts: int = 1):
        self._iterator, self._parts = iterator, parts

    def __next__(self) -> Batch:
        return join([next(self._iterator) for _ in range(self._parts)])

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
        Where a batch for each would be more than `AHEAD` bytes, they make parts of batches.
      num_workers: processes that do so in place of this one, for hosts with tens of cores. They are spawned, so a
        script needs `if __name__ == "__main__":`.
      process_index: this host, 0..process_count - 1.
      process_count: hosts. Host p receives rows p * batch_size / process_count onwards of the global batch, so the
        hosts' batches, one after the other, are the batch of a single host.
      on_error: an unreadable image: "refuse" raises, "skip" delivers a black image with mask 0 and logs a warning,
        once for each file; `batch_size - mask.sum()` counts them.
      repeats: of each example, in one batch but for those at its ends, which go on in the next. As torchvision's
        `RASampler` draws them: 1 / repeats of the data in a pass, in a new order each time. There, neighbours in the
        order go to different devices; here they lie about batch_size / repeats rows apart (`order.apart`), to the same
        effect where at least `repeats` devices share the batch. RASampler also ends a pass at a multiple of 256, which
        is left out here.

    Raises:
      ValueError: numbers that do not go together, an empty data set, or one of which nothing can be read; while
        iterating, as `Batches`.
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
        first: Rows(dataset, order, host, sys.maxsize // batch_size, functools.partial(augment, each, seed), on_error)
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
    passes: int = 1,
) -> Batches:
    """Every example exactly once, in order; the last batch is filled up with black images of mask 0.

    All batches have the same shape and every host has the same number of them. The arguments are those of
    `train_batches`, but `transform` is a function of the image alone, such as `transforms.eval_transform`, and all
    batches come `passes` times, one after the other.

    Raises:
      ValueError: as `train_batches`.
    """
    _check(dataset, batch_size, process_index, process_count, num_threads, num_workers, on_error)
    order = range(len(dataset))
    host = Host(process_index, batch_size // process_count, range(batch_size))
    num_batches = -(-len(dataset) // batch_size)
    rows = Rows(dataset, order, host, num_batches, functools.partial(evaluate, transform), on_error)
    return _iterate({0: rows}, 0, num_threads, num_workers, passes)


class Evaluations:
    """`eval_batches` time and again. Worker processes, which take seconds to start, stay for the next time."""

    def __init__(self, dataset: Dataset, *, batch_size: int, num_workers: int = 0, **settings: Any):
        """Takes the arguments of `eval_batches`."""
        self._start = functools.partial(
            eval_batches, dataset, batch_size=batch_size, num_workers=num_workers, passes=2**31, **settings
        )
        self._num_batches, self._keep = -(-len(dataset) // batch_size), num_workers > 0
        self._running: Batches | None = None

    def begin(self) -> Batches:
        """One evaluation; the one before it must be over, or closed."""
        return Batches(self._pass())

    def _pass(self) -> Iterator[Batch]:
        whole = False
        self._running = self._running or self._start()
        try:
            yield from itertools.islice(self._running, self._num_batches)
            whole = True
        finally:
            if not (whole and self._keep):  # broken off, it would go on in the middle
                self.close()

    def close(self) -> None:
        """Ends the workers."""
        if self._running:
            self._running.close()
        self._running = None


# Grain --------------------------------------------------------------------------------------------------


def _iterate(rows: Mapping[int, Rows], start_step: int, num_threads: int, num_workers: int, passes: int = 1) -> Batches:
    # Batched before it becomes an iterator: then threads and workers are given batches, or parts, by their number.
    parts = _parts(rows.values(), num_threads, num_workers)
    stacked = Stacked(rows, parts, passes)
    source = workers.Filed(stacked) if num_workers else stacked
    batches = grain.MapDataset.source(source)[start_step * parts :]
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=num_threads))
    if isinstance(source, workers.Filed):
        return Batches(workers.Workers(iterable, source, num_workers), parts)
    return Batches(iter(iterable), parts)


def _parts(rows: Collection[Rows], num_threads: int, num_workers: int) -> int:
    """In how many parts a batch is made, so that those in the making and those that wait are `AHEAD` bytes at most."""
    if not num_threads and not num_workers:  # nothing is made ahead
        return 1
    in_process = max(num_threads, 1)
    # A worker has one more in its hands, for which there is no room yet.
    at_once = num_workers * (in_process + workers.PASSED_ON + 1) if num_workers else in_process
    size = max(each.bytes for each in rows)
    return min(-(-at_once * size // AHEAD), min(each.host.rows for each in rows))


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
