"""The table of published weights equals timm's and torchvision's own, field by field; every name leads to its net."""

import dataclasses
import doctest
import json
import math
import runpy

import jax
import numpy as np
import pytest

import resnet_jax
from paths import ROOT
from resnet_jax import cli
from resnet_jax.models.variants import ALIASES
from resnet_jax.weights import sources
from resnet_jax.weights.published import registry

TIMM = [tag for tag in registry.list_pretrained() if registry.get_pretrained(tag).library == "timm"]
TORCHVISION = [tag for tag in registry.list_pretrained() if registry.get_pretrained(tag).library == "torchvision"]
UNLISTED = "resnext101_32x48d.fb_wsl_ig1b_ft_in1k"  # timm has its configuration, and no builder of its network
SAME_FIELDS = (
    *("num_classes", "license", "input_size", "test_input_size", "crop_pct", "test_crop_pct", "interpolation"),
    *("crop_mode", "mean", "std", "pool_size", "first_conv", "classifier", "origin_url", "paper_ids", "architecture"),
)


# timm ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configs():
    """The configuration in timm of each of its tags."""
    timm = pytest.importorskip("timm")
    from timm.models import resnet

    found = {tag: timm.get_pretrained_cfg(tag) for tag in timm.list_models(module="resnet", include_tags=True)}
    found = {tag: config for tag, config in found.items() if config and config.has_weights}
    name, _, tag = UNLISTED.partition(".")
    return found | {UNLISTED: dataclasses.replace(resnet.default_cfgs[name].cfgs[tag], architecture=name)}


def test_timms_tags_are_all_there(configs):
    assert set(TIMM) == set(configs)
    assert len(TIMM) == 150 + 1
    assert {"resnet50.bamboo", UNLISTED} <= set(TIMM)


def test_every_field_is_timms(configs):
    for tag, config in configs.items():
        entry = registry.get_pretrained(tag)
        for field in SAME_FIELDS:
            assert getattr(entry, field) == getattr(config, field), (tag, field)
        assert entry.url == (config.url or None), tag
        assert entry.repo == (None if tag == UNLISTED else config.hf_hub_id), tag
        assert entry.file == (None if tag == UNLISTED else "model.safetensors")
        assert entry.non_commercial == (config.license == "cc-by-nc-4.0")
        if entry.sha256:
            assert entry.url.endswith(f"-{entry.sha256}.pth")
        assert (entry.sha256 is None) == (entry.url is None), tag


def test_no_field_of_timms_is_forgotten(configs):
    """What differs between two of its tags, or from its own default, is in the table."""
    from timm.models import PretrainedCfg

    carried = {*SAME_FIELDS, "url", "hf_hub_id", "tag"}
    default = PretrainedCfg()
    for tag, config in configs.items():
        for field in dataclasses.fields(config):
            if field.name not in carried:
                assert getattr(config, field.name) == getattr(default, field.name), (tag, field.name)


def test_evaluation_is_what_timm_does(configs):
    data = pytest.importorskip("timm.data")
    for tag, config in configs.items():
        for train in (False, True):
            resolved = data.resolve_data_config(pretrained_cfg=dataclasses.asdict(config), use_test_size=not train)
            transforms = data.create_transform(**resolved).transforms
            found = registry.preprocessing(tag, train=train)
            assert (found.resize_size, found.image_size) == (transforms[0].size, transforms[1].size[0]), tag
            assert transforms[0].interpolation.value == found.interpolation, tag
            np.testing.assert_allclose([found.mean, found.std], [transforms[-1].mean, transforms[-1].std], atol=1e-7)


def test_accuracies_are_those_of_the_csv():
    lines = (ROOT / "tools" / "timm_results.csv").read_text().splitlines()
    rows = {tuple(line.split(",")) for line in lines if not line.startswith(("#", "tag"))}
    found = {
        (tag, str(accuracy.image_size), f"{accuracy.top1:.3f}", f"{accuracy.top5:.3f}")
        for tag in TIMM
        for accuracy in registry.get_pretrained(tag).reported
    }
    assert found == rows
    unreported = {tag for tag in TIMM if not registry.get_pretrained(tag).reported}
    assert unreported == {tag for tag in TIMM if tag.endswith("_in12k")} | {"resnet50.bamboo", UNLISTED}
    best = registry.get_pretrained("resnet50.a1_in1k").reported[0]
    assert (best.image_size, best.top1, best.top5) == (288, 81.24, 95.112)


# torchvision --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights():
    """The entry in torchvision of each of its tags."""
    models = pytest.importorskip("torchvision.models")
    names = [
        name for name in models.list_models(models) if models.get_model_builder(name).__module__.endswith("resnet")
    ]
    return {f"{name}.{entry.name}": entry for name in names for entry in models.get_model_weights(name)}


