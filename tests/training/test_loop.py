"""A run as its user meets it: trains, resumes exactly, stops loudly, refuses what contradicts."""

import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import launching
from paths import ROOT
from resnet_jax.data import pipeline, transforms
from resnet_jax.runs import history, reporting, workdirs
from resnet_jax.training import checkpoint, config_file, experiment, loop, window
from resnet_jax.weights.files import orbax_folder
from tiny import HELPERS, equal, final_state, narrow, tiny_config, tiny_file


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, in the very layout that the others are compared with."""
    workdir = tmp_path_factory.mktemp("finished")
    result = loop.train(tiny_config(), str(workdir))
    return workdir, result


def test_a_run_leaves_config_metrics_checkpoints_and_curves(finished):
    workdir, result = finished
    records = history.read_metrics(str(workdir))
    # Windows close at every third step, and at steps 8 and 16, where an evaluation and a checkpoint are due.
    assert [r["step"] for r in records if r["split"] == "train"] == [3, 6, 8, 9, 12, 15, 16]
    assert [r["step"] for r in history.test_records(records)] == [8, 16]
    assert result == records[-1]
    assert result["count"] == 64
    assert {"epoch", "loss", "accuracy", "learning_rate", "images_per_second", "grad_norm"} <= records[0].keys()
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert workdirs.load_config(str(workdir))["model"]["num_classes"] == 10
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == ["16", "8"]


def test_evaluation_gives_exactly_what_was_logged(finished):
    workdir, result = finished
    again = loop.evaluate(tiny_config(), str(workdir))
    assert {key: again[key] for key in ("step", "correct", "count", "loss")} == {
        key: result[key] for key in ("step", "correct", "count", "loss")
    }


def test_starting_a_finished_run_again_changes_nothing(finished):
    workdir, result = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert loop.train(tiny_config(), str(workdir)) == result
    assert (workdir / "metrics.jsonl").read_text() == before


def test_a_stopped_run_goes_on_to_the_same_bits(finished, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop_at_13(self, step, numbers, original=reporting.Reporter.train):
        if step >= 12:
            raise Stopped
        original(self, step, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "train", stop_at_13)
        with pytest.raises(Stopped):
            loop.train(tiny_config(), str(tmp_path))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "spl')  # cut off by the kill
    loop.train(tiny_config(), str(tmp_path))
    one, two = (final_state(path, tiny_config()) for path in (finished[0], tmp_path))
    assert int(one.step) == 16
    assert equal(one, two)

    def numbers(workdir):
        timing = ("time", "images_per_second", "seconds_left")
        return [{k: v for k, v in r.items() if k not in timing} for r in history.read_metrics(str(workdir))]

    assert numbers(tmp_path) == numbers(finished[0])


def test_a_key_without_effect_that_an_earlier_version_let_pass_does_not_stop_a_run(finished, tmp_path):
    old, config = tmp_path / "old", tiny_config(**{"schedule.factor": 0.5})
    shutil.copytree(finished[0], old)
    there = json.loads((old / "config.json").read_text())
    there["schedule"]["factor"] = 0.5
    for group, key in ((there["loss"], "class_weights"), (there["model"]["kwargs"], "fc_init_std")):
        del group[key]  # which came later
    (old / "config.json").write_text(json.dumps(there))
    assert loop.train(config, str(old))["step"] == 16
    with pytest.raises(ValueError, match="schedule.factor=0.5 has no effect"):
        loop.train(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "killed_at"),  # of 40 steps
    [
        ("pmap", (20,)),  # after some checkpoints
        pytest.param("pmap", (5, 16, 30), marks=pytest.mark.soak),  # and before there is one
        pytest.param("jit", (5, 16, 30), marks=pytest.mark.soak),
    ],
)
def test_sigkill_at_any_step_then_restart_ends_with_the_same_bits(tmp_path, caplog, parallel, killed_at):
    config = tiny_file(
        tmp_path / "config.py", parallel=parallel, num_epochs=5.0, eval_every_epochs=5.0, log_every_steps=1,
        checkpoint_every_steps=7,
    )  # fmt: skip

    def steps(workdir):
        return len(history.read_metrics(str(workdir)))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    loop.train(config_file.load(str(config)), str(whole))
    for step in killed_at:
        (process,) = launching.start(config, killed, devices=jax.device_count(), PYTHONPATH=HELPERS)
        while steps(killed) < step and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
    with caplog.at_level(logging.INFO, "resnet_jax"):
        loop.train(config_file.load(str(config)), str(killed))
    assert "restored the checkpoint of step" in caplog.text
    left, right = (orbax_folder.load_variables(str(path)) for path in (whole, killed))
    assert equal(left, right)
    progress = [next((path / "checkpoints").glob("40/progress")) for path in (whole, killed)]
    assert equal(*(orbax_folder.load_tree(str(path)) for path in progress))


def test_a_checkpoint_of_four_devices_goes_on_with_one(finished, tmp_path, monkeypatch):
    run = experiment.build(tiny_config())
    one = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",)), jax.sharding.PartitionSpec()
    )
    with checkpoint.Checkpointer(str(finished[0])) as checkpoints:
        state = checkpoints.restore(run.abstract_state(), one)
    assert equal(state, final_state(finished[0], tiny_config()))
    assert len(state.params["conv1"]["kernel"].sharding.device_set) == 1
    narrow(monkeypatch, 1)
    result = loop.evaluate(tiny_config(), str(finished[0]))
    assert result["correct"] == finished[1]["correct"]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    original = experiment.train_batches

    def poisoned(run, start_step):
        for step, batch in enumerate(original(run, start_step), start_step + 1):
            yield batch | {"mask": batch["mask"] * np.float32(np.nan if step == 11 else 1)}

    monkeypatch.setattr(experiment, "train_batches", poisoned)
    with pytest.raises(window.TrainingDiverged, match=r"the loss is nan at step 11\..*learning_rate"):
        loop.train(tiny_config(), str(tmp_path))
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(orbax_folder.load_variables(str(tmp_path))))


def test_the_workdir_of_another_run_is_refused_and_untouched(finished):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"belongs to another run(.|\n)*config.seed: 0 there, 1 now(.|\n)*another --workdir"
    ):
        loop.train(tiny_config(seed=1), str(workdir))
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


def test_a_checkpoint_of_another_model_is_refused(finished):
    config = tiny_config()
    config.model.kwargs.stage_sizes = (2,)
    with pytest.raises(checkpoint.CheckpointMismatch, match=r"missing from it: .*layer1.1.*(.|\n)*config.json"):
        loop.evaluate(config, str(finished[0]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 6}, "a batch of 6 cannot be split evenly over 4 devices: use 4 or 8"),
        ({"batch_size": 128}, r"batch_size=128 must lie in 1..64"),
        ({"data.mean": (0.5,)}, "data.mean=.* has 1 entries, but the images of 'synthetic' have 3 channels"),
        ({"model.num_classes": 5}, "num_classes=5, but 'synthetic' has 10 classes"),
        ({"keep_checkpoints": 0}, "keep_checkpoints=0 must be a whole number, 1 or more"),
        ({"keep_best": -1}, "keep_best=-1 must be a whole number, 0 or more"),
        ({"parallel": "ddp"}, "unknown parallel mode 'ddp'"),
        ({"batch_norm_devices": 3}, "batch_norm_devices=3: groups of 3 devices do not divide 4: use one of 1, 2, 4"),
        ({"accumulate_steps": 4}, r"accumulate_steps=4 does not divide the 2 images of each device \(.*batch_size=8"),
        ({"data.on_error": "skip", "data.max_unreadable": 1.0}, r"max_unreadable=1.0 must be a number in \[0, 1\)"),
        ({"profile_steps": (5, 2)}, r"profile_steps=\(5, 2\) must be \(first, last\) steps"),
        (
            {"data.augment": "trivia"},
            "config.data: augment='trivia' is not known: use one of 'none', 'trivial', 'rand'",
        ),
        ({"data.augment_ops": 3}, "config.data.augment_ops=3 has no effect with config.data.augment='none'"),
        ({"data.color_jitter": (0.4, 0.4, 0.4)}, "color_jitter=.* must be 4 numbers"),
        ({"data.erase_noise": True}, "erase_noise=True has no effect with config.data.erase=0.0"),
        ({"data.repeats": 0}, "config.data.repeats=0 must be a whole number, 1 or more"),
        ({"profile_steps": (17, 20)}, r"profile_steps=\(17, 20\) begin after the last of the run's 16 steps"),
        ({"data.fingerprint": "0123"}, "fingerprint='0123', but that of 'synthetic' is '[0-9a-f]{16}'"),
        ({"schedule.warmup_epochs": 2.0}, "schedule.warmup_epochs=2.0 is not shorter than config.num_epochs=2.0"),
        ({"model.name": "resnet5"}, "unknown model 'resnet5'"),
        ({"data.name": "mnits"}, "mnits"),
        ({"data.name": "folder", "data.path": "/nowhere"}, "/nowhere"),
    ],
)
def test_a_config_that_contradicts_is_refused_before_anything_is_written(tmp_path, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        loop.train(tiny_config(**changes), str(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_init_from_starts_from_the_weights_of_another_run(finished, tmp_path):
    run = experiment.build(tiny_config(init_from=str(finished[0])))
    assert equal(run.create_state().variables, orbax_folder.load_variables(str(finished[0])))
    assert int(run.create_state().step) == 0
    assert loop.evaluate(tiny_config(init_from=str(finished[0])), "")["correct"] == finished[1]["correct"]


def test_weights_are_taken_in_the_dtypes_of_the_run_and_not_needed_again(finished, tmp_path):
    """A half-precision file does not make a half-precision run, and a resumed run does not read it any more."""
    from resnet_jax.weights import convert
    from resnet_jax.weights.files import formats

    model = experiment.build(tiny_config()).model
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), orbax_folder.load_variables(str(finished[0])))
    file = tmp_path / "half.safetensors"
    formats.save_state_dict(file, convert.to_torch(model, half))
    config = tiny_config(init_from=str(file))
    state = experiment.build(config).create_state()
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}
    np.testing.assert_array_equal(state.params["fc"]["bias"], half["params"]["fc"]["bias"].astype(np.float32))
    result = loop.train(config, str(tmp_path / "run"))
    file.unlink()
    assert loop.train(config, str(tmp_path / "run")) == result


def test_nothing_to_evaluate_is_said(tmp_path):
    with pytest.raises(ValueError, match="give --workdir of a run, or --config.init_from"):
        loop.evaluate(tiny_config(), "")
    with pytest.raises(FileNotFoundError, match="not the workdir of a run"):
        loop.evaluate(tiny_config(), str(tmp_path))


def test_the_augmentation_of_the_config_reaches_the_batches():
    keys = {"augment": "rand", "augment_ops": 1, "augment_magnitude": 20, "augment_interpolation": "bilinear"}
    keys |= {"augment_fill": "mean", "color_jitter": (0.4, 0.4, 0.4, 0.1), "erase": 0.5, "crop": "resized"}
    data = {f"data.{key}": value for key, value in keys.items()}
    run = experiment.build(tiny_config(**data, **{"data.repeats": 2, "data.erase_noise": True}))
    mean, std = run.config.data.mean, run.config.data.std
    transform = transforms.train_transform(
        run.config.data.image_size,
        **keys,
        flip=run.config.data.flip,
        decoder=run.config.data.decoder,
        fill=tuple(round(255 * value) for value in mean),
        erase_noise=tuple(255 * value for value in std),
    )
    numbers = {"batch_size": run.config.batch_size, "seed": run.config.seed, "repeats": 2, "start_step": 3}
    with (
        experiment.train_batches(run, 3) as batches,
        pipeline.train_batches(run.train_data, transform=transform, **numbers) as expected,
    ):
        np.testing.assert_array_equal(next(batches)["image"], next(expected)["image"])


BAD_FLAGS = {
    "--config.batchsize=3": "did you mean batch_size?",
    "--config.batch_size=0": "train.py: config.batch_size=0 must be a whole number, 1 or more",
    "--mode=evaluate": "choose from",
    "extra": "unknown arguments ['extra']",
    "--hosts=one --coordinator=a:1": "--hosts=one is alone",
}
# Each command in a fork of one interpreter: (exit code, what it printed) of each.
ALL_AT_ONCE = """
import json, os, runpy, sys, tempfile
from absl import app, flags
from ml_collections import config_flags
from resnet_jax.training import loop  # what all of them would import

