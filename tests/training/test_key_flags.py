"""`--config.KEY=VALUE`: any key, any field of the network, set and unset; a slip is one line with the nearest."""

import dataclasses

import ml_collections
import pytest

from paths import ROOT
from resnet_jax.configs import cifar10_resnet18, default, imagenet_resnet50
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.training import config_file
from resnet_jax.training.keys import flags
from resnet_jax.training.keys.ranges import value_of

# Field -> a value as typed, and what it is.
FIELDS = {
    "stage_sizes": ("(1,2)", (1, 2)), "num_classes": ("7", 7), "stage_features": ("(8,16)", (8, 16)),
    "block_widths": ("(((8,8),),)", (((8, 8),),)), "groups": ("2", 2), "width_per_group": ("32", 32),
    "stem": ("deep", "deep"), "stem_features": ("8", 8), "stem_pool": ("none", "none"), "shortcut": ("avg", "avg"),
    "attn": ("se", "se"), "anti_alias": ("blur", "blur"), "output_stride": ("8", 8), "global_pool": ("max", "max"),
    "drop_rate": ("0.5", 0.5), "drop_path_rate": ("0", 0), "drop_block_rate": ("1e-1", 0.1),
    "zero_init_residual": ("True", True), "fc_init_std": ("0.01", 0.01), "stride_in_1x1": ("false", False),
    "first_stage_stride": ("2", 2), "reduce_first": ("2", 2), "norm": ("group", "group"),
    "freeze_norm": ("('stem','layer1')", ("stem", "layer1")), "act": ("silu", "silu"), "axis_name": ("x", "x"),
    "axis_index_groups": ("((0,1),(2,3))", ((0, 1), (2, 3))), "remat": ("conv", "conv"),
    "dtype": ("float16", "float16"), "param_dtype": ("bfloat16", "bfloat16"),
    "precision": ("highest", "highest"), "train": ("False", False),
}  # fmt: skip


def set_in(config, *overrides):
    flags.set_keys(config, overrides)
    return config


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ResNet) if f.name not in ("name", "parent")])
def test_a_field_of_the_network_is_set_and_unset(field):
    if field == "block":
        pytest.skip("a class, which has no name")
    text, value = FIELDS[field]
    config = set_in(default.get_config().lock(), f"--config.model.kwargs.{field}={text}")
    assert config.model.kwargs[field] == value
    assert type(config.model.kwargs[field]) in (type(value), float)
    set_in(config, f"--config.model.kwargs.{field}=None")
    assert config.model.kwargs[field] is None


def test_what_is_set_reaches_the_network():
    config = set_in(cifar10_resnet18.get_config(), "--config.model.kwargs.attn=se", "--config.model.kwargs.stem=None")
    given = {field: value for field, value in config.model.kwargs.items() if value is not None}
    model = create_model(config.model.name, **given)
    assert (model.attn, model.stem, model.dtype) == ("se", "imagenet", "bfloat16")


def test_a_field_of_one_kind_takes_a_value_of_another():
    config = default.get_config()
    config.model.kwargs.freeze_norm = True
    assert set_in(config, "--config.model.kwargs.freeze_norm=('stem',)").model.kwargs.freeze_norm == ("stem",)


