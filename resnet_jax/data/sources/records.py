"""Data sets that TFDS has prepared as ArrayRecord files, read without TensorFlow."""

import bisect
import copy
import dataclasses
import errno
import itertools
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

import tensorflow_datasets as tfds

from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources.base import STOCK, Dataset

SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation")}
OTHER_FILES = 1024  # that a process may want to open beside shards: what most systems allow in all


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Encoded images of one split; TFDS's data source opens its files where it is used, and is picklable."""

    name: str  # NAME/SPLIT, for messages
    records: Any  # tfds.core.data_sources.ArrayRecordDataSource
    shards: tuple[tuple[str, int], ...] = ()  # (file name, number of records), for messages

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.records[index]
            # Of a shard that was cut short, ArrayRecord reads records of no bytes, and TFDS makes None of them.
            return {"image": example["image"], "label": int(example["label"])}
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of ArrayRecord or protobuf: a damaged file
            if code := _refused(str(error)):
                self._open_anew()
                raise OSError(code, os.strerror(code), self._place(index)) from error
            raise UnreadableImage(f"reading failed ({self._place(index)}: {error})") from error

    def _open_anew(self) -> None:
        """A reader that could not open its shard never can: the next call has others. Threads keep those they use."""
        records = copy.copy(self.records)
        records.data_source = copy.copy(records.data_source)  # as if pickled: without what is open
        object.__setattr__(self, "records", records)

    def origin(self, index: int) -> str:
        return f"{self.name}, record {index}"

    def _place(self, index: int) -> str:
        """The shard of record `index`, and the record's number in it, from 0."""
        ends = list(itertools.accumulate(length for _, length in self.shards))
        shard = bisect.bisect_right(ends, index)
        if shard == len(ends):
            return f"record {index}"
        file, length = self.shards[shard]
        return f"record {index - ends[shard] + length} of {file}"


def _refused(message: str) -> int | None:
    """The error of the operating system that ArrayRecord reports, if it is one: it has no class for them."""
    codes = sorted(errno.errorcode, key=lambda code: -len(os.strerror(code)))
    return next((code for code in codes if f": {os.strerror(code)}" in message), None)


def open_tfds(name: str, split: str, data_dir: str) -> Dataset:
    """Opens NAME, NAME/CONFIG or NAME:VERSION from `data_dir`; it must have been prepared before.

    Raises:
      FileNotFoundError: it is not prepared, or not as ArrayRecord, or shards are missing.
      ValueError: it is no image classification, or has no such split.
    """
    try:
        builder = tfds.builder(name, data_dir=os.path.expanduser(data_dir) or None)
        prepared = builder.data_path.exists()
    except (tfds.core.registered.DatasetNotFoundError, AssertionError):  # unknown to TFDS, or in that version
        prepared = False
    if not prepared or builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        where = data_dir or tfds.core.constants.DATA_DIR
        raise FileNotFoundError(
            f"TFDS data set {name!r} is not prepared as ArrayRecord in {where}: give the data_dir where it is. "
            f"To prepare it, once: {_how_to_prepare(name)}"
        )
    return from_builder(builder, name, split)


def _how_to_prepare(name: str) -> str:
    base = name.split(":")[0].split("/")[0]
    if base in STOCK:
        return f"`resnet-jax prepare {base} --source=PATH --data-dir=...`"
    try:
        tfds.builder_cls(base)
    except tfds.core.registered.DatasetNotFoundError:
        return f"`resnet-jax prepare folder --name={base} --source=PATH --data-dir=...`, of an image folder of yours"
    return (
        f"tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare(), where TensorFlow is "
        "installed"
    )


def from_builder(builder: Any, name: str, split: str) -> Dataset:
    """One split of a prepared builder; a test split without labels (-1, as ImageNet's) gives way to validation."""
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(f"TFDS data set {name!r} has {sorted(features)}, but an 'image' and a 'label' are needed.")
    channels = 1 if features["image"].shape[-1] == 1 else 3
    class_names = tuple(features["label"].names)
    for split_name in SPLIT_NAMES[split]:
        if split_name not in builder.info.splits or not builder.info.splits[split_name].num_examples:
            continue
        shards = _find_shards(builder, split_name)
        _allow_open(str(builder.data_path / file) for file, _ in shards)
        records = builder.as_data_source(split_name, decoders={"image": tfds.decode.SkipDecoding()})
        source = RecordSource(f"{name}/{split_name}", records, shards)
        if source[0]["label"] >= 0:
            return Dataset(name, split, source, class_names, channels)
    raise ValueError(
        f"TFDS data set {name!r} has the splits {sorted(builder.info.splits)}, but none of {SPLIT_NAMES[split]} "
        "with examples and labels."
    )


_shards: set[str] = set()  # that this process may read


def _allow_open(shards: Iterable[str]) -> None:
    """Lets this process, and those that it starts, open all shards at once: ArrayRecord keeps open what it has read.

    Raises:
      ValueError: the system forbids it.
    """
    _shards.update(shards)
    soft, hard = (_number(limit) for limit in resource.getrlimit(resource.RLIMIT_NOFILE))
    if hard <= len(_shards):
        raise ValueError(
            f"{len(_shards)} shards stay open while they are read, but this process may open no more than {hard} "
            "files: raise the hard limit (ulimit -Hn), or prepare the data with larger shards (--shard-mb)."
        )
    wanted = min(len(_shards) + OTHER_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _number(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _find_shards(builder: Any, split_name: str) -> tuple[tuple[str, int], ...]:
    """(file name, number of records) of each shard; all must be there, or reading would fail in the middle of a run.

    Raises:
      FileNotFoundError: some are not.
    """
    info = builder.info.splits[split_name]
    names = [path.name for path in info.filepaths]
    there = {path.name for path in builder.data_path.iterdir()}  # one look, also at an object store
    if missing := [name for name in names if name not in there]:
        listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise FileNotFoundError(
            f"{builder.data_path} lacks {len(missing)} of the {len(names)} shards of {split_name}: {listed}. "
            "Copy them again, or prepare the data set anew."
        )
    return tuple(zip(names, info.shard_lengths, strict=True))
