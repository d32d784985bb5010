"""One source is one network with the same tensors, names and preprocessing, whichever door it comes in by."""

import contextlib
import json
import logging
import re
import shutil

import jax
import numpy as np
import pytest

import resnet_jax
from loopback import Server, use_as_hub
from resnet_jax import cli
from resnet_jax.cli import command, net
from resnet_jax.cli import verify as verb
from resnet_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_jax.training import initial
from resnet_jax.weights import convert, recognise, resolve, sources
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.files import formats, orbax_folder
from resnet_jax.weights.published import transformers_config

NAMES = ("ant", "bee", "cat", "dog")
PREPARED = Preprocessing(24, 28, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
CIFAR = resnet_jax.cifar_resnet20(num_classes=4)
# As transformers has it: two stages of one basic block, the first of which halves its maps.
STATED = {
    "model_type": "resnet", "layer_type": "basic", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8,
    "hidden_act": "relu", "downsample_in_first_stage": True, "downsample_in_bottleneck": False, "num_channels": 3,
    "id2label": {"0": "ant", "1": "bee", "2": "cat", "3": "dog"}, "transformers_version": "5.0.0",
}  # fmt: skip
PROCESSOR = {
    "image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "resample": 3,
    "crop_size": {"height": 24, "width": 24}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6],
}  # fmt: skip
TAG = "test_resnet.r160_in1k"
OF_THE_TAG = resnet_jax.create_model("test_resnet")
OF_TRANSFORMERS = resnet_jax.resnet18(
    stage_sizes=(1, 1), stage_features=(8, 16), stem_features=8, first_stage_stride=2, num_classes=4
)


def random_variables(model, seed=0):
    shapes = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x, train=False), np.zeros((1, 64, 64, 3), np.float32)
    )
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.05, 0.15, leaf.shape).astype(leaf.dtype), shapes)


def in_names_of_transformers(tensors):
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in (
            ("conv1.", "resnet.embedder.embedder.convolution."), ("bn1.", "resnet.embedder.embedder.normalization."),
            ("layer1.0.", "resnet.encoder.stages.0.layers.0."), ("layer2.0.", "resnet.encoder.stages.1.layers.0."),
            ("fc.", "classifier.1."),
        ):  # fmt: skip
            if name.startswith(ours):
                rest = name.removeprefix(ours)
                for i in (1, 2, 3):
                    rest = rest.replace(f"conv{i}.", f"layer.{i - 1}.convolution.")
                    rest = rest.replace(f"bn{i}.", f"layer.{i - 1}.normalization.")
                rest = rest.replace("downsample.0.", "shortcut.convolution.")
                renamed[theirs + rest.replace("downsample.1.", "shortcut.normalization.")] = tensor
    assert len(renamed) == len(tensors)
    return renamed


