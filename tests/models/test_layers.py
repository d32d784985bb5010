"""The leaves, against PyTorch's and against values worked out by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.models import attention, layers, norms, shortcuts


def apply(module, x, **variables):
    """Output of a parameter-free or given module on `x`."""
    return np.asarray(module.apply(variables, x))


def test_conv_init_is_kaiming_normal_fan_out_not_truncated():
    kernel = layers.conv_init(jax.random.key(0), (3, 3, 16, 256), jnp.float32)
    std = np.sqrt(2 / (3 * 3 * 256))
    assert np.std(kernel) == pytest.approx(std, rel=0.01)
    assert np.abs(kernel).max() > 3.5 * std  # a normal truncated at two deviations ends at 2.28 of them


def test_conv_init_of_a_grouped_convolution_counts_all_outputs():
    variables = layers.conv3x3(128, groups=32).init(jax.random.key(0), jnp.zeros((1, 4, 4, 128)))
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 4, 128)
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.05)


def test_linear_init_is_uniform_in_both_tensors():
    params = layers.linear(2000, 64).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    for leaf in (params["kernel"], params["bias"]):
        assert np.abs(leaf).max() <= 1 / 8
        assert np.std(leaf) == pytest.approx(1 / 8 / np.sqrt(3), rel=0.05)


def test_conv3x3_with_stride_2_pads_one_pixel_on_both_sides():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    out = apply(layers.conv3x3(1, 2), x, params={"kernel": jnp.ones((3, 3, 1, 1))})
    # Windows centred on pixels 0 and 2: with 'SAME' they would be centred on 1 and 3.
    assert out[0, :, :, 0].tolist() == [
        [0 + 1 + 4 + 5, 1 + 2 + 3 + 5 + 6 + 7],
        [4 + 5 + 8 + 9 + 12 + 13, 5 + 6 + 7 + 9 + 10 + 11 + 13 + 14 + 15],
    ]


def test_max_pool_pads_with_minus_infinity():
    assert np.asarray(layers.max_pool3x3(-jnp.ones((1, 5, 5, 1)))).max() == -1


def test_pad_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = jnp.arange(1.0, 1 + 3 * 3 * 2).reshape(1, 3, 3, 2)
    out = np.asarray(shortcuts.padded(x, 5, stride=2))
    assert out.shape == (1, 2, 2, 5)
    np.testing.assert_array_equal(out[..., 1:3], x[:, ::2, ::2])
    assert not out[..., [0, 3, 4]].any()


@pytest.mark.parametrize("norm", ["batch", "batch_unbiased"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 1, 1, 4)])
def test_batch_norm_in_training_mode_equals_pytorch(norm, shape, x64):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    reference = torch.nn.BatchNorm2d(4).double()
    scale, bias, mean, var = (rng.uniform(0.5, 1.5, 4) for _ in range(4))
    for tensor, value in zip((reference.weight, reference.bias, reference.running_mean, reference.running_var),
                             (scale, bias, mean, var), strict=True):  # fmt: skip
        tensor.data.copy_(torch.from_numpy(value))
    layer = norms.bind_norm(norm, train=True, axis_name=None, param_dtype=jnp.float64)()
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    x = 3 + rng.standard_normal(shape)
    y, updates = layer.apply(variables, x, mutable=["batch_stats"])
    expected = reference(torch.from_numpy(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], reference.running_mean, rtol=0, atol=1e-13)
    n = x.size // 4
    ours, theirs = updates["batch_stats"]["var"] - 0.9 * var, reference.running_var.numpy() - 0.9 * var
    np.testing.assert_allclose(ours * (1 if norm == "batch_unbiased" else n / (n - 1)), theirs, rtol=1e-12)


@pytest.mark.usefixtures("optimised")  # else sums of bfloat16 are made in bfloat16
@pytest.mark.parametrize(
    ("dtype", "ratio", "tolerance"),
    # float32's 24 bits would lose 20 of its variance at this ratio in one pass. A bfloat16's is made in one pass: what
    # is lost is the rounding of the sums times ratio^2, and on CPUs XLA adds up 8,192 values one after the other.
    [("float32", 1000.0, 1e-5), ("bfloat16", 1.0, 1e-5), ("bfloat16", 16.0, 2**-9), ("bfloat16", 64.0, 2**-5)],
)
def test_the_variance_is_as_exact_as_the_values_allow(dtype, ratio, tolerance):
    x = jnp.asarray(ratio + np.random.default_rng(0).standard_normal((32, 16, 16, 4)), dtype)
    layer = norms.bind_norm("batch", train=True, axis_name=None, dtype=dtype)()
    variables = {
        "params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)},
        "batch_stats": {"mean": jnp.zeros(4), "var": jnp.zeros(4)},
    }
    _, updates = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    expected = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(10 * np.asarray(updates["batch_stats"]["var"], np.float64), expected, rtol=tolerance)


def test_unbiased_variance_over_devices_counts_the_values_of_all(x64):
    layer = norms.bind_norm("batch_unbiased", train=True, axis_name="batch", param_dtype=jnp.float64)()
    whole = norms.bind_norm("batch_unbiased", train=True, axis_name=None, param_dtype=jnp.float64)()
    x = np.random.default_rng(0).standard_normal((4, 1, 1, 1, 3))
    variables = whole.init(jax.random.key(0), x[0])
    apply_layer = functools.partial(layer.apply, variables, mutable=["batch_stats"])
    _, updates = jax.vmap(apply_layer, axis_name="batch")(x)
    _, expected = whole.apply(variables, x[:, 0], mutable=["batch_stats"])
    np.testing.assert_allclose(updates["batch_stats"]["var"][1], expected["batch_stats"]["var"], rtol=1e-12)


def test_unbiased_variance_of_one_value_is_refused():
    layer = norms.UnbiasedBatchNorm(use_running_average=False)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)))
    with pytest.raises(ValueError, match=r"more than 1 value per channel.*\(1, 1, 1, 3\)"):
        layer.apply(variables, jnp.zeros((1, 1, 1, 3)), mutable=["batch_stats"])


def test_group_norm_equals_pytorch(x64):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 64))
    layer = norms.bind_norm("group", train=True, axis_name=None, param_dtype=jnp.float64)()
    y = layer.apply(layer.init(jax.random.key(0), x), x)
    reference = torch.nn.GroupNorm(32, 64).double()(torch.from_numpy(x.transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(y, reference.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.LayerNorm, functools.partial(nn.GroupNorm, num_groups=2), nn.BatchNorm,
                                  functools.partial(nn.BatchNorm, momentum=0.5)])  # fmt: skip
def test_any_flax_norm_can_be_plugged_in(norm):
    layer = norms.bind_norm(norm, train=False, axis_name=None, dtype=jnp.float32)(name=None)
    assert layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 3, 4)))[0].shape == (2, 3, 3, 4)
    if isinstance(layer, nn.BatchNorm):
        assert layer.use_running_average


def test_bind_norm_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match=r"unknown norm 'bach'.*batch_unbiased"):
        norms.bind_norm("bach", train=True, axis_name=None)
    with pytest.raises(ValueError, match="keeps none"):
        norms.bind_norm("group", train=True, axis_name="batch")


def test_a_function_that_builds_a_batch_norm_gets_its_mode():
    layer = norms.bind_norm(lambda **kwargs: nn.BatchNorm(**kwargs), train=True, axis_name="batch")()
    assert (layer.use_running_average, layer.axis_name) == (False, "batch")


def test_a_norm_whose_mode_is_fixed_can_be_neither_frozen_nor_evaluated():
    fixed = functools.partial(nn.BatchNorm, use_running_average=False)
    assert norms.bind_norm(fixed, train=True, axis_name=None)().use_running_average is False
    with pytest.raises(ValueError, match="fixes use_running_average=False"):
        norms.bind_norm(fixed, train=False, axis_name=None)


def test_a_norm_with_statistics_and_no_mode_cannot_be_frozen():
    class Wrapped(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(x)

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return norms.freeze(norms.bind_norm(Wrapped, train=False, axis_name=None))()(x)

    with pytest.raises(ValueError, match="Wrapped has batch statistics but no field use_running_average"):
        Outer().init(jax.random.key(0), jnp.ones((2, 4)))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_mean_of_a_d_shortcut_is_right_for_many_images_of_few_pixels(size):
    """XLA on CPU sums up wrong numbers in windows that reach over the edge of so small a map."""
    x = np.random.default_rng(0).normal(size=(32, size, size, 192)).astype(np.float32)
    starts = range(0, size, 2)
    expected = [[x[:, i : i + 2, j : j + 2].mean((1, 2)) for j in starts] for i in starts]
    np.testing.assert_allclose(
        layers.avg_pool2x2_ceil(jnp.asarray(x), 2), np.moveaxis(np.array(expected), 2, 0), rtol=1e-5, atol=1e-6
    )


def test_the_variance_of_float16_is_taken_in_two_passes():
    """It has 11 bits where bfloat16 has 8: at a mean of 1000 deviations of 1 are still told from each other."""
    x = jnp.asarray(1000 + 2 * np.random.default_rng(0).standard_normal((32, 16, 16, 4)), jnp.float16)
    layer = norms.bind_norm("batch", train=True, axis_name=None, dtype=jnp.float16)()
    variables = layer.init(jax.random.key(0), x)
    _, updates = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    found = (np.asarray(updates["batch_stats"]["var"], np.float64) - 0.9) / 0.1
    np.testing.assert_allclose(found, np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_blur_is_a_binomial_filter_of_the_reflected_map(stride):
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 3)).astype(np.float32)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1])[:, :, None] / 16
    expected = [
        [(weights * padded[:, i : i + 3, j : j + 3]).sum((1, 2)) for j in range(0, 5, stride)]
        for i in range(0, 4, stride)
    ]
    found = layers.blur_pool(jnp.asarray(x), stride)
    np.testing.assert_allclose(found, np.moveaxis(np.array(expected), 2, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("features", "reduced"), [(32, 8), (176, 8), (192, 16), (304, 16), (320, 24), (2048, 128)])
def test_squeeze_and_excitation_reduces_to_a_multiple_of_8(features, reduced):
    """A sixteenth, to the nearest multiple; between two it is the larger, as timm's `make_divisible` has it."""
    module = attention.SqueezeExcite(features)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2, 2, features), jnp.float32))
    assert shapes["params"]["fc1"]["kernel"].shape == (1, 1, features, reduced)
    assert shapes["params"]["fc2"]["kernel"].shape == (1, 1, reduced, features)


