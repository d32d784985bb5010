"""Threads and worker processes: how much they make ahead, how long they live, and what is said when one is killed."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytest

from children import running
from resnet_jax.data import datasets, order, pipeline, rows, transforms, workers
from resnet_jax.data.sources import base

PLAIN = transforms.eval_transform(8)


def synthetic(size=40):
    return datasets.open_dataset("synthetic", "train", image_size=8, num_examples=size)


def images(batches):
    return np.concatenate([batch["image"] for batch in batches])


class Counting:
    """A training transform that counts the images it was given."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 0

    def __call__(self, image, rng):
        with self.lock:
            self.count += 1
        return image + rng.integers(100, dtype=np.uint8)


def training(**kwargs):
    settings = {"batch_size": 10, "transform": Counting(), "seed": 3, "num_threads": 4, **kwargs}
    return pipeline.train_batches(synthetic(), **settings)


ONE = 8 * 8 * 3  # bytes of an image


@pytest.mark.parametrize("ahead", [3 * ONE, 17 * ONE, 25 * ONE, 1000 * ONE])
def test_what_is_made_ahead_is_bounded_by_bytes(ahead, monkeypatch):
    with training() as batches:
        expected = images(itertools.islice(batches, 4))
    monkeypatch.setattr(pipeline, "AHEAD", ahead)
    counting = Counting()
    with training(transform=counting) as batches:
        taken = [next(batches)]
        taken_or_looked_at = 10 + 1  # one for its size
        before = taken_or_looked_at
        while counting.count != before or before == taken_or_looked_at:  # until some are made, and then no more
            before = counting.count
            time.sleep(0.05)
        waiting = (counting.count - taken_or_looked_at) * ONE
        # At least one image for each thread is being made, whatever the bound.
        assert 0 < waiting <= max(min(ahead, 4 * 10 * ONE), 4 * ONE)
        taken += itertools.islice(batches, 3)
    np.testing.assert_array_equal(images(taken), expected)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_parts_of_a_batch_make_the_batch(parts):
    host = order.Host(0, 10, range(10))
    whole = rows.Rows(synthetic(), range(40), host, 4, lambda image, *_: lambda room: image, "refuse")
    stacked = rows.Stacked({0: whole}, parts, passes=2)
    assert len(stacked) == 4 * parts * 2
    for step in range(8):
        batch = rows.join([stacked[step * parts + part] for part in range(parts)])
        for name, array in whole.batch(step % 4).items():
            np.testing.assert_array_equal(batch[name], array, strict=True)


def test_parts_that_are_not_alike_are_refused():
    parts = [{"image": np.zeros((2, 8, 8, 3), kind)} for kind in (np.uint8, np.float32)]
    with pytest.raises(ValueError, match=r"type float32, and before it, in the same batch, one of .* uint8"):
        rows.join(parts)


# Worker processes


@pytest.mark.slow
@pytest.mark.soak  # a run that does so stays: tests/training/test_data_workers.py
def test_evaluations_keep_their_workers():
    dataset = synthetic(21)
    with pipeline.eval_batches(dataset, batch_size=4, transform=PLAIN) as batches:
        expected = images(batches)
    evaluations = pipeline.Evaluations(dataset, batch_size=4, transform=PLAIN, num_workers=2, num_threads=1)
    before, seen, seconds = running(), [], []
    for _ in range(3):
        start = time.perf_counter()
        np.testing.assert_array_equal(images(evaluations.begin()), expected)
        seconds.append(time.perf_counter() - start)
        seen.append(running() - before)
    assert len(seen[0]) == 2
    assert seen[0] == seen[1] == seen[2]
    assert max(seconds[1:]) < seconds[0] / 2
    with evaluations.begin() as batches:  # broken off: the next one starts from the beginning
        next(batches)
    np.testing.assert_array_equal(images(evaluations.begin()), expected)
    evaluations.close()
    assert running() == before


def test_evaluations_without_workers_are_all_alike_and_leave_no_threads():
    evaluations = pipeline.Evaluations(synthetic(21), batch_size=4, transform=PLAIN, num_threads=2)
    first = images(evaluations.begin())
    assert len(first) == 24
    np.testing.assert_array_equal(images(evaluations.begin()), first)
    assert evaluations._running is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (-9, "ended by SIGKILL; the kernel does so where memory is short. Fewer num_workers"),
        (-7, "ended by SIGBUS; /dev/shm, .* is full: enlarge it"),
        (-11, "ended by SIGSEGV; what it said stands above. The same command goes on"),
        (1, "ended by exit code 1; what it said stands above. .* needs `if __name__"),
    ],
)
def test_what_ended_a_worker_is_said(code, message):
    """In Grain's words, which the slow tests hear from Grain."""

    class Ended(list):
        def mp_prefetch(self, options, worker_init_fn):
            return map(self.end, [1])

        def end(self, _):
            raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs")

    with pytest.raises(workers.WorkerDied, match=message):
        next(workers.Workers(Ended(), workers.Filed([]), 1))


class Slow(base.Examples):
    """Takes a while for each example, so that workers are in the middle of one."""

    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before the first batch", "later"])
def test_a_worker_that_is_killed_ends_the_run_with_one_line(moment):
    # More than a pipe has room for: nobody reads what is sent to a process that was killed.
    source = Slow([(np.full((8, 8, 3), i % 256, np.uint8), 0) for i in range(400)], "slow", 3)
    dataset = base.Dataset("slow", "train", source, ("a",), 3)
    before = running()

    def kill():
        while not (started := running() - before):
            time.sleep(0.01)
        for pid in list(started)[: 1 if moment == "later" else 2]:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    message = r"a worker process .* ended by SIGKILL; .* memory .* Fewer num_workers"
    with pipeline.eval_batches(dataset, batch_size=4, transform=PLAIN, num_workers=2, num_threads=1) as batches:
        if moment == "later":
            next(batches)
        killer.start()
        start = time.monotonic()
        with pytest.raises(workers.WorkerDied, match=message) as caught:
            list(batches)
        assert time.monotonic() - start < 20
    assert "\n" not in str(caught.value)
    killer.join()
    assert running() <= before
