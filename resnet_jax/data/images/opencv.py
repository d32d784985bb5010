"""Decoding and resizing by OpenCV, for training: faster than Pillow, and as well antialiased, but other pixels."""

import functools
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from resnet_jax.data.images import jpeg
from resnet_jax.data.images.pillow import ImageArray, UnreadableImage, Window


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


def begin_window(
    data: bytes, header: jpeg.Header, window: Window, size: int, channels: int, mirror: bool
) -> Callable[[ImageArray | None], ImageArray]:
    """`decode` and `resize` of a window in two parts: works out all that it can; the call of the result does the rest.

    That call takes uint8 [size, size, channels] to write into, or None. Pixels of a window fill the caches, and Python
    that runs after them takes several times as long: whoever has many windows begins them all first.

    Args:
      data: the whole file.
      header: of `data`, from `read_header`.
      window: top, left, height and width in pixels.
      size: pixels, height and width of the result.
      channels: 1 for grey, 3 for RGB.
      mirror: left and right.

    Raises:
      UnreadableImage: not all of an image; by the call of the result.
    """
    where = place(window, size)
    resizing = _resizing(where.height, where.width, size)
    return lambda out: resizing(decode(data, header, where, channels), mirror, out)


class Place(NamedTuple):
    """Where a window lies in the image as it is decoded: `reduction` times as small."""

    bottom: int  # of the window, in the whole image
    reduction: int
    top: int
    left: int
    height: int
    width: int


def place(window: Window, size: int) -> Place:
    """Where a window lies in a JPEG that is decoded to be resized to `size` pixels, height and width.

    A window of at least twice (4, 8 times) `size` comes at a half (quarter, eighth) of its size, its edges rounded:
    the inverse cosine transform then makes each block smaller, which is antialiased and several times faster.
    """
    top, left, height, width = window
    reduction = next((factor for factor in (8, 4, 2) if min(height, width) >= factor * size), 1)
    if reduction == 1:
        return Place(top + height, 1, *window)
    edges = (round(edge / reduction) for edge in (top, left, top + height, left + width))
    first_row, first_column, end_row, end_column = edges
    return Place(top + height, reduction, first_row, first_column, end_row - first_row, end_column - first_column)


def decode(data: bytes, header: jpeg.Header, place: Place, channels: int) -> ImageArray:
    """Decodes a place of a JPEG, whose `header` is from `read_header`: the pixels of the whole image, cut out.

    Raises:
      UnreadableImage: not all of an image.
    """
    cv2 = _cv2()
    encoded, rows = jpeg.cut(data, header, place.bottom)
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _flags(channels, place.reduction))
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise MemoryError(str(error)) from error
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image ({error})") from error
    if image is None or image.shape[:2] != (-(-rows // place.reduction), -(-header.width // place.reduction)):
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image (the JPEG's pixels end too early)")
    window: ImageArray = image[place.top : place.top + place.height, place.left : place.left + place.width]
    return window if channels == 3 else window.reshape(*window.shape[:2], channels)


@functools.cache
def _flags(channels: int, reduction: int) -> int:
    """Without the last flag OpenCV turns images as EXIF says, which neither Pillow nor torchvision does."""
    cv2 = _cv2()
    colour = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    reduced = 0 if reduction == 1 else getattr(cv2, f"IMREAD_REDUCED_GRAYSCALE_{reduction}")
    return int(reduced | colour | cv2.IMREAD_IGNORE_ORIENTATION)


def resize(image: ImageArray, size: int, mirror: bool = False) -> ImageArray:
    """Antialiased resizing to `size` x `size`, within about one level in 255 of Pillow's bilinear on photos.

    Down to a half: three taps of smoothing, then plain bilinear interpolation. That is as near to Pillow as OpenCV's
    INTER_AREA, in half the time. Beyond that INTER_AREA. Plain interpolation alone would be faster still, but it passes
    over pixels and is two to five levels off; only down to 1 / 1.25 it is as good.

    Args:
      image: uint8 [height, width, channels].
      size: pixels, height and width of the result.
      mirror: left and right.
    """
    return _resizing(image.shape[0], image.shape[1], size)(image, mirror, None)


class _Resizing(NamedTuple):
    """What `resize` does to images of one size."""

    size: int
    kernels: tuple[np.ndarray, np.ndarray] | None  # of smoothing, along rows and along columns
    interpolation: int

    def __call__(self, image: ImageArray, mirror: bool, out: ImageArray | None) -> ImageArray:
        cv2, square = _cv2(), (self.size, self.size)
        shape = (*square, image.shape[2])
        if self.kernels:
            smooth = _smoothed(image.shape)
            image = cv2.sepFilter2D(image, -1, *self.kernels, dst=smooth, borderType=cv2.BORDER_REPLICATE)
        if mirror:  # a tenth of the time that copying NumPy's mirrored view takes
            image = cv2.flip(cv2.resize(image, square, interpolation=self.interpolation), 1, dst=out)
        else:
            image = cv2.resize(image, square, dst=out, interpolation=self.interpolation)
        return image if image is out else image.reshape(shape)


def _resizing(height: int, width: int, size: int) -> _Resizing:
    cv2 = _cv2()
    rows, columns = height / size, width / size
    shrink = max(rows, columns)
    kernels = (_smoothing(columns), _smoothing(rows)) if 1.25 < shrink <= 2 else None
    return _Resizing(size, kernels, cv2.INTER_AREA if shrink > 2 else cv2.INTER_LINEAR)


class _Scratch(threading.local):
    """Room of each thread for a window, in the few large pages that NumPy asks for from 4 MB on."""

    def __init__(self) -> None:
        self.room = np.empty(1 << 23, np.uint8)


_scratch = _Scratch()


def _smoothed(shape: tuple[int, ...]) -> ImageArray | None:
    """Where to put a window that is read once more and forgotten; None for one that is too large."""
    size = math.prod(shape)
    return _scratch.room[:size].reshape(shape) if size <= _scratch.room.size else None


def _smoothing(shrink: float) -> np.ndarray:
    """Three taps that, with bilinear interpolation after them, are as wide as Pillow's filter.

    Pillow's is a triangle that reaches `shrink` pixels to both sides, of variance shrink^2 / 6; interpolation has one
    of variance 1 / 6, and taps of (t, 1 - 2 t, t) add 2 t.
    """
    tap = max(shrink**2 - 1, 0) / 12
    return np.array([tap, 1 - 2 * tap, tap], np.float32)
