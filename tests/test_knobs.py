"""Each field of `ResNet` against timm's or torchvision's, forwards and, where it trains, backwards, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from resnet_jax.weights import verify
from test_parity import GROUPS, proof

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

BAR = 1e-10


def reference(library, name, **kwargs):
    torch.manual_seed(0)
    module = library(name, **kwargs)
    verify.randomise_norms(module)
    return module.double().eval()


def images(height=64, width=97, channels=3, batch=2):
    return np.random.default_rng(0).standard_normal((batch, height, width, channels))


def differences(module, model, x):
    """Largest difference of each stage, and the largest reference value."""
    with jax.enable_x64(True):
        model = model.clone(param_dtype="float64")
        variables = resnet_jax.from_torch(model, module.state_dict(), dtype=np.float64)
        rows = verify.compare(
            verify.stage_outputs(model, variables, x), verify.torch_stage_outputs(module, x), dtype="float64", size=""
        )
    assert all(row.reference > 1e-3 for row in rows)
    return {row.stage: row.difference for row in rows}


STRIDED = ["resnet18", "resnet50", "resnet50d", "seresnet50", "resnetaa50"]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", proof(STRIDED, share=["resnet18", "resnet50d", "resnetaa50"]))
def test_output_strides(name, output_stride):
    module = reference(timm.create_model, name, output_stride=output_stride)
    model = resnet_jax.create_model(name, output_stride=output_stride)
    x = images(65, 97) if name != "resnetaa50" else images(64, 96)
    assert max(differences(module, model, x).values()) < BAR
    info = resnet_jax.feature_info(model)
    assert [entry.reduction for entry in info] == [2, 4, 8, min(16, output_stride), min(32, output_stride)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.parity)
        for name in ("resnetblur50", "senet154", "resnetrs50", "test_resnet")
    ],
)
def test_output_stride_with_blur_and_wide_shortcuts(name):
    module = reference(timm.create_model, name, output_stride=8)
    assert max(differences(module, resnet_jax.create_model(name, output_stride=8), images(64, 96)).values()) < BAR


@pytest.mark.parametrize(("output_stride", "dilate"), [(8, [False, True, True]), (16, [False, False, True])])
def test_output_stride_is_torchvisions_replace_stride_with_dilation(output_stride, dilate):
    module = reference(torchvision.models.get_model, "resnet50", replace_stride_with_dilation=dilate)
    model = resnet_jax.resnet50(output_stride=output_stride)
    assert max(differences(module, model, images(65, 97)).values()) < BAR


@pytest.mark.parametrize("global_pool", ["avg", "max", "avgmax", "catavgmax"])
def test_global_pools(global_pool):
    module = reference(timm.create_model, "test_resnet", global_pool=global_pool)
    model = resnet_jax.create_model("test_resnet", global_pool=global_pool)
    found = differences(module, model, images())
    assert max(found.values()) < BAR
    assert set(found) >= {"pre_logits", "logits"}


def test_no_global_pool_and_no_head():
    module = reference(timm.create_model, "test_resnet", global_pool="", num_classes=0)
    x = images()
    with jax.enable_x64(True):
        model = resnet_jax.create_model("test_resnet", global_pool="none", num_classes=0, param_dtype="float64")
        variables = resnet_jax.from_torch(model, module.state_dict())
        ours = model.apply(variables, x, train=False)
    theirs = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(ours, np.moveaxis(theirs, 1, -1), atol=BAR)


def test_without_a_pool_the_head_is_applied_at_each_position():
    model = resnet_jax.create_model("test_resnet", train=False)
    variables = jax.jit(model.init)(jax.random.key(0), images().astype(np.float32))
    dense = model.clone(global_pool="none").apply(variables, images())
    assert dense.shape == (2, 2, 4, 1000)
    np.testing.assert_allclose(dense.mean((1, 2)), model.apply(variables, images()), atol=1e-5)


@pytest.mark.parametrize("name", ["test_resnet", "resnet18"])
def test_no_classes_gives_the_pooled_vector(name):
    module = reference(timm.create_model, name, num_classes=0)
    model = resnet_jax.create_model(name, num_classes=0)
    x = images()
    with jax.enable_x64(True):
        model = model.clone(param_dtype="float64")
        variables = resnet_jax.from_torch(model, module.state_dict())
        ours = model.apply(variables, x, train=False)
    assert "fc" not in variables["params"]
    theirs = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=BAR)


@pytest.mark.parametrize("channels", [1, 4, 12])
@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_input_channels(name, channels):
    module = reference(timm.create_model, name, in_chans=channels)
    found = differences(module, resnet_jax.create_model(name), images(channels=channels))
    assert max(found.values()) < BAR


@pytest.mark.parametrize(
    ("act", "theirs"),
    [(jax.nn.silu, "silu"), (functools.partial(jax.nn.leaky_relu, negative_slope=0.01), "leaky_relu")],
)
def test_activations(act, theirs):
    module = reference(timm.create_model, "test_resnet", act_layer=theirs)
    assert max(differences(module, resnet_jax.create_model("test_resnet", act=act), images()).values()) < BAR


def test_anti_aliasing_of_a_convolution_in_the_stems_pool():
    for name in ("avg", "blur"):
        module = reference(timm.create_model, "resnet26d", replace_stem_pool=True, aa_layer=name)
        model = resnet_jax.create_model("resnet26d", stem_pool="conv", anti_alias=name)
        assert max(differences(module, model, images(64, 96)).values()) < BAR


# Gradients ----------------------------------------------------------------------------------------------


def torch_gradients(module, x, weights):
    module = module.train()
    logits = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    (logits * torch.from_numpy(weights)).sum().backward()
    return {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("name", proof(GROUPS.values(), share=["resnet50_gn", "resnet26t", "test_resnet"]))
def test_gradients_in_training_mode(name):
    module = verify.torch_reference(name)
    verify.randomise_norms(module)
    module = module.double()
    x, weights = images(96, 64, batch=4), np.random.default_rng(1).standard_normal((4, 1000)) / 1000
    with jax.enable_x64(True):
        model = resnet_jax.create_model(name, train=True, param_dtype="float64")
        variables = resnet_jax.from_torch(model, module.state_dict(), dtype=np.float64)

        @jax.jit
        def gradients(params):
            def loss(params):
                logits, _ = model.apply(variables | {"params": params}, x, mutable=["batch_stats"])
                return jnp.sum(logits * weights)

            return jax.grad(loss)(params)

        ours = resnet_jax.to_torch(model, variables | {"params": gradients(variables["params"])})
    for key, theirs in torch_gradients(module, x, weights).items():
        assert np.abs(theirs).max() > 1e-9, key
        assert np.abs(ours[key] - theirs).max() < 1e-8 * max(1, np.abs(theirs).max()), key


# Initialisation -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "resnet50d", "seresnet50", "ecaresnet50d", "resnet50_gn"])
def test_initialisation_is_timms(name):
    """Mean and standard deviation of each layer, over two seeds, within five standard errors of timm's."""
    zero_init = {"zero_init_residual": True}  # timm's default also where the table has torchvision's
    model = resnet_jax.create_model(name, train=False, **zero_init)
    init = jax.jit(model.init)
    x = np.zeros((1, 32, 32, 3), np.float32)
    ours = [resnet_jax.to_torch(model, init(jax.random.key(seed), x)) for seed in range(2)]
    torch.manual_seed(0)
    theirs = [timm.create_model(name).state_dict() for _ in range(2)]
    for key in ours[0]:
        a, b = (np.stack([np.asarray(tree[key], np.float64) for tree in trees]) for trees in (ours, theirs))
        if b.std() == 0:
            np.testing.assert_array_equal(a, b, err_msg=key)
            continue
        assert abs(a.mean() - b.mean()) < 5 * b.std() * np.sqrt(2 / b.size), key
        assert abs(a.std() / b.std() - 1) < 5 * np.sqrt(1 / b.size), key


