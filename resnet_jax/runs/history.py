"""The numbers of a run: one JSON object a line, in metrics.jsonl and, in a bucket, its further parts."""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from resnet_jax.runs import storage

METRICS = "metrics.jsonl"


class Records:
    """Writes the records of a run. On a disk each is there as soon as `append` returns, in a bucket after `flush`.

    Args:
      workdir: where metrics.jsonl lies. Records of steps after `first_step` are dropped: they belong to a run that
        was killed after its last checkpoint, and are about to be made again.
      first_step: steps already made.

    Raises:
      NotWritten: from any method: disk full, no permission, bucket gone.
    """

    def __init__(self, workdir: str, *, first_step: int) -> None:
        name = functools.partial(_part, epath.Path(workdir))
        self._log = storage.open_log(name, part=_drop_after(epath.Path(workdir), first_step))

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record, a JSON object with `step` and `split`."""
        self._log.append(json.dumps(record).encode() + b"\n")

    def flush(self) -> None:
        """Returns when every record would survive a kill."""
        self._log.flush()

    def close(self) -> None:
        """Flushes, and lets go of the file."""
        self._log.close()


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line cut off by a crash is left out.

    Raises:
      ValueError: another line is no record; the message names file and line.
    """
    folder = epath.Path(workdir)
    return [
        record
        for number, content in enumerate(_parts(folder))
        for _, record in _records(_part(folder, number), content)
    ]


def test_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the evaluations."""
    return [record for record in records if record["split"] == "test"]


def count_unreadable(records: Sequence[dict[str, Any]]) -> int:
    """Of how many training images they say that they could not be read."""
    return sum(record.get("unreadable", 0) for record in records if record["split"] == "train")


def _part(folder: epath.Path, number: int) -> epath.Path:
    return folder / (METRICS if number == 0 else f"metrics.{number:05}.jsonl")


def _parts(folder: epath.Path) -> Iterator[bytes]:
    number = 0
    while (content := storage.read_if_there(_part(folder, number))) is not None:
        yield content
        number += 1


def _records(path: epath.Path, content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Lines and what they say."""
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n") or not line.strip():  # only the last one has no end, after a crash
            continue
        try:
            record = json.loads(line)
            record["step"], record["split"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}, is no record of a run ({error}): mend or remove that line; a run goes on "
                "without the file, too, but then knows of no best checkpoint before."
            ) from error
        yield line, record


def _drop_after(folder: epath.Path, step: int) -> int:
    """Takes the records after `step` off the end; returns the number of the part that is last then."""
    last, parts = 0, list(_parts(folder))
    # From the end, each file whole at any moment: whenever a kill comes, the records up to `step` are all there.
    for number, content in reversed(list(enumerate(parts))):
        kept = b"".join(line for line, record in _records(_part(folder, number), content) if record["step"] <= step)
        if number and not kept:
            _part(folder, number).unlink()
            continue
        last = max(last, number)
        if kept != content:
            storage.write_whole(_part(folder, number), kept)
    return last
