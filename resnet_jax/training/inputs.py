"""The images that a config asks for: their sizes, and what makes those of a step and of an evaluation.

Training and evaluation may differ in size: a net trained at 176 pixels does best at 224, for a random-resized crop
shows objects larger than they are in evaluation (FixRes, Touvron et al. 2019, arXiv:1906.06423). Sizes may also rise
during training, which saves time early (Howard 2018; Tan & Le 2021, arXiv:2104.00298; FFCV's ramp).
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from resnet_jax.data import pipeline, transforms
from resnet_jax.data.images.pillow import INTERPOLATIONS, UnreadableImage, decode
from resnet_jax.data.sources import base

logger = logging.getLogger(__name__)


def train_sizes(config: ml_collections.ConfigDict, steps_per_epoch: int) -> dict[int, int]:
    """First step -> pixels of the images from that step on; epochs are rounded to steps as those of the schedule.

    Raises:
      ValueError: two sizes would begin at one step, or one after the last.
    """
    data, num_steps = config.data, round(config.num_epochs * steps_per_epoch)
    starts = [0, *(round(epoch * steps_per_epoch) for epoch in data.early_until)]
    if not _rising(*starts, num_steps):
        raise ValueError(
            f"config.data.early_until={tuple(data.early_until)} are the steps {starts[1:]} of {num_steps}, at "
            f"{steps_per_epoch} an epoch (config.batch_size={config.batch_size}), but each size needs a step at least."
        )
    return dict(zip(starts, (*data.early_sizes, data.image_size), strict=True))


def train_transform(data: ml_collections.ConfigDict, image_size: int) -> transforms.TrainTransform:
    """The augmentation of `config.data`, with images of `image_size`.

    Raises:
      ValueError: a key that makes no sense, alone or with another.
    """
    same = (
        "crop", "padding", "flip", "decoder", "augment", "augment_ops", "augment_magnitude", "augment_interpolation",
        "augment_fill", "color_jitter", "erase",
    )  # fmt: skip
    return transforms.train_transform(
        image_size,
        crop_scale=tuple(data.crop_scale),
        fill=tuple(round(255 * mean) for mean in data.mean),
        erase_noise=tuple(255 * std for std in data.std) if data.erase_noise else None,
        **{key: data[key] for key in same},
    )


def eval_transform(data: ml_collections.ConfigDict) -> Callable[..., Any]:
    """The evaluation preprocessing of `config.data`."""
    return transforms.eval_transform(
        data.eval_size or data.image_size, data.eval_resize or None, data.eval_interpolation
    )


class Announced(pipeline.Batches):
    """Batches, with a line in the log where their images change size: the step is then compiled once more.

    Args:
      batches: of the steps from `step` on; closed with this.
      step: the first of them.
      sizes: as `train_sizes` gives them.
    """

    def __init__(self, batches: pipeline.Batches, step: int, sizes: Mapping[int, int]) -> None:
        super().__init__(batches)
        self._step, self._changes = step, {first: size for first, size in sizes.items() if first > step}

    def __next__(self) -> pipeline.Batch:
        batch = super().__next__()
        if size := self._changes.get(self._step):
            logger.info(
                "step %d: images of %d pixels from here on; compiling the training step for them", self._step, size
            )
        self._step += 1
        return batch


# Looking ------------------------------------------------------------------------------------------------


def look(dataset: base.Dataset, seconds: float) -> tuple[int, list[str]]:
    """Reads and decodes images of `dataset` for up to so many seconds, spread over all of it.

    Returns:
      How many were looked at, and a line for each that cannot be read.
    """
    size, end, found = len(dataset), time.monotonic() + seconds, list[str]()
    # By the golden section the first few lie far apart, and none comes twice.
    stride = next(step for step in itertools.count(round(0.618 * size) or 1) if math.gcd(step, size) == 1)
    for count in range(size):
        if time.monotonic() > end:
            return count, found
        index = count * stride % size
        try:
            image = dataset.source[index]["image"]
            if isinstance(image, bytes):
                decode(image, dataset.channels)
        except UnreadableImage as error:
            found.append(f"{dataset.source.origin(index)}: {error}")
    return size, found


# Refusals -----------------------------------------------------------------------------------------------


def check(config: ml_collections.ConfigDict, steps_per_epoch: int) -> None:
    """Refuses images that cannot be, or keys that contradict each other.

    Raises:
      ValueError: naming the keys on both sides, and the way out.
    """
    _check_early(config)
    train_sizes(config, steps_per_epoch)
    try:
        train_transform(config.data, config.data.image_size)
    except ValueError as error:
        raise ValueError(f"config.data: {error}") from error
    _check_eval(config.data)


def _check_early(config: ml_collections.ConfigDict) -> None:
    data = config.data
    sizes, until = tuple(data.early_sizes), tuple(data.early_until)
    if len(sizes) != len(until):
        raise ValueError(
            f"config.data.early_sizes={sizes} and config.data.early_until={until} must have as many entries: the epoch "
            "up to which each size is in use."
        )
    if not _rising(0, *sizes, data.image_size):
        raise ValueError(
            f"config.data.early_sizes={sizes} must be pixels that rise and stay below "
            f"config.data.image_size={data.image_size}, the size after them."
        )
    if not _rising(0, *until, config.num_epochs):
        raise ValueError(
            f"config.data.early_until={until} must be epochs that rise and lie between 0 and "
            f"config.num_epochs={config.num_epochs}."
        )


def _rising(*numbers: float) -> bool:
    # With no early sizes there is nothing to rise: image_size and num_epochs are judged elsewhere.
    return len(numbers) == 2 or all(low < high for low, high in itertools.pairwise(numbers))


def _check_eval(data: ml_collections.ConfigDict) -> None:
    key = "eval_size" if data.eval_size else "image_size"
    if 0 < data.eval_resize < data[key]:
        raise ValueError(
            f"config.data.eval_resize={data.eval_resize} is less than config.data.{key}={data[key]}, so the crop would "
            "be framed in black: use 0, or a number that is not smaller."
        )
    if data.eval_interpolation not in INTERPOLATIONS:
        known = " or ".join(map(repr, INTERPOLATIONS))
        raise ValueError(f"config.data.eval_interpolation={data.eval_interpolation!r} is not known: use {known}.")
