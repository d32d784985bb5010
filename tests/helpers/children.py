"""The worker processes of a process."""

import contextlib
import pathlib


def running(pid="self"):
    """Their numbers, also of those that have only just been started."""
    found = set()
    for children in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread, or a child, that has ended
            found |= {int(child) for child in children.read_text().split() if b"spawn_main" in _command(child)}
    return found


def _command(pid):
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
