"""Trees of files, wherever they lie: in a folder on disk, in a zip, in a tar."""

import collections
import dataclasses
import errno
import functools
import os
import posixpath
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Protocol


class Gone(FileNotFoundError):
    """A file is not there any more, but its folder is: no disk was lost."""


# What `read` raises of a file that is damaged or gone. RuntimeError: an encrypted member of a zip; the last two: a
# damaged one.
DAMAGE = (Gone, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
READ_ERRORS = (OSError, *DAMAGE)

Tree = dict[str, tuple[set[str], set[str]]]


class Archive(Protocol):
    """A tree of files; names are relative and separated by '/', '' is the top. Pickled to reach worker processes."""

    @property
    def path(self) -> str: ...

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the folders and of the files right inside `folder`, in any order."""

    def read(self, name: str) -> bytes:
        """The whole file; any number of threads may read at once.

        Raises:
          one of `DAMAGE`: it is damaged or gone.
          OSError: the disk, or the operating system.
        """

    def size(self, name: str) -> int:
        """Bytes of the file."""


def open_archive(path: str, layout: str) -> Archive:
    """Opens a folder, a zip or a tar; `layout` says in messages what ought to be in it.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: it is none of the three, damaged, or a compressed tar.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path} does not exist: give the path of a folder, or of a zip or tar of one, with {layout}."
        )
    if os.path.isdir(path):
        return Folder(path)
    kind = _kind(path)
    if kind == "compressed tar":
        raise ValueError(
            f"{path} is a compressed tar, in which no file can be found without unpacking all before it: "
            "unpack it, or decompress it to a plain .tar (gunzip, unxz, ...)."
        )
    try:
        return open_tar(path) if kind == "tar" else Zip(path).opened()
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        cause = f"looks like a {kind} that was cut short" if kind else "is neither a folder nor a zip nor a tar"
        raise ValueError(f"{path} {cause} ({error}): copy it again, or give one with {layout}.") from error


def _kind(path: str) -> str:
    with open(path, "rb") as file:
        start = file.read(512)
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if start[257:262] == b"ustar" or (path.endswith(".tar") and len(start) == 512):
        return "tar"
    if start.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "compressed tar"
    return ""


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
        path = os.path.join(self.path, name)
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError as error:
            if os.path.isdir(os.path.dirname(path)):
                raise Gone(*error.args, path) from error
            raise

    def size(self, name: str) -> int:
        return os.path.getsize(os.path.join(self.path, name))


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

    def opened(self) -> "Zip":
        """Itself, once its list of contents has been read."""
        self._zip()
        return self

    def _zip(self) -> zipfile.ZipFile:
        with self._lock:
            # After a fork the handle would share its file offset with the parent's, outside any lock.
            if self._handle is None or self._handle[0] != os.getpid():
                self._handle = os.getpid(), zipfile.ZipFile(self.path)
            return self._handle[1]

    @functools.cached_property
    def _tree(self) -> Tree:
        return _grow(self._zip().namelist())

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._tree.get(folder, ((), ()))
        return list(folders), list(files)

    def read(self, name: str) -> bytes:
        try:
            archive = self._zip()
        except zipfile.BadZipFile as error:  # it was whole when it was opened first: that is no fault of one member
            raise OSError(errno.EIO, f"no longer a whole zip: {error}", self.path) from error
        try:
            return archive.read(name)
        except OSError:
            with self._lock:
                self._handle = None  # it may be stale, as after a network disk came back
            raise

    def size(self, name: str) -> int:
        return self._zip().getinfo(name).file_size


@dataclasses.dataclass(frozen=True)
class Tar:
    """Files in an uncompressed tar; `members` holds name -> (offset, bytes) and is pickled with it."""

    path: str
    members: Mapping[str, tuple[int, int]] = dataclasses.field(repr=False)

    def __reduce__(self) -> tuple[type["Tar"], tuple[Any, ...]]:
        return Tar, (self.path, self.members)  # without the tree

    @functools.cached_property
    def _tree(self) -> Tree:
        return _grow(self.members)

    def children(self, folder: str) -> tuple[list[str], list[str]]:
        folders, files = self._tree.get(folder, ((), ()))
        return list(folders), list(files)

    def read(self, name: str) -> bytes:
        return read_slice(self.path, *self.members[name])

    def size(self, name: str) -> int:
        return self.members[name][1]


def open_tar(path: str) -> Tar:
    """Lists the files of a tar, those that are links to others of it too: tar stores a file of two names as one.

    Raises:
      tarfile.TarError: no tar, or cut short.
      ValueError: a link to what is no file of the tar.
    """
    links: dict[str, str] = {}
    with open(path, "rb") as file:
        walk = walk_tar(file, os.path.getsize(path), links)
        members = {name: (offset, size) for name, offset, size in walk}
    for link, target in links.items():
        followed = {link}
        while target in links and target not in followed:  # a link may lead to a link, or in a circle
            followed.add(target)
            target = links[target]
        if target not in members:
            raise ValueError(
                f"{path} holds the link {link} -> {links[link]}, which is no file in it: make it anew with "
                "tar --dereference, or without the link."
            )
        members[link] = members[target]
    return Tar(path, members)


def walk_tar(file: BinaryIO, end: int, links: dict[str, str] | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, offset in `file`, bytes) of each regular file in the tar that starts where `file` stands.

    A tar in a tar is walked in place: offsets stay those of the outer file.

    Args:
      file: seekable, without compression.
      end: the offset at which the tar must be over.
      links: gets the name of each link, and of the file that it leads to.

    Raises:
      tarfile.TarError: no tar, or cut short.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"{member.name} reaches beyond the end")
            name = member.name.removeprefix("./")
            if member.isreg() and not member.issparse():
                yield name, member.offset_data, member.size
            elif links is not None and (member.islnk() or member.issym()):
                folder = posixpath.dirname(name) if member.issym() else ""  # hard links are told from the top
                links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them are gigabytes
        # A tar ends with a block of zeros; without one, the walk stopped at the end of the file.
        file.seek(tar.offset)
        if file.read(512) != bytes(512) or tar.offset + 512 > end:
            raise tarfile.ReadError("the block that ends a tar is not there")


def read_slice(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on.

    Raises:
      EOFError: the file ends before.
    """
    with open(path, "rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise EOFError(f"{path} ends before byte {offset + size}")
    return data


def _grow(names: Iterable[str]) -> Tree:
    """Folder -> (names of its folders, names of its files)."""
    tree: Tree = collections.defaultdict(lambda: (set(), set()))
    for name in names:
        *folders, file = name.split("/")
        for depth, folder in enumerate(folders):
            tree["/".join(folders[:depth])][0].add(folder)
        if file:
            tree["/".join(folders)][1].add(file)
    return tree
