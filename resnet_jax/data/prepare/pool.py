"""Writes shards with several processes."""

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Iterator
from typing import Any

from resnet_jax import processes
from resnet_jax.data.prepare.shards import Report, Shard, ensure_shard
from resnet_jax.data.prepare.sources import Encoder


def write_shards(
    work: str, shards: list[Shard], encoder: Encoder, skip: bool, workers: int
) -> Iterator[tuple[Shard, Report]]:
    """Writes all shards that are not there, and verifies the others.

    Args:
      work: the folder for the shards.
      shards: what to write.
      encoder: makes records; goes to the worker processes.
      skip: leave out unreadable images.
      workers: processes; 1 is this one.

    Yields:
      A shard and its report, as they get done.

    Raises:
      UnreadableImage, OSError: as `ensure_shard`, or a process died.
    """
    workers = min(workers, len(shards))
    if workers == 1:
        yield from ((shard, ensure_shard(work, shard, encoder, skip)) for shard in shards)
        return
    # Spawned, as a fork of a process with threads (JAX has them) may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (work, encoder, skip)) as pool:
        waiting = {pool.submit(_in_worker, shard): shard for shard in shards}
        try:
            for future in concurrent.futures.as_completed(waiting):
                yield waiting[future], future.result()
        except concurrent.futures.BrokenExecutor as error:
            raise OSError(
                f"a worker process died ({error}), for want of memory or killed. Whole shards stand: the same command "
                "goes on from them; give fewer --workers if memory is short."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: list[Any] = []  # work, encoder, skip: set once in each worker process


def _start_worker(*arguments: Any) -> None:
    _worker[:] = arguments
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it, too, and lets shards in work get done
    processes.end_with_parent()  # were that killed, nobody would wait for this work: the next preparer does it


def _in_worker(shard: Shard) -> Report:
    work, encoder, skip = _worker
    return ensure_shard(work, shard, encoder, skip)
