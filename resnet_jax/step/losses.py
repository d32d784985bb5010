"""Losses of one batch of logits against soft targets, `[batch]`, in float32 or wider."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def soft_targets(
    labels: Array, num_classes: int, label_smoothing: float = 0.0, dtype: jnp.dtype = jnp.float32
) -> Array:
    """One-hot `[batch, num_classes]`, of which smoothing spreads its share evenly over all classes.

    Szegedy et al. 2015 (arXiv:1512.00567), section 7; as `torch.nn.CrossEntropyLoss` and timm do it.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, num_classes, dtype=dtype), label_smoothing)


def softmax_cross_entropy(logits: Array, targets: Array, *, class_weights: Sequence[float] = ()) -> Array:
    """Cross-entropy `[batch]` of logits `[batch, num_classes]` against probabilities of the same shape.

    `class_weights` multiply the terms of the classes, as `weight` of `torch.nn.functional.cross_entropy` does.
    """
    logits = wide(logits)
    return optax.softmax_cross_entropy(logits, _weighted(targets.astype(logits.dtype), class_weights))


def binary_cross_entropy(
    logits: Array,
    targets: Array,
    *,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    class_weights: Sequence[float] = (),
) -> Array:
    """Each class a yes or no of its own, as "ResNet strikes back" (arXiv:2110.00476) trains: `[batch]`.

    Equal to timm's `BinaryCrossEntropy`, whose mean over the batch is left to the caller.

    Args:
      logits: `[batch, num_classes]`.
      targets: likewise, in [0, 1].
      target_threshold: targets above it become 1 and all others 0; with mixed images both classes may be 1.
      sum_classes: the sum over the classes; by default it is their mean.
      class_weights: of the classes' terms, as `weight` of `torch.nn.functional.binary_cross_entropy_with_logits`.
    """
    logits = wide(logits)
    targets = targets.astype(logits.dtype) if target_threshold is None else targets > target_threshold
    losses = _weighted(optax.sigmoid_binary_cross_entropy(logits, targets.astype(logits.dtype)), class_weights)
    return losses.sum(axis=-1) if sum_classes else losses.mean(axis=-1)


def _weighted(terms: Array, class_weights: Sequence[float]) -> Array:
    return terms * jnp.asarray(class_weights, terms.dtype)[None] if class_weights else terms


def wide(logits: Array) -> Array:
    """At least float32: a loss in half precision loses the small gradients."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
