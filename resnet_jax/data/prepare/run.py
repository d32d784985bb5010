"""Prepares a whole data set: several processes, resumable, visible only when whole."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from resnet_jax.data.prepare import metadata, progress
from resnet_jax.data.prepare.pool import write_shards
from resnet_jax.data.prepare.shards import Report, Shard, plan_shards, remove_temporary, sync, write_json
from resnet_jax.data.prepare.sources import Encoder, Source

ON_ERROR = ("refuse", "skip")
PADDING = 131_072  # bytes: ArrayRecord fills its last block, and puts the index into another


def prepare(
    source: Source,
    data_dir: str,
    *,
    shard_mb: float = 128.0,
    workers: int = 0,
    on_error: str = "refuse",
    decode: bool = False,
    say: Callable[[str], None] = print,
) -> metadata.Summary:
    """Writes `source` to `data_dir`/NAME/VERSION as ArrayRecord with TFDS's metadata.

    Until all is there, it lies in NAME/VERSION.preparing, which TFDS does not see; then one renaming makes it visible.
    Interrupted at any moment, the same call goes on from the shards that are whole, and ends with the same bytes.

    Args:
      source: what to prepare.
      data_dir: a local folder; "" is TFDS's own choice.
      shard_mb: MB of a shard, about.
      workers: processes that write shards; 0: as many as there are cores. More than one are spawned, so a script
        that calls this must do so under `if __name__ == "__main__":`.
      on_error: what to do about an unreadable image: "refuse" or "skip".
      decode: decode each image while preparing, to find the unreadable ones; else only headers are read.
      say: gets lines of progress.

    Raises:
      ValueError: an argument out of range, other data under this name, or another preparation under way.
      UnreadableImage: an image, unless `on_error` is "skip".
      OSError: no space, no permission, another preparer at work.
    """
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r} is not known: use one of {', '.join(map(repr, ON_ERROR))}.")
    if workers < 0:
        raise ValueError(f"workers={workers} must be 0 (as many as there are cores) or more.")
    shards = plan_shards(source, shard_mb)
    plan = metadata.describe(source, shards, shard_mb, on_error, decode)
    final = dataset_folder(data_dir, source.name, source.version)
    work = f"{final}.preparing"
    if os.path.exists(final):
        say(f"{final} is there already: nothing is left to write")
    else:
        os.makedirs(f"{work}.reports", exist_ok=True)
        with _alone(work):
            if not os.path.exists(final):  # another preparer may have been there before
                _same_plan(work, plan)
                encoder = Encoder(source.columns, source.read, source.features, decode)
                reports = _write(work, shards, encoder, on_error == "skip", workers or os.cpu_count() or 1, say)
                metadata.write_metadata(source, shards, reports, plan, work)
                _publish(work, final)
    summary = metadata.summarize(final, plan)
    for rest in (work, f"{work}.reports"):  # killed just here, the next call comes to this line, too
        shutil.rmtree(rest, ignore_errors=True)
    return summary


def dataset_folder(data_dir: str, name: str, version: str) -> str:
    """Where a data set lies.

    Raises:
      ValueError: `data_dir` is not local.
    """
    data_dir = os.path.expanduser(data_dir or str(tfds.core.constants.DATA_DIR))
    if "://" in data_dir:
        raise ValueError(f"data_dir={data_dir} is not local: prepare in a local folder, and copy NAME/VERSION there.")
    return os.path.join(os.path.abspath(data_dir), name, version)


@contextlib.contextmanager
def _alone(work: str) -> Iterator[None]:
    """Holds the lock of a data set, which a killed process lets go."""
    with open(os.path.join(f"{work}.reports", "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process is preparing {work.removesuffix('.preparing')}: wait for it.") from None
        except OSError:  # no locks on this file system: two at once do the work twice, and neither harms the other
            pass
        yield


def _same_plan(work: str, plan: dict[str, Any]) -> None:
    """Notes what is under way; refuses to go on with something else."""
    path = os.path.join(f"{work}.reports", "plan.json")
    if os.path.exists(path):
        with open(path) as file:
            metadata.refuse_other(work, "was begun", json.load(file), plan)
    else:
        write_json(path, plan)


def _write(
    work: str, shards: list[Shard], encoder: Encoder, skip: bool, workers: int, say: Callable[[str], None]
) -> dict[str, Report]:
    """File -> report, of all shards."""
    os.makedirs(work, exist_ok=True)
    remove_temporary(work)
    remove_temporary(f"{work}.reports")
    _check_space(work, shards)
    reports: dict[str, Report] = {}
    with progress.meter(shards, say) as advance:
        for shard, report in write_shards(work, shards, encoder, skip, workers):
            reports[shard.file] = report
            advance(shard)
    return reports


def _publish(work: str, final: str) -> None:
    try:
        os.rename(work, final)
    except OSError:
        if not os.path.exists(final):  # where there are no locks, another preparer may have been first
            raise
    sync(os.path.dirname(final))


def _check_space(work: str, shards: list[Shard]) -> None:
    missing = [shard for shard in shards if not os.path.exists(os.path.join(work, shard.file))]
    needed = sum(shard.size + PADDING for shard in missing)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise OSError(
            f"about {needed / 1e9:.3f} GB are to be written to {work}, but {free / 1e9:.3f} GB are free: "
            "free space, or take another --data-dir."
        )