def test_keys_that_may_be_none_are_those_that_are():
    config = default.get_config()
    none = {key for key in flags.keys_of(config) if value_of(config, key) is None}
    assert {key for key in none if not key.startswith("model.kwargs.")} == flags.OPTIONAL
    set_in(config, *(f"--config.{key}=None" for key in flags.OPTIONAL))
    with pytest.raises(ValueError, match=r"--config.batch_size=None: "):
        set_in(config, "--config.batch_size=None")
    assert set_in(config, "--config.data.path=None").data.path == "None"  # a folder may be called so


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["--config.batch_size=7"], "batch_size", 7),
        (["--config.batch_size", "7"], "batch_size", 7),
        (["-config.batch_size=7"], "batch_size", 7),
        (["--config.num_epochs=7"], "num_epochs", 7.0),
        (["--config.data.flip"], "data.flip", True),
        (["--config.data.flip", "--config.batch_size=7"], "data.flip", True),
        (["--config.data.flip=True", "--noconfig.data.flip"], "data.flip", False),
        (["--config.data.flip=1"], "data.flip", True),
        (["--config.schedule.boundaries=(1.5,2)"], "schedule.boundaries", (1.5, 2)),
        (["--config.schedule.boundaries=1.5", "--config.schedule.boundaries=2"], "schedule.boundaries", (1.5, 2)),
        (["--config.init_anew=fc"], "init_anew", ("fc",)),
        (["--config.init_anew=()"], "init_anew", ()),
        (["--config.init_from="], "init_from", ""),
        (["--config.data.path=a=b c"], "data.path", "a=b c"),
        (["--config.optimizer.rates=(('',0.0),('fc',1.0))"], "optimizer.rates", (("", 0.0), ("fc", 1.0))),
        (["--config.batch_size=7", "--config.batch_size=9"], "batch_size", 9),
        (["--config.schedule.warmup_start=0.5"], "schedule.warmup_start", 0.5),
    ],
    ids=str,
)  # fmt: skip
def test_forms_of_a_flag(overrides, key, value):
    found = value_of(set_in(default.get_config(), *overrides), key)
    assert (found, type(found)) == (value, type(value))


def test_what_follows_from_a_key_follows_from_the_command_line_too():
    config = set_in(imagenet_resnet50.get_config(), "--config.batch_size=8192")
    assert config.optimizer.learning_rate == pytest.approx(3.2)
    assert config.schedule.warmup_start == pytest.approx(1 / 32)
    assert set_in(config, "--config.optimizer.learning_rate=0.3").optimizer.learning_rate == 0.3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("--config.batchsize=3", "the config has no such key: did you mean batch_size?"),
        ("--config.learning_rate=3", "the config has no such key: did you mean optimizer.learning_rate?"),
        ("--config.optimiser.nesterov=True", "no such key: did you mean optimizer.nesterov?"),
        ("--config.data.num_worker=3", "did you mean data.num_workers?"),
        ("--config.model.kwargs.atn=se", "ResNet has no field 'atn': did you mean attn or act?"),
        ("--config.model.kwargs.parent=x", "ResNet has no field 'parent'"),
        ("--config.model.kwargs.drop.rate=1", "no such key"),
        ("--config.zzz=1", "the config has no such key: it has accumulate_steps, batch_norm_devices, "),
        ("--config.data={}", "--config.data is a group of keys: set one of data."),
        ("--config.batch_size.x=3", "no such key: did you mean batch_size?"),
        ("--config.batch_size", "--config.batch_size: give it a value, --config.batch_size=VALUE"),
        ("--noconfig.batch_size", "give it a value"),
        ("--config.batch_size=many", "--config.batch_size=many: "),
        ("--config.data.flip=perhaps", "--config.data.flip=perhaps: "),
        ("--config.schedule.boundaries=(1,", "--config.schedule.boundaries=(1,: "),
        ("--workdirs=3", "unknown arguments ['--workdirs=3']: keys of the config are set by --config.KEY=VALUE"),
        ("other", "unknown arguments ['other']"),
    ],
)
def test_a_slip_is_one_line_with_the_nearest(override, said):
    with pytest.raises(ValueError, match="config") as refusal:
        set_in(default.get_config(), override)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_config_of_another_make_keeps_its_own_keys():
    config = ml_collections.ConfigDict({"kwargs": {"a": 1}})
    assert set_in(config, "--config.kwargs.a=2").kwargs.a == 2
    with pytest.raises(ValueError, match=r"no such key: did you mean kwargs\.a"):
        set_in(config, "--config.kwargs.aa=2")


def test_a_mistyped_file_is_told_its_nearest():
    with pytest.raises(
        ValueError, match=r"there is no file .*digits_resnet.py that ends .*; did you mean digits_resnet20.py"
    ) as told:
        config_file.load(str(ROOT / "configs" / "digits_resnet.py"))
    assert "\n" not in str(told.value)
