"""Safetensors files to `{name: array}` in place: the library checks the header, the arrays are views of the file."""

import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from resnet_jax.weights.errors import WeightFileError

# Names of safetensors -> dtypes of NumPy. Eight-bit floats are left out: no ResNet has them.
SAFETENSORS_DTYPES: dict[str, Any] = {
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    **{
        f"{letter}{bits}": f"{kind}{bits}"
        for letter, kind in {"I": "int", "U": "uint"}.items()
        for bits in (8, 16, 32, 64)
    },
    **{"BOOL": "bool", "C64": "complex64", "BF16": ml_dtypes.bfloat16},
}
# Largest header that is parsed; that of a ResNet of a thousand layers has a tenth of this.
MAX_HEADER = 4 << 20


def read_safetensors(file: pathlib.Path, data: memoryview) -> dict[str, np.ndarray]:
    """Reads a file, of which `data` are the bytes, in place.

    Raises:
      WeightFileError: it is damaged, or has a dtype that no ResNet has.
    """
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise WeightFileError(f"its header is said to have {size} bytes: it is damaged, or no safetensors file.")
    try:
        # The library checks the header: sizes agree with dtypes and shapes, and tensors follow each other without gaps.
        with safetensors.safe_open(file, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.offset_keys()}
    except safetensors.SafetensorError as error:
        raise WeightFileError(f"it is no whole safetensors file ({error!s:.200}): download it again.") from error
    arrays, position = {}, 8 + size
    for name, entry in slices.items():
        if entry.get_dtype() not in SAFETENSORS_DTYPES:
            raise WeightFileError(f"tensor {name[:80]!r} is of dtype {entry.get_dtype()}, which no ResNet has.")
        shape, dtype = entry.get_shape(), SAFETENSORS_DTYPES[entry.get_dtype()]
        try:
            arrays[name] = np.ndarray(shape, dtype, buffer=data, offset=position)
        except ValueError as error:
            raise WeightFileError(f"tensor {name[:80]!r} is of a shape that NumPy does not have ({error}).") from error
        position += arrays[name].nbytes
    return arrays
