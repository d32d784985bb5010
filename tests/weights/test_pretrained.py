"""From any source to a model and its variables, and from those to a folder that timm and torchvision take."""

import contextlib
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save as to_safetensors

import resnet_jax
from batches import NUMBERS, make_batch
from loopback import COMMIT, Server, use_as_hub
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.step.step import create_train_state, train_step
from resnet_jax.weights import convert, pretrained, sources
from resnet_jax.weights.files import formats, replacing
from resnet_jax.weights.published import download

TAG = "test_resnet.r160_in1k"
IMAGES = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
PREPARED = Preprocessing(64, 73, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@functools.cache
def random_net(name, **kwargs):
    """A network and variables of which no two are alike, as PyTorch's tensors too."""
    model = resnet_jax.create_model(name, **kwargs)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, train=False))
    rng = np.random.default_rng(0)
    # Kernels around zero, so that signals stay of the order of one; scales and variances positive.
    draw = lambda leaf: rng.uniform(0.05, 0.15, leaf.shape) - (0.1 if leaf.ndim > 1 else 0)  # noqa: E731 - a line, used in the next one
    variables = jax.tree.map(lambda leaf: draw(leaf).astype(leaf.dtype), shapes)
    return model, variables, resnet_jax.to_torch(model, variables)


def same(left, right):
    """Equal to the bit, dtypes included."""
    return jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, left, right))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Holds two of timm's tags and somebody's repository; the client's cache is empty and its hub is this server."""
    server = Server()
    weights = to_safetensors(random_net("test_resnet")[2])
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"num_classes": 1000}}
    server.repos |= {
        f"timm/{TAG}": {"model.safetensors": weights},
        "somebody/net": {"model.safetensors": weights, "config.json": json.dumps(config).encode()},
        "somebody/bare": {"model.safetensors": weights},
        "somebody/empty": {"config.json": json.dumps(config).encode()},
    }
    use_as_hub(server, tmp_path, monkeypatch)
    sources._announce.cache_clear()
    yield server
    server.close()


# Every kind of source -----------------------------------------------------------------------------------


def test_a_tag_is_downloaded_after_its_licence_is_told(server, caplog, monkeypatch):
    told_before = []
    original = download.from_hub
    monkeypatch.setattr(
        download, "from_hub", lambda *args, **kwargs: told_before.append(caplog.text) or original(*args, **kwargs)
    )
    model, variables = resnet_jax.load_pretrained(TAG, train=False)
    assert "test_resnet.r160_in1k: licence apache-2.0" in told_before[0]
    assert model == resnet_jax.create_model("test_resnet", train=False)
    assert same(variables, random_net("test_resnet")[1])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))
    assert jax.eval_shape(model.apply, variables, IMAGES).shape == (2, 1000)
    asked = len(server.requests)
    caplog.clear()
    resnet_jax.load_pretrained(TAG)
    assert len(server.requests) == asked
    assert "apache" not in caplog.text  # told once


def test_terms_are_told_in_words(server, caplog):
    server.repos["timm/resnet50.fb_swsl_ig1b_ft_in1k"] = server.repos["timm/resnet50.bamboo"] = {}
    for tag, said in {
        "resnet50.fb_swsl_ig1b_ft_in1k": "NO COMMERCIAL USE",
        "resnet50.bamboo": "licence not stated",
    }.items():
        with pytest.raises(download.NoSuchFile):
            resnet_jax.load_pretrained(tag)
        assert said in caplog.text


@pytest.mark.parametrize(
    "source",
    ["hf-hub:somebody/net", "HF-HUB:somebody/net", f"hf_hub:somebody/net@{COMMIT}", f"hf-hub:timm/{TAG}"],
)
def test_a_repository(source, server):
    model, variables = resnet_jax.load_pretrained(source)
    assert model == resnet_jax.create_model("test_resnet")
    assert same(variables, random_net("test_resnet")[1])


@pytest.mark.parametrize("kind", ["file", "folder", "url", "repository"])
def test_weights_without_a_word_about_them_are_recognised(kind, server, tmp_path):
    path = tmp_path / "folder" / "model.safetensors"
    formats.save_state_dict(path, random_net("test_resnet", num_classes=7)[2])
    server.repos["somebody/bare"] = {"model.safetensors": path.read_bytes()}
    server.files["net.safetensors"] = path.read_bytes()
    source = {
        "file": path,
        "folder": path.parent,
        "url": f"{server.url}/net.safetensors",
        "repository": "hf-hub:somebody/bare",
    }[kind]
    model, variables = resnet_jax.load_pretrained(source)
    assert model == resnet_jax.create_model("test_resnet", num_classes=7)
    assert same(variables, random_net("test_resnet", num_classes=7)[1])


