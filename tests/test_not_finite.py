"""Weights that are not finite, at every door: an error that names the tensor or the step, and never a probability."""

import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from drawing import drawn
from resnet_jax import cli, inference
from resnet_jax.data import datasets
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.runs import workdirs
from resnet_jax.training import experiment, loop
from resnet_jax.weights import convert
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.files import formats, orbax_folder
from tiny import tiny_config

FIELDS = {"stage_sizes": (1,), "stage_features": (8,), "stem_features": 8}
MODEL = resnet_jax.create_model("cifar_resnet20", **FIELDS)
# The first convolution, the last norm's scale, the head, a statistic: where a damaged value stands -> what can be.
PLACES = ("conv1.weight", "layer1.0.bn2.weight", "fc.bias", "layer1.0.bn1.running_var")
CASES = [*((name, value) for name in PLACES for value in (np.nan, np.inf, -np.inf)), (PLACES[-1], -0.5)]
WHAT = {"nan": "1 NaN", "inf": "1 inf", "-inf": "1 -inf", "-0.5": "1 below 0"}
SIZES = (32, 64, 224)
every_damage = pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}-{value}" for name, value in CASES])


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """The shapes of a net do not change, and tracing it is most of what a conversion of one block costs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_paths", functools.cache(convert._paths))
        yield


@functools.cache
def variables():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    return drawn(jax.eval_shape(functools.partial(MODEL.init, train=False), jax.random.key(0), images))


@functools.cache
def damaged(name, value):
    """PyTorch's tensors of the net with one value that is wrong."""
    tensors = resnet_jax.to_torch(MODEL, variables())
    tensors[name].flat[tensors[name].size // 2] = value
    return tensors


def damaged_variables(name, value):
    return resnet_jax.from_torch(MODEL, damaged(name, value), allow_nonfinite=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Gives the folder of `save_pretrained` that holds a damaged net."""
    top = tmp_path_factory.mktemp("folders")

    @functools.cache
    def of(name, value):
        path = top / f"{name}{value}"
        resnet_jax.save_pretrained(
            MODEL, damaged_variables(name, value), path, preprocessing=prepared(32), allow_nonfinite=True
        )
        return str(path)

    return of


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 40, 3), dtype=np.uint8)).save(path)
    return str(path)


def prepared(size):
    return Preprocessing(size, size, "bilinear", (0.5,) * 3, (0.25,) * 3)


@functools.cache
def images(size):
    """Two of them, as a data set."""
    return datasets.open_dataset("synthetic", "test", image_size=size, num_examples=2)


def refuses(function, *arguments, **options):
    """The message that it ends with."""
    with pytest.raises(ConversionError) as error:
        function(*arguments, **options)
    return str(error.value)


def check(message, name, value, way_out):
    size = damaged(name, value)[name].size
    assert f"  {name}: 1 of {size:,} float32 values: {WHAT[str(value)]}" in message
    assert "older checkpoint" in message
    assert way_out in message


# From Python --------------------------------------------------------------------------------------------


@every_damage
def test_conversion_both_ways_loading_saving_and_folding(name, value, folder, tmp_path):
    way_out = "allow_nonfinite=True lets them pass"
    check(refuses(resnet_jax.from_torch, MODEL, damaged(name, value)), name, value, way_out)
    check(refuses(resnet_jax.to_torch, MODEL, damaged_variables(name, value)), name, value, way_out)
    check(refuses(resnet_jax.load_pretrained, folder(name, value)), name, value, way_out)
    saved = refuses(resnet_jax.save_pretrained, MODEL, damaged_variables(name, value), tmp_path / "net")
    check(saved, name, value, way_out)
    assert not (tmp_path / "net").exists()
    check(refuses(resnet_jax.fold_batch_norm, MODEL, damaged_variables(name, value)), name, value, "")


@every_damage
def test_what_is_allowed_passes_bit_for_bit(name, value, folder):
    loaded = resnet_jax.load_pretrained(folder(name, value), allow_nonfinite=True)[1]
    for found in (damaged_variables(name, value), jax.tree.map(np.asarray, loaded)):
        again = resnet_jax.to_torch(MODEL, found, allow_nonfinite=True)
        assert {key: x.tobytes() for key, x in again.items()} == {
            key: x.tobytes() for key, x in damaged(name, value).items()
        }


@pytest.mark.parametrize("size", SIZES)
@every_damage
def test_inference_refuses_before_it_reads_an_image(name, value, size):
    arguments = (MODEL, damaged_variables(name, value))
    predicted = refuses(inference.predict, *arguments, ["/no/such.png"], prepared(size))
    evaluated = refuses(inference.evaluate, *arguments, images(size), prepared(size))
    for message in (predicted, evaluated):
        check(message, name, value, "allow_nonfinite=True lets them pass")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [np.nan, np.inf, "too large"])
def test_logits_that_are_not_finite_are_no_probabilities_even_of_weights_that_are_allowed(size, value):
    broken = variables() | {"params": variables()["params"] | {"fc": dict(variables()["params"]["fc"])}}
    if value == "too large":  # the weights are finite, what is computed from them is not
        broken["params"]["fc"]["kernel"] = np.full_like(broken["params"]["fc"]["kernel"], 3e38)
    else:
        broken["params"]["fc"]["bias"] = np.full_like(broken["params"]["fc"]["bias"], value)
    options = {"batch_size": 2, "allow_nonfinite": value != "too large"}
    noise = [images(size).source[i]["image"] for i in range(2)]
    with pytest.raises(ValueError, match="the logits of 2 of 2 images are not finite"):
        inference.predict(MODEL, broken, noise, prepared(size), **options)
    with pytest.raises(ValueError, match="the logits of 2 of 2 images are not finite"):
        inference.evaluate(MODEL, broken, images(size), prepared(size), **options)


def test_what_the_dtype_cannot_hold_is_infinite_and_what_is_not_taken_does_not_matter(tmp_path):
    wide = {name: x.astype(np.float64) if x.ndim else x for name, x in resnet_jax.to_torch(MODEL, variables()).items()}
    wide["fc.bias"][3] = 1e300
    resnet_jax.from_torch(MODEL, wide)
    formats.save_state_dict(tmp_path / "model.safetensors", wide)
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert "fc.bias: 1 of 10 float32 values: 1 inf" in refuses(resnet_jax.from_torch, MODEL, wide, dtype=np.float32)
    resnet_jax.save_pretrained(MODEL, resnet_jax.from_torch(MODEL, wide), tmp_path / "net")
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert "fc.bias: 1 of 10 float32 values: 1 inf" in refuses(resnet_jax.load_pretrained, tmp_path / "net")
    resnet_jax.load_pretrained(tmp_path / "net", num_classes=3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_are_looked_at_too(dtype):
    tensors = {name: x.astype(dtype) if x.ndim else x for name, x in damaged("conv1.weight", np.nan).items()}
    assert f"conv1.weight: 1 of 216 {dtype} values: 1 NaN" in refuses(resnet_jax.from_torch, MODEL, tensors)


# From the command line ----------------------------------------------------------------------------------


def said(capsys, code, *arguments):
    """What a verb says to the terminal, which shows no percentage and no class."""
    assert cli.main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "%" not in out
    assert "class" not in out.replace("num_classes", "")
    return out, err


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Gives a workdir of `train.py` whose newest checkpoint is damaged."""
    top = tmp_path_factory.mktemp("workdirs")

    @functools.cache
    def of(name, value):
        path = top / f"{name}{value}"
        orbax_folder.save_variables(str(path / "checkpoints" / "5" / "variables"), damaged_variables(name, value))
        model = {"name": "cifar_resnet20", "num_classes": 10, "kwargs": FIELDS}
        data = {"name": "synthetic", "path": "", "data_dir": "", "num_examples": 2, "image_size": 32}
        data |= {"eval_resize": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
        (path / "config.json").write_text(json.dumps({"model": model, "data": data}))
        return str(path)

    return of


@every_damage
def test_predict_and_evaluate(name, value, folder, workdir, photo, capsys):
    sources = [(folder, size) for size in SIZES] + [(workdir, SIZES[CASES.index((name, value)) % 3])]
    for source, size in ((of(name, value), size) for of, size in sources):
        options = (f"--model={source}", f"--image-size={size}", f"--resize-size={size}")
        for verb in (("predict", photo), ("evaluate", "--data=synthetic")):
            out, err = said(capsys, 2, *verb, *options)
            assert not out
            assert f"resnet-jax: {source} holds values that no trained network has" in err
            check(err, name, value, "--allow-nonfinite lets them pass")


def test_what_the_verbs_are_told_to_take_they_name_and_still_show_no_probability(folder, photo, capsys):
    source = folder("fc.bias", np.nan)
    for verb in (("predict", photo), ("evaluate", "--data=synthetic")):
        _, err = said(capsys, 2, *verb, f"--model={source}", "--allow-nonfinite")
        check(err + "older checkpoint", "fc.bias", np.nan, f"{source} holds values")
        assert "images are not finite" in err


@every_damage
def test_convert_names_them_and_goes_on_only_if_told_to(name, value, workdir, tmp_path, capsys):
    source, target = (
        workdir(name, value),
        tmp_path / ("orbax", "x.pth", "x.safetensors")[CASES.index((name, value)) % 3],
    )
    _, err = said(capsys, 2, "convert", source, f"--out={target}")
    check(err, name, value, "--allow-nonfinite lets them pass")
    assert not target.exists()
    told, err = said(capsys, 0, "convert", source, f"--out={target}", "--allow-nonfinite")
    check(err + "older checkpoint", name, value, f"{source} holds values")
    assert "bit-equal" in told


def test_convert_of_a_file_and_of_an_exported_folder(tmp_path, capsys):
    model = resnet_jax.cifar_resnet20()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
    found = drawn(shapes)
    found["params"]["layer3"]["2"]["bn2"]["scale"][5] = np.inf
    formats.save_state_dict(tmp_path / "x.pth", resnet_jax.to_torch(model, found, allow_nonfinite=True))
    orbax_folder.save_variables(str(tmp_path / "orbax"), found)
    for source, options in (("x.pth", []), ("orbax", ["--model=cifar_resnet20"])):
        arguments = ["convert", tmp_path / source, *options, f"--out={tmp_path}/y.safetensors"]
        assert cli.main([str(argument) for argument in arguments]) == 2
        assert "layer3.2.bn2.weight: 1 of 64 float32 values: 1 inf" in capsys.readouterr().err
    assert not (tmp_path / "y.safetensors").exists()


# The start of a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    return experiment.build(tiny_config(**{f"model.kwargs.{field}": value for field, value in FIELDS.items()}))


@every_damage
def test_a_run_does_not_start_from_them(name, value, run, folder, workdir):
    run.config.init_from = (folder, workdir)[CASES.index((name, value)) % 2](name, value)
    message = refuses(run.create_state)
    check(message, name, value, "--config.init_anew=PART starts a part")
    assert message.startswith(f"config.init_from={run.config.init_from} holds")


def test_the_part_that_is_damaged_can_start_anew_and_the_workdir_is_not_bound(folder, tmp_path):
    keys = {"init_from": folder("fc.bias", np.nan)} | {f"model.kwargs.{key}": value for key, value in FIELDS.items()}
    with pytest.raises(ConversionError, match=r"fc\.bias"):
        loop.train(tiny_config(**keys), str(tmp_path / "run"))
    assert not workdirs.is_bound(str(tmp_path / "run"))
    with pytest.raises(ConversionError, match=r"fc\.bias"):
        loop.evaluate(tiny_config(**keys), "")
    started = experiment.build(tiny_config(**keys, init_anew=("fc",))).load_initial()
    assert np.isfinite(started["params"]["fc"]["bias"]).all()
