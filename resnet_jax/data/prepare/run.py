"""Prepares a whole data set: several processes, resumable, visible only when whole."""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow_datasets as tfds

from resnet_jax.data.prepare import progress
from resnet_jax.data.prepare.shards import (
    Report,
    Shard,
    ensure_shard,
    plan_shards,
    remove_temporary,
    sha256,
    sync,
    write_json,
)
from resnet_jax.data.prepare.sources import Encoder, Source

MANIFEST = "manifest.json"
ON_ERROR = ("refuse", "skip")
PADDING = 131_072  # bytes: ArrayRecord fills its last block, and puts the index into another


@dataclasses.dataclass(frozen=True)
class Summary:
    """What has been prepared: where, records of each split, and keys of images that were left out or converted."""

    path: str
    records: dict[str, int]
    skipped: list[str]
    converted: list[str]


def prepare(
    source: Source,
    data_dir: str,
    *,
    shard_mb: float = 128.0,
    workers: int = 0,
    on_error: str = "refuse",
    decode: bool = False,
    say: Callable[[str], None] = print,
) -> Summary:
    """Writes `source` to `data_dir`/NAME/VERSION as ArrayRecord with TFDS's metadata.

    Until all is there, it lies in NAME/VERSION.preparing, which TFDS does not see; then one renaming makes it visible.
    Interrupted at any moment, the same call goes on from the shards that are whole, and ends with the same bytes.

    Args:
      source: what to prepare.
      data_dir: a local folder; "" is TFDS's own choice.
      shard_mb: MB of a shard, about.
      workers: processes that write shards; 0: as many as there are cores.
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
    plan = _describe(source, shards, shard_mb, on_error, decode)
    final = dataset_folder(data_dir, source.name, source.version)
    work = f"{final}.preparing"
    os.makedirs(f"{work}.reports", exist_ok=True)
    with _alone(work):
        if not os.path.exists(final):
            os.makedirs(work, exist_ok=True)
            _same_plan(f"{work}.reports", plan)
            _write_all(source, shards, work, workers or os.cpu_count() or 1, on_error == "skip", decode, say)
            os.rename(work, final)
            sync(os.path.dirname(final))
        summary = _summarize(final, plan)
        shutil.rmtree(f"{work}.reports", ignore_errors=True)  # another preparer may have come to the same end
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


def _describe(source: Source, shards: list[Shard], shard_mb: float, on_error: str, decode: bool) -> dict[str, Any]:
    """All that the result depends on."""
    digest = hashlib.sha256()
    for shard in shards:
        for entry in shard.entries:
            digest.update(repr(tuple(entry)).encode())
    return {
        "name": source.name,
        "version": source.version,
        "images": {split: len(entries) for split, entries in source.splits.items()},
        "source": digest.hexdigest(),
        "shard_mb": shard_mb,
        "on_error": on_error,
        "decode": decode,
    }


@contextlib.contextmanager
def _alone(work: str) -> Iterator[None]:
    """Holds the lock of a data set, which a killed process lets go."""
    with open(os.path.join(f"{work}.reports", "lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process is preparing {work.removesuffix('.preparing')}: wait for it.") from None
        yield


def _same_plan(reports: str, plan: dict[str, Any]) -> None:
    """Notes what is under way; refuses to go on with something else."""
    path = os.path.join(reports, "plan.json")
    if os.path.exists(path):
        with open(path) as file:
            _refuse_other(json.load(file), plan, f"{reports.removesuffix('.reports')} was begun")
    else:
        write_json(path, plan)


def _refuse_other(found: dict[str, Any], plan: dict[str, Any], what: str) -> None:
    differences = [f"{key} {found.get(key)!r}, not {plan[key]!r}" for key in plan if found.get(key) != plan[key]]
    if differences:
        folder = what.split(" ")[0]
        raise ValueError(
            f"{what} with {'; '.join(differences)}: do the same again, remove {folder}*, or take another --data-dir."
        )


def _write_all(
    source: Source, shards: list[Shard], work: str, workers: int, skip: bool, decode: bool, say: Callable[[str], None]
) -> None:
    """All shards, then the metadata of the whole."""
    remove_temporary(work)
    remove_temporary(f"{work}.reports")
    _check_space(work, shards)
    encoder = Encoder(source.columns, source.read, source.features, decode)
    reports: dict[str, Report] = {}
    with progress.meter(source.name, shards, say) as advance:
        for shard, report in _run(work, shards, encoder, skip, min(workers, len(shards))):
            reports[shard.file] = report
            advance(shard)
    _write_metadata(source, shards, reports, work)


def _check_space(work: str, shards: list[Shard]) -> None:
    missing = [shard for shard in shards if not os.path.exists(os.path.join(work, shard.file))]
    needed = sum(shard.size + PADDING for shard in missing)
    free = shutil.disk_usage(work).free
    if needed > free:
        raise OSError(
            f"about {needed / 1e9:.3f} GB are to be written to {work}, but {free / 1e9:.3f} GB are free: "
            "free space, or take another --data-dir."
        )


def _run(work: str, shards: list[Shard], encoder: Encoder, skip: bool, workers: int) -> Iterator[tuple[Shard, Report]]:
    """(shard, its report) as they get done; one worker is this process itself."""
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
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)  # the parent was killed: nobody waits for this work, and the next preparer does it

    threading.Thread(target=follow, daemon=True).start()


def _in_worker(shard: Shard) -> Report:
    work, encoder, skip = _worker
    return ensure_shard(work, shard, encoder, skip)


def _write_metadata(source: Source, shards: list[Shard], reports: dict[str, Report], work: str) -> None:
    """TFDS's files, and a manifest of all files."""
    template = tfds.core.ShardedFileTemplate(data_dir=work, dataset_name=source.name, filetype_suffix="array_record")
    splits = []
    for split in source.splits:
        of_split = [reports[shard.file] for shard in shards if shard.split == split]
        lengths = [report.records for report in of_split]
        if not sum(lengths):
            raise ValueError(f"{source.name}: no image of {split} could be read: nothing is left of it.")
        size = sum(report.bytes for report in of_split)
        splits.append(tfds.core.SplitInfo(split, lengths, size, template.replace(split=split)))
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=source.name, version=tfds.core.Version(source.version), data_dir=work, module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=source.features, **source.about)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(work)
    with open(os.path.join(f"{work}.reports", "plan.json")) as file:
        plan = json.load(file)
    others = sorted(set(os.listdir(work)) - set(reports) - {MANIFEST})
    files = {name: sha256(os.path.join(work, name)) for name in others}
    manifest = {
        "plan": plan,
        "files": files,
        "shards": {shard.file: reports[shard.file]._asdict() for shard in shards},
    }
    for name in others:
        sync(os.path.join(work, name))
    write_json(os.path.join(work, MANIFEST), manifest)
    sync(work)


def read_manifest(folder: str) -> dict[str, Any]:
    """What `prepare` noted of the data set in `folder`.

    Raises:
      FileNotFoundError: it was prepared by something else, or not at all.
    """
    path = os.path.join(folder, MANIFEST)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: `resnet-jax prepare` has prepared nothing there.")
    with open(path) as file:
        manifest: dict[str, Any] = json.load(file)
    return manifest


def _summarize(final: str, plan: dict[str, Any]) -> Summary:
    """Of what lies in `final`; refuses another data set."""
    if not os.path.exists(os.path.join(final, MANIFEST)):
        raise ValueError(f"{final} is there, and not of our making: remove it, or take another --data-dir.")
    manifest = read_manifest(final)
    _refuse_other(manifest["plan"], plan, f"{final} is there, prepared")
    reports = [Report(**report) for report in manifest["shards"].values()]
    records = dict.fromkeys(plan["images"], 0)
    for file, report in zip(manifest["shards"], reports, strict=True):
        records[file.split(".")[0].rsplit("-", 1)[1]] += report.records
    skipped, converted = (
        [key for report in reports for key in getattr(report, field)] for field in ("skipped", "converted")
    )
    return Summary(final, records, skipped, converted)
