"""Weight files to `{name: NumPy array}` and back, without PyTorch. No code from a file is ever run.

What a file is, its contents say and not its suffix. Arrays are views of the file, mapped into memory and read-only, so
nothing is read twice; do not write into a file (rather than replace it) while its arrays are in use.
"""

import json
import logging
import mmap
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import Inert
from resnet_jax.weights.files.replacing import replacing
from resnet_jax.weights.files.safetensors_file import read_safetensors
from resnet_jax.weights.files.torch_file import TorchFile, read_legacy, read_zip
from resnet_jax.weights.files.pickled.torch_names import Tensor
from resnet_jax.weights.files.torch_write import write_torch

logger = logging.getLogger(__name__)

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
# Where a checkpoint of somebody's training script keeps the weights, and their moving average (EMA).
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "student",
)
EMA_CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "ema_weights"),
    "teacher",
)
# How the names of inert tensors begin: sparse, quantised, or of a dtype that NumPy lacks.
TENSOR_KINDS = ("torch._utils._rebuild_", "a tensor of ")
# Largest index of a sharded file that is parsed; that of a ResNet of a thousand layers has a fifth of this.
MAX_INDEX = 2 << 20


def load_state_dict(path: str | os.PathLike[str], *, ema: bool = False) -> dict[str, np.ndarray]:
    """Reads `{name: array}` from a file of any name: PyTorch's zip or legacy format, safetensors, or a sharded index.

    A checkpoint that keeps its weights under a name, such as `state_dict`, is unwrapped. Checksums are compared where
    the format has them, which is PyTorch's zip format alone: in others a changed byte of a tensor cannot be seen.

    Args:
      path: the file, or a folder with a `*.index.json` or a `model.safetensors` in it, as Hugging Face's have.
      ema: take the moving average of the weights, which training scripts keep beside them.

    Returns:
      Read-only arrays in the dtype of the file; bfloat16 as `ml_dtypes.bfloat16`.

    Raises:
      WeightFileError: no such file, a damaged one, one of another kind, or one without (averaged) weights.
    """
    try:
        file = _find(pathlib.Path(path).expanduser())
        data = _mapped(file)
        if bytes(data[:1]) == b"{":
            return _refuse_ema(_load_sharded(file, data), ema)
        return _load_one(file, data, ema)
    except WeightFileError as error:
        raise WeightFileError(f"{path}: {error}") from error
    except OSError as error:
        raise WeightFileError(f"{path}: it cannot be read ({error.strerror or error}).") from error


