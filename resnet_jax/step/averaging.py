"""A moving average of parameters and batch statistics, as torchvision's training reference keeps it."""

from typing import Any

import jax
import jax.numpy as jnp


def update_average(
    average: Any, variables: Any, step: jax.Array, *, decay: float, every: int, steps_per_epoch: int, copy_steps: int
) -> Any:
    """The average after one more step; which steps count follows from `step` alone, so a run resumes exactly.

    As torchvision's `ExponentialMovingAverage` is driven: updated at the first step of an epoch and each `every` steps
    after it. Updates of the first `copy_steps` steps, and the one right after them, copy the variables.

    Args:
      average: tree of the average so far, like `variables`; the new one is computed in its dtypes.
      variables: parameters and batch statistics after the step.
      step: steps made before this one.
      decay: share of the average that an update leaves.
      every: steps.
      steps_per_epoch: steps.
      copy_steps: length of the start, the warm-up in torchvision, that the average is to forget.
    """
    due = (step % steps_per_epoch) % every == 0
    copies = step <= copy_steps
    # Both weights from Python's floats: 1 - decay taken in float32 would be off by a thousandth at 0.99998.
    old = jnp.where(due, jnp.where(copies, 0.0, decay), 1.0)
    new = jnp.where(due, jnp.where(copies, 1.0, 1 - decay), 0.0)
    return jax.tree.map(
        lambda a, b: old.astype(a.dtype) * a + new.astype(a.dtype) * b.astype(a.dtype), average, variables
    )
