"""Fields of a network as plain values: what is equal then compares, hashes, is pickled and is written as equal."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np


class Part(functools.partial[Any]):
    """A `functools.partial` that equals another of the same function and arguments, and not itself alone."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Part):
            return NotImplemented
        try:
            return (self.func, self.args, self.keywords) == (other.func, other.args, other.keywords)
        except (TypeError, ValueError):  # of arrays, whose == is no answer: they are equal as the same objects alone
            return False

    def __hash__(self) -> int:
        return hash((len(self.args), frozenset(self.keywords)))  # an argument need not have one


def plain(value: Any) -> Any:
    """Lists and NumPy's arrays as tuples, inside and out, its numbers as Python's, a partial as a `Part`; else it."""
    if isinstance(value, list | tuple):
        items = map(plain, value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is functools.partial:
        arguments = {name: _part(argument) for name, argument in value.keywords.items()}
        return Part(value.func, *map(_part, value.args), **arguments)
    return value


def _part(argument: Any) -> Any:
    """An argument of a partial belongs to whoever reads it: only a partial inside is made comparable, too."""
    return plain(argument) if type(argument) is functools.partial else argument


def named(value: Any, table: Mapping[str, Any]) -> Any:
    """The name under which `value` stands in the table, or `value` where it is none of the table's."""
    return next((name for name, part in table.items() if _same(value, plain(part))), value)


def _same(value: Any, part: Any) -> bool:
    return value is part or (type(value) is type(part) and isinstance(value, Part | tuple) and value == part)
