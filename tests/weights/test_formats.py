"""Weight files: what is read, bit for bit what PyTorch reads, what is refused, and that nothing is lost."""

import json
import os
import pathlib
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from paths import ROOT
from resnet_jax.weights.files import formats
from resnet_jax.weights.files.formats import WeightFileError, load_state_dict, save_state_dict

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.float64(2.5).reshape(()),
    "c": np.array([1, -2], np.int64),
    "d": np.array([1.5, -3], ml_dtypes.bfloat16),
    "e": np.array([0.5], np.float16),
}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name])


def test_safetensors_there_and_back(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    save_state_dict(path, ARRAYS)
    assert_same(load_state_dict(path), ARRAYS)


def test_arrays_that_are_views_are_written_as_they_look(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_state_dict(tmp_path / "x.safetensors", {"t": base.T, "s": base[:, ::2]})
    assert_same(load_state_dict(tmp_path / "x.safetensors"), {"t": base.T, "s": base[:, ::2]})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".th", ".pth.tar", ".bin"])
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_pytorch_files(tmp_path, legacy, suffix, container):
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.tensor(array.astype(np.float64)).to(getattr(torch, str(array.dtype)))
        for name, array in ARRAYS.items()
    }
    content = {container: tensors, "epoch": 3, "best": torch.tensor(1.0)} if container else tensors
    torch.save(content, tmp_path / f"x{suffix}", _use_new_zipfile_serialization=not legacy)
    assert_same(load_state_dict(tmp_path / f"x{suffix}"), ARRAYS)


def whole(tmp_path, suffix):
    path = tmp_path / f"whole{suffix}"
    if suffix == ".safetensors":
        save_state_dict(path, ARRAYS)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"a": torch.ones(1000)}, path)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda data: data[: len(data) // 2], "cut short|no whole safetensors file"),
        (lambda data: b"x" * 500, "damaged, cut short or of another kind"),
        (lambda data: b"", "it is empty"),
        (lambda data: b"<!DOCTYPE html><html>Not found</html>", "it is a web page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ],
)
def test_damaged_files_say_what_they_are(tmp_path, suffix, content, said):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content(whole(tmp_path, suffix)))
    with pytest.raises(WeightFileError, match=f"x{suffix}.*{said}"):
        load_state_dict(path)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(WeightFileError, match="there is no such file"):
        load_state_dict(tmp_path / "none.pth")
    with pytest.raises(WeightFileError, match="give a name that ends so"):
        save_state_dict(tmp_path / "x.h5", ARRAYS)
    with pytest.raises(WeightFileError, match=r"'a' is of dtype uint16"):
        save_state_dict(tmp_path / "x.pth", {"a": np.ones(1, np.uint16)})
    assert not list(tmp_path.iterdir())


