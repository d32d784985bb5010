"""An image folder, or a zip or tar of one, as a data set of its own name."""

import re

import tensorflow_datasets as tfds

from resnet_jax.data.prepare.sources import Entry, Source
from resnet_jax.data.sources import folder

SPLITS = {"train": ("train",), "test": ("test",), "validation": ("val", "validation")}
VERSION = "1.0.0"


def list_folder(path: str, name: str) -> Source:
    """Lists PATH/{train,test,val}/CLASS/*.jpg; train and one of the others must be there.

    Labels are places in the sorted list of classes, as for the data set "folder". The features are `image`, `label`
    and `file_name` (CLASS/FILE).

    Raises:
      FileNotFoundError: there is nothing at `path`, or not these folders.
      ValueError: a `name` that TFDS cannot use or has, or a folder that contradicts itself.
    """
    check_name(name)
    archive = folder.open_images(path)
    train = folder.find_split(archive, folder.SPLIT_FOLDERS["train"])
    folder.find_split(archive, folder.SPLIT_FOLDERS["test"])  # raises, where there is neither test nor validation
    splits = {}
    for split, names in SPLITS.items():
        try:
            here = folder.find_split(archive, names)
        except FileNotFoundError:
            continue
        classes = folder.check_same_classes(archive, train, here)
        splits[split] = [
            Entry(file_name := file.removeprefix(here + "/"), file, archive.size(file), (file_name, label))
            for file, label in folder.list_examples(archive, here, classes)
        ]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=classes),
            "file_name": tfds.features.Text(),
        }
    )
    about = {"description": f"Images of {len(classes)} classes.", "supervised_keys": ("image", "label")}
    return Source(name, VERSION, splits, ("file_name", "label"), archive.read, features, about)


def check_name(name: str) -> None:
    """Raises ValueError where `name` cannot name a prepared folder."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"name={name!r} cannot name a data set: use small letters, digits and _, a letter first.")
    try:
        tfds.builder_cls(name)
    except tfds.core.registered.DatasetNotFoundError:
        return
    raise ValueError(f"name={name!r} is a data set of TFDS's own, which would be taken for yours: choose another.")
