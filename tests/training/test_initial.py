"""What a run starts from: weights of other classes and channels, an average, published ones; and what is refused."""

import logging

import jax
import numpy as np
import pytest

from drawing import drawn
from resnet_jax.models import variants
from resnet_jax.plan import dry_run
from resnet_jax.runs import workdirs
from resnet_jax.training import experiment, initial, loop
from resnet_jax.weights import convert
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.files import formats, orbax_folder
from resnet_jax.weights.names import native_names
from resnet_jax.weights.published import download
from tiny import TWO_STAGES, equal, tiny_config


def two_stages(**changes):
    """The tiny config with a net of two stages."""
    return tiny_config(**{f"model.kwargs.{field}": value for field, value in TWO_STAGES.items()}, **changes)


def trained(num_classes=10, channels=3, seed=1):
    """Variables of the net of `two_stages` as no initialiser makes them."""
    model = variants.create_model("cifar_resnet20", num_classes=num_classes, **TWO_STAGES)
    images = jax.ShapeDtypeStruct((1, 8, 8, channels), np.float32)
    shapes = jax.eval_shape(model.clone(train=False).init, jax.random.key(0), images)
    rng = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), shapes)


def saved(path, **of):
    orbax_folder.save_variables(str(path), trained(**of)[1])
    return str(path)


def start(source, stage_features=(8, 16), stage_sizes=(1, 1), stem="cifar", **options):
    """What a net of ten classes, like that of `two_stages`, starts from."""
    net = TWO_STAGES | {"stage_features": stage_features, "stage_sizes": stage_sizes, "stem": stem}
    model = variants.create_model("cifar_resnet20", num_classes=10, **net)
    return initial.load(str(source), model, **{"channels": 3} | options)


@pytest.fixture(scope="module")
def scratch():
    """What a run without `init_from` starts from."""
    return jax.tree.map(np.asarray, experiment.build(two_stages()).create_state().variables)


def test_the_keys_of_the_config_reach_it(tmp_path, scratch):
    source = saved(tmp_path / "grey", num_classes=7, channels=1)
    keys = {"init_from": source, "init_anew": ("fc",), "init_fit_channels": True, "init_ema": False}
    found = experiment.build(two_stages(**keys)).create_state()
    assert equal(found.params["fc"], scratch["params"]["fc"])
    assert equal(found.variables, start(source, anew=("fc",), fit_channels=True, ema=False))
    other = experiment.build(two_stages(**keys, seed=3)).create_state()
    assert not equal(other.params["fc"], scratch["params"]["fc"])


@pytest.mark.parametrize("num_classes", [7, 10])
def test_a_new_head_is_that_of_a_run_from_scratch_even_where_the_old_one_would_fit(
    tmp_path, caplog, scratch, num_classes
):
    with caplog.at_level(logging.INFO, "resnet_jax"):
        found = start(saved(tmp_path / "old", num_classes=num_classes), anew=("fc",))
    expected = trained(num_classes)[1]
    head, old = found["params"].pop("fc"), expected["params"].pop("fc")
    assert equal(head, scratch["params"]["fc"])
    assert not np.isin(old["kernel"], head["kernel"]).any()
    assert equal(found, expected)
    taken, adapted, initialised, left_over = caplog.messages[-1].splitlines()[1:]
    assert taken.split() == ["taken", str(len(jax.tree.leaves(expected)))]
    assert adapted.split() == ["adapted", "0"]
    assert initialised.split()[:2] == ["initialised", "2"]
    assert left_over.split() == ["left", "over", "2", "params.fc.bias,", "params.fc.kernel"]


def test_a_head_of_other_classes_is_refused_with_the_way_out(tmp_path):
    source = saved(tmp_path / "old", num_classes=7)
    with pytest.raises(
        ConversionError, match=r"(?s)fc.bias: \(7,\) given, the model has \(10,\).*--config.init_anew=fc starts"
    ):
        start(source)
    with pytest.raises(ConversionError, match=r"layer2.0.bn1.mean: \(16,\) given, the model has \(24,\)"):
        start(source, anew=("fc",), stage_features=(8, 24))
    with pytest.raises(ConversionError, match=r"conv1.kernel: \(3, 3, 3, 8\) given, the model has \(7, 7, 3, 8\)"):
        start(source, anew=("fc",), stem="imagenet")


def test_several_modules_start_anew_and_what_the_model_lacks_is_left_over(tmp_path, scratch):
    with pytest.raises(ConversionError, match=r"--config.init_anew=\('layer2', 'layer3'\) starts"):
        start(saved(tmp_path / "a"), stage_sizes=(1, 2, 1), stage_features=(8, 16, 16))
    found = start(saved(tmp_path / "b"), anew=("layer2.0", "bn1.bias"))
    assert equal(found["params"]["layer2"], scratch["params"]["layer2"])
    assert equal(found["batch_stats"]["layer2"], scratch["batch_stats"]["layer2"])
    assert equal(found["params"]["layer1"], trained()[1]["params"]["layer1"])
    assert not found["params"]["bn1"]["bias"].any()
    shorter = start(saved(tmp_path / "c"), anew=("layer2", "fc"), stage_sizes=(1,), stage_features=(8,))
    assert sorted(shorter["params"]) == ["bn1", "conv1", "fc", "layer1"]


