"""A folder of images, or a zip or tar of one: PATH/{train,test}/CLASS/*.jpg. The folder's name is the class."""

import dataclasses
import logging
from typing import Any

from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources.archives import DAMAGE, Archive, open_archive
from resnet_jax.data.sources.base import Dataset

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # in any letter case
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}  # the first that is there
LAYOUT = "PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg"


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Encoded images of one split. `examples` holds (file name, label) in the order of class, then file name."""

    archive: Archive
    examples: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, label = self.examples[index]
        try:
            return {"image": self.archive.read(name), "label": label}
        except DAMAGE as error:
            raise UnreadableImage(f"reading failed ({error})") from error

    def origin(self, index: int) -> str:
        return f"{self.archive.path}/{self.examples[index][0]}"


def open_folder(path: str, split: str) -> Dataset:
    """Opens one split of an image folder or of a zip or tar of one; everything may lie in one enclosing folder.

    The test split is the folder `test`, or else `val` or `validation`. Classes are the sorted names of the folders and
    must be the same in both splits. Hidden files and files that are no images are left out; images in folders of their
    own inside a class are refused.

    Raises:
      FileNotFoundError: there is nothing at `path`, or the split is not in it.
      ValueError: neither folder nor zip nor tar, a damaged or compressed one, classes that differ, a class or split
        without images.
    """
    archive = open_images(path)
    here, there = (
        find_split(archive, SPLIT_FOLDERS[name]) for name in (split, "test" if split == "train" else "train")
    )
    classes = check_same_classes(archive, here, there)
    source = FolderSource(archive, tuple(list_examples(archive, here, classes)))
    return Dataset("folder", split, source, tuple(classes), channels=3)


def open_images(path: str) -> Archive:
    """The folder, zip or tar; raises as `open_folder`."""
    if not path:
        raise ValueError(f"the data set 'folder' needs a path: of a folder, or of a zip or tar of one, with {LAYOUT}.")
    return open_archive(path, LAYOUT)


def list_examples(archive: Archive, split_folder: str, classes: list[str]) -> list[tuple[str, int]]:
    """(file name, label) of each image of one split, in the order of class, then file name."""
    return [(file, i) for i, name in enumerate(classes) for file in _images(archive, f"{split_folder}/{name}")]


def _folders(archive: Archive, folder: str) -> list[str]:
    return sorted(name for name in archive.children(folder)[0] if not name.startswith((".", "__MACOSX")))


def _find_top(archive: Archive) -> str:
    """The folder with the splits in it: '' or, where all lies in one enclosing folder, that one with a '/'."""
    folders = _folders(archive, "")
    if len(folders) == 1 and folders[0] not in sum(SPLIT_FOLDERS.values(), ()):
        return folders[0] + "/"
    return ""


def find_split(archive: Archive, names: tuple[str, ...]) -> str:
    """The path of the first of the folders `names` that is there.

    Raises:
      FileNotFoundError: none is.
    """
    top = _find_top(archive)
    folders = _folders(archive, top.removesuffix("/"))
    for name in names:
        if name in folders:
            return top + name
    wanted = " or ".join(f"{name}/" for name in names)
    found = ", ".join(f"{name}/" for name in folders[:8]) or "no folders"
    raise FileNotFoundError(f"{archive.path}/{top} has no {wanted}; it has {found}. The layout is {LAYOUT}.")


def check_same_classes(archive: Archive, here: str, there: str) -> list[str]:
    """The classes of both splits, sorted.

    Raises:
      ValueError: there are none, or not the same in both.
    """
    classes, others = _folders(archive, here), _folders(archive, there)
    if not classes:
        raise ValueError(f"{archive.path}/{here} is empty: it needs a folder of images for each class.")
    if classes != others:
        differences = [
            f"{only}/ alone has {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
            for only, names in (
                (here, sorted(set(classes) - set(others))),
                (there, sorted(set(others) - set(classes))),
            )
            if names
        ]
        raise ValueError(
            f"{archive.path}: the two splits have different classes: {'; '.join(differences)}. "
            "A label is a place in the sorted list of classes, so both must have the same folders."
        )
    return classes


def _images(archive: Archive, folder: str) -> list[str]:
    """The image files of one class, sorted: the order must not depend on the file system."""
    for inner in _folders(archive, folder):
        if any(name.lower().endswith(EXTENSIONS) for name in archive.children(f"{folder}/{inner}")[1]):
            raise ValueError(
                f"{archive.path}/{folder}/{inner} has images, but those of a class lie in the class's folder itself: "
                f"move them up, or remove {inner}/."
            )
    files = sorted(name for name in archive.children(folder)[1] if not name.startswith("."))
    images = [name for name in files if name.lower().endswith(EXTENSIONS)]
    if not images:
        raise ValueError(
            f"{archive.path}/{folder} has no images: remove the folder from both splits, or put files into it "
            f"({', '.join(EXTENSIONS)})."
        )
    if len(images) < len(files):
        others = sorted(set(files) - set(images))
        logger.info(
            "%s/%s: %d files are no images and are left out, %s first", archive.path, folder, len(others), others[0]
        )
    return [f"{folder}/{name}" for name in images]