def test_the_stems_pool_looks_at_windows_around_every_second_pixel():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    assert layers.max_pool3x3(x)[0, :, :, 0].tolist() == [[5, 7], [13, 15]]


def _in_float64(torch, name, x):
    """PyTorch's layer of that name in float64: `[b, h, w, c]` in and out."""
    pad, pool = torch.nn.functional.pad, torch.nn.functional.avg_pool2d
    x = torch.from_numpy(x.astype(np.float64).transpose(0, 3, 1, 2))
    blur = torch.outer(torch.tensor([1.0, 2, 1]), torch.tensor([1.0, 2, 1])).double() / 16
    mean, largest = x.mean((2, 3)), x.amax((2, 3))
    found = {
        "avg": lambda: pool(x, 2),
        "blur": lambda: torch.nn.functional.conv2d(
            pad(x, (1, 1, 1, 1), mode="reflect"), blur.expand(x.shape[1], 1, 3, 3), stride=2, groups=x.shape[1]
        ),
        "ceil": lambda: pool(x, 2, ceil_mode=True, count_include_pad=False),
        "same": lambda: pool(pad(x, (0, 1, 0, 1)), 2, 1),
        "max": lambda: torch.nn.functional.max_pool2d(x, 3, 2, 1),
        "global avg": lambda: mean,
        "global max": lambda: largest,
        "global avgmax": lambda: (mean + largest) / 2,
        "global catavgmax": lambda: torch.cat([mean, largest], 1),
    }[name]()
    return np.moveaxis(found.numpy(), 1, -1) if found.ndim == 4 else found.numpy()