def in_shards(folder):
    """Divides a folder's file of weights in two, as Hugging Face's tools do."""
    tensors = formats.load_state_dict(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for place in set(places.values()):
        formats.save_state_dict(folder / place, {name: x for name, x in tensors.items() if places[name] == place})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def make_run(folder, **ema):
    variables = random_variables(CIFAR, seed=1)
    orbax_folder.save_variables(str(folder / "checkpoints" / "5" / "variables"), variables)
    if ema:
        orbax_folder.save_variables(str(folder / "checkpoints" / "5" / "ema"), random_variables(CIFAR))
    data = {"image_size": 20, "eval_size": 24, "eval_resize": 28, "eval_interpolation": "bicubic"}
    config = {
        "model": {"name": "cifar_resnet20", "num_classes": 4, "kwargs": {"norm": None}},
        "data": {"name": "folder", "path": "/gone", "mean": PREPARED.mean, "std": PREPARED.std, **data},
        "ema": ema,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "classes.json").write_text(json.dumps(NAMES))


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    use_as_hub(server, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory, server):
    """Kind of source -> its text, the network, its names and preprocessing (None: not stated)."""
    top = tmp_path_factory.mktemp("sources")
    tensors = resnet_jax.to_torch(CIFAR, random_variables(CIFAR))
    formats.save_state_dict(top / "plain.pth", tensors)
    formats.save_state_dict(top / "plain.safetensors", {f"module.{name}": x for name, x in tensors.items()})
    variables = random_variables(CIFAR)
    resnet_jax.save_pretrained(CIFAR, variables, top / "timm", preprocessing=PREPARED, label_names=NAMES)
    make_run(top / "run", decay=0.9)
    for suffix in ("safetensors", "pth"):
        assert cli.main(["convert", str(top / "run"), f"--out={top}/exported.{suffix}"]) == 0
    assert cli.main(["convert", str(top / "run"), f"--out={top}/as_timm", "--format=timm"]) == 0
    assert cli.main(["convert", str(top / "plain.pth"), f"--out={top}/orbax"]) == 0
    (top / "hugging").mkdir()
    theirs = resnet_jax.to_torch(OF_TRANSFORMERS, random_variables(OF_TRANSFORMERS))
    formats.save_state_dict(top / "hugging" / "model.safetensors", in_names_of_transformers(theirs))
    (top / "hugging" / "config.json").write_text(json.dumps(STATED))
    (top / "hugging" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    assert cli.main(["convert", str(top / "hugging"), f"--out={top}/as_transformers", "--format=transformers"]) == 0
    shutil.copytree(top / "timm", top / "sharded")
    in_shards(top / "sharded")
    of_the_tag = resnet_jax.to_torch(OF_THE_TAG, random_variables(OF_THE_TAG))
    formats.save_state_dict(top / "tag" / "model.safetensors", of_the_tag)
    for repo, folder in {f"timm/{TAG}": "tag", "somebody/net": "timm", "somebody/sharded": "sharded"}.items():
        server.repos[repo] = {file.name: file.read_bytes() for file in (top / folder).iterdir()}
    server.files["net.pth"] = (top / "plain.pth").read_bytes()
    server.files["exported.safetensors"] = (top / "exported.safetensors").read_bytes()
    server.repos["somebody/exported"] = {"model.safetensors": server.files["exported.safetensors"]}
    stated = (CIFAR, NAMES, PREPARED)
    return {
        "tag": (TAG, OF_THE_TAG, resnet_jax.class_names(TAG), resnet_jax.preprocessing(TAG)),
        "repository": ("hf-hub:somebody/net", *stated),
        "repository of shards": ("hf-hub:somebody/sharded", *stated),
        "repository without a configuration": ("hf-hub:somebody/exported", *stated),
        "URL": (f"{server.url}/net.pth", CIFAR, None, None),
        "URL of an export": (f"{server.url}/exported.safetensors", *stated),
        "shards": (top / "sharded", *stated),
        "folder for transformers": (top / "as_transformers", OF_TRANSFORMERS, NAMES, PREPARED),
        "file of PyTorch's": (top / "plain.pth", CIFAR, None, None),
        "file of safetensors": (top / "plain.safetensors", CIFAR, None, None),
        "folder of timm's": (top / "timm", *stated),
        "folder of transformers'": (top / "hugging", OF_TRANSFORMERS, NAMES, PREPARED),
        "run": (top / "run", *stated),
        "checkpoint of a run": (top / "run" / "checkpoints" / "5", *stated),
        "exported variables": (top / "orbax", CIFAR, None, None),
        "exported safetensors": (top / "exported.safetensors", *stated),
        "exported .pth": (top / "exported.pth", *stated),
        "exported folder": (top / "as_timm", *stated),
    }


KINDS = [
    *("tag", "repository", "repository of shards", "repository without a configuration", "URL", "URL of an export"),
    *("shards", "folder for transformers"),
    *("file of PyTorch's", "file of safetensors", "folder of timm's", "folder of transformers'", "run"),
    *("checkpoint of a run", "exported variables", "exported safetensors", "exported .pth", "exported folder"),
]


def stated_by(function, source):
    try:
        return function(source)
    except sources.NotStated:
        return None


def by_load(source, model, tmp_path):
    found, variables = resnet_jax.load_pretrained(source)
    return found, variables, stated_by(resnet_jax.class_names, source), stated_by(resnet_jax.preprocessing, source)


def by_convert(source, model, tmp_path):
    assert cli.main(["convert", str(source), f"--out={tmp_path}/x.safetensors"]) == 0
    return by_load(tmp_path / "x.safetensors", model, tmp_path)


def of_command(*words):
    found = net.load(command._parser().parse_args([*map(str, words)]))
    return found.model, found.variables, found.class_names, found.preprocessing


def by_predict(source, model, tmp_path):
    return of_command("predict", "image.png", "--model", source)


def by_evaluate(source, model, tmp_path):
    return of_command("evaluate", "--model", source)


def by_verify(source, model, tmp_path):
    arguments = command._parser().parse_args(["verify", str(source)])
    if model is OF_TRANSFORMERS:
        with pytest.raises(ValueError, match="with .*'stage_sizes': .*of which PyTorch has no reference here"):
            verb._subject(arguments)
        return None
    name, _, tensors, fields = verb._subject(arguments)
    found = resnet_jax.create_model(name, **fields)
    return found, convert.from_native(found, tensors), None, None


def by_init_from(source, model, tmp_path):
    return model, initial.load(str(source), model, channels=3), None, None


DOORS = [by_load, by_convert, by_predict, by_evaluate, by_verify, by_init_from]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__.removeprefix("by_"))
@pytest.mark.parametrize("kind", KINDS)
def test_a_source_is_the_same_by_every_door(made, hub, kind, door, tmp_path):
    source, model, names, prepared = made[kind]
    found = door(source, model, tmp_path)
    if found is None:
        return
    network, variables, their_names, their_preprocessing = found
    assert network.clone(train=None) == model
    wanted = random_variables(model)
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(wanted)))
    if door in (by_load, by_convert, by_predict, by_evaluate):
        assert their_names == names or tuple(their_names) == names
    if door in (by_load, by_convert):
        assert their_preprocessing == prepared
    if door in (by_predict, by_evaluate):
        assert their_preprocessing == (prepared or Preprocessing(32, 32, "bilinear", IMAGENET_MEAN, IMAGENET_STD))


