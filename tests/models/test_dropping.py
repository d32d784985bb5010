"""Dropout, stochastic depth and DropBlock: by their statistics, against timm's, and as nothing at rate 0."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.models import layers
from resnet_jax.step import step


def net(**kwargs):
    """Three stages, four blocks: the second and third of them keep the shape of what they receive."""
    return resnet_jax.ResNet(
        resnet_jax.BasicBlock, num_classes=5, stem="cifar", stem_features=8,
        **{"stage_sizes": (3, 1, 1), "stage_features": (8, 16, 32), "train": True, "norm": nn.LayerNorm} | kwargs,
    )  # fmt: skip


@pytest.fixture(scope="module")
def variables():
    model = net()
    return jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.ones((1, 8, 8, 3)))


@functools.partial(jax.jit, static_argnums=(0, 4))
def apply(model, variables, images, key, features):
    return model.apply(variables, images, features=features, rngs={"dropout": key})


def run(variables, images, features=None, seed=0, **kwargs):
    return apply(net(**kwargs), variables, images, jax.random.key(seed), features)


def test_stochastic_depth_drops_whole_examples_more_of_them_in_later_blocks(variables):
    images = jax.random.normal(jax.random.key(2), (2000, 4, 4, 3))
    found = run(variables, images, ("stem", "layer1.0", "layer1.1", "layer1.2"), drop_path_rate=0.8)
    before = found["stem"]
    for i in range(3):
        after = found[f"layer1.{i}"]
        # A dropped branch leaves relu(x), which is x; there is no other way to get exactly that.
        dropped = np.asarray(jnp.all(after == before, axis=(1, 2, 3)))
        rate = 0.8 * i / 4
        assert dropped.mean() == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 2000) + 1e-9)
        before = after


def test_stochastic_depth_keeps_the_mean():
    x = jnp.ones((4000, 2, 2, 3))
    y = layers.drop_path(0.3, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)})
    assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
    assert bool(jnp.all(y == y[:, :1, :1, :1]))  # an example as a whole
    assert float(y.mean()) == pytest.approx(1, abs=0.05)


def test_dropout_acts_on_the_pooled_vector(variables):
    images = jax.random.normal(jax.random.key(2), (400, 8, 8, 3))
    kept = run(variables, images, ("pre_logits",))["pre_logits"]
    dropped = run(variables, images, ("pre_logits",), drop_rate=0.25)["pre_logits"]
    zero = (dropped == 0) & (kept != 0)
    assert float(zero.sum() / (kept != 0).sum()) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_allclose(dropped[~zero], kept[~zero] / 0.75, rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def apply_plain(model, variables, images):
    return model.apply(variables, images)


@pytest.mark.parametrize("rates", ["drop_rate", "drop_path_rate", "drop_block_rate"])
def test_rate_0_and_evaluation_are_the_net_itself(variables, rates):
    images = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    plain = apply_plain(net(), variables, images)  # needs no rng either
    assert net(**{rates: 0.0}) == net()  # so it is the very same network
    np.testing.assert_array_equal(run(variables, images, train=False, **{rates: 0.5}), plain)
    assert not np.array_equal(run(variables, images, **{rates: 0.5}), plain)
    assert not np.array_equal(run(variables, images, **{rates: 0.5}), run(variables, images, seed=1, **{rates: 0.5}))


def drop_block(x, seed=0, **kwargs):
    return layers.DropBlock(**kwargs).apply({}, x, rngs={"dropout": jax.random.key(seed)})


@pytest.mark.usefixtures("optimised")  # else means of float32 are less exact
def test_dropblock_drops_squares_of_all_channels_as_often_as_the_rate_says():
    x = jnp.ones((500, 20, 20, 3))
    y = drop_block(x, rate=0.1, block_size=5)
    assert bool(jnp.all((y == 0) == (y[..., :1] == 0)))
    dropped = np.asarray(y[..., 0] == 0)
    # By hand: a position stays if none of the seeds in its 5x5 window, cut by the border, is drawn.
    gamma = 0.1 * 20 * 20 / 5**2 / 16**2
    reach = np.array([min(i, 2) + 1 + min(19 - i, 2) for i in range(20)])
    expected = 1 - (1 - gamma) ** np.outer(reach, reach)
    assert dropped.mean() == pytest.approx(expected.mean(), abs=0.006)
    assert dropped[:, 0, 0].mean() < dropped[:, 10, 10].mean()  # 9 seeds reach a corner, 25 the middle
    assert float(y.mean()) == pytest.approx(1, abs=1e-4)
    for image in dropped[:20]:
        # Each dropped position is in a 5x5 square that is dropped whole (or cut by the border).
        padded = np.pad(image, 4, constant_values=True)
        squares = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).all((2, 3))
        for row, column in np.argwhere(image):
            assert squares[row : row + 5, column : column + 5].any()


@pytest.mark.parametrize(("size", "block_size", "scale"), [((9, 12), 5, 0.25), ((9, 12), 4, 1.0), ((3, 2), 5, 1.0)])
def test_dropblock_is_timms_given_the_same_seeds(size, block_size, scale, monkeypatch):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    rng = np.random.default_rng(0)
    seeds = rng.uniform(size=(6, *size, 1)) < 0.05
    x = rng.standard_normal((6, *size, 4)).astype(np.float32)
    asked = []

    def theirs_bernoulli(self, gamma):
        asked.append(gamma)
        return self.copy_(torch.from_numpy(seeds.transpose(0, 3, 1, 2).astype(np.float32)))

    monkeypatch.setattr(torch.Tensor, "bernoulli_", theirs_bernoulli)
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, gamma, shape: asked.append(gamma) or jnp.asarray(seeds))
    expected = timm.layers.drop_block_2d(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), 0.1, block_size, scale)
    found = drop_block(x, rate=0.1, block_size=block_size, gamma_scale=scale)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), rtol=1e-6)
    assert asked[0] == pytest.approx(asked[1])


def test_dropblock_sits_where_timms_does():
    """In the third stage with squares of 5 and a quarter of the rate, in the fourth with 3 and all of it."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet18", drop_block_rate=0.2)
    ours = resnet_jax.resnet18(drop_block_rate=0.2)._drop_blocks(train=True)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        dropping = getattr(theirs, stage)[0].drop_block
        if stage not in ours:
            assert type(dropping).__name__ == "Identity"
            continue
        built = ours[stage]()
        assert (built.rate, built.block_size, built.gamma_scale) == (
            dropping.drop_prob, dropping.block_size, dropping.gamma_scale,
        )  # fmt: skip


