"""An interpreter for pickles that can make plain data and nothing else.

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

# Bytes of memory that an opcode may cost, at most. Arguments come on top, four bytes for each of theirs, since one wide
# character makes all of a string wide.
COST = 64
COSTLY = {b"}": 160, b"]": 120, b"\x8f": 120, b"q": 160, b"r": 160, b"\x94": 160, b"R": 512, b"\x81": 512, b"Q": 512}
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

    def run(self) -> Any:
        """The value of the pickle; `position` is then behind it.

        Raises:
          WeightFileError: it is cut short, malformed, too large, or does what no checkpoint needs.
        """
        while (opcode := bytes(self.take(1))) != b".":
            if opcode not in OPCODES:
                raise WeightFileError(f"its pickle has the opcode {opcode!r}, which no file of PyTorch's needs.")
            self.budget.spend(COSTLY.get(opcode, COST))
            OPCODES[opcode](self)
        value = self.pop()
        if self.stack or self.marks:
            raise WeightFileError("its pickle ends too early: it is damaged.")
        return value

    def take(self, count: int) -> memoryview:
        """The next `count` bytes."""
        end = self.position + count
        if end > len(self.data):
            raise WeightFileError("its pickle is cut short.")
        found = self.data[self.position : end]
        self.position = end
        return found

    def number(self, layout: str) -> Any:
        """The next number, in `struct`'s notation."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def sized(self, layout: str) -> bytes:
        """Bytes that stand behind their number."""
        found = self.take(self.number(layout))
        self.budget.spend(4 * len(found))
        return bytes(found)

    def line(self) -> str:
        """A name up to the end of its line."""
        head = bytes(self.data[self.position : self.position + 512])
        name, newline, _ = head.partition(b"\n")
        if not newline:
            raise WeightFileError("its pickle has a name without an end.")
        self.position += len(name) + 1
        return _text(name)

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
        if not all(isinstance(k, SCALARS + (Global,)) and not (isinstance(k, int) and abs(k) >> 64) for k in plain):
            raise WeightFileError(f"its pickle has a dictionary whose key is a {kind(key)}.")
        target[key] = value
    return target


def kind(value: Any) -> str:
    """What to call a value in a message."""
    return repr(value.name[:80]) if isinstance(value, Global | Inert) else type(value).__name__


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise WeightFileError("its pickle has a text that is not UTF-8: it is damaged.") from error


def _python2_string(p: Pickle, layout: str) -> None:
    # Bytes or text: Python 2 did not tell. Names are ASCII, and Latin-1 reads any byte.
    if (size := p.number(layout)) < 0:
        raise WeightFileError("its pickle has a string of negative length: it is damaged.")
    p.budget.spend(4 * size)
    p.push(bytes(p.take(size)).decode("latin-1"))


def _long(p: Pickle) -> None:
    p.push(int.from_bytes(p.sized("<B"), "little", signed=True))


def _extend(p: Pickle, values: list[Any]) -> None:
    target = p.pop()
    if type(target) is not list:
        raise WeightFileError(f"its pickle appends to a {kind(target)}, which is no list.")
    target.extend(values)
    p.push(target)


def _tuple(count: int) -> Callable[[Pickle], None]:
    return lambda p: p.push(tuple([p.pop() for _ in range(count)][::-1]))


def _set_item(p: Pickle) -> None:
    value, key = p.pop(), p.pop()
    p.push(set_items(p.pop(), [key, value]))


def _set_items(p: Pickle) -> None:
    flat = p.pop_mark()
    p.push(set_items(p.pop(), flat))


def _global(p: Pickle) -> None:
    p.push(p.find_global(p.line(), p.line()))


def _stack_global(p: Pickle) -> None:
    name, module = p.pop(), p.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise WeightFileError("its pickle names a global by something that is no text.")
    p.push(p.find_global(module, name))


def _call(p: Pickle) -> None:
    arguments, function = p.pop(), p.pop()
    if not isinstance(function, Global) or function.call is None or not isinstance(arguments, tuple):
        raise WeightFileError(f"its pickle calls a {kind(function)}, which is nothing to call.")
    # It may copy the containers that it is given.
    p.budget.spend(sum(COSTLY[b"}"] * len(x) for x in arguments if isinstance(x, list | dict | tuple)))
    p.push(function.call(arguments))


def _call_with_keywords(p: Pickle) -> None:
    p.pop()  # none of our functions looks at keywords
    _call(p)


def _build(p: Pickle) -> None:
    """Sets attributes, in Python. Here they are passed over: `_metadata` of a state_dict, an optimizer's settings."""
    p.pop()
    target = p.pop()
    if type(target) is not dict and not isinstance(target, Inert):
        raise WeightFileError(f"its pickle sets attributes of a {kind(target)}.")
    p.push(target)


OPCODES: dict[bytes, Callable[[Pickle], Any]] = {
    b"\x80": lambda p: p.take(1),  # protocol
    b"\x95": lambda p: p.take(8),  # frame
    b"(": lambda p: p.marks.append(len(p.stack)),
    b"0": lambda p: p.pop(),
    b"1": lambda p: p.pop_mark(),
    # scalars
    b"N": lambda p: p.push(None),
    b"\x88": lambda p: p.push(True),
    b"\x89": lambda p: p.push(False),
    b"J": lambda p: p.push(p.number("<i")),
    b"K": lambda p: p.push(p.number("<B")),
    b"M": lambda p: p.push(p.number("<H")),
    b"\x8a": _long,
    b"G": lambda p: p.push(p.number(">d")),
    b"U": lambda p: _python2_string(p, "<B"),
    b"T": lambda p: _python2_string(p, "<i"),
    b"X": lambda p: p.push(_text(p.sized("<I"))),
    b"\x8c": lambda p: p.push(_text(p.sized("<B"))),
    b"\x8d": lambda p: p.push(_text(p.sized("<Q"))),
    b"B": lambda p: p.push(p.sized("<I")),
    b"C": lambda p: p.push(p.sized("<B")),
    b"\x8e": lambda p: p.push(p.sized("<Q")),
    # containers; a set, which no weights are in, is kept as a list, so that nothing is hashed
    b"]": lambda p: p.push([]),
    b"l": lambda p: p.push(p.pop_mark()),
    b"a": lambda p: _extend(p, [p.pop()]),
    b"e": lambda p: _extend(p, p.pop_mark()),
    b"\x8f": lambda p: p.push([]),
    b"\x90": lambda p: _extend(p, p.pop_mark()),
    b"\x91": lambda p: p.push(tuple(p.pop_mark())),
    b")": lambda p: p.push(()),
    b"t": lambda p: p.push(tuple(p.pop_mark())),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"}": lambda p: p.push({}),
    b"d": lambda p: p.push(set_items({}, p.pop_mark())),
    b"s": _set_item,
    b"u": _set_items,
    # the memo
    b"q": lambda p: p.put(p.number("<B")),
    b"r": lambda p: p.put(p.number("<I")),
    b"\x94": lambda p: p.put(len(p.memo)),
    b"h": lambda p: p.get(p.number("<B")),
    b"j": lambda p: p.get(p.number("<I")),
    # what a name stands for, and what it makes
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _call,
    b"\x81": _call,
    b"\x92": _call_with_keywords,
    b"b": _build,
    b"Q": lambda p: p.push(p.load_persistent(p.pop())),
}
