"""Which dictionary of a checkpoint holds the weights, which others there are, and where strange names may stand.

A checkpoint of somebody's training script is a dictionary of dictionaries. A set of weights is one that holds more
tensors than other things; it is called by the keys that lead to it, `"model"` or `"classy_state_dict.base_model"`.
"""

import collections
from typing import Any, NamedTuple

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled import numpy_arrays
from resnet_jax.weights.files.pickled.pickles import MAX_NAME, Inert, Pickle, Unknown, kind, shown
from resnet_jax.weights.files.pickled.torch_names import Tensor, refuse

# Where scripts keep the weights, the likeliest first, and where their moving average (EMA).
CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights"),
    *("student", "online_network", "online_encoder", "encoder_q", "model_q"),
    *("resnet", "backbone", "encoder", "best_model"),
    "blobs",  # Detectron's
    *("classy_state_dict", "base_model", "trunk"),  # ClassyVision's and VISSL's, one in the other
)
EMA_CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "ema_weights"),
    *("teacher", "target_network", "target_encoder", "encoder_k", "model_k", "momentum_encoder"),
)
# Where there are no weights, but objects of any program: names that are not in our tables are passed over here.
_SECTIONS = """
    hyper_parameters hparams hparams_name hparams_type hyperparameters callbacks loops datamodule_hyper_parameters
    datamodule_hparams_name datamodule_hparams_type native_amp_scaling_state
    optimizer optimizers optimizer_state optimizer_states optimizer_state_dict optim optim_state_dict opt_state
    scheduler schedulers scheduler_state scheduler_state_dict lr_scheduler lr_schedulers lr_scheduler_state_dict
    param_schedulers args arguments train_args training_args opt opts options config configs cfg conf settings
    criterion loss loss_fn losses metric metrics meter meters hooks amp scaler grad_scaler amp_scaler
    history log logs meta message_hub trainer rng rng_state rng_states random_state transform transforms
"""
SECTIONS = frozenset(_SECTIONS.split())
# Dictionaries in dictionaries that are looked into: ClassyVision's weights are in the fifth.
DEPTH = 6
# How the names of inert tensors begin: sparse, quantised, or of a dtype that NumPy lacks.
TENSOR_KINDS = ("torch._utils._rebuild_", "a tensor of ")


class Weights(NamedTuple):
    """A dictionary of tensors, and the keys that lead to it."""

    path: tuple[str, ...]
    tensors: dict[Any, Any]

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def averaged(self) -> bool:
        return any(key in EMA_CONTAINERS for key in self.path)


def is_tensor(value: Any) -> bool:
    """Whether it was a tensor or an array when it was saved, of whatever kind."""
    if isinstance(value, Inert):
        return value.name.startswith(TENSOR_KINDS) or numpy_arrays.is_array(value)
    return isinstance(value, Tensor)


def choose(content: Any, container: str | None, ema: bool) -> tuple[Weights, list[Weights]]:
    """The weights of a checkpoint, and the other sets of weights in it.

    Args:
      content: the checkpoint.
      container: the name of the set to take; by default the likeliest.
      ema: take an average.

    Raises:
      WeightFileError: there is none such, or several that are alike.
    """
    found = _sets(content)
    if container is not None:
        fitting = [weights for weights in found if weights.name == container]
        if not fitting and found:
            raise WeightFileError(f"it holds no weights under {container[:80]!r}, but {listed(found)}.")
    else:
        fitting = _likeliest([weights for weights in found if weights.averaged or not ema], ema)
    if not fitting:
        wanted = EMA_CONTAINERS if ema else CONTAINERS
        raise WeightFileError(
            f"it holds {_describe(content)}, not {'averaged weights' if ema else 'a dictionary of tensors'}, also not "
            f"under {', '.join(map(repr, wanted))}. Save model.state_dict()."
        )
    if len(fitting) > 1 and any("kernel" in weights.tensors for weights in fitting):
        raise WeightFileError(
            "it holds a tree of Flax's variables as a pickle: write flax.serialization.to_bytes(variables) instead."
        )
    if len(fitting) > 1:
        raise WeightFileError(f"it holds {len(fitting)} sets of weights: {listed(fitting)}. Say which to take.")
    path = fitting[0].path
    return fitting[0], [weights for weights in found if weights.path != path[: len(weights.path)]]


