"""Training from Python: a model, data and an optimiser, ours or anybody's, in the loop that `train.py` runs."""

import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from PIL import Image

from resnet_jax import compiler
from resnet_jax.configs import default
from resnet_jax.data import pipeline, rows
from resnet_jax.data.sources import base
from resnet_jax.models.resnet import ResNet
from resnet_jax.runs import history, reporting
from resnet_jax.training import experiment, loop
from resnet_jax.training.keys import effect
from resnet_jax.weights import convert, finite
from resnet_jax.weights.published import timm_config

# Keys of the config that a transform of the user's own leaves without effect.
OF_TRANSFORM = (
    *("data.crop", "data.crop_scale", "data.decoder", "data.padding", "data.flip", "data.color_jitter"),
    *("data.augment", "data.augment_ops", "data.augment_magnitude", "data.augment_interpolation", "data.augment_fill"),
    *("data.erase", "data.erase_noise", "data.early_sizes", "data.early_until"),
)
OF_EVAL_TRANSFORM = ("data.eval_size", "data.eval_resize", "data.eval_interpolation")
# What an argument of `fit` says -> keys that would say it a second time, or of something else.
SAID = {
    "num_epochs": ("num_epochs",),
    "batch_size": ("batch_size",),
    "train_data": ("data.name", "data.path", "data.data_dir", "data.num_examples", "data.held_out"),
}
# Keys that reach into a network of this package.
OF_OURS = ("batch_norm_devices", "init_from", "optimizer.rates", "optimizer.layer_decay")
# Of a run in `timm_config`'s sense, but of the training that a config describes.
OF_TRAINING = ("dtype", "remat", "freeze_norm", "drop_rate", "drop_path_rate", "drop_block_rate")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What `fit` leaves.

    Attributes:
      variables: what was evaluated last, `{"params": ..., "batch_stats": ...}`: of a run that keeps a moving average,
        that.
      record: of the last evaluation: `loss`, `accuracy`, `correct`, `count`, `step`, ...
      history: all records of metrics.jsonl, for `pandas.DataFrame(fitted.history)`.
      workdir: with checkpoints, curves and all that `resnet-jax report` shows.
    """

    variables: Mapping[str, Any]
    record: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    workdir: str


def fit(
    model: nn.Module,
    train_data: Any,
    test_data: Any,
    *,
    workdir: str | os.PathLike[str],
    num_epochs: float,
    batch_size: int = 64,
    tx: optax.GradientTransformation | None = None,
    schedule: optax.Schedule | None = None,
    variables: Mapping[str, Any] | None = None,
    transform: pipeline.Transform | None = None,
    eval_transform: Callable[[np.ndarray], np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    callbacks: Sequence[reporting.Callback] = (),
    config: Mapping[str, Any] | None = None,
    extend: bool = False,
) -> Fitted:
    """Trains `model`, or goes on with the run in `workdir`, which ends with the same bits however often it is killed.

        fitted = fit(resnet18(num_classes=2), (images, labels), (test_images, test_labels),
                     workdir="runs/mine", num_epochs=10, config={"optimizer.learning_rate": 0.05})
        logits = model.apply(fitted.variables, normalised_images, train=False)

    Images are uint8, and normalised on the device by mean and std of the training images, unless `config` states
    others. What is given as a Python object, and not by a key of the config, cannot be compared when the run goes on:
    it is for the caller to give the same again.

    Args:
      model: one of this package, or any Linen module that maps float images `[batch, h, w, c]` to logits
        `[batch, num_classes]`, called with `train=` True or False, with no other collections of variables than
        `params` and `batch_stats`. Random numbers in training come by the name "dropout".
      train_data: anything with `__len__` and `__getitem__` (see `data.sources.base.Examples`), two arrays of images and
        labels, or a `Dataset` of this package.
      test_data: likewise, evaluated after each epoch.
      workdir: folder of the run, made if need be.
      num_epochs: passes over the training data, in all.
      batch_size: images a step, over all devices.
      tx: an optimiser of Optax's, with its schedule inside; by default the one that `config` describes: SGD with
        momentum, down a cosine.
      schedule: the rate at each step of `tx`, for the records.
      variables: to start from, as `load_pretrained` gives them; by default random ones.
      transform: function of (image, numpy.random.Generator), uint8 `[h, w, c]` to the same, for training; by default
        what `config` describes. Without any key of it images stay as they are, but that images of a file, and square
        ones of another size than the first, are resized and cropped.
      eval_transform: function of an image, likewise.
      class_names: in the order of the labels; by default "0", "1", ...
      callbacks: told of each record and checkpoint.
      config: other keys of `resnet_jax/configs/default.py`, dotted: `{"ema.decay": 0.999, "data.flip": True}`.
      extend: the run in `workdir` may have had fewer epochs.

    Raises:
      ValueError: what is given contradicts itself, or `workdir` belongs to another run.
      ConversionError: `variables` hold NaN, infinities or negative variances.
      And as `loop.train`.
    """
    folder = os.path.expanduser(os.fspath(workdir))
    with _shown():
        compiler.warn()
        if schedule is not None and tx is None:
            raise ValueError("schedule is that of tx, which is not given: give tx, or the schedule's keys in config.")
        _check_said(model, variables, config or {})
        changes = {"num_epochs": float(num_epochs), "batch_size": batch_size, **(config or {})}
        parts = experiment.Own(tx=tx, schedule=schedule, variables=variables)
        data = _dataset(train_data, "train"), _dataset(test_data, "test")
        run = _build(model, *data, parts, transform, eval_transform, class_names, changes)
        loop.use_compilation_cache(run.config.compilation_cache_dir)
        state, record = loop.train_run(run, folder, callbacks=callbacks, extend=extend)
    last = state.variables if state.ema is None else state.ema
    return Fitted(last, record, history.read_metrics(folder), folder)


# The parts ----------------------------------------------------------------------------------------------


def _check_said(model: nn.Module, variables: Any, config: Mapping[str, Any]) -> None:
    """Refuses keys that contradict an argument, or that a module of the user's own would not look at."""
    if twice := [(what, key) for what, keys in SAID.items() for key in keys if key in config]:
        raise ValueError(f"config has {twice[0][1]!r}, which {twice[0][0]} says: leave it out of config.")
    if fields := [key for key in config if key.startswith("model.")]:
        raise ValueError(f"config has {fields[0]!r}, but the model is given: set it there.")
    if not isinstance(model, ResNet) and (ours := [key for key in OF_OURS if key in config]):
        raise ValueError(f"config has {ours[0]!r}, which acts in this package's networks, and not in {type(model)}.")
    if variables is not None and config.get("init_from"):
        raise ValueError("variables and config's 'init_from' both say where the run starts: give one of the two.")


