"""A recipe that contradicts itself is refused before anything is compiled, by the names of its keys."""

import ml_collections
import numpy as np
import pytest

from resnet_jax.configs import default
from resnet_jax.step import losses
from resnet_jax.training import experiment, recipe
from tiny import tiny_config

REFUSED = [
    ({"optimizer.name": "lars"}, r"unknown config.optimizer.name='lars': give one of adamw, lamb, sgd"),
    ({"optimizer.decayed": "x"}, r"unknown config.optimizer.decayed='x': give one of all, kernels, not_norm"),
    ({"optimizer.momentum": 0.0}, r"config.optimizer.nesterov=True needs config.optimizer.momentum above 0"),
    ({"schedule.name": "poly"}, r"unknown config.schedule.name='poly': give one of constant, cosine, linear, step"),
    ({"schedule.warmup_epochs": 2.0}, r"config.schedule.warmup_epochs=2.0 is not shorter than config.num_epochs=2.0"),
    (
        {"schedule.per_epoch": True, "schedule.warmup_epochs": 0.5},
        r"config.schedule.per_epoch=True needs whole epochs, but config.schedule.warmup_epochs=0.5",
    ),
    (
        {
            "schedule.per_epoch": True,
            "schedule.name": "step",
            "schedule.boundaries": (1.5,),
            "schedule.warmup_epochs": 0.0,
        },
        r"config.schedule.per_epoch=True needs whole epochs, but config.schedule.boundaries\[0\]=1.5",
    ),
    ({"loss.name": "hinge"}, r"unknown config.loss.name='hinge': give one of bce, softmax"),
    (
        {"loss.name": "bce", "loss.target_threshold": 0.5, "optimizer.label_smoothing": 0.6},
        r"config.loss.target_threshold=0.5 does not part the targets 0.06 and 0.46 .*label_smoothing=0.6",
    ),
    (
        {"mix.cutmix": 1.0, "accumulate_steps": 2},
        r"config.mix.cutmix mixes rows in pairs, .* 1 at a time \(config.batch_size=8 .*config.accumulate_steps=2",
    ),
    (
        {"loss.class_weights": (1.0, 2.0)},
        r"config.loss.class_weights has 2 entries, but there are 10 classes: give one",
    ),
    ({"loss.class_weights": (0.0,) * 10}, r"config.loss.class_weights are all 0: nothing would be learnt"),
    ({"model.kwargs": {"num_classes": 7}}, r"config.model.kwargs.num_classes: leave it out, for config.model.num_cl"),
    ({"model.kwargs": {"axis_name": "x"}}, r"config.model.kwargs.axis_name: .* config.batch_norm_devices decides it"),
    ({"model.kwargs": {"train": True}}, r"config.model.kwargs.train: leave it out, for the step decides it"),
    ({"ema.decay": 0.9, "ema.copy_epochs": 2.0}, r"config.ema.copy_epochs=2.0 is not shorter than config.num_epochs"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[" ".join(changes) for changes, _ in REFUSED])
def test_a_recipe_that_contradicts_itself_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        experiment.build(tiny_config(**changes))


def test_mixing_of_one_class_is_refused():
    config = default.get_config()
    config.model.num_classes = 1
    config.mix.mixup = 0.2
    with pytest.raises(ValueError, match=r"config.mix.mixup mixes classes, but config.model.num_classes=1"):
        recipe.check(config, rows=8)


def test_what_is_refused_here_is_fine_without_the_change():
    experiment.build(tiny_config())
    recipe.check(ml_collections.ConfigDict(default.get_config()), rows=8)


@pytest.mark.parametrize("name", ["softmax", "bce"])
def test_class_weights_reach_the_loss(name):
    config = default.get_config()
    config.loss.name, config.loss.class_weights = name, (1.0, 0.5, 0.0)
    loss = recipe.step_options(config, steps_per_epoch=8)["loss"]
    logits, targets = np.log(np.float32([[0.5, 0.25, 0.25]] * 3)), np.eye(3, dtype=np.float32)
    plain = losses.softmax_cross_entropy if name == "softmax" else losses.binary_cross_entropy
    assert loss(logits, targets).tolist() != plain(logits, targets).tolist()
    assert loss.keywords["class_weights"] == (1.0, 0.5, 0.0)
    if name == "softmax":
        np.testing.assert_allclose(loss(logits, targets), [np.log(2), 0.5 * np.log(4), 0], rtol=1e-6)


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 8), (0.5, 4), (2.3, 18)])
def test_the_start_that_an_average_forgets_is_counted_in_steps(epochs, steps):
    config = default.get_config()
    config.ema.decay, config.ema.copy_epochs, config.ema.every_steps = 0.9, epochs, 3
    average = recipe.step_options(config, steps_per_epoch=8)["update_average"]
    assert average.keywords == {"decay": 0.9, "every": 3, "steps_per_epoch": 8, "copy_steps": steps}