def listed(found: list[Weights]) -> str:
    """Names of sets of weights, with their size and how to ask for each."""
    averages = _likeliest([weights for weights in found if weights.averaged], ema=True)
    said = []
    for weights in found[:6]:
        average = [*map(id, averages)] == [id(weights)]
        name = f"{weights.name[:60]!r}" if average else f"container={weights.name[:60]!r}"
        count = sum(map(is_tensor, weights.tensors.values()))
        said.append(f"{name} ({count} tensors{'; ema=True or --ema' * average})")
    return ", ".join(said) + f" and {len(found) - 6} more" * (len(found) > 6)


def refuse_unknown(value: Any, machine: Pickle) -> None:
    """Looks for names that no table has, everywhere but in `SECTIONS`, where they are passed over.

    Raises:
      WeightFileError: there is one.
    """
    if not machine.unknown:
        return
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Unknown):
            refuse(value.name)
        if id(value) not in seen and (inner := _inside(value)):
            machine.budget.spend(64 * (len(inner) + 1))
            seen.add(id(value))
            waiting.extend(inner)


def _inside(value: Any) -> list[Any]:
    """What a value holds, without sections."""
    match value:
        case dict():
            weights = _is_set(value)
            items = (item for item in value.items() if weights or item[0] not in SECTIONS)
            return [x for item in items for x in item]
        case list() | tuple():
            return list(value)
        case Inert():
            return value.contents
        case Tensor():
            return list(value.beside)
    return []


def _sets(content: Any) -> list[Weights]:
    found, seen = [], set()
    waiting = collections.deque([Weights((), content)])
    while waiting:
        path, value = waiting.popleft()
        # Each is looked at once, also one that holds itself.
        if not isinstance(value, dict) or id(value) in seen or len(path) > DEPTH:
            continue
        seen.add(id(value))
        if _is_set(value):
            found.append(Weights(path, value))
        for key, item in value.items():
            if isinstance(item, dict) and isinstance(key, str) and len(key) <= MAX_NAME and key not in SECTIONS:
                waiting.append(Weights((*path, key), item))
    return found


def _is_set(content: dict[Any, Any]) -> bool:
    """Whether it holds more tensors than other things, and not numbers alone."""
    tensors = [value for name, value in content.items() if isinstance(name, str) and is_tensor(value)]
    return 2 * len(tensors) > len(content) and any(map(_has_axes, tensors))


def _has_axes(tensor: Any) -> bool:
    if isinstance(tensor, Tensor):
        return bool(tensor.size)
    return not numpy_arrays.is_array(tensor) or numpy_arrays.has_axes(tensor)


def _likeliest(found: list[Weights], ema: bool) -> list[Weights]:
    """The set in the likeliest container; several if that cannot be told."""
    order = (*EMA_CONTAINERS, *CONTAINERS) if ema else (*CONTAINERS, *EMA_CONTAINERS)

    def rank(weights: Weights) -> tuple[int, list[int]]:
        places = [order.index(key) if key in order else len(order) for key in weights.path]
        return places.count(len(order)), [*places, len(order) + 1]  # what is inside comes first

    known = [weights for weights in found if not weights.path or weights.path[-1] in order] or found
    if not known or known is found:
        return found
    best = min(map(rank, known))
    fitting = [weights for weights in known if rank(weights) == best]
    # An average that stands beside weights of its size, under whatever name, is not taken unasked.
    rivals = [
        weights for weights in found if not weights.averaged and 2 * len(weights.tensors) > len(fitting[0].tensors)
    ]
    return [*rivals, *fitting] if fitting[0].averaged and not ema else fitting


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dictionary with the keys {sorted(shown(key)[:40] for key in content)[:8]}"
    return f"a {kind(content)}"
