"""Which layers of a net train, and how fast: parts of it by PyTorch's dotted names, depth as timm counts it.

A layer is what holds tensors: "conv1", "layer1.0.bn2", "fc". A part is a layer, or what holds layers: "layer1.0".
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.")


class Parts(NamedTuple):
    """What step, optimiser and model must know of a net whose parts are trained differently.

    Attributes:
      frozen: layers that do not train.
      rates: layer -> factor on the learning rate, of the layers that do.
      freeze_norm: the field of `ResNet`; None: as it is.
    """

    frozen: tuple[str, ...] = ()
    rates: Mapping[str, float] = {}
    freeze_norm: bool | tuple[str, ...] | None = None


def split(tree: Mapping[str, Any], frozen: Collection[str]) -> tuple[Any, Any]:
    """Parameters, or batch statistics, as two trees: what is not in the layers `frozen`, and what is."""
    if not frozen:
        return tree, {}
    halves: tuple[dict[Any, Any], dict[Any, Any]] = ({}, {})
    for path, leaf in flatten_dict(dict(tree)).items():
        halves[_layer(path) in frozen][path] = leaf
    return unflatten_dict(halves[False]), unflatten_dict(halves[True])


def merge(trained: Any, still: Any) -> Any:
    """The tree that `split` parted."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(still)) if still else trained


def depths(layers: Iterable[str]) -> dict[str, int]:
    """Layer -> steps from the head back to it: 0 for `fc`, 1 for the last block, one more for each before, the stem's.

    timm's groups for layer-wise decay of a ResNet (`group_matcher(coarse=False)`). Blocks, and not stages: they are
    what follows one after the other, and a stage of ResNet-152 has 36 of them.
    """
    place = {layer: _place(layer) for layer in layers}
    order = sorted(set(place.values()), reverse=True)
    return {layer: order.index(found) for layer, found in place.items()}


def _place(layer: str) -> tuple[int, ...]:
    """Sorts from stem to head."""
    block = _BLOCK.match(layer)
    return (1, int(block[1]), int(block[2])) if block else (2,) if layer == "fc" else (0,)


def resolve(
    variables: Mapping[str, Any],
    *,
    rates: Sequence[tuple[str, float]],
    layer_decay: float,
    freeze_norm: bool | Sequence[str] | None,
) -> Parts:
    """The layers of a net, sorted by what is to happen to them.

    A layer trains with the product of two factors: that of the longest prefix in `rates` (1 without one; 0: it is
    frozen), and `layer_decay` to the power of its depth, as in timm's `param_groups_layer_decay`. Frozen are also the
    norms of the parts in `freeze_norm`: their scales get no gradient, and weight decay alone would move them.

    Args:
      variables: of the net, or their shapes.
      rates: (prefix, factor); "" is a prefix of everything.
      layer_decay: factor for each step from the head to the stem.
      freeze_norm: as the config has it; None: it follows from `rates`.

    Raises:
      ValueError: naming keys of the config: a prefix without a layer, a layer both frozen and given a rate, norms of
        one stage of which some are frozen, a net of which nothing trains.
    """
    layers, averaging = _layers(variables["params"]), _layers(variables.get("batch_stats", {}))
    factors = _factors(layers, dict(rates))
    by_norm = _norms_in(freeze_norm, averaging | _scaled(variables["params"]))
    _check_rates_of_norms(layers, rates, by_norm, freeze_norm)
    frozen = by_norm | {layer for layer in layers if factors[layer] == 0}
    depth = depths(layers)
    trained = {layer: factors[layer] * layer_decay ** depth[layer] for layer in sorted(layers - frozen)}
    _check_trained(depth, trained, rates, layer_decay)
    still = _parts_that_stand_still(averaging, frozen)
    if freeze_norm is None:
        return Parts(tuple(sorted(frozen)), trained, still or None)
    if not frozen & averaging <= by_norm:
        raise ValueError(
            f"config.optimizer.rates={tuple(rates)} freezes the norms of {', '.join(still)}, but "
            f"config.model.kwargs.freeze_norm={freeze_norm} lets statistics there move: leave it out, and it follows."
        )
    return Parts(tuple(sorted(frozen)), trained, freeze_norm if isinstance(freeze_norm, bool) else tuple(freeze_norm))