@pytest.mark.parametrize(("name", "sizes"), [("resnet18", (1, 1, 1, 2)), ("resnet26", (1, 1, 2, 1))])
def test_what_dropblock_drops_is_what_timms_drops(name, sizes, monkeypatch):
    """Everything, everywhere it sits: then its place in the block decides what is left."""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    from resnet_jax.proof import verify

    features = (16, 32, 64, 128)
    reference = timm.create_model(name, drop_block_rate=0.2, layers=sizes, channels=features).eval()
    verify.randomise_norms(reference)
    for block in [*reference.layer3, *reference.layer4]:
        block.drop_block.forward = torch.zeros_like
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3))
    theirs = verify.torch_stage_outputs(reference, images)
    monkeypatch.setattr(layers.DropBlock, "__call__", lambda self, x: jnp.zeros_like(x))
    with jax.enable_x64(True):
        fields = {"stage_sizes": sizes, "stage_features": features}
        model = resnet_jax.create_model(name, drop_block_rate=0.2, param_dtype="float64", **fields)
        dropped = resnet_jax.from_torch(model, reference.state_dict(), dtype=np.float64)
        ours = verify.stage_outputs(model, dropped, images)
    for stage, expected in theirs.items():
        np.testing.assert_allclose(ours[stage], expected, rtol=0, atol=1e-10)


def test_stochastic_depth_has_timms_rates():
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("resnet26", drop_path_rate=0.3)
    expected = [
        getattr(block.drop_path, "drop_prob", 0.0) or 0.0
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4)
        for block in stage
    ]
    plugs = resnet_jax.create_model("resnet26", drop_path_rate=0.3)._drop_paths(train=True)
    assert [plug.args[0] if plug else 0.0 for plug in plugs] == pytest.approx(expected)


def test_the_training_step_draws_anew_each_step_and_repeats_after_a_resume():
    model = net(drop_rate=0.5, train=None, stage_sizes=(1,), stage_features=(8,))
    images = np.ones((1, 8, 8, 3), np.float32)
    variables = drawn(jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images))
    state = step.create_train_state(model, variables, optax.sgd(0.0))
    batch = {
        "image": np.full((4, 8, 8, 3), 200, np.uint8), "label": np.arange(4), "mask": np.ones(4, np.float32)
    }  # fmt: skip
    run = jax.jit(functools.partial(step.train_step, mean=(0.5,) * 3, std=(0.5,) * 3, seed=3))
    first, metrics = run(state, batch)
    _, again = run(state, batch)
    _, later = run(first.replace(params=state.params, batch_stats=state.batch_stats), batch)
    assert metrics["loss"] == again["loss"] != later["loss"]
