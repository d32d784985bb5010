"""Every recipe runs: two steps and an evaluation on made-up images, with a net cut down to a block or two."""

import importlib
import pathlib

import jax
import ml_collections
import numpy as np
import pytest

from resnet_jax.models import variants
from resnet_jax.plan import needs
from resnet_jax.runs import history, reporting
from resnet_jax.training import config_file, experiment, loop

CONFIGS = config_file.names()

# What is shrunk is where and how long, not how: the recipe runs as it is written.
SMALL_NET = {"stage_features": (8,), "stem_features": 8}
EPOCHS = 16.0  # of one step, of which a test runs two


def shrunken(name):
    """The config of a file on 16 synthetic images, its epochs in proportion, 16 in all."""
    config = importlib.import_module(f"resnet_jax.configs.{name}").get_config()
    config = ml_collections.ConfigDict(config.copy_and_resolve_references())  # the rate stays that of the real batch
    shrink = EPOCHS / config.num_epochs
    config.batch_size, config.num_epochs = 16, EPOCHS
    schedule = config.schedule
    schedule.warmup_epochs = float(np.ceil(shrink * schedule.warmup_epochs))
    schedule.boundaries = tuple(float(np.ceil(shrink * epoch)) for epoch in schedule.boundaries)
    config.ema.copy_epochs = float(np.ceil(shrink * config.ema.copy_epochs))
    sizes = (2,) if config.model.kwargs.drop_path_rate else (1,)  # its rate grows from block to block
    config.model.kwargs.update(SMALL_NET, stage_sizes=sizes)
    data = config.data
    pixels = 16 / data.image_size
    data.early_sizes = tuple(round(pixels * size) for size in data.early_sizes)
    data.eval_size, data.eval_resize = round(pixels * data.eval_size), round(pixels * data.eval_resize)
    data.early_until = tuple(float(np.ceil(shrink * epoch)) for epoch in data.early_until)
    data.update(name="synthetic", path="", num_examples=16, image_size=16, num_threads=1)
    config.data.mean, config.data.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    config.init_from, config.init_anew, config.init_fit_channels = "", (), False
    config.compilation_cache_dir = ""
    config.eval_every_epochs = config.checkpoint_every_epochs = 2.0
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_how_it_is_run_and_what_to_expect(name):
    text = importlib.import_module(f"resnet_jax.configs.{name}").__doc__
    assert f"resnet-jax train --config={name} " in text
    if name != "default":
        assert "Hardware:" in text
        assert "Expected:" in text


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_the_same_by_name_and_by_the_file_in_the_checkout(name):
    by_name, by_file = (config_file.load(where) for where in (name, f"configs/{name}.py"))
    assert by_name.to_json_best_effort() == by_file.to_json_best_effort()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_can_be_built(name):
    """Nothing in it contradicts itself, and its network exists."""
    config = shrunken(name)
    assert variants.create_model(config.model.name, num_classes=10)
    run = experiment.build(config)
    rates = [float(run.schedule(step)) for step in range(run.num_steps)]
    assert max(rates) == pytest.approx(config.optimizer.learning_rate, rel=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_step_and_the_evaluation_of_a_config_can_be_traced(name):
    run = experiment.build(shrunken(name))
    state, batch = run.abstract_state(), needs.abstract_batch(run)
    after, sums = jax.eval_shape(run.parallel.train_step, state, batch)
    tested = jax.eval_shape(run.parallel.eval_step, after, batch)
    shapes, shapes_after = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)] for each in (state, after))
    assert shapes == shapes_after
    assert jax.tree.structure(state) == jax.tree.structure(after)
    assert sums.keys() >= {"loss", "grad_norm", "correct", "count"}
    assert tested.keys() == {"loss", "correct", "correct_top5", "count"}
    assert {(leaf.shape, leaf.dtype) for leaf in (*sums.values(), *tested.values())} == {((), np.dtype(np.float32))}


class TwoStepsMade(Exception):
    pass


# The others are trained in `make soak`; all are traced above.
UNLIKE = {
    "cifar10_resnet110",
    "imagenet_resnet50_a1",
    "imagenet_resnet50_fast",
    "linear_probe_folder_resnet50",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in UNLIKE else pytest.param(name, marks=pytest.mark.soak) for name in CONFIGS]
)
def test_a_config_makes_two_steps_and_an_evaluation(name, tmp_path, monkeypatch):
    original = reporting.Reporter.test

    def stop(self, step, numbers):
        original(self, step, numbers)
        raise TwoStepsMade

    monkeypatch.setattr(reporting.Reporter, "test", stop)
    with pytest.raises(TwoStepsMade):
        loop.train(shrunken(name), str(tmp_path))
    train, test = history.read_metrics(str(tmp_path))[-2:]
    assert (train["split"], test["split"], test["step"], test["count"]) == ("train", "test", 2, 16)
    assert np.isfinite([train["loss"], train["grad_norm"], test["loss"]]).all()
    assert pathlib.Path(tmp_path / "config.json").exists()