def _check_trained(
    depth: Mapping[str, int],
    trained: Collection[str],
    rates: Sequence[tuple[str, float]],
    layer_decay: float,
) -> None:
    if not trained:
        raise ValueError(
            f"config.optimizer.rates={tuple(rates)} freezes everything: give what is to train a factor above 0, as in "
            "(('', 0.0), ('fc', 1.0))."
        )
    if layer_decay != 1 and not any(depth[layer] for layer in trained):
        raise ValueError(
            f"config.optimizer.layer_decay={layer_decay} slows nothing down, as config.optimizer.rates={tuple(rates)} "
            "freezes all below the head: leave one of them out."
        )


def _factors(layers: Collection[str], rates: Mapping[str, float]) -> dict[str, float]:
    """Layer -> factor of its longest prefix."""
    chosen = {layer: _longest(layer, rates) for layer in layers}
    for prefix in rates:
        if not any(_inside(layer, prefix) for layer in layers):
            raise ValueError(
                f"config.optimizer.rates: no layer is inside {prefix!r}. The parts are "
                f"{', '.join(sorted({layer.partition('.')[0] for layer in layers}))}, and what they hold by its dotted "
                f"name, such as {max(sorted(layers), key=lambda layer: layer.count('.'))!r}."
            )
        if prefix not in chosen.values():
            raise ValueError(
                f"config.optimizer.rates: {prefix!r} says nothing, as longer prefixes hold all that is inside it: "
                "leave it out."
            )
    return {layer: 1.0 if prefix is None else rates[prefix] for layer, prefix in chosen.items()}


def _longest(layer: str, prefixes: Iterable[str]) -> str | None:
    return max((prefix for prefix in prefixes if _inside(layer, prefix)), key=len, default=None)


def _inside(layer: str, prefix: str) -> bool:
    return not prefix or f"{layer}.".startswith(f"{prefix}.")


def _check_rates_of_norms(
    layers: Collection[str], rates: Sequence[tuple[str, float]], still: Collection[str], freeze_norm: Any
) -> None:
    for prefix, factor in rates:
        if factor and still and all(layer in still for layer in layers if _inside(layer, prefix)):
            raise ValueError(
                f"config.optimizer.rates gives {prefix!r} the factor {factor}, but config.model.kwargs.freeze_norm="
                f"{freeze_norm} freezes it: leave one of them out."
            )


def _parts_that_stand_still(averaging: Collection[str], frozen: Collection[str]) -> tuple[str, ...]:
    """Parts, in the words of `freeze_norm`, whose norms are all frozen; of the others, none may be."""
    found = []
    for part in sorted({_part(layer) for layer in averaging}, key=lambda part: (part != "stem", len(part), part)):
        norms = sorted(layer for layer in averaging if _part(layer) == part)
        still = [layer for layer in norms if layer in frozen]
        if still and len(still) < len(norms):
            moving = next(layer for layer in norms if layer not in frozen)
            raise ValueError(
                f"config.optimizer.rates freezes {still[0]}, but not {moving}. The norms of the {part} keep their "
                f"running statistics together: freeze all of it, or all its norms by "
                f"config.model.kwargs.freeze_norm=({part!r},), or none."
            )
        found += [part] if still else []
    return tuple(found)


def _norms_in(freeze_norm: bool | Sequence[str] | None, norms: Collection[str]) -> set[str]:
    """The norms that `freeze_norm` names."""
    if isinstance(freeze_norm, bool):
        return set(norms) if freeze_norm else set()
    return {layer for layer in norms if _part(layer) in (freeze_norm or ())}


def _part(layer: str) -> str:
    """Of a layer below the head, in the words of `freeze_norm`."""
    return layer.partition(".")[0] if _BLOCK.match(layer) else "stem"


def _layers(tree: Mapping[str, Any]) -> set[str]:
    return {_layer(path) for path in flatten_dict(dict(tree))}


def _scaled(params: Mapping[str, Any]) -> set[str]:
    """Norms, which are the layers with a scale."""
    return {_layer(path) for path in flatten_dict(dict(params)) if path[-1] == "scale"}


def _layer(path: tuple[str, ...]) -> str:
    return ".".join(path[:-1])