def test_the_file_alone_can_be_had(server):
    path = sources.locate(TAG).fetch()
    assert path.read_bytes() == server.repos[f"timm/{TAG}"]["model.safetensors"]


@pytest.mark.slow
def test_torchvisions_weights_come_from_their_mirror_and_resume(server):
    """46 MB of resnet18, with the connection dropped in the middle."""
    weights = to_safetensors(random_net("resnet18")[2])
    server.repos["timm/resnet18.tv_in1k"] = {"model.safetensors": weights}
    server.drop_after = 25_000_000
    _, variables = resnet_jax.load_pretrained("resnet18.IMAGENET1K_V1")
    assert server.bodies() == [None, f"bytes={20 << 20}-"]
    assert same(variables, random_net("resnet18")[1])


def test_a_tag_without_a_repository_comes_from_its_url(server, monkeypatch):
    asked = []
    monkeypatch.setattr(download, "from_url", lambda *args: asked.append(args) or "path")
    sources.locate("resnext101_32x48d.fb_wsl_ig1b_ft_in1k").fetch()
    assert asked == [("https://download.pytorch.org/models/ig_resnext101_32x48-3e41cc8a.pth", "3e41cc8a")]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("test_resnet", r"choose a tag:\n  test_resnet.r160_in1k .*41.60 % at 160 .*apache-2.0"),
        ("resnet18.a9_in1k", "did you mean resnet18.a"),
        ("{dir}/none.pth", "no such file or folder; give a tag"),
        ("none.safetensors", "no such file or folder; give a tag"),
        ("{dir}", "the folder has no file of weights"),
        ("hf-hub:somebody/empty", "the repository has none of model.safetensors"),
        ("hf-hub:somebody/none", "404: check the spelling"),
    ],
)
def test_a_source_that_is_none_is_refused_with_a_hint(source, said, server, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, download.DownloadError), match=said):
        resnet_jax.load_pretrained(source.format(dir=tmp_path / "empty" if source == "{dir}" else tmp_path))


def test_a_bad_override_is_refused_before_anything_is_downloaded(server):
    with pytest.raises(TypeError, match="did you mean output_stride"):
        resnet_jax.load_pretrained(TAG, output_strid=8)
    assert not server.requests


# Into another network -----------------------------------------------------------------------------------


def test_a_new_head_and_stem_come_from_the_key_and_are_logged(server, caplog):
    load = partial(resnet_jax.load_pretrained, TAG, num_classes=5, in_chans=1, key=jax.random.key(3))
    model, variables = load()
    assert "initialised     2  params.fc.bias, params.fc.kernel" in caplog.text
    assert "adapted         1  params.conv1.0.kernel" in caplog.text
    given = random_net("test_resnet")[1]
    np.testing.assert_allclose(
        variables["params"]["conv1"]["0"]["kernel"], given["params"]["conv1"]["0"]["kernel"].sum(2, keepdims=True), 1e-6
    )
    assert same(variables["params"]["layer4"], given["params"]["layer4"])
    grey = IMAGES[..., :1]
    assert jax.eval_shape(partial(model.apply, train=False), variables, grey).shape == (2, 5)
    assert same(load()[1], variables)
    other = load(key=jax.random.key(4))[1]
    assert not np.array_equal(other["params"]["fc"]["kernel"], variables["params"]["fc"]["kernel"])
    _, headless = resnet_jax.load_pretrained(TAG, num_classes=0)
    assert "fc" not in headless["params"]


def test_overrides_are_fields_and_their_dtypes_are_kept(server, caplog):
    model, variables = resnet_jax.load_pretrained(TAG, output_stride=8, train=False, param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables["params"])} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables["batch_stats"])} == {"float32"}
    features = jax.eval_shape(partial(model.apply, features=["layer4"]), variables, IMAGES)
    assert features["layer4"].shape[1:3] == (8, 8)
    assert "differs" not in caplog.text
    with pytest.raises(convert.ConversionError, match="fc.kernel"):
        resnet_jax.load_pretrained(TAG, global_pool="catavgmax")


def test_half_precision_on_disk_becomes_float32(server):
    halves = {name: array.astype(np.float16) for name, array in random_net("test_resnet")[2].items()}
    server.repos[f"timm/{TAG}"] = {"model.safetensors": to_safetensors(halves)}
    _, variables = resnet_jax.load_pretrained(TAG)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}
    expected = random_net("test_resnet")[1]["params"]["fc"]["bias"].astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["fc"]["bias"], expected)


