"""The numbers between two reports, worked out by hand; what stops a run; which steps are traced."""

import contextlib
import types

import jax
import pytest

from resnet_jax.training import loop, trace, window


def sums(count=4, **changed):
    return {"loss": 2.0 * count, "correct": 1, "count": count, "grad_norm": 3.0, "steps": 1} | changed


def test_means_are_over_the_examples_and_steps_since_the_last_report():
    found = window.Window(4, 100, 0.5)
    found.add(1, sums(loss=100.0))
    found.restart()
    found.add(2, sums())
    found.add(3, sums(count=2, grad_norm=4.0))
    numbers = found.close()
    assert {key: numbers[key] for key in ("loss", "accuracy", "grad_norm", "unreadable")} == {
        "loss": 2.0, "accuracy": 1 / 3, "grad_norm": 3.5, "unreadable": 2,
    }  # fmt: skip
    assert numbers["images_per_second"] * 2 * numbers["seconds_per_step"] == pytest.approx(6)


@pytest.mark.parametrize(("name", "said"), [("loss", "the loss"), ("grad_norm", "the norm of the gradient")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_step(name, said, value):
    with pytest.raises(window.TrainingDiverged, match=f"{said} is {value} at step 7"):
        window.Window(4, 100, 0.5).add(7, sums(**{name: value}))


def test_the_share_of_unreadable_images_is_of_the_epochs_begun():
    """A tenth of 20 images: 2 in the first epoch, and 2 more once a second one has begun."""
    found = window.Window(4, 20, 0.1)
    found.add(1, sums(count=2))
    for step in (2, 3, 4, 5):
        found.add(step, sums())
    found.add(6, sums(count=2))
    with pytest.raises(window.TooManyUnreadable, match="5 of 40 images could not be read, more than .*=0.1 "):
        found.add(7, sums(count=3))


def test_just_the_steps_that_are_asked_for_are_traced(monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    with trace.Trace(3, 4, "there") as traced:
        for number in range(1, 7):
            with traced.step(number):
                seen.append(number)
    assert seen == [1, 2, "start there", 3, 4, "stop", 5, 6]


@pytest.mark.parametrize("steps", [(0, 0), (9, 9)])
def test_no_step_need_be_traced(steps, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", None)
    with trace.Trace(*steps, "there") as traced:
        assert all(isinstance(traced.step(number), contextlib.nullcontext) for number in range(1, 9))


class Noting:
    """Notes in which order its methods are called."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append(name)


def steps_of(calls, scores):
    """What is due after the steps of a run that evaluates each second step and saves only the best."""
    config = types.SimpleNamespace(
        batch_size=4, data=types.SimpleNamespace(max_unreadable=0.0), eval_every_epochs=1.0, keep_best=1,
        checkpoint_every_steps=0, checkpoint_every_epochs=0.0,
    )  # fmt: skip
    run = types.SimpleNamespace(
        config=config, facts=types.SimpleNamespace(num_train=8), steps_per_epoch=2, num_steps=100
    )
    return loop._Steps(run, Noting(calls), Noting(calls), scores, None)


def test_the_numbers_are_safe_before_the_checkpoint_of_their_step():
    calls = []
    steps_of(calls, {})._save(5, None)
    assert calls == ["flush", "save", "saved"]


@pytest.mark.parametrize(("accuracy", "saves"), [(0.4, False), (0.5, False), (0.6, True)])
def test_a_checkpoint_is_kept_for_being_better_and_not_for_being_as_good(accuracy, saves, monkeypatch):
    calls = []
    steps = steps_of(calls, {2: 0.5})
    monkeypatch.setattr(steps, "_evaluate", lambda step, state: {"accuracy": accuracy})
    steps._evaluate_and_save(4, None)
    assert ("save" in calls) == saves