def test_torchvisions_tags_are_all_there(weights):
    assert set(TORCHVISION) == set(weights)
    assert len(TORCHVISION) == 17


def test_every_field_is_torchvisions(weights):
    for tag, theirs in weights.items():
        entry, transform = registry.get_pretrained(tag), theirs.transforms()
        assert entry.architecture == tag.partition(".")[0]
        assert entry.url == theirs.url
        assert entry.url.endswith(f"-{entry.sha256}.pth")
        assert entry.input_size == (3, *transform.crop_size * 2)
        assert [entry.resize_size] == transform.resize_size
        assert (list(entry.mean), list(entry.std)) == (transform.mean, transform.std)
        assert entry.interpolation == transform.interpolation.value
        assert transform.antialias
        meta = theirs.meta
        assert (entry.num_parameters, entry.num_classes) == (meta["num_params"], len(meta["categories"]))
        assert (entry.gflops, entry.file_size_mib) == (meta["_ops"], meta["_file_size"])
        assert (entry.min_size, entry.origin_url) == (meta["min_size"], meta["recipe"])
        (accuracy,) = entry.reported
        (metrics,) = meta["_metrics"].values()
        assert (accuracy.top1, accuracy.top5, accuracy.image_size) == (metrics["acc@1"], metrics["acc@5"], 224)
        assert registry.preprocessing(tag).resize_size == transform.resize_size[0]
        assert registry.class_names(tag) == tuple(meta["categories"])


def test_the_mirror_of_torchvisions_weights_is_of_the_same_file():
    for entry in map(registry.get_pretrained, TORCHVISION):
        mirror = registry.get_pretrained(entry.repo.removeprefix("timm/"))
        assert mirror.tag.partition(".")[2] == ("tv2_in1k" if entry.tag.endswith("V2") else "tv_in1k")
        assert (mirror.sha256, mirror.num_parameters) == (entry.sha256, entry.num_parameters)


# The table and the networks -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_written_table_is_what_the_script_makes_now():
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    script = runpy.run_path(str(ROOT / "tools" / "make_registry.py"))
    again = "run `python tools/make_registry.py`: the tables of the installed libraries have changed"
    assert (registry.HERE / "registry.json").read_text() == script["registry_text"](), again
    assert (registry.HERE / "imagenet1k.json").read_text() == script["class_names_text"](), again


@pytest.mark.parametrize("tag", ["resnet18.a1_in1k", "resnet50.bamboo", "resnetaa50d.sw_in12k", UNLISTED])
def test_parameters_are_those_of_our_networks(tag):
    """With and without a head, and of the network that timm cannot build; tests of parity count the others."""
    entry = registry.get_pretrained(tag)
    model = resnet_jax.create_model(entry.architecture, num_classes=entry.num_classes, train=False)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))["params"]
    assert entry.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_every_architecture_is_one_of_ours():
    names = {registry.get_pretrained(tag).architecture for tag in registry.list_pretrained()}
    assert names <= set(resnet_jax.list_models())
    assert len(names) == 65  # timm's 64 with weights, and the one without a builder


def test_old_names_lead_to_the_weights_that_they_name():
    expected = {
        "ig_resnext101_32x16d": "resnext101_32x16d.fb_wsl_ig1b_ft_in1k",
        "ig_resnext101_32x48d": UNLISTED,
        "ssl_resnet50": "resnet50.fb_ssl_yfcc100m_ft_in1k",
        "swsl_resnext101_32x8d": "resnext101_32x8d.fb_swsl_ig1b_ft_in1k",
        "gluon_resnet101_v1s": "resnet101s.gluon_in1k",
        "seresnext26tn_32x4d": "seresnext26t_32x4d.bt_in1k",
        "tv_resnet34": "resnet34.tv_in1k",
    }
    for name, network in ALIASES.items():
        with pytest.warns(DeprecationWarning, match="deprecated name of"):
            entry = registry.get_pretrained(name)
        assert entry.architecture == network
        assert entry.tag == expected.get(name, entry.tag)


def test_old_names_are_timms():
    table = pytest.importorskip("timm.models._registry")._module_to_deprecated_models["resnet"]
    assert set(table) == set(ALIASES)
    for name, target in table.items():
        with pytest.warns(DeprecationWarning, match="deprecated name of"):
            entry = registry.get_pretrained(name)
        if not name.startswith("ig_"):  # timm leads all of these to the narrowest
            assert entry.tag.startswith(target)


# Questions and errors -----------------------------------------------------------------------------------


def test_patterns_choose_tags():
    assert resnet_jax.list_pretrained("resnet50.tv*") == ["resnet50.tv2_in1k", "resnet50.tv_in1k"]
    assert resnet_jax.list_pretrained("vgg*") == []
    assert len(resnet_jax.list_pretrained()) == 150 + 1 + 17