def test_variables_lie_where_they_are_wanted(server):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec())
    _, variables = resnet_jax.load_pretrained(TAG, sharding=sharding)
    assert {leaf.sharding for leaf in jax.tree.leaves(variables)} == {sharding}
    _, variables = resnet_jax.load_pretrained(TAG)
    assert {device for leaf in jax.tree.leaves(variables) for device in leaf.devices()} == {jax.devices()[0]}


# There and back -----------------------------------------------------------------------------------------

NETS = [
    ("test_resnet", {}),
    ("resnet18", {"num_classes": 7}),
    ("test_resnet", {"num_classes": 0, "output_stride": 16}),
    ("test_resnet", {"global_pool": "catavgmax", "num_classes": 3}),
    ("cifar_resnet20", {"shortcut": "B"}),
    ("resnet18", {"norm": "group", "anti_alias": "blur", "stage_sizes": (1, 1, 1, 1)}),
    ("test_resnet", {"stage_features": (8, 16, 24, 32)}),
    ("test_resnet", {"param_dtype": jnp.bfloat16}),
]


@pytest.mark.parametrize(("name", "kwargs"), NETS)
def test_a_saved_folder_gives_the_same_model_and_variables(name, kwargs, tmp_path):
    model, variables, _ = random_net(name, **kwargs)
    resnet_jax.save_pretrained(model, variables, tmp_path / "net", preprocessing=PREPARED)
    again, loaded = resnet_jax.load_pretrained(tmp_path / "net")
    assert jnp.dtype(again.param_dtype) == jnp.dtype(model.param_dtype)
    assert again.clone(param_dtype=None) == model.clone(param_dtype=None)
    hash(again)  # jit takes it as a static argument
    assert same(loaded, variables)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]


def test_a_name_will_do_and_labels_and_preprocessing_come_back(tmp_path, caplog):
    _, variables, _ = random_net("test_resnet", num_classes=3)
    resnet_jax.save_pretrained("test_resnet", variables, tmp_path / "net", preprocessing=PREPARED, label_names="abc")
    assert resnet_jax.class_names(tmp_path / "net") == ("a", "b", "c")
    assert resnet_jax.preprocessing(tmp_path / "net") == PREPARED
    assert not caplog.text
    resnet_jax.save_pretrained("test_resnet", variables, tmp_path / "bare")
    assert "whoever reads it will assume" in caplog.text
    with pytest.raises(ValueError, match="does not say how images are to be prepared"):
        resnet_jax.preprocessing(tmp_path / "bare")
    with pytest.raises(ValueError, match="does not name its classes"):
        resnet_jax.class_names(tmp_path / "bare")


def test_sizes_survive_timms_rounding(tmp_path):
    """crop_pct is a float, and timm rounds down: every pair of sizes must come back."""
    from resnet_jax.weights.published import registry, timm_config

    for image_size in (32, 160, 176, 224, 288):
        for resize_size in range(image_size, 2 * image_size):
            config = {"input_size": (3, image_size, image_size)} | timm_config._of(
                Preprocessing(image_size, resize_size, "bicubic", (0.5,), (0.5,))
            )
            assert registry.from_config(config).resize_size == resize_size


