"""One image: opening whatever holds it, and the sizes and offsets of resizing and cropping.

Resizing is Pillow's, antialiased, with torchvision's rounding of sizes and offsets, so that a network converted from
PyTorch sees the very pixels it was trained on.
"""

import functools
import importlib
import io
import logging
import os
import pathlib
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from resnet_jax.errors import Refusal

logger = logging.getLogger(__name__)

ImageArray = npt.NDArray[np.uint8]  # [height, width, channels]
Window: TypeAlias = tuple[int, int, int, int]  # top, left, height, width, in pixels
ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | ImageArray

MODES = {1: "L", 3: "RGB"}
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_RESIZED = 64_000_000  # pixels
DECODERS = ("opencv", "pillow")  # of training images; evaluation is Pillow's alone


class UnreadableImage(Refusal, ValueError):
    """One example cannot be had: its bytes are not there, are no whole image, or one too large or long to handle."""


def resolve_decoder(name: str) -> str:
    """The decoder of training images that a name stands for: "auto" is "opencv" where it can be imported.

    The two give slightly different pixels, so the answer belongs to what is recorded of a run.

    Args:
      name: "auto", "opencv" or "pillow".

    Returns:
      "opencv" or "pillow".

    Raises:
      ValueError: an unknown name.
      ImportError: "opencv", and it cannot be imported.
    """
    if name not in ("auto", *DECODERS):
        raise ValueError(f"decoder={name!r} is not known: use 'auto', 'opencv' or 'pillow'.")
    if name == "pillow":
        return name
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        if name == "auto":
            return "pillow"
        raise ImportError(
            f"decoder='opencv' needs OpenCV, which cannot be imported ({error}): pip install opencv-python-headless, "
            "or use 'pillow', whose pixels differ slightly."
        ) from error
    return "opencv"


# Opening ------------------------------------------------------------------------------------------------


def decode(data: bytes, channels: int = 3) -> ImageArray:
    """Decodes an encoded image (JPEG, PNG, ...) to [height, width, channels]; an EXIF orientation is not applied.

    Args:
      data: the whole file.
      channels: 1 for grey, 3 for RGB; images of other kinds are converted as `open_image` does it.

    Raises:
      UnreadableImage: not an image, or not all of one.
    """
    return to_array(open_image(data, channels))


def open_image(image: ImageLike, channels: int = 3) -> Image.Image:
    """A Pillow image in mode "L" or "RGB", all of it in memory; an EXIF orientation is not applied.

    Palettes, CMYK, 1-bit and other kinds are converted as by Pillow's `convert`, which drops an alpha channel. 16-bit
    grey keeps its high byte, as Pillow does with 16-bit colour; `convert` would make all from 256 on white.

    Args:
      image: a path, the bytes of a file, a Pillow image, or uint8 [height, width] or [height, width, 1, 3 or 4].
      channels: 1 for grey, 3 for RGB.

    Raises:
      UnreadableImage: not an image, not all of one, or too large for Pillow.
      OSError: a path that cannot be read.
      TypeError, ValueError: an array of another dtype or shape.
    """
    if channels not in MODES:
        raise ValueError(f"channels={channels}, but an image is decoded to 1 (grey) or 3 (RGB) channels.")
    if isinstance(image, np.ndarray):
        return _convert(from_array(image), channels)
    if isinstance(image, Image.Image):
        return _decode(image, "the image is", channels)
    if isinstance(image, bytes):
        return _decode(image, f"the {len(image)} bytes are", channels)
    return open_image(pathlib.Path(image).read_bytes(), channels)


def _decode(source: bytes | Image.Image, subject: str, channels: int) -> Image.Image:
    try:
        if isinstance(source, Image.Image):
            return _convert(source, channels)
        with Image.open(io.BytesIO(source)) as image:
            return _convert(image, channels)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{subject} not a whole image (of no known format)") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(
            f"{subject} not to be opened: {error} If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble over: SyntaxError, struct.error
        if is_the_systems(error):
            raise
        raise UnreadableImage(f"{subject} not a whole image ({error})") from error


def is_the_systems(error: Exception) -> bool:
    """Whether memory is short, or the operating system refused to load a plugin: Pillow's own OSError has no number."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


def _convert(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):
        image = _high_byte(image)
    elif image.mode == "F":
        raise UnreadableImage("an image of floating-point numbers has no known range: save it with 8 or 16 bits")
    if "transparency" in image.info:  # of no effect on the colours, but Pillow warns of losing it
        image = image.copy()
        del image.info["transparency"]
    converted = image.convert(MODES[channels])
    converted.load()
    return converted


def _high_byte(image: Image.Image) -> Image.Image:
    """16-bit grey, which Pillow keeps in a mode of 16 or of 32 bits, as 8-bit grey."""
    values = np.asarray(image)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise UnreadableImage(f"grey values of {low} to {high} do not fit into 16 bits: save it with 8 or 16 bits")
    _note_16_bits()
    return Image.fromarray((values >> 8).astype(np.uint8))


@functools.cache  # once in a process
def _note_16_bits() -> None:
    logger.warning("16-bit images are scaled to 8 bits; PyTorch's pipelines would turn all grey values above 255 white")


def from_array(array: ImageArray) -> Image.Image:
    """The Pillow image, in mode "L", "RGB" or "RGBA", of uint8 [height, width] or [height, width, 1, 3 or 4]."""
    if array.dtype != np.uint8:
        raise TypeError(f"an image array must be uint8, 0..255, got {array.dtype}.")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (1, 3, 4)) or not array.size:
        raise ValueError(f"an image array must be [height, width, 1, 3 or 4 channels], got shape {array.shape}.")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def to_array(image: Image.Image) -> ImageArray:
    """uint8 [height, width, channels] of an image in mode "L" or "RGB"."""
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array


# Sizes --------------------------------------------------------------------------------------------------


def shorter_to(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter side has `size` pixels; the longer is rounded down, as in torchvision's Resize.

    Raises:
      UnreadableImage: the result would have more than `MAX_RESIZED` pixels: the image is a line.
    """
    long = int(size * max(height, width) / min(height, width))
    if size * long > MAX_RESIZED:
        raise UnreadableImage(
            f"an image of {width} x {height} pixels, its shorter side resized to {size}, would be {long} pixels long, "
            f"more than {MAX_RESIZED // 10**6} megapixels: crop it first"
        )
    return (size, long) if height <= width else (long, size)


def resize_shorter(image: ImageArray, size: int, interpolation: str = "bilinear") -> ImageArray:
    """Resizes so that the shorter side has `size` pixels, as torchvision's `Resize`; raises as `shorter_to` does."""
    height, width = image.shape[:2]
    shape = shorter_to(height, width, size)
    return image if shape == (height, width) else resize(image, *shape, interpolation)


def resize(image: ImageArray, height: int, width: int, interpolation: str) -> ImageArray:
    """Pillow's antialiased resizing."""
    return to_array(from_array(image).resize((width, height), INTERPOLATIONS[interpolation]))


def center_crop(image: ImageArray, size: int) -> ImageArray:
    """The middle `size` x `size` pixels, as torchvision's `CenterCrop`: black is added where the image is smaller."""
    missing = [max(size - side, 0) for side in image.shape[:2]]
    if any(missing):
        image = np.pad(image, [(m // 2, (m + 1) // 2) for m in missing] + [(0, 0)])
    # Python's round, to the even neighbour, is what torchvision uses: an excess of 5 is cut 2 + 3, of 7 is cut 4 + 3.
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
