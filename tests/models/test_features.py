"""Feature maps: what can be asked for, what it is, and that nothing else is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax

IMAGES = np.random.default_rng(0).standard_normal((2, 33, 47, 3)).astype(np.float32)


def tiny(stage_sizes=(1, 2, 1), **kwargs):
    features = (8, 16, 24)[: len(stage_sizes)]
    kwargs = {"num_classes": 5, "stage_features": features, "stem_features": 8, "train": False} | kwargs
    return resnet_jax.ResNet(resnet_jax.BasicBlock, stage_sizes, **kwargs)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(tiny().init)(jax.random.key(0), IMAGES)


def apply(model, variables, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))(variables, IMAGES)


def operations(model, variables, features):
    """Primitives of the traced program, before any compiler can leave out what nobody needs."""
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, features=features))(variables, IMAGES)
    return [equation.primitive.name for equation in jaxpr.jaxpr.eqns]


def flops(model, variables, features):
    apply = jax.jit(functools.partial(model.apply, features=features))
    return apply.lower(variables, IMAGES).compile().cost_analysis()["flops"]


def test_any_block_stage_vector_or_logits_without_surgery(variables):
    names = ("layer2.1", "act1", "stem", "layer1", "layer2.0", "pre_logits", "logits")
    order = []  # which jit does not keep
    jax.eval_shape(lambda: order.extend(tiny().apply(variables, IMAGES, features=names)))
    assert tuple(order) == names
    found = apply(tiny(), variables, features=names)
    assert found["act1"].shape == (2, 17, 24, 8)
    assert found["stem"].shape == (2, 9, 12, 8)
    assert found["layer2.0"].shape == found["layer2.1"].shape == (2, 5, 6, 16)
    assert found["pre_logits"].shape == (2, 24)
    np.testing.assert_array_equal(found["logits"], apply(tiny(), variables))
    last = apply(tiny(), variables, features=("layer2",))["layer2"]
    np.testing.assert_array_equal(found["layer2.1"], last)


def test_asking_for_stage_2_does_not_compute_stage_3(variables):
    """The compiled function costs what a network of two stages costs, not a flop more."""
    two = tiny((1, 2), num_classes=0)
    own = {kind: {name: tree[name] for name in ("conv1", "bn1", "layer1", "layer2") if name in tree}
           for kind, tree in variables.items()}  # fmt: skip
    asked = flops(tiny(), variables, ("layer2",))
    assert asked == flops(two, own, ("layer2",))
    assert operations(tiny(), variables, ("layer2",)) == operations(two, own, ("layer2",))
    assert asked < 0.95 * flops(tiny(), variables, ("layer3",))


def test_asking_for_a_block_does_not_compute_the_next():
    """Not even where nothing is compiled, and no parameter is made."""
    model = tiny()
    first = jax.eval_shape(functools.partial(model.init, features=("layer2.0",)), jax.random.key(0), IMAGES)["params"]
    assert set(first) == {"conv1", "bn1", "layer1", "layer2"}
    assert set(first["layer2"]) == {"0"}
    stem = jax.eval_shape(functools.partial(model.init, features=("act1",)), jax.random.key(0), IMAGES)["params"]
    assert set(stem) == {"conv1", "bn1"}


def test_channels_and_reductions_are_known_without_running():
    found = resnet_jax.feature_info(resnet_jax.create_model("resnet50d"))
    assert [tuple(entry) for entry in found] == [
        ("act1", 64, 2), ("layer1", 256, 4), ("layer2", 512, 8), ("layer3", 1024, 16), ("layer4", 2048, 32),
    ]  # fmt: skip
    assert [entry.reduction for entry in resnet_jax.feature_info(resnet_jax.cifar_resnet20())] == [1, 1, 2, 4]


def test_features_in_training_mode_update_the_statistics_that_were_passed(variables):
    found, updates = apply(tiny(train=True), variables, features=["layer1"], mutable=["batch_stats"])
    assert found["layer1"].shape == (2, 9, 12, 8)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), updates["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves([moved["bn1"], moved["layer1"]]))
    assert not any(jax.tree.leaves([moved["layer2"], moved["layer3"]]))


def test_an_unknown_feature_names_the_nearest(variables):
    for features, said in {
        ("layer1", "layer9"): r"no features \['layer9'\]: did you mean layer",
        ("embedding",): "the network has act1, stem, layer1.0, layer1,.*pre_logits, logits",
        "layer1": "features must list names",
        (): "features must list names",
    }.items():
        with pytest.raises(ValueError, match=said):
            tiny().apply(variables, IMAGES, features=features)
    with pytest.raises(ValueError, match=r"no features \['logits'\]"):
        tiny(num_classes=0).apply(variables, IMAGES, features=["logits"])