def save_state_dict(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, or one that `torch.load(weights_only=True)` reads (`.pth`, `.pt`, `.th`, `.bin`).

    It is written whole or not at all: an older file of that name stays until the new one is safe.

    Raises:
      WeightFileError: another suffix, or a dtype that the format does not have.
    """
    file = pathlib.Path(path).expanduser()
    if file.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise WeightFileError(f"{path}: weights are written as .safetensors or .pth; give a name that ends so.")
    if "://" in str(path):
        raise WeightFileError(f"{path}: weights are written to a disk; write them there and copy them to the bucket.")
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with replacing(file) as temporary:
        if file.suffix == ".safetensors":
            safetensors.numpy.save_file(plain, temporary, metadata={"format": "pt"})
        else:
            write_torch(temporary, plain)


def holds_weights(path: str | os.PathLike[str]) -> bool:
    """Whether `load_state_dict` is to read `path`: a file, or a folder with weights under their usual names."""
    place = pathlib.Path(path).expanduser()
    if "://" in str(path):  # a bucket, where workdirs and folders of variables lie, but no file that this could read
        return place.suffix in (".safetensors", *TORCH_SUFFIXES)
    return not place.is_dir() or bool(_in_folder(place))


def as_numpy(tensor: Any) -> np.ndarray:
    """A NumPy array of the same values and dtype, from NumPy, JAX, or PyTorch (any layout, device or dtype).

    bfloat16 becomes `ml_dtypes.bfloat16`, bit for bit. The result may share memory with `tensor`.
    """
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    torch = sys.modules["torch"]  # whoever has a tensor has imported it
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: np.ndarray = tensor.numpy()
    return array


# Files --------------------------------------------------------------------------------------------------


def _find(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        found = _in_folder(path)
        if len(found) == 1:
            return found[0]
        several = f"several: {', '.join(file.name for file in found[:4])}. Name one." if found else "neither."
        raise WeightFileError(f"of *.index.json and model.safetensors the folder has {several}")
    if not path.is_file():
        raise WeightFileError("there is no such file.")
    return path


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """The file of weights in a folder such as Hugging Face's, safetensors first; several if that cannot be told."""
    found = (sorted(folder.glob(name)) for name in ("model.safetensors", "*.safetensors.index.json", "*.index.json"))
    return next((files for files in found if files), [])


def _mapped(file: pathlib.Path) -> memoryview:
    """The file's bytes, which the system reads when they are looked at."""
    with open(file, "rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            raise WeightFileError("it is empty: download it again.")
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _load_one(file: pathlib.Path, data: memoryview, ema: bool = False) -> dict[str, np.ndarray]:
    head = bytes(data[:512])
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _load_torch(read_zip(data), ema)
    if head[8:9] == b"{":  # before pickles, for the length in front of it may begin as they do
        return _refuse_ema(read_safetensors(file, data), ema)
    if head.startswith(b"\x80"):
        return _load_torch(read_legacy(data), ema)
    raise WeightFileError(f"it is {_what_it_is(head)}")


def _what_it_is(head: bytes) -> str:
    """What a file is that is none of weights, with what to do about it."""
    if head.lstrip()[:1] == b"<":
        return "a web page, perhaps an error message saved under this name: download the file again."
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which stands for the file: run `git lfs pull`."
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, or, if PyTorch made it before 2017, load it there and save it again."
    for magic, name in {
        b"\x89HDF": "an HDF5 file",
        b"\x1f\x8b": "a gzip archive: unpack it",
        b"\x93NUMPY": "a .npy",
    }.items():
        if head.startswith(magic):
            return f"{name}, where PyTorch's files and safetensors are read."
    return "damaged, cut short or of another kind than PyTorch's files and safetensors: download it again."


def _load_sharded(index: pathlib.Path, data: memoryview) -> dict[str, np.ndarray]:
    """The tensors of several files beside `index`, a JSON file with `{"weight_map": {tensor: file}}`."""
    try:
        parsed = json.loads(bytes(data).decode()) if len(data) <= MAX_INDEX else None
    except (ValueError, RecursionError) as error:
        raise WeightFileError("it begins like an index in JSON, and is none: download it again.") from error
    places = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise WeightFileError('it is JSON, but not the index of a sharded file, {"weight_map": {tensor: file}}.')
    arrays: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        # A bare name: an index must not reach into other folders.
        file = index.parent / shard
        if pathlib.PurePath(shard).name != shard or "\\" in shard or not file.is_file():
            raise WeightFileError(f"its part {shard[:80]!r} is not a file beside it.")
        found = _load_one(file, _mapped(file))
        if set(found) != {name for name, place in places.items() if place == shard}:
            raise WeightFileError(f"its part {shard!r} does not hold the tensors that it says: download both again.")
        arrays |= found
    return arrays


def _load_torch(file: TorchFile, ema: bool) -> dict[str, np.ndarray]:
    found = _averaged(file.content) if ema else _unwrap(file.content, (*CONTAINERS, *EMA_CONTAINERS))
    if found is None:
        wanted = EMA_CONTAINERS if ema else CONTAINERS
        raise WeightFileError(
            f"it holds {_describe(file.content)}, not {'averaged weights' if ema else 'a dictionary of tensors'}, also "
            f"not under {', '.join(map(repr, wanted))}. Save model.state_dict()."
        )
    for name, value in found.items():
        if _is_tensor(value) and not isinstance(value, Tensor):
            raise WeightFileError(f"tensor {name!r:.80} is {value.name}: only dense tensors of plain numbers are read.")
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if others := sorted(str(name)[:80] for name in found.keys() - tensors.keys()):
        logger.warning("passed over what is no tensor: %s", ", ".join(map(repr, others[:8])))
    return file.arrays(tensors)


def _refuse_ema(arrays: dict[str, np.ndarray], ema: bool) -> dict[str, np.ndarray]:
    if ema:
        raise WeightFileError(
            "it holds one set of weights, without an average beside it: read it without asking for EMA."
        )
    return arrays


def _unwrap(content: Any, containers: tuple[str, ...], depth: int = 4) -> dict[Any, Any] | None:
    """The dictionary of tensors in a checkpoint, or None."""
    if not isinstance(content, dict) or not depth:
        return None
    for key in containers:
        if (found := _unwrap(content.get(key), containers, depth - 1)) is not None:
            return found
    return content if 2 * sum(map(_is_tensor, content.values())) > len(content) else None


def _is_tensor(value: Any) -> bool:
    """Whether it was a tensor when it was saved, of whatever kind."""
    return isinstance(value, Tensor) or (isinstance(value, Inert) and value.name.startswith(TENSOR_KINDS))


def _averaged(content: Any) -> dict[Any, Any] | None:
    """The dictionary of averaged tensors in a checkpoint, or None."""
    inner = [content.get(key) for key in EMA_CONTAINERS] if isinstance(content, dict) else []
    return next(
        (found for value in inner if (found := _unwrap(value, (*EMA_CONTAINERS, *CONTAINERS))) is not None), None
    )


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dictionary with the keys {sorted(str(key)[:40] for key in content)[:8]}"
    return f"a {type(content).__name__}"