ended = []
for command in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            sys.argv = command.split()
            runpy.run_path("train.py", run_name="__main__")
            sys.exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        ended.append((code, said.read()))
print(json.dumps(ended))
"""


def test_bad_flags_are_one_message(tmp_path):
    command = f"train.py --config=configs/synthetic_resnet18.py --workdir={tmp_path}/run"
    commands = [f"{command} {flags}" for flags in BAD_FLAGS]
    done = subprocess.run([sys.executable, "-c", ALL_AT_ONCE, *commands], cwd=ROOT, capture_output=True, text=True)
    for (code, said), expected in zip(json.loads(done.stdout), BAD_FLAGS.values(), strict=True):
        assert code > 0
        assert expected in said
        assert not expected.startswith("train.py:") or "Traceback" not in said
    assert not pathlib.Path(tmp_path, "run", "config.json").exists()


def test_metrics_lines_are_json(finished):
    for line in (finished[0] / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["split"] in ("train", "test")
    assert not os.path.exists(finished[0] / "config.json.tmp")


def test_unreadable_photographs_are_refused_by_name_or_counted(tmp_path, capsys):
    """One damaged image in each split: never a silent wrong label."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("test", 9)):
        for index in range(count):
            folder = tmp_path / "data" / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{index:02}.png")
        (folder / "broken.png").write_bytes(b"\x89PNG cut off")
    photographs = {"data.name": "folder", "data.path": str(tmp_path / "data"), "model.num_classes": 10}
    with pytest.raises(Exception, match=r"broken.png.*on_error='skip'"):
        loop.train(tiny_config(**photographs), str(tmp_path / "refused"))
    result = loop.train(
        tiny_config(**photographs, **{"data.on_error": "skip", "data.max_unreadable": 0.2}), str(tmp_path / "skipped")
    )
    assert result["count"] == 9
    records = history.read_metrics(str(tmp_path / "skipped"))
    assert sum(record.get("unreadable", 0) for record in records) == 2  # one in each of two epochs