def _build(
    model: nn.Module,
    train_data: base.Dataset,
    test_data: base.Dataset,
    parts: experiment.Own,
    transform: pipeline.Transform | None,
    eval_transform: Callable[[np.ndarray], np.ndarray] | None,
    class_names: Sequence[str] | None,
    changes: Mapping[str, Any],
) -> experiment.Run:
    first = rows.decoded(train_data.source[0]["image"], train_data.channels)
    if first.shape[0] != first.shape[1] and "data.image_size" not in changes:
        transform, eval_transform = transform or as_it_is, eval_transform or as_it_is
    for given, what, keys in (
        (transform, "transform", OF_TRANSFORM),
        (eval_transform, "eval_transform", OF_EVAL_TRANSFORM),
    ):
        if given is not None and (idle := sorted(set(changes) & set(keys))):
            whose = f"{what} is given" if given is not as_it_is else "images that are not square stay as they are"
            raise ValueError(f"{whose}, and so {', '.join(idle)} in config would have no effect: leave one out.")
    config = _config(train_data, first.shape[0], changes)
    size = config.data.image_size
    shape = (size, size, first.shape[-1]) if eval_transform is None else np.shape(eval_transform(first))
    num_classes = _num_classes(model, shape)
    names = class_names or train_data.class_names or tuple(map(str, range(num_classes)))
    train_data, test_data = (dataclasses.replace(data, class_names=tuple(names)) for data in (train_data, test_data))
    if test_data.channels != train_data.channels:
        raise ValueError(f"train_data have {train_data.channels} channels, and test_data {test_data.channels}.")
    config.model.num_classes = num_classes
    name, kwargs = _described(model)
    config.model.name = name
    config.model.kwargs.update(kwargs)
    effect.check(config)
    if parts.tx is not None:
        _leave_out_optimizer(config, changes)
    facts = dataclasses.replace(base.facts(train_data, test_data), channels=shape[-1])
    parts = parts._replace(model=model if name.startswith(experiment.GIVEN) else None, image_shape=shape)
    designed = experiment.design(config, facts, own=parts)
    if parts.variables is not None:
        designed = dataclasses.replace(designed, start=_checked(parts.variables, designed.abstract_state().variables))
    for key, given in (("crop", transform), ("eval_interpolation", eval_transform)):
        if given is not None:
            designed.config.data[key] = experiment.GIVEN  # so that nobody takes it for what the config says
    return experiment.with_data(designed, train_data, test_data, transform, eval_transform)


