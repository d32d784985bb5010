"""The numbers of the steps since the last report: summed, timed, and refused where they show that a run went wrong."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from resnet_jax.errors import Refusal
from resnet_jax.step import metrics
from resnet_jax.step.step import TrainState
from resnet_jax.training import sound

UNREAD = 1000  # steps whose numbers may wait on the devices: small arrays, but each an allocation


class TrainingDiverged(Refusal, RuntimeError):
    """Loss, gradient or state is not finite."""


class TooManyUnreadable(Refusal, RuntimeError):
    """More images cannot be read than config.data.max_unreadable allows."""


class Window:
    """Sums since the last report.

    Args:
      batch_size: images of a step, unreadable ones included.
      num_examples: images of an epoch.
      max_unreadable: share of the images of the epochs begun that may be unreadable.
      seen: images of the starts of the run before this one, unreadable ones included.
      unreadable: of them.
      saved_step: asked for the step of the newest whole checkpoint, to name it when a run goes wrong.
    """

    def __init__(
        self,
        batch_size: int,
        num_examples: int,
        max_unreadable: float,
        *,
        seen: int = 0,
        unreadable: int = 0,
        saved_step: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._batch_size, self._num_examples, self._max_unreadable = batch_size, num_examples, max_unreadable
        self._seen, self._unreadable = seen, unreadable
        self._saved_step = saved_step
        self._unread: list[tuple[int, Mapping[str, Any]]] = []
        self.restart()

    def restart(self) -> None:
        """Begins the next window, and its time."""
        self._sums: dict[str, float] = {}
        self._start = time.monotonic()

    def add(self, step: int, sums: Mapping[str, Any]) -> None:
        """Notes the sums of `step`, which stay on the devices until they are read; raises as `read`."""
        self._unread.append((step, sums))
        if len(self._unread) >= UNREAD:
            self.read()

    def read(self) -> None:
        """Fetches what has been added, all at once, waiting for the devices: to be called before `check` and `close`.

        Raises:
          TrainingDiverged: loss or gradient is not finite.
          TooManyUnreadable: the share of images that could not be read is too large.
        """
        unread, self._unread = jax.device_get(self._unread), []
        for step, sums in unread:
            self._read(step, sums)

    def _read(self, step: int, sums: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in sums.items()}
        for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(f"the {what} is {values[name]} at step {step}. {self._way_out()}")
        self._sums = metrics.merge(self._sums, values)
        self._seen += self._batch_size
        self._unreadable += self._batch_size - round(values["count"])
        begun = -(-self._seen // self._num_examples) * self._num_examples
        check_unreadable(self._unreadable, begun, self._max_unreadable)

    def check(self, step: int, state: TrainState) -> None:
        """Looks at the state after `step`, the last one added; of a NaN in it the loss need not tell.

        Raises:
          TrainingDiverged: a parameter, a statistic, an average or the optimiser's state is not finite.
        """
        if found := sound.damage_by_steps(state):
            first = step + 1 - round(self._sums["steps"])
            steps = f"step {step}" if first == step else f"one of the steps {first} to {step}"
            raise TrainingDiverged(f"since {steps} the state holds {found}\n{self._way_out()}")

    def _way_out(self) -> str:
        saved = self._saved_step()
        kept = "No checkpoint was saved before" if saved is None else f"The checkpoint of step {saved} stands"
        from_it = "" if saved is None else "; --config.init_from=OLD_WORKDIR goes on from its weights"
        return (
            f"{kept}. Start again in a new --workdir with a lower --config.optimizer.learning_rate or a longer "
            f"--config.schedule.warmup_epochs{from_it}."
        )

    def close(self) -> dict[str, float]:
        """Means, `images_per_second`, `seconds_per_step` and, if there were any, the number of `unreadable` images."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        steps = self._sums["steps"]
        unreadable = round(steps * self._batch_size - self._sums["count"])
        return {
            **metrics.compute(self._sums),
            "images_per_second": self._sums["count"] / seconds,
            "seconds_per_step": seconds / steps,
            **({"unreadable": unreadable} if unreadable else {}),
        }


def check_unreadable(unreadable: int, images: int, max_unreadable: float) -> None:
    """Raises `TooManyUnreadable` if more than the share `max_unreadable` of `images` could not be read."""
    if unreadable > max_unreadable * images:
        raise TooManyUnreadable(
            f"{unreadable} of {images} images could not be read, more than config.data.max_unreadable={max_unreadable} "
            "allows; the log names them. Repair or remove them, or raise that share."
        )
