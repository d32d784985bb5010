"""What runs came to: their numbers from metrics.jsonl, config.json and run.json, and what differs between them."""

import dataclasses
import datetime
import functools
import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from flax import traverse_util

from resnet_jax.runs import history, storage, workdirs

Record = dict[str, Any]

_NEEDED = {
    "train": ("step", "epoch", "loss", "accuracy", "images_per_second"),
    "test": ("step", "epoch", "loss", "accuracy", "correct", "count"),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, as far as it got.

    Attributes:
      label: what it is called beside others: the end of its path.
      workdir: where it lies.
      config: the resolved config, dotted name -> value.
      rows: its records, oldest first; none before the first window of steps has ended.
      starts: as `workdirs.describe_start` made them, oldest first.
      written: when the last record was written; None without any.
    """

    label: str
    workdir: str
    config: Mapping[str, Any]
    rows: Sequence[Record]
    starts: Sequence[Mapping[str, Any]]
    written: datetime.datetime | None

    @functools.cached_property
    def train(self) -> list[Record]:
        return [row for row in self.rows if row["split"] == "train"]

    @functools.cached_property
    def test(self) -> list[Record]:
        return history.test_records(self.rows)

    @property
    def last(self) -> Record | None:
        """The last evaluation."""
        return self.test[-1] if self.test else None

    @property
    def best(self) -> Record | None:
        """The first evaluation with the highest accuracy."""
        return max(self.test, key=lambda row: row["accuracy"], default=None)

    @property
    def averaged(self) -> bool:
        """Whether evaluations were of the moving average; records of earlier versions leave it to the config."""
        kept = bool(self.config.get("ema.decay", 0))
        return any(row.get("averaged", kept) for row in self.test)

    @property
    def steps(self) -> int:
        """Made so far."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def epochs(self) -> float:
        """Made so far."""
        return max((row["epoch"] for row in self.rows), default=0.0)

    @property
    def num_steps(self) -> int | None:
        """Of the whole run; None before the first record, which says how many an epoch has."""
        planned = self.config.get("num_epochs")
        return round(planned * round(self.steps / self.epochs)) if self.rows and planned else None

    @property
    def finished(self) -> bool:
        """Whether the last step was made and evaluated."""
        return self.last is not None and self.last["step"] == self.num_steps

    @property
    def train_accuracy(self) -> float | None:
        """Over the last epoch, while the net changed, on the images as augmented and mixed; None before it."""
        sums = [0.0, 0.0]
        for before, row in zip([0, *(row["step"] for row in self.train)], self.train, strict=False):
            if row["epoch"] > self.epochs - 1 + 1e-9:
                sums = [sums[0] + row["accuracy"] * (row["step"] - before), sums[1] + row["step"] - before]
        return sums[0] / sums[1] if sums[1] else None

    @property
    def images_per_second(self) -> float | None:
        """Median over the windows of training steps, for the first has compilation in it."""
        return statistics.median(row["images_per_second"] for row in self.train) if self.train else None

    @property
    def started(self) -> datetime.datetime | None:
        return _time(self.starts[0].get("time")) if self.starts else None

    @property
    def seconds(self) -> float | None:
        """Wall time from each start to the last record before the next; None where records do not tell."""
        times = [time for row in self.rows if (time := _time(row.get("time")))]
        if not times and len(self.starts) > 1:  # records of earlier versions: nobody knows the gaps
            return None
        starts = [time for start in self.starts if (time := _time(start.get("time")))]
        ends = times or ([self.written] if self.written else [])
        parts = []
        for start, following in zip(starts, [*starts[1:], None], strict=True):
            made = [end for end in ends if end >= start and (following is None or end < following)]
            parts += [(max(made) - start).total_seconds()] if made else []
        return sum(parts) if parts else None

    @property
    def diverged(self) -> Record | None:
        """The first record whose loss is not finite."""
        return next((row for row in self.rows if not math.isfinite(row["loss"])), None)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads the runs in `paths`, on a disk or in a bucket, in that order.

    Raises:
      FileNotFoundError: one is not the workdir of a run.
      ValueError: one is there twice, none has a record yet, or a file is damaged; the message names it.
    """
    full = [
        path.rstrip("/") if storage.is_bucket(path) else os.path.abspath(os.path.expanduser(path)) for path in paths
    ]
    for number, path in enumerate(full):
        if path in full[:number]:
            raise ValueError(f"{path} is given twice: leave one out.")
    runs = [_read_run(path, label) for path, label in zip(full, labels(full), strict=True)]
    if not any(run.rows for run in runs):
        raise ValueError(
            f"there is no record yet in {', '.join(full)}: the first comes after config.log_every_steps steps. Wait "
            "for it, or train with `python train.py --config=FILE --workdir=DIR`."
        )
    return runs


def labels(paths: Sequence[str]) -> list[str]:
    """The last name of each path, with as many before it as tell it from the others; paths must differ."""
    parts = [path.split("/") for path in paths]

    def end(i: int, length: int) -> str:
        return "/".join(parts[i][-length:])

    found = []
    for i, own in enumerate(parts):
        others = [j for j in range(len(parts)) if j != i]
        length = next(
            (n for n in range(1, len(own) + 1) if all(end(i, n) != end(j, n) for j in others)),
            len(own),
        )
        found.append(_printable(end(i, length)))
    return found


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Keys of the configs that are not the same in all runs: name -> value in each, as JSON, "-" where it has none.

    Those that change no number (`workdirs.FREE_KEYS`) come last.
    """
    keys = sorted({key for run in runs for key in run.config}, key=lambda key: (key in workdirs.FREE_KEYS, key))
    found = {key: [_shown(run.config, key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def repeats(runs: Sequence[Run]) -> list[tuple[list[Run], list[Run]]]:
    """Groups of runs that differ in nothing but the seed and what changes no number.

    Returns:
      For each group the runs that have finished, two or more, and the others.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        same = {k: v for k, v in run.config.items() if k != "seed" and k not in workdirs.FREE_KEYS}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    parted = [
        ([run for run in group if run.finished], [run for run in group if not run.finished])
        for group in groups.values()
    ]
    return [(done, left) for done, left in parted if len(done) > 1]


def _read_run(path: str, label: str) -> Run:
    config = workdirs.load_config(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}/{workdirs.CONFIG} holds {type(config).__name__}, not the config of a run.")
    starts = workdirs.load_starts(path)
    if not all(isinstance(start, dict) for start in starts):
        raise ValueError(f"{path}/{workdirs.STARTS} does not hold the starts of a run: move it away.")
    rows = history.read_metrics(path)
    for row in rows:
        _check(row, path)
    times = [time for row in rows if (time := _time(row.get("time")))]
    written = max(times) if times else _modified(path) if rows else None
    flat = traverse_util.flatten_dict(config, sep=".")
    return Run(label, path, flat, rows, starts, written)


def _check(row: Record, path: str) -> None:
    needed = _NEEDED.get(row["split"], ())
    wrong = [key for key in needed if isinstance(row.get(key), bool) or not isinstance(row.get(key), int | float)]
    if wrong or not needed or not row["epoch"] > 0:
        raise ValueError(
            f"{path}: the record of step {row['step']!r}, split {row['split']!r}, has no number in "
            f"{', '.join(wrong) or 'split or epoch'}: mend or remove that line of {history.METRICS}."
        )


def _modified(path: str) -> datetime.datetime:
    """When the records were last written, where they do not say so themselves."""
    return datetime.datetime.fromtimestamp((epath.Path(path) / history.METRICS).stat().mtime, datetime.UTC)


def _time(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None


def _shown(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else "-"


def _printable(name: str) -> str:
    """A name of a folder may hold anything: line ends, bytes that are no text."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