def test_a_file_without_weights_says_what_it_holds(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "x.pth")
    with pytest.raises(WeightFileError, match=r"a dictionary with the keys \['epoch', 'lr'\].*model.state_dict"):
        load_state_dict(tmp_path / "x.pth")
    torch.save([torch.ones(1)], tmp_path / "x.pth")
    with pytest.raises(WeightFileError, match="holds a list"):
        load_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing):
    path = tmp_path / "x.safetensors"
    save_state_dict(path, {"a": np.ones(3)})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats.os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        save_state_dict(path, {"a": np.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin"])
def test_pytorch_reads_what_is_written(tmp_path, suffix):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    arrays = ARRAYS | {"empty": np.zeros((0, 3), np.float32), "bool": np.array([True, False]), "t": np.ones((2, 3)).T}
    path = tmp_path / f"x{suffix}"
    save_state_dict(path, arrays)
    read = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert_same({name: formats.as_numpy(tensor) for name, tensor in read.items()}, arrays)
    assert_same(load_state_dict(path), arrays)
    if suffix != ".safetensors":
        assert list(read) == list(arrays)
        mapped = torch.load(path, weights_only=True, mmap=True)
        assert all(torch.equal(mapped[name], read[name]) for name in arrays)
        # A file is mapped to the beginning of a page: so this is where the tensors stand in it.
        assert not any(array.ctypes.data % 64 for array in load_state_dict(path).values() if array.size)


def test_the_same_weights_make_the_same_file(tmp_path):
    for name in ("a.pth", "b.pth"):
        save_state_dict(tmp_path / name, ARRAYS)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_unknown_dtype_is_named(tmp_path):
    header = b'{"q":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(WeightFileError, match=r"'q' is of dtype F8_E4M3"):
        load_state_dict(tmp_path / "x.safetensors")


# Bit for bit what torch.load gives -----------------------------------------------------------------------

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex64", "complex128"),
)


# PyTorch writes these to legacy files too, but cannot read them back.
NOT_IN_LEGACY = ("uint16", "uint32", "uint64")


def torch_tensors(torch, legacy):
    """A tensor of every dtype, of random bits, and of every way to lie in a storage."""
    rng = np.random.default_rng(0)
    tensors = {}
    for dtype in set(DTYPES) - set(NOT_IN_LEGACY if legacy else ()):
        bits = torch.from_numpy(rng.integers(0, 2 if dtype == "bool" else 256, 96, np.uint8))
        tensors[dtype] = bits.view(getattr(torch, dtype)).reshape(2, 3, -1)
    base = torch.arange(24.0).reshape(4, 6)
    return tensors | {
        "transposed": base.T,
        "sliced": base[1:, ::2],
        "a row": base[2],
        "the same again": base,
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "parameter": torch.nn.Parameter(base * 2),
        "counter": torch.tensor(7),
    }


def equal_to_torch(path, torch, content=None):
    expected = torch.load(path, weights_only=True, map_location="cpu") if content is None else content
    found = load_state_dict(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = formats.as_numpy(tensor)
        assert found[name].dtype == wanted.dtype, name
        assert found[name].shape == wanted.shape, name
        assert found[name].tobytes() == wanted.tobytes(), name


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_dtype_and_layout_is_bit_equal_to_torch_load(tmp_path, legacy, protocol):
    torch = pytest.importorskip("torch")
    torch.save(
        torch_tensors(torch, legacy),
        tmp_path / "x",
        _use_new_zipfile_serialization=not legacy,
        pickle_protocol=protocol,
    )
    # torch.load(weights_only=True) reads protocol 2 alone.
    equal_to_torch(tmp_path / "x", torch, torch.load(tmp_path / "x", weights_only=False) if protocol > 2 else None)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_state_dict_with_metadata_and_a_training_checkpoint(tmp_path, legacy):
    """What `model.state_dict()` and a training script save: metadata, an optimizer, settings, a random state."""
    torch = pytest.importorskip("torch")
    import argparse

    net = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    args = argparse.Namespace(lr=0.1, path=pathlib.Path("x"), betas=(0.9, 0.99), seen={1, 2}, best=np.float64(3))
    content = {
        "epoch": 3,
        "args": args,
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "state_dict": net.state_dict(),
    }
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=not legacy)
    equal_to_torch(tmp_path / "x", torch, net.state_dict())


def test_storages_of_a_gpu_are_read_without_one(tmp_path):
    """As old checkpoints have them: DataParallel's names, `torch.cuda.FloatStorage`, `cuda:0`."""
    from handmade import DATA, legacy, mapping, storage, tensor

    store = storage(kind="torch.cuda.FloatStorage", location="cuda:0", view=b"N")
    (tmp_path / "x").write_bytes(legacy(mapping(**{"module.w": tensor(store)})))
    found = load_state_dict(tmp_path / "x")["module.w"]
    assert found.tobytes() == DATA["data/0"]
    assert found.shape == (2, 3)


def test_views_of_a_storage_in_legacy_files(tmp_path):
    from handmade import legacy, mapping, number, storage, tensor, text

    view = b"(" + text("view") + number(2) + number(4) + b"t"
    (tmp_path / "x").write_bytes(legacy(mapping(w=tensor(storage(view=view), offset=1, size=(3,), stride=(1,)))))
    np.testing.assert_array_equal(load_state_dict(tmp_path / "x")["w"], np.float32([3, 4, 5]))


def test_checkpoints_of_python_2(tmp_path):
    """Byte strings for names, and an OrderedDict made from [key, value] pairs."""
    from handmade import call, legacy, tensor

    pairs = b"]](U\x01w" + tensor() + b"ea"
    (tmp_path / "x").write_bytes(legacy(call("collections.OrderedDict", pairs)))
    assert load_state_dict(tmp_path / "x")["w"].shape == (2, 3)


def test_arrays_are_the_file_itself(tmp_path):
    save_state_dict(tmp_path / "x.pth", {"a": np.ones(1000)})
    save_state_dict(tmp_path / "x.safetensors", {"a": np.ones(1000)})
    for path in tmp_path.iterdir():
        array = load_state_dict(path)["a"]
        assert not array.flags.writeable
        assert not array.flags.owndata


# Containers, shards ---------------------------------------------------------------------------------------


def containers(tmp_path, content):
    from handmade import mapping, tensor, zipped

    tensors = {"plain": tensor(offset=0, size=(1,), stride=(1,)), "ema": tensor(offset=1, size=(1,), stride=(1,))}
    (tmp_path / "x").write_bytes(zipped(mapping(**{name: mapping(w=tensors[kind]) for name, kind in content.items()})))
    return tmp_path / "x"


@pytest.mark.parametrize(
    ("plain", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("student", "teacher"), ("net", "ema")],
)
def test_the_average_is_taken_when_asked_for(tmp_path, plain, averaged):
    path = containers(tmp_path, {averaged: "ema", plain: "plain"})
    assert load_state_dict(path)["w"] == [0]
    assert load_state_dict(path, ema=True)["w"] == [1]
    alone = containers(tmp_path, {averaged: "ema"})
    assert load_state_dict(alone)["w"] == [1]


def test_an_average_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(
        WeightFileError, match=r"keys \['state_dict'\], not averaged weights, also not under 'state_dict_ema'"
    ):
        load_state_dict(containers(tmp_path, {"state_dict": "plain"}), ema=True)
    save_state_dict(tmp_path / "x.safetensors", ARRAYS)
    with pytest.raises(WeightFileError, match="one set of weights"):
        load_state_dict(tmp_path / "x.safetensors", ema=True)


def test_what_is_no_tensor_among_tensors_is_passed_over_and_named(tmp_path, caplog):
    from handmade import mapping, number, tensor, zipped

    (tmp_path / "x").write_bytes(zipped(mapping(a=tensor(), b=tensor(), epoch=number(3))))
    assert load_state_dict(tmp_path / "x").keys() == {"a", "b"}
    assert "passed over what is no tensor: 'epoch'" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sharded_weights_are_read_from_their_index_or_folder(tmp_path, suffix):
    names = list(ARRAYS)
    parts = {f"model-{i}{suffix}": names[i::2] for i in range(2)}
    for part, inside in parts.items():
        save_state_dict(tmp_path / part, {name: ARRAYS[name] for name in inside})
    index = tmp_path / f"model{suffix}.index.json"
    places = {name: part for part, inside in parts.items() for name in inside}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert_same(load_state_dict(index), ARRAYS)
    assert_same(load_state_dict(tmp_path), ARRAYS)
    assert formats.holds_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"more": "model-0" + suffix}}))
    with pytest.raises(WeightFileError, match="does not hold the tensors that it says"):
        load_state_dict(index)


