"""Weight files: what is read, what is refused, and that nothing is lost or run."""

import os
import pickle

import ml_dtypes
import numpy as np
import pytest

from resnet_jax.weights import formats
from resnet_jax.weights.formats import WeightFileError, load_state_dict, save_state_dict

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


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.filterwarnings("ignore")
def test_a_pickle_that_names_a_function_is_refused_and_not_run(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"state_dict": Harmful()}, protocol=2))
    with pytest.raises(WeightFileError, match="cannot read it safely"):
        load_state_dict("x.pth")
    assert not (tmp_path / "harmed").exists()


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
        (lambda data: data[: len(data) // 2], "damaged, cut short or of another kind"),
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
    (tmp_path / "x.h5").write_bytes(b"x")
    with pytest.raises(WeightFileError, match=r"suffix '.h5' is not one of .safetensors, .pth"):
        load_state_dict(tmp_path / "x.h5")
    with pytest.raises(WeightFileError, match="give a name that ends so"):
        save_state_dict(tmp_path / "x.pth", ARRAYS)


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


def test_pytorch_reads_what_is_written(tmp_path):
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    save_state_dict(tmp_path / "x.safetensors", ARRAYS)
    assert load_file(tmp_path / "x.safetensors")["d"].tolist() == [1.5, -3.0]


def test_missing_torch_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(WeightFileError, match=r"needs PyTorch: pip install \"resnet-linen\[torch\]\""):
        load_state_dict(tmp_path / "x.pth")


def test_unknown_dtype_is_named(tmp_path):
    header = b'{"q":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(WeightFileError, match=r"'q' is of dtype F8_E4M3"):
        load_state_dict(tmp_path / "x.safetensors")
