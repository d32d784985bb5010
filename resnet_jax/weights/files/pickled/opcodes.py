"""The opcodes of a pickle, each a short function on the state of `pickles.py`, and the loop that runs them."""

import struct
from collections.abc import Callable
from typing import Any

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import MAX_NAME, Global, Inert, Pickle, Unknown, kind, set_items

# Bytes of memory that an opcode may cost, at most. Arguments come on top, four bytes for each of theirs, since one wide
# character makes all of a string wide.
COST = 64
COSTLY = {b"}": 160, b"]": 120, b"\x8f": 120, b"q": 160, b"r": 160, b"\x94": 160, b"p": 160}
COSTLY |= {b"R": 512, b"\x81": 512, b"\x92": 512, b"Q": 512, b"c": 512, b"\x93": 512}
BYTE, UINT16, UINT32, UINT64 = (struct.Struct(f"<{letter}") for letter in "BHIQ")
# Digits of the longest number that stands in a line.
MAX_DIGITS = 100
INT32, DOUBLE = struct.Struct("<i"), struct.Struct(">d")


def run(p: Pickle) -> Any:
    """The value of a pickle; `p.position` is then behind it.

    Raises:
      WeightFileError: it is cut short, malformed, too large, or does what no checkpoint needs.
    """
    while (opcode := p.byte()) != STOP:
        if (function := OPCODES.get(opcode)) is None:
            raise WeightFileError(f"its pickle has the opcode {opcode:#x}, which no file of PyTorch's needs.")
        p.budget.spend(COSTS[opcode])
        function(p)
    value = p.pop()
    if p.stack or p.marks:
        raise WeightFileError("its pickle ends too early: it is damaged.")
    return value


def _text(codec: str | None, layout: struct.Struct) -> Callable[[Pickle], None]:
    return lambda p: p.push(p.string(p.sized(layout), codec))


def _quoted(p: Pickle) -> None:
    line = p.line()
    if len(line) < 2 or line[0] != line[-1] or line[0] not in b"'\"":
        raise WeightFileError("its pickle has a text without quotes: it is damaged.")
    p.push(p.string(line[1:-1], "escape"))


def _long(p: Pickle) -> None:
    p.push(int.from_bytes(p.sized(BYTE), "little", signed=True))


def _digits(read: Callable[[bytes], Any]) -> Callable[[Pickle], Any]:
    """A number that stands as digits in a line of its own."""

    def run(p: Pickle) -> Any:
        line = p.line()
        try:
            if len(line) <= MAX_DIGITS:
                return read(bytes(line))
        except ValueError:
            pass
        raise WeightFileError("its pickle has a line that is no number: it is damaged.")

    return run


def _extend(p: Pickle, values: list[Any]) -> None:
    target = p.pop()
    if isinstance(target, Inert):
        target.take(values)
    elif type(target) is list:
        target.extend(values)
    else:
        raise WeightFileError(f"its pickle appends to a {kind(target)}, which is no list.")
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
    module, name = (p.string(p.line(), "utf-8") for _ in range(2))
    _find(p, module, name)


def _stack_global(p: Pickle) -> None:
    name, module = p.pop(), p.pop()
    _find(p, module, name)


def _find(p: Pickle, module: Any, name: Any) -> None:
    if not (isinstance(name, str) and isinstance(module, str) and len(module) + len(name) < MAX_NAME):
        raise WeightFileError("its pickle names a global by something that is no text, or a very long one.")
    found = p.find_global(module, name)
    if isinstance(found, Unknown):
        p.unknown.add(found.name)
    p.push(found)