def test_what_a_run_averaged_is_what_is_taken_and_the_other_can_be(made):
    source = made["run"][0]
    _, variables = resnet_jax.load_pretrained(source, ema=False)
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(random_variables(CIFAR, seed=1))))


def test_a_folder_that_holds_an_export_alone_is_what_the_export_says(made, tmp_path):
    shutil.copy(made["exported safetensors"][0], tmp_path / "model.safetensors")
    assert resnet_jax.class_names(tmp_path) == NAMES
    assert resnet_jax.preprocessing(tmp_path) == PREPARED
    assert sources.locate(tmp_path).name == "cifar_resnet20"


def test_a_dictionary_is_what_the_file_of_it_is(made):
    tensors = formats.load_state_dict(made["file of safetensors"][0])
    assert all(name.startswith("module.") for name in tensors)
    name, fields = resnet_jax.identify(tensors)
    model = resnet_jax.create_model(name, **fields)
    assert model == CIFAR
    for given in (tensors, convert.to_torch(CIFAR, random_variables(CIFAR))):
        taken = resnet_jax.from_torch(model, given)
        assert all(map(np.array_equal, jax.tree.leaves(taken), jax.tree.leaves(random_variables(CIFAR))))


# What is written for transformers ------------------------------------------------------------------------


def test_a_folder_for_transformers_is_as_transformers_writes_it(made):
    folder = made["folder for transformers"][0]
    theirs = in_names_of_transformers(resnet_jax.to_torch(OF_TRANSFORMERS, random_variables(OF_TRANSFORMERS)))
    written = formats.load_state_dict(folder / "model.safetensors")
    assert written.keys() == theirs.keys()
    assert all(np.array_equal(written[name], theirs[name]) for name in theirs)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("architectures") == ["ResNetForImageClassification"]
    assert config.pop("label2id") == {"ant": 0, "bee": 1, "cat": 2, "dog": 3}
    assert config == {key: value for key, value in STATED.items() if key != "transformers_version"}
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert PROCESSOR.items() <= processor.items()


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (resnet_jax.create_model("resnet50d", num_classes=3), "stem='deep'.*shortcut='avg'"),
        (resnet_jax.create_model("seresnet50", num_classes=3), "attn='se'"),
        (resnet_jax.create_model("resnext50_32x4d", num_classes=3), "groups=32"),
        (resnet_jax.resnet50(output_stride=8, num_classes=3), "output_stride=8"),
        (resnet_jax.resnet50(act="silu", num_classes=3), "act='silu'"),
        (resnet_jax.cifar_resnet20(num_classes=3), "stem='cifar'"),
    ],
    ids=lambda value: "",
)
def test_what_transformers_does_not_have_is_not_written_for_it(network, named, tmp_path):
    variables = {"params": {}, "batch_stats": {}}
    with pytest.raises(ValueError, match=f"transformers has no ResNet with .*{named}"):
        transformers_config.describe(network, 3)
    with pytest.raises(ValueError, match="format='flax' must be"):
        resnet_jax.save_pretrained(network, variables, tmp_path / "x", format="flax")


