"""What happens to runs: told to stop, disk full, damage, too many unreadable images; and what is kept of them."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import threading
import types

import jax
import numpy as np
import pytest

from resnet_jax.plan import dry_run
from resnet_jax.runs import history, reporting, workdirs
from resnet_jax.training import checkpoint, experiment, hosts, loop, window
from resnet_jax.weights.files import orbax_folder
from tiny import equal, final_state, tiny_config


def checkpoints_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: 16 steps, evaluated and saved at 8 and 16."""
    workdir = tmp_path_factory.mktemp("whole")
    loop.train(tiny_config(), str(workdir))
    return workdir


# Told to stop


def stopped_at(workdir, step, monkeypatch, **changes):
    """A run that gets SIGTERM while it makes `step`."""
    original = reporting.Reporter.train

    def stop(self, number, numbers):
        original(self, number, numbers)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(reporting.Reporter, "train", stop)
        with pytest.raises(loop.Preempted, match=r"saved step \d+ of 16; start again to go on"):
            loop.train(tiny_config(log_every_steps=1, **changes), str(workdir))


@pytest.mark.parametrize("step", [4, 7])
def test_sigterm_saves_and_the_run_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, step):
    stopped_at(tmp_path, step, monkeypatch)
    assert checkpoints_in(tmp_path)[-1] == step + 1  # the step in flight is finished, and no other
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    loop.train(tiny_config(log_every_steps=1), str(tmp_path))
    assert equal(final_state(tmp_path, tiny_config()), final_state(whole, tiny_config()))
    # Told at step 8, where an evaluation was due: it is made on the next start.
    tested = history.test_records(history.read_metrics(str(tmp_path)))
    expected = history.test_records(history.read_metrics(str(whole)))
    assert [(r["step"], r["correct"], r["loss"]) for r in tested] == [
        (r["step"], r["correct"], r["loss"]) for r in expected
    ]
    assert [entry["first_step"] for entry in workdirs.load_starts(str(tmp_path))] == [0, step + 1]


def test_sigterm_at_the_last_step_leaves_only_the_evaluation(whole, tmp_path, monkeypatch):
    stopped_at(tmp_path, 15, monkeypatch)
    assert checkpoints_in(tmp_path)[-1] == 16
    result = loop.train(tiny_config(log_every_steps=1), str(tmp_path))
    assert result["step"] == 16
    assert result["correct"] == history.test_records(history.read_metrics(str(whole)))[-1]["correct"]


@pytest.mark.parametrize("number", [1, 2], ids=["in the middle", "at the end"])
def test_sigterm_in_an_evaluation_does_not_wait_for_its_end(whole, tmp_path, monkeypatch, number):
    """An evaluation can take longer than the time that is left; what was due is made on the next start."""
    original, begun, made = experiment.eval_batches, [], []

    def told(run):
        begun.append(run)
        if len(begun) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run)

    monkeypatch.setattr(experiment, "eval_batches", told)
    monkeypatch.setattr(loop.metrics, "merge", lambda *args, merge=loop.metrics.merge: made.append(1) or merge(*args))
    with pytest.raises(loop.Preempted, match=rf"saved step {8 * number} of 16"):
        loop.train(tiny_config(checkpoint_every_epochs=2.0), str(tmp_path))
    assert len(made) == 8 * (2 * number - 1)  # the steps, and the batches of the evaluation before
    assert checkpoints_in(tmp_path)[-1] == 8 * number
    result = loop.train(tiny_config(checkpoint_every_epochs=2.0), str(tmp_path))
    expected = history.test_records(history.read_metrics(str(whole)))
    assert (result["correct"], result["loss"]) == (expected[-1]["correct"], expected[-1]["loss"])
    tested = history.test_records(history.read_metrics(str(tmp_path)))
    assert [record["step"] for record in tested] == [8, 16]


