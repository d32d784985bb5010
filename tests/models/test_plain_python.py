"""Fields are plain values: networks that are equal compare, hash, are copied, pickled and written as equal."""

import copy
import functools
import json
import pickle

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from drawing import drawn
from resnet_jax.models import layers, norms, remat, shortcuts, stems
from resnet_jax.models.attention import SqueezeExcite
from resnet_jax.models.resnet import TABLES
from resnet_jax.weights.published import timm_config

# Networks whose parts once were partials, and others of each kind.
KINDS = ["senet154", "resnetrs50", "resnetrs420", "resnet18", "resnet50d", "resnet50_gn", "ecaresnet50d_pruned",
         "test_resnet", "cifar_plain20", "resnetblur50d"]  # fmt: skip
SMALL = {"stage_sizes": (1, 1), "stage_features": (16, 16), "num_classes": 5}


def scaled(x, by=1.0, **_):
    return x * by


def assert_same(found, expected):
    assert found == expected
    assert hash(found) == hash(expected)


def test_every_network_equals_its_copies_and_a_new_one():
    for name in resnet_jax.list_models():
        model = resnet_jax.create_model(name)
        for other in (
            resnet_jax.create_model(name),
            pickle.loads(pickle.dumps(model)),
            copy.copy(model),
            copy.deepcopy(model),
            model.clone(),
        ):
            assert_same(other, model)
        assert model != model.clone(num_classes=3)


OWN = [
    {"norm": functools.partial(nn.GroupNorm, num_groups=8)},
    {"block": functools.partial(resnet_jax.Bottleneck, reduce_first=2)},
    {"block": [functools.partial(resnet_jax.BasicBlock, reduce_first=2), resnet_jax.Bottleneck]},
    {"attn": functools.partial(SqueezeExcite, rd_ratio=1 / 8)},
    {"act": functools.partial(scaled, by=0.3)},
    {"stem": stems.Stem(functools.partial(stems.cifar_stem), 1, "max"), "stem_pool": stems.StemPool(scaled, 1)},
    {"norm": functools.partial(functools.partial(norms.batch_norm, epsilon=1e-3), momentum=0.5)},
    {"anti_alias": functools.partial(functools.partial(layers.blur_pool))},
]


