"""ImageNet from ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, as TFDS's imagenet2012."""

import dataclasses
import functools
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from resnet_jax.data.prepare.sources import Entry, Source, stock_source
from resnet_jax.data.sources.archives import read_slice, walk_tar

FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
COUNTS = {"train": 1_281_167, "validation": 50_000}
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
TRAIN_NAME = re.compile(r"(n\d{8})\.tar")
# The wheel of TFDS holds the 1,000 synsets in the order of the labels, and the synset of each validation image by its
# number, which is not in the tar. If they change, labels mean something else.
LABELS = {
    "labels.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
    "validation_labels.txt": "313fc3f23c864dde9183c9a368809065765dd1b657a6904fded44e3e46d34604",
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """Parts of several files."""

    paths: tuple[str, ...]

    def __call__(self, place: tuple[int, int, int]) -> bytes:
        """The bytes at (number of the file, offset, size)."""
        return read_slice(self.paths[place[0]], *place[1:])


def list_ilsvrc(folder: str, allow_subset: bool = False) -> Source:
    """Lists the images in the two tars, which lie in `folder` and stay packed: offsets are all that is kept.

    Args:
      folder: holds the tars under their published names.
      allow_subset: take what is there: fewer images, fewer synsets, one tar. Labels stay those of the 1,000.

    Raises:
      FileNotFoundError: a tar is missing.
      ValueError: a tar that is damaged, the wrong one, or not all of it.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    paths = {split: os.path.join(folder, name) for split, name in FILES.items()}
    found = {split: path for split, path in paths.items() if os.path.exists(path)}
    if not found or (len(found) < len(paths) and not allow_subset):
        missing = " and ".join(FILES[split] for split in paths if split not in found)
        raise FileNotFoundError(
            f"{folder} lacks {missing}: image-net.org gives them to those who register. Give the folder with both "
            "tars, or --allow-subset to prepare what is there."
        )
    splits = {}
    for number, (split, path) in enumerate(found.items()):
        try:
            splits[split] = list(_LIST[split](path, number))
        except tarfile.TarError as error:
            raise ValueError(
                f"{path} is damaged or was cut short ({error}), after {os.path.getsize(path):,} bytes: copy it again."
            ) from error
        if not allow_subset:
            _check_complete(split, path, splits[split])
        elif not splits[split]:
            raise ValueError(f"{path} holds no images.")
    return stock_source("imagenet2012", splits, ("file_name", "label"), Slices(tuple(found.values())))


def _list_train(path: str, number: int) -> Iterator[Entry]:
    """The images of the tars in the tar, one tar for each synset."""
    labels = {name: label for label, name in enumerate(read_labels("labels.txt"))}
    # Two handles: both walks move theirs.
    with open(path, "rb") as outer, open(path, "rb") as inner:
        for name, start, size in walk_tar(outer, os.path.getsize(path)):
            match = TRAIN_NAME.fullmatch(name)
            if not match:
                raise _wrong_archive(path, name, "a tar for each synset, n01440764.tar first")
            if match[1] not in labels:
                raise ValueError(f"{path} holds {name}, but {match[1]} is none of the 1,000 synsets of ILSVRC2012.")
            inner.seek(start)
            try:
                for file, offset, length in walk_tar(inner, start + size):
                    yield Entry(file, (number, offset, length), length, (file, labels[match[1]]))
            except tarfile.TarError as error:
                raise tarfile.ReadError(f"in {name}: {error}") from error


def _list_validation(path: str, number: int) -> Iterator[Entry]:
    """The images of the flat tar; the label is that of the image's number."""
    labels = {name: label for label, name in enumerate(read_labels("labels.txt"))}
    by_number = read_labels("validation_labels.txt")
    with open(path, "rb") as file:
        for name, offset, size in walk_tar(file, os.path.getsize(path)):
            name = name.rsplit("/", 1)[-1]
            match = VALIDATION_NAME.fullmatch(name)
            if not match or not 1 <= int(match[1]) <= len(by_number):
                raise _wrong_archive(path, name, "ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG")
            label = labels[by_number[int(match[1]) - 1]]
            yield Entry(name, (number, offset, size), size, (name, label))


_LIST = {"train": _list_train, "validation": _list_validation}


@functools.cache
def read_labels(file: str) -> tuple[str, ...]:
    """A file of TFDS's that says which synset is which label or which validation image, verified.

    Raises:
      ValueError: it is not what it was.
    """
    data = tfds.core.tfds_path(f"datasets/imagenet2012/{file}").read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != LABELS[file]:
        raise ValueError(
            f"{file} of tensorflow-datasets {tfds.__version__} has the SHA-256 {found}, not {LABELS[file]}: "
            "labels would no longer mean the same. Use version 4.9.10."
        )
    return tuple(data.decode().split())


def _wrong_archive(path: str, name: str, wanted: str) -> ValueError:
    holds = "is the tar of validation images" if VALIDATION_NAME.fullmatch(name) else f"holds {name}"
    holds = "is the tar of training images" if TRAIN_NAME.fullmatch(name) else holds
    return ValueError(f"{path} {holds}, where {wanted} were expected: is it another archive under this name?")


def _check_complete(split: str, path: str, entries: list[Entry]) -> None:
    expected = COUNTS[split]
    if len(entries) == expected:
        return
    message = f"{path} has {len(entries):,} images, but {split} of ILSVRC2012 has {expected:,}"
    present = {entry.values[1] for entry in entries}
    missing = [name for label, name in enumerate(read_labels("labels.txt")) if label not in present]
    if split == "train" and missing:
        listed = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        message += f"; {len(missing)} of 1,000 synsets are missing: {listed}"
    raise ValueError(f"{message}. Copy it again, or give --allow-subset to prepare a part.")
