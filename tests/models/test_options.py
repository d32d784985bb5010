"""Every option that changes what a network computes equals PyTorch's: strides, pools, channels, heads, feature maps."""

import functools

import jax
import numpy as np
import pytest
from test_parity import proof

import resnet_jax
from resnet_jax.proof import verify

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

# Blocks of a cut network: two where an option dilates, as the first may have another dilation than the second.
FEW = (1, 1, 2, 2)
NARROW = (16, 32, 64, 128)
OTHER_STRIDES = [("resnet18", 8), ("resnet50d", 16), ("resnetaa50", 8)]
OTHER_CHANNELS = [("resnet18", 4), ("resnet10t", 1), ("resnet10t", 12)]
STRIDED = ["resnet18", "resnet50", "resnet50d", "seresnet50", "resnetaa50"]
SIX_KINDS = ["resnet34", "resnet50t", "seresnext26d_32x4d", "resnetaa34d", "resnetblur18", "test_resnet"]


def worst(reference, model, size=(65, 97), channels=3):
    """Largest difference over all stages, in float64; each stage's values must be of a size that means something."""
    verify.randomise_norms(reference)
    reference = reference.double()
    images = np.random.default_rng(0).standard_normal((2, *size, channels))
    theirs = verify.torch_stage_outputs(reference, images)
    with jax.enable_x64(True):
        variables = resnet_jax.from_torch(model, reference.state_dict(), dtype=np.float64)
        ours = verify.stage_outputs(model, variables, images)
    rows = verify.compare(ours, theirs, dtype="float64", size="")
    assert all(1e-3 < row.reference < 1e3 for row in rows), rows
    return max(row.difference for row in rows)


def build(name, **kwargs):
    return resnet_jax.create_model(name, param_dtype="float64", **kwargs)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", proof(STRIDED))
def test_output_stride_equals_timms(name, output_stride):
    reference = verify.torch_reference(name, library="timm", output_stride=output_stride)
    assert worst(reference, build(name, output_stride=output_stride)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        *[("resnet18", 16), ("resnet50d", 8), ("resnetaa50", 16)],
        *(pytest.param(*case, marks=pytest.mark.parity) for case in OTHER_STRIDES),
    ],
)
def test_output_stride_of_few_blocks_equals_timms(name, output_stride):
    reference = verify.torch_reference(name, library="timm", output_stride=output_stride, layers=FEW, channels=NARROW)
    model = build(name, output_stride=output_stride, stage_sizes=FEW, stage_features=NARROW)
    assert worst(reference, model) < 1e-10
    assert resnet_jax.feature_info(model)[-1].reduction == output_stride


