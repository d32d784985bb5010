"""From Python: anybody's module, data and optimiser, in the loop of `train.py`."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import cli
from resnet_jax.runs import history, workdirs
from resnet_jax.training import config_file, loop
from tiny import HELPERS, TINY, equal, tiny_config

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 48)
# Brighter with the label, and noisy.
IMAGES = np.clip(60 * LABELS[:, None, None, None] + RNG.integers(0, 90, (48, 6, 8, 2)), 0, 255).astype(np.uint8)
TEST = IMAGES[:20], LABELS[:20]


class Own(nn.Module):
    """A user's own network: a convolution, batch norm, dropout, a head."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3), strides=2)(x)))
        x = nn.Dropout(0.1, deterministic=not train)(x.mean((-3, -2)))
        return nn.Dense(3)(x)


def fit(workdir, model=None, train=(IMAGES, LABELS), test=TEST, **given):
    settings = {"log_every_steps": 2, "compilation_cache_dir": "", "data.num_threads": 1} | given.pop("config", {})
    given = {"num_epochs": 2, "batch_size": 8} | given
    return resnet_jax.fit(model or Own(), train, test, workdir=workdir, config=settings, **given)


class Log(resnet_jax.Callback):
    """What W&B's logger would be."""

    def __init__(self):
        self.heard = []

    def on_log(self, record):
        self.heard.append(("log", record["step"], record["loss"]))

    def on_evaluation(self, record):
        self.heard.append(("evaluation", record["step"], record["accuracy"]))

    def on_save(self, step):
        self.heard.append(("save", step))


TX = optax.adam(optax.linear_schedule(0.1, 0.0, 12))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    log = Log()
    return fit(tmp_path_factory.mktemp("run"), tx=TX, callbacks=[log]), log


def test_a_module_images_and_an_optimiser_of_the_users_own(finished):
    fitted, log = finished
    assert fitted.record["step"] == 12
    assert fitted.record["count"] == 20
    logits = Own().apply(fitted.variables, _normalised(TEST[0], fitted.workdir), train=False)
    assert (logits.argmax(-1) == TEST[1]).sum() == fitted.record["correct"]
    assert fitted.record["accuracy"] > 0.5
    tested = [record for record in fitted.history if record["split"] == "test"]
    assert [kind for kind, *_ in log.heard].count("save") == 2
    assert [x[1:] for x in log.heard if x[0] == "evaluation"] == [(r["step"], r["accuracy"]) for r in tested]
    logged = [(r["step"], r["loss"]) for r in fitted.history if r["split"] == "train"]
    assert [x[1:] for x in log.heard if x[0] == "log"] == logged
    assert "learning_rate" not in fitted.history[0]
    assert cli.main(["report", fitted.workdir]) == 0


def _normalised(images, workdir):
    data = workdirs.load_config(workdir)["data"]
    pixels = IMAGES.reshape(-1, 2) / 255
    assert np.allclose(data["mean"], pixels.mean(0), atol=1e-4)
    assert np.allclose(data["std"], pixels.std(0), atol=1e-4)
    return jnp.asarray((images / 255 - np.array(data["mean"])) / np.array(data["std"]), jnp.float32)


def test_killed_it_goes_on_to_the_same_bits(finished, tmp_path):
    class Killed(resnet_jax.Callback):
        def on_log(self, record):
            if record["step"] == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, tx=TX, callbacks=[Killed()])
    again = fit(tmp_path, tx=TX)
    assert equal(again.variables, finished[0].variables)
    timing = ("time", "images_per_second", "seconds_left")
    numbers = [[{k: v for k, v in r.items() if k not in timing} for r in f.history] for f in (again, finished[0])]
    assert numbers[0] == numbers[1]


SCRIPT = """
import sys
from test_fit import TX, fit
fit(sys.argv[1], tx=TX, num_epochs=40, config={"log_every_steps": 1, "checkpoint_every_steps": 7})
"""


@pytest.mark.soak
def test_a_script_that_is_killed_at_any_moment_ends_with_the_same_bits(tmp_path):
    long = {"log_every_steps": 1, "checkpoint_every_steps": 7}
    whole = fit(tmp_path / "whole", tx=TX, num_epochs=40, config=long)
    paths = os.pathsep.join([HELPERS, os.path.dirname(__file__)])
    for step in (3, 40, 111, 200):
        words = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
        process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": paths})
        while len(history.read_metrics(str(tmp_path / "killed"))) < step and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    again = fit(tmp_path / "killed", tx=TX, num_epochs=40, config=long)
    assert equal(again.variables, whole.variables)


class Torchlike:
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return IMAGES[index], LABELS[index]


EXAMPLES = [{"image": image, "label": label} for image, label in zip(IMAGES, LABELS, strict=True)]


@pytest.mark.parametrize(
    "train", [EXAMPLES, grain.MapDataset.source(EXAMPLES), Torchlike()], ids=["list", "grain", "torch"]
)
def test_the_same_examples_however_they_are_given(train, finished, tmp_path):
    assert equal(fit(tmp_path, train=train, tx=TX).variables, finished[0].variables)


