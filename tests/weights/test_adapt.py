"""Variables of one network into another: timm's rule for channels, new heads, backbones, and a strict diff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.weights.convert import ConversionError


def shapes_of(model, channels=3):
    images = jax.ShapeDtypeStruct((1, 64, 64, channels), jnp.float32)
    return jax.eval_shape(model.clone(train=False).init, jax.random.key(0), images)


def random_variables(model, channels=3):
    return drawn(shapes_of(model, channels))


@pytest.fixture(scope="module")
def pretrained():
    return random_variables(resnet_jax.create_model("test_resnet"))


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_input_channels_follow_timms_rule(channels, pretrained):
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    variables, diff = resnet_jax.adapt(resnet_jax.create_model("test_resnet"), pretrained, in_channels=channels)
    given = pretrained["params"]["conv1"]["0"]["kernel"].transpose(3, 2, 0, 1)
    expected = timm.models.adapt_input_conv(channels, torch.from_numpy(given.copy())).numpy()
    found = variables["params"]["conv1"]["0"]["kernel"].transpose(3, 2, 0, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert diff.adapted == ("params.conv1.0.kernel",)
    assert not diff.initialised
    assert not diff.left_over


def with_first_kernel(variables, kernel):
    conv1 = variables["params"]["conv1"] | {"0": {"kernel": kernel}}
    return variables | {"params": variables["params"] | {"conv1": conv1}}


def test_a_grey_image_gives_what_it_gave_as_three_channels(pretrained):
    model = resnet_jax.create_model("test_resnet", train=False)
    grey = np.random.default_rng(1).standard_normal((2, 65, 97, 1)).astype(np.float32)
    apply = jax.jit(lambda *given: model.apply(*given, features=["stem"])["stem"])
    kernel = pretrained["params"]["conv1"]["0"]["kernel"]
    # Of five, the first two of the three come twice, and all are scaled by 3 / 5.
    for channels, shares in ((1, [1, 1, 1]), (5, [6 / 5, 6 / 5, 3 / 5]), (6, [1, 1, 1])):
        scaled = kernel * np.array(shares, np.float32)[:, None]
        expected = apply(with_first_kernel(pretrained, scaled), np.repeat(grey, 3, axis=-1))
        assert np.isfinite(expected).all()
        variables, _ = resnet_jax.adapt(model, pretrained, in_channels=channels)
        found = apply(variables, np.repeat(grey, channels, axis=-1))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


def test_nothing_to_adapt_takes_everything_as_it_is(pretrained):
    variables, diff = resnet_jax.adapt(resnet_jax.create_model("test_resnet", output_stride=8), pretrained)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, pretrained))
    assert len(diff.taken) == len(jax.tree.leaves(pretrained))


def test_a_new_head_is_drawn_and_the_diff_says_so(pretrained):
    model = resnet_jax.create_model("test_resnet", num_classes=7)
    variables, diff = resnet_jax.adapt(model, pretrained, waive=["fc"], key=jax.random.key(1))
    again, _ = resnet_jax.adapt(model, pretrained, waive=["fc"], key=jax.random.key(1))
    other, _ = resnet_jax.adapt(model, pretrained, waive=["fc"], key=jax.random.key(2))
    kernel = variables["params"]["fc"]["kernel"]
    assert kernel.shape == (96, 7)
    assert np.abs(kernel).max() <= 96**-0.5
    np.testing.assert_array_equal(kernel, again["params"]["fc"]["kernel"])
    assert not np.array_equal(kernel, other["params"]["fc"]["kernel"])
    assert diff.initialised == diff.left_over == ("params.fc.bias", "params.fc.kernel")
    lines = str(diff).splitlines()
    assert lines[0].split() == ["taken", str(len(jax.tree.leaves(pretrained)) - 2)]
    assert lines[3].split() == ["left", "over", "2", "params.fc.bias,", "params.fc.kernel"]


def test_a_headless_net_leaves_the_head_over(pretrained):
    _, diff = resnet_jax.adapt(resnet_jax.create_model("test_resnet", num_classes=0), pretrained, waive=["fc"])
    assert not diff.initialised
    assert diff.left_over == ("params.fc.bias", "params.fc.kernel")


def test_what_does_not_fit_is_refused_unless_it_is_waived_by_name(pretrained):
    model = resnet_jax.create_model("test_resnet", num_classes=7)
    with pytest.raises(ConversionError, match=r"(?s)fc.bias: \(1000,\) given, the model has \(7,\).*waive=\['fc'"):
        resnet_jax.adapt(model, pretrained)
    with pytest.raises(ConversionError, match=r"(?s)2 variables do not fit:\n  params.fc.bias"):
        resnet_jax.adapt(model, pretrained, waive=["layer4"])
    with pytest.raises(ValueError, match=r"unknown: \['head'\]"):
        resnet_jax.adapt(model, pretrained, waive=["head"])
    with pytest.raises(ValueError, match="waive must list modules"):
        resnet_jax.adapt(model, pretrained, waive="fc")
    with pytest.raises(ConversionError, match="variables do not fit"):
        resnet_jax.adapt(resnet_jax.resnet18(), pretrained)
    with pytest.raises(ConversionError, match="give what `init` or `from_torch` give, whole"):
        resnet_jax.adapt(model, pretrained["params"])
    with pytest.raises(ValueError, match="in_channels=0 must be a whole number, 1 or more"):
        resnet_jax.adapt(model, pretrained, in_channels=0)


def test_another_attention_in_a_pretrained_net_is_waived_by_module(pretrained):
    model = resnet_jax.create_model("test_resnet", attn="se")
    waive = [f"layer{i}.0.se" for i in (1, 2, 3, 4)]
    variables, diff = resnet_jax.adapt(model, pretrained, waive=waive)
    assert len(diff.initialised) == 4 * 4
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda x: x.shape, shapes_of(model))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_adapted_kernels_keep_their_dtype(dtype, pretrained):
    given = jax.tree.map(lambda x: x.astype(dtype), pretrained)
    variables, _ = resnet_jax.adapt(resnet_jax.create_model("test_resnet"), given, in_channels=4)
    assert variables["params"]["conv1"]["0"]["kernel"].dtype == dtype


def test_graft_puts_a_backbone_where_it_belongs_and_changes_nothing_else(pretrained):
    other = jax.tree.map(np.zeros_like, pretrained)
    outer = {kind: {"encoder": {"net": tree}, "neck": {"kernel": np.ones(3)}} for kind, tree in other.items()}
    found = resnet_jax.graft(outer, pretrained, "encoder.net")
    for kind, tree in pretrained.items():
        assert jax.tree.all(jax.tree.map(np.array_equal, found[kind]["encoder"]["net"], tree))
        assert found[kind]["neck"]["kernel"].all()
    assert not outer["params"]["encoder"]["net"]["fc"]["bias"].any()
    with pytest.raises(ConversionError, match="the module has no submodule 'backbone': it has encoder, neck"):
        resnet_jax.graft(outer, pretrained, "backbone")
    headless = {**pretrained, "params": {k: v for k, v in pretrained["params"].items() if k != "fc"}}
    with pytest.raises(
        ConversionError,
        match=r"(?s)net.fc.bias: nothing given.*adapt\(MODEL, variables, waive",
    ):
        resnet_jax.graft(outer, headless, "encoder.net")


def test_the_example_in_the_docstring_runs():
    import doctest

    from resnet_jax.weights import adapt

    found = doctest.testmod(adapt)
    assert found.attempted
    assert not found.failed


def test_what_is_initialised_has_the_dtype_of_the_models_parameters(pretrained):
    model = resnet_jax.create_model("test_resnet", num_classes=7, param_dtype=jnp.bfloat16)
    variables, _ = resnet_jax.adapt(model, pretrained, waive=["fc"])
    assert {leaf.dtype for leaf in variables["params"]["fc"].values()} == {jnp.dtype(jnp.bfloat16)}
    assert variables["params"]["bn1"]["scale"].dtype == np.float32  # as it was given


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_new_statistics_are_float32_at_least_whatever_the_parameters_are(dtype):
    model = resnet_jax.ResNet(resnet_jax.BasicBlock, (1,), num_classes=5, stem="cifar", param_dtype=dtype)
    given = {"params": random_variables(model)["params"]}  # as of a net without statistics
    variables, diff = resnet_jax.adapt(model, given, waive=["bn1", "layer1"])
    assert len(diff.initialised) == 6
    for norm in (variables["batch_stats"]["bn1"], *variables["batch_stats"]["layer1"]["0"].values()):
        np.testing.assert_array_equal(norm["mean"], np.zeros(64, np.float32), strict=True)
        np.testing.assert_array_equal(norm["var"], np.ones(64, np.float32), strict=True)


@pytest.mark.parametrize("channels", [True, 0, 2.0, "3"])
def test_what_is_no_number_of_channels_is_refused(channels, pretrained):
    with pytest.raises(ValueError, match="in_channels=.* must be a whole number, 1 or more"):
        resnet_jax.adapt(resnet_jax.create_model("test_resnet"), pretrained, in_channels=channels)
    assert resnet_jax.adapt(resnet_jax.create_model("test_resnet"), pretrained, in_channels=np.int64(3))
