"""A folder of images, or a zip of one: PATH/{train,test}/CLASS/*.jpg. The folder's name is the class."""

import collections
import dataclasses
import functools
import logging
import os
import threading
import zipfile
import zlib
from typing import Any, Protocol

from resnet_jax.data.datasets import Dataset
from resnet_jax.data.images import UnreadableImage

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # in any letter case
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val", "validation")}  # the first that is there
LAYOUT = "PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg"


class Archive(Protocol):
    """A tree of files; names are relative and separated by '/', '' is the top."""

    @property
    def path(self) -> str: ...

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files right inside `folder`, in any order."""

    def read(self, name: str) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files in a folder on disk."""

    path: str

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        folders: list[str] = []
        files: list[str] = []
        with os.scandir(os.path.join(self.path, folder)) as entries:
            for entry in entries:
                (folders if entry.is_dir() else files).append(entry.name)
        return folders, files

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()


class Zip:
    """Files in a zip. One handle in each process, opened when first needed; only the path is pickled.

    Threads share the handle: `zipfile` locks each seek with its read, and inflating lets other threads run.
    """

    def __init__(self, path: str):
        self.path = path
        self._lock = threading.Lock()
        self._handle: tuple[int, zipfile.ZipFile] | None = None

    def __reduce__(self) -> tuple[type["Zip"], tuple[str]]:
        return Zip, (self.path,)

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            # After a fork the handle would share its file offset with the parent's, outside any lock.
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), zipfile.ZipFile(self.path)
            return self._handle[1]

    @functools.cached_property
    def _tree(self) -> dict[str, tuple[set[str], set[str]]]:
        tree: dict[str, tuple[set[str], set[str]]] = collections.defaultdict(lambda: (set(), set()))
        for name in self._zip().namelist():
            *folders, file = name.split("/")
            for depth, folder in enumerate(folders):
                tree["/".join(folders[:depth])][0].add(folder)
            if file:
                tree["/".join(folders)][1].add(file)
        return tree

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._tree.get(folder, ((), ()))
        return list(folders), list(files)

    def read(self, name: str) -> bytes:
        return self._zip().read(name)


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
        # RuntimeError: an encrypted member; the others: a damaged one.
        except (OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImage(f"reading failed ({error})") from error

    def origin(self, index: int) -> str:
        return f"{self.archive.path}/{self.examples[index][0]}"


def open_folder(path: str, split: str) -> Dataset:
    """Opens one split of an image folder or of a zip of one; everything may lie in one enclosing folder.

    The test split is the folder `test`, or else `val` or `validation`. Classes are the sorted names of the folders and
    must be the same in both splits. Hidden files and files that are no images are left out.

    Raises:
      FileNotFoundError: there is nothing at `path`, or the split is not in it.
      ValueError: neither folder nor zip, a damaged zip, classes that differ, a class or split without images.
    """
    archive = _open_archive(path)
    top = _find_top(archive)
    here, there = (_split_folder(archive, top, name) for name in (split, "test" if split == "train" else "train"))
    classes = _check_same_classes(archive, here, there)
    examples = []
    for label, name in enumerate(classes):
        examples += [(file, label) for file in _images(archive, f"{here}/{name}")]
    return Dataset("folder", split, FolderSource(archive, tuple(examples)), tuple(classes), channels=3)


def _open_archive(path: str) -> Archive:
    if not path:
        raise ValueError(f"the data set 'folder' needs a path: of a folder, or of a zip of one, with {LAYOUT}.")
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} does not exist: give the path of a folder, or of a zip of one, with {LAYOUT}.")
    if os.path.isdir(path):
        return Folder(path)
    archive = Zip(path)
    try:
        archive.children("")
    except zipfile.BadZipFile as error:
        cause = "looks like a zip that was cut short" if _starts_as_zip(path) else "is neither a folder nor a zip"
        raise ValueError(
            f"{path} {cause} ({error}): copy it again, or give a folder or a zip with {LAYOUT}."
        ) from error
    return archive


def _starts_as_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _folders(archive: Archive, folder: str) -> list[str]:
    return sorted(name for name in archive.children(folder)[0] if not name.startswith((".", "__MACOSX")))


def _find_top(archive: Archive) -> str:
    """The folder with the splits in it: '' or, where all lies in one enclosing folder, that one with a '/'."""
    folders = _folders(archive, "")
    if len(folders) == 1 and folders[0] not in sum(SPLIT_FOLDERS.values(), ()):
        return folders[0] + "/"
    return ""


def _split_folder(archive: Archive, top: str, split: str) -> str:
    folders = _folders(archive, top.removesuffix("/"))
    for name in SPLIT_FOLDERS[split]:
        if name in folders:
            return top + name
    wanted = " or ".join(f"{name}/" for name in SPLIT_FOLDERS[split])
    found = ", ".join(f"{name}/" for name in folders[:8]) or "no folders"
    raise FileNotFoundError(f"{archive.path}/{top} has no {wanted}; it has {found}. The layout is {LAYOUT}.")


def _check_same_classes(archive: Archive, here: str, there: str) -> list[str]:
    """The classes of both splits, sorted."""
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
