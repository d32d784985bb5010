"""Files of a workdir, on a disk or in a bucket: written whole, or grown; a kill never takes back what was there."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from etils import epath

from resnet_jax.errors import Refusal

PART_BYTES = 1 << 18
SECONDS = 30.0


class NotWritten(Refusal, OSError):
    """A file of the workdir could not be written: the disk is full, the bucket refuses."""


class Log(Protocol):
    """Bytes that only grow."""

    def append(self, data: bytes) -> None:
        """Adds to the end."""

    def flush(self) -> None:
        """Returns when everything appended would survive a kill."""

    def close(self) -> None:
        """Flushes, and lets go of the file."""


def is_bucket(path: epath.PathLike) -> bool:
    """Whether `path` lies in an object store (gs://, s3://): whole objects, no append, no rename."""
    return "://" in str(path)


def write_whole(path: epath.Path, content: bytes) -> None:
    """Writes a file that others find whole or not at all, with what it held before until then.

    Raises:
      NotWritten: disk full, no permission, bucket gone.
    """
    with named(path):
        if is_bucket(path):
            path.write_bytes(content)  # an object appears when its upload has ended
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)  # half a file on a full disk is in the way
            raise


def read_if_there(path: epath.Path) -> bytes | None:
    """What a file holds; None where there is none.

    Raises:
      OSError: it cannot be read, or lies in a bucket whose client is not installed.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except ImportError as error:
        raise OSError(f"{path} lies in a bucket: pip install 'resnet-linen[gcs]' for its client ({error}).") from error


def open_log(name: Callable[[int], epath.Path], *, part: int = 0, header: bytes = b"") -> Log:
    """Goes on with the log whose parts are called `name(0)`, `name(1)`, ...; each begins with `header`.

    Args:
      name: from the number of a part to its path. On a disk the part that is there grows without bound.
      part: the last part there is, or 0.
      header: what a new part begins with.
    """
    return (_BucketLog if is_bucket(name(part)) else _DiskLog)(name, part, header)


class _DiskLog:
    """One file, flushed as it is written."""

    def __init__(self, name: Callable[[int], epath.Path], part: int, header: bytes) -> None:
        self._path = name(part)
        with named(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab")
        if header and not self._path.stat().length:
            self.append(header)

    def append(self, data: bytes) -> None:
        with named(self._path):
            self._file.write(data)
            self._file.flush()

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # only what `append` has reported already can still be waiting
            self._file.close()


class _BucketLog:
    """Parts of about PART_BYTES: the last is written whole, every SECONDS, at `flush` and at the end.

    A bucket takes about one write of an object a second. Parts keep the cost in proportion to the length of the log.
    """

    def __init__(self, name: Callable[[int], epath.Path], part: int, header: bytes) -> None:
        self._name, self._part, self._header = name, part, header
        self._content = bytearray(read_if_there(name(part)) or header)
        self._waiting, self._written = False, time.monotonic()

    def append(self, data: bytes) -> None:
        self._content += data
        self._waiting = True
        if len(self._content) >= PART_BYTES or time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        write_whole(self._name(self._part), bytes(self._content))
        self._waiting, self._written = False, time.monotonic()
        if len(self._content) >= PART_BYTES:
            self._part, self._content = self._part + 1, bytearray(self._header)

    def close(self) -> None:
        self.flush()


@contextlib.contextmanager
def named(path: epath.Path) -> Iterator[None]:
    """Whatever a file system or a bucket's client says, with the path and the way out."""
    try:
        yield
    except Exception as error:  # each client of a bucket has errors of its own
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise NotWritten(
            f"{path} could not be written: {reason}. No checkpoint is touched by this: make room, or mend what is "
            "named, and start the same command again; it goes on from the newest checkpoint."
        ) from error
