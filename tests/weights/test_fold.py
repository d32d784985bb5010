"""Folding batch norm: the same outputs to 1e-10 in float64, in every place where a norm follows a convolution."""

import doctest
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import BasicBlock, Bottleneck, ResNet, UnbiasedBatchNorm, create_model, feature_info, fold_batch_norm
from resnet_jax.models.norms import Shift, batch_norm
from resnet_jax.models.shortcuts import projected
from resnet_jax.weights import fold
from resnet_jax.weights.convert import ConversionError

slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def randomized(model, dtype=np.float64, channels=3, seed=0):
    """Variables in which no norm tensor is 0 or 1; the last scales of a block are small, or signals explode."""
    rng = np.random.default_rng(seed)
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)

    def draw(path, leaf):
        *_, module, name = (key.key for key in path)
        low, high = (0.1, 0.3) if module in ("bn2", "bn3") else (0.5, 1.5)
        values = {
            "kernel": lambda: rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape),
            "scale": lambda: rng.uniform(low, high, leaf.shape),
            "bias": lambda: rng.normal(0, 0.1, leaf.shape),
            "mean": lambda: rng.normal(0, 0.2, leaf.shape),
            "var": lambda: rng.uniform(0.5, 1.5, leaf.shape),
        }
        return values[name]().astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def images_of(size, channels=3):
    return np.random.default_rng(1).standard_normal((2, *size, channels))


def relative_difference(model, variables, images):
    """Largest difference of the folded net's logits, relative to the largest logit."""
    folded, folded_variables = fold_batch_norm(model, variables)
    assert "batch_stats" not in folded_variables
    assert not any("scale" in str(path) for path, _ in jax.tree_util.tree_leaves_with_path(folded_variables))
    before = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    after = jax.jit(functools.partial(folded.apply, train=False))(folded_variables, images)
    assert 1e-2 < np.abs(before).max() < 1e4
    return float(np.abs(after - before).max() / np.abs(before).max())


# The second block of a stage has no convolution in its shortcut.
FEW = {"stage_sizes": (2, 1), "stage_features": (64, 128)}


@pytest.mark.parametrize(
    ("name", "fields", "size"),
    [
        ("cifar_resnet20", {"stage_sizes": (1, 1, 1)}, (32, 29)),
        ("test_resnet", {}, (64, 65)),  # a deep stem, averaging shortcuts, both blocks
        slow("seresnet50", FEW, (64, 97)),
        slow("resnetrs50", FEW, (64, 97)),  # its stem's pool is a convolution with a norm
        slow("resnetblur18", FEW, (64, 97)),
        *(
            pytest.param(name, {}, (64, 97), marks=pytest.mark.parity)
            for name in ("resnet50", "resnet50d", "seresnet50", "resnext50_32x4d", "resnetrs50", "resnetblur18")
        ),
        pytest.param("resnetaa50d", {}, (64, 96), marks=pytest.mark.parity),
    ],
)
def test_folded_equals_unfolded_in_float64(name, fields, size, x64):
    model = create_model(name, param_dtype="float64", **fields)
    difference = relative_difference(model, randomized(model), images_of(size))
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-10


SMALL = {"block": BasicBlock, "stage_sizes": (1, 1), "stage_features": (8, 12), "stem_features": 8, "num_classes": 5}


def small(**fields):
    return ResNet(**(SMALL | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"anti_alias": "blur", "stem_pool": "conv"},  # the pool lies between a convolution and its norm
        {"anti_alias": "avg", "stem_pool": "conv", "shortcut": "avg"},
        {"stem": "deep_tiered", "stem_features": 16, "block": Bottleneck, "groups": 2},
        {"shortcut": "none", "stem": "cifar"},
        {"block": functools.partial(BasicBlock, reduce_first=2), "attn": "eca", "zero_init_residual": True},
        {"block": (BasicBlock, Bottleneck), "freeze_norm": True, "norm": "batch_unbiased", "axis_name": "batch"},
        {"norm": functools.partial(batch_norm, epsilon=0.5)},
        {"norm": functools.partial(nn.BatchNorm, epsilon=0.01), "remat": "block", "drop_path_rate": 0.5},
        {"output_stride": 8, "stage_sizes": (1, 1, 1), "stage_features": (8, 12, 16), "num_classes": 0},
        {"shortcut": functools.partial(projected, kernel_size=3), "global_pool": "catavgmax"},
    ],
    ids="-".join,
)
def test_every_place_of_a_norm_is_folded(fields, x64):
    model = small(**{"param_dtype": "float64", **fields})
    assert relative_difference(model, randomized(model), images_of((32, 32))) < 1e-10


def test_a_forgotten_epsilon_would_be_seen(x64):
    model = small(param_dtype="float64")
    variables = randomized(model)
    folded, folded_variables = fold_batch_norm(model.clone(norm=functools.partial(batch_norm, epsilon=1e-4)), variables)
    before, after = (
        jax.jit(functools.partial(net.apply, train=False))(own, images_of((32, 32)))
        for net, own in ((model, variables), (folded, folded_variables))
    )
    assert 1e-6 < np.abs(after - before).max() / np.abs(before).max() < 1e-2


