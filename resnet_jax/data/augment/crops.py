"""Random changes of one image, as pure functions: all randomness is that of the `numpy.random.Generator` passed."""

import math

import numpy as np

from resnet_jax.data.images.pillow import ImageArray, Window, resize

# Of `random_resized_crop`, as in torchvision.
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
# Of `random_erase`, likewise; timm's are (0.02, 1 / 3) and (0.3, 1 / 0.3).
ERASED_SCALE = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


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
    return image[:, ::-1] if flip_coin(rng) else image


def flip_coin(rng: np.random.Generator) -> bool:
    """Whether to mirror: true with probability one half."""
    return rng.random() < 0.5


def random_resized_crop(
    image: ImageArray,
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
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
    window = sample_window(image.shape[0], image.shape[1], rng, scale, ratio)
    return resize(cut_window(image, window), size, size, "bilinear")


def sample_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = RATIO,
) -> Window:
    """A random window of an image of this size: the first of ten tries that fits, else the largest in the middle."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def cut_window(image: ImageArray, window: Window) -> ImageArray:
    """The window's pixels, a view."""
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def random_erase(
    image: ImageArray,
    rng: np.random.Generator,
    probability: float,
    fill: tuple[int, ...] = (0,),
    noise: tuple[float, ...] | None = None,
) -> ImageArray:
    """Paints over a window of random area and shape, as torchvision's `RandomErasing`.

    torchvision erases after normalisation, with 0; these images are not normalised yet, and the mean colour will be 0
    but for its rounding to a whole level (0.009 at most, with ImageNet's numbers). Noise, too, is rounded, and clipped
    to 0..255, which timm's ("pixel") is not: with ImageNet's numbers about one value in 30.

    Args:
      image: uint8 [height, width, channels]; it stays as it is.
      rng: source of whether, of the window, and of the noise.
      probability: of erasing at all.
      fill: the data's mean colour, 0..255 for each channel, or one number for all.
      noise: standard deviation of each channel, or of all, in levels: normal noise around `fill`, for each pixel and
        channel. None: the colour `fill` alone.

    Reference: Zhong et al. 2017, arXiv:1708.04896.
    """
    if rng.random() >= probability:
        return image
    window = sample_erased(image.shape[0], image.shape[1], rng)
    if window is None:
        return image
    image = image.copy()
    erased = cut_window(image, window)
    if noise is None:
        erased[:] = fill
    else:
        erased[:] = np.clip(np.rint(rng.normal(fill, noise, erased.shape)), 0, 255)
    return image


def sample_erased(
    height: int,
    width: int,
    rng: np.random.Generator,
    scale: tuple[float, float] = ERASED_SCALE,
    ratio: tuple[float, float] = ERASED_RATIO,
) -> Window | None:
    """A random window that is smaller than the image in both directions: the first of ten tries, or None.

    Args:
      height: of the image.
      width: of the image.
      rng: source of area, shape and place.
      scale: area as a part of the image's, least and greatest.
      ratio: height / width, least and greatest; uniform in its logarithm.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return None
