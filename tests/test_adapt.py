"""Pretrained variables in another network: adapted, grafted, frozen, and inside NNX."""

import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

import resnet_jax
from resnet_jax.training import optimizer
from resnet_jax.weights import adapt as adapt_module
from resnet_jax.weights.convert import ConversionError

NAME = "test_resnet"


@pytest.fixture(scope="module")
def pretrained():
    """Random variables, no two alike and no variance negative."""
    model = resnet_jax.create_model(NAME, train=False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    rng = np.random.default_rng(0)
    draw = {path: rng.uniform(0.1, 0.4, leaf.shape).astype(np.float32) for path, leaf in flatten_dict(shapes).items()}
    return unflatten_dict(draw)


def test_another_number_of_classes_takes_the_rest(pretrained):
    model = resnet_jax.create_model(NAME, num_classes=7)
    variables, diff = resnet_jax.adapt(model, pretrained, waive=["fc"])
    assert variables["params"]["fc"]["kernel"].shape == (96, 7)
    assert set(diff.initialised) == set(diff.left_over) == {"params.fc.kernel", "params.fc.bias"}
    assert len(diff.taken) == len(flatten_dict(pretrained)) - 2
    assert not diff.adapted
    np.testing.assert_array_equal(
        variables["batch_stats"]["layer4"]["0"]["bn1"]["var"], pretrained["batch_stats"]["layer4"]["0"]["bn1"]["var"]
    )
    assert model.apply(variables, jnp.zeros((1, 64, 64, 3)), train=False).shape == (1, 7)


def test_nothing_is_dropped_or_made_up_unless_waived(pretrained):
    with pytest.raises(
        ConversionError, match=r"params.fc.bias: \(1000,\) given, the model has \(7,\)(.|\n)*waive=\['fc'\]"
    ):
        resnet_jax.adapt(resnet_jax.create_model(NAME, num_classes=7), pretrained)
    with pytest.raises(ConversionError, match="params.fc.bias.*given, the model has nothing"):
        resnet_jax.adapt(resnet_jax.create_model(NAME, num_classes=0), pretrained)
    with pytest.raises(ConversionError, match=r"layer1.0.se.fc1.bias: nothing given, the model has \(8,\)"):
        resnet_jax.adapt(resnet_jax.create_model(NAME, attn="se"), pretrained)
    with pytest.raises(ConversionError, match="variables do not fit"):
        resnet_jax.adapt(resnet_jax.create_model("resnet18"), pretrained)
    for waive in (["fcc"], "fc"):
        with pytest.raises(ValueError, match="waive must list modules"):
            resnet_jax.adapt(resnet_jax.create_model(NAME), pretrained, waive=waive)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
@pytest.mark.parametrize("name", [NAME, "resnet18"])
def test_input_channels_follow_timms_rule(name, channels):
    torch = pytest.importorskip("torch")
    manipulate = pytest.importorskip("timm.models._manipulate")
    model = resnet_jax.create_model(name)
    source = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False))()
    variables, diff = resnet_jax.adapt(model, source, in_channels=channels)
    first = "conv1" if name == "resnet18" else "conv1.0"
    assert diff.adapted == (() if channels == 3 else (f"params.{first}.kernel",))
    ours = resnet_jax.to_torch(model, variables)[f"{first}.weight"]
    weight = torch.from_numpy(resnet_jax.to_torch(model, source)[f"{first}.weight"])
    np.testing.assert_allclose(ours, manipulate.adapt_input_conv(channels, weight).numpy(), rtol=1e-6)
    assert ours.dtype == np.float32


def test_another_output_stride_takes_everything(pretrained):
    variables, diff = resnet_jax.adapt(resnet_jax.create_model(NAME, output_stride=8), pretrained)
    assert (diff.adapted, diff.initialised, diff.left_over) == ((), (), ())
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, pretrained))


def test_the_diff_prints(pretrained):
    assert doctest.testmod(adapt_module).failed == 0
    assert doctest.testmod(adapt_module).attempted
    _, diff = resnet_jax.adapt(resnet_jax.create_model(NAME, num_classes=0), pretrained, waive=["fc"])
    assert str(diff).splitlines()[-1].startswith("left over       2  params.fc.bias")


# In another module ----------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """A network inside a module, as its users have it."""

    frozen: bool | tuple[str, ...] = False

    @nn.compact
    def __call__(self, x, *, train):
        net = resnet_jax.create_model(
            NAME, num_classes=0, freeze_norm=self.frozen, param_dtype="float64", name="backbone"
        )
        y = net(x, train=train, features=["layer4"])["layer4"]
        return nn.Dense(3, param_dtype="float64", name="head")(y)