def test_what_cannot_be_saved_is_refused_and_leaves_nothing(tmp_path):
    model, variables, _ = random_net("test_resnet")
    save = partial(resnet_jax.save_pretrained, model, variables)
    with pytest.raises(ValueError, match="2 label_names for a network of 1000"):
        save(tmp_path / "net", label_names=["a", "b"])
    with pytest.raises(ValueError, match="functions cannot be written"):
        resnet_jax.save_pretrained(model.clone(act=nn.gelu), variables, tmp_path / "net")
    with pytest.raises(convert.ConversionError, match="does not fit the model"):
        resnet_jax.save_pretrained("resnet18", variables, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_an_older_folder_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    model, variables, _ = random_net("test_resnet")
    save = partial(resnet_jax.save_pretrained, model, folder=tmp_path / "net", preprocessing=PREPARED)
    save(variables=variables)
    with pytest.raises(ValueError, match="overwrite=True"):
        save(variables=variables)
    changed = jax.tree.map(lambda leaf: leaf + 1, variables)
    with monkeypatch.context() as patch:
        patch.setattr(pretrained.formats, "save_state_dict", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(variables=changed, overwrite=True)
    assert same(resnet_jax.load_pretrained(tmp_path / "net")[1], variables)
    save(variables=changed, overwrite=True)
    assert same(resnet_jax.load_pretrained(tmp_path / "net")[1], changed)
    (tmp_path / "net" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="thesis.tex"):
        save(variables=changed, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net"]


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "renamed"])
def test_at_every_call_that_changes_the_disk_one_of_the_two_folders_is_there(exchanges, tmp_path, monkeypatch):
    """A kill leaves what the disk holds between two such calls, and that is looked at before and after each."""
    model, old, _ = random_net("test_resnet")
    new = jax.tree.map(lambda leaf: leaf + 1, old)
    folder = tmp_path / "net"
    resnet_jax.save_pretrained(model, old, folder)
    contents, seen = [{file.name: file.read_bytes() for file in folder.iterdir()}], []

    def look():
        places = [folder] if folder.exists() else list(tmp_path.glob(".net.*.tmp/old"))
        assert len(places) == 1
        assert places == [folder] or not exchanges
        seen.append({file.name: file.read_bytes() for file in places[0].iterdir()})

    def watched(function):
        def call(*args, **kwargs):
            look()
            try:
                return function(*args, **kwargs)
            finally:
                look()

        return call

    calls = [(pathlib.Path, "rename"), (pathlib.Path, "mkdir"), (shutil, "rmtree")]
    calls += [(os, name) for name in ("replace", "fsync", "chmod", "open")] + [(replacing, "_exchange")]
    if not exchanges:
        monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    for where, name in calls:
        monkeypatch.setattr(where, name, watched(getattr(where, name)))
    resnet_jax.save_pretrained(model, new, folder, overwrite=True)
    monkeypatch.undo()
    contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] != contents[1]
    assert len(seen) > 10
    assert all(content in contents for content in seen)
    assert seen == sorted(seen, key=contents.index)  # the old one, and from one moment on the new
    assert same(resnet_jax.load_pretrained(folder)[1], new)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize("failing", ["first", "second"])
def test_where_folders_are_renamed_a_failure_puts_the_old_one_back(failing, tmp_path, monkeypatch):
    model, variables, _ = random_net("test_resnet")
    resnet_jax.save_pretrained(model, variables, tmp_path / "net")
    renames = []

    def rename(self, target):
        renames.append(target)
        if len(renames) == {"first": 1, "second": 2}[failing]:
            raise OSError("the disk is gone")
        os.rename(self, target)

    monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(OSError, match="the disk is gone"):
        resnet_jax.save_pretrained(model, jax.tree.map(lambda x: x + 1, variables), tmp_path / "net", overwrite=True)
    monkeypatch.undo()
    assert same(resnet_jax.load_pretrained(tmp_path / "net")[1], variables)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not a JSON file"),
        ("[]", "a configuration is a JSON object"),
        ('{"architecture": "vgg16"}', "none of resnet_jax.list_models"),
        ('{"architecture": "resnet18", "model_args": {"act_layer": "gelu"}}', r"with \['act_layer'\]"),
    ],
)
def test_a_bad_configuration_is_one_error(content, said, tmp_path):
    formats.save_state_dict(tmp_path / "model.safetensors", {"x": np.zeros(1)})
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        resnet_jax.load_pretrained(tmp_path)


# PyTorch takes it ---------------------------------------------------------------------------------------


@functools.cache
def trained(name, **fields):
    """A network after a step of our own training, in which everything has moved, and its variables, in float32."""
    model, start, _ = random_net(name, num_classes=10, **fields)
    start = jax.tree.map_with_path(lambda path, leaf: 10 * leaf if path[-1].key in ("scale", "var") else leaf, start)
    state = create_train_state(model, start, optax.sgd(0.05, momentum=0.9))
    state, _ = jax.jit(partial(train_step, **NUMBERS))(state, make_batch(8, pixels=32, classes=10, seed=0))
    assert jax.tree.all(jax.tree.map(lambda old, new: np.any(old != new), start, state.variables))
    return model, jax.tree.map(np.asarray, state.variables)


def as_dtype(dtype, model, variables):
    """The same numbers in another dtype, and the network that has it."""
    return model.clone(param_dtype=dtype), jax.tree.map(lambda leaf: leaf.astype(dtype), variables)


def logits(model, variables, dtype):
    apply = jax.jit(partial(model.clone(precision="highest").apply, train=False))
    return np.asarray(apply(variables, IMAGES.astype(dtype)))


def agree(theirs, ours, bar):
    """To `bar` of the largest of them, or absolutely where that is less than 1."""
    assert theirs.dtype == ours.dtype
    print(f"largest difference {np.abs(theirs - ours).max():.1e}, of logits up to {np.abs(ours).max():.2f}")
    assert np.abs(ours).max() > 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=bar * max(1, np.abs(ours).max()))


