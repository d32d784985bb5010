"""A profiler's trace of some steps, to be looked at with xprof or Perfetto."""

import contextlib
import logging
from typing import Any, Self

import jax

logger = logging.getLogger(__name__)


class Trace:
    """Traces the steps `first`..`last` of a run, counted from 1, into `folder`; a context manager. (0, 0): none.

    The first step of a start compiles, which hides everything else: choose later ones.
    """

    def __init__(self, first: int, last: int, folder: str) -> None:
        self._first, self._last, self._folder = first, last, folder
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stop()

    def step(self, number: int) -> contextlib.AbstractContextManager[Any]:
        """Around the step of that number; starts and ends the trace."""
        if number > self._last:
            self._stop()
        elif number >= max(self._first, 1) and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if not self._running:
            return contextlib.nullcontext()
        return jax.profiler.StepTraceAnnotation("train", step_num=number)

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            logger.info("traced up to step %d: look at it with `xprof --logdir=%s`", self._last, self._folder)