def test_a_second_sigterm_does_not_break_off_the_last_save(tmp_path, monkeypatch):
    original = checkpoint.Checkpointer.__exit__

    def told_again(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)  # ends this process, if nobody listens any more
        original(self, *args)

    monkeypatch.setattr(checkpoint.Checkpointer, "__exit__", told_again)
    stopped_at(tmp_path, 4, monkeypatch)
    assert checkpoints_in(tmp_path) == [5]


def test_preemption_asks_jax_where_there_are_several_hosts(monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        hosts.multihost_utils, "reached_preemption_sync_point", lambda turn: asked.append(turn) or turn == 3
    )
    with hosts.Preemption() as preemption:
        assert [preemption.reached() for _ in range(3)] == [False, False, True]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # JAX's own handler is left in place
    assert asked == [1, 2, 3]


def test_the_second_of_two_runs_in_one_workdir_is_refused(tmp_path, monkeypatch):
    """Each would remove what the other is about to save."""
    seen = []
    monkeypatch.setattr(loop, "_train", lambda run, workdir, *_: (seen.append(workdir), None))
    with workdirs.alone(str(tmp_path)), pytest.raises(workdirs.WorkdirInUse, match="another process is training in"):
        loop.train(tiny_config(), str(tmp_path))
    loop.train(tiny_config(), str(tmp_path))
    assert seen == [str(tmp_path)]


# What is kept


def test_the_latest_and_the_best_are_kept():
    class Info:
        def __init__(self, step):
            self.step = step

    infos, scores = [Info(step) for step in range(1, 8)], {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.7, 7: 0.1}
    kept = checkpoint.Keep(2, 2, scores).should_preserve(infos, context=None)
    assert [info.step for info, keep in zip(infos, kept, strict=True) if keep] == [2, 3, 6, 7]
    kept = checkpoint.Keep(1, 0, scores).should_preserve(infos, context=None)
    assert [info.step for info, keep in zip(infos, kept, strict=True) if keep] == [7]


