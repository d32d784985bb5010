"""Changes of an image by one number, through Pillow, pixel for pixel as torchvision's and timm's policies make them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data.images import pillow
from resnet_jax.data.images.pillow import ImageArray

INTERPOLATIONS = {"nearest": Image.Resampling.NEAREST, **pillow.INTERPOLATIONS}


class Sampling(NamedTuple):
    """How the geometric operators find their pixels.

    Attributes:
      interpolation: "nearest", "bilinear" or "bicubic".
      fill: colour of what comes from outside the image, 0..255 for each channel, or one number for all.
    """

    interpolation: str = "nearest"
    fill: tuple[int, ...] = (0,)


DEFAULT = Sampling()
Operator = Callable[[Image.Image, float, Sampling], Image.Image]


def apply(image: ImageArray, name: str, magnitude: float, sampling: Sampling = DEFAULT) -> ImageArray:
    """One operator on uint8 [height, width, 1 or 3 channels].

    Args:
      image: it stays as it is.
      name: of `OPERATORS`.
      magnitude: in the operator's own unit, beside it in that table.
      sampling: of the geometric operators; the others pay no heed to it.

    Raises:
      KeyError: an unknown name.
    """
    return pillow.to_array(OPERATORS[name](pillow.from_array(image), magnitude, sampling))


# Geometry -----------------------------------------------------------------------------------------------


def _affine(image: Image.Image, matrix: tuple[float, ...], sampling: Sampling) -> Image.Image:
    """The pixel at (x, y) comes from (a x + b y + c, d x + e y + f), where `matrix` is (a, b, c, d, e, f)."""
    interpolation = INTERPOLATIONS[sampling.interpolation]
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, interpolation, fillcolor=_colour(image, sampling.fill)
    )


def _colour(image: Image.Image, fill: tuple[int, ...]) -> Any:
    channels = len(image.getbands())
    if len(fill) not in (1, channels):
        raise ValueError(
            f"fill={fill} has {len(fill)} entries, but the image has {channels} channels: give one for each, or one."
        )
    return fill[0] if channels == 1 else fill * channels if len(fill) == 1 else fill


# torchvision takes a shear through an angle in degrees and then, in x and in y, through two formulas. The last bit
# decides for a pixel that comes from halfway between two, so it is kept.


def _angle(magnitude: float) -> float:
    return math.radians(math.degrees(math.atan(magnitude)))


def _shear_x(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    return _affine(image, (1, math.tan(_angle(magnitude)), 0, 0, 1, 0), sampling)


def _shear_y(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    angle = _angle(magnitude)
    return _affine(image, (1, 0, 0, math.sin(angle) / math.cos(angle), 1, 0), sampling)


def _translate_x(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    return _affine(image, (1, 0, -int(magnitude), 0, 1, 0), sampling)


def _translate_y(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, -int(magnitude)), sampling)


# timm's pull the image where torchvision's push it, and not by whole pixels.


def _pull_x(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    return _affine(image, (1, 0, magnitude * image.width, 0, 1, 0), sampling)


def _pull_y(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, magnitude * image.height), sampling)


def _rotate(image: Image.Image, magnitude: float, sampling: Sampling) -> Image.Image:
    interpolation = INTERPOLATIONS[sampling.interpolation]
    return image.rotate(magnitude, interpolation, fillcolor=_colour(image, sampling.fill))


# Colour -------------------------------------------------------------------------------------------------


def _enhance(enhancer: Any, neutral: float = 0.0) -> Operator:
    """Blends the image with one that lacks a property; the factor is `neutral` + magnitude, and 1 changes nothing."""
    return lambda image, magnitude, _: enhancer(image).enhance(neutral + magnitude)


def _posterize(image: Image.Image, magnitude: float, _: Sampling) -> Image.Image:
    return ImageOps.posterize(image, int(magnitude))


def _solarize(image: Image.Image, magnitude: float, _: Sampling) -> Image.Image:
    return ImageOps.solarize(image, magnitude)  # type: ignore[arg-type]  # a threshold may lie between two levels


def _solarize_add(image: Image.Image, magnitude: float, _: Sampling) -> Image.Image:
    """Brightens what is darker than 128."""
    table = [min(255, level + int(magnitude)) if level < 128 else level for level in range(256)]
    return image.point(table * len(image.getbands()))


def _turn_hue(image: Image.Image, magnitude: float, _: Sampling) -> Image.Image:
    """Turns the hue by a part of the circle; grey images have none."""
    if image.mode == "L":
        return image
    hue, saturation, value = image.convert("HSV").split()
    shift = int(magnitude * 255)
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert(image.mode)


OPERATORS: dict[str, Operator] = {
    # of torchvision's policies
    "Identity": lambda image, *_: image,
    "ShearX": _shear_x,  # tangent of the angle
    "ShearY": _shear_y,
    "TranslateX": _translate_x,  # pixels to the right, cut off to whole ones
    "TranslateY": _translate_y,  # pixels down
    "Rotate": _rotate,  # degrees, counter-clockwise
    "Brightness": _enhance(ImageEnhance.Brightness, neutral=1.0),  # factor - 1, from -1 (black) on
    "Color": _enhance(ImageEnhance.Color, neutral=1.0),  # likewise, from grey on
    "Contrast": _enhance(ImageEnhance.Contrast, neutral=1.0),  # from the mean grey on
    "Sharpness": _enhance(ImageEnhance.Sharpness, neutral=1.0),  # from smoothed on
    "Posterize": _posterize,  # bits of each channel that stay, 0..8
    "Solarize": _solarize,  # levels from this one on, 0..256, are inverted
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(image),  # no magnitude
    "Equalize": lambda image, *_: ImageOps.equalize(image),  # no magnitude
    "Invert": lambda image, *_: ImageOps.invert(image),  # no magnitude
    # of timm's RandAugment besides
    "TranslateXRel": _pull_x,  # widths to the left
    "TranslateYRel": _pull_y,  # heights up
    "SolarizeAdd": _solarize_add,  # levels added to those below 128
    # of colour jitter
    "adjust_brightness": _enhance(ImageEnhance.Brightness),  # factor, 0 or more
    "adjust_contrast": _enhance(ImageEnhance.Contrast),
    "adjust_saturation": _enhance(ImageEnhance.Color),
    "adjust_hue": _turn_hue,  # turns, -0.5..0.5
}
