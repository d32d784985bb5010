"""Plain numbers to an Optax schedule and to SGD, LAMB and AdamW as PyTorch and timm do them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("constant", "cosine", "linear", "step")
FALLING = ("cosine", "linear")  # to `final_rate`, at the last step
OPTIMIZERS = ("adamw", "lamb", "sgd")


def create_schedule(
    name: str,
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    warmup_start: float | None = None,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
    final_rate: float = 0.0,
    under_warmup: bool = False,
    hold: int = 1,
) -> optax.Schedule:
    """Learning rate at each step: a linear warm-up, then "cosine", "linear", "step" or "constant".

    Args:
      name: "cosine" (Loshchilov & Hutter 2016, one half period), "linear" (down to the end), "step"
        (He et al. 2015, section 3.4), "constant".
      learning_rate: the highest rate.
      num_steps: length of the run, warm-up included.
      warmup_steps: length of the warm-up (Goyal et al. 2017, section 2.2).
      warmup_start: share of the rate at step 0, from which each step rises by the same amount to the whole rate at
        step `warmup_steps`: PyTorch's `LinearLR`. None: step t has the share (t + 1) / warmup_steps, so that the last
        step of the warm-up has the whole rate.
      boundaries: steps, counted from the start of the run, at which "step" multiplies the rate by `factor`.
      factor: see `boundaries`.
      final_rate: where "cosine" and "linear" end.
      under_warmup: they fall from step 0 on, and the warm-up hides their beginning, as in timm; by default they
        start after the warm-up, as in torchvision.
      hold: real steps to each step of all of the above: those of an epoch, where the rate changes once an epoch.

    Raises:
      ValueError: an unknown name, or a warm-up that is not shorter than the run.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit a run of {num_steps} steps: shorten it.")
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: give one of {sorted(SCHEDULES)}.")
    if name == "step" and not all(warmup_steps < boundary < num_steps for boundary in boundaries):
        raise ValueError(
            f"boundaries {tuple(boundaries)} must lie between the end of the warm-up (step {warmup_steps}) "
            f"and the end of the run (step {num_steps})."
        )
    begin = 0 if under_warmup else warmup_steps

    def falling(shape: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
        return lambda t: final_rate + (learning_rate - final_rate) * shape((t - begin) / (num_steps - begin))

    after = {
        "cosine": falling(_half_cosine),
        "linear": falling(lambda progress: 1 - jnp.clip(progress, 0, 1)),
        "step": optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(boundaries, factor)),
        "constant": optax.constant_schedule(learning_rate),
    }[name]

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        # An int32 count would drag the rate down to float32 where all else is float64.
        t = jnp.asarray(jnp.floor_divide(count, hold), float)
        if not warmup_steps:
            return jnp.asarray(after(t))
        return jnp.where(t < warmup_steps, learning_rate * _warmup_share(t, warmup_steps, warmup_start), after(t))

    return schedule


def _half_cosine(progress: jax.Array) -> jax.Array:
    return (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2


def _warmup_share(t: jax.Array, warmup_steps: int, start: float | None) -> jax.Array:
    return (t + 1) / warmup_steps if start is None else start + (1 - start) * t / warmup_steps


def create_optimizer(
    learning_rate: float | optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decayed: str = "all",
    clip_norm: float = 0.0,
    rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """SGD and AdamW as PyTorch's, or LAMB as timm's.

    - "sgd": decay joins the gradient, then momentum, and the rate multiplies last.
    - "adamw": decay is the parameters times the rate, and joins after Adam (Loshchilov & Hutter 2017, 1711.05101).
    - "lamb" (You et al. 2019, 1904.00962): Adam and decay, then each decayed tensor's update takes on the norm of the
      tensor. `optax.lamb` does so with all tensors; timm leaves those alone that are not decayed.

    Args:
      learning_rate: a number or a schedule of the step.
      name: see above.
      momentum: of "sgd", as in PyTorch, with dampening 0.
      nesterov: likewise.
      betas: of "adamw" and "lamb": what the averages of the gradient and of its square keep in a step.
      eps: of "adamw" and "lamb", added to the root of the average square.
      weight_decay: as in PyTorch; multiplies the parameters.
      decayed: which parameters it reaches, a key of `DECAYED`.
      clip_norm: gradients of a larger norm over all tensors are scaled to it first; 0: never.
      rates: factors on the learning rate of single layers, by PyTorch's dotted name, as a parameter group's `lr`.

    Raises:
      ValueError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimiser {name!r}: give one of {list(OPTIMIZERS)}.")
    if decayed not in DECAYED:
        raise ValueError(f"unknown weight decay {decayed!r}: give one of {sorted(DECAYED)}.")
    mask = DECAYED[decayed]
    decay = optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity()
    adam = optax.scale_by_adam(*betas, eps=eps)
    rate = optax.scale_by_learning_rate(learning_rate)
    parts = {
        "sgd": (decay, optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)),
        "adamw": (adam, decay, rate),
        "lamb": (adam, decay, _trust_ratio(mask) if weight_decay else optax.identity(), rate),
    }
    # PyTorch's clip_grad_norm_ divides by the norm and a millionth, timm's Lamb by the norm.
    clip = (clip_by_norm(clip_norm, eps=0.0 if name == "lamb" else 1e-6),) if clip_norm else ()
    slow = (scale_layers(rates),) if rates and set(rates.values()) != {1.0} else ()
    return optax.chain(*clip, *parts[name], *slow)


def _trust_ratio(mask: Callable[[Any], Any] | None) -> optax.GradientTransformation:
    return optax.masked(optax.scale_by_trust_ratio(), mask) if mask else optax.scale_by_trust_ratio()


def clip_by_norm(max_norm: float, *, eps: float) -> optax.GradientTransformation:
    """Scales all gradients by min(1, max_norm / (norm + eps)), their norm taken over all tensors."""

    def clip(updates: Any, _: Any) -> Any:
        return optax.tree.scale(jnp.minimum(1.0, max_norm / (optax.tree.norm(updates) + eps)), updates)

    return optax.stateless(clip)


def scale_layers(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of each layer by its factor, by dotted name; those of other layers stay as they are."""

    def scale(path: Any, update: jax.Array) -> jax.Array:
        layer = jax.tree_util.keystr(path[:-1], simple=True, separator=".")
        return update * factors[layer] if factors.get(layer, 1.0) != 1.0 else update

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))


def is_kernel(params: Any) -> Any:
    """Weight-decay mask: True at the kernels of convolutions and of `fc`, False at norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def is_not_norm(params: Any) -> Any:
    """Weight-decay mask: False at the scales and biases of norms alone; a norm is what has a `scale`."""
    norms = {path[:-1] for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "scale"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[:-1] not in norms, params)


# Which parameters weight decay reaches. "all": PyTorch's optimisers by themselves, He et al. 2015. "not_norm":
# Goyal et al. 2017 and torchvision's references with --norm-weight-decay=0, where the bias of fc is decayed. "kernels":
# timm, which leaves out every bias too.
DECAYED: dict[str, Callable[[Any], Any] | None] = {"all": None, "not_norm": is_not_norm, "kernels": is_kernel}
