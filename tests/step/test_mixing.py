"""Mixup and CutMix: against timm's with the same draw, the same on any number of devices, and how they are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_parallel import make_model, start

from batches import NUMBERS, make_batch
from resnet_jax.step import metrics, mixing
from resnet_jax.step.losses import soft_targets
from resnet_jax.step.parallel import AXIS, parallelize
from resnet_jax.step.step import create_train_state, train_step

SIZE = (7, 10)
LABELS = np.array([3, 0, 1, 4, 4, 2])
DRAW = functools.partial(mixing.draw, mixup=0.2, cutmix=1.0)


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((6, *SIZE, 3))


def ours(images, share, lam, mask=None, smoothing=0.1):
    mask = jnp.ones(len(images)) if mask is None else jnp.asarray(mask)
    targets = soft_targets(LABELS, 5, smoothing, jnp.float64)
    return mixing.mix_images(images, mask, share), *mixing.mix_labels(targets, jnp.asarray(LABELS), mask, lam)


class Drawn:
    """NumPy's random functions as timm calls them, with the answers given."""

    def __init__(self, lam, centre):
        self.lam, self.centre = lam, list(centre)

    def rand(self):
        return 0.0

    def beta(self, *unused):
        return self.lam

    def randint(self, low, high, size=None):
        assert low <= self.centre[0] < high
        return self.centre.pop(0)


# timm mixes row r with the row r from the end: in this order those are our neighbours.
TIMMS_ORDER = [0, 2, 4, 5, 3, 1]