# Refused ------------------------------------------------------------------------------------------------


def shapes(name, size=64, **kwargs):
    model = resnet_jax.create_model(name, **kwargs)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False))


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("resnet50", {"output_stride": 12}, "must be 8, 16 or 32, got 12"),
        ("cifar_resnet20", {"output_stride": 8}, "output_stride=8 has no effect"),
        ("resnet50", {"groups": 7, "width_per_group": 3, "block": "reduced"}, "groups=7 cannot split"),
        ("resnet50", {"width_per_group": 0}, "width_per_group=0.* give"),
        ("resnet50", {"attn": "es"}, "unknown attn 'es'.*'eca', 'se'"),
        ("resnet50", {"anti_alias": "blurr"}, "unknown anti_alias 'blurr'.*'blur'"),
        ("resnet50", {"global_pool": "mean"}, "unknown global_pool 'mean'.*'avg'"),
        ("resnet50", {"stem_pool": "avg"}, "unknown stem_pool 'avg'.*'conv'"),
        ("resnet50", {"remat": "all"}, "unknown remat 'all'.*'block'"),
        ("resnet50", {"freeze_norm": ("layer5",)}, "freeze_norm must be.*layer4.*layer5"),
        ("resnet50", {"freeze_norm": "layer1"}, "freeze_norm must be"),
        ("resnet50", {"block_widths": ((),) * 4}, "block_widths is for stages of"),
        ("resnet50", {"block": (resnet_jax.Bottleneck,)}, "one entry for each stage"),
        ("plain18", {"zero_init_residual": True}, "without shortcuts"),
        ("plain18", {"drop_path_rate": 0.1}, "without shortcuts"),
        ("resnet50", {"stage_sizes": (1, 1), "drop_block_rate": 0.1}, "drop_block_rate acts in layer3 and layer4"),
    ],
)  # fmt: skip
def test_impossible_combinations_say_what_would_work(name, kwargs, said):
    if kwargs.get("block") == "reduced":
        kwargs = kwargs | {"block": functools.partial(resnet_jax.Bottleneck, reduce_first=2)}
    with pytest.raises(ValueError, match=said):
        shapes(name, **kwargs)


