"""One training step and one evaluation step: pure functions, wrapped for devices in `parallel.py`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state

from resnet_jax.step import metrics
from resnet_jax.step.losses import soft_targets, softmax_cross_entropy, wide
from resnet_jax.step.mixing import mix_images, mix_labels
from resnet_jax.step.parts import merge, split

Array = jax.Array
Batch = dict[str, Array]

# Number of the random stream that is the same on every device; the others bear their device's number.
_SHARED = 0x6D6978


class TrainState(train_state.TrainState):
    """Flax's `TrainState` (step, apply_fn, params, tx, opt_state) and the running statistics of batch norm.

    Attributes:
      batch_stats: the running statistics, `{}` where the net has none.
      ema: a moving average of `variables`, in float32 or wider, which is what is evaluated, in the dtypes of these;
        None: none is kept.
      frozen: layers, by dotted name, that do not train: the optimiser does not know of their parameters, and neither
        these nor their running statistics change by a bit. The model's field `freeze_norm` has to fit.
    """

    batch_stats: Any
    ema: Any = None
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes: `params`, and `batch_stats` if the net has any."""
        return {"params": self.params} | ({"batch_stats": self.batch_stats} if self.batch_stats else {})

    def apply_gradients(self, *, grads: Any, **kwargs: Any) -> "TrainState":
        """The state after a step with gradients of the parameters that train."""
        trained, still = split(self.params, self.frozen)
        new = train_state.TrainState.apply_gradients(self.replace(params=trained), grads=grads, **kwargs)
        return new.replace(params=merge(new.params, still))


def create_train_state(
    model: Any, variables: Any, tx: optax.GradientTransformation, *, ema: bool = False, frozen: Sequence[str] = ()
) -> TrainState:
    """The state before the first step; with `ema`, it has an average, equal to the variables so far, in float32.

    In bfloat16, which has no number between 1 and 1.008, a slow average would stand still.
    """
    trained, _ = split(variables["params"], frozen)
    state = TrainState.create(
        apply_fn=model.apply,
        params=trained,
        tx=tx,
        batch_stats=variables.get("batch_stats", {}),
        frozen=tuple(frozen),
    ).replace(params=variables["params"])
    # Behind a barrier: of numbers that are narrowed and widened at once, XLA would keep what they were before.
    widened = jax.tree.map(lambda leaf: jnp.copy(wide(jax.lax.optimization_barrier(leaf))), state.variables)
    return state.replace(ema=widened) if ema else state


def normalize(images: Array, mean: Sequence[float], std: Sequence[float], dtype: Any = jnp.float32) -> Array:
    """uint8 `[..., h, w, c]` to `(images / 255 - mean) / std` in `dtype`, one mean and std for each channel."""
    shift, scale = (jnp.asarray(value, dtype).reshape([1] * (images.ndim - 1) + [-1]) for value in (mean, std))
    return (images.astype(dtype) / 255 - shift) / scale


