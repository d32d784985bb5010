"""What a run leaves for people: numbers in metrics.jsonl, lines or a bar on the terminal, curves in curves.png."""

import datetime
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
CURVES = "curves.png"


class Reporter:
    """Writes the records of a run; a context manager. Each line of metrics.jsonl is flushed as it is written.

    Args:
      workdir: where metrics.jsonl lies. Records of steps after `first_step` are dropped: they belong to a run that
        was killed after its last checkpoint, and are about to be made again.
      first_step: steps already made.
      num_steps: steps in all.
    """

    def __init__(self, workdir: str, *, first_step: int, num_steps: int) -> None:
        self._num_steps = num_steps
        self._path = epath.Path(workdir) / METRICS
        kept = [record for record in read_metrics(workdir) if record["step"] <= first_step]
        rewritten = self._path.with_name(METRICS + ".tmp")  # renamed when whole: a kill here loses no record
        rewritten.write_text("".join(json.dumps(record) + "\n" for record in kept))
        rewritten.replace(self._path)
        self._file = self._path.open("a")
        self._bar = _progress_bar(first_step, num_steps)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *unused: object) -> None:
        self._file.close()
        if self._bar is not None:
            self._bar.close()

    def train(self, step: int, numbers: dict[str, float]) -> None:
        """A window of training steps that ends with `step`."""
        self._write({"step": step, "split": "train", **numbers})
        percent, rate = 100 * numbers["accuracy"], numbers["images_per_second"]
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{numbers['loss']:.4f}", accuracy=f"{percent:.2f} %", images_s=f"{rate:,.0f}")
            self._bar.update(step - self._bar.n)
            return
        logger.info(
            "step %d/%d  epoch %.2f  loss %.4f  accuracy %.2f %%  lr %.3g  %s images/s  ETA %s",
            *(step, self._num_steps, numbers["epoch"], numbers["loss"], percent, numbers["learning_rate"]),
            *(f"{rate:,.0f}", datetime.timedelta(seconds=round(numbers["seconds_left"]))),
        )

    def test(self, step: int, numbers: dict[str, float]) -> None:
        """An evaluation after `step` steps."""
        self._write({"step": step, "split": "test", **numbers})
        self.say(f"step {step}  {accuracy_line(numbers)}  loss {numbers['loss']:.4f}")

    def say(self, line: str) -> None:
        """A line for people, above the bar or in the log."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            logger.info("%s", line)

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def accuracy_line(numbers: dict[str, float]) -> str:
    """'test accuracy 98.61 % (355/360)'."""
    return f"test accuracy {100 * numbers['accuracy']:.2f} % ({numbers['correct']:.0f}/{numbers['count']:.0f})"


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line cut off by a crash is left out."""
    path = epath.Path(workdir) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def test_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the evaluations."""
    return [record for record in records if record["split"] == "test"]


def plot_curves(records: Sequence[dict[str, Any]], path: str) -> None:
    """Draws loss, error and learning rate against the epoch as a PNG; training thin, test bold."""
    from matplotlib.figure import Figure  # half a second, and needed once

    train = [record for record in records if record["split"] == "train"]
    test = test_records(records)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    for split, rows, style in (("training", train, {"lw": 1, "alpha": 0.7}), ("test", test, {"lw": 2.2})):
        epochs = [row["epoch"] for row in rows]
        loss.semilogy(epochs, [row["loss"] for row in rows], label=split, **style)
        error.plot(epochs, [100 * (1 - row["accuracy"]) for row in rows], label=split, **style)
    rate.plot([row["epoch"] for row in train], [row["learning_rate"] for row in train], color="tab:gray")
    error.set_ylim(bottom=0)
    for axes, title in ((loss, "loss"), (error, "error (%)"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    loss.legend()
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _progress_bar(first_step: int, num_steps: int) -> Any:
    if not sys.stderr.isatty():
        return None
    import tqdm

    return tqdm.tqdm(initial=first_step, total=num_steps, unit="step", dynamic_ncols=True)
