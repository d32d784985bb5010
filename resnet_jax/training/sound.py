"""Whether a state is sound: no NaN, no infinity and no negative variance in any of its tensors."""

from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.step.step import TrainState
from resnet_jax.weights import convert, finite


def damage(state: TrainState) -> str:
    """`finite.damage` of all that a state on devices holds: variables, moving average, the optimiser's state."""
    # Every device has the whole state. Its own array, since what is read of the state's would be kept beside it.
    return finite.damage({name: leaf.addressable_data(0) for name, leaf in _named(state).items()})


def damage_by_steps(state: TrainState) -> str:
    """What the steps have done to a state that was sound: as `damage`, but an accelerator looks for itself first.

    So nothing is moved to the host as long as all is well. On CPUs the host reads the arrays where they are, and has no
    program to compile.
    """
    if jax.default_backend() != "cpu" and bool(_is_finite(state)):
        return ""
    return damage(state)


@jax.jit
def _is_finite(state: TrainState) -> jax.Array:
    """Whether all of it is; by `all`, and not by a maximum or a sum, in which XLA's CPU compiler can lose a NaN.

    For ResNet-50 on a TPU v5e the compiler counts 0.9 GB read and written, a fiftieth of what a step moves, and 9 MB of
    temporaries.
    """
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in _named(state).values()]).all()


def _named(state: TrainState) -> dict[str, Any]:
    """Variables and their moving average under PyTorch's names, the optimiser's state under its own."""
    average = {} if state.ema is None else convert.torch_named(state.ema)
    others = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return {
        **convert.torch_named(state.variables),
        **{f"moving average of {name}": leaf for name, leaf in average.items()},
        **{f"opt_state.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf for path, leaf in others},
    }
