"""What the numbers of a config may be: one table, looked at before anything is built."""

import functools
import math
from collections.abc import Callable
from typing import Any

import ml_collections

# What a value must be, in words, and whether it is.
Range = tuple[str, Callable[[Any], bool]]


def _whole(least: int, most: int | None = None) -> Range:
    words = f"a whole number, {least} or more" if most is None else f"a whole number in {least}..{most}"

    def check(value: Any) -> bool:
        return type(value) is int and least <= value and (most is None or value <= most)

    return words, check


def _number(interval: str) -> Range:
    """`interval` as mathematics writes it: "[0, 1)"; infinity is never in it, nor is NaN."""
    low, high = (float(end) for end in interval[1:-1].split(","))

    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (value >= low if interval[0] == "[" else value > low) and (
            value <= high if interval[-1] == "]" else value < high
        )

    return f"a number in {interval}", check


def _each(single: Range, count: int | None = None) -> Range:
    words, check = single
    wanted = f"{'a tuple' if count is None else f'{count} numbers'}, each {words}"
    return wanted, lambda values: (count is None or len(values) == count) and all(map(check, values))


def _or_none(single: Range) -> Range:
    words, check = single
    return f"{words}, or None", lambda value: value is None or check(value)


RANGES: dict[str, Range] = {
    "seed": _whole(0, 2**32 - 1),
    "batch_size": _whole(1),
    "num_epochs": _number("(0, inf)"),
    "batch_norm_devices": _whole(0),
    "accumulate_steps": _whole(1),
    "model.num_classes": _whole(0),
    "data.num_examples": _whole(1),
    "data.held_out": _whole(0),
    "data.image_size": _whole(1),
    "data.early_sizes": _each(_whole(1)),
    "data.early_until": _each(_number("(0, inf)")),
    "data.eval_size": _whole(0),
    "data.eval_resize": _whole(0),
    "data.mean": _each(_number("(-inf, inf)")),
    "data.std": _each(_number("(0, inf)")),
    "data.crop_scale": _each(_number("(0, 1]"), 2),
    "data.padding": _whole(0),
    "data.augment_ops": _or_none(_whole(1)),
    "data.augment_magnitude": _or_none(_whole(0, 30)),
    "data.color_jitter": _each(_number("[0, inf)"), 4),
    "data.erase": _number("[0, 1]"),
    "data.repeats": _whole(1),
    "data.max_unreadable": _number("[0, 1)"),
    "data.num_threads": _whole(0),
    "data.num_workers": _whole(0),
    "optimizer.learning_rate": _number("[0, inf)"),
    "optimizer.momentum": _number("[0, 1)"),
    "optimizer.betas": _each(_number("[0, 1)"), 2),
    "optimizer.eps": _number("[0, inf)"),
    "optimizer.weight_decay": _number("[0, inf)"),
    "optimizer.clip_norm": _number("[0, inf)"),
    "optimizer.layer_decay": _number("(0, 1]"),
    "optimizer.label_smoothing": _number("[0, 1)"),
    "schedule.warmup_epochs": _number("[0, inf)"),
    "schedule.warmup_start": _or_none(_number("[0, 1]")),
    "schedule.final_rate": _number("[0, inf)"),
    "schedule.boundaries": _each(_number("[0, inf)")),
    "schedule.factor": _number("(0, inf)"),
    "loss.target_threshold": _or_none(_number("[0, 1)")),
    "loss.class_weights": _or_none(_each(_number("[0, inf)"))),
    "mix.mixup": _number("[0, inf)"),
    "mix.cutmix": _number("[0, inf)"),
    "mix.prob": _number("(0, 1]"),
    "ema.decay": _number("[0, 1)"),
    "ema.every_steps": _whole(1),
    "ema.copy_epochs": _number("[0, inf)"),
    "log_every_steps": _whole(0),
    "eval_every_epochs": _number("[0, inf)"),
    "checkpoint_every_epochs": _number("[0, inf)"),
    "checkpoint_every_steps": _whole(0),
    "keep_checkpoints": _whole(1),
    "keep_best": _whole(0),
    "profile_steps": _each(_whole(0), 2),
}


def value_of(config: ml_collections.ConfigDict, key: str) -> Any:
    """The value under a dotted name."""
    return functools.reduce(lambda node, part: node[part], key.split("."), config)


def has(config: ml_collections.ConfigDict, key: str) -> bool:
    """Whether there is one: what an optimiser of the user's own decides, `fit` leaves out."""
    group, _, name = key.rpartition(".")
    return name in (value_of(config, group) if group else config)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses numbers out of range, NaN and infinities.

    Raises:
      ValueError: naming each of these keys and its range.
    """
    values = {key: value_of(config, key) for key in RANGES if has(config, key)}
    wrong = [f"config.{key}={values[key]!r} must be {words}." for key, (words, right) in RANGES.items()
             if key in values and not right(values[key])]  # fmt: skip
    if wrong:
        raise ValueError("\n".join(wrong))
