"""Sums over more than 32,768 rows or numbers, wherever a training step has one; as `test_large_maps`, for the step.

What is summed on the host is not here: `metrics.merge`, `adapt` and `fold_batch_norm` count in Python and NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from batches import NUMBERS, make_batch
from resnet_jax import BasicBlock, ResNet
from resnet_jax.step import averaging, losses, metrics, mixing
from resnet_jax.step.optimizer import clip_by_norm, create_optimizer
from resnet_jax.step.step import create_train_state, train_step

ROWS = 32_769
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}  # of the largest value


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


LABELS = np.random.default_rng(1).integers(0, 5, ROWS).astype(np.int32)
MASK = (np.arange(ROWS) % 7 > 0).astype(np.float32)


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def measured(x):
    return metrics.measure(x, LABELS, losses.softmax_cross_entropy(x, jax.nn.one_hot(LABELS, 5, dtype=x.dtype)), MASK)


def measured_in_numpy(x):
    correct = (x.argmax(-1) == LABELS) * MASK
    return {
        "loss": -(log_softmax(x)[np.arange(ROWS), LABELS] * MASK).sum(),
        "correct": correct.sum(),
        "count": MASK.sum(),
    }


def binary(x):
    return losses.binary_cross_entropy(x, 0 * x), losses.binary_cross_entropy(x, 0 * x, sum_classes=True)


def binary_in_numpy(x):
    each = np.logaddexp(0, x)
    return each.mean(-1), each.sum(-1)


def tensors(x):
    """A kernel of 36,864 numbers, and a bias."""
    return {"conv": {"kernel": x[:-64].reshape(3, 3, 64, -1)}, "fc": {"bias": x[-64:]}}


def clipped(x):
    updates, _ = clip_by_norm(1.0, eps=1e-6).update(tensors(x), optax.EmptyState())
    return updates, optax.tree.norm(tensors(x))


def clipped_in_numpy(x):
    norm = np.sqrt((x**2).sum())
    return tensors(x / (norm + 1e-6)), norm


def lamb(x):
    """The first step, from parameters that are the cosine of the gradients."""
    tx = create_optimizer(0.1, name="lamb", weight_decay=0.5, decayed="kernels")
    params = tensors(jnp.cos(x))
    return tx.update(tensors(x), tx.init(params), params)[0]


def lamb_in_numpy(x):
    params, update = tensors(np.cos(x)), tensors(x / (np.abs(x) + 1e-8))  # in Adam's first step the gradient's sign
    kernel = update["conv"]["kernel"] + 0.5 * params["conv"]["kernel"]
    ratio = np.linalg.norm(params["conv"]["kernel"]) / np.linalg.norm(kernel)
    return {"conv": {"kernel": -0.1 * ratio * kernel}, "fc": {"bias": -0.1 * update["fc"]["bias"]}}


def averaged(x):
    options = {"decay": 0.75, "every": 2, "steps_per_epoch": 100, "copy_steps": 0}
    return averaging.update_average(x, jnp.cos(x), jnp.asarray(4), **options)


SHARE = np.random.default_rng(2).uniform(size=(182, 182))


def mixed(x):
    return mixing.mix_images(x, jnp.ones(2), jnp.asarray(SHARE, x.dtype))


def mixed_in_numpy(x):
    share = SHARE[..., None]
    return share * x + (1 - share) * x[::-1]


# Place -> ours, NumPy's, and the shape of x.
PLACES = {
    "metrics": (measured, measured_in_numpy, (ROWS, 5)),
    "softmax cross-entropy over many classes": (
        lambda x: losses.softmax_cross_entropy(x, jnp.full_like(x, 1 / ROWS)),
        lambda x: -log_softmax(x).mean(-1),
        (4, ROWS),
    ),
    "binary cross-entropy": (binary, binary_in_numpy, (ROWS, 5)),
    "binary cross-entropy over many classes": (binary, binary_in_numpy, (4, ROWS)),
    "clipping by the norm": (clipped, clipped_in_numpy, (36_928,)),
    "LAMB": (lamb, lamb_in_numpy, (36_928,)),
    "the moving average": (averaged, lambda x: 0.75 * x + 0.25 * np.cos(x), (36_928,)),
    "mixed images": (mixed, mixed_in_numpy, (2, 182, 182, 3)),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("place", PLACES)
def test_large_sums_are_numpys(place, dtype):
    ours, reference, shape = PLACES[place]
    x = numbers(*shape).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        found = jax.tree.map(np.asarray, jax.jit(ours)(x))
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(reference(x.astype(float))), strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


def test_the_share_of_a_label_is_the_mean_of_its_pixels():
    """CutMix at 224 pixels: a mean over 50,176 of them, most of 1 or of 0."""
    share, lam = jax.jit(functools.partial(mixing.draw, size=(224, 224), mixup=0, cutmix=1.0))(jax.random.key(3))
    assert 0.1 < lam < 0.9
    np.testing.assert_allclose(lam, np.asarray(share, float).mean(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.soak)])
def test_a_batch_many_times_over_makes_the_step_that_it_makes_once(dtype):
    """32,770 images: sums of losses, of batch norm forwards and backwards, of biases, and the gradient's norm."""
    times, tolerance = 3277, TOLERANCE[dtype]
    small = make_batch(10, pixels=2)
    large = {key: np.concatenate([value] * times) for key, value in small.items()}
    with jax.enable_x64(dtype == "float64"):
        net = {"stem": "cifar", "stem_features": 4, "stage_features": (4,), "attn": "se", "num_classes": 5}
        model = ResNet(BasicBlock, (1,), param_dtype=dtype, **net)
        images = jnp.zeros((1, 2, 2, 3), dtype)
        variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images)
        tx = create_optimizer(0.1, weight_decay=1e-3, clip_norm=1.0)
        state = create_train_state(model, variables, tx)
        step = jax.jit(functools.partial(train_step, **NUMBERS))
        (expected, sums), (found, more) = jax.device_get((step(state, small), step(state, large)))
    for name in ("loss", "correct", "count"):
        np.testing.assert_allclose(more[name], times * sums[name], rtol=tolerance)
    np.testing.assert_allclose(more["grad_norm"], sums["grad_norm"], rtol=tolerance)
    for leaf, wanted in zip(jax.tree.leaves(found.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
