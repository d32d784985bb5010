"""Pure functions on one image, uint8 [height, width, channels]: training augmentation, evaluation preprocessing.

Resizing is Pillow's, antialiased, with torchvision's rounding of sizes and offsets, so that a network converted from
PyTorch sees the very pixels it was trained on. All randomness comes from the `numpy.random.Generator` that is passed.
"""

import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

ImageArray = npt.NDArray[np.uint8]  # [height, width, channels]

CROPS = ("pad", "resized", "none")
MODES = {1: "L", 3: "RGB"}
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class UnreadableImage(ValueError):
    """The bytes of one example cannot be had, or are no whole image."""


def decode(data: bytes, channels: int = 3) -> ImageArray:
    """Decodes an encoded image (JPEG, PNG, ...) to [height, width, channels]; an EXIF orientation is not applied.

    Args:
      data: the whole file.
      channels: 1 for grey, 3 for RGB; images of other kinds are converted.

    Raises:
      UnreadableImage: not an image, or not all of one.
    """
    if channels not in MODES:
        raise ValueError(f"channels={channels}, but an image is decoded to 1 (grey) or 3 (RGB) channels.")
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _to_array(image.convert(MODES[channels]))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image (of no known format)") from error
    except Exception as error:  # Pillow's plugins raise whatever their parsers stumble over: SyntaxError, struct.error
        raise UnreadableImage(f"the {len(data)} bytes are not a whole image ({error})") from error


# Sizes --------------------------------------------------------------------------------------------------


def resize_shorter(image: ImageArray, size: int, interpolation: str = "bilinear") -> ImageArray:
    """Resizes so that the shorter side has `size` pixels; the longer is rounded down, as in torchvision's `Resize`."""
    height, width = image.shape[:2]
    long = int(size * max(height, width) / min(height, width))
    shape = (size, long) if height <= width else (long, size)
    return image if shape == (height, width) else _resize(image, *shape, interpolation)


