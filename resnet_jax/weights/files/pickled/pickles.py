"""The state of an interpreter for pickles that can make plain data and nothing else; `opcodes.py` runs it.

Python's own unpickler imports what a pickle names and calls it. This one is a stack machine of some fifty opcodes that
never imports: a global is looked up in a table that the caller gives, and only functions in that table are ever called.
It does not recurse, hashes nothing but scalars, and spends a budget of memory, so that no pickle can make it do more
work or take more memory than its file warrants. Opcodes are those of protocols 2 to 5 (PEP 307, PEP 3154, PEP 574),
and the strings of Python 2.
"""

import dataclasses
import struct
from collections.abc import Callable, Sequence
from typing import Any

from resnet_jax.weights.errors import WeightFileError

# Memory that a reader may take beyond the size of its file.
SPARE = 40 << 20
SCALARS = (str, int, float, bool, bytes, type(None))


@dataclasses.dataclass(slots=True)
class Budget:
    """Bytes that are left to all the pickles of one file."""

    left: int

    def spend(self, cost: int) -> None:
        self.left -= cost
        if self.left < 0:
            raise WeightFileError("its pickle would need much more memory than the file is large: it is no checkpoint.")


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Global:
    """What a name in a pickle stands for: `call` is a function of ours that takes the tuple of arguments, or None."""

    name: str
    call: Callable[[tuple[Any, ...]], Any] | None = None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Inert:
    """An object that the weights do not need: its class is remembered, its contents are not."""

    name: str


@dataclasses.dataclass(slots=True)
class Pickle:
    """The state of the machine.

    Attributes:
      data: bytes that begin, at `position`, with a pickle.
      find_global: gives the `Global` of (module, name) or raises.
      load_persistent: gives the value of a persistent id or raises.
      budget: memory that it may take.
    """

    data: memoryview
    position: int
    find_global: Callable[[str, str], Any]
    load_persistent: Callable[[Any], Any]
    budget: Budget
    stack: list[Any] = dataclasses.field(default_factory=list)
    marks: list[int] = dataclasses.field(default_factory=list)
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

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

    def sized(self, layout: struct.Struct) -> bytes:
        """Bytes that stand behind their number."""
        size = self.number(layout)
        if size < 0:
            raise WeightFileError("its pickle has a string of negative length: it is damaged.")
        found = self.take(size)
        self.budget.spend(4 * size)
        return bytes(found)

    def line(self) -> str:
        """A name up to the end of its line."""
        head = bytes(self.data[self.position : self.position + 512])
        name, newline, _ = head.partition(b"\n")
        if not newline:
            raise WeightFileError("its pickle has a name without an end.")
        self.position += len(name) + 1
        return text(name)

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
        self.memo[key] = self.pop()
        self.push(self.memo[key])

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise WeightFileError("its pickle asks for a value that it has not kept: it is damaged.")
        self.push(self.memo[key])


def set_items(target: Any, flat: Sequence[Any]) -> Any:
    """Puts `flat`, key after value, into a dictionary; anything else, and keys that are not plain, are refused."""
    if type(target) is not dict or len(flat) % 2:
        raise WeightFileError(f"its pickle puts items into a {kind(target)}, which is no dictionary.")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        plain = key if isinstance(key, tuple) else (key,)
        # Hashing recurses into tuples, and so must not meet deep ones; hashes of huge integers can be made to collide.
        if not all(isinstance(k, (*SCALARS, Global)) and not (isinstance(k, int) and abs(k) >> 64) for k in plain):
            raise WeightFileError(f"its pickle has a dictionary whose key is a {kind(key)}.")
        target[key] = value
    return target


def kind(value: Any) -> str:
    """What to call a value in a message."""
    return repr(value.name[:80]) if isinstance(value, Global | Inert) else type(value).__name__


def text(data: bytes) -> str:
    """UTF-8 bytes as text."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise WeightFileError("its pickle has a text that is not UTF-8: it is damaged.") from error
