"""Networks of one to seven stages: as PyTorch's, converted, folded, saved, with features and gradients."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.proof.reference import randomise_norms

torch = pytest.importorskip("torch")
resnet = pytest.importorskip("torchvision.models.resnet")

STAGES = 6
WIDTHS = (8, 12, 16, 20, 24, 28)


def net(count=STAGES, block=resnet_jax.BasicBlock, **fields):
    small = {"stage_features": WIDTHS[:1] * count, "stem_features": 8, "num_classes": 5}
    return resnet_jax.ResNet(block, (1,) * count, **small | fields)


def in_torch(block, stages=STAGES):
    """Blocks of torchvision's in a row, under torchvision's names."""
    layers, width = collections.OrderedDict(), 8
    layers["conv1"] = torch.nn.Conv2d(3, width, 7, 2, 3, bias=False)
    layers["bn1"] = torch.nn.BatchNorm2d(width)
    layers["relu"], layers["maxpool"] = torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1)
    for i in range(stages):
        stride, out = 2 if i else 1, WIDTHS[i] * block.expansion
        projection = torch.nn.Sequential(torch.nn.Conv2d(width, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out))
        first = block(width, WIDTHS[i], stride, projection if i or out != width else None)
        layers[f"layer{i + 1}"] = torch.nn.Sequential(first, block(out, WIDTHS[i]))
        width = out
    layers["avgpool"], layers["flatten"] = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    layers["fc"] = torch.nn.Linear(width, 5)
    return torch.nn.Sequential(layers)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param("BasicBlock", resnet_jax.BasicBlock, id="basic"),
        pytest.param("Bottleneck", resnet_jax.Bottleneck, id="bottleneck", marks=pytest.mark.slow),
    ],
)
def test_outputs_gradients_and_names_equal_pytorchs(theirs, ours, x64):
    torch.manual_seed(0)
    reference = in_torch(getattr(resnet, theirs)).eval()
    randomise_norms(reference)
    reference = reference.double()
    model = resnet_jax.ResNet(
        ours, (2,) * STAGES, stage_features=WIDTHS, stem_features=8, num_classes=5, param_dtype="float64", train=False
    )
    state_dict = {name: tensor.numpy().copy() for name, tensor in reference.state_dict().items()}
    variables = resnet_jax.from_torch(model, state_dict)
    returned = resnet_jax.to_torch(model, variables)
    assert list(returned) == list(state_dict)  # `layer6` among them
    for name, tensor in state_dict.items():
        np.testing.assert_array_equal(returned[name], tensor if "num_batches" not in name else 0)

    images = np.random.default_rng(0).standard_normal((2, 129, 161, 3))
    outputs, given = {}, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    for name, layer in reference.named_children():
        given = outputs[name] = layer(given)
    (given**2).mean().backward()

    def loss(params):
        names = [*(f"layer{i + 1}" for i in range(STAGES)), "logits"]
        found = model.apply({**variables, "params": params}, images, features=names)
        return jnp.mean(found["logits"] ** 2), found

    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for name, value in found.items():
        expected = outputs["fc" if name == "logits" else name].detach().numpy()
        expected = np.moveaxis(expected, 1, -1) if expected.ndim == 4 else expected
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    ours_named = resnet_jax.to_torch(model, {"params": gradients, "batch_stats": variables["batch_stats"]})
    for name, parameter in reference.named_parameters():
        expected = parameter.grad.numpy()
        np.testing.assert_allclose(ours_named[name], expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("count", "fields"),
    [
        (1, {}),
        (5, {"anti_alias": "blur"}),
        (6, {"anti_alias": "avg", "stem_pool": "conv"}),
        (7, {"anti_alias": "blur", "shortcut": "avg"}),
        (7, {}),
    ],
    ids=str,
)
def test_any_number_of_stages_is_traced_with_images_that_are_large_enough(count, fields):
    for more in ({}, {"first_stage_stride": 2}):
        model = net(count, **fields, **more)
        first = 8 if more else 4
        assert [entry.name for entry in resnet_jax.feature_info(model)] == [
            "act1",
            *(f"layer{i + 1}" for i in range(count)),
        ]
        assert [entry.reduction for entry in resnet_jax.feature_info(model)] == [
            2,
            *(first * 2**i for i in range(count)),
        ]
    variables = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1024, 1024, 3)), train=False)))
    back = resnet_jax.from_torch(model, resnet_jax.to_torch(model, variables))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    fitted, _ = resnet_jax.adapt(model.clone(num_classes=7), variables, in_channels=4, waive=["fc"])
    assert fitted["params"]["fc"]["kernel"].shape == (8, 7)


def test_six_stages_are_folded_saved_and_loaded(tmp_path, x64):
    model = net(anti_alias="blur", shortcut="avg", param_dtype="float64", train=False)
    images = np.random.default_rng(0).standard_normal((2, 128, 192, 3))
    variables = jax.tree.map(
        lambda leaf: leaf / 8 if leaf.ndim > 1 else leaf, drawn(jax.eval_shape(model.init, jax.random.key(0), images))
    )
    folded, folded_variables = resnet_jax.fold_batch_norm(model, variables)
    expected = jax.jit(model.apply)(variables, images)
    found = jax.jit(folded.apply)(folded_variables, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10 * np.abs(expected).max())
    resnet_jax.save_pretrained(model, variables, tmp_path / "net")
    loaded, found = resnet_jax.load_pretrained(tmp_path / "net", train=False)
    assert loaded == model
    jax.tree.map(np.testing.assert_array_equal, dict(found), variables)


@pytest.mark.parametrize("fields", [{"output_stride": 8}, {"drop_path_rate": 0.5, "drop_block_rate": 0.1}])
def test_fields_reach_the_fifth_and_sixth_stage(fields):
    model = net(**fields, freeze_norm=("layer6",), train=True)
    images = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    apply = functools.partial(model.init_with_output, features=["layer6.0", "layer6"])
    found, variables = jax.eval_shape(apply, keys, images)
    assert found["layer6"].shape == (2, *(2 * (256 // (8 if "output_stride" in fields else 128),)), 8)
    assert set(variables["batch_stats"]) == {"bn1", *(f"layer{i + 1}" for i in range(6))}
