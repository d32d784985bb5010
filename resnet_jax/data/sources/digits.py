"""Scikit-learn's handwritten digits as a TFDS data set: 1,797 real images that need no download.

They are the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (doi.org/10.24432/C50P49, CC BY 4.0), which scikit-learn's wheel holds.
"""

import importlib.util
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_jax.data.sources.base import Dataset
from resnet_jax.data.sources.records import from_builder


def load_splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (uint8 images [n, 8, 8], labels [n]): 1,437 to train on, 360 to test on, classes in equal shares.

    Sorted by class, and within a class as they are in the file, every fifth digit is a test digit. No random numbers:
    the split cannot change with a library.
    """
    package = importlib.util.find_spec("sklearn")  # its file alone: to import it takes seconds
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the digits are in scikit-learn's wheel: pip install scikit-learn", name="sklearn")
    table = np.loadtxt(pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
    labels = table[:, -1].astype(int)
    by_class = np.argsort(labels, kind="stable")
    test = by_class[::5]
    train = np.setdiff1d(by_class, test)
    return {name: (images[rows], labels[rows]) for name, rows in (("train", train), ("test", np.sort(test)))}


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """8x8 grey images of the digits 0 to 9."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="8x8 grey images of handwritten digits, values 0..16 scaled to 0..255.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {name: self._generate_examples(*arrays) for name, arrays in load_splits().items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": _png(image), "label": int(label)}


def open_digits(split: str, data_dir: str = "") -> Dataset:
    """Opens the digits; prepares them in `data_dir` (TFDS's own, if "") if they are not there."""
    return from_builder(prepare_digits(data_dir), "digits", split)


def prepare_digits(data_dir: str = "") -> Any:
    """The TFDS builder of the digits, prepared as ArrayRecord; any number of processes may ask for it at once.

    TFDS writes into a folder of a name of its own and renames it when it is whole. A process that was killed leaves
    nothing under the final name, and of two at once the second finds the name taken, by the same bytes.

    Raises:
      OSError: `data_dir` cannot be written.
      ValueError: what lies in `data_dir` under this name is something else.
    """
    folder = os.path.expanduser(data_dir) or None
    builder = SklearnDigits(data_dir=folder, file_format="array_record")
    tfds.disable_progress_bar()  # it takes two seconds
    try:
        builder.download_and_prepare()
    except Exception:
        if not builder.data_path.exists():
            raise
        builder = SklearnDigits(data_dir=folder, file_format="array_record")
    if set(builder.info.splits) != {"train", "test"}:
        raise ValueError(
            f"{builder.data_path} has the splits {sorted(builder.info.splits)}, not 'train' and 'test': "
            "something else wrote there. Remove it, and it is prepared again."
        )
    return builder


def _png(image: np.ndarray) -> bytes:
    # An array would be encoded by TensorFlow; bytes are taken as they are.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