def test_what_is_changed_in_a_run_is_refused_and_more_epochs_are_asked_for(finished, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)config.batch_size: 8 there, 16 now.*--extend-to.*init_from"):
        fit(finished[0].workdir, tx=TX, batch_size=16)
    with pytest.raises(ValueError, match="fingerprint"):
        fit(finished[0].workdir, tx=TX, train=(IMAGES[::-1].copy(), LABELS))


def test_one_of_ours_leaves_a_run_that_every_verb_takes(tmp_path, capsys):
    model = resnet_jax.cifar_resnet20(num_classes=3, **TINY, act="silu")
    grey = IMAGES[:, :, :6, :1].repeat(3, -1)
    names = ("dark", "grey", "bright")
    data, averaged = ((grey, LABELS), (grey[:20], LABELS[:20])), {"ema.decay": 0.9}
    fitted = fit(tmp_path / "run", model, *data, class_names=names, config=averaged)
    assert fitted.record["averaged"]
    found, variables = resnet_jax.load_pretrained(fitted.workdir)
    assert found == model
    assert equal(variables, fitted.variables)
    assert resnet_jax.class_names(fitted.workdir) == names
    assert resnet_jax.preprocessing(fitted.workdir).image_size == 6
    again = resnet_jax.fit(
        model, (grey, LABELS), (grey[:20], LABELS[:20]), workdir=tmp_path / "tuned", num_epochs=1, batch_size=8,
        variables=variables, config={"optimizer.rates": (("", 0.0), ("fc", 1.0)), "compilation_cache_dir": ""},
    )  # fmt: skip
    assert equal(again.variables["params"]["conv1"], variables["params"]["conv1"])
    assert not equal(again.variables["params"]["fc"], variables["params"]["fc"])
    with pytest.raises(ValueError, match="was started from Python"):
        loop.train(config_file.of_run(fitted.workdir), fitted.workdir)


def test_transforms_of_the_users_own(tmp_path):
    seen = []

    def transform(image, rng):
        seen.append(image.shape)
        return image[:4, :4] if rng.random() < 0.5 else image[2:, 4:]

    fitted = fit(tmp_path, transform=transform, eval_transform=lambda image: image[1:5, 2:6], num_epochs=1)
    assert set(seen) == {(6, 8, 2)}
    with pytest.raises(ValueError, match="unknown model 'given: test_fit.Own'"):
        resnet_jax.load_pretrained(fitted.workdir)


def test_what_a_transform_of_the_users_own_does_is_not_said_to_be_the_configs(tmp_path):
    model = resnet_jax.cifar_resnet20(num_classes=3, **TINY)
    crop = lambda image, rng=None: image[1:5, 2:6]  # noqa: E731 - a line, used in the next one
    fitted = fit(tmp_path, model, transform=crop, eval_transform=crop, num_epochs=1)
    assert resnet_jax.load_pretrained(fitted.workdir)[0].stage_sizes == (1,)
    with pytest.raises(ValueError, match="interpolation='given', and only"):
        resnet_jax.preprocessing(fitted.workdir)


def cifar(num_classes):
    return resnet_jax.cifar_resnet20(num_classes=num_classes, **TINY)


