"""Which operators change an image, and how much: drawn by TrivialAugment, RandAugment, AutoAugment and colour jitter.

A policy is a function of (rng, height, width) that draws the operations on an image of that size. It makes the draws
that torchvision makes, in its order, so both come to the same operations where both are given the same random numbers.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from resnet_jax.data.augment.subpolicies import SUBPOLICIES


class Operation(NamedTuple):
    """One operator of `operators.OPERATORS` and its magnitude."""

    name: str
    magnitude: float


Policy = Callable[[np.random.Generator, int, int], list[Operation]]

# Magnitudes of torchvision's policies --------------------------------------------------------------------------------

SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}


def linspace(first: float, last: float, count: int) -> np.ndarray:
    """PyTorch's `linspace`, in float32 and to its last bit: from both ends, multiplied and added with one rounding.

    TrivialAugment's 16 pixels are there 15.999999, which translates by 15.
    """
    first, last = float(np.float32(first)), float(np.float32(last))
    step = float((np.float32(last) - np.float32(first)) / np.float32(count - 1))
    place = np.arange(count)
    return np.where(place < count // 2, first + step * place, last - step * (count - 1 - place)).astype(np.float32)


def _magnitudes(
    num_bins: int, shear: float, translate: tuple[float, float], rotate: float, enhance: float, bits: int
) -> dict[str, np.ndarray | None]:
    """Operator -> its magnitudes `[num_bins]` from weak to strong; None for one that has none. The order is drawn from.

    Args:
      num_bins: magnitudes of each operator.
      shear: the strongest, as a tangent.
      translate: in pixels, of x and y.
      rotate: in degrees.
      enhance: of brightness, colour, contrast and sharpness.
      bits: that posterising takes at most.
    """
    up_to = functools.partial(linspace, 0.0, count=num_bins)
    return {
        "Identity": None,
        "ShearX": up_to(shear),
        "ShearY": up_to(shear),
        "TranslateX": up_to(translate[0]),
        "TranslateY": up_to(translate[1]),
        "Rotate": up_to(rotate),
        "Brightness": up_to(enhance),
        "Color": up_to(enhance),
        "Contrast": up_to(enhance),
        "Sharpness": up_to(enhance),
        "Posterize": 8 - np.round(np.arange(num_bins) / ((num_bins - 1) / bits)),
        "Solarize": linspace(255.0, 0.0, num_bins),
        "AutoContrast": None,
        "Equalize": None,
    }


@functools.cache
def wide_magnitudes(num_bins: int) -> dict[str, np.ndarray | None]:
    """TrivialAugment's, `Wide`: the same for every size of image."""
    return _magnitudes(num_bins, shear=0.99, translate=(32.0, 32.0), rotate=135.0, enhance=0.99, bits=6)


