"""What a run tells people while it runs: records in metrics.jsonl and TensorBoard, lines or a bar on the terminal."""

import datetime
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resnet_jax.runs import scalars, storage
from resnet_jax.runs.history import Records

logger = logging.getLogger(__name__)


class Callback:
    """What a run tells somebody else, as a logger of W&B's or MLflow's: a subclass overrides what it wants to hear.

    All are called in the first process alone, between two steps, and what they raise ends the run. A run that is killed
    and started again tells once more of what lies between its last checkpoint and the kill.
    """

    def on_log(self, record: Mapping[str, Any]) -> None:
        """After a window of training steps: its line of metrics.jsonl, which stands there by now."""

    def on_evaluation(self, record: Mapping[str, Any]) -> None:
        """After an evaluation: likewise."""

    def on_save(self, step: int) -> None:
        """A checkpoint of `step` has been handed over; it is being written, and may not be whole yet."""


class Reporter:
    """Writes the records of a run, and says them; a context manager.

    Args:
      workdir: where metrics.jsonl lies. Records of steps after `first_step` are dropped: they belong to a run that
        was killed after its last checkpoint, and are about to be made again.
      first_step: steps already made.
      num_steps: steps in all.
      active: False on every process but the first: nothing is then read, written or said.
      tensorboard: writes TensorBoard's files as well, where tensorboardX is installed.
      callbacks: told of each record, and of each checkpoint.
      saved_step: asked for the step of the newest whole checkpoint, to name it when a record cannot be written.

    Raises:
      NotWritten: from any method: disk full, no permission, bucket gone.
    """

    def __init__(
        self,
        workdir: str,
        *,
        first_step: int,
        num_steps: int,
        active: bool = True,
        tensorboard: bool = False,
        callbacks: Sequence[Callback] = (),
        saved_step: Callable[[], int | None] | None = None,
    ) -> None:
        self._active, self._num_steps, self._saved_step = active, num_steps, saved_step
        self._sinks: list[Records | scalars.Scalars] = []
        self._callbacks, self._bar = callbacks if active else (), None
        if not active:
            return
        self._sinks.append(Records(workdir, first_step=first_step))
        if tensorboard and (sink := scalars.open_if_installed(workdir, first_step=first_step)):
            self._sinks.append(sink)
        self._bar = _progress_bar(first_step, num_steps)

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            try:
                sink.close()
            except storage.NotWritten as error:
                if kind is None:
                    raise self._with_step(error) from error
                if not issubclass(kind, storage.NotWritten):  # else it is what ends the run, and told already
                    logger.warning("%s", error)

    def train(self, step: int, numbers: dict[str, float]) -> None:
        """A window of training steps that ends with `step`."""
        if not self._active:
            return
        record = _record(step, "train", numbers)
        self._write(record)
        self._say_train(step, numbers)
        for callback in self._callbacks:
            callback.on_log(record)

    def _say_train(self, step: int, numbers: dict[str, float]) -> None:
        percent, rate = 100 * numbers["accuracy"], numbers["images_per_second"]
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{numbers['loss']:.4f}", accuracy=f"{percent:.2f} %", images_s=f"{rate:,.0f}")
            self._bar.update(step - self._bar.n)
            return
        logger.info(
            "step %d/%d  epoch %.2f  loss %.4f  accuracy %.2f %%  %s%s images/s  ETA %s",
            *(step, self._num_steps, numbers["epoch"], numbers["loss"], percent),
            f"lr {numbers['learning_rate']:.3g}  " if "learning_rate" in numbers else "",
            *(f"{rate:,.0f}", datetime.timedelta(seconds=round(numbers["seconds_left"]))),
        )

    def test(self, step: int, numbers: dict[str, Any]) -> dict[str, Any]:
        """An evaluation after `step` steps; returns its record, also where it is not written."""
        record = _record(step, "test", numbers)
        if self._active:
            self._write(record)
            top5 = f"  top-5 {100 * numbers['accuracy_top5']:.2f} %" if "accuracy_top5" in numbers else ""
            self.say(f"step {step}  {accuracy_line(numbers)}{top5}  loss {numbers['loss']:.4f}")
            for callback in self._callbacks:
                callback.on_evaluation(record)
        return record

    def saved(self, step: int) -> None:
        """A checkpoint of `step` has been handed over."""
        for callback in self._callbacks:
            callback.on_save(step)

    def say(self, line: str) -> None:
        """A line for people, above the bar or in the log."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif self._active:
            logger.info("%s", line)

    def flush(self) -> None:
        """Returns when every record would survive a kill: to be called before a checkpoint of their step is saved.

        On a disk they do at once. In a bucket they gather for up to `storage.SECONDS`.
        """
        for sink in self._sinks:
            try:
                sink.flush()
            except storage.NotWritten as error:
                raise self._with_step(error) from error

    def _write(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            try:
                sink.append(record)
            except storage.NotWritten as error:
                raise self._with_step(error) from error

    def _with_step(self, error: storage.NotWritten) -> storage.NotWritten:
        try:
            step = self._saved_step() if self._saved_step else None
        except Exception:  # what is gone for writing may be gone for reading
            step = None
        return storage.NotWritten(f"{error} That is step {step}." if step is not None else str(error))


def accuracy_line(numbers: dict[str, Any]) -> str:
    """'test accuracy 98.61 % (355/360)', and whether that is of the averaged net."""
    line = f"test accuracy {100 * numbers['accuracy']:.2f} % ({numbers['correct']:.0f}/{numbers['count']:.0f})"
    return f"{line}, averaged net" if numbers.get("averaged") else line


def _record(step: int, split: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """One line of metrics.jsonl; the time is that of writing it, UTC."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"step": step, "split": split, "time": time, **numbers}


def _progress_bar(first_step: int, num_steps: int) -> Any:
    if not sys.stderr.isatty():
        return None
    import tqdm

    return tqdm.tqdm(initial=first_step, total=num_steps, unit="step", dynamic_ncols=True)