def test_variables_that_are_damaged_are_refused(tmp_path):
    variables = Own().init(jax.random.key(0), np.zeros((1, 6, 8, 2), np.float32), train=False)
    variables = jax.tree.map(np.array, variables)
    variables["params"]["Conv_0"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(resnet_jax.ConversionError, match="variables holds values .*\n.*Conv_0.weight: 1 of .* NaN"):
        fit(tmp_path, variables=variables)


def test_the_compilation_cache_is_the_one_that_is_named(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(loop, "use_compilation_cache", named.append)
    fit(tmp_path, num_epochs=1, config={"compilation_cache_dir": "here"})
    assert named == ["here"]


class NoClassifier(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Conv(3, (1, 1))(x)


class OtherVariables(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        self.variable("cache", "x", jnp.zeros, ())
        return nn.Dense(3)(x.mean((-3, -2)))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": NoClassifier()}, r"maps images \[1, 6, 8, 2\] to \(1, 6, 8, 3\), and must give logits"),
        ({"model": OtherVariables()}, r"by variables of \['cache'\]"),
        (
            {"train": (IMAGES / 255, LABELS)},
            r"example 0 of given/train: an image of shape \(6, 8, 2\) and type float64",
        ),
        ({"train": (IMAGES, LABELS[:3])}, "48 images and 3 labels"),
        ({"train": iter(EXAMPLES)}, "has no length"),
        ({"train": []}, "no train examples"),
        ({"train": ["a.png", "b.png"]}, "example 0 of given/train is of type str: give"),
        ({"train": [(IMAGES[0], 0.5)]}, "example 0 of given/train: 'float' object cannot be interpreted as an integer"),
        ({"train": (IMAGES, LABELS + 7)}, "label"),
        ({"tx": TX, "config": {"optimizer.momentum": 0.5}}, "tx is given, and so optimizer.momentum in config"),
        ({"config": {"batchsize": 3}}, "batchsize"),
        ({"config": {"data.flip": True}}, "not square stay as they are, and so data.flip in config"),
        ({"transform": max, "config": {"data.padding": 2}}, "transform is given, and so data.padding in config"),
        ({"config": {"num_epochs": 3.0}}, "config has 'num_epochs', which num_epochs says"),
        ({"config": {"data.held_out": 3}}, "config has 'data.held_out', which train_data says"),
        ({"config": {"model.kwargs.attn": "se"}}, "'model.kwargs.attn', but the model is given"),
        ({"config": {"batch_norm_devices": 0}}, "'batch_norm_devices', which acts in this package's networks"),
        ({"schedule": optax.constant_schedule(0.1)}, "schedule is that of tx, which is not given"),
        ({"variables": {"params": {"Dense_0": {"bias": np.zeros(3)}}}}, "of another model .* batch_stats.* is missing"),
        ({"model": cifar(3), "variables": {}, "config": {"init_from": "x"}}, "both say where the run starts"),
        ({"config": {"mix.prob": 0.5}}, "config.mix.prob=0.5 has no effect with config.mix.mixup=0.0"),
        ({"test": (IMAGES[..., :1], LABELS)}, "train_data have 2 channels, and test_data 1"),
    ],
    ids=lambda value: "",
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        fit(tmp_path / "run", **given)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("checkpoints/*"))


def test_where_nobody_shows_logs_the_lines_of_a_run_are_printed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("resnet_jax"), "level", logging.WARNING)
    fit(tmp_path, num_epochs=1)
    out = capsys.readouterr().out
    assert "step 6  test accuracy" in out
    assert logging.getLogger("resnet_jax").handlers == []


def test_images_without_channels_and_pillow_images(tmp_path):
    grey = [Image.fromarray(image[:, :6, 0]) for image in IMAGES]
    arrays = fit(tmp_path / "arrays", train=(IMAGES[:, :, :6, 0], LABELS), test=(IMAGES[:8, :, :6, 0], LABELS[:8]))
    pictures = fit(tmp_path / "pictures", train=list(zip(grey, LABELS)), test=list(zip(grey[:8], LABELS)))  # noqa: B905
    assert equal(arrays.variables, pictures.variables)
    assert workdirs.load_config(arrays.workdir)["data"]["image_size"] == 6


# More epochs ---------------------------------------------------------------------------------------------


def test_more_epochs_keep_what_the_run_has(tmp_path, capsys):
    short, long = tmp_path / "short", tmp_path / "long"
    keys = {"schedule.name": "constant", "schedule.warmup_epochs": 0.0}
    loop.train(tiny_config(num_epochs=1.0, **keys), str(short))
    result = loop.train(tiny_config(num_epochs=2.0, **keys), str(long))
    assert loop.train(tiny_config(num_epochs=2.0, **keys), str(short), extend=True)["loss"] == result["loss"]
    assert json.loads((short / "config.json").read_text())["num_epochs"] == 2.0
    loop.train(tiny_config(num_epochs=2.0, **keys), str(short))  # it is that run now
    with pytest.raises(ValueError, match="the run in .* has 2 epochs; give more"):
        loop.train(tiny_config(num_epochs=1.0, **keys), str(short), extend=True)
    with pytest.raises(ValueError, match="holds no run that could have more epochs"):
        loop.train(tiny_config(), str(tmp_path / "none"), extend=True)
    with pytest.raises(ValueError, match=r"(?s)config.seed: 0 there, 1 now"):
        loop.train(tiny_config(num_epochs=3.0, seed=1, **keys), str(short), extend=True)


def test_it_is_said_what_becomes_of_the_schedule(tmp_path, caplog):
    cosine = {"schedule.warmup_epochs": 0.0}
    with caplog.at_level(logging.INFO, "resnet_jax"):
        loop.train(tiny_config(num_epochs=1.0, **cosine), str(tmp_path))
        loop.train(tiny_config(num_epochs=2.0, **cosine), str(tmp_path), extend=True)
    schedule = loop.experiment.build(tiny_config(num_epochs=2.0, **cosine)).schedule
    earlier = loop.experiment.build(tiny_config(num_epochs=1.0, **cosine)).schedule
    assert (
        "1 epochs become 2: step 16 is the last. The schedule is that of a run of so many epochs from its start: the "
        f"rate goes on from {float(schedule(8)):.3g} at step 8, having come to {float(earlier(7)):.3g}"
    ) in caplog.text


def test_a_run_goes_on_by_its_workdir_alone(tmp_path):
    config = tiny_config(num_epochs=1.0, **{"schedule.warmup_epochs": 0.0})
    loop.train(config, str(tmp_path))
    again = config_file.of_run(str(tmp_path), ["--config.log_every_steps=5"])
    assert loop.train(again, str(tmp_path))["step"] == 8
