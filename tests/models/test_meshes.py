"""Under a mesh with explicit axes, as `jax.make_mesh` makes it, networks are traced and give what they give without."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import resnet_jax
from drawing import drawn
from resnet_jax.models import layers
from resnet_jax.models.norms import Shift, group_norm
from resnet_jax.models.resnet import TABLES

SMALL = {"stage_sizes": (1, 1), "stage_features": (32, 32), "stem_features": 32, "num_classes": 5}
SMALLER = {"stage_sizes": (1,), "stage_features": (32,)}
RATES = {"drop_rate": 0.25, "drop_path_rate": 0.25, "drop_block_rate": 0.25}


def everything():
    """A few networks in which each part of each table occurs, and fields of other kinds beside them."""
    rounds = max(map(len, TABLES.values()))
    others = [
        {
            **RATES,
            "stage_sizes": (1, 1, 1),
            "stage_features": (32, 32, 32),
            "output_stride": 8,
            "first_stage_stride": 2,
        },
        {"freeze_norm": ("stem",), "groups": 4, "reduce_first": 2, "first_stage_stride": 2},
        {
            "dtype": "float16",
            "norm": functools.partial(group_norm, num_groups=4),
            "anti_alias": None,
            "stride_in_1x1": True,
            "num_classes": 0,
        },
        {"norm": nn.LayerNorm, "dtype": "bfloat16", "zero_init_residual": True},
        {"norm": Shift, "block_widths": (((8, 8, 32),), ((8, 12, 64),))},
    ]
    for i in range(rounds):
        yield {field: sorted(table)[i % len(table)] for field, table in TABLES.items()} | others[i]
    yield {"norm": nn.InstanceNorm}
    yield {"norm": functools.partial(nn.BatchNorm, use_fast_variance=True), "freeze_norm": True}


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4,), ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(mesh):
        yield mesh


def train_and_evaluate(model, variables, images, key):
    """Gradients and new statistics of a training step, and the maps and logits of evaluation."""

    def loss(params):
        outputs, updates = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return jnp.mean(outputs.astype(jnp.float32) ** 2), updates

    names = ["act1", "layer1.0", "pre_logits"]
    return jax.grad(loss, has_aux=True)(variables["params"]), model.apply(
        variables, images, train=False, features=names
    )


@pytest.mark.parametrize("fields", list(everything()), ids=map(str, range(7)))
def test_every_part_is_traced_forward_and_backward(fields, mesh):
    model = resnet_jax.ResNet(resnet_jax.Bottleneck, **SMALL | fields)
    images = jax.ShapeDtypeStruct((4, 65, 97, 3), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)
    (gradients, _), found = jax.eval_shape(
        functools.partial(train_and_evaluate, model), variables, images, jax.random.key(1)
    )
    jax.tree.map(lambda gradient, leaf: None, gradients, variables["params"])  # raises where a name is missing
    assert {value.sharding.spec[0] for value in found.values()} == {"data"}


@pytest.mark.parametrize(
    "fields",
    [
        {"shortcut": "avg", "attn": "se", "norm": "batch_unbiased", "drop_rate": 0.25, "stem_features": 8},
        pytest.param(
            {"anti_alias": "blur", "attn": "eca", "norm": "group", "remat": "block", "global_pool": "catavgmax"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dropping", "rematerialised"],
)
def test_a_step_and_an_evaluation_are_those_without_a_mesh(fields, mesh, x64):
    model = resnet_jax.ResNet(resnet_jax.BasicBlock, stem="cifar", param_dtype="float64", **SMALL | SMALLER | fields)
    images = np.random.default_rng(0).standard_normal((4, 17, 15, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    variables = jax.tree.map(lambda leaf: leaf / 8 if leaf.ndim > 1 else leaf, drawn(shapes))
    run = jax.jit(functools.partial(train_and_evaluate, model))
    everywhere, spread = jax.device_put((variables, images), (NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))))
    found = run(everywhere, spread, jax.random.key(1))
    assert len(jax.tree.leaves(found)[0].devices()) == 4
    with jax.set_mesh(jax.sharding.Mesh(mesh.devices[:1], ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        expected = run(variables, images, jax.random.key(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max()), found, expected)


def test_squares_are_dropped_as_without_a_mesh(mesh):
    x = np.random.default_rng(0).standard_normal((4, 9, 9, 3)).astype(np.float32)
    drop = jax.jit(functools.partial(layers.DropBlock(0.2, 3).apply, {}, rngs={"dropout": jax.random.key(1)}))
    found = drop(jax.device_put(x, NamedSharding(mesh, P("data"))))
    assert 0 < (found == 0).mean() < 0.6
    np.testing.assert_allclose(found, drop(x), rtol=1e-6)


class Dropped(nn.Module):
    """The module at the same place in the tree, from which the random numbers come."""

    cls: type[nn.Module]
    broadcast_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        return self.cls(rate=0.4, broadcast_dims=self.broadcast_dims, deterministic=False)(x)


@pytest.mark.parametrize("broadcast_dims", [(), (-3, -2, -1)], ids=["dropout", "drop_path"])
def test_dropout_is_flaxs_bit_for_bit(broadcast_dims):
    x = jax.random.normal(jax.random.key(0), (8, 3, 5, 7)).at[0, 0, 0, 0].set(jnp.inf)
    found, expected = (
        Dropped(cls, broadcast_dims).apply({}, x, rngs={"dropout": jax.random.key(1)})
        for cls in (layers.Dropout, nn.Dropout)
    )
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert 0 < (found == 0).mean() < 1
