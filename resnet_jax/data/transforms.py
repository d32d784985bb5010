"""Pure functions on one image: training augmentation, and the evaluation preprocessing of a network.

All randomness comes from the `numpy.random.Generator` that is passed.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from resnet_jax.data.augment.autoaugment import NO_JITTER, Augmentation, create_augmentation
from resnet_jax.data.augment.crops import (
    SCALE,
    cut_window,
    flip_coin,
    pad_and_crop,
    random_erase,
    random_flip,
    sample_window,
)
from resnet_jax.data.augment.crops import random_resized_crop as random_resized_crop
from resnet_jax.data.images import opencv, pillow
from resnet_jax.data.images.pillow import ImageArray, ImageLike, center_crop, resize, resize_shorter
from resnet_jax.data.images.pillow import UnreadableImage as UnreadableImage

CROPS = ("pad", "resized", "none")
# Of each channel, in units of full scale: what torchvision and timm prepare most images with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# What the pipeline calls --------------------------------------------------------------------------------


def train_transform(
    image_size: int,
    *,
    crop: str = "pad",
    crop_scale: tuple[float, float] = SCALE,
    padding: int = 4,
    flip: bool = True,
    fill: tuple[int, ...] = (0,),
    decoder: str = "pillow",
    augment: str = "none",
    augment_ops: int | None = None,
    augment_magnitude: int | None = None,
    augment_interpolation: str | None = None,
    augment_fill: str | None = None,
    color_jitter: Sequence[float] = NO_JITTER,
    erase: float = 0.0,
    erase_noise: tuple[float, ...] | None = None,
) -> "TrainTransform":
    """Augmentation as a picklable function of (image, rng); the result is `image_size` x `image_size`.

    In this order: crop, flip, `augment`, `color_jitter`, `erase`.

    Args:
      image_size: pixels, height and width.
      crop: "pad" (`pad_and_crop`), "resized" (`random_resized_crop`) or "none". For "pad" and "none", an image of
        another size is first resized, by its shorter side, and cropped in the middle.
      crop_scale: area of the window as a part of the image's, least and greatest; "resized" only.
      padding: pixels on each side; "pad" only.
      flip: mirror half of the images.
      fill: the data's mean colour, 0..255, for each channel or for all: of the padding, of what is erased, and where
        `augment_fill` says so.
      decoder: "opencv" or "pillow"; "resized" only, the others are Pillow's. The windows are the same, the pixels are
        not quite: a run keeps to one. `pillow.resolve_decoder` chooses.
      augment: a policy's name; this one and the next four are the arguments of `autoaugment.create_augmentation`.
      augment_ops: its `num_ops`.
      augment_magnitude: its `magnitude`.
      augment_interpolation: its `interpolation`.
      augment_fill: its `fill`.
      color_jitter: strengths of brightness, contrast, saturation and hue (`policies.color_jitter`).
      erase: probability that a window is painted over (`random_erase`).
      erase_noise: with noise of this deviation, in levels, for each channel or for all. None: with `fill`.

    Raises:
      ValueError: an unknown name, a number out of range, or arguments that contradict each other.
      ImportError: the decoder "opencv" without OpenCV.
    """
    _check_positive("image_size", image_size)
    if crop not in CROPS:
        raise ValueError(f"crop={crop!r} is not known: use one of {', '.join(map(repr, CROPS))}.")
    _check_crop_scale(crop_scale, crop)
    if padding < 0:
        raise ValueError(f"padding={padding} pixels must be 0 or more.")
    if not fill or not all(0 <= value <= 255 for value in fill):
        raise ValueError(f"fill={fill} must be numbers in 0..255, one for each channel, or one for all.")
    if decoder not in pillow.DECODERS:
        known = " or ".join(map(repr, pillow.DECODERS))
        raise ValueError(f"decoder={decoder!r} is not known here: use {known}, or what pillow.resolve_decoder gives.")
    _check_erase(erase, erase_noise)
    augmentation = create_augmentation(
        augment,
        num_ops=augment_ops,
        magnitude=augment_magnitude,
        interpolation=augment_interpolation,
        fill=augment_fill,
        color_jitter=color_jitter,
        mean=tuple(fill),
    )
    decoder = pillow.resolve_decoder(decoder)
    return TrainTransform(
        image_size, crop, crop_scale, padding, flip, tuple(fill), decoder, augmentation, erase, erase_noise
    )


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
    _check_interpolation(interpolation)
    return _Eval(image_size, resize_size, interpolation)


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """What `train_transform` makes."""

    image_size: int
    crop: str
    crop_scale: tuple[float, float]
    padding: int
    flip: bool
    fill: tuple[int, ...]
    decoder: str
    augmentation: Augmentation | None
    erase: float
    erase_noise: tuple[float, ...] | None

    def __call__(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        """Augments uint8 [height, width, channels]."""
        if self.crop == "resized":
            window = sample_window(image.shape[0], image.shape[1], rng, self.crop_scale)
            return self.finish(cut_window(image, window), rng)
        image = _fit(image, self.image_size, self.image_size)
        if self.crop == "pad":
            image = pad_and_crop(image, rng, self.padding, self.fill)
        return self._change(random_flip(image, rng) if self.flip else image, rng)

    def from_encoded(self, data: bytes, channels: int, rng: np.random.Generator) -> ImageArray:
        """Augments the bytes of a file: as the decoded image, but of a JPEG OpenCV decodes no more than it needs.

        Raises:
          UnreadableImage: not an image, or not all of one.
        """
        return self.begin_encoded(data, channels, rng)(None)

    def begin_encoded(
        self, data: bytes, channels: int, rng: np.random.Generator
    ) -> Callable[[ImageArray | None], ImageArray]:
        """`from_encoded` in two parts: reads the header and draws the window; the call of the result does the rest.

        That call takes an array of the image's shape, into which it may write the image and which it then returns, or
        None.
        """
        header = None
        if self.crop == "resized" and self.decoder == "opencv":
            header = opencv.read_header(data, channels)
        if header is None:
            return lambda _: self(pillow.decode(data, channels), rng)
        window = sample_window(header.height, header.width, rng, self.crop_scale)
        mirror = self.flip and flip_coin(rng)
        read = opencv.begin_window(data, header, window, self.image_size, channels, mirror)
        return lambda out: self._change(read(out), rng)

    def finish(self, window: ImageArray, rng: np.random.Generator) -> ImageArray:
        """A window, resized, perhaps mirrored, and changed."""
        if self.decoder == "pillow":
            image = resize(window, self.image_size, self.image_size, "bilinear")
            return self._change(random_flip(image, rng) if self.flip else image, rng)
        image = opencv.resize(window, self.image_size, mirror=self.flip and flip_coin(rng))
        return self._change(image, rng)

    def _change(self, image: ImageArray, rng: np.random.Generator) -> ImageArray:
        """What follows crop and flip."""
        if self.augmentation is not None:
            image = self.augmentation(image, rng)
        return random_erase(image, rng, self.erase, self.fill, self.erase_noise) if self.erase else image


@dataclasses.dataclass(frozen=True)
class _Eval:
    image_size: int
    resize_size: int
    interpolation: str

    def __call__(self, image: ImageArray) -> ImageArray:
        return _fit(image, self.image_size, self.resize_size, self.interpolation)


def _fit(image: ImageArray, size: int, resize_size: int, interpolation: str = "bilinear") -> ImageArray:
    return center_crop(resize_shorter(image, resize_size, interpolation), size)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number of pixels, 1 or more.")


def _check_crop_scale(scale: tuple[float, ...], crop: str) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop_scale={scale} must be two shares of the image's area, the least first, in (0, 1].")
    if crop != "resized" and scale != SCALE:
        raise ValueError(
            f"crop_scale={scale} is of the crop 'resized' alone, but crop={crop!r}: leave one of them out."
        )


def _check_erase(erase: float, noise: tuple[float, ...] | None) -> None:
    if not 0 <= erase <= 1:
        raise ValueError(f"erase={erase} is a probability, in [0, 1].")
    if noise is not None and not erase:
        raise ValueError(f"erase_noise={noise} has no effect with erase={erase}: set a probability, or leave it out.")


def _check_interpolation(interpolation: str) -> None:
    if interpolation not in pillow.INTERPOLATIONS:
        known = " or ".join(map(repr, pillow.INTERPOLATIONS))
        raise ValueError(f"interpolation={interpolation!r} is not known: use {known}.")


# What a network was evaluated with ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From any image to a network's input: shorter side resized, middle cropped, normalised.

    Pixel for pixel what torchvision's `ImageClassification` and timm's `create_transform(is_training=False)` give for
    `Image.open(file).convert("RGB")`; only 16-bit grey is scaled where these saturate it. One channel of mean and std
    makes a grey network's input instead.

    Attributes:
      image_size: pixels, height and width of the result.
      resize_size: pixels of the shorter side before the crop; where it is less than `image_size`, black is added.
      interpolation: "bilinear" or "bicubic".
      mean: of each channel, in units of full scale.
      std: likewise.

    Raises:
      ValueError: a number out of range, an unknown interpolation, or not 1 or 3 channels.
    """

    image_size: int
    resize_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_positive("image_size", self.image_size)
        _check_positive("resize_size", self.resize_size)
        _check_interpolation(self.interpolation)
        if len(self.mean) != len(self.std) or len(self.mean) not in pillow.MODES or not all(s > 0 for s in self.std):
            raise ValueError(
                f"mean={self.mean} and std={self.std} must both have 1 entry (grey) or 3 (RGB), and no std may be 0."
            )

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return len(self.mean)

    def pixels(self, image: ImageLike) -> ImageArray:
        """Resized and cropped: uint8 `[image_size, image_size, channels]`.

        Args:
          image: a path, the bytes of a file, a Pillow image, or uint8 `[h, w]` or `[h, w, 1, 3 or 4]`.

        Raises:
          UnreadableImage: not an image, not all of one, or one too large or long.
          OSError: a path that cannot be read.
        """
        try:
            return self._pixels(image)
        except UnreadableImage as error:
            if isinstance(image, str | os.PathLike):
                raise UnreadableImage(f"{os.fspath(image)}: {error}") from error
            raise

    def _pixels(self, image: ImageLike) -> ImageArray:
        opened = pillow.open_image(image, self.channels)
        height, width = pillow.shorter_to(opened.height, opened.width, self.resize_size)
        if (width, height) != opened.size:
            opened = opened.resize((width, height), pillow.INTERPOLATIONS[self.interpolation])
        return center_crop(pillow.to_array(opened), self.image_size)

    def normalize(self, pixels: Any) -> Any:
        """float32 `(pixels / 255 - mean) / std` of uint8 `[..., h, w, channels]`, a NumPy or a (traced) JAX array."""
        shape = [1] * (pixels.ndim - 1) + [-1]
        mean, std = (np.asarray(values, np.float32).reshape(shape) for values in (self.mean, self.std))
        return (pixels.astype(np.float32) / np.float32(255) - mean) / std

    def __call__(self, image: ImageLike) -> npt.NDArray[np.float32]:
        """The network's input: float32 `[image_size, image_size, channels]`; arguments as for `pixels`."""
        normalized: npt.NDArray[np.float32] = self.normalize(self.pixels(image))
        return normalized