def _call(p: Pickle) -> None:
    arguments, function = p.pop(), p.pop()
    if isinstance(function, Unknown):
        return p.push(function)
    if not isinstance(function, Global) or function.call is None or not isinstance(arguments, tuple):
        raise WeightFileError(f"its pickle calls a {kind(function)}, which is nothing to call.")
    # It looks at its arguments, and may copy the containers among them.
    p.budget.spend(COST * len(arguments))
    p.budget.spend(sum(COSTLY[b"}"] * len(x) for x in arguments if isinstance(x, list | dict | tuple)))
    # What is made of something unknown is unknown itself.
    unknown = next((argument for argument in arguments if isinstance(argument, Unknown)), None)
    return p.push(unknown or function.call(arguments))


def _call_with_keywords(p: Pickle) -> None:
    keywords = p.pop()
    _call(p)
    if isinstance(p.stack[-1], Inert):  # none of our own functions looks at keywords
        p.stack[-1].take([keywords])


def _build(p: Pickle) -> None:
    """Sets attributes, in Python. Those of a dictionary are passed over here: `_metadata` of a state_dict."""
    state, target = p.pop(), p.pop()
    if isinstance(target, Inert):
        target.take([state])
    elif type(target) is not dict:
        raise WeightFileError(f"its pickle sets attributes of a {kind(target)}.")
    p.push(target)


# Python writes True and False as 01 and 00 in protocol 0, and Python 2 an L behind large integers.
BOOLEAN = _digits(lambda line: line == b"01" if line in (b"00", b"01") else int(line))
INTEGER = _digits(lambda line: int(line.removesuffix(b"L")))
FLOAT = _digits(float)

_OPCODES: dict[bytes, Callable[[Pickle], Any]] = {
    b"\x80": lambda p: p.take(1),  # protocol
    b"\x95": lambda p: p.take(8),  # frame
    b"(": lambda p: p.marks.append(len(p.stack)),
    b"0": lambda p: p.pop(),
    b"1": lambda p: p.pop_mark(),
    # scalars
    b"N": lambda p: p.push(None),
    b"\x88": lambda p: p.push(True),
    b"\x89": lambda p: p.push(False),
    b"J": lambda p: p.push(p.number(INT32)),
    b"K": lambda p: p.push(p.byte()),
    b"M": lambda p: p.push(p.number(UINT16)),
    b"\x8a": _long,
    b"G": lambda p: p.push(p.number(DOUBLE)),
    b"I": lambda p: p.push(BOOLEAN(p)),
    b"L": lambda p: p.push(INTEGER(p)),
    b"F": lambda p: p.push(FLOAT(p)),
    b"S": _quoted,
    b"V": lambda p: p.push(p.string(p.line(), "raw-unicode-escape")),
    # Bytes or text: Python 2 did not tell. Names are ASCII, and Latin-1 reads any byte.
    b"U": _text("latin-1", BYTE),
    b"T": _text("latin-1", INT32),
    b"X": _text("utf-8", UINT32),
    b"\x8c": _text("utf-8", BYTE),
    b"\x8d": _text("utf-8", UINT64),
    b"B": _text(None, UINT32),
    b"C": _text(None, BYTE),
    b"\x8e": _text(None, UINT64),
    b"\x96": _text(None, UINT64),  # a bytearray
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
    b"p": lambda p: p.put(INTEGER(p)),
    b"g": lambda p: p.get(INTEGER(p)),
    b"q": lambda p: p.put(p.byte()),
    b"r": lambda p: p.put(p.number(UINT32)),
    b"\x94": lambda p: p.put(len(p.memo)),
    b"h": lambda p: p.get(p.byte()),
    b"j": lambda p: p.get(p.number(UINT32)),
    # what a name stands for, and what it makes
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _call,
    b"\x81": _call,
    b"\x92": _call_with_keywords,
    b"b": _build,
    b"Q": lambda p: p.push(p.load_persistent(p.pop())),
}
# By number, which is quicker to look up.
OPCODES = {ord(opcode): run for opcode, run in _OPCODES.items()}
COSTS = {ord(opcode): COSTLY.get(opcode, COST) for opcode in _OPCODES}
STOP = ord(".")