def test_a_network_without_a_tag_is_refused_with_the_choice():
    with pytest.raises(ValueError, match="choose a tag") as error:
        registry.get_pretrained("resnet50")
    for line in (
        r"resnet50.tv2_in1k .* 80.85 % at 224 .* bsd-3-clause",
        r"resnet50.IMAGENET1K_V1 .* 76.13 % at 224",
        r"resnet50.fb_swsl_ig1b_ft_in1k .* cc-by-nc-4.0, NO COMMERCIAL USE",
        r"resnet50.bamboo .* no accuracy reported .* licence not stated",
    ):
        error.match(line)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("resnet50.a1_in1", "did you mean resnet50.a1_in1k"),
        ("resnet200", "no published weights of 'resnet200'"),
        ("vgg16", "list_pretrained"),
    ],
)
def test_an_unknown_tag_is_refused_with_a_hint(tag, said):
    with pytest.raises(ValueError, match=said):
        registry.get_pretrained(tag)


def test_preprocessing_is_of_evaluation_unless_asked():
    found = resnet_jax.preprocessing("resnet50.tv2_in1k")
    assert (found.image_size, found.resize_size, found.interpolation) == (224, 232, "bilinear")
    train = resnet_jax.preprocessing("resnet50.tv2_in1k", train=True)
    assert (train.image_size, train.resize_size) == (176, math.floor(176 / 0.875))
    with pytest.raises(ValueError, match=r"publishes no training size.*timm/resnet50.tv2_in1k"):
        resnet_jax.preprocessing("resnet50.IMAGENET1K_V2", train=True)
    # The one set of weights that the two libraries evaluate differently.
    assert resnet_jax.preprocessing("resnext101_64x4d.tv_in1k").resize_size == 256
    assert resnet_jax.preprocessing("resnext101_64x4d.IMAGENET1K_V1").resize_size == 232


def test_names_of_classes():
    names = resnet_jax.class_names("resnet18.a1_in1k")
    assert len(names) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
    with pytest.raises(ValueError, match="a head of 11821 classes"):
        resnet_jax.class_names("resnetaa50d.sw_in12k")
    with pytest.raises(ValueError, match="no head"):
        resnet_jax.class_names("resnet50.bamboo")


@pytest.mark.parametrize("word", ["pretrained", "weights"])
def test_a_network_is_not_built_with_weights(word):
    with pytest.raises(TypeError, match=r'load_pretrained\("resnet152.<tag>"\)'):
        resnet_jax.resnet152(**{word: True})


def test_no_tag_is_there_twice():
    rows = json.loads((registry.HERE / "registry.json").read_text())["entries"]
    assert len(rows) == len({row["tag"] for row in rows})


# The command --------------------------------------------------------------------------------------------


def test_info_shows_everything(capsys):
    assert cli.main(["info", "resnet152.tv2_in1k"]) == 0
    shown = capsys.readouterr().out
    for said in (
        "resnet152, 60,192,808 parameters",
        "licence         bsd-3-clause",
        "timm/resnet152.tv2_in1k, model.safetensors",
        "https://download.pytorch.org/models/resnet152-f82ba261.pth",
        "begins with f82ba261",
        "evaluation      shorter side to 232 (bilinear), middle 224x224, mean (0.485, 0.456, 0.406)",
        "training size   shorter side to 201 (bilinear), middle 176x176",
        "at 224 pixels   top-1 82.294 %, top-5 96.0 % (timm results-imagenet.csv)",
    ):
        assert said in shown
    assert cli.main(["info", "resnet152.IMAGENET1K_V2"]) == 0
    assert "11.514 G multiply-adds" in capsys.readouterr().out
    assert cli.main(["info", "resnet50.bamboo"]) == 0
    assert "licence         not stated" in capsys.readouterr().out
    assert cli.main(["info", "resnet152"]) == 2
    assert "choose a tag" in capsys.readouterr().err


def test_list_shows_published_weights(capsys):
    assert cli.main(["list", "--pretrained", "resnext101_32x32d*"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split(None, 1) == [
        "resnext101_32x32d.fb_wsl_ig1b_ft_in1k",
        "top-1 85.09 % at 224    licence cc-by-nc-4.0, NO COMMERCIAL USE",
    ]
    assert cli.main(["list", "--pretrained", "vgg*"]) == 2
    assert "no published weights match 'vgg*'" in capsys.readouterr().err


def test_every_tag_can_be_shown(capsys):
    for tag in registry.list_pretrained():
        assert cli.main(["info", tag]) == 0
    assert capsys.readouterr().out.count("evaluation      ") == len(registry.list_pretrained())


def test_examples_in_docstrings_are_true():
    for module in (registry, sources):
        found = doctest.testmod(module)
        assert found.attempted
        assert not found.failed