def cross_entropy(logits: Array, labels: Array, label_smoothing: float = 0.0) -> Array:
    """Softmax cross-entropy `[batch]`, in float32 or wider; smoothing spreads its share over all classes.

    Label smoothing as in Szegedy et al. 2015 (arXiv:1512.00567), section 7, and `torch.nn.CrossEntropyLoss`.
    """
    return softmax_cross_entropy(logits, soft_targets(labels, logits.shape[-1], label_smoothing, wide(logits).dtype))


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    label_smoothing: float = 0.0,
    loss: Callable[[Array, Array], Array] = softmax_cross_entropy,
    draw_mix: Callable[[Array, tuple[int, int]], tuple[Array, Array]] | None = None,
    update_average: Callable[[Any, Any, Array], Any] | None = None,
    seed: int = 0,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, Array]]:
    """One step of gradient descent on the mean loss of the batch.

    With `accumulate` > 1 the batch is worked through in so many parts, one after the other, in the memory of one, and
    the gradient is that of the mean loss of all. Batch norm sees the parts: each is normalised with its own statistics,
    and the running ones move once for each part, as in a PyTorch loop that calls `backward` so many times for each
    `optimizer.step()`. Part j has the rows j, j + accumulate, ..., which are the same rows on any number of devices.

    Args:
      state: the state; its own `step` counts the steps made.
      batch: `image` uint8 `[batch, h, w, c]`, `label` int32 `[batch]`, `mask` float `[batch]`; a device's share
        of it when mapped.
      mean: of each channel, in units of full scale.
      std: likewise.
      label_smoothing: probability taken from the true class.
      loss: `(logits, targets) -> [batch]`, both `[batch, num_classes]`.
      draw_mix: `(key, (height, width))` to what `mix_images` and `mix_labels` take; one draw a step. They mix pairs of
        neighbouring rows, after normalisation; `correct` is then counted against the label of the larger share.
      update_average: `(average, variables, step)` to the new average, with `state.ema`.
      seed: of mixing, dropout, stochastic depth and DropBlock. The draws of mixing depend on it and the step alone,
        those of the others on the device, too; so a resumed run makes those that it would have made.
      accumulate: parts of the batch; it must divide each device's share.
      axis_name: mapped axis over which the batch is split, or None for a step that sees it whole.

    Returns:
      The new state and the metrics of the whole batch: those of `metrics.measure` (sums over examples), `grad_norm`
      and `steps` (to be summed over steps).
    """
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    _, height, width, _ = batch["image"].shape
    drawn = draw_mix and draw_mix(jax.random.fold_in(rng, _SHARED), (height, width))
    if axis_name is not None:
        rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))

    trained, still = split(state.params, state.frozen)

    def loss_fn(params: Any, batch_stats: Any, part: Batch, rng: Array) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        variables = state.replace(params=merge(params, still), batch_stats=batch_stats).variables
        images, labels = normalize(part["image"], mean, std, _param_dtype(state)), part["label"]
        images = mix_images(images, part["mask"], drawn[0]) if drawn else images
        logits, updates = state.apply_fn(variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": rng})
        targets = soft_targets(labels, logits.shape[-1], label_smoothing, wide(logits).dtype)
        targets, labels = mix_labels(targets, labels, part["mask"], drawn[1]) if drawn else (targets, labels)
        losses = loss(logits, targets)
        return jnp.sum(losses * part["mask"]), (
            updates.get("batch_stats", batch_stats),
            metrics.measure(logits, labels, losses, part["mask"]),
        )

    gradient = jax.grad(loss_fn, has_aux=True)
    if accumulate == 1:
        grads, (batch_stats, sums) = gradient(trained, state.batch_stats, batch, rng)
    else:
        grads, batch_stats, sums = _accumulate(functools.partial(gradient, trained), state, batch, rng, accumulate)
    # Each device differentiates the sum over its examples. Sums and counts meet in one exchange, and are divided after
    # it: that is the gradient of the global mean, whatever the number of devices and of examples on each.
    grads, sums = _psum((grads, sums), axis_name)
    grads = jax.tree.map(lambda grad: grad / jnp.maximum(sums["count"], 1).astype(grad.dtype), grads)
    if axis_name is not None:  # per-device statistics: keep their mean, so that the state stays one and the same
        moving, kept = split(batch_stats, state.frozen)  # a mean of three equal numbers need not equal them
        batch_stats = merge(jax.lax.pmean(moving, axis_name), kept)
    sums |= {"grad_norm": optax.tree.norm(grads), "steps": jnp.ones(())}
    new = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    if update_average is not None:
        new = new.replace(ema=_average(update_average, state, new.variables))
    return new, sums


def _average(update_average: Callable[[Any, Any, Array], Any], state: TrainState, variables: Any) -> Any:
    """The new average; what is frozen stays as it is, for 0.9 x + 0.1 x need not equal x."""
    halves = {kind: split(tree, state.frozen) for kind, tree in state.ema.items()}
    moving = {kind: split(tree, state.frozen)[0] for kind, tree in variables.items()}
    average = update_average({kind: half for kind, (half, _) in halves.items()}, moving, jnp.asarray(state.step))
    return {kind: merge(average[kind], still) for kind, (_, still) in halves.items()}


def _accumulate(
    gradient: Callable[..., Any], state: TrainState, batch: Batch, rng: Array, parts: int
) -> tuple[Any, Any, dict[str, Array]]:
    """Sums of gradients and metrics over the parts of a batch, and the batch statistics after the last."""
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    keys = jax.random.split(rng, parts)
    first = jax.tree.map(lambda x: x[0], (split, keys))
    grads, (_, sums) = jax.eval_shape(gradient, state.batch_stats, *first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, sums))

    def add_part(carry: tuple[Any, Any], part: tuple[Batch, Array]) -> tuple[tuple[Any, Any], None]:
        batch_stats, totals = carry
        grads, (batch_stats, sums) = gradient(batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, totals, (grads, sums))), None

    (batch_stats, (grads, sums)), _ = jax.lax.scan(add_part, (state.batch_stats, zeros), (split, keys))
    return grads, batch_stats, sums


def eval_step(
    state: TrainState, batch: Batch, *, mean: Sequence[float], std: Sequence[float], axis_name: str | None = None
) -> dict[str, Array]:
    """Metrics of one batch with the running statistics; arguments as in `train_step`. Padding has mask 0.

    Where the state has an average, it is the averaged net that is measured. The loss is softmax cross-entropy without
    smoothing, whatever the net is trained with, so that runs can be compared.
    """
    images = normalize(batch["image"], mean, std, _param_dtype(state))
    variables = state.variables
    if state.ema is not None:  # in the dtypes in which `predict`, `evaluate` and others load it
        variables = jax.tree.map(lambda average, like: average.astype(like.dtype), state.ema, variables)
    logits = state.apply_fn(variables, images, train=False)
    losses = cross_entropy(logits, batch["label"])
    return _psum(metrics.measure(logits, batch["label"], losses, batch["mask"]), axis_name)


def _param_dtype(state: TrainState) -> Any:
    return jnp.result_type(*jax.tree.leaves(state.params))


def _psum(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)
