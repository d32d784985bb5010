"""The moving average: by hand, in a run that is stopped and goes on, evaluated, exported."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_life import stopped_at

from resnet_jax import cli, inference
from resnet_jax.step.averaging import update_average
from resnet_jax.step.step import create_train_state
from resnet_jax.training import checkpoint, experiment, loop
from resnet_jax.weights.files import orbax_folder
from tiny import equal, final_state, tiny_config

pytestmark = pytest.mark.usefixtures("drawn_once")
# Every part that a recipe can add at once: they share what is saved and what is drawn.
RECIPE = {
    "ema.decay": 0.9,
    "ema.every_steps": 3,
    "ema.copy_epochs": 1.0,
    "optimizer.name": "lamb",
    "optimizer.decayed": "kernels",
    "optimizer.clip_norm": 1.0,
    "loss.name": "bce",
    "mix.mixup": 0.2,
    "mix.cutmix": 1.0,
}


def test_updates_by_hand():
    """Epochs of 5 steps, each second one counts: 0, 2, 4, 5, 7, 9; copies up to the end of the first epoch."""
    average, seen = {"x": jnp.float32(100.0)}, []
    for step in range(10):
        variables = {"x": jnp.float32(step)}
        average = update_average(
            average, variables, jnp.int32(step), decay=0.75, every=2, steps_per_epoch=5, copy_steps=5
        )
        seen.append(float(average["x"]))
    assert seen == [0, 0, 2, 2, 4, 5, 5, 0.75 * 5 + 0.25 * 7, 5.5, 0.75 * 5.5 + 0.25 * 9]


def test_the_small_weight_of_a_slow_average_is_exact_in_float32():
    average = update_average(
        jnp.float32(0.0), jnp.float32(1.0), jnp.int32(1), decay=0.99998, every=1, steps_per_epoch=9, copy_steps=0
    )
    assert float(average) == np.float32(1 - 0.99998)
    assert float(average) != np.float32(1) - np.float32(0.99998)


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_average_of_narrow_parameters_is_kept_in_float32(kind):
    """In bfloat16 it would stand still: 1 and a thousandth of 2 is 1. By hand, in NumPy's float64."""
    variables = {"params": {"w": jnp.ones(3, kind)}, "batch_stats": {"mean": jnp.ones(3)}}
    model = types.SimpleNamespace(apply=None)
    average = create_train_state(model, variables, optax.sgd(1.0), ema=True).ema
    assert {leaf.dtype for leaf in jax.tree.leaves(average)} == {np.dtype("float32")}
    moved = {"params": {"w": jnp.full(3, 3.0, kind)}, "batch_stats": {"mean": jnp.full(3, 3.0)}}
    for step in range(50):
        average = update_average(
            average, moved, jnp.int32(step + 1), decay=0.999, every=1, steps_per_epoch=99, copy_steps=0
        )
    for leaf in jax.tree.leaves(average):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, 3 - 2 * 0.999**50, rtol=1e-5)


@pytest.mark.slow
def test_a_run_in_bfloat16_goes_on_from_an_average_of_before_in_bfloat16(tmp_path):
    """It is evaluated in the dtypes in which others load it."""
    config = tiny_config(**{"ema.decay": 0.9, "model.kwargs.param_dtype": "bfloat16"})
    run = experiment.build(config)
    state = run.create_state()
    old = state.replace(ema=jax.tree.map(lambda a, b: a.astype(b.dtype), state.ema, state.variables))
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save(0, old)
    restored = final_state(tmp_path, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(restored.ema)} == {np.dtype("float32")}
    assert equal(restored.ema, state.ema)
    narrow = loop._evaluate(run, restored.replace(ema=None), lambda: None)
    assert loop._evaluate(run, restored, lambda: None)["loss"] == narrow["loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    return workdir, loop.train(tiny_config(**RECIPE), str(workdir))


@pytest.mark.slow
def test_the_average_is_saved_and_evaluated_and_is_another_net(whole):
    workdir, record = whole
    state = final_state(workdir, tiny_config(**RECIPE))
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.variables)
    assert not equal(state.ema, state.variables)
    again = loop.evaluate(tiny_config(**RECIPE), str(workdir))
    assert (again["loss"], again["correct"]) == (record["loss"], record["correct"])
    run = experiment.build(tiny_config(**RECIPE))
    without_params = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
    assert loop._evaluate(run, without_params, lambda: None)["loss"] == again["loss"]
    assert loop._evaluate(run, state.replace(ema=state.variables), lambda: None)["loss"] != again["loss"]


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_with_the_same_average(whole, tmp_path, monkeypatch):
    stopped_at(tmp_path, 10, monkeypatch, **RECIPE)
    loop.train(tiny_config(**RECIPE), str(tmp_path))
    left, right = (final_state(path, tiny_config(**RECIPE)) for path in (tmp_path, whole[0]))
    assert equal(left, right)
    assert left.ema is not None


@pytest.mark.slow
def test_the_average_is_loaded_and_exported(whole, tmp_path, capsys):
    workdir, _ = whole
    average, variables = orbax_folder.load_variables(str(workdir), ema=True), orbax_folder.load_variables(str(workdir))
    state = final_state(workdir, tiny_config(**RECIPE))
    assert equal(average, state.ema)
    assert equal(variables, state.variables)
    assert cli.main(["convert", str(workdir), "--ema", f"--out={tmp_path / 'average'}"]) == 0
    assert equal(orbax_folder.load_variables(str(tmp_path / "average")), average)
    with pytest.raises(FileNotFoundError, match=r"holds no moving average"):
        orbax_folder.load_variables(str(tmp_path / "average"), ema=True)


@pytest.mark.slow
def test_the_command_evaluates_what_the_run_evaluated(whole, capsys, monkeypatch):
    workdir, record = whole
    evaluate, taken = inference.evaluate, []

    def listening(model, variables, *rest, **options):
        taken.append(variables)
        return evaluate(model, variables, *rest, **options)

    monkeypatch.setattr(inference, "evaluate", listening)
    assert cli.main(["evaluate", f"--model={workdir}"]) == 0
    assert equal(taken[0], final_state(workdir, tiny_config(**RECIPE)).ema)
    assert f"({record['correct']:.0f}/{record['count']:.0f})" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_an_average_is_refused_where_one_is_asked_for(tmp_path):
    run = experiment.build(tiny_config())
    with checkpoint.Checkpointer(str(tmp_path)) as checkpoints:
        checkpoints.save(0, run.create_state())
    asking = experiment.build(tiny_config(**{"ema.decay": 0.9}))
    with (
        checkpoint.Checkpointer(str(tmp_path)) as checkpoints,
        pytest.raises(checkpoint.CheckpointMismatch, match=r"holds no moving average, which config.ema.decay asks for"),
    ):
        checkpoints.restore(asking.abstract_state(), asking.parallel.state_sharding)
    assert final_state(tmp_path, tiny_config()).ema is None  # and one that asks for none has it back
