"""Weight files to `{name: NumPy array}` and back, without PyTorch. No code from a file is ever run.

What a file is, its contents say and not its suffix. Arrays are views of the file, mapped into memory and read-only, so
nothing is read twice; do not write into a file (rather than replace it) while its arrays are in use.
"""

import contextlib
import dataclasses
import json
import logging
import mmap
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files import containers, flax_file, folders
from resnet_jax.weights.files.folders import SUFFIXES, TORCH_SUFFIXES, holds_weights
from resnet_jax.weights.files.pickled.numpy_arrays import is_array
from resnet_jax.weights.files.pickled.pickles import MAX_NAME, Inert, shown
from resnet_jax.weights.files.replacing import replacing
from resnet_jax.weights.files.safetensors_file import read_safetensors
from resnet_jax.weights.files.torch_file import TorchFile, read_pickle, read_record, read_zip
from resnet_jax.weights.files.torch_write import write_torch

__all__ = [
    "SUFFIXES",
    "TORCH_SUFFIXES",
    "Opened",
    "WeightFileError",
    "as_numpy",
    "holds_weights",
    "load_state_dict",
    "load_variables_file",
    "open_weights",
    "save_state_dict",
]

logger = logging.getLogger(__name__)

# The record, in safetensors' metadata or in PyTorch's zip, of where the weights of a file come from.
PROVENANCE = "resnet_jax"
# Largest index of a sharded file that is parsed; that of a ResNet of a thousand layers has a fifth of this.
MAX_INDEX = 2 << 20
# So many names of sets of weights that were not taken are kept.
MAX_OTHERS = 64
# How pickles of dictionaries begin: by their protocol or, before there was that, by a dictionary or a function.
PICKLED = re.compile(rb"\x80|\(d|\}[q(.]|c[\w.]+\n\w+\n")


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a file of weights holds.

    Attributes:
      tensors: `{name: array}` under PyTorch's names, read-only and in the dtype of the file; bfloat16 as
        `ml_dtypes.bfloat16`.
      container: the keys that led to them, such as `"model"` or `"state.model"`; None in a file without containers.
      others: the containers of other sets of tensors in the file, which were not taken; the first 64 of them.
      variables: `{'params': ..., 'batch_stats': ...}`, in place of tensors, in a file that has Flax's names.
    """

    tensors: dict[str, np.ndarray]
    container: str | None = None
    others: tuple[str, ...] = ()
    variables: dict[str, Any] | None = None


def open_weights(path: str | os.PathLike[str], *, container: str | None = None, ema: bool = False) -> Opened:
    """Reads a file of any name: PyTorch's, old or new, a pickle of arrays, safetensors, an index, Flax's msgpack.

    A checkpoint that keeps its weights under a name, such as `state_dict`, is unwrapped; where it holds several sets of
    weights, a line of the log says which was taken, and how to take another. Checksums are compared where the format
    has them, which is PyTorch's zip format alone: in others a changed byte of a tensor cannot be seen.

    Args:
      path: the file, or a folder with one: a `*.index.json`, a `model.safetensors`, or a single file of another name.
      container: the set to take, by its name in `Opened.container` or `others`; by default the likeliest.
      ema: take the moving average of the weights, which training scripts keep beside them.

    Raises:
      WeightFileError: no such file, a damaged one, one of another kind, or one without such weights.
    """
    if container is not None and ema:
        raise ValueError(f"ema=True chooses a container, and container={container!r} another: give one of the two.")
    try:
        file = folders.find(pathlib.Path(path).expanduser())
        data = _mapped(file)
        opened = _open_index(file, data) if bytes(data[:1]) == b"{" else _open_one(file, data, container, ema)
        if opened.container is None and (ema or container):
            asked = "asking for EMA" if ema else "naming a container"
            raise WeightFileError(
                f"it holds one set of weights, without an average or another beside it: read it without {asked}."
            )
        return opened
    except WeightFileError as error:
        raise WeightFileError(f"{path}: {error}") from error
    except OSError as error:
        raise WeightFileError(f"{path}: it cannot be read ({error.strerror or error}).") from error


def load_state_dict(
    path: str | os.PathLike[str], *, container: str | None = None, ema: bool = False
) -> dict[str, np.ndarray]:
    """The tensors of `open_weights`, under PyTorch's names.

    Raises:
      WeightFileError: as `open_weights`, or the file has Flax's variables.
    """
    opened = open_weights(path, container=container, ema=ema)
    if opened.variables is not None:
        raise WeightFileError(
            f"{path}: it holds Flax's variables, and no tensors under PyTorch's names: load_variables_file."
        )
    return opened.tensors


def load_variables_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Variables, `{'params': ..., 'batch_stats': ...}`, of a file that has them under Flax's names.

    Read are `flax.serialization.to_bytes` of variables, of a train state or of `params` alone, and safetensors or
    pickled arrays whose names are flattened, `params.conv1.kernel` or `params/conv1/kernel`. Arrays are read-only.

    Raises:
      WeightFileError: as `open_weights`, or the file has PyTorch's names.
    """
    variables = open_weights(path).variables
    if variables is None:
        raise WeightFileError(
            f"{path}: it holds tensors under PyTorch's names, and no variables of Flax's: load_state_dict."
        )
    return variables