def grafted(pretrained, **kwargs):
    backbone, _ = resnet_jax.adapt(resnet_jax.create_model(NAME, num_classes=0), pretrained, waive=["fc"])
    module = Segmenter(**kwargs)
    own = module.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False)
    backbone = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), backbone)
    return module, backbone, resnet_jax.graft(own, backbone)


def test_a_grafted_backbone_is_the_pretrained_one(pretrained, x64):
    module, backbone, variables = grafted(pretrained)
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    net = resnet_jax.create_model(NAME, num_classes=0, train=False)
    alone = net.apply(backbone, x, features=["layer4"])["layer4"]
    head = variables["params"]["head"]
    expected = np.asarray(alone) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, atol=1e-12)
    with pytest.raises(ConversionError, match="variables do not fit(.|\n)*backbone"):
        resnet_jax.graft(variables, {"params": backbone["params"]})
    with pytest.raises(ConversionError, match="variables do not fit"):
        resnet_jax.graft(variables, backbone, "bone")


@pytest.mark.parametrize("frozen", [True, ("stem", "layer1", "layer3")])
def test_frozen_norms_do_not_move_in_ten_steps(pretrained, frozen, x64):
    module, _, variables = grafted(pretrained, frozen=frozen)
    tx = optax.sgd(0.1, momentum=0.9)
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))

    @jax.jit
    def step(variables, state):
        def loss(params):
            y, updates = module.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jnp.mean((y - 1) ** 2), updates

        grads, updates = jax.grad(loss, has_aux=True)(variables["params"])
        changes, state = tx.update(grads, state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], changes), **updates}, state

    trained, state = variables, tx.init(variables["params"])
    for _ in range(10):
        trained, state = step(trained, state)
    before, after = flatten_dict(variables, sep="."), flatten_dict(trained, sep=".")
    stages = ["stem", "layer1", "layer2", "layer3", "layer4"]
    for name, leaf in before.items():
        stage = next((stage for stage in stages if f".{stage}." in name), "stem")
        norm = (
            "bn" in name or "downsample.2" in name or "conv1.1." in name or "conv1.4." in name
        ) and "head" not in name
        still = norm and (frozen is True or stage in frozen)
        assert np.array_equal(leaf, after[name]) == still, name


def test_labels_train_the_head_alone(pretrained):
    params = pretrained["params"]
    labels = optimizer.label_params(params, {"layer1": "frozen", "layer1.0.bn1": "norm", "fc": "head"}, default="rest")
    flat = flatten_dict(labels, sep=".")
    assert flat["layer1.0.conv1.kernel"] == "frozen"
    assert flat["layer1.0.bn1.scale"] == "norm"
    assert flat["fc.bias"] == "head"
    assert flat["layer2.0.conv1.kernel"] == flat["conv1.0.kernel"] == "rest"
    tx = optax.multi_transform(
        {"frozen": optax.set_to_zero(), "norm": optax.sgd(1.0), "head": optax.sgd(2.0), "rest": optax.sgd(3.0)}, labels
    )
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    updates = {name: float(leaf.ravel()[0]) for name, leaf in flatten_dict(updates, sep=".").items()}
    assert updates["layer1.0.conv1.kernel"] == 0
    assert (updates["layer1.0.bn1.scale"], updates["fc.bias"], updates["layer4.0.conv1.kernel"]) == (-1, -2, -3)
    with pytest.raises(ValueError, match=r"no parameter is inside \['layer'\]"):
        optimizer.label_params(params, {"layer": "frozen"})
    assert doctest.testmod(optimizer).failed == 0


def test_inside_nnx_the_logits_are_the_same(pretrained):
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    model = resnet_jax.create_model(NAME)
    net = nnx.bridge.ToNNX(model)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(pretrained).items():
        setattr(net, name, value)
    np.testing.assert_array_equal(net(x, train=False), model.apply(pretrained, x, train=False))
    # In training mode the statistics must be told to be mutable; then they are updated in place.
    logits, updates = model.apply(pretrained, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(net(x, train=True, mutable=["batch_stats"]), logits, rtol=1e-6)
    np.testing.assert_allclose(net.bn1["mean"].get_value(), updates["batch_stats"]["bn1"]["mean"], rtol=1e-6)
