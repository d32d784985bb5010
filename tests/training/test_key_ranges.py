"""Every number of a config has a range, and what lies outside of it is refused by name before anything is built."""

import math
import re

import ml_collections
import pytest

from resnet_jax.configs import default
from resnet_jax.training import experiment
from resnet_jax.training.keys import flags, ranges
from tiny import tiny_config

# Numbers among other things, which have a check of their own.
OTHERS = {"optimizer.rates"}
# The nearest values outside of each range.
OUTSIDE = {
    "seed": (-1, 2**32), "batch_size": (0, -8), "num_epochs": (0.0, -1.0), "accumulate_steps": (0,),
    "batch_norm_devices": (-1,), "model.num_classes": (-1,), "data.num_examples": (0,), "data.held_out": (-1,),
    "data.image_size": (0, -8), "data.early_sizes": ((0,),), "data.early_until": ((0.0,),), "data.eval_size": (-1,),
    "data.eval_resize": (-1,), "data.std": ((0.5, 0.0, 0.5),),
    "data.crop_scale": ((0.0, 1.0), (0.5, 1.1), (0.5,)), "data.padding": (-1,), "data.augment_ops": (0,),
    "data.augment_magnitude": (-1, 31), "data.color_jitter": ((-0.1, 0.0, 0.0, 0.0), (0.0,) * 3),
    "data.erase": (-0.1, 1.1), "data.repeats": (0,), "data.max_unreadable": (-0.1, 1.0), "data.num_threads": (-1,),
    "data.num_workers": (-1,), "optimizer.learning_rate": (-0.1,), "optimizer.momentum": (-0.1, 1.0),
    "optimizer.betas": ((0.9, 1.0), (-0.1, 0.9), (0.9,)), "optimizer.eps": (-1e-8,), "optimizer.weight_decay": (-1e-4,),
    "optimizer.clip_norm": (-1.0,), "optimizer.layer_decay": (0.0, 1.1), "optimizer.label_smoothing": (-0.1, 1.0),
    "schedule.warmup_epochs": (-0.5,), "schedule.warmup_start": (-0.1, 4.0), "schedule.final_rate": (-0.1,),
    "schedule.boundaries": ((-1.0,),), "schedule.factor": (0.0, -0.1), "loss.target_threshold": (-0.1, 1.0),
    "loss.class_weights": ((1.0, -1.0),),
    "mix.mixup": (-0.1,), "mix.cutmix": (-0.1,), "mix.prob": (0.0, 1.1), "ema.decay": (-0.1, 1.0),
    "ema.every_steps": (0,), "ema.copy_epochs": (-1.0,), "log_every_steps": (-1,), "eval_every_epochs": (-1.0,),
    "checkpoint_every_epochs": (-1.0,), "checkpoint_every_steps": (-1,), "keep_checkpoints": (0,), "keep_best": (-1,),
    "profile_steps": ((-1, 0), (1,)),
}  # fmt: skip


def numbers(config):
    """The keys of numbers, of tuples of them, and of what may be a number or None."""
    for key in flags.keys_of(config):
        value = ranges.value_of(config, key)
        first = value[0] if isinstance(value, tuple) and value else value
        *groups, name = key.split(".")
        kind = ranges.value_of(config, ".".join(groups)).get_type(name) if groups else config.get_type(name)
        if key.startswith("model.kwargs.") or isinstance(first, bool) or kind is bool:
            continue
        if kind in (int, float) or isinstance(first, int | float) or value == () or (kind is tuple and value is None):
            yield key


def test_every_number_of_a_config_has_a_range():
    there = set(numbers(default.get_config())) - {"init_anew"} - OTHERS
    assert there == ranges.RANGES.keys()
    ranges.check(default.get_config())
    ranges.check(tiny_config())


@pytest.mark.parametrize("key", [key for key in ranges.RANGES if key != "data.mean"])
def test_what_lies_outside_is_refused_by_name(key):
    for value in OUTSIDE[key]:
        with pytest.raises(ValueError, match=rf"^config.{key}={re.escape(repr(value))} must be [^\n]*\.$"):
            ranges.check(tiny_config(**{key: value}))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", ranges.RANGES)
def test_nothing_is_infinite_or_no_number(key, value):
    config = tiny_config(**{"loss.class_weights": (1.0, 1.0), "data.early_sizes": (4,), "data.early_until": (1.0,)})
    there = ranges.value_of(config, key)
    with config.ignore_type():
        config.update_from_flattened_dict({key: (value, *there[1:]) if isinstance(there, tuple) else value})
    with pytest.raises(ValueError, match=rf"^config.{key}=.* must be "):
        ranges.check(config)


def test_all_are_named_at_once_and_before_the_data_are_opened():
    config = tiny_config(**{"seed": -1, "optimizer.learning_rate": -0.1, "data.num_examples": 0, "data.path": "none"})
    with pytest.raises(ValueError, match="must be") as refusal:
        experiment.build(config)
    assert str(refusal.value).splitlines() == [
        "config.seed=-1 must be a whole number in 0..4294967295.",
        "config.data.num_examples=0 must be a whole number, 1 or more.",
        "config.optimizer.learning_rate=-0.1 must be a number in [0, inf).",
    ]


def test_true_is_no_number():
    config = ml_collections.ConfigDict(tiny_config())
    with config.ignore_type():
        config.batch_size = True
    with pytest.raises(ValueError, match="config.batch_size=True must be a whole number"):
        ranges.check(config)