@functools.lru_cache(maxsize=64)
def magnitudes(num_bins: int, height: int, width: int) -> dict[str, np.ndarray | None]:
    """AutoAugment's and RandAugment's: translations follow the size, as 150 pixels were to the 331 of the search."""
    translate = (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    return _magnitudes(num_bins, shear=0.3, translate=translate, rotate=30.0, enhance=0.9, bits=4)


# Policies ---------------------------------------------------------------------------------------------------


def trivial_augment(rng: np.random.Generator, height: int, width: int, num_bins: int = 31) -> list[Operation]:
    """TrivialAugment, `Wide`: one operator of 14 at one magnitude, both uniform, as torchvision's `TrivialAugmentWide`.

    Reference: Mueller & Hutter 2021, arXiv:2103.10158.
    """
    space = wide_magnitudes(num_bins)
    name = list(space)[rng.integers(len(space))]
    strengths = space[name]
    magnitude = 0.0 if strengths is None else float(strengths[rng.integers(num_bins)])
    return [Operation(name, _either_sign(rng, name, magnitude))]


def rand_augment(
    rng: np.random.Generator, height: int, width: int, num_ops: int = 2, magnitude: int = 9, num_bins: int = 31
) -> list[Operation]:
    """RandAugment: `num_ops` operators of 14, all at bin `magnitude` of 0..num_bins - 1, as torchvision's.

    Reference: Cubuk et al. 2020, arXiv:1909.13719.
    """
    space = magnitudes(num_bins, height, width)
    operations = []
    for _ in range(num_ops):
        name = list(space)[rng.integers(len(space))]
        strengths = space[name]
        value = 0.0 if strengths is None else float(strengths[magnitude])
        operations.append(Operation(name, _either_sign(rng, name, value)))
    return operations


def auto_augment(rng: np.random.Generator, height: int, width: int, policy: str = "imagenet") -> list[Operation]:
    """AutoAugment: one of 25 pairs of operators, each applied with a probability of its own, as torchvision's.

    Args:
      rng: source of the pair, of whether and with which sign.
      height: of the image.
      width: of the image.
      policy: what was searched on, a name of `subpolicies.SUBPOLICIES`.

    Reference: Cubuk et al. 2019, arXiv:1805.09501.
    """
    space, pairs = magnitudes(10, height, width), SUBPOLICIES[policy]
    pair = pairs[rng.integers(len(pairs))]
    draws = rng.random(2), rng.integers(2, size=2)
    operations = []
    for (name, probability, step), draw, positive in zip(pair, *draws, strict=True):
        strengths = space.get(name)
        value = 0.0 if strengths is None else float(strengths[step])
        if draw <= probability:
            operations.append(Operation(name, value if positive or name not in SIGNED else -value))
    return operations


def _either_sign(rng: np.random.Generator, name: str, magnitude: float) -> float:
    return -magnitude if name in SIGNED and rng.integers(2) else magnitude


def color_jitter(
    rng: np.random.Generator, height: int, width: int, strengths: tuple[float, ...] = (0.4, 0.4, 0.4, 0.0)
) -> list[Operation]:
    """Brightness, contrast, saturation and hue by random factors in random order, as torchvision's `ColorJitter`.

    Args:
      rng: source of order and factors.
      height: of no effect.
      width: of no effect.
      strengths: of brightness, contrast and saturation, whose factors are uniform in 1 - s (at least 0) .. 1 + s, and
        of hue, which is turned by -s..s of the circle. One of 0 is left out.
    """
    order = rng.permutation(4)
    operations = {}
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    for number, (name, strength) in enumerate(zip(names, strengths, strict=True)):
        if strength:
            low, high = (-strength, strength) if name == "adjust_hue" else (max(1 - strength, 0.0), 1 + strength)
            operations[number] = Operation(name, float(rng.uniform(low, high)))
    return [operations[number] for number in order if number in operations]


# timm's RandAugment, of increasing severity: level 0..10 -> magnitude
LEVELS: dict[str, Callable[[float], float] | None] = {
    "AutoContrast": None,
    "Equalize": None,
    "Invert": None,
    "Rotate": lambda level: level / 10 * 30,
    # At level 10 timm keeps no bit, which made the image black, and which Pillow refuses by now.
    "Posterize": lambda level: max(4 - int(level / 10 * 4), 1),
    "Solarize": lambda level: 256 - min(256, int(level / 10 * 256)),
    "SolarizeAdd": lambda level: min(128, int(level / 10 * 110)),
    "Color": lambda level: level / 10 * 0.9,
    "Contrast": lambda level: level / 10 * 0.9,
    "Brightness": lambda level: level / 10 * 0.9,
    "Sharpness": lambda level: level / 10 * 0.9,
    "ShearX": lambda level: level / 10 * 0.3,
    "ShearY": lambda level: level / 10 * 0.3,
    "TranslateXRel": lambda level: level / 10 * 0.45,
    "TranslateYRel": lambda level: level / 10 * 0.45,
}
TIMM_SIGNED = SIGNED | {"TranslateXRel", "TranslateYRel"}


def timm_rand_augment(
    rng: np.random.Generator, height: int, width: int, magnitude: float, std: float = 0.0, num_ops: int = 2
) -> list[Operation]:
    """RandAugment as timm's `inc1`: `num_ops` of 15 operators, each left out half the time, at a normal random level.

    Args:
      rng: source of operators, levels and signs.
      height: of no effect.
      width: of no effect.
      magnitude: mean level, 0..10.
      std: of the level, which is then clipped to 0..10.
      num_ops: operators drawn.

    Reference: `rand_augment_transform` of timm (Wightman et al. 2021, arXiv:2110.00476, uses it).
    """
    operations = []
    for _ in range(num_ops):
        name = list(LEVELS)[rng.integers(len(LEVELS))]
        if rng.random() > 0.5:
            continue
        to_magnitude = LEVELS[name]
        value = 0.0 if to_magnitude is None else to_magnitude(min(max(rng.normal(magnitude, std), 0.0), 10.0))
        operations.append(Operation(name, -value if name in TIMM_SIGNED and rng.random() < 0.5 else value))
    return operations
