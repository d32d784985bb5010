"""The opcodes of a pickle, each a short function on the state of `pickles.py`, and the loop that runs them."""

import struct
from collections.abc import Callable
from typing import Any

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import Global, Inert, Pickle, kind, set_items, text

# Bytes of memory that an opcode may cost, at most. Arguments come on top, four bytes for each of theirs, since one wide
# character makes all of a string wide.
COST = 64
COSTLY = {b"}": 160, b"]": 120, b"\x8f": 120, b"q": 160, b"r": 160, b"\x94": 160, b"R": 512, b"\x81": 512, b"Q": 512}
BYTE, UINT16, UINT32, UINT64 = (struct.Struct(f"<{letter}") for letter in "BHIQ")
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


def _python2_string(p: Pickle, layout: struct.Struct) -> None:
    # Bytes or text: Python 2 did not tell. Names are ASCII, and Latin-1 reads any byte.
    p.push(p.sized(layout).decode("latin-1"))


def _long(p: Pickle) -> None:
    p.push(int.from_bytes(p.sized(BYTE), "little", signed=True))


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
    b"U": lambda p: _python2_string(p, BYTE),
    b"T": lambda p: _python2_string(p, INT32),
    b"X": lambda p: p.push(text(p.sized(UINT32))),
    b"\x8c": lambda p: p.push(text(p.sized(BYTE))),
    b"\x8d": lambda p: p.push(text(p.sized(UINT64))),
    b"B": lambda p: p.push(p.sized(UINT32)),
    b"C": lambda p: p.push(p.sized(BYTE)),
    b"\x8e": lambda p: p.push(p.sized(UINT64)),
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
