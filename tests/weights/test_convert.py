"""Conversion in both directions: bit for bit, strict, and with messages that say what to do."""

import functools

import jax
import ml_dtypes
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.weights import convert
from resnet_jax.weights.convert import ConversionError
from resnet_jax.weights.files import orbax_folder


def equal(left, right):
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), left, right)))


@functools.cache
def variables(name="cifar_resnet20", norm="batch"):
    """Random variables of every leaf, as NumPy arrays."""
    model = resnet_jax.create_model(name, norm=norm, **WIDE if norm == "group" else {})
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
    return drawn(shapes)


WIDE = {"stage_features": (32, 64, 128), "stem_features": 32}


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50", "resnext50_32x4d"])
def test_round_trip_from_flax_is_bit_for_bit(name):
    model = resnet_jax.create_model(name)
    assert equal(resnet_jax.from_torch(model, resnet_jax.to_torch(model, variables(name))), variables(name))


def test_round_trip_of_a_group_norm_net():
    model = resnet_jax.cifar_resnet20(norm="group", **WIDE)
    state_dict = resnet_jax.to_torch(model, variables(norm="group"))
    assert not [name for name in state_dict if "running" in name or "num_batches" in name]
    assert equal(resnet_jax.from_torch(model, state_dict), variables(norm="group"))


def test_fields_of_a_training_step_change_no_name():
    plain = resnet_jax.cifar_resnet20()
    groups = ((0, 1), (2, 3))
    model = plain.clone(axis_name="batch", axis_index_groups=groups, remat="block", zero_init_residual=True)
    assert convert.torch_shapes(model) == convert.torch_shapes(plain)
    with pytest.raises(ValueError, match="divide an axis: give its axis_name"):
        convert.torch_shapes(plain.clone(axis_index_groups=groups))


def test_a_field_without_a_hash_is_converted_too():
    class Activation:
        """As a dataclass is."""

        __hash__ = None

        def __call__(self, x):
            return jax.nn.relu(x)

    model = resnet_jax.cifar_resnet20(act=Activation())
    assert convert.torch_shapes(model) == convert.torch_shapes(resnet_jax.cifar_resnet20())


def test_layouts_by_hand():
    model = resnet_jax.cifar_resnet20()
    flax = variables()["params"]
    torch_like = resnet_jax.to_torch(model, variables())
    assert torch_like["conv1.weight"].shape == (16, 3, 3, 3)
    assert torch_like["conv1.weight"][5, 2, 0, 1] == flax["conv1"]["kernel"][0, 1, 2, 5]
    assert torch_like["fc.weight"][7, 30] == flax["fc"]["kernel"][30, 7]
    assert torch_like["bn1.num_batches_tracked"].shape == ()
    assert torch_like["bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        *(pytest.param(n, marks=pytest.mark.parity) for n in ("resnet50", "resnext101_64x4d")),
    ],
)
def test_pytorch_takes_it_strictly_in_its_own_order(name):
    torchvision, torch = pytest.importorskip("torchvision"), pytest.importorskip("torch")
    with torch.device("meta"):
        reference = getattr(torchvision.models, name)()
    state_dict = resnet_jax.to_torch(resnet_jax.create_model(name), variables(name))
    assert list(state_dict) == list(reference.state_dict())
    reference.load_state_dict(
        {key: torch.from_numpy(value) for key, value in state_dict.items()}, strict=True, assign=True
    )


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sparse", "requires_grad"])
def test_tensors_of_any_dtype_and_layout_come_through_bit_for_bit(dtype, layout):
    torch = pytest.importorskip("torch")
    model = resnet_jax.cifar_resnet20()
    native = resnet_jax.to_torch(model, variables())
    tensors = {key: torch.from_numpy(value) for key, value in native.items()}
    tensors = {key: x.to(getattr(torch, dtype)) if x.is_floating_point() else x for key, x in tensors.items()}
    weight = tensors["layer1.0.conv1.weight"]
    tensors["layer1.0.conv1.weight"] = {
        "contiguous": lambda: weight,
        "channels_last": lambda: weight.contiguous(memory_format=torch.channels_last),
        "sparse": weight.to_sparse,
        "requires_grad": lambda: torch.nn.Parameter(weight),
    }[layout]()
    converted = resnet_jax.from_torch(model, tensors)
    leaf = converted["params"]["layer1"]["0"]["conv1"]["kernel"]
    assert leaf.dtype == np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    assert leaf.flags.c_contiguous
    expected = weight.double().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(leaf.astype(np.float64), expected)
    back = resnet_jax.to_torch(model, converted)["layer1.0.conv1.weight"]
    np.testing.assert_array_equal(back.astype(np.float64), weight.double().numpy())


