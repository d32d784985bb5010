"""What stands beside the shards: TFDS's metadata, and a manifest with the plan and the hash of every file."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import tensorflow_datasets as tfds

from resnet_jax.data.prepare.shards import Report, Shard, sha256, sync, write_json
from resnet_jax.data.prepare.sources import Source

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What has been prepared: where, records of each split, and keys of images that were left out or converted."""

    path: str
    records: dict[str, int]
    skipped: list[str]
    converted: list[str]


def describe(source: Source, shards: list[Shard], shard_mb: float, on_error: str, decode: bool) -> dict[str, Any]:
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
        "shard_mb": float(shard_mb),
        "on_error": on_error,
        "decode": decode,
    }


def refuse_other(folder: str, state: str, found: dict[str, Any], plan: dict[str, Any]) -> None:
    """Raises ValueError where what lies in `folder` was prepared by another plan."""
    differences = [f"{key} {found.get(key)!r}, not {plan[key]!r}" for key in plan if found.get(key) != plan[key]]
    if differences:
        raise ValueError(
            f"{folder} {state} with {'; '.join(differences)}: do the same again, remove {folder}*, or take another "
            "--data-dir."
        )


def write_metadata(
    source: Source, shards: list[Shard], reports: dict[str, Report], plan: dict[str, Any], folder: str
) -> None:
    """TFDS's files, and a manifest of all files, beside the shards in `folder`.

    Raises:
      ValueError: a split without records.
    """
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=source.name, version=tfds.core.Version(source.version), data_dir=folder, module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=source.features, **source.about)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    splits = [
        _split_info(source.name, split, [reports[shard.file] for shard in shards if shard.split == split], folder)
        for split in source.splits
    ]
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(folder)
    others = sorted(set(os.listdir(folder)) - set(reports) - {MANIFEST})
    for name in others:
        sync(os.path.join(folder, name))
    manifest = {
        "plan": plan,
        "files": {name: sha256(os.path.join(folder, name)) for name in others},
        "shards": {shard.file: reports[shard.file]._asdict() for shard in shards},
    }
    write_json(os.path.join(folder, MANIFEST), manifest)
    sync(folder)


def _split_info(name: str, split: str, reports: list[Report], folder: str) -> Any:
    lengths = [report.records for report in reports]
    if not sum(lengths):
        raise ValueError(f"{name}: no image of {split} could be read, so nothing is left of it.")
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=split, filetype_suffix="array_record"
    )
    return tfds.core.SplitInfo(split, lengths, sum(report.bytes for report in reports), template)


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


def summarize(final: str, plan: dict[str, Any]) -> Summary:
    """Of what lies in `final`.

    Raises:
      ValueError: it was prepared by another plan, or by something else.
    """
    if not os.path.exists(os.path.join(final, MANIFEST)):
        raise ValueError(f"{final} is there, and not of our making: remove it, or take another --data-dir.")
    manifest = read_manifest(final)
    refuse_other(final, "is there, prepared", manifest["plan"], plan)
    reports = [Report(**report) for report in manifest["shards"].values()]
    records = dict.fromkeys(plan["images"], 0)
    for file, report in zip(manifest["shards"], reports, strict=True):
        records[file.split(".")[0].rsplit("-", 1)[1]] += report.records
    skipped, converted = (
        [key for report in reports for key in getattr(report, field)] for field in ("skipped", "converted")
    )
    return Summary(final, records, skipped, converted)
