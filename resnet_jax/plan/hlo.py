"""What the text of a compiled program tells: collectives, traffic to the main memory, results computed twice."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute",
    "collective-broadcast",
)  # fmt: skip
# Instructions that name what is there already, or whose work another one stands for.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
# Joins the pieces of an array that was fetched piece by piece, each already in its place: the name of what is there.
_JOIN = 'custom_call_target="ConcatBitcast"'
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](\{[^}]*\})?")


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often one kind of collective stands in a program, and the bytes of its results on one device."""

    count: int
    bytes: int


class Traffic(NamedTuple):
    """Bytes that a program moves: each operand and result of each instruction.

    Attributes:
      main_memory: read from and written to the main memory, by whatever.
      computing: operands and results of what computes, in whatever memory they lie.
      copying: copies between the memories, both ends. The compiler puts them in where it finds room inside the chip.
    """

    main_memory: int
    computing: int
    copying: int


class Instruction(NamedTuple):
    name: str
    type: str
    kind: str
    rest: str


class Buffer(NamedTuple):
    """An array's bytes, and whether it lies in the main memory and not in one inside the chip, `S(1)` in its layout."""

    bytes: int
    in_main_memory: bool


def collectives(text: str) -> dict[str, Collective]:
    """Kind -> count and size. What is asynchronous counts where it is done; a loop's body counts once."""
    found: dict[str, Collective] = {}
    for instructions in _computations(text)[1].values():
        for instruction in instructions:
            kind = instruction.kind.removesuffix("-done")
            if kind in COLLECTIVES:
                before = found.get(kind, Collective(0, 0))
                size = sum(buffer.bytes for buffer in _buffers(instruction.type))
                found[kind] = Collective(before.count + 1, before.bytes + size)
    return found


def recomputed(text: str) -> int:
    """Instructions that the compiler has put in to compute a result again rather than keep it; it marks their names."""
    _, computations = _computations(text)
    return sum(".remat" in instruction.name for found in computations.values() for instruction in found)


def traffic(text: str) -> Traffic:
    """Bytes moved, by what moves them; loops count as often as they run, where the compiler states it.

    The compiler's own count, "bytes accessed", is `computing` and more than `copying`: libtpu 0.0.42 counts a copy in
    one piece twice, and one in pieces one and a half times, for it takes their join, which moves nothing, for work.
    """
    entry, computations = _computations(text)
    return _traffic(computations, entry)


def _traffic(computations: dict[str, list[Instruction]], name: str) -> Traffic:
    types: dict[str, list[Buffer]] = {}
    found = [Traffic(0, 0, 0)]
    for instruction in computations[name]:
        types[instruction.name] = _buffers(instruction.type)
        if instruction.kind in _FREE or instruction.kind.endswith("-done") or _JOIN in instruction.rest:
            continue
        if instruction.kind == "while" and (body := re.search(r"body=%?([\w.-]+)", instruction.rest)):
            runs = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
            times = int(runs[1]) if runs else 1
            found.append(Traffic(*(times * value for value in _traffic(computations, body[1]))))
        else:
            found.append(_moved(instruction, types))
    return Traffic(*map(sum, zip(*found, strict=True)))


def _moved(instruction: Instruction, types: dict[str, list[Buffer]]) -> Traffic:
    """Of one instruction, given the arrays of those before it."""
    results = types[instruction.name]
    if instruction.kind in ("copy-start", "slice-start"):
        # Both ends of a move, of which one may be the whole that a slice is taken from, and a handle.
        ends = results[:2]
        size = min(end.bytes for end in ends)
        return Traffic(size * sum(end.in_main_memory for end in ends), 0, size * len(ends))
    operands = re.findall(r"%([\w.-]+)", instruction.rest.partition(")")[0])
    touched = results + [buffer for operand in operands for buffer in types.get(operand, [])]
    return Traffic(
        main_memory=sum(buffer.bytes for buffer in touched if buffer.in_main_memory),
        computing=sum(buffer.bytes for buffer in touched),
        copying=0,
    )


def _computations(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """The name of the entry, and name -> instructions."""
    entry = ""
    found: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif match := _INSTRUCTION.match(line):
            current.append(Instruction(*match.groups()))
    return entry, found


def _buffers(shape: str) -> list[Buffer]:
    return list(_parse(shape))


def _parse(shape: str) -> Iterator[Buffer]:
    """The arrays in a type: `f32[7,7]{1,0:T(8,128)S(1)}`, or a tuple of such; `pred` takes a byte."""
    for _, bits, sizes, layout in _ARRAY.findall(shape):
        count = math.prod(int(size) for size in sizes.split(",") if size)
        yield Buffer(count * max(int(bits or 8) // 8, 1), "S(" not in layout)