def test_a_name_that_neither_has_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(ValueError, match=r"init_anew=\('head',\): neither the model nor .* The model has bn1, co"):
        start(saved(tmp_path / "old"), anew=("head",))


def test_other_channels_are_fitted_where_that_is_allowed(tmp_path):
    grey = saved(tmp_path / "grey", channels=1)
    with pytest.raises(
        ConversionError, match=r"images with 1 channels, but those of config.data have 3: --config.init_fit_channels"
    ):
        start(grey)
    kernel = trained(channels=1)[1]["params"]["conv1"]["kernel"]
    found = start(grey, fit_channels=True)["params"]["conv1"]["kernel"]
    np.testing.assert_allclose(found, np.repeat(kernel, 3, axis=2) / 3, rtol=1e-6)
    drawn = start(grey, anew=("conv1",))["params"]["conv1"]["kernel"]
    assert not np.allclose(drawn, found)


def test_of_a_run_with_an_average_that_is_taken_and_the_log_says_so(tmp_path, caplog):
    variables = trained()[1]
    average = jax.tree.map(lambda leaf: leaf + 1, variables)
    (folder := tmp_path / "checkpoints" / "3").mkdir(parents=True)
    orbax_folder.save_variables(str(folder / "variables"), variables)
    orbax_folder.save_variables(str(folder / "ema"), average)
    with caplog.at_level(logging.INFO, "resnet_jax"):
        assert equal(start(tmp_path), average)
        assert equal(start(folder), average)
        assert f"starts from {tmp_path}, its moving average:" in caplog.text
        assert equal(start(tmp_path, ema=False), variables)
        assert f"starts from {tmp_path}, its last variables:" in caplog.text


@pytest.mark.parametrize("name", ["net.pth", "model.safetensors"])
def test_a_file_and_the_folder_of_one_are_taken(tmp_path, name):
    formats.save_state_dict(tmp_path / name, convert.to_torch(*trained()))
    assert equal(start(tmp_path / name), trained()[1])
    if name == "model.safetensors":
        assert equal(start(tmp_path), trained()[1])


@pytest.mark.parametrize("source", ["resnet50.a1_in1k", "timm/resnet50.a1_in1k", "hf-hub:timm/resnet50.a1_in1k"])
def test_published_weights_are_taken_by_their_tag(tmp_path, monkeypatch, source):
    asked = []
    formats.save_state_dict(file := tmp_path / "model.safetensors", convert.to_torch(*trained(num_classes=1000)))
    monkeypatch.setattr(download, "from_hub", lambda *of: asked.append(of) or file)
    found = start(source, anew=("fc",))
    assert equal(found["params"]["layer1"], trained(num_classes=1000)[1]["params"]["layer1"])
    assert asked == [("timm/resnet50.a1_in1k", "model.safetensors")]


def test_what_is_nowhere_is_refused_with_what_there_could_be():
    with pytest.raises(ValueError, match=r"runs/nowhere: there is no such file or folder; give a tag"):
        start("runs/nowhere")
    with pytest.raises(ValueError, match="did you mean resnet50"):
        start("resnet50.a9_in1k")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("test_resnet", {"attn": "se"}),
        ("test_resnet", {"attn": "eca"}),
        ("test_resnet", {"num_classes": 0}),
        ("resnet18", {"norm": "group"}),
    ],
    ids=str,
)
def test_variables_without_a_model_are_those_with_it(name, fields):
    model = variants.create_model(name, **fields)
    shapes = jax.eval_shape(
        lambda: model.clone(train=False).init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    )
    expected = drawn(shapes)
    tensors = native_names(convert.to_torch(model, expected))
    assert equal(convert.without_model(tensors), expected)
    with pytest.raises(ConversionError, match=r"conv1.gain, with 1 axes, is no tensor of a ResNet; theirs end in weig"):
        convert.without_model(tensors | {"conv1.gain": np.ones(3)})


def test_weights_that_are_refused_do_not_bind_the_workdir(tmp_path):
    """The corrected command is not told that the workdir belongs to another run."""
    source = saved(tmp_path / "old", num_classes=7)
    for bad in (source, str(tmp_path / "missing.pth")):
        with pytest.raises((ValueError, OSError)):
            loop.train(two_stages(init_from=bad), str(tmp_path / "run"))
        assert not workdirs.is_bound(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="fc"):
        dry_run.dry_run(two_stages(init_from=source))
