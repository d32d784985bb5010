"""The state of an interpreter for pickles that can make plain data and nothing else; `opcodes.py` runs it.

Python's own unpickler imports what a pickle names and calls it. This one is a stack machine of some sixty opcodes that
never imports: a global is looked up in a table that the caller gives, and only functions in that table are ever called.
It does not recurse, hashes nothing but scalars, and spends a budget of memory, so that no pickle can make it do more
work or take more memory than its file warrants. Opcodes are those of protocols 0 to 5 (PEP 307, PEP 3154, PEP 574),
and the strings of Python 2.
"""

import codecs
import dataclasses
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from resnet_jax.weights.errors import WeightFileError

# Memory that a reader may take beyond the size of its file.
SPARE = 40 << 20
SCALARS = (str, int, float, bool, bytes, type(None))
# Longest name, of a global or of a storage. They are put together and hashed anew each time that they are used.
MAX_NAME = 512
# Bytes beyond which text and bytes are left where they stand: the contents of arrays, which need no copy.
LONG = 4096
# What stands in a string of Python 2's protocol 0: plain bytes, and escapes.
ESCAPES = re.compile(rb"(?:[^\\]|\\(?:[\\'\"nrt]|x[0-9a-f]{2}))*+", re.DOTALL)
# How far to look at once for the end of a line.
LINE = 512


@dataclasses.dataclass(slots=True)
class Budget:
    """Bytes that are left to all the pickles of one file of `file_size` bytes."""

    file_size: int
    left: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.left = self.file_size + SPARE

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise WeightFileError("reading it would need much more memory than the file is large: it is no checkpoint.")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Global:
    """What a name in a pickle stands for: `call` is a function of ours that takes the tuple of arguments, or None."""

    name: str
    call: Callable[[tuple[Any, ...]], Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """An object that was not made: its class, the arguments to make it of, and then what was to be put into it."""

    name: str
    contents: list[Any] = dataclasses.field(default_factory=list, repr=False)  # as deep as a file makes them

    def take(self, values: Sequence[Any]) -> None:
        """Remembers what was to be put into the object."""
        self.contents.extend(values)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Unknown(Inert):
    """A name that is in no table, or an object made by it: nothing but the name is remembered."""

    def take(self, values: Sequence[Any]) -> None:
        """Forgets them."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Long:
    """Text in a codec, or bytes (None), that are longer than any name and stand in the file as `data`."""

    data: memoryview
    codec: str | None


@dataclasses.dataclass(slots=True)
class Pickle:
    """The state of the machine.

    Attributes:
      data: bytes that begin, at `position`, with a pickle.
      find_global: gives what (module, name) means.
      load_persistent: gives the value of a persistent id or raises.
      budget: memory that it may take.
      unknown: the names that `find_global` did not know.
    """

    data: memoryview
    position: int
    find_global: Callable[[str, str], Any]
    load_persistent: Callable[[Any], Any]
    budget: Budget
    stack: list[Any] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)
    unknown: set[str] = dataclasses.field(default_factory=set)

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise WeightFileError("its pickle is cut short.")
        found = self.data[self.position : end]
        self.position = end
        return found

    def byte(self) -> int:
        """The next byte, an opcode or a small number."""
        if self.position >= len(self.data):
            raise WeightFileError("its pickle is cut short.")
        self.position += 1
        return self.data[self.position - 1]

    def number(self, layout: struct.Struct) -> Any:
        """The next number."""
        start = self.position
        self.position += layout.size
        if self.position > len(self.data):
            raise WeightFileError("its pickle is cut short.")
        return layout.unpack_from(self.data, start)[0]

    def sized(self, layout: struct.Struct) -> memoryview:
        """Bytes that stand behind their number."""
        size = self.number(layout)
        if size < 0:
            raise WeightFileError("its pickle has a string of negative length: it is damaged.")
        return self.take(size)

    def line(self) -> memoryview:
        """Bytes up to the end of their line."""
        start = self.position
        for at in range(start, len(self.data), LINE):
            if (found := bytes(self.data[at : at + LINE]).find(b"\n")) >= 0:
                self.position = at + found + 1
                return self.data[start : at + found]
        raise WeightFileError("its pickle has a line without an end.")

    def string(self, data: memoryview, codec: str | None) -> str | bytes | Long:
        """The text, in a codec, or the bytes that `data` stand for."""
        if len(data) > LONG:
            return Long(data, codec)
        self.budget.spend(4 * len(data))
        return decoded(data, codec) if codec else bytes(data)

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise WeightFileError("its pickle takes a value where there is none: it is damaged.")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """The values above the last mark."""
        if not self.marks:
            raise WeightFileError("its pickle looks for a mark where there is none: it is damaged.")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def put(self, key: int) -> None:
        if not 0 <= key < 1 << 32:
            raise WeightFileError("its pickle keeps a value under a number that none can have: it is damaged.")
        self.memo[key] = self.pop()
        self.push(self.memo[key])

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise WeightFileError("its pickle asks for a value that it has not kept: it is damaged.")
        self.push(self.memo[key])


def set_items(target: Any, flat: Sequence[Any]) -> Any:
    """Puts `flat`, key after value, into a dictionary; anything else, and keys that are not plain, are refused."""
    if len(flat) % 2:
        raise WeightFileError("its pickle puts a key without a value into a dictionary: it is damaged.")
    if isinstance(target, Inert):
        target.take(flat)
        return target
    if type(target) is not dict:
        raise WeightFileError(f"its pickle puts items into a {kind(target)}, which is no dictionary.")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        target[_plain(key)] = value
    return target


def _plain(key: Any) -> Any:
    """What stands for a key of a dictionary, and is hashed in no time.

    Hashes of tuples and of huge integers can be made to collide, and that of a tuple takes its length, again each time:
    no name of a tensor is either, so a tuple is remembered and not hashed.
    """
    if isinstance(key, tuple):
        return Inert("tuple", [key])
    if isinstance(key, Long):
        raise WeightFileError(
            f"its pickle has a dictionary with a name of {len(key.data)} bytes, which no network needs."
        )
    if not isinstance(key, (*SCALARS, Global, Inert)) or (isinstance(key, int) and abs(key) >> 64):
        raise WeightFileError(f"its pickle has a dictionary whose key is a {kind(key)}.")
    return key


def kind(value: Any) -> str:
    """What to call a value in a message."""
    if isinstance(value, Long):
        return f"{'text' if value.codec else 'string'} of {len(value.data)} bytes"
    return repr(value.name[:80]) if isinstance(value, Global | Inert) else type(value).__name__


def shown(key: Any) -> str:
    """A key of a dictionary in a message, which may cut it short."""
    return kind(key) if isinstance(key, Global | Inert) else str(key)


def decoded(data: memoryview, codec: str) -> str:
    """Bytes as text: "utf-8", "latin-1" or, in protocol 0, "raw-unicode-escape" and Python 2's "escape"."""
    try:
        if codec == "escape":
            return unescaped(data).decode("latin-1")
        if codec == "raw-unicode-escape":  # by its function, for Python looks up a codec of this name by an import
            return codecs.raw_unicode_escape_decode(data)[0]
        return str(data, codec, "surrogatepass" if codec == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise WeightFileError(f"its pickle has a text that is not {codec.upper()}: it is damaged.") from error


def unescaped(data: memoryview) -> bytes:
    """The bytes that Python 2 wrote as `repr` does."""
    if ESCAPES.fullmatch(data) is None:
        raise WeightFileError("its pickle has a text with an escape that Python does not write: it is damaged.")
    return codecs.escape_decode(bytes(data))[0]
