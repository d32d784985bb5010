"""CIFAR-10 and CIFAR-100 from the published archives, the Python or the binary ones, as TFDS's cifar10 and cifar100."""

import io
import os
import tarfile
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data.prepare import pickled
from resnet_jax.data.prepare.sources import Entry, Source, stock_source

PIXELS = 3 * 32 * 32  # bytes: the red plane, then green, then blue, each row by row
COUNTS = {"train": 50_000, "test": 10_000}
# Data set -> folder and files of the binary and of the Python archive; label features in the order of the binary's
# bytes, their names in the pickles, and the lists of class names.
LAYOUTS: dict[str, dict[str, Any]] = {
    "cifar10": {
        "bin": ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
        "py": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]),
        "labels": {"label": b"labels"},
        "names": {"label": ("batches.meta.txt", "batches.meta", b"label_names")},
    },
    "cifar100": {
        "bin": ("cifar-100-binary", ["train.bin"], ["test.bin"]),
        "py": ("cifar-100-python", ["train"], ["test"]),
        "labels": {"coarse_label": b"coarse_labels", "label": b"fine_labels"},
        "names": {
            "coarse_label": ("coarse_label_names.txt", "meta", b"coarse_label_names"),
            "label": ("fine_label_names.txt", "meta", b"fine_label_names"),
        },
    },
}
NUM_CLASSES = {("cifar10", "label"): 10, ("cifar100", "label"): 100, ("cifar100", "coarse_label"): 20}


def list_cifar(name: str, path: str, allow_subset: bool = False) -> Source:
    """Lists the images of cifar-10-python.tar.gz, cifar-10-binary.tar.gz or their CIFAR-100 twins.

    Args:
      name: "cifar10" or "cifar100".
      path: of the archive. No code of a pickle is run, see `pickled`.
      allow_subset: take fewer images than 50,000 and 10,000.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: a damaged archive, another one, or not all of it.
    """
    path = os.path.abspath(os.path.expanduser(path))
    files = _unpack(path)
    labels = LAYOUTS[name]["labels"]
    kind, folder = _kind(path, files, name)
    read = {"bin": _read_binary, "py": _read_python}[kind]
    splits = {}
    for split, part in zip(COUNTS, LAYOUTS[name][kind][1:], strict=True):
        tables = [read(f"{path}: {folder}/{file}", _member(path, files, f"{folder}/{file}"), labels) for file in part]
        splits[split] = _entries(split, tables)
        if len(splits[split]) != COUNTS[split] and not allow_subset:
            raise ValueError(
                f"{path} has {len(splits[split]):,} images to {split} with, but {name} has {COUNTS[split]:,}: "
                "copy it again, or give --allow-subset to prepare a part."
            )
    names = {feature: _names(path, files, folder, kind, where) for feature, where in LAYOUTS[name]["names"].items()}
    for column, feature in enumerate(labels):
        _check_labels(path, splits, column, names[feature], f"{name}'s {feature}", NUM_CLASSES[name, feature])
    return stock_source(name, splits, (*labels, "id"), to_png, names)


def _kind(path: str, files: dict[str, bytes], name: str) -> tuple[str, str]:
    """Which of the two archives it is, "bin" or "py", and the folder in it."""
    folders = {kind: LAYOUTS[name][kind][0] for kind in ("bin", "py")}
    for kind, folder in folders.items():
        if any(file.startswith(folder + "/") for file in files):
            return kind, folder
    wanted = " or ".join(f"{folder}/" for folder in folders.values())
    found = ", ".join(sorted({file.split("/")[0] for file in files})) or "nothing"
    raise ValueError(f"{path} has no {wanted}, but {found}: is it another archive than {name}'s?")


def _member(path: str, files: dict[str, bytes], file: str) -> bytes:
    if file not in files:
        raise ValueError(f"{path} lacks {file}: copy it again.")
    return files[file]


def to_png(pixels: bytes) -> bytes:
    """PNG of an image that is stored as three planes, as TFDS stores it."""
    planes = np.frombuffer(pixels, np.uint8).reshape(3, 32, 32)
    buffer = io.BytesIO()
    Image.fromarray(planes.transpose(1, 2, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def _unpack(path: str) -> dict[str, bytes]:
    """Name -> bytes of all files: 186 MB in memory, nothing on disk."""
    try:
        with tarfile.open(path, "r:*") as tar:
            return {
                member.name.removeprefix("./"): file.read()
                for member in tar
                if member.isreg() and (file := tar.extractfile(member))
            }
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: give the path of the archive, as it was published.") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give the path of the archive itself, as it was published.") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} is no tar, or damaged, or was cut short ({error}): copy it again.") from error


Table = tuple[np.ndarray, np.ndarray]  # labels [n, label features], pixels [n, PIXELS], both uint8


def _read_binary(where: str, data: bytes, labels: dict[str, bytes]) -> Table:
    """Rows of one byte for each label and then the pixels."""
    width = len(labels) + PIXELS
    if len(data) % width:
        raise ValueError(f"{where} has {len(data):,} bytes, no multiple of {width}: copy the archive again.")
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)
    return rows[:, : len(labels)], rows[:, len(labels) :]


def _read_python(where: str, data: bytes, labels: dict[str, bytes]) -> Table:
    """A pickled dict of an array and lists."""
    batch = pickled.load(where, data)
    try:
        pixels = batch[b"data"].uint8().reshape(-1, PIXELS)
        columns = np.array([batch[name] for name in labels.values()], np.uint8).T
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{where} is not as published ({type(error).__name__}: {error}): copy the archive again."
        ) from error
    if len(columns) != len(pixels):
        raise ValueError(f"{where} has {len(columns)} labels for {len(pixels)} images: copy the archive again.")
    return columns, pixels


def _entries(split: str, tables: list[Table]) -> list[Entry]:
    """Numbered through all files of a split, as TFDS numbers them."""
    rows = ((row, pixels) for labels, images in tables for row, pixels in zip(labels, images, strict=True))
    return [
        Entry(i, pixels.tobytes(), PIXELS, (*map(int, labels), f"{split}_{i:05d}"))
        for i, (labels, pixels) in enumerate(rows)
    ]


def _names(path: str, files: dict[str, bytes], folder: str, kind: str, where: tuple[str, str, bytes]) -> list[str]:
    """The class names of one label feature."""
    text, meta, key = where
    file = f"{folder}/{text if kind == 'bin' else meta}"
    data = _member(path, files, file)
    if kind == "bin":
        return data.decode().split()
    names = pickled.load(f"{path}: {file}", data).get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        raise ValueError(f"{path}: {file} is not as published (no list of names under {key!r}): copy it again.")
    return [name if isinstance(name, str) else name.decode() for name in names]


def _check_labels(
    path: str, splits: dict[str, list[Entry]], column: int, names: list[str], what: str, expected: int
) -> None:
    largest = max((entry.values[column] for entries in splits.values() for entry in entries), default=-1)
    if len(names) != expected or not 0 <= largest < expected:
        raise ValueError(
            f"{path}: of {what} there are {len(names)} names, and numbers up to {largest}, where {expected} classes "
            "were expected: is it another archive?"
        )
