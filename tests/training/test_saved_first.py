"""What was due to be saved is on the disk before an evaluation begins: whatever that meets, no step is lost to it."""

import signal

import jax
import numpy as np
import pytest
from test_life import checkpoints_in, stopped_at

import launching
from resnet_jax import errors
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources import synthetic
from resnet_jax.plan import dry_run, needs
from resnet_jax.plan.chips import Chip
from resnet_jax.runs import history, workdirs
from resnet_jax.training import experiment, loop
from tiny import HELPERS, equal, final_state, tiny_config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The state after a run that nothing happened to: 16 steps, evaluated and saved at 8 and 16."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(tiny_config(), str(workdir))
    return final_state(workdir, tiny_config())


@pytest.fixture
def broken(monkeypatch):
    """`broken(split, *indices)`: images that cannot be read from here on."""

    def break_(split, *indices, original=synthetic.SyntheticSource.__getitem__):
        def get(self, index):
            if self.split == split and index in indices:
                raise UnreadableImage("made up")
            return original(self, index)

        monkeypatch.setattr(synthetic.SyntheticSource, "__getitem__", get)

    return break_


def test_a_test_image_that_cannot_be_read_costs_no_step(whole, tmp_path, broken):
    broken("test", 5)
    with pytest.raises(UnreadableImage, match="made up") as raised:
        loop.train(tiny_config(), str(tmp_path))
    said = errors.message(raised.value)
    assert said.endswith("The checkpoint of step 8 is saved: the same command goes on with this evaluation.")
    assert "Traceback" not in said
    assert checkpoints_in(tmp_path) == [8]
    # With what the message proposes, in the same workdir.
    skipping = {"data.on_error": "skip", "data.max_unreadable": 0.1}
    assert loop.train(tiny_config(**skipping), str(tmp_path))["count"] == 63
    tested = history.test_records(history.read_metrics(str(tmp_path)))
    assert [record["step"] for record in tested] == [8, 16]
    assert [entry["first_step"] for entry in workdirs.load_starts(str(tmp_path))] == [0, 8]
    assert equal(final_state(tmp_path, tiny_config()), whole)


def test_a_bug_in_an_evaluation_keeps_its_traceback_and_says_what_stands(tmp_path, monkeypatch):
    """Where nothing was due to be saved, too."""

    def bug(run):
        raise ValueError("mine")

    monkeypatch.setattr(experiment, "eval_batches", bug)
    with pytest.raises(ValueError, match="mine") as raised:
        loop.train(tiny_config(checkpoint_every_epochs=2.0), str(tmp_path))
    said = errors.message(raised.value)
    assert "Traceback" in said
    assert "evaluation of step 8, at which none was due to be saved; there is no checkpoint yet" in said


def test_the_checkpoint_is_whole_when_its_evaluation_begins(tmp_path, monkeypatch):
    seen = []

    def look(run, original=experiment.eval_batches):
        seen.append(checkpoints_in(tmp_path))
        return original(run)

    monkeypatch.setattr(experiment, "eval_batches", look)
    loop.train(tiny_config(), str(tmp_path))
    assert seen == [[8], [8, 16]]


KILLS_ITSELF = """
import os, signal
from resnet_jax.training import experiment
from tiny import tiny_config

def end(run):
    os.kill(os.getpid(), signal.SIGKILL)

def get_config():
    experiment.eval_batches = end
    return tiny_config()
"""


@pytest.mark.slow
def test_a_run_killed_by_its_evaluation_goes_on_with_it(whole, tmp_path):
    (tmp_path / "config.py").write_text(KILLS_ITSELF)
    workdir = tmp_path / "run"
    (process,) = launching.start(tmp_path / "config.py", workdir, devices=jax.device_count(), PYTHONPATH=HELPERS)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    assert checkpoints_in(workdir) == [8]
    loop.train(tiny_config(), str(workdir))
    assert [record["step"] for record in history.test_records(history.read_metrics(str(workdir)))] == [8, 16]
    assert equal(final_state(workdir, tiny_config()), whole)


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [([0.2, 0.9, 0.3, 0.4], [8, 16]), ([0.2, 0.5, 0.3, 0.9], [16]), ([0.9, 0.1, 0.1, 0.9], [4, 16])],
)
def test_what_is_no_longer_the_best_does_not_stay(tmp_path, monkeypatch, accuracies, kept):
    """The accuracies, made up, after the steps 4, 8, 12 and 16: each is known when its step has been saved."""
    scores = iter(accuracies)
    monkeypatch.setattr(
        loop, "_evaluate", lambda *_: {"loss": 1.0, "accuracy": next(scores), "correct": 1.0, "count": 64.0}
    )
    rare = {"eval_every_epochs": 0.5, "checkpoint_every_epochs": 2.0, "keep_checkpoints": 1, "keep_best": 1}
    loop.train(tiny_config(**rare), str(tmp_path))
    assert checkpoints_in(tmp_path) == kept


