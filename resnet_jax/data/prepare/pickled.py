"""Reads the pickles in CIFAR's Python archives without running anything that they name.

They hold dicts, lists, strings, numbers and NumPy arrays. For the three names that pickled arrays refer to, stand-ins
are put that only note what they are given; every other name is refused.
"""

import io
import math
import pickle
from typing import Any, NoReturn

import numpy as np


class StoredType:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any, *_: Any):
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and fields: of no use for uint8, which is all that is read."""


class StoredArray:
    """Stands in for `numpy.ndarray`: keeps shape, type and bytes."""

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.by_columns, self.data = state

    def uint8(self) -> np.ndarray:
        """The array.

        Raises:
          ValueError: it is of another type, or not all there.
        """
        if not isinstance(self.type, StoredType) or self.type.code != "u1" or not isinstance(self.data, bytes):
            raise ValueError("the array is not of uint8")
        if len(self.data) != math.prod(self.shape):
            raise ValueError(f"the array has {len(self.data)} bytes for the shape {self.shape}")
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order="F" if self.by_columns else "C")


def _stored_array(*_: Any) -> StoredArray:
    return StoredArray()


def _latin1(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): StoredType,
    ("numpy", "ndarray"): StoredArray,
    ("numpy.core.multiarray", "_reconstruct"): _stored_array,
    ("numpy._core.multiarray", "_reconstruct"): _stored_array,
    ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in protocol 2
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no array does")
        return STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects elsewhere")


def load(where: str, data: bytes) -> dict[bytes, Any]:
    """The dict in a pickle of Python 2 or 3, with `StoredArray`s for arrays and bytes for all strings.

    Args:
      where: what is read, for messages.
      data: the pickle.

    Raises:
      ValueError: no such dict, or one that names anything else.
    """
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise ValueError(f"{where} is refused: {error}. Copy the archive again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}, not a dict: is it another archive?")
    return {key.encode() if isinstance(key, str) else key: item for key, item in value.items()}
