"""Variables that Flax wrote: `flax.serialization.to_bytes`, and other files whose tensors have Flax's names.

The msgpack is read here and in place, for Flax's own reader copies all of it and makes as many objects as a file says.
"""

import logging
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import MAX_NAME, Budget
from resnet_jax.weights.files.pickled.torch_names import MAX_AXES

logger = logging.getLogger(__name__)

COLLECTIONS = ("params", "batch_stats")
# By these leaves Flax's names are told from PyTorch's, where a layer of blurring may have a kernel, too.
LEAF, TORCH_LEAF = "kernel", "weight"
# Dictionaries in dictionaries; a ResNet's variables have six.
DEPTH = 32
# Bytes of memory that a value may cost, at most, without what it holds.
COST = 160
DTYPES = {
    **{name: np.dtype(name) for name in ("bool", "float16", "float32", "float64", "complex64", "complex128")},
    **{f"{kind}{bits}": np.dtype(f"{kind}{bits}") for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# First byte of a value -> what follows: a layout of `struct` for its number or, if that is in the byte, the number.
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
NUMBERS = dict(zip((0xCA, 0xCB, *range(0xCC, 0xD4)), "fdBHIQbhiq", strict=True))
SIZED: dict[int, tuple[str, Any]] = {
    **{
        first + i: (kind, "BHI"[i])
        for first, kind in ((0xC4, "bytes"), (0xC7, "extension"), (0xD9, "text"))
        for i in range(3)
    },
    **{first + i: (kind, "HI"[i]) for first, kind in ((0xDC, "array"), (0xDE, "map")) for i in range(2)},
    **{0xD4 + i: ("extension", 1 << i) for i in range(5)},
}
# Flax's types of extensions: an array, and a scalar of NumPy's; both are (shape, dtype, bytes) in msgpack.
ARRAYS = (1, 3)


def looks_like_msgpack(head: bytes) -> bool:
    """Whether a file that begins so may be a dictionary in msgpack, whose first key is text."""
    keys = {0xDE: 3, 0xDF: 5}.get(head[0]) or (1 if 0x80 < head[0] < 0x90 else 0)
    return bool(keys) and len(head) > keys and (0xA0 <= head[keys] < 0xC0 or head[keys] in (0xD9, 0xDA))


def has_flax_names(names: Iterable[str]) -> bool:
    """Whether tensors of a flat file are Flax's."""
    leaves = {name.replace("/", ".").rpartition(".")[2] for name in names}
    return LEAF in leaves and TORCH_LEAF not in leaves


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A tree of arrays from names that are joined with "/" or, without such, with ".".

    Raises:
      WeightFileError: a name of an array begins another.
    """
    separator = "/" if any("/" in name for name in arrays) else "."
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split(separator)
        inner = tree
        for key in path[:DEPTH]:
            inner = inner.setdefault(key, {})
            if not isinstance(inner, dict):
                break
        if not isinstance(inner, dict) or leaf in inner or len(path) >= DEPTH:
            raise WeightFileError(f"the name {name[:80]!r} of a tensor is no place in a tree of variables.")
        inner[leaf] = array
    return tree


def variables(tree: dict[str, Any]) -> dict[str, Any]:
    """The collections `params` and `batch_stats` of a tree, which may also be that of `params` alone.

    Raises:
      WeightFileError: among them is something else than arrays.
    """
    if "params" not in tree:
        tree = {"params": tree}
    if others := sorted(tree.keys() - set(COLLECTIONS)):
        logger.warning("passed over what is not among the variables: %s", ", ".join(map(repr, others[:8])))
    found = {name: tree[name] for name in COLLECTIONS if name in tree}
    waiting = list(found.items())
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend((f"{path}.{key}", inner) for key, inner in value.items())
        elif not isinstance(value, np.ndarray):
            raise WeightFileError(f"{path[:80]!r} is a {type(value).__name__}, where variables are arrays.")
    return found


def read_msgpack(data: memoryview) -> dict[str, Any]:
    """The tree of a file by `flax.serialization.to_bytes`: dictionaries of arrays, views of the file.

    Raises:
      WeightFileError: it is damaged, hostile, or of values that Flax does not write.
    """
    reader = _Reader(data, Budget(len(data)))
    tree = reader.value()
    if reader.position != len(data) or not isinstance(tree, dict):
        raise WeightFileError("it begins like Flax's msgpack and does not end like it: it is damaged or cut short.")
    return tree


class _Reader:
    """Values of msgpack, one behind the other."""

    def __init__(self, data: memoryview, budget: Budget) -> None:
        self.data, self.position, self.budget = data, 0, budget

    def take(self, count: int) -> memoryview:
        found = self.data[self.position : self.position + count]
        if len(found) != count:
            raise WeightFileError("its msgpack is cut short.")
        self.position += count
        return found

    def byte(self) -> int:
        if self.position == len(self.data):
            raise WeightFileError("its msgpack is cut short.")
        self.position += 1
        return self.data[self.position - 1]

    def number(self, layout: str) -> Any:
        return struct.unpack(">" + layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size: int) -> str:
        if size > MAX_NAME:
            raise WeightFileError(
                f"its msgpack has a text of {size} bytes, longer than any name: it is no file of Flax's."
            )
        try:
            return str(self.take(size), "utf-8")
        except UnicodeDecodeError as error:
            raise WeightFileError("its msgpack has a text that is not UTF-8: it is damaged.") from error

    def value(self, depth: int = DEPTH) -> Any:
        """The next value; containers in it may be `depth` deep."""
        if not depth:
            raise WeightFileError(f"its msgpack has containers in containers, more than {DEPTH}: it is damaged.")
        self.budget.spend(COST)
        code = self.byte()
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 0x100
        if code in CONSTANTS:
            return CONSTANTS[code]
        if code in NUMBERS:
            return self.number(NUMBERS[code])
        kind, size = self.kind_and_size(code)
        match kind:
            case "map":
                return self.map(size, depth)
            case "array":
                return [self.value(depth - 1) for _ in range(size)]
            case "text":
                return self.text(size)
            case "bytes":
                return self.take(size)
        return _extension(self.byte(), self.take(size), self.budget)

    def kind_and_size(self, code: int) -> tuple[str, int]:
        if code in SIZED:
            kind, size = SIZED[code]
            return kind, size if isinstance(size, int) else self.number(size)
        if code < 0xC0:
            return ("map" if code < 0x90 else "array" if code < 0xA0 else "text"), code & (
                0x0F if code < 0xA0 else 0x1F
            )
        raise WeightFileError(f"its msgpack has the byte {code:#x}, which stands for nothing: it is damaged.")

    def map(self, size: int, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(size):
            key = self.value(depth - 1)
            if not isinstance(key, str) or key in found:
                raise WeightFileError("its msgpack has a key that is no text, or stands there twice: it is damaged.")
            found[key] = self.value(depth - 1)
        return found


def _extension(code: int, data: memoryview, budget: Budget) -> Any:
    """An array, from (shape, dtype, bytes); of other extensions, a complex number for instance, nothing is kept."""
    if code not in ARRAYS:
        return None
    reader = _Reader(data, budget)
    match reader.value(depth=3):
        case [[*shape], str() as name, memoryview() as contents] if name in DTYPES and reader.position == len(data):
            plain = len(shape) <= MAX_AXES and all(type(n) is int and n >= 0 for n in shape)
            if plain and math.prod(shape) * DTYPES[name].itemsize == len(contents):
                return np.ndarray(shape, DTYPES[name], contents)
    raise WeightFileError("an array in its msgpack is not as Flax writes it, or of a dtype that no ResNet has.")