def test_a_run_keeps_its_best_checkpoint_over_a_restart(tmp_path, monkeypatch):
    """The accuracy is made up: best after step 4; saved because it is best, and still there at the end."""
    accuracy = iter([0.2, 0.9, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(
        loop, "_evaluate", lambda *_: {"loss": 1.0, "accuracy": next(accuracy), "correct": 1.0, "count": 64.0}
    )
    often = {"eval_every_epochs": 0.25, "checkpoint_every_epochs": 1.0, "keep_checkpoints": 1, "keep_best": 1}
    stopped_at(tmp_path, 9, monkeypatch, **often)
    assert checkpoints_in(tmp_path) == [4, 10]
    loop.train(tiny_config(**often), str(tmp_path))
    assert checkpoints_in(tmp_path) == [4, 16]
    best = orbax_folder.load_variables(str(tmp_path / "checkpoints" / "4"))  # one checkpoint by its own path
    assert not equal(best, orbax_folder.load_variables(str(tmp_path)))


# Storage


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of TensorStore's abandoned writes
def test_a_full_disk_ends_the_run_with_one_message_and_loses_nothing(whole, small_disk, monkeypatch):
    original = checkpoint.Checkpointer.save

    def fill_then_save(self, step, state):
        if step == 16:
            self._manager.wait_until_finished()  # step 8 is whole, however slow the disk
            fill(small_disk)
        original(self, step, state)

    workdir = small_disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpointer, "save", fill_then_save)
        with pytest.raises(checkpoint.CheckpointNotSaved, match=r"is of step 8. Make room, .*same command"):
            loop.train(tiny_config(), str(workdir))
    gc.collect()  # what is left of those writes is heard of here, and not in another test
    (small_disk / "ballast").unlink()
    assert loop.train(tiny_config(), str(workdir))["step"] == 16
    assert equal(final_state(workdir, tiny_config()), final_state(whole, tiny_config()))


def test_a_damaged_checkpoint_is_named_with_the_way_back(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    for path in (workdir / "checkpoints" / "16" / "variables").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(checkpoint.DamagedCheckpoint, match=r"checkpoints/16 cannot be read: remove that folder"):
        loop.train(tiny_config(), str(workdir))
    shutil.rmtree(workdir / "checkpoints" / "16")
    loop.train(tiny_config(), str(workdir))
    assert equal(final_state(workdir, tiny_config()), final_state(whole, tiny_config()))


def test_a_save_that_was_killed_is_no_checkpoint_and_is_cleared_away(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    (workdir / "checkpoints" / "16").rename(workdir / "checkpoints" / "16.orbax-checkpoint-tmp")
    assert loop.evaluate(tiny_config(), str(workdir))["step"] == 8
    assert (workdir / "checkpoints" / "16.orbax-checkpoint-tmp").exists()  # evaluating removes nothing
    loop.train(tiny_config(), str(workdir))
    assert checkpoints_in(workdir) == [8, 16]
    assert not (workdir / "checkpoints" / "16.orbax-checkpoint-tmp").exists()


def test_what_a_failed_save_still_writes_is_no_hindrance_to_the_next_start(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    left = workdir / "checkpoints" / "16.orbax-checkpoint-tmp"
    (workdir / "checkpoints" / "16").rename(left)

    def write() -> None:
        for number in range(1000):
            with contextlib.suppress(OSError):
                (left / "variables").mkdir(exist_ok=True)
                (left / "variables" / str(number)).touch()

    writer = threading.Thread(target=write)
    writer.start()
    assert loop.train(tiny_config(), str(workdir))["step"] == 16
    writer.join()
    assert checkpoints_in(workdir) == [8, 16]


# Data


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_unreadable_images_than_allowed_stop_the_run(tmp_path, split, monkeypatch):
    from resnet_jax.data.images.pillow import UnreadableImage
    from resnet_jax.data.sources import synthetic

    original = synthetic.SyntheticSource.__getitem__

    def sometimes(self, index):
        if self.split == split and index in (5, 6):
            raise UnreadableImage("made up")
        return original(self, index)

    monkeypatch.setattr(synthetic.SyntheticSource, "__getitem__", sometimes)
    few = {"data.on_error": "skip", "data.max_unreadable": 1.5 / 64}
    with pytest.raises(window.TooManyUnreadable, match=r"2 of 64 images could not be read, more than .*max_unreadable"):
        loop.train(tiny_config(**few), str(tmp_path / "few"))
    many = {"data.on_error": "skip", "data.max_unreadable": 2 / 64}
    result = loop.train(tiny_config(**many), str(tmp_path / "many"))
    assert result["count"] == (62 if split == "test" else 64)


def test_other_data_on_resume_are_refused(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["fingerprint"] = "0123456789abcdef"
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="data.fingerprint: '0123456789abcdef' there"):
        loop.train(tiny_config(), str(workdir))


def test_another_batch_size_on_resume_is_refused(whole):
    with pytest.raises(ValueError, match=r"config.batch_size: 8 there, 16 now(.|\n)*another --workdir"):
        loop.train(tiny_config(batch_size=16), str(whole))


# Trying and looking


def test_a_dry_run_says_what_the_step_needs_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(dry_run.dry_run(tiny_config()))
    run = experiment.build(tiny_config())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.abstract_state().params))
    for expected in (f"parameters   {parameters:,}", "16 steps, 8 an epoch", "TFLOP", "MiB", "all-reduce", "64 images"):
        assert expected in lines
    assert not list(tmp_path.iterdir())


def test_steps_are_traced(tmp_path):
    loop.train(tiny_config(profile_steps=(3, 4)), str(tmp_path))
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert np.frombuffer(traces[0].read_bytes(), np.uint8).size > 1000


def test_of_equally_good_checkpoints_the_older_stays():
    infos = [types.SimpleNamespace(step=step) for step in (1, 2, 3)]
    keep = checkpoint.Keep(latest=1, best=1, scores={1: 0.9, 2: 0.9, 3: 0.1})
    assert keep.should_preserve(infos, context=None) == [True, False, True]
