"""The numbers between two reports, worked out by hand; what stops a run; which steps are traced."""

import contextlib
import types

import jax
import pytest

from resnet_jax.runs import history
from resnet_jax.training import loop, trace, window


def sums(count=4, **changed):
    return {"loss": 2.0 * count, "correct": 1, "count": count, "grad_norm": 3.0, "steps": 1} | changed


def test_means_are_over_the_examples_and_steps_since_the_last_report():
    found = window.Window(4, 100, 0.5)
    found.add(1, sums(loss=100.0))
    found.read()
    found.restart()
    found.add(2, sums())
    found.add(3, sums(count=2, grad_norm=4.0))
    found.read()
    numbers = found.close()
    assert {key: numbers[key] for key in ("loss", "accuracy", "grad_norm", "unreadable")} == {
        "loss": 2.0, "accuracy": 1 / 3, "grad_norm": 3.5, "unreadable": 2,
    }  # fmt: skip
    assert numbers["images_per_second"] * 2 * numbers["seconds_per_step"] == pytest.approx(6)


@pytest.mark.parametrize(("name", "said"), [("loss", "the loss"), ("grad_norm", "the norm of the gradient")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named_with_its_step(name, said, value):
    found = window.Window(4, 100, 0.5)
    for step in (6, 7, 8):
        found.add(step, sums(**({name: value} if step > 6 else {})))
    with pytest.raises(window.TrainingDiverged, match=f"{said} is {value} at step 7"):
        found.read()


@pytest.mark.parametrize(
    ("saved", "said", "offered"),
    [(None, "No checkpoint was saved before", False), (40, "The checkpoint of step 40 stands", True)],
)
def test_a_checkpoint_is_offered_where_there_is_one(saved, said, offered):
    found = window.Window(4, 100, 0.5, saved_step=lambda: saved)
    found.add(1, sums(loss=float("nan")))
    with pytest.raises(window.TrainingDiverged, match=said) as raised:
        found.read()
    assert ("init_from" in str(raised.value)) == offered


def test_the_numbers_of_a_window_are_fetched_at_once(monkeypatch):
    fetched = []
    monkeypatch.setattr(window.jax, "device_get", lambda tree: fetched.append(len(tree)) or tree)
    monkeypatch.setattr(window, "UNREAD", 5)
    found = window.Window(4, 1000, 0.5)
    for step in range(1, 8):
        found.add(step, sums())
    found.read()
    assert fetched == [5, 2]  # and not more of them wait on the devices
    assert found.close()["loss"] == 2.0


def test_the_share_of_unreadable_images_is_of_the_epochs_begun():
    """A tenth of 20 images: 2 in the first epoch, and 2 more once a second one has begun."""
    found = window.Window(4, 20, 0.1)
    found.add(1, sums(count=2))
    for step in (2, 3, 4, 5):
        found.add(step, sums())
    found.add(6, sums(count=2))
    found.read()
    found.add(7, sums(count=3))
    with pytest.raises(window.TooManyUnreadable, match="5 of 40 images could not be read, more than .*=0.1 "):
        found.read()


def test_the_budget_of_unreadable_images_is_that_of_all_starts():
    found = window.Window(4, 20, 0.1, seen=20, unreadable=3)
    found.add(6, sums(count=3))
    found.read()
    found.add(7, sums(count=3))
    with pytest.raises(window.TooManyUnreadable, match="5 of 40 images"):
        found.read()


def test_what_could_not_be_read_is_counted_from_the_records():
    records = [
        {"step": 3, "split": "train", "unreadable": 2}, {"step": 4, "split": "train"},
        {"step": 4, "split": "test", "unreadable": 9}, {"step": 6, "split": "train", "unreadable": 1},
    ]  # fmt: skip
    assert history.count_unreadable(records) == 3


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


def steps_of(calls, scores, every=0, best=1):
    """What is due after the steps of a run that evaluates each second step, and saves each `every`-th."""
    config = types.SimpleNamespace(
        batch_size=4, data=types.SimpleNamespace(max_unreadable=0.0), eval_every_epochs=1.0, keep_best=best,
        checkpoint_every_steps=every, checkpoint_every_epochs=0.0,
    )  # fmt: skip
    run = types.SimpleNamespace(
        config=config, facts=types.SimpleNamespace(num_train=8), steps_per_epoch=2, num_steps=100
    )
    return loop._Steps(run, Noting(calls), Noting(calls), scores, None)


def test_the_numbers_are_safe_before_the_checkpoint_of_their_step():
    calls = []
    steps_of(calls, {})._save(5, None)
    assert calls == ["flush", "save", "saved"]


@pytest.mark.parametrize(
    ("step", "every", "best", "expected"),
    [
        (4, 4, 0, "flush save saved wait evaluate test"),
        (4, 4, 1, "flush save saved wait evaluate test tidy"),
        (4, 0, 1, "flush save saved wait evaluate test tidy"),  # it may turn out to be the best
        (4, 3, 0, "wait evaluate test"),
        (3, 3, 1, "flush save saved"),
    ],
)
def test_a_step_is_saved_and_whole_before_it_is_evaluated(step, every, best, expected, monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "_evaluate", lambda *_: calls.append("evaluate") or {"accuracy": 0.5})
    steps_of(calls, {2: 0.9}, every, best)._save_and_evaluate(step, None)
    assert calls == expected.split()


@pytest.mark.parametrize(("before", "size", "said"), [(4, 1, True), (2, 1, False), (4, 0, False), (4, 2, True)])
def test_another_number_of_devices_is_said_where_batch_norm_tells_them_apart(before, size, said, monkeypatch, caplog):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    config = types.SimpleNamespace(batch_norm_devices=size, batch_size=16, accumulate_steps=2)
    state = types.SimpleNamespace(step=5, batch_stats={"bn1": 0})  # the last start left no step
    starts = [{"devices": {"count": count}, "first_step": step} for count, step in ((8, 0), (before, 3), (16, 5))]
    loop._say_of_devices(types.SimpleNamespace(config=config), state, starts)
    line = f"each statistic of batch norm was over {2 * size} images, and is over {4 * size} from here on"
    assert (line in caplog.text) == bool(caplog.text) == said
