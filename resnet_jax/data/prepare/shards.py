"""Which example goes into which shard, and the writing of one shard."""

import glob
import hashlib
import itertools
import json
import math
import os
import secrets
from typing import Any, NamedTuple

from array_record.python import array_record_module
from tensorflow_datasets.core import hashing

from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.prepare.sources import Encoder, Entry, Source

# One record a group, as TFDS writes and random access wants; encoded images do not shrink any more.
WRITER_OPTIONS = "group_size:1,uncompressed"
OVERHEAD = 256  # bytes of a record beside the image, about: names, lengths, checksums, index
CHUNK = 1 << 22  # bytes


class Shard(NamedTuple):
    """One file to be."""

    file: str
    split: str
    entries: list[Entry]

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(entry.size + OVERHEAD for entry in self.entries)


class Report(NamedTuple):
    """What a shard that has been written holds. `skipped` and `converted` hold keys of examples."""

    records: int
    bytes: int
    sha256: str
    skipped: list[str]
    converted: list[str]


def plan_shards(source: Source, shard_mb: float) -> list[Shard]:
    """All shards of all splits, of about `shard_mb` MB each; a pure function of what `source` lists.

    Raises:
      ValueError: two examples have the same key, or a number out of range.
    """
    if not 1e-6 <= shard_mb < math.inf:  # from a byte on
        raise ValueError(f"shard_mb={shard_mb} must be a number of MB, more than 0.")
    shards = []
    for split, entries in source.splits.items():
        entries = sort_as_tfds(split, entries)
        size = Shard("", split, entries).size
        number = min(len(entries), 99_999, math.ceil(size / (shard_mb * 1e6)))
        bounds = [round(len(entries) * i / number) for i in range(number + 1)]
        for i in range(number):
            file = f"{source.name}-{split}.array_record-{i:05d}-of-{number:05d}"
            shards.append(Shard(file, split, entries[bounds[i] : bounds[i + 1]]))
    return shards


def sort_as_tfds(split: str, entries: list[Entry]) -> list[Entry]:
    """Sorted by the hash of split and key: a shuffle that is the same everywhere.

    Raises:
      ValueError: two examples have the same key.
    """
    hasher = hashing.Hasher(split)
    hashed = sorted(((hasher.hash_key(entry.key), entry) for entry in entries), key=lambda pair: pair[0])
    for (left, entry), (right, _) in itertools.pairwise(hashed):
        if left == right:
            raise ValueError(f"{split} has two examples by the name of {entry.key!r}: rename one.")
    return [entry for _, entry in hashed]


def ensure_shard(folder: str, shard: Shard, encoder: Encoder, skip: bool) -> Report:
    """Writes the shard, unless it is there, whole and as its report says.

    The shard is written under a name of its own, forced to disk and renamed, then its report likewise: whatever is
    interrupted, by whatever, a report vouches for a whole shard. Two processes that write the same shard write the
    same bytes, and neither sees the other's file.

    Args:
      folder: gets the shard, and its report in the folder `folder`.reports.
      shard: what to write.
      encoder: makes records of its entries.
      skip: leave out unreadable images, instead of failing.

    Raises:
      UnreadableImage: an image, by its name, unless `skip`.
      OSError: writing failed.
    """
    path = os.path.join(folder, shard.file)
    report_path = os.path.join(f"{folder}.reports", shard.file + ".json")
    if report := _valid_report(path, report_path):
        return report
    temporary = _own_name(path)
    try:
        skipped, converted = _write(temporary, shard, encoder, skip)
        sync(temporary)
        records = len(shard.entries) - len(skipped)
        if (found := count_records(temporary)) != records:
            raise OSError(f"{temporary} reads back {found} records, where {records} were written: is the disk failing?")
        report = Report(records, os.path.getsize(temporary), sha256(temporary), skipped, converted)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    write_json(report_path, report._asdict())
    return report


def _valid_report(path: str, report_path: str) -> Report | None:
    try:
        with open(report_path) as file:
            report = Report(**json.load(file))
        return report if report.sha256 == sha256(path) else None
    except (OSError, ValueError, TypeError):  # not there, or damaged: then the shard is written again
        return None


def _write(path: str, shard: Shard, encoder: Encoder, skip: bool) -> tuple[list[str], list[str]]:
    """Keys of the examples that were left out, and of those that were converted."""
    skipped, converted = [], []
    try:
        writer = array_record_module.ArrayRecordWriter(path, WRITER_OPTIONS)
        try:
            for entry in shard.entries:
                try:
                    record, changed = encoder(entry)
                except UnreadableImage as error:
                    if not skip:
                        raise UnreadableImage(
                            f"{shard.split}/{entry.key}: {error}. Mend or remove it, or give --on-error=skip to leave "
                            "such images out."
                        ) from error
                    skipped.append(str(entry.key))
                    continue
                if changed:
                    converted.append(str(entry.key))
                writer.write(record)
        finally:
            writer.close()
    except RuntimeError as error:  # of ArrayRecord
        raise OSError(f"{error}. Whole shards stand: free space, and the same command goes on from them.") from error
    return skipped, converted


def count_records(path: str) -> int:
    """The number of records in an ArrayRecord file; 0 for a damaged one.

    Raises:
      RuntimeError: not an ArrayRecord file, or a damaged one.
    """
    reader = array_record_module.ArrayRecordReader(path)
    try:
        return int(reader.num_records())
    finally:
        reader.close()


def sha256(path: str) -> str:
    """Of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: str) -> None:
    """Waits until the file is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str, value: Any) -> None:
    """Writes a file of JSON that is there whole or not at all, also after a loss of power."""
    temporary = _own_name(path)
    with open(temporary, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _own_name(path: str) -> str:
    """A name beside `path` that no other process uses, on this host or another."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")


def remove_temporary(folder: str) -> None:
    """Removes what killed processes have left."""
    for path in glob.glob(os.path.join(glob.escape(folder), ".*.tmp")):
        os.remove(path)
