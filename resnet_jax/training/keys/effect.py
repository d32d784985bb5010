"""Keys that have an effect only where another key says so: given where they have none, they are refused."""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
from flax import traverse_util

from resnet_jax.data.sources.base import STOCK, TFDS_PREFIX
from resnet_jax.models.variants import VARIANTS
from resnet_jax.step.optimizer import FALLING
from resnet_jax.training.keys.ranges import value_of


class Condition(NamedTuple):
    """Where a key has an effect: the keys that decide it, what to give them, and whether their values do."""

    by: tuple[str, ...]
    words: str
    holds: Callable[..., bool]


def _is(key: str, *values: Any) -> Condition:
    return Condition((key,), f"config.{key}={' or '.join(map(repr, values))}", lambda value: value in values)


def _set(*keys: str) -> Condition:
    return Condition(keys, " or ".join(f"config.{key}" for key in keys), lambda *values: any(values))


def _has_statistics(name: str, norm: str | None) -> bool:
    return (norm or VARIANTS.get(name, {}).get("norm", "batch")) != "group"


def _is_prepared(name: str) -> bool:
    return name == "digits" or name in STOCK or name.startswith(TFDS_PREFIX)


_ADAM = _is("optimizer.name", "adamw", "lamb")
_AUGMENTS = Condition(("data.augment",), "config.data.augment the name of a policy", lambda name: name != "none")
_WARMS_UP = _set("schedule.warmup_epochs")

# Key -> the value that says nothing, which is that of configs/default.py, and where any other has an effect.
NEEDS: dict[str, tuple[Any, tuple[Condition, ...]]] = {
    "init_anew": ((), (_set("init_from"),)),
    "init_fit_channels": (False, (_set("init_from"),)),
    "init_ema": (True, (_set("init_from"),)),
    "batch_norm_devices": (
        1,
        (Condition(("model.name", "model.kwargs.norm"), "a network with batch norm", _has_statistics),),
    ),
    "data.path": ("", (_is("data.name", "folder"),)),
    "data.data_dir": ("", (Condition(("data.name",), "prepared data as config.data.name", _is_prepared),)),
    "data.num_examples": (1024, (_is("data.name", "synthetic"),)),
    "data.crop_scale": ((0.08, 1.0), (_is("data.crop", "resized"),)),
    "data.decoder": ("auto", (_is("data.crop", "resized"),)),
    "data.padding": (1, (_is("data.crop", "pad"),)),
    "data.augment_ops": (None, (_is("data.augment", "rand"),)),
    "data.augment_magnitude": (None, (_is("data.augment", "rand"),)),
    "data.augment_interpolation": (None, (_AUGMENTS,)),
    "data.augment_fill": (None, (_AUGMENTS,)),
    "data.erase_noise": (False, (_set("data.erase"),)),
    "data.max_unreadable": (0.001, (_is("data.on_error", "skip"),)),
    "optimizer.momentum": (0.9, (_is("optimizer.name", "sgd"),)),
    "optimizer.nesterov": (True, (_is("optimizer.name", "sgd"),)),
    "optimizer.betas": ((0.9, 0.999), (_ADAM,)),
    "optimizer.eps": (1e-8, (_ADAM,)),
    "optimizer.decayed": ("all", (_set("optimizer.weight_decay"),)),
    "schedule.per_epoch": (
        False,
        (
            Condition(
                ("schedule.name", "schedule.warmup_epochs"),
                "a rate that changes",
                lambda name, epochs: name != "constant" or bool(epochs),
            ),
        ),
    ),
    "schedule.warmup_start": (None, (_WARMS_UP,)),
    "schedule.under_warmup": (False, (_is("schedule.name", *FALLING), _WARMS_UP)),
    "schedule.final_rate": (0.0, (_is("schedule.name", *FALLING),)),
    "schedule.boundaries": ((0.0,), (_is("schedule.name", "step"),)),
    "schedule.factor": (0.1, (_is("schedule.name", "step"),)),
    "loss.target_threshold": (None, (_is("loss.name", "bce"),)),
    "loss.sum_classes": (False, (_is("loss.name", "bce"),)),
    "mix.prob": (1.0, (_set("mix.mixup", "mix.cutmix"),)),
    "ema.every_steps": (1, (_set("ema.decay"),)),
    "ema.copy_epochs": (0.0, (_set("ema.decay"),)),
    "checkpoint_every_epochs": (1.0, (_is("checkpoint_every_steps", 0),)),
}
# What config.json of a run holds of a key that has no effect, where that is not what was given.
_RECORDED = {"data.decoder": "pillow"}


def check(config: ml_collections.ConfigDict, there: Mapping[str, Any] | None = None) -> None:
    """Refuses keys that are given, and would change nothing.

    Args:
      config: resolved or not.
      there: the config of the run that this one goes on with: what an earlier version let pass stays as it is.

    Raises:
      ValueError: naming each such key, its value, what leaves it without effect, and the way out.
    """
    before = traverse_util.flatten_dict(there or {}, sep=".")
    found = []
    for key, (nothing, conditions) in NEEDS.items():
        value = value_of(config, key)
        plain = json.loads(json.dumps(value))  # as config.json has it: lists for tuples
        if value == nothing or (there and before.get(key, nothing) in (plain, _RECORDED.get(key, plain))):
            continue
        for by, words, holds in conditions:
            values = {other: value_of(config, other) for other in by}
            if not holds(*values.values()):
                shown = " and ".join(f"config.{other}={given!r}" for other, given in values.items())
                found.append(
                    f"config.{key}={value!r} has no effect with {shown}: leave it at {nothing!r}, or give {words}."
                )
    if found:
        raise ValueError("\n".join(found))
