"""Many devices give what one device gives; four virtual CPU devices stand for any."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from batches import NUMBERS, make_batch
from resnet_jax.step.optimizer import create_optimizer
from resnet_jax.step.parallel import AXIS, _host_by_host, device_groups, parallelize
from resnet_jax.step.step import create_train_state, eval_step, train_step

STEPS = 3
TX = create_optimizer(0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


def make_model(axis_name=None, dtype="float64", groups=None):
    return resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1,), num_classes=5, stage_features=(8,), stem="cifar", stem_features=8,
        norm="batch_unbiased", axis_name=axis_name, param_dtype=dtype, axis_index_groups=groups,
    )  # fmt: skip


@functools.cache
def start(dtype="float64"):
    """One set of variables for every run, as NumPy arrays: kernels of random values, norms as they begin."""
    init = functools.partial(make_model(dtype=dtype).init, train=False)
    shapes, rng = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8, 8, 3), dtype)), np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return (rng.standard_normal(leaf.shape) * np.prod(leaf.shape[:-1]) ** -0.5).astype(dtype)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), dtype)

    return jax.tree_util.tree_map_with_path(value, shapes)


def batches():
    """Each with some masked examples, unequally many on each of four devices."""
    for seed in range(STEPS):
        batch = make_batch(16, seed=seed)
        batch["mask"][[1, 2, 9]] = 0
        yield batch


@functools.cache
def wrapped(mode, num_devices, axis_name, dtype="float64", groups=None, accumulate=1):
    """A function that makes the first state, and the wrapped steps."""
    numbers = NUMBERS | {"axis_name": AXIS}
    step = functools.partial(train_step, accumulate=accumulate, **numbers)
    parallel = parallelize(
        step, functools.partial(eval_step, **numbers), mode=mode, devices=jax.devices()[:num_devices]
    )
    model = make_model(axis_name, dtype, groups)
    create = jax.jit(functools.partial(create_train_state, model, tx=TX), out_shardings=parallel.state_sharding)
    return functools.partial(create, start(dtype)), parallel


@functools.cache
def run(*layout, steps=STEPS, **more):
    """State, losses and gradient norms of the wrapped step, as NumPy arrays."""
    create, parallel = wrapped(*layout, **more)
    state, seen = create(), []
    for batch in list(batches())[:steps]:
        state, sums = parallel.train_step(state, parallel.shard(batch))
        seen.append((float(sums["loss"]), float(sums["grad_norm"])))
    return jax.device_get(state), np.array(seen)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_the_program_takes_the_state_last_leaf_first(mode):
    create, parallel = wrapped(mode, 4, None, "float32")
    state = create()
    lowered = parallel.train_step.lower(state, parallel.shard(make_batch(16)))
    leaves = [leaf.shape for leaf in jax.tree.leaves(state)]
    given = [leaf.shape for leaf in jax.tree.leaves(lowered.in_avals)]
    assert given[: len(leaves)] == leaves[::-1] != leaves


def assert_close(ours, theirs, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), ours, theirs)


@functools.cache
def global_view():
    """The truth: plain jit on one device, the batch seen whole."""
    step = jax.jit(functools.partial(train_step, **NUMBERS))
    state, seen = create_train_state(make_model(), start(), TX), []
    for batch in batches():
        state, sums = step(state, batch)
        seen.append((float(sums["loss"]), float(sums["grad_norm"])))
    return jax.device_get(state), np.array(seen)


@functools.cache
def shard_by_shard():
    """By hand: the step on each quarter of a batch alone; its update is the gradient of its own mean loss."""
    one = jax.jit(functools.partial(train_step, **NUMBERS))
    apply = jax.jit(lambda state, grads, stats: state.apply_gradients(grads=grads, batch_stats=stats))
    state = create_train_state(make_model(), start(), TX)
    for batch in batches():
        grads, stats = [], []
        for i in range(4):
            shard = {key: value[4 * i : 4 * i + 4] for key, value in batch.items()}
            alone = create_train_state(make_model(), jax.device_get(state.variables), optax.identity())
            new, sums = jax.device_get(one(alone, shard))
            share = float(sums["count"]) / float(batch["mask"].sum())
            grads.append(jax.tree.map(lambda a, b, share=share: share * (a - b), new.params, alone.params))
            stats.append(new.batch_stats)
        grads = jax.tree.map(lambda *leaves: sum(leaves), *grads)
        state = apply(state, grads, jax.tree.map(lambda *leaves: sum(leaves) / 4, *stats))
    return jax.device_get(state.variables)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_synchronised_batch_norm_equals_one_device_that_sees_the_whole_batch(mode, x64):
    expected, expected_seen = global_view()
    state, seen = run(mode, 4, AXIS)
    assert int(state.step) == STEPS
    assert_close(state.variables, expected.variables, 1e-10)
    assert_close(state.opt_state, expected.opt_state, 1e-10)
    # Losses, and the size of the gradient: the number of devices changes neither.
    np.testing.assert_allclose(seen, expected_seen, rtol=1e-10)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_per_device_batch_norm_is_what_one_device_for_each_shard_gives(mode, x64):
    state, _ = run(mode, 4, None)
    assert_close(state.variables, shard_by_shard(), 1e-10)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_batch_norm_in_groups_is_that_of_devices_with_the_images_of_a_group(mode, x64):
    """Two groups of two devices normalise as two devices do that have the whole shares of a group each."""
    grouped, seen = run(mode, 4, AXIS, groups=device_groups(2, 4))
    two, two_seen = run("pmap", 2, None)
    assert_close(grouped.variables, two.variables, 1e-10)
    np.testing.assert_allclose(seen, two_seen, rtol=1e-10)
    four, _ = run(mode, 4, None)
    kernels = [np.asarray(state.params["fc"]["kernel"]) for state in (two, four)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-6  # groups are not without effect


def test_accumulation_takes_the_same_parts_on_any_number_of_devices(x64):
    one, seen = run("jit", 1, None, accumulate=2)
    four, four_seen = run("pmap", 4, AXIS, accumulate=2)
    assert_close(four.variables, one.variables, 1e-10)
    np.testing.assert_allclose(four_seen, seen, rtol=1e-10)


def test_groups_of_devices():
    assert device_groups(1, 2) == ((0,), (1,))
    assert device_groups(2, 4) == ((0, 1), (2, 3))
    assert device_groups(4, 4) is None
    with pytest.raises(ValueError, match="groups of 3 devices do not divide 8: use one of 1, 2, 4, 8"):
        device_groups(3, 8)


def test_pmap_and_jit_agree_after_one_step_in_float32():
    (_, pmap), (_, jit) = (run(mode, 4, None, "float32", steps=1) for mode in ("pmap", "jit"))
    np.testing.assert_allclose(pmap, jit, rtol=1e-5)


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_the_old_state_is_donated_and_the_new_one_has_no_device_axis(mode):
    create, parallel = wrapped(mode, 4, None, "float32")
    old = create()
    state, _ = parallel.train_step(old, parallel.shard(make_batch(16)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.batch_stats, old.opt_state)))
    kernel = state.params["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 3, 8)
    assert len(kernel.sharding.device_set) == 4
    assert kernel.sharding.is_fully_replicated


@pytest.mark.parametrize("mode", ["pmap", "jit"])
def test_evaluation_counts_each_example_once_on_any_number_of_devices(mode):
    batch = next(batches())
    results = []
    for num_devices in (1, 4):
        create, parallel = wrapped(mode, num_devices, None, "float32")
        results.append(
            {key: float(value) for key, value in parallel.eval_step(create(), parallel.shard(batch)).items()}
        )
    assert results[0]["count"] == results[1]["count"] == 13
    assert results[0] == pytest.approx(results[1], rel=1e-5)


def test_a_batch_that_the_devices_do_not_divide_names_two_that_they_do():
    _, parallel = wrapped("jit", 4, None, "float32")
    with pytest.raises(ValueError, match=r"batch of 6 .* over 4 devices: use 4 or 8"):
        parallel.shard(make_batch(6))
    with pytest.raises(ValueError, match="unknown parallel mode 'ddp'.*jit.*pmap"):
        parallelize(train_step, eval_step, mode="ddp")


def test_rows_go_to_hosts_in_one_piece_whatever_numbers_the_devices_have():
    """As on some slices of TPUs, where neighbours in number are on different hosts."""
    devices = [types.SimpleNamespace(process_index=host, id=number) for number, host in enumerate((1, 0, 1, 0))]
    assert [(device.process_index, device.id) for device in _host_by_host(devices)] == [
        (0, 1), (0, 3), (1, 0), (1, 2),
    ]  # fmt: skip