def _checked(given: Mapping[str, Any], wanted: Any) -> Any:
    """The variables that a run starts from, in its dtypes; refused where they are of another model, or damaged."""
    found, right = (
        {".".join(path): tuple(np.shape(leaf)) for path, leaf in flatten_dict(dict(tree)).items()}
        for tree in (given, wanted)
    )
    if odd := sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name)):
        raise ValueError(
            f"variables are of another model than the one that is given, in {len(odd)} places: {odd[0]} is "
            f"{found.get(odd[0], 'missing')} there, and in the model {right.get(odd[0], 'nothing')}."
        )
    finite.refuse(convert.torch_named(given), "variables", "")
    return jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), dict(given), wanted)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """The examples of two arrays."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images[index], self.labels[index]


def _dataset(examples: Any, split: str) -> base.Dataset:
    """A data set of whatever `fit` takes, without names of classes where it has none."""
    if isinstance(examples, base.Dataset):
        return examples
    if isinstance(examples, tuple) and len(examples) == 2 and np.ndim(examples[0]) >= 3:
        images, labels = map(np.asarray, examples)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels: give as many of each.")
        examples = _Pairs(images, labels)
    if not (hasattr(examples, "__len__") and hasattr(examples, "__getitem__")):
        raise ValueError(f"{type(examples).__name__} has no length, or no examples by number: give what has both.")
    if not len(examples):
        raise ValueError(f"there are no {split} examples.")
    return base.Dataset(experiment.GIVEN, split, examples, (), _channels(examples[0]))


def _channels(example: Any) -> int:
    """Of its image, as far as it is one; what it is else, `base.Examples` says."""
    image: Any = (
        example.get("image") if isinstance(example, Mapping) else example[0] if isinstance(example, tuple) else None
    )
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("1", "L", "I", "I;16", "F") else 3
    shape: tuple[int, ...] = () if isinstance(image, bytes) else np.shape(image)
    return shape[2] if len(shape) == 3 else 1 if len(shape) == 2 else 3


def as_it_is(image: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """The image."""
    return image


def _config(train_data: base.Dataset, height: int, changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The default config, of these data, with images as they are."""
    config = default.get_config()
    config.data.name, config.data.crop, config.data.image_size = experiment.GIVEN, "none", height
    config.data.mean, config.data.std = _mean_and_std(train_data)
    config.schedule.warmup_epochs = 0.0  # of the default's one epoch a short run would have nothing left
    _set(config, changes)
    return config


def _set(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> None:
    try:
        config.update_from_flattened_dict(dict(changes))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config={dict(changes)}: {error}".replace("\n", " ")) from error


def _mean_and_std(data: base.Dataset, most: int = 1000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of each channel, in units of full scale, to four digits; of `most` images that are spread over the split."""
    count = min(len(data), most)
    pixels, sums, squares = 0, np.zeros(data.channels), np.zeros(data.channels)
    for i in range(count):
        image = rows.decoded(data.source[len(data) * i // count]["image"], data.channels)
        values = image.reshape(-1, data.channels) / 255
        pixels, sums, squares = pixels + len(values), sums + values.sum(0), squares + (values**2).sum(0)
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    return tuple(np.round(mean, 4).tolist()), tuple(np.maximum(np.round(std, 4), 1e-4).tolist())


def _num_classes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """The width of what `model` gives; refuses one that is no classifier of images."""
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    logits, variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, train=False), images)
    what = f"{type(model).__name__} maps images {list(images.shape)} to"
    if getattr(logits, "ndim", 0) != 2 or logits.shape[0] != 1 or getattr(model, "num_classes", 1) == 0:
        raise ValueError(f"{what} {jax.tree.map(jnp.shape, logits)}, and must give logits [batch, num_classes].")
    if others := sorted(variables.keys() - {"params", "batch_stats"}):
        raise ValueError(f"{what} logits by variables of {others}: only params and batch_stats can be trained here.")
    return int(logits.shape[1])


def _described(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """Name and fields for the config; of what it cannot describe, only what it is."""
    if isinstance(model, ResNet):
        with contextlib.suppress(ValueError):  # a field that is a function
            name, fields = timm_config.name_and_arguments(model)
            fields = {field: value for field, value in fields.items() if field != "num_classes"}
            return name, {"dtype": None, "param_dtype": None} | fields | _of_training(model)
    return f"{experiment.GIVEN}: {type(model).__module__}.{type(model).__qualname__}", {}


def _of_training(model: ResNet) -> dict[str, Any]:
    usual = ResNet(stage_sizes=model.stage_sizes, block=model.block)
    found = {field: getattr(model, field) for field in OF_TRAINING if getattr(model, field) != getattr(usual, field)}
    return found | ({"dtype": jnp.dtype(model.dtype).name} if model.dtype is not None else {})


def _leave_out_optimizer(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> None:
    """Takes out of the config what a given optimiser decides."""
    beside = [key for key in changes if key.startswith(("optimizer.", "schedule.")) and key not in experiment.BESIDE_TX]
    if beside:
        raise ValueError(f"tx is given, and so {', '.join(beside)} in config would have no effect: leave one out.")
    kept = {key.partition(".")[2]: config.optimizer[key.partition(".")[2]] for key in experiment.BESIDE_TX}
    with config.unlocked():
        config.optimizer = ml_collections.ConfigDict({"name": experiment.GIVEN, **kept})
        config.schedule = ml_collections.ConfigDict({"name": experiment.GIVEN})


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """Shows the lines of a run where nobody has said how logs are to be shown, as in a notebook."""
    logger = logging.getLogger("resnet_jax")
    if logger.hasHandlers() or logger.isEnabledFor(logging.INFO):
        yield
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