@pytest.mark.parametrize(
    "name", proof(["resnetblur50", "senet154", "resnetrs50", "test_resnet"], share=["test_resnet"])
)
def test_output_stride_with_blur_wide_shortcuts_and_both_blocks(name):
    reference = verify.torch_reference(name, library="timm", output_stride=8)
    assert worst(reference, build(name, output_stride=8), size=(64, 96)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(("output_stride", "dilated"), [(8, (False, True, True)), (16, (False, False, True))])
def test_output_stride_equals_torchvisions(output_stride, dilated):
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    reference = ResNet(Bottleneck, FEW, replace_stride_with_dilation=dilated).eval()
    assert worst(reference, build("resnet50", output_stride=output_stride, stage_sizes=FEW)) < 1e-10


@pytest.mark.slow
def test_another_output_stride_would_be_seen():
    reference = verify.torch_reference("resnet18", library="timm", output_stride=16, layers=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="layer3 has shape"):
        worst(reference, build("resnet18", output_stride=8, stage_sizes=(1, 1, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pools_equal(pool):
    reference = verify.torch_reference("test_resnet", library="timm", global_pool=pool)
    assert worst(reference, build("test_resnet", global_pool=pool)) < 1e-10


@pytest.mark.slow
def test_without_a_global_pool_the_map_stays_and_the_head_is_a_1x1_convolution():
    reference = verify.torch_reference("test_resnet", library="timm", global_pool="", num_classes=0)
    assert worst(reference, build("test_resnet", global_pool="none", num_classes=0)) < 1e-10
    # timm refuses a linear head there; at each position it is the head of the pooled net.
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3))
    with jax.enable_x64(True):
        model, pooled = build("test_resnet", global_pool="none"), verify.torch_reference("test_resnet", library="timm")
        variables = resnet_jax.from_torch(model, pooled.state_dict(), dtype=np.float64)
        found = verify.stage_outputs(model, variables, images)
    assert found["logits"].shape == (2, 3, 4, 1000)
    fc = variables["params"]["fc"]
    expected = found["pre_logits"][1, 2, 3] @ np.asarray(fc["kernel"]) + np.asarray(fc["bias"])
    np.testing.assert_allclose(found["logits"][1, 2, 3], expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        *[("resnet18", 1), ("resnet10t", 4), ("resnet18", 12)],
        *(pytest.param(*case, marks=pytest.mark.parity) for case in OTHER_CHANNELS),
    ],
)
def test_input_channels_equal(name, channels):
    reference = verify.torch_reference(name, library="timm", in_chans=channels, layers=(1,) * 4, channels=NARROW)
    assert worst(reference, build(name, stage_sizes=(1,) * 4, stage_features=NARROW), channels=channels) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50d"])
def test_headless_nets_give_the_pooled_vector(name):
    reference = verify.torch_reference(name, library="timm", num_classes=0, layers=(1, 1, 1, 1))
    model = build(name, num_classes=0, stage_sizes=(1, 1, 1, 1))
    assert worst(reference, model) < 1e-10
    given = {key: tensor.numpy() for key, tensor in reference.state_dict().items()}
    returned = resnet_jax.to_torch(model, resnet_jax.from_torch(model, given))
    assert returned.keys() == given.keys()
    assert not [key for key in returned if key.startswith("fc")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "theirs"),
    [(jax.nn.silu, "silu"), (functools.partial(jax.nn.leaky_relu, negative_slope=0.01), "leaky_relu")],
)
def test_activations_equal(act, theirs):
    reference = verify.torch_reference("test_resnet", library="timm", act_layer=theirs)
    assert worst(reference, build("test_resnet", act=act)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("anti_alias", ["avg", "blur"])
def test_anti_aliasing_of_a_convolution_in_the_stems_pool_equals(anti_alias):
    parts = {"replace_stem_pool": True, "aa_layer": anti_alias}
    reference = verify.torch_reference("resnet26d", library="timm", layers=(1, 1, 1, 1), **parts)
    model = build("resnet26d", stem_pool="conv", anti_alias=anti_alias, stage_sizes=(1, 1, 1, 1))
    assert worst(reference, model, size=(64, 96)) < 1e-10


@pytest.mark.parametrize("name", proof(SIX_KINDS, share=["test_resnet"]))
def test_feature_maps_equal_timms(name):
    compare_feature_maps(name, verify.torch_reference(name, library="timm"), build(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seresnext26d_32x4d", "resnetblur18"])
def test_feature_maps_of_few_blocks_equal_timms(name):
    cut = {"layers": (2, 1, 1, 1), "channels": NARROW}
    reference = verify.torch_reference(name, library="timm", **cut)
    compare_feature_maps(name, reference, build(name, stage_sizes=cut["layers"], stage_features=NARROW), **cut)


def compare_feature_maps(name, reference, model, **cut):
    verify.randomise_norms(reference)
    extractor = timm.create_model(name, features_only=True, **cut).eval()
    extractor.load_state_dict(reference.state_dict(), strict=False)
    images = np.random.default_rng(0).standard_normal((2, 65, 97, 3))
    with torch.no_grad():
        theirs = extractor.double()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    info = resnet_jax.feature_info(model)
    assert [entry.channels for entry in info] == extractor.feature_info.channels()
    assert [entry.reduction for entry in info] == extractor.feature_info.reduction()
    names = tuple(entry.name for entry in info)
    assert names == tuple(extractor.feature_info.module_name())
    with jax.enable_x64(True):
        variables = resnet_jax.from_torch(model, reference.state_dict(), dtype=np.float64)
        ours = jax.jit(functools.partial(model.apply, train=False, features=names))(variables, images)
    for feature, expected in zip(names, theirs, strict=True):
        np.testing.assert_allclose(ours[feature], expected.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
