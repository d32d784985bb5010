"""Sums over more than 32,768 rows or pixels, and over an edge, wherever a network has one, against NumPy in float64.

XLA's CPU compiler makes such sums wrong in a process without the flag of `resnet_jax.compiler`. Compiled as users do: a
suite that switches optimisations off would see nothing here.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import attention, layers, norms, shortcuts

WIDE = (1, 182, 182)  # 33,124 pixels of one image
MANY = (32_769, 2, 2)  # as many images
EDGE = (64, 1, 1, 128)  # each 2x2 window has one real pixel
TOLERANCE = {"float32": 1e-4, "float64": 1e-11}  # of the largest value; what goes wrong is off by 1e-3 or more
AXES = (0, 1, 2)


def numbers(*shape, seed=0):
    return 1 + np.random.default_rng(seed).standard_normal(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def like(x, tree):
    """Parameters, which are made in float64, in the dtype of `x`."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), tree)


def windows(x, size, stride):
    """Means over windows of the pixels that are there."""
    starts = [range(0, length, stride) for length in x.shape[1:3]]
    rows = [[x[:, i : i + size, j : j + size].mean((1, 2)) for j in starts[1]] for i in starts[0]]
    return np.moveaxis(np.array(rows), 2, 0)


def blurred(x):
    """[1, 2, 1] / 4 both ways at every second pixel, after reflection."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    rows, columns = x.shape[1], x.shape[2]
    found = sum(
        a * b * padded[:, i : i + rows, j : j + columns]
        for i, a in enumerate((1, 2, 1))
        for j, b in enumerate((1, 2, 1))
    )
    return found[:, ::2, ::2] / 16


# Attention ----------------------------------------------------------------------------------------------

SE = {
    "fc1": {"kernel": numbers(1, 1, 16, 8, seed=1) - 1, "bias": numbers(8, seed=2)},
    "fc2": {"kernel": numbers(1, 1, 8, 16, seed=3) - 1, "bias": numbers(16, seed=4)},
}
ECA = {"conv": {"kernel": numbers(3, 1, 1, seed=5) - 1}}


def squeeze_excite(x):
    return attention.SqueezeExcite(16).apply({"params": like(x, SE)}, x)


def squeeze_excite_in_numpy(x):
    first, second = SE["fc1"], SE["fc2"]
    hidden = np.maximum(x.mean((1, 2)) @ first["kernel"][0, 0] + first["bias"], 0)
    return x * sigmoid(hidden @ second["kernel"][0, 0] + second["bias"])[:, None, None]


def channel_attention(x):
    return attention.EfficientChannelAttention(16).apply({"params": like(x, ECA)}, x)


def channel_attention_in_numpy(x):
    means = np.pad(x.mean((1, 2)), ((0, 0), (1, 1)))
    mixed = sum(ECA["conv"]["kernel"][i, 0, 0] * means[:, i : i + 16] for i in range(3))
    return x * sigmoid(mixed)[:, None, None]


# Norms --------------------------------------------------------------------------------------------------

SCALE, BIAS, MEAN, VAR = (np.abs(numbers(32, seed=seed)) + 0.1 for seed in range(6, 10))


def norm(name, x, *, train=True):
    layer = norms.bind_norm(name, train=train, axis_name=None, param_dtype=x.dtype)()
    channels = x.shape[-1]
    variables = {"params": {"scale": SCALE[:channels], "bias": BIAS[:channels]}}
    if name != "group":
        variables["batch_stats"] = {"mean": MEAN[:channels], "var": VAR[:channels]}
    return layer, like(x, variables)


def batch_norm(name, x):
    layer, variables = norm(name, x)
    y, updates = layer.apply(variables, x, mutable=["batch_stats"])
    return y, updates["batch_stats"]["mean"], updates["batch_stats"]["var"]


def batch_norm_in_numpy(name, x):
    channels, n = x.shape[-1], x[..., 0].size
    factor = n / (n - 1) if name == "batch_unbiased" else 1
    running = 0.9 * MEAN[:channels] + 0.1 * x.mean(AXES), 0.9 * VAR[:channels] + 0.1 * x.var(AXES) * factor
    return normalised(x) * SCALE[:channels] + BIAS[:channels], *running


def normalised(x):
    return (x - x.mean(AXES)) / np.sqrt(x.var(AXES) + 1e-5)


def batch_norm_gradient(x):
    """Of the sum of the outputs, each times its own number, in scale, bias and x."""
    layer, variables = norm("batch", x)

    def total(params, x):
        y, _ = layer.apply(variables | {"params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y * jnp.cos(x_fixed))

    x_fixed = x
    of_params, of_x = jax.grad(total, argnums=(0, 1))(variables["params"], x)
    return of_params["scale"], of_params["bias"], of_x


def batch_norm_gradient_in_numpy(x):
    y, of_y = normalised(x), np.cos(x)
    inner = of_y * SCALE[: x.shape[-1]]
    of_x = (inner - inner.mean(AXES) - y * (inner * y).mean(AXES)) / np.sqrt(x.var(AXES) + 1e-5)
    return (of_y * y).sum(AXES), of_y.sum(AXES), of_x


def group_norm(x):
    layer, variables = norm("group", x)
    return layer.apply(variables, x)


def group_norm_in_numpy(x):
    """32 groups of one channel each."""
    return (x - x.mean((1, 2))) / np.sqrt(x.var((1, 2)) + 1e-5) * SCALE + BIAS


def head(x):
    """The end of a network: norm, ReLU, mean."""
    layer, variables = norm("batch", x, train=False)
    return layers.global_avg_pool(nn.relu(layer.apply(variables, x)))


def head_in_numpy(x):
    channels = x.shape[-1]
    y = (x - MEAN[:channels]) / np.sqrt(VAR[:channels] + 1e-5) * SCALE[:channels] + BIAS[:channels]
    return np.maximum(y, 0).mean((1, 2))


def padded_mean(x):
    """Stride 1: a row and a column of zeros at the end count."""
    return windows(np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 2, 1)[:, :-1, :-1]


KERNEL = numbers(1, 1, 16, 4, seed=10) - 1


def d_shortcut(x):
    """Mean and projection, a norm of all that comes out."""
    net = shortcuts.PooledProjection(
        4, 2, functools.partial(layers.Conv, param_dtype=x.dtype), norms.bind_norm("batch", train=True, axis_name=None)
    )
    params = {"1": {"kernel": KERNEL}, "2": {"scale": SCALE[:4], "bias": BIAS[:4]}}
    variables = {"params": params, "batch_stats": {"2": {"mean": MEAN[:4], "var": VAR[:4]}}}
    return net.apply(like(x, variables), x, mutable=["batch_stats"])[0]


def d_shortcut_in_numpy(x):
    return normalised(windows(x, 2, 2) @ KERNEL[0, 0]) * SCALE[:4] + BIAS[:4]


# Place -> ours, NumPy's, and the shapes of x.
PLACES = {
    "avg_pool2x2_ceil": (lambda x: layers.avg_pool2x2_ceil(x, 2), lambda x: windows(x, 2, 2), [EDGE, (*MANY, 3)]),
    "avg_pool2x2_ceil, odd": (
        lambda x: layers.avg_pool2x2_ceil(x, 2), lambda x: windows(x, 2, 2), [(32_769, 3, 1, 2), (1, 363, 363, 2)]
    ),
    "avg_pool2x2_ceil, stride 1": (lambda x: layers.avg_pool2x2_ceil(x, 1), padded_mean, [EDGE, (*WIDE, 3)]),
    "the D shortcut": (d_shortcut, d_shortcut_in_numpy, [(32_769, 1, 1, 16), (4, 183, 183, 16)]),
    "anti-alias avg": (lambda x: layers.avg_pool(x, 2), lambda x: windows(x, 2, 2), [(*MANY, 3), (1, 364, 364, 2)]),
    "anti-alias blur": (lambda x: layers.blur_pool(x, 2), blurred, [(*MANY, 3), (1, 363, 363, 2)]),
    "global avg": (layers.GLOBAL_POOLS["avg"], lambda x: x.mean((1, 2)), [(*MANY, 3), (*WIDE, 16), (2, 7, 7, 512)]),
    "global catavgmax": (
        layers.GLOBAL_POOLS["catavgmax"],
        lambda x: np.concatenate([x.mean((1, 2)), x.max((1, 2))], -1),
        [(*MANY, 3), (*WIDE, 16)],
    ),
    "norm, ReLU, mean": (head, head_in_numpy, [(*MANY, 3), (*WIDE, 16)]),
    "squeeze-excite": (squeeze_excite, squeeze_excite_in_numpy, [(*MANY, 16), (*WIDE, 16)]),
    "channel attention": (channel_attention, channel_attention_in_numpy, [(*MANY, 16), (*WIDE, 16)]),
    "batch norm": (
        functools.partial(batch_norm, "batch"),
        functools.partial(batch_norm_in_numpy, "batch"),
        [(*MANY, 3), (*WIDE, 8)],
    ),
    "unbiased batch norm": (
        functools.partial(batch_norm, "batch_unbiased"),
        functools.partial(batch_norm_in_numpy, "batch_unbiased"),
        [(*WIDE, 8)],
    ),
    "batch norm's gradient": (batch_norm_gradient, batch_norm_gradient_in_numpy, [(*MANY, 3), (*WIDE, 8)]),
    "group norm": (group_norm, group_norm_in_numpy, [(*WIDE, 32)]),
}  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("place", "shape"), [(place, shape) for place in PLACES for shape in PLACES[place][2]])
def test_large_sums_are_numpys(place, shape, dtype):
    ours, reference, _ = PLACES[place]
    x = numbers(*shape).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        found = jax.tree.map(np.asarray, jax.jit(ours)(x))
    for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(reference(x.astype(float))), strict=True):
        assert leaf.dtype == dtype
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@pytest.mark.parametrize("place", [place for place in PLACES if place != "group norm"])
def test_the_mean_of_what_is_no_number_is_none(place):
    """After a ReLU, of which XLA's faulty sums make 0, one channel of NaN shows where NumPy has it show."""
    ours, reference, _ = PLACES[place]
    x = numbers(64, 4, 4, 16).astype(np.float32)
    x[..., 0] = np.nan
    found = jax.tree.leaves(jax.jit(lambda x: ours(nn.relu(x)))(x))
    for leaf, expected in zip(found, jax.tree.leaves(reference(np.maximum(x, 0))), strict=True):
        assert np.isnan(expected).any()
        np.testing.assert_array_equal(np.isnan(leaf), np.isnan(expected))


def test_drop_block_counts_what_it_keeps():
    """33,800 positions: what is left is scaled by all over left."""
    layer = layers.DropBlock(0.1, 7)
    out = np.asarray(jax.jit(layer.apply)({}, jnp.ones((8, 65, 65, 1)), rngs={"dropout": jax.random.key(0)}))
    left = out[out != 0]
    assert 0.8 < left.size / out.size < 0.95
    np.testing.assert_allclose(left, out.size / left.size, rtol=1e-6)
