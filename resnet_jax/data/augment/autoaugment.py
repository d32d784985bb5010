"""The name of an augmentation policy -> a function that changes an image."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from resnet_jax.data.augment import policies
from resnet_jax.data.augment.operators import INTERPOLATIONS, OPERATORS, Sampling
from resnet_jax.data.images.pillow import ImageArray, from_array, to_array

# timm's default: each operator with one of the two, by chance.
EITHER = ("bilinear", "bicubic")
NO_JITTER = (0.0, 0.0, 0.0, 0.0)
NUM_BINS = 31  # magnitudes of RandAugment


@dataclasses.dataclass(frozen=True)
class Kind:
    """A policy and the sampling that its reference implementation has by default."""

    policy: policies.Policy
    interpolation: str = "nearest"  # one of `operators.INTERPOLATIONS`, or "random"
    fill: str = "black"  # or "mean"


KINDS = {
    "trivial": Kind(policies.trivial_augment),
    "rand": Kind(policies.rand_augment),
    "auto": Kind(functools.partial(policies.auto_augment, policy="imagenet")),
    "auto_cifar10": Kind(functools.partial(policies.auto_augment, policy="cifar10")),
}
TIMM_EXAMPLE = "rand-m7-mstd0.5-inc1"
TIMM = re.compile(r"rand-m(\d+)(?:-n(\d+))?(?:-mstd(\d+(?:\.\d+)?))?-inc1")


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The operations of one policy after the other, as a picklable function; see `create_augmentation`."""

    policies: tuple[policies.Policy, ...]
    interpolation: str
    fill: tuple[int, ...]

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        """Changes uint8 [height, width, 1 or 3 channels]; the size stays."""
        operations = [operation for policy in self.policies for operation in policy(rng, *image.shape[:2])]
        if not operations:  # spares the way to Pillow and back
            return image
        changed = from_array(image)
        for name, magnitude in operations:
            changed = OPERATORS[name](changed, magnitude, Sampling(self._interpolation(rng), self.fill))
        return to_array(changed)

    def _interpolation(self, rng: np.random.Generator) -> str:
        return EITHER[rng.integers(2)] if self.interpolation == "random" else self.interpolation


def create_augmentation(
    name: str = "none",
    *,
    num_ops: int | None = None,
    magnitude: int | None = None,
    interpolation: str | None = None,
    fill: str | None = None,
    color_jitter: Sequence[float] = NO_JITTER,
    mean: tuple[int, ...] = (0,),
) -> Augmentation | None:
    """A policy, and colour jitter after it, as one function of (image, rng).

    Args:
      name: "none", "trivial" (TrivialAugment), "rand" (RandAugment), "auto" or "auto_cifar10" (AutoAugment's policy for
        ImageNet or CIFAR-10), all as in torchvision; or timm's RandAugment in timm's notation,
        "rand-m7-mstd0.5-inc1": levels around 7 of 10 with a deviation of 0.5, and "-n2" behind m7 for two operators.
      num_ops: operators on each image; "rand" only. None: 2.
      magnitude: bin of 0..30; "rand" only. None: 9.
      interpolation: of the geometric operators: "nearest", "bilinear", "bicubic", or "random", one of the last two for
        each. None: "nearest" as torchvision's classes have it, or timm's "random".
      fill: what comes from outside the image: "black" or "mean". None: "black", or timm's "mean".
      color_jitter: strengths of brightness, contrast, saturation and hue, as `policies.color_jitter` takes them.
      mean: colour of "mean", 0..255 for each channel, or one number for all.

    Returns:
      The function, or None where there is nothing to do.

    Raises:
      ValueError: an unknown name, a number out of range, or an argument that the policy does not read.
    """
    _check_jitter(color_jitter)
    jitter = tuple(float(strength) for strength in color_jitter)
    after = (functools.partial(policies.color_jitter, strengths=jitter),) if any(jitter) else ()
    if name != "rand":
        _refuse(name, "augment_ops", num_ops)
        _refuse(name, "augment_magnitude", magnitude)
    if name == "none":
        _refuse(name, "augment_interpolation", interpolation)
        _refuse(name, "augment_fill", fill)
        return Augmentation(after, "nearest", (0,)) if after else None
    kind = _kind(name)
    policy = _rand_augment(num_ops, magnitude) if name == "rand" else kind.policy
    interpolation = kind.interpolation if interpolation is None else interpolation
    fill = kind.fill if fill is None else fill
    _check_sampling(interpolation, fill)
    return Augmentation((policy, *after), interpolation, mean if fill == "mean" else (0,))


def _kind(name: str) -> Kind:
    if name in KINDS:
        return KINDS[name]
    match = TIMM.fullmatch(name)
    if not match or int(match[1]) > 10 or match[2] == "0":
        known = ", ".join(map(repr, ("none", *KINDS, TIMM_EXAMPLE)))
        raise ValueError(
            f"augment={name!r} is not known: use one of {known}, the last with any level m of 0..10, number of "
            "operators -n from 1 on and deviation mstd."
        )
    policy = functools.partial(
        policies.timm_rand_augment, magnitude=float(match[1]), num_ops=int(match[2] or 2), std=float(match[3] or 0)
    )
    return Kind(policy, "random", "mean")


def _rand_augment(num_ops: int | None, magnitude: int | None) -> policies.Policy:
    num_ops = 2 if num_ops is None else num_ops
    magnitude = 9 if magnitude is None else magnitude
    if num_ops < 1 or not 0 <= magnitude < NUM_BINS:
        raise ValueError(
            f"augment_ops={num_ops} must be 1 or more, and augment_magnitude={magnitude} lie in 0..{NUM_BINS - 1}."
        )
    return functools.partial(policies.rand_augment, num_ops=num_ops, magnitude=magnitude, num_bins=NUM_BINS)


# Refusals -----------------------------------------------------------------------------------------------


def _refuse(name: str, key: str, value: int | str | None) -> None:
    """What is given and has no effect would mislead."""
    if value is not None:
        fitting = "give augment a policy's name" if name == "none" else "use augment='rand'"
        raise ValueError(f"{key}={value!r} has no effect with augment={name!r}: leave it out, or {fitting}.")


def _check_sampling(interpolation: str, fill: str) -> None:
    if interpolation not in (*INTERPOLATIONS, "random"):
        known = ", ".join(map(repr, (*INTERPOLATIONS, "random")))
        raise ValueError(f"augment_interpolation={interpolation!r} is not known: use one of {known}.")
    if fill not in ("black", "mean"):
        raise ValueError(f"augment_fill={fill!r} is not known: use 'black' or 'mean'.")


def _check_jitter(strengths: Sequence[float]) -> None:
    if len(strengths) != 4 or min(strengths) < 0 or strengths[3] > 0.5:
        raise ValueError(
            f"color_jitter={tuple(strengths)} must be the strengths of brightness, contrast, saturation and hue: four "
            "numbers of 0 or more, the last at most 0.5."
        )
