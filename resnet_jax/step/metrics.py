"""Metrics are sums and counts. They merge by addition, on devices and on the host, and are divided at the end."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Name of the quotient -> (sum, count).
_QUOTIENTS = {
    "loss": ("loss", "count"),
    "accuracy": ("correct", "count"),
    "accuracy_top5": ("correct_top5", "count"),
    "grad_norm": ("grad_norm", "steps"),
}


def measure(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is 1: `loss`, `correct`, `count` and, of more than 5 classes, `correct_top5`.

    Args:
      logits: `[batch, num_classes]`.
      labels: `[batch]`, int.
      losses: `[batch]`, the loss of each example.
      mask: `[batch]`, 1 for an example that counts, 0 for padding.
    """
    correct = jnp.argmax(logits, axis=-1) == labels
    sums = {"loss": jnp.sum(losses * mask), "correct": jnp.sum(correct * mask), "count": jnp.sum(mask)}
    if logits.shape[-1] > 5:
        sums["correct_top5"] = jnp.sum((_rank(logits, labels) < 5) * mask)
    return sums


def _rank(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Place of each label among the classes, `[batch]`, best first; of equal logits the lower class comes first."""
    labels = labels[:, None]
    own = jnp.take_along_axis(logits, labels, axis=-1)
    lower = jnp.arange(logits.shape[-1])[None] < labels
    return jnp.sum((logits > own) | ((logits == own) & lower), axis=-1)


def merge(total: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, float]:
    """Adds the metrics of one more step, on the host."""
    return {name: total.get(name, 0.0) + float(value) for name, value in more.items()}


def compute(total: Mapping[str, float]) -> dict[str, float]:
    """Means: `loss`, `accuracy` (a share of 1) and, where measured, `accuracy_top5` and `grad_norm`.

    Raises:
      ValueError: no example was counted.
    """
    if not total.get("count"):
        raise ValueError("no example was counted: every one was padding or unreadable, or the data set is empty.")
    return {name: total[sum_] / total[count] for name, (sum_, count) in _QUOTIENTS.items() if sum_ in total}
