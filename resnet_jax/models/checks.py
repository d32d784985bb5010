"""What `ResNet` refuses, and how it says so. Every message names what was given and what would work."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from resnet_jax.models.blocks import Block

Array = jax.Array


def whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number: True and False, which Python takes for 1 and 0, are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _each(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(check, value))


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _deviation(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf)


def _bool(value: Any) -> bool:
    return isinstance(value, bool)


# Field -> what its value must be, in words, and whether it is.
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "num_classes": ("a whole number, 0 (no head) or more", functools.partial(whole, least=0)),
    "stage_sizes": ("the blocks of each stage, 1 or more, as (3, 4, 6, 3)", lambda value: _each(value, whole)),
    "stage_features": (
        "whole numbers, 1 or more, or None for 64, 128, ...",
        lambda value: value is None or _each(value, whole),
    ),
    "block_widths": (
        "for each stage, for each block, the whole numbers of its convolutions' channels, or None",
        lambda value: (
            value is None
            or _each(value, lambda stage: _each(stage, lambda block: block is None or _each(block, whole)))
        ),
    ),
    **dict.fromkeys(
        ("groups", "width_per_group", "reduce_first", "stem_features"), ("a whole number, 1 or more", whole)
    ),
    "first_stage_stride": ("1 or 2", lambda value: whole(value) and value <= 2),
    "output_stride": (
        "8, 16 or 32, or None for no dilation",
        lambda value: value is None or (whole(value) and value in (8, 16, 32)),
    ),
    **dict.fromkeys(
        ("drop_rate", "drop_path_rate", "drop_block_rate"), ("the share that is dropped, in [0, 1)", _share)
    ),
    **dict.fromkeys(("zero_init_residual", "stride_in_1x1"), ("True or False", _bool)),
    "fc_init_std": ("a standard deviation, above 0, or None for PyTorch's distribution", _deviation),
    "axis_index_groups": (
        "groups of places on an axis, as ((0, 1), (2, 3)), or None",
        lambda value: value is None or _each(value, lambda group: _each(group, functools.partial(whole, least=0))),
    ),
}


def check_values(model: Any) -> None:
    """Refuses numbers that no network can have, and what is no number where one belongs."""
    for field, (words, check) in _VALUES.items():
        if not check(value := getattr(model, field)):
            raise ValueError(f"{field}={value!r} must be {words}.")


def check_fields(model: Any, kinds: Sequence[Any], features: Sequence[int], widths: Sequence[Any]) -> None:
    """Refuses fields that no network can have, that contradict each other, or that would have no effect.

    Args:
      model: the `ResNet`.
      kinds: block of each stage.
      features: width of each stage.
      widths: for each stage, for each block, the widths of its convolutions.
    """
    one_each = {"block": kinds, "stage_features": features, "block_widths": widths}
    for field, given in one_each.items():
        if len(given) != len(model.stage_sizes):
            raise ValueError(f"{field} {given} and stage_sizes {model.stage_sizes} must have one entry for each stage.")
    for problem, found in {**_impossible(model, kinds, widths), **_without_effect(model)}.items():
        if found:
            raise ValueError(f"{problem}.")


def _impossible(model: Any, kinds: Sequence[Any], widths: Sequence[Any]) -> dict[str, bool]:
    """What is wrong -> whether it is so."""
    blocks, fixed = tuple(map(len, widths)), _fixed(model, kinds)
    return {
        f"block must be BasicBlock, Bottleneck, a class like them or a partial of one, got {kinds}": (
            not all(map(callable, kinds))
        ),
        f"block_widths is for stages of {blocks} blocks, stage_sizes is {model.stage_sizes}": (
            blocks != model.stage_sizes
        ),
        f"block={model.block} fixes {', '.join(fixed)}, and fields of ResNet decide that: give it there": bool(fixed),
    }


def _fixed(model: Any, kinds: Sequence[Any]) -> list[str]:
    """Arguments in partials of blocks that `ResNet` would give a second time, and so replace."""
    decided = {field.name for field in dataclasses.fields(Block)}
    decided -= {"reduce_first"} if model.reduce_first == 1 else set()  # which it gives where they are set
    decided -= {"stride_in_1x1"} if not model.stride_in_1x1 else set()
    return sorted({name for kind in kinds for name in getattr(kind, "keywords", {}) if name in decided})


def _without_effect(model: Any) -> dict[str, bool]:
    """What has no effect, or leaves nothing to have one on -> whether it is so."""
    return {
        f"block_widths states every width: width_per_group={model.width_per_group} has no effect": (
            model.block_widths is not None and model.width_per_group != 64
        ),
        "without shortcuts zero_init_residual and drop_path_rate leave nothing of a block": (
            model.shortcut == "none" and bool(model.zero_init_residual or model.drop_path_rate)
        ),
        f"axis_index_groups={model.axis_index_groups} divide an axis: give its axis_name": (
            model.axis_index_groups is not None and model.axis_name is None
        ),
        f"drop_path_rate={model.drop_path_rate} grows from 0 in the first block, and there is no other": (
            bool(model.drop_path_rate) and sum(model.stage_sizes) == 1
        ),
        f"drop_block_rate={model.drop_block_rate} acts in layer3 and layer4, which this network does not have": (
            bool(model.drop_block_rate) and len(model.stage_sizes) < 3
        ),
    }


def chosen(features: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    """The features themselves, all of which must be among `names`."""
    if isinstance(features, str) or not features:
        raise ValueError(f"features must list names, as in ('layer2', 'layer4'), got {features!r}.")
    if unknown := [name for name in features if name not in names]:
        near = difflib.get_close_matches(unknown[0], names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"the network has {', '.join(names)}."
        raise ValueError(f"no features {unknown}: {hint}")
    return features


def entry(field: str, value: Any, table: Mapping[str, Any]) -> Any:
    """What `value` names in the table of `field`, or `value` itself where it is a function or a class."""
    if isinstance(value, str) and value in table:
        return table[value]
    if isinstance(value, str):
        raise ValueError(f"unknown {field} {value!r}: give one of {sorted(table)}, or a function of the same form.")
    if not callable(value) or isinstance(value, nn.Module):
        raise ValueError(f"{field} must be one of {sorted(table)}, or a function or class like them, got {value!r}.")
    return value


def optional(field: str, value: Any, table: Mapping[str, Any]) -> Any:
    """`entry`, where None stands for nothing."""
    return None if value is None else entry(field, value, table)


def resolve_train(field: bool | None, argument: bool | None) -> bool:
    for value in (field, argument):
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                "`train` is traced, but it selects the program and must be a Python bool. Either build the model with "
                'it, as in resnet50(train=False), or use jax.jit(model.apply, static_argnames="train").'
            )
    for value in (field, argument):
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"`train` must be True or False, got {value!r}.")
    if (field is None) == (argument is None):
        got = "neither is given" if field is None else f"got the field train={field} and the argument train={argument}"
        raise ValueError(
            "`train` has no default, since a wrong one is silent: give it either as a field, resnet50(train=False), "
            f"or at the call, model.apply(variables, images, train=False); {got}."
        )
    return bool(field if argument is None else argument)


def check_images(x: Array) -> None:
    if x.ndim not in (3, 4):
        raise ValueError(
            "images must be [batch, height, width, channels], or one image [height, width, channels], got shape "
            f"{x.shape}."
        )
    if x.shape[-3] in (1, 3) and x.shape[-1] >= 16:
        raise ValueError(
            f"images must be [batch, height, width, channels], but shape {x.shape} looks like PyTorch's "
            "[batch, channels, height, width]: use jnp.moveaxis(images, -3, -1)."
        )