def test_a_start_that_made_no_step_binds_nothing(tmp_path, broken, monkeypatch):
    broken("train", *range(64))
    with pytest.raises(UnreadableImage):
        loop.train(tiny_config(), str(tmp_path))
    monkeypatch.setattr(loop, "_restore_or_create", lambda *_: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        loop.train(tiny_config(seed=1), str(tmp_path))
    assert workdirs.load_config(str(tmp_path))["seed"] == 1


def test_a_restart_knows_how_many_images_could_not_be_read_before(tmp_path, broken, monkeypatch):
    windows = []
    broken("train", *range(0, 64, 8))
    skipping = {"data.on_error": "skip", "data.max_unreadable": 0.2}
    monkeypatch.setattr(loop, "Window", lambda *a, make=loop.Window, **k: windows.append(k) or make(*a, **k))
    stopped_at(tmp_path, 11, monkeypatch, **skipping)
    loop.train(tiny_config(**skipping), str(tmp_path))
    assert [(found["seen"], found["unreadable"] >= 8) for found in windows] == [(0, False), (12 * 8, True)]
    records = history.read_metrics(str(tmp_path))
    assert sum(record.get("unreadable", 0) for record in records if record["split"] == "train") == 16


# Before the first step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_dry_run_finds_a_broken_image_of_either_split(split, broken):
    broken(split, 13, 40)
    said = rf"2 of 64 {split} images that were looked at cannot be read:\n.*made up\n.*made up\n.*data.on_error=skip"
    with pytest.raises(UnreadableImage, match=said):
        dry_run.dry_run(tiny_config())
    lines = "\n".join(dry_run.dry_run(tiny_config(**{"data.on_error": "skip"})))
    assert f"looked at 64 of 64 of the {split} split: 2 cannot be read" in lines
    assert "split: all can be read" in lines  # the other one


def test_a_look_at_many_images_is_spread_over_them_and_ends(monkeypatch):
    seen, clock = [], iter(range(1000))

    class Source:
        def __getitem__(self, index):
            seen.append(index)
            return {"image": np.zeros((2, 2, 3), np.uint8)}

    class Images:
        source = Source()
        channels = 3

        def __len__(self):
            return 10_000

    monkeypatch.setattr(dry_run.inputs.time, "monotonic", lambda: next(clock))
    assert dry_run.inputs.look(Images(), 20.0) == (20, [])
    gaps = np.diff([0, *sorted(seen), 10_000])
    assert len(set(seen)) == 20
    assert max(gaps) < 3 * 10_000 / 20


def test_an_evaluation_takes_no_more_at_once_than_a_step(whole):
    """And comes to the same."""
    found = []
    for parts in (1, 2):
        run = experiment.build(tiny_config(accumulate_steps=parts))
        with experiment.eval_batches(run) as batches:
            assert len(next(batches)["label"]) == 8 // parts
        assert len(needs.abstract_eval_batch(run)["label"].shape) == 2  # of devices, and rows on each
        found.append(loop._evaluate(run, whole, lambda: None))
    one, two = found
    assert (one["correct"], one["count"]) == (two["correct"], two["count"])
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)


def test_the_plan_has_the_memory_of_an_evaluation(monkeypatch):
    """With the optimiser's state, of which an evaluation makes no use, beside it."""

    def size(run):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(run.abstract_state()))

    run, larger = (
        experiment.build(tiny_config(**{"data.eval_size": 64, "optimizer.name": name})) for name in ("sgd", "adamw")
    )
    analysis = needs.analyse(run)
    assert analysis.eval_batch == 2
    assert analysis.eval_bytes >= size(run) + 2 * 64 * 64 * 3
    assert needs.analyse(larger).eval_bytes - analysis.eval_bytes == size(larger) - size(run) > 0
    assert f"evaluation {analysis.eval_bytes / 2**20:,.1f} MiB, 2 images" in "\n".join(needs.describe(analysis))
    monkeypatch.setattr(needs, "device_share", lambda devices: Chip(analysis.eval_bytes - 1, 1.0, 1.0))
    with pytest.raises(needs.DoesNotFit, match="the evaluation, 2 images .*accumulate_steps"):
        needs.analyse(run)