@pytest.mark.parametrize("fields", OWN, ids=lambda fields: next(iter(fields)))
def test_parts_of_ones_own_are_equal_by_what_they_are(fields):
    def again():  # partials made anew, which Python takes for others
        return pickle.loads(pickle.dumps(fields))

    model = resnet_jax.ResNet(**({"block": resnet_jax.Bottleneck} | SMALL | again()))
    for other in (model.clone(**again()), pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert_same(other, model)


def test_functions_of_jax_that_copy_as_others_stay_themselves():
    model = resnet_jax.resnet18(act=jax.nn.selu, remat=jax.checkpoint_policies.nothing_saveable)
    for other in (copy.copy(model), copy.deepcopy(model), copy.deepcopy([model])[0]):
        assert_same(other, model)


def test_other_arguments_make_another_network():
    def net(**arguments):
        return resnet_jax.resnet50(attn=functools.partial(SqueezeExcite, **arguments))

    assert net(rd_ratio=1 / 8) != net(rd_ratio=1 / 7)
    assert net(rd_ratio=1 / 8) != net()
    assert net(rd_ratio=1 / 8).attn != functools.partial(SqueezeExcite, rd_ratio=1 / 8)  # which has another hash
    table = np.arange(3)
    assert_same(net(table=table), net(table=table))
    assert net(table=table) != net(table=np.arange(3))  # arrays do not say whether they are equal
    assert hash(net(table=table)) == hash(net(table=[1]))  # nor need an argument have a hash


def test_equal_networks_are_traced_once():
    traced = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(model, x):
        traced.append(model)
        return x * model.num_classes

    for _ in range(2):
        apply(resnet_jax.resnet50(attn=functools.partial(SqueezeExcite, rd_ratio=1 / 8), num_classes=np.int64(7)), 1.0)
    assert len(traced) == 1


PARTS = [(field, name) for field, table in TABLES.items() for name in table]


@pytest.mark.parametrize(("field", "name"), PARTS)
def test_a_part_of_a_table_is_its_name(field, name):
    part = TABLES[field][name]
    partial = functools.partial(part.func, **part.keywords) if isinstance(part, functools.partial) else part
    for value in (part, copy.copy(part) if isinstance(part, tuple) else partial):
        assert getattr(resnet_jax.resnet50(**{field: value}), field) == name


def test_what_people_write_instead_of_a_name():
    written = resnet_jax.resnet50(
        act=jax.nn.relu,
        norm=norms.batch_norm,
        stem=stems.STEMS["imagenet"],
        shortcut=functools.partial(shortcuts.projected, kernel_size=3),
        attn=functools.partial(SqueezeExcite, rd_ratio=0.25),
        remat=remat.REMATS["conv"],
    )
    assert_same(written, resnet_jax.resnet50(shortcut="B3x3", attn="se4", remat="conv"))


def test_the_stem_itself_is_as_its_name_for_everything_that_asks(tmp_path):
    fields = SMALL | {"stem_features": 8, "train": False}
    named = resnet_jax.resnet18(stem="cifar", **fields)
    given = resnet_jax.resnet18(stem=stems.STEMS["cifar"], **fields)
    assert given == named
    assert resnet_jax.feature_info(given) == resnet_jax.feature_info(named)
    variables = drawn(jax.eval_shape(named.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    folded, folded_variables = resnet_jax.fold_batch_norm(given, variables)
    expected, expected_variables = resnet_jax.fold_batch_norm(named, variables)
    assert folded == expected
    jax.tree.map(np.testing.assert_array_equal, folded_variables, expected_variables)
    resnet_jax.save_pretrained(given, variables, tmp_path / "net")
    assert resnet_jax.load_pretrained(tmp_path / "net", train=False)[0] == named


def test_a_stem_without_its_pool_is_folded_as_the_parts_it_is_of():
    model = resnet_jax.resnet18(stem=stems.Stem(stems.imagenet_stem, 2), stem_features=8, **SMALL)
    named = resnet_jax.resnet18(stem="imagenet", stem_pool="none", stem_features=8, **SMALL)
    variables = drawn(jax.eval_shape(lambda: named.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)))
    folded, expected = (resnet_jax.fold_batch_norm(net, variables)[1] for net in (model, named))
    jax.tree.map(np.testing.assert_array_equal, folded, expected)


# Files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_what_is_written_of_a_network_gives_it_again(name):
    model = resnet_jax.create_model(name, num_classes=np.int64(7))
    written = json.loads(json.dumps(dict([timm_config.name_and_arguments(model)])))
    assert written == {name: {"num_classes": 7}}
    changed = model.clone(stem_features=np.int32(48), global_pool=layers.GLOBAL_POOLS["avgmax"])
    found, arguments = timm_config.name_and_arguments(changed)
    arguments = json.loads(json.dumps(arguments))
    found, arguments = timm_config.network({"resnet_jax": {"name": found, "arguments": arguments}})
    assert_same(resnet_jax.create_model(found, **arguments), changed)


@pytest.mark.parametrize(("name", "width"), [("senet154", 8), ("resnetrs50", 64)])
def test_networks_whose_parts_were_partials_are_saved_and_loaded(name, width, tmp_path):
    model = resnet_jax.create_model(name, stem_features=16, width_per_group=np.int64(width), **SMALL)
    variables = drawn(jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)))
    resnet_jax.save_pretrained(model, variables, tmp_path / "net")
    loaded, found = resnet_jax.load_pretrained(tmp_path / "net")
    assert_same(loaded, model)
    jax.tree.map(np.testing.assert_array_equal, dict(found), variables)


def test_a_part_of_ones_own_that_the_table_has_is_written_by_name_and_another_named():
    quarter = resnet_jax.resnet50(attn=functools.partial(SqueezeExcite, rd_ratio=0.25))
    assert timm_config.name_and_arguments(quarter) == ("resnet50", {"attn": "se4", "num_classes": 1000})
    eighth = resnet_jax.resnet50(attn=functools.partial(SqueezeExcite, rd_ratio=0.125))
    with pytest.raises(ValueError, match="'resnet50' with {'attn': .*rd_ratio=0.125.*functions cannot be written"):
        timm_config.name_and_arguments(eighth)


# Numbers ------------------------------------------------------------------------------------------------