def save_state_dict(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes a `.safetensors` file, or one that `torch.load(weights_only=True)` reads (`.pth`, `.pt`, `.th`, `.bin`).

    It is written whole or not at all: an older file of that name stays until the new one is safe.

    Args:
      path: the file.
      arrays: of the weights, under PyTorch's names.
      provenance: what `provenance` reads again and PyTorch passes over: JSON, beside the tensors in the file.

    Raises:
      WeightFileError: another suffix, or a dtype that the format does not have.
    """
    file = pathlib.Path(path).expanduser()
    if file.suffix.lower() not in SUFFIXES:
        raise WeightFileError(
            f"{path}: weights are written to files that end in {', '.join(SUFFIXES)}; give a name that ends so."
        )
    if "://" in str(path):
        raise WeightFileError(f"{path}: weights are written to a disk; write them there and copy them to the bucket.")
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    said = {PROVENANCE: json.dumps(provenance)} if provenance else {}
    with replacing(file) as temporary:
        if file.suffix.lower() == ".safetensors":
            safetensors.numpy.save_file(plain, temporary, metadata={"format": "pt"} | said)
        else:
            write_torch(temporary, plain, said)


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_state_dict` was given of where the weights come from; {} in files of others, and in damaged ones."""
    with contextlib.suppress(OSError, ValueError, safetensors.SafetensorError):
        data = _mapped(pathlib.Path(path))
        if bytes(data[8:9]) == b"{":
            with safetensors.safe_open(path, framework="np") as opened:
                text = (opened.metadata() or {}).get(PROVENANCE, "{}")
        else:
            text = read_record(data, PROVENANCE)
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def shards(index: pathlib.Path) -> list[str]:
    """The files that the index of a sharded file names.

    Raises:
      WeightFileError: it is no such index.
    """
    return sorted(set(_weight_map(_mapped(index)).values()))


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


def _mapped(file: pathlib.Path) -> memoryview:
    """The file's bytes, which the system reads when they are looked at."""
    with open(file, "rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            raise WeightFileError("it is empty: download it again.")
        return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))


def _open_one(file: pathlib.Path, data: memoryview, container: str | None = None, ema: bool = False) -> Opened:
    head = bytes(data[:512])
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        opened = _choose(read_zip(data), container, ema)
    elif head[8:9] == b"{":  # before pickles, for the length in front of it may begin as they do
        opened = Opened(read_safetensors(file, data))
    elif PICKLED.match(head):
        opened = _choose(read_pickle(data), container, ema)
    elif flax_file.looks_like_msgpack(head):
        opened = Opened({}, variables=flax_file.variables(flax_file.read_msgpack(data)))
    else:
        raise WeightFileError(f"it is {_what_it_is(head)}")
    if long := max((name for name in opened.tensors if len(name) > MAX_NAME), default="", key=len):
        raise WeightFileError(
            f"the name {long[:40]!r}... of a tensor has {len(long)} characters, which no network needs."
        )
    if flax_file.has_flax_names(opened.tensors):
        return dataclasses.replace(opened, tensors={}, variables=flax_file.variables(flax_file.nested(opened.tensors)))
    return opened


def _choose(file: TorchFile, container: str | None, ema: bool) -> Opened:
    """The weights of a checkpoint; what else there is, is named in the log."""
    chosen, others = containers.choose(file.content, container, ema)
    for name, value in chosen.tensors.items():
        if isinstance(value, Inert) and containers.is_tensor(value) and not is_array(value):
            raise WeightFileError(f"tensor {name!r:.80} is {value.name}: only dense tensors of plain numbers are read.")
    tensors = {
        name: value for name, value in chosen.tensors.items() if isinstance(name, str) and containers.is_tensor(value)
    }
    if beside := sorted(shown(name)[:80] for name in chosen.tensors.keys() - tensors.keys()):
        logger.warning("passed over what is no tensor: %s", ", ".join(map(repr, beside[:8])))
    if file.unknown:
        names = ", ".join(repr(name[:80]) for name in sorted(file.unknown)[:8])
        logger.warning("passed over objects beside the weights, of which nothing was run: %s", names)
    if others:
        taken = f"{chosen.name[:60]!r} ({len(tensors)} tensors)"
        logger.warning("took the weights under %s and passed over %s", taken, containers.listed(others))
    return Opened(file.arrays(tensors), chosen.name or None, tuple(weights.name for weights in others[:MAX_OTHERS]))


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


def _open_index(index: pathlib.Path, data: memoryview) -> Opened:
    """The tensors of several files beside `index`."""
    places = _weight_map(data)
    shards: dict[str, set[str]] = {}
    for name, shard in places.items():
        shards.setdefault(shard, set()).add(name)
    arrays: dict[str, np.ndarray] = {}
    for shard, names in sorted(shards.items()):
        # A bare name: an index must not reach into other folders.
        file = index.parent / shard
        if pathlib.PurePath(shard).name != shard or "\\" in shard or not file.is_file():
            raise WeightFileError(f"its part {shard[:80]!r} is not a file beside it.")
        found = _open_one(file, _mapped(file)).tensors
        if set(found) != names:
            raise WeightFileError(f"its part {shard!r} does not hold the tensors that it says: download both again.")
        arrays |= found
    return Opened(arrays)


def _weight_map(data: memoryview) -> dict[str, str]:
    """Tensor -> file, of an index in JSON, `{"weight_map": {tensor: file}}`."""
    try:
        parsed = json.loads(bytes(data).decode()) if len(data) <= MAX_INDEX else None
    except (ValueError, RecursionError) as error:
        raise WeightFileError("it begins like an index in JSON, and is none: download it again.") from error
    places = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise WeightFileError('it is JSON, but not the index of a sharded file, {"weight_map": {tensor: file}}.')
    return places