def test_without_a_head_it_is_a_folder_of_the_backbone(tmp_path):
    model = OF_TRANSFORMERS.clone(num_classes=0)
    resnet_jax.save_pretrained(model, random_variables(model), tmp_path / "x", format="transformers")
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["architectures"] == ["ResNetModel"]
    assert "id2label" not in config
    assert "embedder.embedder.convolution.weight" in formats.load_state_dict(tmp_path / "x" / "model.safetensors")
    found, variables = resnet_jax.load_pretrained(tmp_path / "x")
    assert found == model
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(random_variables(model))))


# What is stated is honoured or refused -------------------------------------------------------------------


def written(tmp_path, config, processor=None):
    theirs = resnet_jax.to_torch(OF_TRANSFORMERS, random_variables(OF_TRANSFORMERS))
    formats.save_state_dict(tmp_path / "model.safetensors", in_names_of_transformers(theirs))
    (tmp_path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act='silu' must be 'relu': with another, transformers mixes the two"),
        ({"layer_type": "preact"}, "layer_type='preact' must be one of"),
        ({"depths": [1, "1"]}, "depths=.* must be the blocks of each stage, 1 to 1000"),
        ({"depths": [1]}, "hidden_sizes=.* as many as depths"),
        ({"hidden_sizes": [8, 16.5]}, "hidden_sizes=.* must be whole numbers"),
        ({"embedding_size": True}, "embedding_size=True must be a whole number"),
        ({"downsample_in_first_stage": "no"}, "must be true or false"),
        ({"width_multiplier": 2}, r"has \['width_multiplier'\], which are no fields"),
        ({"id2label": {"0": "ant", "2": "bee"}}, "id2label must give a name to each number"),
        ({"id2label": ["ant"]}, "id2label must give a name to each number"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_config_of_transformers_that_cannot_be_kept_to_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        resnet_jax.load_pretrained(written(tmp_path, STATED | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "of type 'ViTImageProcessor', which is not supported"),
        ({"do_normalize": False}, "without do_normalize"),
        ({"crop_size": {"height": 24, "width": 32}}, "is not one number of pixels"),
        ({"resample": 4}, 'interpolation="Pillow\'s 4", and only'),
        ({"rescale_factor": 1.0}, "only 1/255 is supported"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean=.* must be a list of numbers"),
    ],
)
def test_a_stated_preprocessing_that_is_not_supported_is_refused_and_not_replaced(tmp_path, change, message):
    folder = written(tmp_path, STATED, PROCESSOR | change)
    with pytest.raises(ValueError, match=message):
        resnet_jax.preprocessing(folder)
    with pytest.raises(ValueError, match=f"(?s){message}.*Say how images are to be prepared, with all of --image-size"):
        of_command("predict", "image.png", "--model", folder)
    given = [
        "--image-size=24",
        "--resize-size=28",
        "--interpolation=bicubic",
        "--mean=0.1,0.2,0.3",
        "--std=0.4,0.5,0.6",
    ]
    assert of_command("predict", "image.png", "--model", folder, *given)[3] == PREPARED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_mode": "squash"}, "crop_mode='squash', and only 'center' is supported"),
        ({"input_size": [3, 24, 32]}, "not \\(channels, size, size\\)"),
        ({"interpolation": "lanczos"}, "interpolation='lanczos', and only"),
        ({"crop_pct": None}, "crop_pct=None, which is no share"),
        ({"crop_pct": float("nan")}, "crop_pct=nan, which is no share"),
        ({"std": None}, "but not std"),
    ],
)
def test_so_is_one_of_timms(tmp_path, change, message):
    resnet_jax.save_pretrained(CIFAR, random_variables(CIFAR), tmp_path / "x", preprocessing=PREPARED)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    config["pretrained_cfg"] |= change
    (tmp_path / "x" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        resnet_jax.preprocessing(tmp_path / "x")
    with pytest.raises(ValueError, match=message):
        of_command("predict", "image.png", "--model", tmp_path / "x")


def test_null_model_args_of_a_wrapper_are_none(tmp_path):
    resnet_jax.save_pretrained(CIFAR, random_variables(CIFAR), tmp_path / "x", preprocessing=PREPARED)
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    del config["resnet_jax"]
    (tmp_path / "x" / "config.json").write_text(
        json.dumps(config | {"architecture": "resnet18", "model_args": None, "num_classes": 4})
    )
    assert sources.locate(tmp_path / "x").name == "resnet18"


@pytest.mark.parametrize("source", ["local-dir:", "LOCAL-DIR:", ""])
def test_a_source_of_nothing_is_refused(source):
    with pytest.raises(ValueError, match="names no source"):
        resnet_jax.load_pretrained(source)


# What tensors do not tell --------------------------------------------------------------------------------


def blur_file(tmp_path):
    model = resnet_jax.create_model("resnetblur18", num_classes=4)
    tensors = resnet_jax.to_torch(model, random_variables(model))
    filters = {"layer2.0.aa.filt": np.ones((128, 1, 3, 3), np.float32)}
    formats.save_state_dict(tmp_path / "blur.pth", tensors | filters)
    return tmp_path / "blur.pth"


def test_the_filters_of_a_blur_net_are_evidence_at_the_command_line_too(tmp_path, capsys):
    file = blur_file(tmp_path)
    assert cli.main(["convert", str(file), f"--out={tmp_path}/out.safetensors"]) == 0
    assert f"{file}: resnetblur18, num_classes=4" in capsys.readouterr().out
    assert cli.main(["convert", str(file), "--model=resnet18", f"--out={tmp_path}/plain.safetensors"]) == 2
    assert "has the filters of blur-pools, and the network anti_alias=None" in capsys.readouterr().err
    model = resnet_jax.resnet18(num_classes=4)
    with pytest.raises(ConversionError, match="has the filters of blur-pools"):
        initial.load(str(file), model, channels=3)


@pytest.mark.parametrize("decided", [{}, {"first_stage_stride": 2}, {"stride_in_1x1": True}], ids=["", "stage", "1x1"])
def test_one_line_names_both_and_a_field_decides(tmp_path, caplog, decided):
    fields = {"stage_sizes": (1, 1), "stage_features": (8, 16), "stem_features": 8}
    model = resnet_jax.resnet50(**fields, num_classes=4)
    tensors = resnet_jax.to_torch(model, random_variables(model))
    formats.save_state_dict(tmp_path / "x.safetensors", in_names_of_transformers(tensors))
    with caplog.at_level(logging.WARNING):
        found, _ = resolve.resolve(tmp_path / "x.safetensors", name="resnet50", fields=fields | decided).network()
    assert found == model.clone(**decided)
    assert ("do not tell what its config.json does" in caplog.text) == (decided == {})


def test_a_basic_net_tells_that_its_first_stage_halves():
    model = resnet_jax.resnet18(first_stage_stride=2, num_classes=4)
    shapes = {name: np.broadcast_to(np.float32(0), shape) for name, shape in convert.torch_shapes(model).items()}
    assert recognise.identify(shapes) == ("resnet18", {"num_classes": 4, "first_stage_stride": 2})


def test_what_is_stated_is_not_overruled(made, tmp_path):
    source = made["folder of transformers'"][0]
    with pytest.raises(ValueError, match="states that its network is resnet18, and not resnet50"):
        resolve.resolve(source, name="resnet50")
    with pytest.raises(ValueError, match="states first_stage_stride=2, and not 1"):
        resolve.resolve(source, fields={"first_stage_stride": 1})
    with pytest.raises(ConversionError, match="states a network of act='relu', and this one has act='silu'"):
        initial.load(str(source), OF_TRANSFORMERS.clone(act="silu"), channels=3)


def test_the_number_of_classes_is_kept_to_or_refused(made, tmp_path, capsys):
    source = str(made["file of PyTorch's"][0])
    assert cli.main(["convert", source, "--num-classes=10", f"--out={tmp_path}/a.pth"]) == 2
    assert f"--num-classes=10, but {source} has a head of 4" in capsys.readouterr().err
    assert cli.main(["convert", source, "--num-classes=0", f"--out={tmp_path}/b.pth"]) == 0
    assert "its head of 4 classes is left out" in capsys.readouterr().err
    assert not [name for name in formats.load_state_dict(tmp_path / "b.pth") if name.startswith("fc")]
    assert cli.main(["convert", source, "--num-classes=4", f"--out={tmp_path}/c.pth"]) == 0


@pytest.mark.parametrize("out", ["x.npz", "x.msgpack", "x.safetensor", "x.ckpt", "x.pth2"])
def test_an_unknown_suffix_is_refused(made, tmp_path, out, capsys):
    assert cli.main(["convert", str(made["file of PyTorch's"][0]), f"--out={tmp_path}/{out}"]) == 2
    assert "weights are written as .safetensors, .pth" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_thirteen_bands_three_are_said(tmp_path):
    tensors = resnet_jax.to_torch(CIFAR, random_variables(CIFAR))
    bands = np.random.default_rng(0).standard_normal((16, 13, 3, 3)).astype(np.float32)
    formats.save_state_dict(tmp_path / "x.pth", tensors | {"conv1.weight": bands})
    with pytest.raises(ValueError, match="of images with 13 channels, and these have 3: say which"):
        resnet_jax.load_pretrained(tmp_path / "x.pth", in_chans=3)
    with pytest.raises(ValueError, match="of images with 13 channels, and these have 1: say which"):
        resnet_jax.load_pretrained(tmp_path / "x.pth", in_chans=1)
    _, variables = resnet_jax.load_pretrained(tmp_path / "x.pth", in_chans=3, channels=(3, 2, 1))
    np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], bands[:, [3, 2, 1]].transpose(2, 3, 1, 0))
    _, same = resnet_jax.load_pretrained(tmp_path / "x.pth", channels=(3, 2, 1))
    np.testing.assert_array_equal(same["params"]["conv1"]["kernel"], variables["params"]["conv1"]["kernel"])
    with pytest.raises(ValueError, match="must be 3 of 0..12"):
        resnet_jax.load_pretrained(tmp_path / "x.pth", in_chans=3, channels=(3, 2, 13))


