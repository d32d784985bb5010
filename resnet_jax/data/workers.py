"""Worker processes of Grain's: they end with the process that they work for, and one that is killed is one line."""

import os
import re
import signal
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import cloudpickle
import grain
from absl import flags

from resnet_jax import processes

PASSED_ON = 2  # elements that wait between a worker process and this one


FEWER = "Fewer num_workers (or num_threads, which each of them has) need less."
WHY = {
    "SIGKILL": f"the kernel does so where memory is short. {FEWER}",
    "SIGBUS": f"/dev/shm, through which batches come, is full: enlarge it (--shm-size of a container). {FEWER}",
    "exit code 1": 'what it said stands above. (A script needs `if __name__ == "__main__":` to have workers.)',
}
OTHERWISE = "what it said stands above."


class WorkerDied(RuntimeError):
    """A worker process ended before its work was done."""


class Filed:
    """Random access that processes which unpickle it read from a file, and not from a pipe.

    A file list of ImageNet's takes 100 MB, and a pipe has room for 64 kB: who starts a process that is killed before it
    has read all would write for ever.
    """

    def __init__(self, whole: Any):
        self._whole = whole
        handle, self._path = tempfile.mkstemp(prefix="resnet-jax-", suffix=".workers")
        self.remove = weakref.finalize(self, os.remove, self._path)
        with open(handle, "wb") as file:
            cloudpickle.dump(whole, file)

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, index: int) -> Any:
        return self._whole[index]

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _load, (self._path,)


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        return cloudpickle.load(file)


class Workers(Iterator[Any]):
    """The elements of `iterable`, whose source is `source`, made by worker processes."""

    def __init__(self, iterable: Any, source: Filed, num_workers: int):
        if not flags.FLAGS.is_parsed():  # in a notebook or a test; Grain reads flags to start its workers
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=PASSED_ON)
        self._iterator = iter(iterable.mp_prefetch(options, worker_init_fn=_live_with_parent))
        self._source, self._starting = source, num_workers

    def __next__(self) -> Any:
        try:
            element = next(self._iterator)
        except RuntimeError as error:
            ended = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))  # Grain's words
            if not ended:
                raise
            cause = processes.name_end(int(ended[1]))
            raise WorkerDied(
                f"a worker process that reads data was ended by {cause}; {WHY.get(cause, OTHERWISE)} The same command "
                "goes on."
            ) from None
        self._starting -= 1
        if not self._starting:  # they take turns: all have read the file
            self._source.remove()
        return element

    def close(self) -> None:
        """Ends the processes."""
        self._iterator.close()
        self._source.remove()


def _live_with_parent(_index: int, _count: int) -> None:
    """Makes a worker end when, and only when, the process that it works for does.

    SIGTERM and Ctrl-C often go to every process of a job. A run that is told so finishes its step, for which it needs
    the worker.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    processes.end_with_parent()