def center_crop(image: ImageArray, size: int) -> ImageArray:
    """The middle `size` x `size` pixels, as torchvision's `CenterCrop`: black is added where the image is smaller."""
    missing = [max(size - side, 0) for side in image.shape[:2]]
    if any(missing):
        image = np.pad(image, [(m // 2, (m + 1) // 2) for m in missing] + [(0, 0)])
    # Python's round, to the even neighbour, is what torchvision uses: an excess of 5 is cut 2 + 3, of 7 is cut 4 + 3.
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]


def _fit(image: ImageArray, size: int, resize_size: int, interpolation: str = "bilinear") -> ImageArray:
    return center_crop(resize_shorter(image, resize_size, interpolation), size)


# Augmentation -------------------------------------------------------------------------------------------


def pad_and_crop(image: ImageArray, rng: np.random.Generator, padding: int, fill: tuple[int, ...] = (0,)) -> ImageArray:
    """Adds `padding` pixels of colour `fill` on each side and cuts a window of the old size at a random place.

    Args:
      image: uint8 [height, width, channels].
      rng: source of the window's place; all (2 padding + 1)^2 places are equally likely.
      padding: pixels on each side.
      fill: colour, 0..255 for each channel, or one number for all. The data set's mean colour is 0 once normalised.

    Raises:
      ValueError: `fill` has neither one entry nor one for each channel.

    Reference: He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    height, width, channels = image.shape
    if len(fill) not in (1, channels):
        raise ValueError(
            f"fill={fill} has {len(fill)} entries, but the image has {channels} channels: give one for each, or one."
        )
    padded = np.empty((height + 2 * padding, width + 2 * padding, channels), np.uint8)
    padded[:] = fill
    padded[padding : padding + height, padding : padding + width] = image
    top, left = rng.integers(2 * padding + 1, size=2)
    return padded[top : top + height, left : left + width]


def random_flip(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Mirrors left and right, with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def random_resized_crop(
    image: ImageArray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> ImageArray:
    """Cuts a window of random area and shape and resizes it to `size` x `size`, as torchvision's `RandomResizedCrop`.

    Args:
      image: uint8 [height, width, channels].
      rng: source of area, shape and place.
      size: pixels, height and width of the result.
      scale: area of the window as a part of the image's, least and greatest.
      ratio: width / height of the window, least and greatest; uniform in its logarithm.

    Reference: Szegedy et al. 2014, arXiv:1409.4842, section 6.
    """
    top, left, height, width = sample_window(image.shape[0], image.shape[1], rng, scale, ratio)
    return _resize(image[top : top + height, left : left + width], size, size, "bilinear")


def sample_window(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random window (top, left, height, width): the first of ten tries that fits, else the largest in the middle."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


# What the pipeline calls --------------------------------------------------------------------------------


def train_transform(
    image_size: int, *, crop: str = "pad", padding: int = 4, flip: bool = True, fill: tuple[int, ...] = (0,)
) -> Callable[[ImageArray, np.random.Generator], ImageArray]:
    """Augmentation as a picklable function of (image, rng); the result is `image_size` x `image_size`.

    Args:
      image_size: pixels, height and width.
      crop: "pad" (`pad_and_crop`), "resized" (`random_resized_crop`) or "none". For "pad" and "none", an image of
        another size is first resized, by its shorter side, and cropped in the middle.
      padding: pixels on each side; "pad" only.
      flip: mirror half of the images.
      fill: colour of the padding, 0..255, for each channel or for all; "pad" only.

    Raises:
      ValueError: an unknown `crop`, or a number out of range.
    """
    _check_positive("image_size", image_size)
    if crop not in CROPS:
        raise ValueError(f"crop={crop!r} is not known: use one of {', '.join(map(repr, CROPS))}.")
    if padding < 0:
        raise ValueError(f"padding={padding} pixels must be 0 or more.")
    if not fill or not all(0 <= value <= 255 for value in fill):
        raise ValueError(f"fill={fill} must be numbers in 0..255, one for each channel, or one for all.")
    return _Train(image_size, crop, padding, flip, tuple(fill))


def eval_transform(
    image_size: int, resize_size: int | None = None, interpolation: str = "bilinear"
) -> Callable[[ImageArray], ImageArray]:
    """Evaluation preprocessing as a picklable function: the shorter side to `resize_size`, then the middle crop.

    Args:
      image_size: pixels, height and width of the result.
      resize_size: pixels; None stands for `image_size`, which leaves images that already fit as they are. ImageNet's
        custom is 256 for an `image_size` of 224.
      interpolation: "bilinear" or "bicubic".

    Raises:
      ValueError: a number out of range, or an unknown interpolation.
    """
    _check_positive("image_size", image_size)
    resize_size = image_size if resize_size is None else resize_size
    if resize_size < image_size:
        raise ValueError(
            f"resize_size={resize_size} is less than image_size={image_size}, so the crop would be framed in black: "
            "use None, or a number that is not smaller."
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} is not known: use {' or '.join(map(repr, INTERPOLATIONS))}.")
    return _Eval(image_size, resize_size, interpolation)


@dataclasses.dataclass(frozen=True)
class _Train:
    image_size: int
    crop: str
    padding: int
    flip: bool
    fill: tuple[int, ...]

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        if self.crop == "resized":
            image = random_resized_crop(image, rng, self.image_size)
        else:
            image = _fit(image, self.image_size, self.image_size)
        if self.crop == "pad":
            image = pad_and_crop(image, rng, self.padding, self.fill)
        return random_flip(image, rng) if self.flip else image


@dataclasses.dataclass(frozen=True)
class _Eval:
    image_size: int
    resize_size: int
    interpolation: str

    def __call__(self, image: ImageArray) -> ImageArray:
        return _fit(image, self.image_size, self.resize_size, self.interpolation)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What becomes of an image before a network sees it: resized, cropped in the middle, normalised.

    Attributes:
      image_size: pixels, height and width of the result.
      resize_size: pixels of the shorter side before the crop.
      interpolation: "bilinear" or "bicubic".
      mean, std: of each channel, for pixels in [0, 1].
    """

    image_size: int
    resize_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: Image.Image) -> ImageArray:
        """Resized and cropped: uint8 [image_size, image_size, 3]."""
        return _fit(_to_array(image.convert("RGB")), self.image_size, self.resize_size, self.interpolation)

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Normalised too: float32 [image_size, image_size, 3]."""
        scaled = self.pixels(image).astype(np.float32) / np.float32(255)
        normalised = (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return normalised.astype(np.float32)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of pixels, 1 or more.")


def _resize(image: ImageArray, height: int, width: int, interpolation: str) -> ImageArray:
    grey = image.shape[-1] == 1
    pil = Image.fromarray(image[..., 0] if grey else image)
    return _to_array(pil.resize((width, height), INTERPOLATIONS[interpolation]))


def _to_array(image: Image.Image) -> ImageArray:
    array = np.array(image)
    return array[..., None] if array.ndim == 2 else array
