"""A key that is given and would change nothing is refused, before anything is written; old runs go on as they are."""

import importlib
import json

import pytest

from paths import ROOT
from resnet_jax.configs import default
from resnet_jax.plan import dry_run
from resnet_jax.training import config_file, loop
from resnet_jax.training.keys import effect
from resnet_jax.training.keys.ranges import value_of
from tiny import tiny_config

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")

# Keys, with what gives them an effect and what takes it from them.
CASES = [
    ({"init_anew": ("fc",)}, {"init_from": "x"}, {}),
    ({"init_fit_channels": True}, {"init_from": "x"}, {}),
    ({"init_ema": False}, {"init_from": "x"}, {}),
    ({"batch_norm_devices": 0}, {}, {"model.name": "resnet50_gn"}),
    ({"batch_norm_devices": 4}, {"model.name": "resnet50_gn", "model.kwargs.norm": "batch"},
     {"model.kwargs.norm": "group"}),
    ({"data.path": "x"}, {"data.name": "folder"}, {"data.name": "cifar10"}),
    ({"data.data_dir": "x"}, {"data.name": "imagenet2012"}, {"data.name": "folder"}),
    ({"data.data_dir": "x"}, {"data.name": "tfds:mine"}, {"data.name": "synthetic"}),
    ({"data.num_examples": 9}, {"data.name": "synthetic"}, {"data.name": "digits"}),
    ({"data.crop_scale": (0.5, 1.0)}, {"data.crop": "resized"}, {"data.crop": "none"}),
    ({"data.decoder": "pillow"}, {"data.crop": "resized"}, {"data.crop": "pad"}),
    ({"data.padding": 4}, {"data.crop": "pad"}, {"data.crop": "resized"}),
    ({"data.augment_ops": 3}, {"data.augment": "rand"}, {"data.augment": "trivial"}),
    ({"data.augment_magnitude": 3}, {"data.augment": "rand"}, {"data.augment": "rand-m7-mstd0.5-inc1"}),
    ({"data.augment_interpolation": "bilinear"}, {"data.augment": "auto"}, {}),
    ({"data.augment_fill": "mean"}, {"data.augment": "rand-m7-mstd0.5-inc1"}, {}),
    ({"data.erase_noise": True}, {"data.erase": 0.1}, {}),
    ({"data.max_unreadable": 0.5}, {"data.on_error": "skip"}, {}),
    ({"optimizer.momentum": 0.8}, {}, {"optimizer.name": "adamw"}),
    ({"optimizer.nesterov": False}, {}, {"optimizer.name": "lamb"}),
    ({"optimizer.betas": (0.8, 0.99)}, {"optimizer.name": "lamb"}, {}),
    ({"optimizer.eps": 1e-6}, {"optimizer.name": "adamw"}, {}),
    ({"optimizer.decayed": "kernels"}, {}, {"optimizer.weight_decay": 0.0}),
    ({"schedule.per_epoch": True}, {"schedule.name": "constant"},
     {"schedule.name": "constant", "schedule.warmup_epochs": 0.0}),
    ({"schedule.warmup_start": 0.1}, {}, {"schedule.warmup_epochs": 0.0}),
    ({"schedule.under_warmup": True}, {"schedule.name": "linear"}, {"schedule.name": "step"}),
    ({"schedule.under_warmup": True}, {}, {"schedule.warmup_epochs": 0.0}),
    ({"schedule.final_rate": 0.01}, {}, {"schedule.name": "constant"}),
    ({"schedule.boundaries": (9.0,)}, {"schedule.name": "step"}, {}),
    ({"schedule.factor": 0.5}, {"schedule.name": "step"}, {"schedule.name": "linear"}),
    ({"loss.target_threshold": 0.2}, {"loss.name": "bce"}, {}),
    ({"loss.sum_classes": True}, {"loss.name": "bce"}, {}),
    ({"mix.prob": 0.5}, {"mix.cutmix": 1.0}, {}),
    ({"ema.every_steps": 32}, {"ema.decay": 0.9}, {}),
    ({"ema.copy_epochs": 1.0}, {"ema.decay": 0.9}, {}),
    ({"checkpoint_every_epochs": 2.0}, {}, {"checkpoint_every_steps": 100}),
]  # fmt: skip


def config_with(changes):
    config = default.get_config()
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(("given", "with_effect", "without"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_a_key_without_effect_is_refused_and_one_with_it_is_not(given, with_effect, without):
    effect.check(config_with(given | with_effect))
    effect.check(config_with(without))
    ((key, value),) = given.items()
    with pytest.raises(ValueError, match="has no effect") as refusal:
        effect.check(config_with(given | without))
    (line,) = str(refusal.value).splitlines()
    nothing, conditions = effect.NEEDS[key]
    assert line.startswith(f"config.{key}={value!r} has no effect with config.")
    assert f"leave it at {nothing!r}, or give " in line
    assert any(all(f"config.{other}=" in line for other in condition.by) for condition in conditions)


def test_every_line_of_the_table_is_tried():
    assert {key for given, *_ in CASES for key in given} == effect.NEEDS.keys()


def test_what_says_nothing_is_the_shipped_default():
    config = default.get_config()
    assert {key: value_of(config, key) for key in effect.NEEDS} == {
        key: value for key, (value, _) in effect.NEEDS.items()
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_no_config_has_a_key_without_effect(name):
    effect.check(importlib.import_module(f"configs.{name}").get_config())


def test_all_of_them_are_named_at_once():
    with pytest.raises(ValueError, match="has no effect") as refusal:
        effect.check(config_with({"optimizer.name": "adamw", "optimizer.nesterov": False, "mix.prob": 0.5}))
    assert str(refusal.value).splitlines() == [
        "config.optimizer.nesterov=False has no effect with config.optimizer.name='adamw': leave it at True, or give "
        "config.optimizer.name='sgd'.",
        "config.mix.prob=0.5 has no effect with config.mix.mixup=0.0 and config.mix.cutmix=0.0: leave it at 1.0, or "
        "give config.mix.mixup or config.mix.cutmix.",
    ]


def test_nothing_is_written_before(tmp_path):
    config = tiny_config(**{"schedule.factor": 0.5})
    for start in (lambda: loop.train(config, str(tmp_path / "run")), lambda: dry_run.dry_run(config)):
        with pytest.raises(
            ValueError, match=r"config.schedule.factor=0.5 has no effect with config.schedule.name='cos"
        ):
            start()
    assert not (tmp_path / "run").exists()


def test_a_run_of_an_earlier_version_goes_on_with_what_it_was_started_with(tmp_path):
    config = tiny_config(**{"schedule.factor": 0.5, "data.decoder": "opencv"})
    there = json.loads(config.to_json_best_effort()) | {"data": {"decoder": "pillow"}}  # what such a run recorded
    effect.check(config, there)
    config.mix.prob = 0.5
    with pytest.raises(ValueError, match=r"^config.mix.prob=0.5 has no effect[^\n]*$"):
        effect.check(config, there)


def test_the_way_out_can_be_typed(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs import imagenet_resnet50_a3\nget_config = imagenet_resnet50_a3.get_config")
    flags = ["--config.optimizer.name=sgd", "--config.schedule.warmup_epochs=0", "--config.loss.name=softmax"]
    with pytest.raises(ValueError, match="has no effect"):
        effect.check(config_file.load(str(path), flags))
    back = [
        "--config.optimizer.eps=1e-8",
        "--config.schedule.warmup_start=None",
        "--config.schedule.under_warmup=False",
    ]
    effect.check(config_file.load(str(path), [*flags, *back, "--config.loss.target_threshold=None"]))