def timms(images, monkeypatch, lam, centre=(0, 0), **alphas):
    torch, mixup = pytest.importorskip("torch"), pytest.importorskip("timm.data.mixup")
    drawn = Drawn(lam, centre)
    for name in ("rand", "beta", "randint"):
        monkeypatch.setattr(mixup.np.random, name, getattr(drawn, name))
    mix = mixup.Mixup(**({"mixup_alpha": 0.0, "cutmix_alpha": 0.0} | alphas), label_smoothing=0.1, num_classes=5)
    x = torch.from_numpy(images[TIMMS_ORDER].transpose(0, 3, 1, 2).copy())
    x, targets = mix(x, torch.from_numpy(LABELS[TIMMS_ORDER]))
    back = np.argsort(TIMMS_ORDER)
    return x.numpy().transpose(0, 2, 3, 1)[back], targets.numpy()[back]


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.8])
def test_mixup_equals_timms(lam, images, monkeypatch, x64):
    expected, targets = timms(images, monkeypatch, lam, mixup_alpha=0.2)
    mixed, ours_, labels = ours(images, jnp.full(SIZE, lam), jnp.asarray(lam))
    np.testing.assert_allclose(mixed, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(ours_, targets, rtol=0, atol=1e-7)  # timm's targets are float32
    assert labels.tolist() == ([3, 0, 1, 4, 4, 2] if lam > 0.5 else [0, 3, 4, 1, 2, 4])


@pytest.mark.parametrize("lam", [0.0, 0.13, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("centre", [(3, 5), (0, 9), (6, 0), (1, 4)])
def test_cutmix_equals_timms(lam, centre, images, monkeypatch, x64):
    expected, targets = timms(images, monkeypatch, lam, centre, cutmix_alpha=1.0)
    share = mixing.cutmix_share(jnp.asarray(lam), jnp.asarray(centre), SIZE)
    mixed, ours_, _ = ours(images, share, share.mean())
    np.testing.assert_array_equal(mixed, expected)
    np.testing.assert_allclose(ours_, targets, rtol=0, atol=1e-7)


def test_a_row_beside_one_that_is_no_example_stays_as_it_is(images, x64):
    mixed, targets, labels = ours(images, jnp.full(SIZE, 0.3), jnp.asarray(0.3), mask=[1, 1, 1, 0, 1, 1], smoothing=0)
    np.testing.assert_array_equal(mixed[2], images[2])
    assert targets[2].tolist() == [0, 1, 0, 0, 0]
    assert labels[2] == 1
    assert labels[4] == 2


def test_draws_are_those_of_beta_and_of_a_fair_coin():
    """10,000 of them: the halves of mixup and CutMix, the moments of both shares, boxes inside and at the borders."""
    keys = jax.random.split(jax.random.key(0), 10_000)
    share, lam = jax.jit(jax.vmap(functools.partial(mixing.draw, size=(16, 16), mixup=0.2, cutmix=1.0)))(keys)
    share, lam = np.array(share), np.array(lam)
    flat = (share == share[:, :1, :1]).all(axis=(1, 2))
    is_mixup = flat & (share[:, 0, 0] > 0) & (share[:, 0, 0] < 1)
    assert 0.45 < is_mixup.mean() < 0.52  # of the coin's half, a few are 0 or 1 in float32
    drawn = np.random.default_rng(0).beta(0.2, 0.2, 10_000)
    drawn = drawn[(drawn > 1e-7) & (drawn < 1 - 1e-7)]
    assert lam[is_mixup].mean() == pytest.approx(0.5, abs=0.02)
    assert lam[is_mixup].std() == pytest.approx(drawn.std(), abs=0.02)
    cut = ~flat
    np.testing.assert_allclose(lam[cut], share[cut].mean(axis=(1, 2)), rtol=1e-6)
    # By timm's rule, of a uniform area and centre: on average this much of an image remains.
    rng = np.random.default_rng(1)
    expected = []
    for area in rng.uniform(size=10_000):
        side, (y, x) = int(16 * np.sqrt(area)), rng.integers(0, 16, 2)
        height, width = (min(c + (side + 1) // 2, 16) - max(c - side // 2, 0) for c in (y, x))
        expected.append(1 - height * width / 256)
    expected = [value for value in expected if 0 < value < 1]
    assert lam[cut].mean() == pytest.approx(np.mean(expected), abs=0.01)
    np.testing.assert_allclose(
        np.quantile(lam[cut], [0.1, 0.5, 0.9]), np.quantile(expected, [0.1, 0.5, 0.9]), atol=0.03
    )


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0)])
def test_one_of_the_two_can_be_off_and_steps_left_unmixed(mixup, cutmix):
    draw = jax.jit(jax.vmap(functools.partial(mixing.draw, size=(16, 16), mixup=mixup, cutmix=cutmix, prob=0.25)))
    share, lam = draw(jax.random.split(jax.random.key(0), 2000))
    flat = np.ptp(np.array(share), axis=(1, 2)) == 0
    assert flat.all() == (cutmix == 0)
    assert np.isfinite(np.array(lam)).all()
    assert 0.7 < (np.array(lam) == 1).mean() < 0.85


@pytest.mark.slow
def test_devices_and_parts_mix_the_same_rows(x64):
    """One device against four: the same parameters after a step, and another step draws otherwise."""
    batch = make_batch(16)

    def state():
        return create_train_state(make_model(), start(), optax.sgd(0.1))

    def step(axis_name, **more):
        return functools.partial(train_step, draw_mix=DRAW, axis_name=axis_name, **NUMBERS, **more)

    # Batch norm sees a device's share: four parts of one device are the four devices, when the rows are put so.
    in_parts = jax.jit(step(None, accumulate=4))
    one, sums = in_parts(state(), batch)
    rows = np.arange(16).reshape(4, 4).T.reshape(-1)  # part j has the rows j, j + 4, ...
    spread = {key: value[rows] for key, value in batch.items()}
    four = parallelize(step(AXIS), step(AXIS), mode="jit")
    many, sums_of_many = four.train_step(jax.device_put(state(), four.state_sharding), four.shard(spread))
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-12)
    jax.tree.map(close, one.params, jax.device_get(many.params))
    assert float(sums["loss"]) == pytest.approx(float(sums_of_many["loss"]), rel=1e-12)
    other, _ = in_parts(state().replace(step=jnp.ones_like(one.step)), batch)
    assert np.abs(other.params["fc"]["kernel"] - one.params["fc"]["kernel"]).max() > 1e-6


def test_accuracy_is_that_of_the_larger_share():
    """With 0.2 of each image left, the neighbour's label counts."""
    mask, labels = jnp.ones(2), jnp.array([0, 1])
    _, larger = mixing.mix_labels(jnp.eye(2), labels, mask, jnp.asarray(0.2))
    sums = metrics.measure(jnp.array([[0.0, 9.0], [0.0, 9.0]]), larger, jnp.zeros(2), mask)
    assert larger.tolist() == [1, 0]
    assert float(sums["correct"]) == 1
