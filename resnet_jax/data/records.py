"""Data sets that TFDS has prepared as ArrayRecord files, read without TensorFlow."""

import dataclasses
import os
from typing import Any

import tensorflow_datasets as tfds

from resnet_jax.data.datasets import Dataset
from resnet_jax.data.images import UnreadableImage

SPLIT_NAMES = {"train": ("train",), "test": ("test", "validation")}


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Encoded images of one split; TFDS's data source opens its files where it is used, and is picklable."""

    name: str  # NAME/SPLIT, for messages
    records: Any  # tfds.core.data_sources.ArrayRecordDataSource

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            example = self.records[index]
        except Exception as error:  # of ArrayRecord or protobuf: a damaged file
            raise UnreadableImage(f"reading failed ({error})") from error
        return {"image": example["image"], "label": int(example["label"])}

    def origin(self, index: int) -> str:
        return f"{self.name}, record {index}"


def open_tfds(name: str, split: str, data_dir: str) -> Dataset:
    """Opens NAME, NAME/CONFIG or NAME:VERSION from `data_dir`; it must have been prepared before.

    Raises:
      FileNotFoundError: it is not prepared, or not as ArrayRecord.
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
            f"TFDS data set {name!r} is not prepared as ArrayRecord in {where}. Once, where TensorFlow is installed: "
            f"tfds.builder({name!r}, data_dir=..., file_format='array_record').download_and_prepare()"
        )
    return from_builder(builder, name, split)


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
        records = builder.as_data_source(split_name, decoders={"image": tfds.decode.SkipDecoding()})
        source = RecordSource(f"{name}/{split_name}", records)
        if source[0]["label"] >= 0:
            return Dataset(name, split, source, class_names, channels)
    raise ValueError(
        f"TFDS data set {name!r} has the splits {sorted(builder.info.splits)}, but none of {SPLIT_NAMES[split]} "
        "with examples and labels."
    )
