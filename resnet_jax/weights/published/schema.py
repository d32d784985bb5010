"""A configuration that somebody else wrote is what it should be, key by key, or is refused by the key's name."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a value must be, in words, and whether it is; None stands for a key that is not there."""

    words: str
    right: Callable[[Any], bool]

    def or_none(self) -> "Kind":
        """The same where the key may be missing, or null."""
        return Kind(f"{self.words}, or null", lambda value: value is None or self.right(value))

    def or_zero(self) -> "Kind":
        """The same where 0 stands for what another key says."""
        return Kind(f"{self.words}, or 0", lambda value: (type(value) is int and value == 0) or self.right(value))


# No size of a network, and no number of classes, is as large; JSON has numbers that no array can count to.
LARGEST = 2**31 - 1
# An image of more is larger than memory.
MOST_PIXELS = 2**16
# No stage has as many blocks; each is made before it is compared with the tensors.
BLOCKS = 1000


def whole(value: Any, least: int = 1, most: int = LARGEST) -> bool:
    """Whether it is a whole number; true and false are none."""
    return type(value) is int and least <= value <= most


def number(value: Any) -> bool:
    """Whether it is a number that float32 has, and so not NaN."""
    return type(value) in (int, float) and abs(value) < 2**127


def share(value: Any) -> bool:
    """Whether it is a part of a whole: more than a millionth, up to 1."""
    return number(value) and 1e-6 < value <= 1


def numbers(value: Any) -> bool:
    """Whether it is a list of them."""
    return isinstance(value, list | tuple) and all(map(number, value))


def wholes(value: Any, most: int = LARGEST) -> bool:
    """Whether it is a list of whole numbers, 1 or more, and not empty."""
    return isinstance(value, list | tuple) and bool(value) and all(whole(item, most=most) for item in value)


TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
COUNT = Kind("a whole number, 0 or more", lambda value: whole(value, 0))
PIXELS = Kind(f"a whole number of pixels, 1 to {MOST_PIXELS}", lambda value: whole(value, most=MOST_PIXELS))
NUMBERS = Kind("a list of numbers", numbers)
SHARE = Kind("a share of 1", share)
DEPTHS = Kind(f"the blocks of each stage, 1 to {BLOCKS}", lambda value: wholes(value, BLOCKS) and len(value) <= BLOCKS)
NAMES = Kind("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value))


def check(file: str, config: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuses values of another kind than `kinds` says.

    Args:
      file: its name, for the message.
      config: what it holds.
      kinds: by the key, of which "model.name" is one inside another.

    Raises:
      ValueError: one is of another kind.
    """
    for key, kind in kinds.items():
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not kind.right(value):
            raise ValueError(f"{file}: {key}={value!r:.60} must be {kind.words}.")
