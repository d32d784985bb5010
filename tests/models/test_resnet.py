"""The network as a user meets it: shapes, names, modes, errors."""

import doctest
import functools
import math
import pickle
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import resnet_jax
from resnet_jax.models import stems
from resnet_jax.weights import convert

IMAGES = jnp.zeros((2, 17, 21, 3))


def tiny(**kwargs):
    """Two stages of basic blocks: small enough to run op by op."""
    return resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1, 1), num_classes=5, stage_features=(8, 16), stem_features=8, **kwargs
    )


@pytest.fixture(scope="module")
def variables():
    return jax.jit(tiny(train=False).init)(jax.random.key(0), IMAGES)


def shapes(model, size=64):
    """Abstract variables: no array is made."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # He et al. 2015, table 6 (0.27, 0.46, 0.66, 0.85, 1.7 million), and to the unit with option-A shortcuts
        ("cifar_resnet20", 269_722), ("cifar_resnet32", 464_154), ("cifar_resnet44", 658_586),
        ("cifar_resnet56", 853_018), ("cifar_resnet110", 1_727_962),
        # torchvision's own tables
        ("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160),
        ("resnet152", 60_192_808), ("resnext50_32x4d", 25_028_904), ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272), ("wide_resnet50_2", 68_883_240), ("wide_resnet101_2", 126_886_696),
    ],
)  # fmt: skip
def test_parameter_counts_are_the_published_ones(name, count):
    tensors = convert.torch_shapes(resnet_jax.create_model(name))
    statistics = ("running_mean", "running_var")
    assert sum(math.prod(shape) for key, shape in tensors.items() if not key.endswith(statistics)) == count


def test_names_flattened_with_dots_are_pytorchs():
    names = flatten_dict(shapes(resnet_jax.resnet50())["params"], sep=".")
    for name in ("conv1.kernel", "bn1.scale", "layer1.0.downsample.0.kernel", "layer1.0.downsample.1.bias",
                 "layer4.2.conv3.kernel", "fc.bias"):  # fmt: skip
        assert name in names
    assert names["layer1.0.conv2.kernel"].shape == (3, 3, 64, 64)


def test_a_block_projects_only_where_its_shape_changes():
    names = flatten_dict(shapes(resnet_jax.resnet18())["params"], sep=".")
    assert "layer1.0.downsample.0.kernel" not in names  # stride 1, 64 to 64 channels
    assert "layer2.0.downsample.0.kernel" in names
    assert not [
        name for name in flatten_dict(shapes(resnet_jax.cifar_resnet20())["params"], sep=".") if "downsample" in name
    ]


def test_train_as_an_argument_and_as_a_field_give_the_same(variables):
    x = jax.random.normal(jax.random.key(1), IMAGES.shape)
    logits = tiny().apply(variables, x, train=False)
    assert logits.shape == (2, 5)
    np.testing.assert_array_equal(logits, tiny(train=False).apply(variables, x))
    trained, updates = tiny(train=True).apply(variables, x, mutable=["batch_stats"])
    assert np.abs(trained - logits).max() > 1e-3
    assert "batch_stats" in updates


def test_one_image_without_a_batch_axis(variables):
    x = jax.random.normal(jax.random.key(1), IMAGES.shape)
    model = tiny(train=False)
    np.testing.assert_allclose(model.apply(variables, x[0]), model.apply(variables, x)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "argument", "said"), [(None, None, "neither is given"), (True, True, "got the field")]
)
def test_train_must_be_given_once(variables, field, argument, said):
    with pytest.raises(ValueError, match=f"`train` has no default.*{said}"):
        tiny(train=field).apply(variables, IMAGES, train=argument)


def test_a_traced_train_names_static_argnames(variables):
    with pytest.raises(TypeError, match='static_argnames="train"'):
        jax.jit(tiny().apply)(variables, IMAGES, train=False)
    assert jax.jit(tiny().apply, static_argnames="train")(variables, IMAGES, train=False).shape == (2, 5)


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 28, 28)])
def test_small_channels_first_images_are_named_too(shape):
    with pytest.raises(ValueError, match="looks like PyTorch's"):
        jax.eval_shape(resnet_jax.cifar_resnet20(train=False).init, jax.random.key(0), jnp.zeros(shape))


def test_five_axes_are_refused(variables):
    with pytest.raises(ValueError, match=r"or one image .*got shape \(2, 2, 17, 21, 3\)"):
        tiny(train=False).apply(variables, jnp.zeros((2, *IMAGES.shape)))


def test_channels_first_images_are_named(variables):
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\) looks like PyTorch's.*moveaxis"):
        tiny(train=False).apply(variables, jnp.zeros((2, 3, 64, 64)))
    with pytest.raises(ValueError, match="must be"):
        tiny(train=False).apply(variables, jnp.zeros((64, 64)))


def test_activation_reaches_the_stem(variables):
    def stem(act):
        return tiny(train=False, act=act).apply(variables, IMAGES - 1, features=["stem"])["stem"]

    assert np.abs(stem(jnp.tanh) - stem(jax.nn.relu)).max() > 1e-3


def test_zero_init_residual_starts_every_block_as_its_shortcut():
    init = jax.jit(tiny(zero_init_residual=True, train=False).init)
    params = init(jax.random.key(0), IMAGES)["params"]
    assert not params["layer1"]["0"]["bn2"]["scale"].any()
    assert params["layer1"]["0"]["bn1"]["scale"].all()


def test_fc_init_std_draws_a_gaussian_around_zero():
    model = tiny(fc_init_std=0.01, train=False).clone(num_classes=4000)
    fc = jax.jit(lambda key: model.init(key, IMAGES)["params"]["fc"])(jax.random.key(0))
    kernel = np.asarray(fc["kernel"], np.float64)
    errors = kernel.size**-0.5
    assert kernel.mean() == pytest.approx(0, abs=5 * 0.01 * errors)
    assert kernel.std() == pytest.approx(0.01, rel=5 * errors / 2**0.5)
    assert np.mean(kernel**4) / kernel.std() ** 4 == pytest.approx(3, abs=5 * 24**0.5 * errors)  # of a Gaussian
    assert not fc["bias"].any()


@pytest.mark.parametrize("value", [0, 0.0, -0.01, True, "0.01", float("nan"), float("inf")])
def test_a_deviation_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="fc_init_std=.* must be a standard deviation"):
        tiny(fc_init_std=value)


@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16, "float32"])
def test_dtype_is_the_computations_and_parameters_keep_theirs(dtype):
    model = tiny(dtype=dtype, train=False)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), IMAGES)
    assert logits.dtype == jnp.dtype(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_float64_reaches_the_statistics_too(x64):
    variables = jax.eval_shape(tiny(param_dtype="float64", train=False).init, jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float64")}


def test_group_norm_has_no_statistics():
    model = resnet_jax.cifar_resnet20(norm="group", stage_features=(32, 64, 128), stem_features=32, train=True)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES))
    assert set(variables) == {"params"}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("resnet18", {"groups": 2}, "BasicBlock has neither groups"),
        (
            "senet154", {"groups": 5, "width_per_group": 3},
            "groups=5 cannot split a 3x3 convolution of 7 to 15 channels.*reduce_first=2",
        ),
        ("ecaresnet50d_pruned", {"groups": 4}, "groups=4 cannot split a 3x3 convolution of 47 to 18"),
        ("resnet50", {"stage_features": (16, 32, 64, 128), "width_per_group": 2}, r"of \(0, 0, 64\) is less than 1"),
        ("resnet18", {"stage_features": (64, 128)}, "one entry for each stage"),
        ("resnet18", {"block": [resnet_jax.BasicBlock]}, "one entry for each stage"),
        ("resnet18", {"stage_sizes": (2, 0, 2, 2)}, "must be the blocks of each stage, 1 or more"),
        ("resnet18", {"num_classes": -1}, "num_classes=-1 must be a whole number"),
        ("resnet18", {"stem": "imagnet"}, "unknown stem 'imagnet'.*imagenet"),
        ("resnet18", {"stem_pool": "min"}, "unknown stem_pool 'min'.*conv.*max"),
        ("resnet18", {"shortcut": "C"}, "unknown shortcut 'C'"),
        ("resnet18", {"attn": "sse"}, "unknown attn 'sse'.*eca.*se"),
        ("resnet18", {"anti_alias": "gauss"}, "unknown anti_alias 'gauss'.*avg.*blur"),
        ("resnet18", {"global_pool": "min"}, "unknown global_pool 'min'.*catavgmax"),
        ("resnet18", {"output_stride": 12}, "output_stride=12 must be 8, 16 or 32, or None for no dilation"),
        ("cifar_resnet20", {"output_stride": 8}, "=8 has no effect.* stride 1 and 3 stages do not go beyond 4"),
        ("cifar_resnet20", {"stage_features": (16, 8, 8)}, "shortcut 'A' pads channels.*16 of them to 8: use 'B'"),
        ("resnet18", {"drop_path_rate": 1.5}, r"drop_path_rate=1.5 must be the share.*in \[0, 1\)"),
        ("resnet18", {"drop_rate": -0.1}, "drop_rate=-0.1 must be the share"),
        ("plain18", {"zero_init_residual": True}, "without shortcuts.*leave nothing of a block"),
        ("ecaresnet50d_pruned", {"width_per_group": 128}, "block_widths states every width: width_per_group=128"),
        ("ecaresnet50d_pruned", {"stage_sizes": (3, 4, 6, 4)}, "block_widths is for stages of"),
        ("ecaresnet50d_pruned", {"block_widths": (((1, 2),) * 3, ((1, 2),) * 4, ((1, 2),) * 6, ((1, 2),) * 3)},
         "Bottleneck has 3 convolutions, whose widths are stated as .1, 2."),
        ("resnet18", {"stage_features": ()}, "one entry for each stage"),
        ("resnet18", {"stage_features": (8, 0, 8, 8)}, "stage_features=.8, 0, 8, 8. must be whole numbers, 1 or more"),
        ("resnet18", {"stem_features": 0}, "stem_features=0"),
        ("resnet50d", {"stem_features": 1}, "gives a deep stem of"),
        ("resnet18", {"num_classes": None}, "num_classes=None must be a whole number"),
        ("resnet18", {"stage_sizes": 4}, "stage_sizes=4 must be the blocks of each stage"),
        ("resnet18", {"block": "bottleneck"}, "block must be BasicBlock, Bottleneck, a class like them"),
        ("resnet18", {"stage_sizes": (1,), "drop_path_rate": 0.1}, "drop_path_rate=0.1 grows from 0"),
        ("resnet18", {"drop_path_rate": "0.1"}, "drop_path_rate='0.1' must be the share"),
        ("resnet18", {"act": "rleu"}, "unknown act 'rleu'.*gelu.*relu"),
        ("resnet18", {"act": None}, "act must be one of"),
        ("resnet18", {"attn": False}, "attn must be one of .*got False"),
        ("resnet18", {"anti_alias": True}, "anti_alias must be one of .*got True"),
        ("resnet18", {"remat": False}, "remat must be one of .*got False"),
        ("resnet18", {"shortcut": None}, "shortcut must be one of"),
        ("resnet18", {"norm": None}, "norm must be one of"),
        ("resnet18", {"norm": nn.LayerNorm()}, "norm must be one of .* what builds a Linen layer"),
        ("resnet18", {"freeze_norm": 1}, "freeze_norm must be True, False or some of"),
        ("resnet18", {"shortcut": lambda x, features, **_: x}, "a shortcut or attention of your own must keep"),
        ("resnet50_gn", {"axis_name": "batch"}, "axis_name='batch' synchronises batch statistics.*keeps none"),
    ],
)  # fmt: skip
def test_fields_that_contradict_or_have_no_effect_are_refused(name, fields, said):
    with pytest.raises(ValueError, match=said):
        shapes(resnet_jax.create_model(name, **fields))


def test_lists_become_tuples_so_that_a_network_is_hashable_and_picklable():
    listed = resnet_jax.ResNet([resnet_jax.BasicBlock] * 2, [1, 1], stage_features=[8, 16], freeze_norm=["stem"])
    tupled = resnet_jax.ResNet((resnet_jax.BasicBlock,) * 2, (1, 1), stage_features=(8, 16), freeze_norm=("stem",))
    assert listed == tupled
    assert hash(listed) == hash(tupled)
    assert pickle.loads(pickle.dumps(listed)) == listed
    assert pickle.loads(pickle.dumps(resnet_jax.resnet50())) == resnet_jax.resnet50()


@pytest.mark.parametrize(
    ("fields", "reductions"),
    [
        ({}, [2, 4, 8, 16, 32]),
        ({"stem_pool": "none"}, [2, 2, 4, 8, 16]),
        ({"stem_pool": "none", "output_stride": 8}, [2, 2, 4, 8, 8]),
        ({"stem": "cifar", "stem_pool": "max", "output_stride": 8}, [1, 2, 4, 8, 8]),
        ({"stem": stems.Stem(stems.cifar_stem, 1), "output_stride": 8}, None),  # 8 is what it has: no effect
        ({"stem": stems.STEMS["deep"], "output_stride": 16}, [2, 4, 8, 16, 16]),
        ({"stage_sizes": (1,) * 5}, [2, 4, 8, 16, 32, 64]),
        ({"stage_sizes": (1,) * 5, "output_stride": 32}, [2, 4, 8, 16, 32, 32]),
    ],
)
def test_strides_are_the_stems_times_its_pools_times_the_stages(fields, reductions):
    model = resnet_jax.resnet18(**fields)
    if reductions is None:
        with pytest.raises(ValueError, match="output_stride=8 has no effect"):
            resnet_jax.feature_info(model)
    else:
        assert [entry.reduction for entry in resnet_jax.feature_info(model)] == reductions


def test_precision_reaches_every_convolution_and_the_head():
    model = tiny(train=False, precision="highest")
    shapes_of = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    jaxpr = str(jax.make_jaxpr(model.apply)(shapes_of, IMAGES))
    operations = re.findall(r"(conv_general_dilated|dot_general)\[(.*?)\]\s", jaxpr, flags=re.DOTALL)
    assert len(operations) == 7  # the stem, two in each of two blocks, a projection, the head
    assert all("HIGHEST" in parameters for _, parameters in operations)


def test_dropblock_without_its_stages_is_refused():
    with pytest.raises(ValueError, match="drop_block_rate=0.1 acts in layer3 and layer4"):
        shapes(tiny(drop_block_rate=0.1))


@functools.cache
def hollow_reference(name):
    """One block a stage, which is what strides."""
    hollow = pytest.importorskip("hollow").hollow
    timm = pytest.importorskip("timm")
    with hollow():
        return timm.create_model(name, layers=(1, 1, 1, 1)).eval()


@pytest.mark.parametrize("name", ["resnetaa50d", "resnetaa50", "resnetblur18"])
@pytest.mark.parametrize("size", [2, 16, 32, 100, 200, 208, 240, 250, 65, 97, 193, 225, 224])
def test_anti_aliasing_refuses_the_sizes_that_timm_refuses(name, size):
    torch = pytest.importorskip("torch")
    reference, model = hollow_reference(name), resnet_jax.create_model(name, stage_sizes=(1, 1, 1, 1))
    try:
        reference(torch.zeros(2, 3, size, size, device="meta"))
    except (RuntimeError, IndexError, ValueError):
        with pytest.raises(ValueError, match="give larger images|anti-aliasing rounds down.*divisible by 32"):
            shapes(model, size)
    else:
        assert shapes(model, size)


def test_a_plain_net_that_anti_aliasing_leaves_nothing_of_is_refused():
    with pytest.raises(ValueError, match="anti_alias='avg' averages 2x2 pixels of a map of 1x1"):
        shapes(resnet_jax.create_model("plain18", anti_alias="avg"), 8)


def test_old_names_of_timms_lead_to_the_networks_that_they_name():
    with pytest.warns(DeprecationWarning, match="'ig_resnext101_32x16d' is a deprecated name of 'resnext101_32x16d'"):
        model = resnet_jax.create_model("ig_resnext101_32x16d")
    assert model == resnet_jax.create_model("resnext101_32x16d")
    for old, new in resnet_jax.models.variants.ALIASES.items():
        assert new in resnet_jax.list_models(), old


def test_every_old_name_of_timms_is_known():
    registry = pytest.importorskip("timm.models._registry")
    assert set(resnet_jax.models.variants.ALIASES) == set(registry._module_to_deprecated_models["resnet"])


def test_what_other_libraries_take_is_pointed_to_its_place():
    with pytest.raises(TypeError, match=r'load_pretrained\("resnet152.<tag>"\)'):
        resnet_jax.resnet152(pretrained=True)
    with pytest.raises(TypeError, match="channels are those of the images"):
        resnet_jax.resnet18(in_chans=1)
    with pytest.raises(ValueError, match=r"a tag names weights, and load_pretrained\('resnet50.a1_in1k'\)"):
        resnet_jax.create_model("resnet50.a1_in1k")
    with pytest.raises(ValueError, match="a model is called by its name"):
        resnet_jax.create_model(50)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match="unknown model 'resnet5'.*resnet50"):
        resnet_jax.create_model("resnet5")
    with pytest.raises(TypeError, match="no field 'num_class'.*num_classes"):
        resnet_jax.create_model("resnet50", num_class=10)


def test_examples_in_docstrings_run():
    for module in (resnet_jax.models.resnet, resnet_jax.models.variants):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed


def test_a_builder_takes_the_name_of_a_submodule():
    assert resnet_jax.resnet18(name="backbone").name == "backbone"


def test_builders_are_the_tables():
    builders = [name for name in resnet_jax.list_models() if hasattr(resnet_jax, name)]
    assert {"resnet50", "resnet50d", "seresnet50", "cifar_resnet20"} < set(builders)
    for name in builders:
        assert getattr(resnet_jax, name)(num_classes=7) == resnet_jax.create_model(name, num_classes=7)
    assert resnet_jax.list_models("wide*") == ["wide_resnet50_2", "wide_resnet101_2"]