def test_dtype_is_cast_only_when_asked_for():
    model = resnet_jax.cifar_resnet20()
    wide = {key: value.astype(np.float64) for key, value in resnet_jax.to_torch(model, variables()).items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(resnet_jax.from_torch(model, wide))} == {np.dtype("float64")}
    cast = resnet_jax.from_torch(model, wide, dtype=np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(cast)} == {np.dtype("float32")}


def test_the_result_is_its_own_memory():
    model = resnet_jax.cifar_resnet20()
    state_dict = resnet_jax.to_torch(model, variables())
    converted = resnet_jax.from_torch(model, state_dict)
    for array in state_dict.values():
        array[...] = 0
    assert converted["params"]["bn1"]["scale"].all()
    assert variables()["params"]["bn1"]["scale"].all()


def test_jax_arrays_and_a_frozen_mode_are_taken():
    model = resnet_jax.cifar_resnet20(train=True, axis_name="batch")
    state_dict = resnet_jax.to_torch(model, jax.tree.map(jax.numpy.asarray, variables()))
    assert equal(resnet_jax.from_torch(model, state_dict), variables())


def test_names_of_cifar_repositories_and_of_data_parallel():
    model = resnet_jax.cifar_resnet20(shortcut="B")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
    expected = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    renamed = {
        "module." + name.replace("fc.", "linear.").replace("downsample", "shortcut"): array
        for name, array in resnet_jax.to_torch(model, expected).items()
        if "num_batches" not in name
    }
    assert equal(resnet_jax.from_torch(model, renamed), expected)


def test_one_channel_is_read_off_the_weights():
    model = resnet_jax.cifar_resnet20()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 1), np.float32), train=False))
    grey = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    assert equal(resnet_jax.from_torch(model, resnet_jax.to_torch(model, grey)), grey)


def broken(change):
    state_dict = resnet_jax.to_torch(resnet_jax.cifar_resnet20(), variables())
    change(state_dict)
    return state_dict


def rename(state_dict):
    state_dict["layer1.0.conv9.weight"] = state_dict.pop("layer1.0.conv1.weight")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("bn1.running_var"), r"missing from the state_dict \(1\):\n    bn1.running_var \(16,\)"),
        (lambda s: s.update(extra=np.ones(3)), r"left over, unknown to the model \(1\):\n    extra \(3,\)"),
        (rename, r"(?s)missing.*conv1.weight.*left over.*conv9.weight.*the network is nearly the one"),
        (
            lambda s: s.update({"fc.weight": np.ones((7, 64)), "fc.bias": np.ones(7)}),
            r"(?s)fc.weight: \(7, 64\) given, the model has \(10, 64\).*build the model with num_classes=7",
        ),
        (lambda s: s.update({"linear.bias": np.ones(10)}), "names 'fc.bias' twice"),
        (lambda s: s.clear(), r"missing from the state_dict \(97\):\n    bn1.bias"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(ConversionError, match=said):
        resnet_jax.from_torch(resnet_jax.cifar_resnet20(), broken(change))


def test_variables_of_another_model_are_named():
    with pytest.raises(ConversionError, match=r"(?s)layer1.3.*another network"):
        resnet_jax.to_torch(resnet_jax.cifar_resnet32(), variables())
    with pytest.raises(ConversionError, match=r"(?s)missing from the tree of variables.*batch_stats.bn1.mean"):
        resnet_jax.to_torch(resnet_jax.cifar_resnet20(), {"params": variables()["params"]})


@pytest.mark.parametrize("classes", [1, 33])
def test_a_last_column_alone_is_copied_too(classes, monkeypatch):
    """Columns are copied 32 at a time, into memory that may hold anything."""
    monkeypatch.setattr(convert, "_empty", lambda shape, dtype: np.full(shape, np.nan, dtype))
    model = resnet_jax.cifar_resnet20(num_classes=classes)
    head = {"kernel": np.arange(64.0 * classes).reshape(64, classes), "bias": np.arange(float(classes))}
    given = variables() | {"params": variables()["params"] | {"fc": head}}
    assert equal(resnet_jax.from_torch(model, resnet_jax.to_torch(model, given)), given)


def test_of_a_runs_checkpoints_the_newest_is_taken_by_its_number(tmp_path):
    for step in (9, 10):
        orbax_folder.save_variables(str(tmp_path / "checkpoints" / str(step) / "variables"), {"step": np.array(step)})
    assert orbax_folder.load_variables(str(tmp_path))["step"] == 10
