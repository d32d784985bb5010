"""Weight files to `{name: NumPy array}` and back. No code from a file is ever run."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
# Where a checkpoint of somebody's training script keeps the weights.
CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")


class WeightFileError(ValueError):
    """A file that cannot be read, or is not a file of weights."""


def load_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads `{name: array}` from a `.safetensors` file, or from PyTorch's (`.pth`, `.pt`, `.th`, `.bin`, `.tar`).

    PyTorch's formats are read by PyTorch, with `weights_only=True`: a pickle can only make tensors and containers.
    A checkpoint that keeps its weights under a name, such as `state_dict`, is unwrapped.

    Returns:
      Arrays in the dtype of the file; bfloat16 as `ml_dtypes.bfloat16`.

    Raises:
      WeightFileError: no such file, a damaged one, one of another kind, or one without weights.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise WeightFileError(f"{path}: there is no such file.")
    if file.suffix == ".safetensors":
        return _load_safetensors(file)
    if file.suffix in TORCH_SUFFIXES:
        return _load_torch(file)
    raise WeightFileError(
        f"{path}: the suffix {file.suffix!r} is not one of {', '.join(('.safetensors', *TORCH_SUFFIXES))}."
    )


def save_state_dict(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, whole or not at all: an older file of that name stays until the new one is safe."""
    file = pathlib.Path(path).expanduser()
    if file.suffix != ".safetensors":
        raise WeightFileError(f"{path}: weights are written as .safetensors; give a name that ends so.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(file) as temporary:
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, metadata={"format": "pt"}
        )


def as_numpy(tensor: Any) -> np.ndarray:
    """A NumPy array of the same values and dtype, from NumPy, JAX, or PyTorch (any layout, device or dtype).

    bfloat16 becomes `ml_dtypes.bfloat16`, bit for bit. The result may share memory with `tensor`.
    """
    if not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _load_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    # `safetensors.numpy` knows no bfloat16; its own parser, below, checks the header and gives the bytes.
    try:
        tensors = safetensors.deserialize(file.read_bytes())
    except safetensors.SafetensorError as error:
        raise WeightFileError(f"{file}: not a whole safetensors file ({error}); {_what_it_is(file)}") from error
    return {name: _from_bytes(file, name, entry) for name, entry in tensors}


def _from_bytes(file: pathlib.Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    dtypes = safetensors.numpy._TYPES | {"BF16": ml_dtypes.bfloat16}
    if entry["dtype"] not in dtypes:
        raise WeightFileError(f"{file}: tensor {name!r} is of dtype {entry['dtype']}, which no ResNet has.")
    return np.frombuffer(entry["data"], dtypes[entry["dtype"]]).reshape(entry["shape"])


def _load_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise WeightFileError(
            f'{file}: reading {file.suffix} files needs PyTorch: pip install "resnet-linen[torch]", or save the '
            "weights as .safetensors where PyTorch is installed."
        ) from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes of the reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightFileError(f"{file}: PyTorch cannot read it safely ({reason}); {_what_it_is(file)}") from error
    weights = _unwrap(content)
    if weights is None:
        raise WeightFileError(
            f"{file}: holds {_describe(content)}, not a dictionary of tensors, also not under "
            f"{', '.join(map(repr, CONTAINERS))}. Save model.state_dict()."
        )
    return {name: as_numpy(tensor) for name, tensor in weights.items()}


def _unwrap(content: Any) -> Mapping[str, Any] | None:
    """The dictionary of tensors in a checkpoint, or None."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(hasattr(value, "detach") for value in content.values()):
        return content
    return next((found for key in CONTAINERS if (found := _unwrap(content.get(key))) is not None), None)


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with the keys {sorted(map(str, content))[:8]}"
    return f"a {type(content).__name__}"


def _what_it_is(file: pathlib.Path) -> str:
    """A guess at what the file is instead, with what to do about it."""
    head = file.read_bytes()[:64] if file.stat().st_size < 1 << 20 else b""
    if file.stat().st_size == 0:
        return "it is empty: download it again."
    if head.lstrip()[:1] == b"<":
        return "it is a web page, perhaps an error message saved under this name: download it again."
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run `git lfs pull`."
    return "it is damaged, cut short or of another kind: download it again."


@contextlib.contextmanager
def _replacing(file: pathlib.Path) -> Iterator[str]:
    """Gives a temporary name beside `file`, and moves it there once it is on disk."""
    handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent)
    os.close(handle)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's own mode is for its owner alone
        os.replace(temporary, file)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
