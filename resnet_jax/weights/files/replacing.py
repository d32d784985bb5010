"""A file, or a folder, is written whole or not at all; what it replaces stands until then."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence


@contextlib.contextmanager
def replacing(file: pathlib.Path) -> Iterator[str]:
    """Gives a temporary name beside `file`, and moves it there once it is on disk."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's own mode is for its owner alone
        os.replace(temporary, file)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def replacing_folder(folder: pathlib.Path, overwrite: bool, ours: Sequence[str]) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside `folder`, and puts it there once it is complete and on disk.

    Where the system can exchange two folders in one step (Linux, macOS, on most file systems), `folder` is the old one
    or the new one at every moment, whatever kills the process. Elsewhere it is away for a moment, and the old one lies
    beside it as `.NAME.*.tmp/old`.

    Args:
      folder: where to.
      overwrite: replace one that is there.
      ours: names of files; a folder with another in it is not replaced.

    Raises:
      ValueError: it is there, or holds something else.
    """
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if there and not overwrite:
        raise ValueError(f"{folder} exists: choose another folder, or give overwrite=True to replace it.")
    if strangers := [name for name in there if name not in ours]:
        raise ValueError(
            f"{folder} holds {strangers[:5]} too, and would be replaced as a whole: choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()  # with everybody's usual permissions, which mkdtemp's are not
        yield new
        for file in new.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            folder.rename(old)
            new.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)


# Function of the C library, and the arguments before and after the two names (of the working directory's descriptor).
_EXCHANGES = {"linux": ("renameat2", -100, 2), "darwin": ("renameatx_np", -2, 2)}


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Lets two folders change places in one step; False where the system, or its file system, cannot."""
    name, here, flag = _EXCHANGES.get(sys.platform, ("", 0, 0))
    function = getattr(ctypes.CDLL(None), name, None) if name else None
    if function is None:
        return False
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return bool(function(here, os.fsencode(one), here, os.fsencode(other), flag) == 0)
