"""Decoding and resizing by OpenCV, for training: faster than Pillow, and as well antialiased, but other pixels."""

import functools
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.data import jpeg
from resnet_jax.data.augment import Window
from resnet_jax.data.images import ImageArray, UnreadableImage


@functools.cache
def _cv2() -> Any:
    """OpenCV, without threads of its own: the pipeline's threads and processes already use every core."""
    import cv2

    cv2.setNumThreads(0)
    return cv2


def version() -> str:
    """OpenCV's."""
    return str(_cv2().__version__)


def read_header(data: bytes, channels: int) -> jpeg.Header | None:
    """The header of a JPEG that OpenCV decodes to `channels`; None stands for whatever is left to `images.decode`.

    Colour JPEGs of grey data sets are among these, since the two libraries round differently when they make grey; and
    what is too large, of which Pillow warns.
    """
    header = jpeg.read_header(data)
    if header is None or header.channels > channels:
        return None
    limit = Image.MAX_IMAGE_PIXELS
    return None if limit is not None and header.height * header.width > limit else header


def decode_window(data: bytes, header: jpeg.Header, window: Window, size: int, channels: int) -> ImageArray:
    """Decodes a window of a JPEG, which is to be resized to `size`: the pixels of the whole image, cut out.

    A window of at least twice (4, 8 times) `size` comes at a half (quarter, eighth) of its size, its edges rounded:
    the inverse cosine transform then makes each block smaller, which is antialiased and several times faster.

    Args:
      data: the whole file.
      header: of `data`, from `read_header`.
      window: top, left, height and width in pixels.
      size: pixels, height and width that the window will be resized to.
      channels: 1 for grey, 3 for RGB.

    Raises:
      UnreadableImage: not all of an image.
    """
    cv2 = _cv2()
    top, left, height, width = window
    reduction = next((factor for factor in (8, 4, 2) if min(height, width) >= factor * size), 1)
    encoded, rows = jpeg.cut(data, header, top + height)
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _flags(channels, reduction))
    except cv2.error as error:
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image ({error})") from error
    if image is None or image.shape[:2] != (-(-rows // reduction), -(-header.width // reduction)):
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image (the JPEG's pixels end too early)")
    window_rows, window_columns = (
        slice(round(start / reduction), round((start + length) / reduction))
        for start, length in ((top, height), (left, width))
    )
    decoded: ImageArray = image.reshape(*image.shape[:2], channels)[window_rows, window_columns]
    return decoded


@functools.cache
def _flags(channels: int, reduction: int) -> int:
    """Without the last flag OpenCV turns images as EXIF says, which neither Pillow nor torchvision does."""
    cv2 = _cv2()
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    reduced = 0 if reduction == 1 else getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduction}")
    return int(reduced | colour | cv2.IMREAD_IGNORE_ORIENTATION)


def resize(image: ImageArray, size: int) -> ImageArray:
    """Antialiased resizing to `size` x `size`, within about one level in 255 of Pillow's bilinear on photos.

    Down to a half: three taps of smoothing, then plain bilinear interpolation. That is as near to Pillow as OpenCV's
    INTER_AREA, in half the time. Beyond that INTER_AREA. Plain interpolation alone would be faster still, but it passes
    over pixels and is two to five levels off; only down to 1 / 1.25 it is as good.
    """
    cv2 = _cv2()
    channels = image.shape[2]
    rows, columns = image.shape[0] / size, image.shape[1] / size
    interpolation = cv2.INTER_AREA if max(rows, columns) > 2 else cv2.INTER_LINEAR
    if 1.25 < max(rows, columns) <= 2:
        kernels = _smoothing(columns), _smoothing(rows)
        image = cv2.sepFilter2D(image, -1, *kernels, borderType=cv2.BORDER_REPLICATE)
    resized: ImageArray = cv2.resize(image, (size, size), interpolation=interpolation).reshape(size, size, channels)
    return resized


def _smoothing(shrink: float) -> np.ndarray:
    """Three taps that, with bilinear interpolation after them, are as wide as Pillow's filter.

    Pillow's is a triangle that reaches `shrink` pixels to both sides, of variance shrink^2 / 6; interpolation has one
    of variance 1 / 6, and taps of (t, 1 - 2 t, t) add 2 t.
    """
    tap = max(shrink**2 - 1, 0) / 12
    return np.array([tap, 1 - 2 * tap, tap], np.float32)


def flip(image: ImageArray) -> ImageArray:
    """Mirrors left and right: a tenth of the time that copying NumPy's mirrored view takes."""
    flipped: ImageArray = _cv2().flip(image, 1).reshape(image.shape)
    return flipped