def test_a_head_of_several_layers_is_dropped_if_that_is_said(tmp_path, capsys):
    tensors = resnet_jax.to_torch(CIFAR, random_variables(CIFAR))
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    layers = {"fc.0.weight": np.ones((5, 64), np.float32), "fc.2.weight": np.ones((4, 5), np.float32)}
    formats.save_state_dict(tmp_path / "x.pth", body | layers)
    arguments = ["convert", str(tmp_path / "x.pth"), "--model=cifar_resnet20", f"--out={tmp_path}/y.pth"]
    assert cli.main(arguments) == 2
    assert "The head has several layers, and here it has one: drop='fc' (--drop fc) leaves it out." in (
        capsys.readouterr().err
    )
    assert cli.main([*arguments, "--drop=fc"]) == 0
    assert formats.load_state_dict(tmp_path / "y.pth").keys() == body.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("weights.pth", "got the path 'weights.pth': give load_state_dict"),
        (
            {"state_dict": {"conv1.weight": np.zeros(3)}, "epoch": 3},
            "under 'state_dict' stands a dict: give what stands",
        ),
        (CIFAR, "got a ResNet: give a state_dict"),
    ],
)
def test_from_torch_says_what_to_give(given, message):
    with pytest.raises(ConversionError, match=message):
        resnet_jax.from_torch(CIFAR, given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet18", "--prefix=x"], "a network with random weights does not take prefix"),
        (["--against=proofs/x.safetensors", "--set=act=silu"], "--against does not take set"),
        (["{file}", "--record={dir}/p.safetensors", "--drop=fc"], "--record does not take drop"),
        (["{run}", "--record={dir}/p.safetensors"], "--record refers to a file of weights, and .* is none"),
        (["resnet18", "{blur}"], "has the filters of blur-pools"),
    ],
)
def test_verify_refuses_what_it_would_not_look_at(made, tmp_path, capsys, arguments, message):
    pytest.importorskip("torchvision")
    places = {"file": made["file of PyTorch's"][0], "run": made["run"][0], "dir": tmp_path, "blur": blur_file(tmp_path)}
    assert cli.main(["verify", *(argument.format(**places) for argument in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_orbax_folder_has_no_place_for_names_and_that_is_said(made, tmp_path, capsys):
    assert cli.main(["convert", str(made["run"][0]), f"--out={tmp_path}/out"]) == 0
    assert (
        "has no place for class names and preprocessing: --format=timm or transformers has" in capsys.readouterr().err
    )
