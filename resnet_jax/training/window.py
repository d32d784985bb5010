"""The numbers of the steps since the last report: summed, timed, and refused where they show that a run went wrong."""

import math
import time
from collections.abc import Mapping
from typing import Any

from resnet_jax.step import metrics
from resnet_jax.step.step import TrainState
from resnet_jax.training import sound

WAY_OUT = (
    "No state since the last checkpoint was kept. Start again in a new --workdir with a lower "
    "--config.optimizer.learning_rate or a longer --config.schedule.warmup_epochs; --config.init_from=OLD_WORKDIR goes "
    "on from its weights."
)


class TrainingDiverged(RuntimeError):
    """Loss, gradient or state is not finite."""


class TooManyUnreadable(RuntimeError):
    """More images cannot be read than config.data.max_unreadable allows."""


class Window:
    """Sums since the last report.

    Args:
      batch_size: images of a step, unreadable ones included.
      num_examples: images of an epoch.
      max_unreadable: share of the images of the epochs begun that may be unreadable.
    """

    def __init__(self, batch_size: int, num_examples: int, max_unreadable: float) -> None:
        self._batch_size, self._num_examples, self._max_unreadable = batch_size, num_examples, max_unreadable
        self._seen = self._unreadable = 0
        self.restart()

    def restart(self) -> None:
        """Begins the next window, and its time."""
        self._sums: dict[str, float] = {}
        self._start = time.monotonic()

    def add(self, step: int, sums: Mapping[str, Any]) -> None:
        """Adds the sums of `step`, waiting for the devices.

        Raises:
          TrainingDiverged: loss or gradient is not finite.
          TooManyUnreadable: the share of images that could not be read is too large.
        """
        values = {name: float(value) for name, value in sums.items()}
        for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(f"the {what} is {values[name]} at step {step}. {WAY_OUT}")
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
            raise TrainingDiverged(f"since {steps} the state holds {found}\n{WAY_OUT}")

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
