"""Frozen stages stay where they are, nested or not, whatever `train` says; NNX gives the same logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util
from flax.nnx.bridge.variables import linen_vars_to_nnx_attrs
from flax.traverse_util import flatten_dict

import resnet_jax

# Two blocks behind a deep stem, which has norms of its own.
SMALL = {"stage_sizes": (1, 1), "stage_features": (8, 12), "stem_features": 8}


def backbone(**kwargs):
    return resnet_jax.create_model("resnet18d", num_classes=0, param_dtype="float64", **SMALL, **kwargs)


class Outer(nn.Module):
    """Somebody's module with the network inside."""

    freeze_norm: bool | tuple[str, ...]

    @nn.compact
    def __call__(self, x, *, train):
        features = backbone(freeze_norm=self.freeze_norm, name="backbone")(x, train=train)
        return nn.Dense(3, name="head", param_dtype=jnp.float64)(features)


def random_norms(tree, seed):
    """The tree with random norm tensors: none is at a value that it would keep by itself, and no signal dies."""
    rng = np.random.default_rng(seed)

    def draw(path, x):
        kind = path[-1].key
        if kind == "kernel":
            return np.asarray(x)
        drawn = rng.uniform(0.5, 1.5, x.shape) if kind in ("scale", "var") else rng.normal(0, 0.1, x.shape)
        return drawn.astype(x.dtype)

    return jax.tree.map_with_path(draw, tree)


def random(init, seed):
    """Random variables of the shapes that `init` gives, which is not run."""
    rng = np.random.default_rng(seed)

    def draw(x):
        return rng.normal(0, np.sqrt(2 / np.prod(x.shape[:-1])), x.shape).astype(x.dtype)

    return random_norms(jax.tree.map(draw, jax.eval_shape(init)), seed)


def train_three_steps(freeze_norm, tx):
    """Variables before and after three steps of the outer module in training mode."""
    outer = Outer(freeze_norm)
    images = np.random.default_rng(0).standard_normal((8, 16, 16, 3))
    labels = jnp.arange(8) % 3
    variables = random(lambda: outer.init(jax.random.key(0), images, train=False), 0)
    pretrained = random(lambda: backbone(train=False).init(jax.random.key(0), images), 1)
    variables = resnet_jax.graft(variables, pretrained)
    before = jax.tree.map(np.array, variables)

    @jax.jit
    def step(variables, opt_state):
        def loss(params):
            logits, updates = outer.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), updates

        grads, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **new}, opt_state

    opt_state = tx.init(variables["params"])
    for _ in range(3):
        variables, opt_state = step(variables, opt_state)
    return flatten_dict(before, sep="."), flatten_dict(variables, sep=".")


def test_a_grafted_backbone_computes_what_it_did_alone(x64):
    outer, images = Outer(True), np.random.default_rng(0).standard_normal((4, 33, 32, 3))
    variables = random(lambda: outer.init(jax.random.key(0), images, train=False), 0)
    pretrained = random(lambda: backbone(train=False).init(jax.random.key(0), images), 1)
    variables = resnet_jax.graft(variables, pretrained)
    alone = jax.jit(backbone(train=False).apply)(pretrained, images)
    head = variables["params"]["head"]
    expected = np.asarray(alone) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    found = jax.jit(lambda: outer.apply(variables, images, train=False))()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def moved(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


FROZEN = ("mean", "var", "scale", "bias")


@pytest.mark.parametrize(
    ("freeze_norm", "frozen"),
    [
        (True, ("conv1", "bn1", "layer1", "layer2")),
        (("stem", "layer1"), ("conv1", "bn1", "layer1")),
        (False, ()),
    ],
)
def test_no_statistic_scale_or_bias_of_frozen_stages_moves(freeze_norm, frozen, x64):
    before, after = train_three_steps(freeze_norm, optax.sgd(0.1, momentum=0.9))
    changed = moved(before, after)
    for name in before:
        _, _, *rest = name.split(".")
        if name.split(".")[1] != "backbone" or rest[-1] not in FROZEN:
            continue
        assert (name in changed) == (rest[0] not in frozen), name
    assert "params.backbone.layer1.0.conv1.kernel" in changed  # only norms are frozen
    assert "params.head.kernel" in changed


def test_labels_freeze_whole_stages_and_give_others_a_rate_of_their_own(x64):
    """With weight decay too, which is not a gradient and would move what only has none."""

    def labels(params):
        parts = {"head": "head"} | {f"backbone.{name}": "frozen" for name in ("conv1", "bn1", "layer1")}

        def label(path, _):
            return parts.get(".".join(path[:2]), parts.get(path[0], "trunk"))

        return traverse_util.path_aware_map(label, params)

    decayed = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05))
    tx = optax.multi_transform({"frozen": optax.set_to_zero(), "trunk": decayed, "head": optax.sgd(0.5)}, labels)
    before, after = train_three_steps(("stem", "layer1"), tx)
    changed = moved(before, after)
    for name in before:
        _, *rest = name.split(".")
        still = rest[0] == "backbone" and rest[1] in ("conv1", "bn1", "layer1")
        assert (name in changed) != still, name


def test_freezing_what_is_not_there_is_refused():
    def shapes(frozen):
        model = resnet_jax.resnet18(freeze_norm=frozen, train=True)
        return jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 32, 32, 3)))

    with pytest.raises(ValueError, match=r"freeze_norm must be True, False or some of \['stem', 'layer1'"):
        shapes(("layer7",))
    with pytest.raises(ValueError, match="freeze_norm must be"):
        shapes("layer1")


def test_nnx_gives_the_same_logits_and_trains_with_mutable_statistics():
    model = resnet_jax.create_model("resnet18d", num_classes=5, **SMALL)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    variables = random_norms(jax.jit(lambda: model.init(jax.random.key(0), images, train=False))(), 3)
    converted = resnet_jax.from_torch(model, resnet_jax.to_torch(model, variables))

    def bridged(train):
        module = nnx.bridge.ToNNX(model.clone(train=train), rngs=nnx.Rngs(0))
        for name, value in linen_vars_to_nnx_attrs(converted).items():
            setattr(module, name, value)
        return module

    expected = jax.jit(model.clone(train=False).apply)(converted, images)
    np.testing.assert_allclose(bridged(False)(images), expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))
    trained, updates = jax.jit(lambda: model.apply(converted, images, train=True, mutable=["batch_stats"]))()
    module = bridged(True)
    found = module(images, mutable=["batch_stats"])
    np.testing.assert_allclose(found, trained, rtol=1e-4, atol=1e-4 * float(jnp.abs(trained).max()))
    statistics = module.bn1["mean"] if isinstance(module.bn1, dict) else module.bn1.mean
    np.testing.assert_allclose(np.asarray(statistics[...]), updates["batch_stats"]["bn1"]["mean"], rtol=1e-5)
