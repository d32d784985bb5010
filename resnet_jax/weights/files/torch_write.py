"""Writes a zip that `torch.load(weights_only=True)` takes, without PyTorch: a pickle by hand, members uncompressed."""

import struct
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.torch_names import NAMES, StorageType

# NumPy's dtype -> PyTorch's class of storages.
STORAGES = {
    value.dtype: name.removeprefix("torch.")
    for name, value in NAMES.items()
    if isinstance(value, StorageType) and name.endswith("Storage") and name.count(".") == 1 and "UInt" not in name
    if value.dtype is not None and value.name != "bytes"
}
# Where PyTorch puts the first byte of each tensor, so that it can be mapped into memory.
ALIGNMENT = 64


def write_torch(path: str, arrays: Mapping[str, np.ndarray], records: Mapping[str, str]) -> None:
    """Writes C-contiguous `arrays` as an `OrderedDict` of tensors, and texts beside it, which PyTorch passes over.

    Raises:
      WeightFileError: PyTorch has no storage of an array's dtype.
    """
    for name, array in arrays.items():
        if array.dtype not in STORAGES:
            raise WeightFileError(f"tensor {name!r} is of dtype {array.dtype}, which is not written for PyTorch.")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, "data.pkl", b"".join(_pickle(arrays)))
        _write(archive, "byteorder", b"little")
        for i, array in enumerate(arrays.values()):
            _write(archive, f"data/{i}", array.tobytes())
        _write(archive, "version", b"3\n")
        for name, text in records.items():
            _write(archive, name, text.encode())


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # Always the same date, so that the same weights make the same file.
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(info.filename)
    # The padding is an extra field, of 4 bytes at least. Where zipfile adds one of its own (from 2 GiB on) the data are
    # not aligned, which PyTorch minds only when it maps the file.
    padding = -(start + 4) % ALIGNMENT
    info.extra = struct.pack("<2s H", b"FB", padding) + b"Z" * padding
    archive.writestr(info, content)


def _pickle(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes]:
    """The pickle, opcode by opcode: an OrderedDict whose values are calls of `_rebuild_tensor_v2`."""
    empty = b"ccollections\nOrderedDict\n)R"
    yield b"\x80\x02" + empty + b"("
    for i, (name, array) in enumerate(arrays.items()):
        storage = f"ctorch\n{STORAGES[array.dtype]}\n".encode()
        yield _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        yield b"(" + _text("storage") + storage + _text(str(i)) + _text("cpu") + _number(array.size) + b"tQ"
        strides = [stride // array.itemsize for stride in array.strides]
        yield _number(0) + _numbers(array.shape) + _numbers(strides) + b"\x89" + empty + b"tR"
    yield b"u."


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    # BININT, or LONG1 where 32 bits are too few.
    return b"J" + struct.pack("<i", value) if value < 1 << 31 else b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: tuple[int, ...] | list[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"
