"""NumPy arrays in a pickle: what NumPy wrote of them, read in place and without NumPy's own functions for it.

The machine makes none of them. It leaves records of what was called, and with what; here they are understood:
`_reconstruct(type, ...)` and then the state (version, shape, dtype, Fortran order, bytes), `_frombuffer(bytes, dtype,
shape, order)` of protocol 5, and `scalar(dtype, bytes)`.
"""

import codecs
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import Budget, Global, Inert, Long, kind, unescaped
from resnet_jax.weights.files.pickled.torch_names import MAX_AXES

SCALAR = "scalar"
# What NumPy's functions are called since NumPy 2, and before.
FUNCTIONS = {
    f"numpy.{core}.{module}.{name}": name
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", SCALAR), ("numeric", "_frombuffer"))
}
TYPES = ("numpy.ndarray", "numpy.memmap")
DTYPES = {
    **{f"{kind}{size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    **{code: np.dtype(code) for code in ("b1", "f2", "f4", "f8", "c8", "c16")},
    "ml_dtypes.bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# How text is encoded that stands for bytes -> what decodes it, and says how much of it was whole.
DECODERS: dict[str | None, Any] = {
    "utf-8": codecs.utf_8_decode,
    "raw-unicode-escape": codecs.raw_unicode_escape_decode,
}
# Bytes of a text that are read at a time.
CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What a pickle says of an array, of whatever type."""

    shape: Any
    dtype: Any
    data: Any
    order: Any = "C"
    axes: Any = None  # the order in which the axes lie in memory, if it is neither C's nor Fortran's


def is_array(value: Any) -> bool:
    """Whether it was an array of NumPy's, or one of its scalars."""
    return isinstance(value, Inert) and value.name in FUNCTIONS


def has_axes(value: Inert) -> bool:
    """Whether it was an array and no scalar."""
    return FUNCTIONS[value.name] != SCALAR


def read_array(record: Inert, budget: Budget) -> np.ndarray:
    """The array, read-only: a view of the file, or of a copy where its bytes were written as text or big-endian.

    Raises:
      WeightFileError: it is damaged, or of objects, texts, dates or fields, where weights are numbers.
    """
    saved = _saved(record)
    dtype, shape = _dtype(saved.dtype), saved.shape
    axes = shape if isinstance(shape, tuple) and len(shape) <= MAX_AXES else (None,)
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in axes):
        raise WeightFileError("it has a shape that no array has.")
    data = _bytes(saved.data, budget)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WeightFileError(f"it has {len(data)} bytes for a shape of {shape[:8]} and a dtype of {dtype}.")
    array = np.ndarray(shape, dtype, data, order=saved.order)
    if saved.axes is not None:
        array = array.transpose(saved.axes)
    if not dtype.isnative:
        budget.spend(array.nbytes)
        array = array.astype(dtype.newbyteorder("="))
    array.flags.writeable = False
    return array


def _saved(record: Inert) -> _Saved:
    match FUNCTIONS[record.name], record.contents:
        case "_reconstruct", [(Global() as type_, *_), (int(), shape, dtype, bool() | int() as fortran, data)]:
            if type_.name in TYPES:
                return _Saved(shape, dtype, data, "F" if fortran else "C")
            raise WeightFileError(f"it is a {type_.name!r}, where plain arrays are read.")
        case "_frombuffer", [(data, dtype, shape, "C" | "F" as order)]:
            return _Saved(shape, dtype, data, order)
        case "_frombuffer", [(data, dtype, shape, "K", axes)] if _permutes(axes, shape):
            return _Saved(shape, dtype, data, axes=axes)
        case "scalar", [(dtype, data)]:
            return _Saved((), dtype, data)
    raise WeightFileError("it was not written as NumPy writes arrays.")


def _permutes(axes: Any, shape: Any) -> bool:
    if not (isinstance(axes, tuple) and isinstance(shape, tuple) and len(axes) == len(shape) <= MAX_AXES):
        return False
    return all(type(axis) is int for axis in axes) and sorted(axes) == [*range(len(shape))]


def _dtype(record: Any) -> np.dtype:
    """From the arguments of `numpy.dtype`, a code or a type, and its state (version, byte order, no fields, ...)."""
    match record:
        case Inert(name="numpy.dtype", contents=[(str() | Global() as code, *_), (int(), str() as order, a, b, c, *_)]):
            name = code if isinstance(code, str) else code.name
            dtype = DTYPES.get(name) if a is b is c is None else None  # no fields
            if dtype and (order == "<" or dtype.itemsize == 1):
                return dtype
            if dtype and order == ">":
                return dtype.newbyteorder()
            raise WeightFileError(f"it is of dtype {order[:1]}{name[:40]}, where weights are plain numbers.")
    raise WeightFileError(f"its dtype is a {kind(record)}, and not as NumPy writes it.")


def _bytes(value: Any, budget: Budget) -> memoryview:
    """Bytes, or what stands for them: a string of Python 2's, or text that was to be encoded (protocols 0 to 2)."""
    match value:
        case bytes():
            return memoryview(value)
        case Long(codec=None | "latin-1"):
            return value.data
        case Long(codec="escape"):
            budget.spend(len(value.data))
            return memoryview(unescaped(value.data))
        case (str() as text) | Inert(name="_codecs.encode", contents=[(str() as text, "latin1")]):
            budget.spend(len(text))
            return _latin1([text])
        case Inert(name="_codecs.encode", contents=[(Long() as text, "latin1")]) if text.codec in DECODERS:
            budget.spend(len(text.data))
            return _latin1(_parts(text.data, DECODERS[text.codec]))
        case Inert(name="bytes", contents=[()]):  # of no length
            return memoryview(b"")
    raise WeightFileError(f"its contents are a {kind(value)}, where those of an array of numbers are bytes.")


def _parts(data: memoryview, decode: Callable[[memoryview, str, bool], tuple[str, int]]) -> Iterator[str]:
    position = 0
    while position < len(data):
        chunk = data[position : position + CHUNK]
        part, used = decode(chunk, "strict", position + len(chunk) == len(data))
        position += used
        yield part


def _latin1(parts: Iterable[str]) -> memoryview:
    encoded = bytearray()
    try:
        for part in parts:
            encoded += part.encode("latin-1")
    except ValueError as error:
        raise WeightFileError("its contents are a text that does not stand for bytes.") from error
    return memoryview(encoded)