@pytest.mark.parametrize("size", [100, 200, 208, 240, 250])
def test_anti_aliasing_refuses_the_sizes_that_timm_refuses(size):
    module = timm.create_model("resnetaa50d").eval()
    with pytest.raises(RuntimeError, match="must match"), torch.no_grad():
        module(torch.zeros(1, 3, size, size))
    with pytest.raises(ValueError, match="rounds down where the shortcut rounds up. Use a height and width divisible"):
        shapes("resnetaa50d", size)


@pytest.mark.parametrize("size", [65, 97, 193, 225])
def test_anti_aliasing_takes_the_odd_sizes_that_timm_takes(size):
    assert shapes("resnetaa50d", size)


def test_old_names_of_timm_are_mapped_with_a_warning():
    for old, new in (("tv_resnet50", "resnet50"), ("gluon_resnet50_v1d", "resnet50d"), ("gluon_senet154", "senet154")):
        with pytest.warns(DeprecationWarning, match=f"{old}.*deprecated name of '{new}'"):
            assert resnet_jax.create_model(old) == resnet_jax.create_model(new)
    with pytest.warns(DeprecationWarning, match="resnext101_32x16d"):
        assert resnet_jax.create_model("ig_resnext101_32x16d").width_per_group == 16  # timm gives the 8 wide one


def test_every_old_name_of_timm_is_known():
    from timm.models import _registry

    old = set(_registry._module_to_deprecated_models["resnet"])
    from resnet_jax.models.variants import ALIASES

    assert set(ALIASES) == old
