"""Norms and attentions of one's own, with variables of any name: converted both ways bit for bit, or refused."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.weights.convert import ConversionError
from resnet_jax.weights.files import formats

IMAGES = np.random.default_rng(0).standard_normal((2, 9, 11, 3)).astype(np.float32)


class OwnNorm(nn.Module):
    """A norm with the parameters and statistics that it is told to have, each of which counts."""

    params: tuple[tuple[str, tuple[int, ...]], ...] = ()
    stats: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    collection: str = "batch_stats"
    use_running_average: bool | None = None
    axis_name: str | None = None
    dtype: object = None
    param_dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        for name, shape in self.params:  # -1 stands for the channels
            sizes = [x.shape[-1] if size == -1 else size for size in shape]
            x = x * jnp.mean(self.param(name, nn.initializers.ones, sizes, self.param_dtype))
        for name, shape, dtype in self.stats:
            sizes = [x.shape[-1] if size == -1 else size for size in shape]
            value = self.variable(self.collection, name, jnp.ones, sizes, dtype)
            x = x + jnp.mean(value.value.astype(x.dtype))
        return x


def norm(*params, stats=(), **kwargs):
    pairs = tuple(param if isinstance(param, tuple) else (param, (-1,)) for param in params)
    return functools.partial(OwnNorm, params=pairs, stats=tuple(stats), **kwargs)


class Nested(nn.Module):
    """A norm inside a norm."""

    dtype: object = None
    param_dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(x) * self.param("gain", nn.initializers.ones, ())


class OwnAttention(nn.Module):
    features: int
    conv: object = None

    @nn.compact
    def __call__(self, x):
        return x * self.param("gamma", nn.initializers.ones, (x.shape[-1], 2)).sum(-1).reshape(1, 1, 1, -1)


def net(**fields):
    small = {"num_classes": 3, "stage_features": (4,), "stem_features": 4, "stem": "cifar", "train": False}
    return resnet_jax.ResNet(resnet_jax.Bottleneck, (1,), **small | fields)


def variables_of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    return drawn(shapes)


MOVING = [("moving_mean", (-1,), "float32"), ("moving_variance", (-1,), "float32"), ("count", (), "int32")]
TAKEN = {
    "gamma and beta": {"norm": norm("gamma", "beta")},
    "one more": {"norm": norm("scale", "bias", ("alpha", (1,)))},
    "a number": {"norm": norm("scale", ("alpha", ()))},
    "two axes": {"norm": norm("scale", ("mixing", (-1, 2)))},
    "four axes": {"norm": norm("scale", ("mixing", (1, 2, 3, -1)))},
    "a kernel": {"norm": norm("kernel")},
    "a kernel of two axes": {"norm": norm(("kernel", (-1, 2)))},
    "PyTorch's names": {"norm": norm("weight", "bias")},
    "statistics": {"norm": norm("gamma", stats=[("mean", (-1,), "float32"), ("var", (-1,), "float32")])},
    "other statistics": {"norm": norm("gamma", stats=MOVING)},
    "another collection": {"norm": norm("gamma", stats=[("u", (1, -1), "float32")], collection="spectral")},
    "nested": {"norm": Nested},
    "none": {"norm": functools.partial(nn.BatchNorm, use_scale=False, use_bias=False)},
    "attention": {"attn": OwnAttention},
}


@pytest.mark.parametrize("fields", TAKEN.values(), ids=TAKEN)
def test_variables_of_any_name_go_to_pytorch_and_back(fields, tmp_path):
    model = net(**fields)
    variables = variables_of(model)
    tensors = resnet_jax.to_torch(model, variables)
    assert next(iter(tensors)).startswith("conv1.")
    assert list(tensors)[-1].startswith("fc.")
    for file in (tmp_path / "net.safetensors", tmp_path / "net.pth"):
        formats.save_state_dict(file, tensors)
        found = resnet_jax.from_torch(model, resnet_jax.load_state_dict(file))
        jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), found, variables)
    assert np.isfinite(model.apply(found, IMAGES)).all()


@pytest.mark.parametrize("name", ["two axes", "four axes"])
def test_axes_are_in_pytorchs_order_in_kernels_alone(name):
    model = net(**TAKEN[name])
    variables = variables_of(model)
    mixing = variables["params"]["bn1"]["mixing"]
    np.testing.assert_array_equal(resnet_jax.to_torch(model, variables)["bn1.mixing"], mixing, strict=True)


@pytest.mark.parametrize("name", ["gamma and beta", "other statistics", "another collection", "nested"])
def test_what_is_not_finite_is_found_in_each_of_them(name):
    model = net(**TAKEN[name])
    variables = variables_of(model)
    leaves, structure = jax.tree.flatten(variables)
    for i, leaf in enumerate(leaves):
        if leaf.dtype == np.float32:
            damaged = leaf.copy()
            damaged.flat[-1] = np.nan
            with pytest.raises(ConversionError, match="1 NaN"):
                resnet_jax.to_torch(model, jax.tree.unflatten(structure, [*leaves[:i], damaged, *leaves[i + 1 :]]))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (norm("weight", "scale"), r"params.bn1.\w+ would be PyTorch's bn1.weight, and so would params.bn1.\w+"),
        (norm("kernel", "scale"), r"params.bn1.\w+ would be PyTorch's bn1.weight, and so would params.bn1.\w+"),
        (
            norm("running_mean", stats=[("mean", (-1,), "float32")]),
            "bn1.running_mean, and so would batch_stats.bn1.mean",
        ),
        (norm("gamma", stats=[("gamma", (-1,), "float32")]), r"bn1.gamma, and so would batch_stats.bn1.gamma"),
        (norm("filt"), r"params.bn1.filt would be PyTorch's bn1.filt, and such tensors are passed over"),
        (norm("gamma", stats=[("num_batches_tracked", (), "int32")]), r"num_batches_tracked, and such tensors"),
    ],
)
def test_names_that_pytorch_cannot_tell_apart_are_refused(own, said):
    model = net(norm=own)
    variables = variables_of(model)
    assert np.isfinite(model.apply(variables, IMAGES)).all()
    for convert in (resnet_jax.to_torch, lambda model, _: resnet_jax.from_torch(model, {})):
        with pytest.raises(ConversionError, match=said) as caught:
            convert(model, variables)
        assert "\n" not in str(caught.value)


def test_a_norm_of_ones_own_is_trained_and_frozen_but_not_folded_nor_saved(tmp_path: pathlib.Path):
    model = net(norm=norm("gamma", "beta"))
    variables = variables_of(model)

    def loss(params, **fields):
        return jnp.mean(model.clone(**fields).apply({"params": params}, IMAGES) ** 2)

    gradients = jax.grad(loss)(variables["params"], train=True)
    assert np.all(gradients["bn1"]["gamma"] != 0)
    frozen = jax.grad(loss)(variables["params"], train=True, freeze_norm=True)
    assert not np.any(frozen["bn1"]["gamma"])
    with pytest.raises(ValueError, match="only batch norm, .* can be folded"):
        resnet_jax.fold_batch_norm(model, variables)
    with pytest.raises(ValueError, match="functions cannot be written to a file: save its weights alone"):
        resnet_jax.save_pretrained(model, variables, tmp_path / "net")
    adapted, diff = resnet_jax.adapt(model.clone(num_classes=5), variables, waive=["fc"])
    assert diff.initialised == ("params.fc.bias", "params.fc.kernel")
    np.testing.assert_array_equal(adapted["params"]["bn1"]["beta"], variables["params"]["bn1"]["beta"])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"norm": OwnAttention}, "OwnAttention.*takes no dtype, param_dtype, which a network gives to its norms"),
        ({"norm": norm("gamma"), "zero_init_residual": True}, "OwnNorm.*takes no scale_init.*zero_init_residual=True"),
    ],
)
def test_a_norm_that_does_not_take_what_it_is_given_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        resnet_jax.feature_info(net(**fields))