def logits_of_torch(module, dtype):
    torch = pytest.importorskip("torch")
    images = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()).to(getattr(torch, dtype))
    with torch.no_grad():
        return module.eval().to(images.dtype)(images).numpy()


@contextlib.contextmanager
def in_dtype(dtype):
    """float64 in JAX and as PyTorch's default, or float32: PyTorch copies weights into the dtype that it has built."""
    torch = pytest.importorskip("torch")
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with jax.enable_x64(dtype == "float64"):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


BARS = {"float32": 1e-5, "float64": 1e-10}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.parity)])
def test_timm_takes_a_net_trained_here(dtype, tmp_path):
    timm = pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    net = trained("test_resnet")
    with in_dtype(dtype):
        model, variables = as_dtype(dtype, *net)
        resnet_jax.save_pretrained(model, variables, tmp_path / "net", preprocessing=PREPARED, label_names="abcdefghij")
        theirs = timm.create_model(f"local-dir:{tmp_path}/net", pretrained=True)
        agree(logits_of_torch(theirs, dtype), logits(model, variables, dtype), BARS[dtype])
    found = timm.data.resolve_model_data_config(theirs)
    transform = timm.data.create_transform(**found).transforms
    assert (transform[0].size, list(transform[1].size)) == (73, [64, 64])
    assert (found["mean"], found["std"], found["interpolation"]) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4], "bicubic")
    assert theirs.pretrained_cfg["label_names"] == list("abcdefghij")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.parity), "float64"])
def test_torchvision_takes_a_net_trained_here(dtype, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    from safetensors.torch import load_file

    blocks = (1, 1, 1, 1)
    net = trained("resnet18", stage_sizes=blocks)
    with in_dtype(dtype):
        model, variables = as_dtype(dtype, *net)
        resnet_jax.save_pretrained(model, variables, tmp_path / "net", preprocessing=PREPARED)
        theirs = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, blocks, num_classes=10)
        theirs.load_state_dict(load_file(tmp_path / "net" / "model.safetensors"), strict=True)
        agree(logits_of_torch(theirs, dtype), logits(model, variables, dtype), BARS[dtype])


@pytest.mark.parametrize(
    "kwargs", [{"output_stride": 16, "global_pool": "catavgmax", "num_classes": 4}, {"num_classes": 0}]
)
def test_timm_builds_the_variants_that_it_knows(kwargs, tmp_path):
    timm = pytest.importorskip("timm")
    model, variables, _ = random_net("test_resnet", **kwargs)
    resnet_jax.save_pretrained(model, variables, tmp_path / "net", preprocessing=PREPARED)
    theirs = timm.create_model(f"local-dir:{tmp_path}/net", pretrained=True)
    ours = logits(model, variables, "float32")
    agree(logits_of_torch(theirs, "float32"), ours, 1e-5)


def test_timm_refuses_what_it_would_build_wrongly(tmp_path):
    timm = pytest.importorskip("timm")
    model, variables, _ = random_net("test_resnet", anti_alias="blur")
    resnet_jax.save_pretrained(model, variables, tmp_path / "net", preprocessing=PREPARED)
    with pytest.raises(RuntimeError, match=r"Unknown model \(resnet_jax:test_resnet\)"):
        timm.create_model(f"local-dir:{tmp_path}/net", pretrained=True)


def test_a_folder_and_a_configuration_of_timms_own_are_read(tmp_path):
    timm = pytest.importorskip("timm")
    hub_of_timm = pytest.importorskip("timm.models._hub")
    theirs = timm.create_model("test_resnet", num_classes=6, in_chans=1, global_pool="max")
    hub_of_timm.save_for_hf(theirs, tmp_path, safe_serialization=True)
    model, variables = resnet_jax.load_pretrained(f"local-dir:{tmp_path}")
    assert (model.num_classes, model.global_pool) == (6, "max")
    ours = jax.jit(partial(model.apply, train=False))(variables, IMAGES[..., :1])
    import torch

    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(IMAGES[..., :1].transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    found = resnet_jax.preprocessing(tmp_path)
    assert (found.image_size, found.resize_size) == (160, 168)


# The cost of importing ----------------------------------------------------------------------------------


def test_importing_the_library_imports_nothing_heavy():
    """Neither does a question to the table of weights."""
    heavy = {"huggingface_hub", "httpx", "httpx2", "tqdm", "optax", "orbax", "PIL", "torch", "timm", "grain", "cv2"}
    code = """
import sys, jax, flax
before = set(sys.modules)
import resnet_jax
resnet_jax.list_pretrained()
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    imported = set(done.stdout.split())
    assert "resnet_jax" in imported, done.stderr
    assert not heavy & imported
