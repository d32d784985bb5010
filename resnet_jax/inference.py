"""A trained network at work: probabilities for images, and its accuracy on a data set, each example counted once.

Images are read by a few threads while the device computes. Nothing here needs more than the library's own packages.
"""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import compiler
from resnet_jax.data.images.pillow import ImageArray, ImageLike, UnreadableImage
from resnet_jax.data.sources.base import Dataset
from resnet_jax.data.sources.reading import SourceFailed
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights import convert, finite

T = TypeVar("T")
Unreadable: TypeAlias = UnreadableImage | OSError
Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Unread:
    """An example that could not be read: its place in the data set, where it is, and why."""

    index: int
    origin: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What `evaluate` has seen: arrays with an entry for each example that was read, in the order of the data set.

    Attributes:
      num_classes: of the network, and of the data set.
      index: int64, the example's place in the data set.
      label: int64, its class.
      rank: int64, the place of that class among all, best first; 0: right. Of equal logits the lower class is first.
      predicted: int64, the class of the highest logit.
      probability: float32 (or wider, as the network), that of `predicted`.
      label_probability: likewise, that of `label`.
      unread: the other examples of the data set; they are not counted.
    """

    num_classes: int
    index: np.ndarray
    label: np.ndarray
    rank: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    label_probability: np.ndarray
    unread: tuple[Unread, ...]

    @property
    def count(self) -> int:
        """Examples that were read; with `unread` they are the whole data set."""
        return len(self.label)

    @property
    def correct(self) -> int:
        """Of them, those whose label has the highest logit."""
        return int(np.sum(self.rank < 1))

    @property
    def correct_top5(self) -> int:
        """Of them, those whose label is among the five highest."""
        return int(np.sum(self.rank < 5))

    @property
    def top1(self) -> float:
        """Accuracy, a share of 1."""
        return self.correct / self.count

    @property
    def top5(self) -> float:
        """Accuracy of the best five, a share of 1."""
        return self.correct_top5 / self.count

    @property
    def confusion(self) -> np.ndarray:
        """int64 `[num_classes, num_classes]`: examples of a row's class that are taken for the column's."""
        pairs = self.label * self.num_classes + self.predicted
        return np.bincount(pairs, minlength=self.num_classes**2).reshape(self.num_classes, self.num_classes)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """For each example that could not be read, where it is and why."""
        return tuple(f"{each.origin}: {each.reason}" for each in self.unread)


def predict(
    model: ResNet,
    variables: Variables,
    images: Sequence[ImageLike],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    allow_nonfinite: bool = False,
) -> np.ndarray:
    """Probabilities of the classes, float32 (or wider, as the network) `[len(images), num_classes]`.

    Args:
      model: the network; its `train` field does not matter.
      variables: of `model`, NumPy or JAX arrays.
      images: paths, bytes of files, Pillow images, or uint8 arrays; see `data.images.open_image`.
      preprocessing: that of the variables.
      batch_size: images at a time.
      allow_nonfinite: take variables with NaN, infinities and negative variances; logits that are not finite are
        refused all the same.

    Raises:
      UnreadableImage, OSError: of the first image that cannot be read; `predictions` goes on instead.
      ValueError: no images, a network and a preprocessing that do not belong together, or variables (as
        `ConversionError`) or logits that are not finite.
    """
    rows = []
    for row in predictions(
        model, variables, images, preprocessing, batch_size=batch_size, allow_nonfinite=allow_nonfinite
    ):
        if isinstance(row, Exception):
            raise row
        rows.append(row)
    return np.stack(rows)


def predictions(
    model: ResNet,
    variables: Variables,
    images: Sequence[ImageLike],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
    allow_nonfinite: bool = False,
) -> Iterator[np.ndarray | Unreadable]:
    """`predict`, image by image: probabilities `[num_classes]`, or the error of an image that cannot be read."""
    if not len(images):
        raise ValueError("there are no images to predict.")
    _check(model, variables, preprocessing, batch_size, allow_nonfinite)
    for row in _rows(model, variables, preprocessing, lambda i: (images[i], i), len(images), batch_size):
        yield row if isinstance(row, Exception) else _softmax(row[1])


def evaluate(
    model: ResNet,
    variables: Variables,
    dataset: Dataset,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    allow_nonfinite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """What the network makes of each example of a data set, and its accuracy.

    Args:
      model: the network; its `train` field does not matter.
      variables: of `model`, NumPy or JAX arrays.
      dataset: whose labels are places among the network's classes.
      preprocessing: that of the variables; grey and RGB images are converted to what it takes.
      batch_size: images at a time; it changes no result beyond rounding.
      allow_nonfinite: as for `predict`.
      progress: called as (examples done, examples in all).

    Raises:
      ValueError: the classes of network and data differ in number, a label is out of range, no example can be read,
        a network and a preprocessing that do not belong together, or variables (as `ConversionError`) or logits that
        are not finite.
      SourceFailed: the disk or the operating system failed, and no image.
    """
    if model.num_classes != dataset.num_classes:
        raise ValueError(
            f"the network has {model.num_classes} classes, but {dataset.name!r} has {dataset.num_classes}: a label is "
            "a place among the classes, so both must have the same. Use the data that the network was trained for."
        )
    _check(model, variables, preprocessing, batch_size, allow_nonfinite)
    seen, unread = [], []
    read = functools.partial(_labelled, dataset)
    rows = _rows(model, variables, preprocessing, read, len(dataset), batch_size)
    for index, row in enumerate(rows):
        if isinstance(row, Exception):
            unread.append(Unread(index, dataset.source.origin(index), str(row)))
        else:
            label, logits = row
            probabilities, predicted = _softmax(logits), int(np.argmax(logits))
            rank = _rank(label, logits)
            seen.append((index, label, rank, predicted, probabilities[predicted], probabilities[label]))
        if progress:
            progress(index + 1, len(dataset))
    if not seen:
        why = [f"{each.origin}: {each.reason}" for each in unread[:1]]
        raise ValueError(f"none of the {len(dataset)} examples of {dataset.name!r} can be read; {why}.")
    names = ("index", "label", "rank", "predicted", "probability", "label_probability")
    arrays = {name: np.array(column) for name, column in zip(names, zip(*seen, strict=True), strict=True)}
    return Result(num_classes=model.num_classes, unread=tuple(unread), **arrays)


def _labelled(dataset: Dataset, index: int) -> tuple[ImageLike, int]:
    example = dataset[index]
    return example["image"], example["label"]


def _rank(label: int, logits: np.ndarray) -> int:
    """Place of the label among the classes, best first; of equal logits the lower class comes first."""
    return int(np.sum(logits > logits[label]) + np.sum(logits[:label] == logits[label]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


# Batches ------------------------------------------------------------------------------------------------


def _rows(
    model: ResNet,
    variables: Variables,
    preprocessing: Preprocessing,
    read: Callable[[int], tuple[ImageLike, int]],
    count: int,
    batch_size: int,
) -> Iterator[tuple[int, np.ndarray] | Unreadable]:
    """For each index in order: the number that `read` gives with the image, and the logits; or why it has none."""
    batch_size = min(batch_size, count)  # every batch has this shape: one compilation
    compiled = jax.jit(_logits, static_argnames=("model", "preprocessing"), compiler_options=compiler.options())
    logits_of = functools.partial(
        compiled, jax.device_put(variables), model=model.clone(train=False), preprocessing=preprocessing
    )
    for batch in _read_ahead(functools.partial(_pixels, read, preprocessing), count, batch_size):
        images = [item[1] for item in batch if not isinstance(item, Exception)]
        padding = [np.zeros((preprocessing.image_size,) * 2 + (preprocessing.channels,), np.uint8)]
        logits = np.asarray(logits_of(np.stack(images + padding * (batch_size - len(images)))))[: len(images)]
        # What overflows before the logits may be a zero by now: XLA's CPU compiler can make one of a NaN. It is
        # compiler.py that keeps it from that.
        if bad := int(np.sum(~np.isfinite(logits).all(-1))):
            raise ValueError(
                f"the logits of {bad} of {len(logits)} images are not finite: the weights are damaged, or not this "
                "network's, or what is computed from them outgrows the dtype."
            )
        found = iter(logits)
        for item in batch:
            yield item if isinstance(item, Exception) else (item[0], next(found))


def _logits(variables: Variables, pixels: jax.Array, *, model: ResNet, preprocessing: Preprocessing) -> jax.Array:
    logits: Any = model.apply(variables, preprocessing.normalize(pixels))
    if logits.ndim != 2:
        raise ValueError(f"the network gives {logits.shape} and not logits: it has global_pool={model.global_pool!r}.")
    widened: jax.Array = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return widened


def _pixels(
    read: Callable[[int], tuple[ImageLike, int]], preprocessing: Preprocessing, index: int
) -> tuple[int, ImageArray] | Unreadable:
    try:
        image, number = read(index)
        return number, preprocessing.pixels(image)
    except SourceFailed:  # no fault of one image
        raise
    except (UnreadableImage, OSError) as error:
        return error


def _read_ahead(read: Callable[[int], T], count: int, batch_size: int, num_threads: int = 4) -> Iterator[list[T]]:
    """What `read` gives for 0..count-1, in lists of `batch_size`; the next list is being read when one is given."""
    pending: collections.deque[list[concurrent.futures.Future[T]]] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(num_threads)  # Pillow lets other threads run while it decodes
    try:
        for start in range(0, count, batch_size):
            pending.append([pool.submit(read, i) for i in range(start, min(start + batch_size, count))])
            if len(pending) > 1:
                yield [future.result() for future in pending.popleft()]
        yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _check(
    model: ResNet, variables: Variables, preprocessing: Preprocessing, batch_size: int, allow_nonfinite: bool
) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more.")
    if not model.num_classes:
        raise ValueError("the network has no classes (num_classes=0): it gives features, and predicts nothing.")
    channels = _input_channels(variables)
    if channels not in (None, preprocessing.channels):
        raise ValueError(
            f"the network takes images of {channels} channels, but mean={preprocessing.mean} and std="
            f"{preprocessing.std} are for {preprocessing.channels}: give a mean and a std for each."
        )
    if not allow_nonfinite:
        finite.refuse(convert.torch_named(variables), "the tree of variables", convert.ALLOW)


def _input_channels(variables: Variables) -> int | None:
    """Of the stem's first convolution, plain or deep; None if there is none of that name."""
    conv = variables["params"].get("conv1", {})
    kernel = conv.get("kernel", conv.get("0", {}).get("kernel"))
    return None if kernel is None else int(kernel.shape[-2])
