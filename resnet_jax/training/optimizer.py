"""Plain numbers to an Optax schedule and to SGD as PyTorch does it."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax


def create_schedule(
    name: str,
    *,
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate at each step: a linear warm-up, then "cosine" to 0, "step" or "constant".

    Args:
      name: "cosine" (Loshchilov & Hutter 2016, one half period), "step" (He et al. 2015, section 3.4), "constant".
      learning_rate: the highest rate.
      num_steps: length of the run, warm-up included.
      warmup_steps: length of the warm-up (Goyal et al. 2017, section 2.2): step t has the share
        (t + 1) / warmup_steps of the rate, so no step is made at rate 0.
      boundaries: steps, counted from the start of the run, at which "step" multiplies the rate by `factor`.
      factor: see `boundaries`.

    Raises:
      ValueError: an unknown name, or a warm-up that is not shorter than the run.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"a warm-up of {warmup_steps} steps does not fit a run of {num_steps} steps: shorten it.")
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps),
        "step": lambda: optax.piecewise_constant_schedule(
            learning_rate, {boundary - warmup_steps: factor for boundary in boundaries}
        ),
        "constant": lambda: optax.constant_schedule(learning_rate),
    }
    if name not in after:
        raise ValueError(f"unknown schedule {name!r}: give one of {sorted(after)}.")
    if name == "step" and not all(warmup_steps < boundary < num_steps for boundary in boundaries):
        raise ValueError(
            f"boundaries {tuple(boundaries)} must lie between the end of the warm-up (step {warmup_steps}) "
            f"and the end of the run (step {num_steps})."
        )
    if not warmup_steps:
        return after[name]()
    warmup = optax.polynomial_schedule(learning_rate / warmup_steps, learning_rate, 1, max(warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after[name]()], [warmup_steps])


def create_optimizer(
    learning_rate: float | optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_norm_and_bias: bool = True,
) -> optax.GradientTransformation:
    """SGD as `torch.optim.SGD`: decay joins the gradient, then momentum, and the rate multiplies last.

    Args:
      learning_rate: a number or a schedule of the step.
      momentum: as in PyTorch, with dampening 0.
      nesterov: as in PyTorch.
      weight_decay: as in PyTorch; multiplies the parameters and joins the gradient.
      decay_norm_and_bias: whether decay reaches norm scales, norm biases and the bias of `fc` too.
    """
    mask = None if decay_norm_and_bias else is_kernel
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask) if weight_decay else optax.identity(),
        optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov),
    )


def is_kernel(params: Any) -> Any:
    """Weight-decay mask: True at the kernels of convolutions and of `fc`, False at norms and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def label_params(params: Any, labels: Mapping[str, str], default: str = "default") -> Any:
    """A tree of labels for `optax.multi_transform`, by prefix of PyTorch's dotted name; the longest one wins.

    >>> label_params({"conv1": {"kernel": 0}, "fc": {"kernel": 0, "bias": 0}}, {"fc": "head"}, default="frozen")
    {'conv1': {'kernel': 'frozen'}, 'fc': {'bias': 'head', 'kernel': 'head'}}

    Args:
      params: the parameters of a network, or of one that it is the backbone of (`backbone.layer1`).
      labels: prefix -> label; a prefix ends where a name does: "layer1" is not a prefix of "layer10".
      default: label of everything else.

    Raises:
      ValueError: a prefix that no parameter has.
    """
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(params)]
    unused = [prefix for prefix in labels if not any(_inside(path, prefix) for path in paths)]
    if unused:
        raise ValueError(f"no parameter is inside {unused}: prefixes are like 'layer1.0', 'bn1' or 'fc'.")
    by_length = sorted(labels, key=len, reverse=True)
    chosen = [next((labels[prefix] for prefix in by_length if _inside(path, prefix)), default) for path in paths]
    return jax.tree.unflatten(jax.tree.structure(params), chosen)


def _inside(path: str, prefix: str) -> bool:
    return f"{path}.".startswith(f"{prefix}.")