POOLS = {
    "avg": functools.partial(layers.avg_pool, stride=2),
    "blur": functools.partial(layers.blur_pool, stride=2),
    "ceil": functools.partial(layers.avg_pool2x2_ceil, stride=2),
    "same": functools.partial(layers.avg_pool2x2_ceil, stride=1),
    "max": layers.max_pool3x3,
    **{f"global {name}": layers.GLOBAL_POOLS[name] for name in ("avg", "max", "avgmax", "catavgmax")},
}


@pytest.mark.parametrize("sign", [1, -1, 0], ids=["large", "small", "both"])
@pytest.mark.parametrize("name", POOLS)
def test_pools_of_float16_do_not_overflow(name, sign):
    """65,504 is its largest number: no two of these can be added in it."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.uniform(59_000, 65_504, (2, 9, 13, 3)) * (sign or rng.choice([-1, 1], (2, 9, 13, 3)))
    x = x.astype(np.float16)
    found = jax.jit(POOLS[name])(x)
    assert found.dtype == np.float16
    np.testing.assert_allclose(np.asarray(found, np.float64), _in_float64(torch, name, x), rtol=2**-10, atol=32)


@pytest.mark.parametrize("norm", ["batch", "batch_unbiased", "group"])
def test_norms_of_float16_do_not_overflow(norm):
    x = np.random.default_rng(0).uniform(55_000, 65_504, (2, 9, 13, 32)).astype(np.float16)
    layer = norms.bind_norm(norm, train=True, axis_name=None, dtype=jnp.float16)()
    variables = layer.init(jax.random.key(0), x)
    found = jax.jit(lambda x: layer.apply(variables, x, mutable=["batch_stats"])[0])(x)
    wide = x.astype(np.float64)
    axes = (1, 2) if norm == "group" else (0, 1, 2)  # 32 groups: one channel in each
    expected = (wide - wide.mean(axes, keepdims=True)) / wide.std(axes, keepdims=True)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_gradients_of_global_pools_equal_pytorchs_at_equal_values_too(pool, x64):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(0, 3, (2, 4, 5, 6)).astype(np.float64)  # each value many times
    given = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
    mean = torch.nn.functional.adaptive_avg_pool2d(given, 1)
    largest = torch.nn.functional.adaptive_max_pool2d(given, 1)
    theirs = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2, "catavgmax": torch.cat([mean, largest], 1)}
    (theirs[pool] ** 2).sum().backward()
    found = jax.jit(jax.grad(lambda x: jnp.sum(layers.GLOBAL_POOLS[pool](x) ** 2)))(x)
    np.testing.assert_allclose(found, given.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-12)


def test_the_gradient_of_a_global_maximum_is_finite_where_the_map_is_computed_anew(x64):
    """Compiled without optimisations, as tests are, XLA rounds the map otherwise than what it is compared with."""
    model = resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1,), stage_features=(32,), stem_features=32, stem="cifar", num_classes=5,
        global_pool="max", param_dtype="float64", train=True,
    )  # fmt: skip
    images = np.random.default_rng(0).standard_normal((4, 17, 15, 3))
    variables = drawn(jax.eval_shape(model.init, jax.random.key(0), images))

    def loss(params):
        return jnp.mean(model.apply({**variables, "params": params}, images, mutable=["batch_stats"])[0] ** 2)

    found = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