def test_a_known_answer():
    """One channel by hand: (2 x - 3) * 6 / sqrt(8 + 1) + 5 = 4 x - 1."""
    norm = functools.partial(nn.BatchNorm, epsilon=1.0)
    model = ResNet(BasicBlock, (), num_classes=0, stem="cifar", stem_features=1, norm=norm)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 2
    variables = {
        "params": {"conv1": {"kernel": kernel}, "bn1": {"scale": np.float32([6]), "bias": np.float32([5])}},
        "batch_stats": {"bn1": {"mean": np.float32([3]), "var": np.float32([8])}},
    }
    folded, folded_variables = fold_batch_norm(model, variables)
    assert folded.norm is Shift
    assert folded_variables["params"]["conv1"]["kernel"][1, 1] == 4
    assert folded_variables["params"]["bn1"] == {"bias": np.float32([-1])}
    assert kernel[1, 1] == 2  # the given variables are left as they are


def test_dtypes_stay():
    model = small(dtype="bfloat16", param_dtype="bfloat16")
    variables = randomized(model, jnp.bfloat16)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf.astype(np.float32), variables["batch_stats"])
    folded, folded_variables = fold_batch_norm(model, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded_variables)} == {jnp.dtype("bfloat16")}
    logits = jax.jit(functools.partial(folded.apply, train=False))(folded_variables, images_of((32, 32)))
    assert logits.dtype == jnp.bfloat16
    exact = jax.jit(functools.partial(model.clone(dtype="float32").apply, train=False))(variables, images_of((32, 32)))
    np.testing.assert_allclose(logits.astype(np.float32), exact, atol=0.05 * np.abs(exact).max())


def test_grey_images_and_one_image_alone():
    model = small()
    variables = randomized(model, np.float32, channels=1)
    folded, folded_variables = fold_batch_norm(model, variables)
    image = images_of((32, 32), 1)[0].astype(np.float32)
    before, after = (
        jax.jit(functools.partial(net.apply, train=False))(own, image)
        for net, own in ((model, variables), (folded, folded_variables))
    )
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


class OwnBlock(BasicBlock):
    pass


class OwnNorm(nn.BatchNorm):
    pass


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm": "group"}, r"norm='group' builds GroupNorm"),
        ({"norm": nn.LayerNorm}, r"builds LayerNorm"),
        ({"norm": OwnNorm}, r"builds OwnNorm"),
        ({"norm": functools.partial(nn.BatchNorm, use_bias=False)}, r"with its scale and bias"),
        ({"block": OwnBlock}, r"block=<class .*OwnBlock'> is no part of this library"),
        ({"shortcut": lambda x, features, **_: x}, r"shortcut=<function .* is no part"),
        ({"anti_alias": lambda x, stride: x**2}, r"anti_alias=<function"),
        ({"stem": lambda x, features, **_: x}, r"stem=<function"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_cannot_be_folded_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        fold_batch_norm(small(**fields), {})


class NormedAttention(nn.Module):
    """An attention with a norm of its own, of which the table knows nothing."""

    features: int
    conv: object

    @nn.compact
    def __call__(self, x):
        return x * nn.BatchNorm(use_running_average=True, name="bn")(x)


def test_a_norm_that_no_convolution_is_known_for_is_refused():
    model = small(attn=NormedAttention)
    with pytest.raises(ConversionError, match=r"layer1\.0\.se\.bn follows 0 convolutions"):
        fold_batch_norm(model, randomized(model))


def test_variables_of_another_network_are_refused():
    model = small()
    with pytest.raises(ConversionError, match="of another shape"):
        fold_batch_norm(model, randomized(small(stage_features=(8, 16))))
    folded, folded_variables = fold_batch_norm(model, randomized(model))
    with pytest.raises(ValueError, match="builds Shift"):
        fold_batch_norm(folded, folded_variables)
    with pytest.raises(ConversionError, match="missing from the tree of variables"):
        fold_batch_norm(model, folded_variables)


def test_the_folded_net_has_no_norm_and_the_same_features():
    model = small(norm=UnbiasedBatchNorm)
    folded, folded_variables = fold_batch_norm(model, randomized(model, np.float32))
    images = images_of((32, 32)).astype(np.float32)
    assert "rsqrt" not in str(jax.make_jaxpr(functools.partial(folded.apply, train=False))(folded_variables, images))
    assert feature_info(folded) == feature_info(model)


def test_the_example_in_the_docstring_runs():
    found = doctest.testmod(fold)
    assert found.attempted
    assert not found.failed


def test_a_shift_adds_its_bias_in_the_dtype_of_the_computation():
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    variables = {"params": {"bias": np.float32([1, 2, 3])}}
    np.testing.assert_array_equal(Shift().apply(variables, x), x + np.float32([1, 2, 3]))
    assert Shift(dtype="bfloat16").apply(variables, x).dtype == jnp.bfloat16
    assert Shift(param_dtype="float16").init(jax.random.key(0), x)["params"]["bias"].dtype == jnp.float16
