"""A run whose state is not finite, though its loss is: stopped with the steps and the tensors, and never saved."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.runs import history, workdirs
from resnet_jax.training import checkpoint, experiment, hosts, loop, sound, window
from tiny import TWO_STAGES, tiny_config

# A first convolution, the last norm, the head, a statistic, an average, and the momentum: where in a state -> its name.
PLACES = {
    ("params", "conv1", "kernel"): "conv1.weight",
    ("params", "layer2", "0", "bn2", "scale"): "layer2.0.bn2.weight",
    ("params", "fc", "bias"): "fc.bias",
    ("batch_stats", "layer1", "0", "bn1", "var"): "layer1.0.bn1.running_var",
    ("ema", "params", "fc", "bias"): "moving average of fc.bias",
    ("ema", "batch_stats", "bn1", "mean"): "moving average of bn1.running_mean",
    ("opt_state", "fc", "kernel"): r"opt_state\.[\w.]*trace.fc.kernel",
}
VALUES = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf}


def with_value(state, place, value):
    """The state with `value` as one number of the tensor at `place`."""

    def change(path, leaf):
        keys = [getattr(key, "key", getattr(key, "name", None)) for key in path]
        # How deep an optimiser's state is nested is optax's affair.
        if keys[0] != place[0] or keys[-len(place[1:]) if keys[0] == "opt_state" else 1 :] != list(place[1:]):
            return leaf
        flat = leaf.ravel()
        return flat.at[flat.size // 2].set(value).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(change, state)


@pytest.fixture(scope="module")
def run():
    return experiment.build(tiny_config(TWO_STAGES, **{"ema.decay": 0.9}))


@pytest.fixture(scope="module")
def fresh(run):
    return run.create_state()


def window_of(*steps):
    """A window to which `steps` were added, with losses as good as any."""
    found = window.Window(batch_size=8, num_examples=64, max_unreadable=0)
    for step in steps:
        found.add(step, {"loss": 8.0, "grad_norm": 1.0, "correct": 1.0, "count": 8.0, "steps": 1.0})
    found.read()
    return found


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("place", PLACES, ids=PLACES.values())
def test_no_part_of_a_state_is_overlooked_on_the_host_or_on_the_devices(place, what, fresh):
    window_of(4, 5, 6).check(6, fresh)
    assert sound._is_finite(fresh)
    broken = with_value(fresh, place, VALUES[what])
    assert not sound._is_finite(broken)
    for steps, named in (((4, 5, 6), "one of the steps 4 to 6"), ((7,), "step 7")):
        said = rf"since {named} the state holds .*:\n  {PLACES[place]}: 1 of [\d,]+ float32 values: 1 {what}\nNo c"
        with pytest.raises(window.TrainingDiverged, match=said):
            window_of(*steps).check(steps[-1], broken)


def test_an_accelerator_is_asked_first(fresh, monkeypatch):
    """And what it holds is moved to the host only where something is wrong."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with monkeypatch.context() as patch:
        patch.setattr(sound, "damage", lambda state: pytest.fail("was moved"))
        assert not sound.damage_by_steps(fresh)
    assert "fc.bias" in sound.damage_by_steps(with_value(fresh, ("params", "fc", "bias"), np.nan))


# Whole runs ---------------------------------------------------------------------------------------------

BAD_STEP = 12


def poisoned_step(state, batch, **unused):
    """Costs nothing to compile: one step on, with a NaN from step 12 on, and a loss of which nobody would think ill."""
    step = state.step + 1
    bias = state.params["fc"]["bias"].at[3].add(jnp.where(step == BAD_STEP, jnp.nan, 0.0))
    params = state.params | {"fc": state.params["fc"] | {"bias": bias}}
    sums = {"loss": 8.0, "correct": 1.0, "count": 8.0, "grad_norm": 1.0, "steps": 1.0}
    return state.replace(step=step, params=params), {name: jnp.float32(value) for name, value in sums.items()}


def counting_step(state, batch, **unused):
    """An evaluation that costs nothing to compile."""
    count = jax.lax.psum(batch["mask"].sum(), "batch")
    return {"loss": 2 * count, "correct": 0 * count, "count": count}


@pytest.fixture
def poisoned(monkeypatch):
    monkeypatch.setattr(experiment, "train_step", poisoned_step)
    monkeypatch.setattr(experiment, "eval_step", counting_step)


@pytest.mark.parametrize("parallel", ["pmap", "jit"])
def test_a_run_stops_at_the_next_report_and_the_last_good_checkpoint_stays(parallel, poisoned, tmp_path, monkeypatch):
    judged = []

    def by_both(state, original=sound.damage):
        judged.append((bool(sound._is_finite(state)), original(state)))
        return judged[-1][1]

    monkeypatch.setattr(sound, "damage", by_both)
    config = tiny_config(parallel=parallel, log_every_steps=7)
    said = r"one of the steps 9 to 14 the state holds .*:\n  fc.bias: 1 of 10 float32 values: 1 NaN\n.*of step 8 stands"
    with pytest.raises(window.TrainingDiverged, match=said):
        loop.train(config, str(tmp_path))
    assert [(finite, found == "") for finite, found in judged] == [(True, True), (True, True), (False, False)]
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 8
    records = history.read_metrics(str(tmp_path))
    assert [(record["step"], record["split"]) for record in records] == [(7, "train"), (8, "train"), (8, "test")]


def test_what_is_told_to_stop_does_not_save_it(poisoned, tmp_path, monkeypatch):
    asked = iter(range(1, 100))
    # Asked after each of the first 8 steps, before each of the 8 batches of their evaluation, and after 4 more steps.
    monkeypatch.setattr(hosts.Preemption, "reached", lambda self: next(asked) == 8 + 8 + 4)
    with pytest.raises(window.TrainingDiverged, match=r"one of the steps 9 to 12 the state holds"):
        loop.train(tiny_config(log_every_steps=7), str(tmp_path))
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        assert checkpoints.latest_step() == 8


@pytest.mark.parametrize("place", [*PLACES][2::2], ids=[*PLACES.values()][2::2])
def test_a_checkpoint_with_such_values_is_refused_and_the_one_before_it_taken(place, run, fresh, tmp_path):
    broken = with_value(fresh, place, -np.inf).replace(step=fresh.step + 2)
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save(1, fresh.replace(step=fresh.step + 1))
        checkpoints.save(2, broken)
    folder = tmp_path / "checkpoints" / "2"
    said = rf"checkpoint {folder} holds .*\n  {PLACES[place]}: 1 of .* values: 1 -inf\nRemove that folder to go on"
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints, pytest.raises(checkpoint.DamagedCheckpoint, match=said):
        checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    shutil.rmtree(folder)
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        assert int(checkpoints.restore(run.abstract_state(), run.parallel.state_sharding).step) == 1


def test_a_run_does_not_go_on_from_or_evaluate_such_a_checkpoint(run, fresh, tmp_path):
    """A variance below zero, which no step makes, is seen there too."""
    workdirs.claim(str(tmp_path), run.config)
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save(5, with_value(fresh, ("batch_stats", "bn1", "var"), -0.25).replace(step=fresh.step + 5))
    for start in (loop.train, loop.evaluate):
        with pytest.raises(checkpoint.DamagedCheckpoint, match=r"  bn1.running_var: 1 of 8 float32 values: 1 below 0"):
            start(tiny_config(TWO_STAGES, **{"ema.decay": 0.9}), str(tmp_path))
