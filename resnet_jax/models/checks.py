"""What `ResNet` refuses, and how it says so. Every message names what was given and what would work."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

Array = jax.Array


def check_sizes(sizes: Any) -> None:
    """Refuses what is no tuple of numbers of blocks."""
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"stage_sizes must state the blocks of each stage, 1 or more, as (3, 4, 6, 3); got {sizes!r}.")


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
    for problem, found in {**_impossible(model, kinds, features, widths), **_without_effect(model)}.items():
        if found:
            raise ValueError(f"{problem}.")


def _impossible(model: Any, kinds: Sequence[Any], features: Sequence[int], widths: Sequence[Any]) -> dict[str, bool]:
    """What is wrong -> whether it is so."""
    blocks = tuple(map(len, widths))
    rates = {name: getattr(model, name) for name in ("drop_rate", "drop_path_rate", "drop_block_rate")}
    return {
        f"block must be BasicBlock, Bottleneck, a class like them or a partial of one, got {kinds}": (
            not all(map(callable, kinds))
        ),
        f"block_widths is for stages of {blocks} blocks, stage_sizes is {model.stage_sizes}": (
            blocks != model.stage_sizes
        ),
        f"num_classes={model.num_classes!r} must be a whole number, 0 (no head) or more": (
            not isinstance(model.num_classes, int) or model.num_classes < 0
        ),
        f"first_stage_stride={model.first_stage_stride!r} must be 1 or 2": model.first_stage_stride not in (1, 2),
        f"stride_in_1x1={model.stride_in_1x1!r} must be True or False": not isinstance(model.stride_in_1x1, bool),
        f"stem_features={model.stem_features} and stage_features={features} must be 1 or more": (
            min((model.stem_features, *features)) < 1
        ),
    } | {
        f"{name} is the share that is dropped, in [0, 1), got {rate!r}": (
            not isinstance(rate, int | float) or not 0 <= rate < 1
        )
        for name, rate in rates.items()
    }


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