def test_reading_and_converting_need_no_torch(tmp_path):
    """Files that PyTorch saved, converted by the command where PyTorch cannot be imported."""
    torch = pytest.importorskip("torch")
    from resnet_jax.proof import verify

    net = torch.nn.DataParallel(verify.torch_reference("cifar_resnet20"))
    plain = net.module.state_dict()
    averaged = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    shared = dict(plain)
    both = torch.cat([plain["layer1.0.conv1.weight"], plain["layer1.0.conv2.weight"]])
    shared["layer1.0.conv1.weight"], shared["layer1.0.conv2.weight"] = both[:16], both[16:]

    def cast(dtype):
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in plain.items()}

    # File -> what is saved, flags, and what must come out.
    cases = {
        "float32": (plain, [], plain),
        "half": (cast(torch.half), ["--keep-dtype"], cast(torch.half)),
        "half widened": (cast(torch.half), [], {k: v.float() for k, v in cast(torch.half).items()}),
        "bfloat16": (cast(torch.bfloat16), ["--keep-dtype"], cast(torch.bfloat16)),
        "parallel": (net.state_dict(), [], plain),
        "container": ({"state_dict": net.state_dict(), "state_dict_ema": averaged}, ["--ema"], averaged),
        "shared": (shared, [], plain),
    }
    commands = []
    for legacy in (False, True):
        for name, (content, flags, _) in cases.items():
            path = tmp_path / f"{name}-{legacy}"
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
            commands.append(["convert", str(path), f"--out={path}.safetensors", *flags])
    code = """
import json, sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
from resnet_jax import cli
sys.exit(max(cli.main(command) for command in json.loads(sys.argv[1])))
"""
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for legacy in (False, True):
        for name, (_, _, expected) in cases.items():
            found = load_state_dict(tmp_path / f"{name}-{legacy}.safetensors")
            for key, tensor in expected.items():
                if not key.endswith("num_batches_tracked"):
                    assert found[key].tobytes() == formats.as_numpy(tensor).tobytes(), (name, key)


def test_a_safetensors_file_whose_length_begins_like_a_pickle_is_none(tmp_path):
    """The header's length comes first: its low byte can be 0x80, with which pickles begin."""
    weights = {"fc.bias": np.arange(3, dtype=np.float32)}
    for pad in range(256):
        safetensors.numpy.save_file(weights, tmp_path / "x", metadata={"pad": "x" * pad})
        if (tmp_path / "x").read_bytes()[0] == 0x80:
            break
    assert (tmp_path / "x").read_bytes()[0] == 0x80
    np.testing.assert_array_equal(formats.load_state_dict(tmp_path / "x")["fc.bias"], weights["fc.bias"])


def test_what_has_more_of_other_things_than_tensors_is_no_dictionary_of_tensors(tmp_path):
    """An optimizer's state, say, with a tensor in it: the weights may be elsewhere."""
    from handmade import mapping, number, tensor, zipped

    for others in ({"step": number(3)}, {"rate": number(1), "step": number(3)}):
        (tmp_path / "x").write_bytes(zipped(mapping(average=tensor(), **others)))
        with pytest.raises(WeightFileError, match=r"keys \['average', .*'step'\], not a dictionary of tensors"):
            load_state_dict(tmp_path / "x")
