"""Strides in other places than torchvision's: on a bottleneck's first 1x1 convolution, and in the first stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.proof import verify
from resnet_jax.proof.reference import randomise_norms, with_strides

torch = pytest.importorskip("torch")
resnet = pytest.importorskip("torchvision.models.resnet")

FEW = (2, 2, 1, 1)
PLACES = [
    pytest.param("resnet50", {"stride_in_1x1": True}, id="first 1x1"),
    pytest.param("resnet50", {"first_stage_stride": 2}, id="first stage"),
    pytest.param("resnet18", {"first_stage_stride": 2}, id="first stage, basic"),
    pytest.param("resnext50_32x4d", {"stride_in_1x1": True, "first_stage_stride": 2}, id="both, grouped"),
]


def pair(name, strides, few=FEW, dilated=False, **fields):
    """PyTorch's network and ours, with its weights, in float64."""
    block = resnet.BasicBlock if name == "resnet18" else resnet.Bottleneck
    kinds = {"groups": 32, "width_per_group": 4} if name.startswith("resnext") else {}
    dilation = [False, True, True] if dilated else None
    reference = resnet.ResNet(block, few, num_classes=5, replace_stride_with_dilation=dilation, **kinds).eval()
    reference = with_strides(reference, **{"stride_in_1x1": False, "first_stage_stride": 1} | strides)
    randomise_norms(reference)
    model = resnet_jax.create_model(
        name, stage_sizes=few, num_classes=5, param_dtype="float64", precision="highest", **strides, **fields
    )
    return reference.double(), model, resnet_jax.from_torch(model, reference.state_dict(), dtype=np.float64)


@pytest.mark.parametrize(
    "size", [pytest.param((64, 64), marks=pytest.mark.parity, id="even"), pytest.param((65, 97), id="odd")]
)
@pytest.mark.parametrize(("name", "strides"), PLACES)
def test_every_stage_equals_pytorch(name, strides, size, x64):
    reference, model, variables = pair(name, strides)
    images = np.random.default_rng(0).standard_normal((2, *size, 3))
    ours = verify.stage_outputs(model, variables, images)
    theirs = verify.torch_stage_outputs(reference, images)
    rows = verify.compare(ours, theirs, dtype="float64", size="")
    assert max(row.relative for row in rows) < 1e-12, rows
    plain = verify.stage_outputs(model.clone(stride_in_1x1=False, first_stage_stride=1), variables, images)
    logits = plain["logits"], theirs["logits"]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3  # the same tensors in the usual network: another function


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strides"), PLACES[2:])
def test_gradients_equal_pytorchs(name, strides, x64, optimised):
    reference, model, variables = pair(name, strides, (1, 1, 1, 1))
    images = np.random.default_rng(1).standard_normal((3, 49, 65, 3))

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2)

    ours = resnet_jax.to_torch(model, {**variables, "params": jax.jit(jax.grad(loss))(variables["params"])})
    reference.train()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).square().mean().backward()
    for key, parameter in reference.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert np.abs(ours[key] - parameter.grad.numpy()).max() < 1e-10 * max(scale, 1), key


def test_dilation_takes_the_stride_of_the_1x1_too(x64):
    reference, model, variables = pair("resnet50", {"stride_in_1x1": True}, (1, 1, 1, 1), dilated=True, output_stride=8)
    images = np.random.default_rng(2).standard_normal((1, 65, 97, 3))
    ours = verify.stage_outputs(model, variables, images)
    rows = verify.compare(ours, verify.torch_stage_outputs(reference, images), dtype="float64", size="")
    assert max(row.relative for row in rows) < 1e-12, rows


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet18", {"stride_in_1x1": True}, "BasicBlock has no 1x1 convolution"),
        ("resnetaa50", {"stride_in_1x1": True}, "anti_alias takes over the stride of a 3x3 convolution"),
        ("resnet50", {"first_stage_stride": 3}, "first_stage_stride=3 must be 1 or 2"),
        ("resnet50", {"stride_in_1x1": 1}, "stride_in_1x1=1 must be True or False"),
    ],
)
def test_what_cannot_be_is_refused(name, fields, message):
    with pytest.raises(ValueError, match=message):
        resnet_jax.feature_info(resnet_jax.create_model(name, **fields))


def test_feature_info_knows_of_them():
    reductions = [info.reduction for info in resnet_jax.feature_info(resnet_jax.resnet18(first_stage_stride=2))]
    assert reductions == [2, 8, 16, 32, 64]
