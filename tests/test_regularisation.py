"""What acts in training only: dropout, stochastic depth, DropBlock, rematerialisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.models import layers
from resnet_jax.training import step

X = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))


def net(**kwargs):
    return resnet_jax.create_model("test_resnet", stage_sizes=(1, 1, 1, 2), **kwargs)


@pytest.fixture(scope="module")
def variables():
    found = jax.jit(net(train=False).init)(jax.random.key(0), X)
    # Zero-initialised last scales would hide the branches.
    return jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.3, leaf), found)


def logits(variables, train=True, key=0, **kwargs):
    apply = jax.jit(functools.partial(net(**kwargs).apply, train=train, mutable=["batch_stats"]))
    return apply(variables, X, rngs={"dropout": jax.random.key(key)})[0]


@pytest.mark.parametrize("field", ["drop_rate", "drop_path_rate", "drop_block_rate"])
def test_each_rate_acts_in_training_and_only_there(variables, field):
    plain = logits(variables)
    np.testing.assert_array_equal(logits(variables, **{field: 0.0}), plain)
    assert np.abs(logits(variables, **{field: 0.5}) - plain).max() > 1e-3
    assert np.abs(logits(variables, **{field: 0.5}) - logits(variables, key=1, **{field: 0.5})).max() > 1e-3
    np.testing.assert_array_equal(logits(variables, train=False, **{field: 0.5}), logits(variables, train=False))


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    module = layers.drop_path(0.25, deterministic=False)
    y = np.asarray(module.apply({}, jnp.ones((4000, 3, 2, 5)), rngs={"dropout": jax.random.key(0)}))
    per_example = y.reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    np.testing.assert_allclose(np.unique(per_example), [0, 1 / 0.75], rtol=1e-6)
    assert abs((per_example[:, 0] == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)


def test_drop_path_rates_grow_linearly_from_zero_as_timms():
    """Four and five blocks: 0, 1/3 r, 2/3 r, r; the rates are read from the blocks as they are built."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("test_resnet", drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for i in range(1, 5) for block in getattr(theirs, f"layer{i}")]
    stages = resnet_jax.create_model("test_resnet", drop_path_rate=0.3)._stages(train=True, stem_stride=4)
    blocks = [block for stage in stages.values() for block in stage]
    ours = [block.keywords["drop_path"].args[0] if block.keywords["drop_path"] else 0.0 for block in blocks]
    np.testing.assert_allclose(ours, rates)


@pytest.mark.parametrize(("size", "block_size", "scale"), [((14, 14), 5, 0.25), ((7, 9), 3, 1.0), ((2, 3), 5, 1.0)])
def test_drop_block_drops_as_much_as_timms(size, block_size, scale):
    torch = pytest.importorskip("torch")
    drop = pytest.importorskip("timm.layers.drop")
    module = layers.DropBlock(0.2, block_size, scale)
    x = np.ones((3000, *size, 2), np.float32)
    ours = np.asarray(jax.jit(lambda x: module.apply({}, x, rngs={"dropout": jax.random.key(0)}))(x))
    torch.manual_seed(0)
    theirs = drop.drop_block_2d(torch.ones(3000, 2, *size), 0.2, block_size, scale).numpy()
    assert abs(ours.mean() - 1) < 1e-5  # scaled by what is left
    assert (ours[..., 0] == ours[..., 1]).all()
    share, reference = ((values == 0).mean(axis=(1, 2, 3)) for values in (ours, theirs))
    assert abs(share.mean() - reference.mean()) < 5 * reference.std() * np.sqrt(2 / 3000)
    # and as much at each side: an even square reaches further to one of them
    rows, reference = ((values == 0).mean(axis=axes) for values, axes in ((ours, (0, 2, 3)), (theirs, (0, 1, 3))))
    np.testing.assert_allclose(rows, reference, atol=0.03)


def test_drop_block_at_rate_zero_and_deterministic_is_the_identity():
    x = jnp.ones((2, 5, 5, 3))
    for module in (layers.DropBlock(0.0, 3), layers.DropBlock(0.5, 3, deterministic=True)):
        assert module.apply({}, x) is x


def test_the_training_step_draws_anew_each_step_and_repeats_after_a_resume(variables):
    import optax

    model = net(drop_rate=0.5, num_classes=1000)
    state = step.create_train_state(model, variables, optax.sgd(0.0))
    batch = {
        "image": np.full((4, 32, 32, 3), 200, np.uint8), "label": np.arange(4), "mask": np.ones(4, np.float32)
    }  # fmt: skip
    run = jax.jit(functools.partial(step.train_step, mean=(0.5,) * 3, std=(0.5,) * 3, seed=3))
    first, metrics = run(state, batch)
    _, again = run(state, batch)
    _, later = run(first.replace(params=state.params, batch_stats=state.batch_stats), batch)
    assert metrics["loss"] == again["loss"] != later["loss"]


# Rematerialisation ----------------------------------------------------------------------------------------


def gradients(remat):
    model = resnet_jax.create_model("resnet18", num_classes=10, remat=remat, train=True)

    def loss(params, batch_stats, x):
        logits, _ = model.apply({"params": params, "batch_stats": batch_stats}, x, mutable=["batch_stats"])
        return jnp.mean(logits**2)

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("remat", ["block", "conv", jax.checkpoint_policies.everything_saveable])
def test_rematerialisation_changes_no_number_and_no_name(remat):
    x = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    model = resnet_jax.create_model("resnet18", num_classes=10, train=False)
    variables = jax.jit(model.init)(jax.random.key(1), x)
    names = jax.tree.structure(jax.eval_shape(model.clone(remat=remat).init, jax.random.key(1), x))
    assert names == jax.tree.structure(variables)
    args = (variables["params"], variables["batch_stats"], x)
    plain = gradients(None).lower(*args).compile()
    saving = gradients(remat).lower(*args).compile()
    for a, b in zip(jax.tree.leaves(plain(*args)), jax.tree.leaves(saving(*args)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * float(jnp.abs(a).max() + 1))
    memory = [compiled.memory_analysis().temp_size_in_bytes for compiled in (plain, saving)]
    print(f"\n{remat}: temporary memory {memory[0] / 2**20:.1f} -> {memory[1] / 2**20:.1f} MiB")
    newer = tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 12)
    if newer and isinstance(remat, str):  # the compiler of older ones undoes it on the CPU
        assert memory[1] < 0.95 * memory[0]


def test_rematerialisation_takes_a_block_with_arguments():
    model = resnet_jax.ResNet(
        functools.partial(resnet_jax.Bottleneck, reduce_first=2), (1,), 2, shortcut="B3x3", remat="block", train=False
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert variables["params"]["layer1"]["0"]["conv1"]["kernel"].shape[-1] == 32