def test_numpys_numbers_and_arrays_are_pythons():
    plain = {
        "stage_sizes": (1, 2), "stage_features": (8, 16), "num_classes": 10, "groups": 2, "width_per_group": 32,
        "stem_features": 8, "output_stride": 8, "drop_rate": 0.5, "drop_path_rate": 0.25, "first_stage_stride": 2,
        "zero_init_residual": True, "axis_name": "devices", "axis_index_groups": ((0, 1), (2, 3)), "train": False,
    }  # fmt: skip
    lists = {name: list(map(list, value)) if name == "axis_index_groups" else list(value) if isinstance(value, tuple)
             else value for name, value in plain.items()}  # fmt: skip
    expected = resnet_jax.ResNet(resnet_jax.Bottleneck, **plain)
    scalars = {int: np.int64, float: np.float32, bool: np.bool_}
    numpys = {name: scalars.get(type(value), np.array if isinstance(value, tuple) else str)(value)
              for name, value in plain.items()}  # fmt: skip
    small = {name: np.int8(value) if type(value) is int else value for name, value in plain.items()}
    items = plain | {"stage_sizes": [np.int16(1), np.uint8(2)], "stage_features": (np.int64(8), np.int32(16))}
    for fields in (lists, numpys, small, items):
        model = resnet_jax.ResNet(resnet_jax.Bottleneck, **fields)
        assert_same(model, expected)
        assert repr(model) == repr(expected)
        assert pickle.loads(pickle.dumps(model)) == expected
        assert json.loads(json.dumps({name: getattr(model, name) for name in plain})) == lists
    assert resnet_jax.resnet18(drop_rate=np.float32(0.1)).drop_rate == float(np.float32(0.1))


WHOLE = ["num_classes", "groups", "width_per_group", "reduce_first", "stem_features", "first_stage_stride",
         "output_stride"]  # fmt: skip
SHARES = ["drop_rate", "drop_path_rate", "drop_block_rate"]


@pytest.mark.parametrize("value", [True, False, np.bool_(True), "2", [2], {}, float("nan"), 2 + 0j, -2], ids=repr)
@pytest.mark.parametrize("field", [*WHOLE, *SHARES])
def test_what_is_no_number_is_refused_where_one_belongs(field, value):
    with pytest.raises(ValueError, match=rf"^{field}=.* must be .*\.$"):
        resnet_jax.resnet50(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, 2.0) for field in WHOLE),
        *((field, None) for field in [*WHOLE[:-1], *SHARES]),
        *((field, value) for field in ("stage_sizes", "stage_features") for value in
          ((True,) * 4, (1.0,) * 4, np.ones(4), (1, 1, 1, None), 4, "1111", {1: 1, 2: 1, 3: 1, 4: 1})),
        *(("block_widths", value) for value in (1, (1, 1, 1, 1), (((True,) * 3,),), (((1.0,) * 3,),))),
        *(("axis_index_groups", value) for value in (2, (0, 1), ((True, False),), ((0.0, 1.0),), "01")),
        *((field, value) for field in ("zero_init_residual", "stride_in_1x1") for value in (1, 0, "no", None)),
    ],
    ids=repr,
)  # fmt: skip
def test_numbers_in_sequences_are_looked_at_too(field, value):
    with pytest.raises(ValueError, match=rf"^{field}=.* must be .*\.$"):
        resnet_jax.resnet50(**{field: value})


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ({"groups": 2}, {}),
        ({"zero_init_residual": True}, {}),
        ({"act": nn.silu}, {}),
        ({"reduce_first": 2}, {"reduce_first": 4}),
    ],
)
def test_a_partial_of_a_block_cannot_fix_what_the_network_decides(block, fields):
    """It was replaced by the network's own."""
    model = resnet_jax.resnet50(block=functools.partial(resnet_jax.Bottleneck, **block), **fields)
    with pytest.raises(ValueError, match=f"fixes {next(iter(block))}, .*ResNet decide"):
        resnet_jax.feature_info(model)


def test_reduce_first_is_the_same_as_a_field_and_in_a_partial(x64):
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 33, 33, 3)))
    fields = SMALL | {"stage_sizes": (2,), "stage_features": (16,), "param_dtype": "float64", "train": False}
    field = resnet_jax.ResNet(resnet_jax.Bottleneck, reduce_first=2, **fields)
    part = resnet_jax.ResNet(functools.partial(resnet_jax.Bottleneck, reduce_first=2), **fields)
    variables = drawn(jax.eval_shape(field.init, jax.random.key(0), images))
    assert variables["params"]["layer1"]["1"]["conv1"]["kernel"].shape[-1] == 8
    np.testing.assert_array_equal(field.apply(variables, images), part.apply(variables, images))
