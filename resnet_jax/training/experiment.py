"""A config, built: data, model, optimiser and the wrapped steps; everything that contradicts itself is refused here."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from resnet_jax.data import datasets, pipeline
from resnet_jax.data.images import pillow
from resnet_jax.data.sources import base
from resnet_jax.models import variants
from resnet_jax.models.resnet import ResNet
from resnet_jax.step import parts as optimizer_parts
from resnet_jax.step.parallel import AXIS, Parallel, check_divisible, device_groups, parallelize
from resnet_jax.step.step import TrainState, create_train_state, eval_step, train_step
from resnet_jax.training import initial, inputs, recipe
from resnet_jax.training.keys import ranges
from resnet_jax.weights import convert, finite


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a config describes, but for the data themselves; `config` with what it left open filled in.

    Attributes:
      model: the network, or a module of the user's own.
      schedule: the rate at each step; None where an optimiser of the user's own keeps it to itself.
      image_shape: of what the network sees, `[height, width, channels]`.
      start: variables that the run starts from; None: random ones, or those of `config.init_from`.
    """

    config: ml_collections.ConfigDict
    facts: base.Facts
    steps_per_epoch: int
    num_steps: int
    model: Any
    schedule: optax.Schedule | None
    tx: optax.GradientTransformation
    frozen: tuple[str, ...]
    parallel: Parallel
    image_shape: tuple[int, int, int]
    start: Any = None

    def create_state(self) -> TrainState:
        """The state of step 0 on the devices: random parameters, or those of `config.init_from` in its dtypes."""
        # One jitted function with a stated sharding makes every array on every device, each with a buffer of its
        # own: the first step donates them.
        create = jax.jit(self._create, out_shardings=self.parallel.state_sharding)
        start = self.load_initial() if self.config.init_from else self.start
        return create() if start is None else create(start)

    def load_initial(self) -> Any:
        """The variables that `config.init_from` names, fitted to the model, in the dtypes of its state.

        Raises:
          ValueError, OSError: they cannot be had, do not fit, or hold NaN, infinities or negative variances.
        """
        config = self.config
        loaded = initial.load(
            config.init_from,
            self.model,
            channels=self.facts.channels,
            anew=tuple(config.init_anew),
            fit_channels=config.init_fit_channels,
            ema=config.init_ema,
            seed=config.seed,
        )
        wanted = self.abstract_state().variables
        variables = jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), loaded, wanted)
        way_out = "--config.init_anew=PART starts a part, such as fc or layer4.0, anew, and takes nothing of it."
        finite.refuse(convert.torch_named(variables), f"config.init_from={config.init_from}", way_out)
        return variables

    def abstract_state(self) -> TrainState:
        """Shapes and dtypes of the state: what a checkpoint is restored into. Reads no file."""
        return jax.eval_shape(self._create)

    def _create(self, variables: Any = None) -> TrainState:
        if variables is None:
            variables = _initialise(self.model, self.config.seed, self.image_shape)
        ema = bool(self.config.ema.decay)
        return create_train_state(self.model, variables, self.tx, ema=ema, frozen=self.frozen)


# In a config: a part that was a Python object, which no file can hold.
GIVEN = "given"
# Keys that an optimiser of the user's own leaves to the config.
BESIDE_TX = ("optimizer.label_smoothing",)


class Own(NamedTuple):
    """Parts of an experiment that no config can describe; None stands for those that it does.

    Attributes:
      model: a Linen module with the contract of `ResNet`.
      tx: an optimiser, with its schedule inside.
      schedule: of `tx`, for the records.
      image_shape: of what the model sees.
      variables: that the run starts from.
    """

    model: Any = None
    tx: optax.GradientTransformation | None = None
    schedule: optax.Schedule | None = None
    image_shape: tuple[int, int, int] | None = None
    variables: Any = None


@dataclasses.dataclass(frozen=True)
class Run(Experiment):
    """An experiment with its data, ready to be run.

    Attributes:
      train_transforms: first step -> function of (image, rng) that makes the images from that step on.
      eval_transform: function of an image.
    """

    train_data: base.Dataset = dataclasses.field(kw_only=True)
    test_data: base.Dataset = dataclasses.field(kw_only=True)
    train_transforms: Mapping[int, pipeline.Transform] = dataclasses.field(kw_only=True)
    eval_transform: Callable[..., Any] = dataclasses.field(kw_only=True)

    @functools.cached_property
    def evaluations(self) -> pipeline.Evaluations:
        """Passes over the test split; to be closed, for worker processes stay from one to the next."""
        return pipeline.Evaluations(
            self.test_data,
            batch_size=eval_batch_size(self.config),
            transform=self.eval_transform,
            **_reading(self.config.data),
        )


def build(config: ml_collections.ConfigDict) -> Run:
    """Builds data, model, optimiser and the wrapped steps from a config, and resolves what the config leaves open.

    Raises:
      ValueError: keys that contradict each other, the data, or the devices; the message names both sides.
    """
    _refuse_given(config)
    ranges.check(config)
    train_data, test_data = _open(config)
    return with_data(design(config, base.facts(train_data, test_data)), train_data, test_data)


def with_data(
    experiment: Experiment,
    train_data: base.Dataset,
    test_data: base.Dataset,
    transform: pipeline.Transform | None = None,
    eval_transform: Callable[..., Any] | None = None,
) -> Run:
    """The run of an experiment on its data; transforms are those of its config, where others are not given.

    Raises:
      ValueError: `config.data.fingerprint` is that of other data.
    """
    config = experiment.config
    found, wanted = base.fingerprint(train_data, test_data), config.data.fingerprint
    if wanted not in ("", found):
        raise ValueError(
            f"config.data.fingerprint={wanted!r}, but that of {config.data.name!r} is {found!r}: its images, labels or "
            "classes are others. Give the data that the config was written for, or leave the fingerprint empty."
        )
    config.data.fingerprint = found
    sizes = inputs.train_sizes(config, experiment.steps_per_epoch)
    return Run(
        **vars(experiment),
        train_data=train_data,
        test_data=test_data,
        train_transforms=(
            {first: inputs.train_transform(config.data, size) for first, size in sizes.items()}
            if transform is None
            else {0: transform}
        ),
        eval_transform=eval_transform or inputs.eval_transform(config.data),
    )


def design(
    config: ml_collections.ConfigDict,
    facts: base.Facts,
    devices: Sequence[jax.Device] | None = None,
    *,
    own: Own | None = None,
) -> Experiment:
    """All but the data: for `devices` (by default, those of this run), which need not be attached.

    Args:
      config: the experiment.
      facts: of its data.
      devices: that it runs on.
      own: what a user gives in place of what the config would make.

    Raises:
      ValueError: as `build`.
    """
    ranges.check(config)
    config = ml_collections.ConfigDict(config.copy_and_resolve_references())
    config.model.num_classes = config.model.num_classes or facts.num_classes
    # Recorded with the run, for the two give slightly different pixels. Other crops are Pillow's alone.
    config.data.decoder = pillow.resolve_decoder(config.data.decoder if config.data.crop == "resized" else "pillow")
    num_devices = len(devices) if devices is not None else jax.device_count()
    _check(config, facts, num_devices)
    steps_per_epoch = facts.num_train // config.batch_size
    num_steps = round(config.num_epochs * steps_per_epoch)
    if config.profile_steps[0] > num_steps:
        raise ValueError(
            f"config.profile_steps={tuple(config.profile_steps)} begin after the last of the run's {num_steps} steps."
        )
    own, size = own or Own(), config.data.image_size
    image_shape = own.image_shape or (size, size, facts.channels)
    model = own.model or _create_model(config, num_devices)
    schedule, tx, parts = own.schedule, own.tx, optimizer_parts.Parts()
    if tx is None:
        schedule = recipe.create_schedule(config, steps_per_epoch=steps_per_epoch, num_steps=num_steps)
        parts = recipe.resolve_parts(
            config, lambda: jax.eval_shape(functools.partial(_initialise, model, config.seed, image_shape))
        )
        tx = recipe.create_optimizer(config, schedule, parts.rates)
    if parts.freeze_norm is not None:
        config.model.kwargs.freeze_norm = parts.freeze_norm
        model = model.clone(freeze_norm=parts.freeze_norm)
    return Experiment(
        config=config,
        facts=facts,
        steps_per_epoch=steps_per_epoch,
        num_steps=num_steps,
        model=model,
        schedule=schedule,
        tx=tx,
        frozen=parts.frozen,
        parallel=_parallelize(config, steps_per_epoch, devices),
        image_shape=image_shape,
        start=own.variables,
    )


def train_batches(run: Run, start_step: int) -> Any:
    """The batches of steps `start_step`, `start_step + 1`, ...; to be closed."""
    data, sizes = run.config.data, inputs.train_sizes(run.config, run.steps_per_epoch)
    batches = pipeline.train_batches(
        run.train_data,
        batch_size=run.config.batch_size,
        transform=run.train_transforms,
        seed=run.config.seed,
        start_step=start_step,
        repeats=data.repeats,
        **_reading(data),
    )
    return inputs.Announced(batches, start_step, sizes)


def eval_batch_size(config: ml_collections.ConfigDict) -> int:
    """Images of a batch of the evaluation: as many as a step works through at once, for these are known to fit."""
    return int(config.batch_size // config.accumulate_steps)


def eval_batches(run: Run) -> Any:
    """The test split once, the last batch padded and masked; to be closed."""
    return run.evaluations.begin()


def _open(config: ml_collections.ConfigDict) -> tuple[base.Dataset, base.Dataset]:
    """What is trained and what is tested on."""
    data = config.data
    options = {key: data[key] for key in ("path", "data_dir", "image_size", "num_examples")}

    def open_split(split: str) -> base.Dataset:
        return datasets.open_dataset(data.name, split, **options)

    if not data.held_out:
        return open_split("train"), open_split("test")
    try:
        return base.hold_out(open_split("train"), data.held_out)
    except ValueError as error:
        raise ValueError(f"config.data.held_out={data.held_out}: {error}") from error


def _refuse_given(config: ml_collections.ConfigDict) -> None:
    """A run that was started from Python goes on there."""
    for key in ("data", "model", "optimizer"):
        if str(config[key].name).startswith(GIVEN):
            raise ValueError(
                f"config.{key}.name={config[key].name!r}: the run was started from Python, with what no config can "
                "hold. resnet_jax.fit goes on with it; load_pretrained opens its weights, if they are of one "
                "of these networks."
            )


def data_facts(config: ml_collections.ConfigDict) -> base.Facts:
    """What `design` must know of the config's data: of a stock data set without having it, else by opening it.

    Raises:
      ValueError: the data cannot be opened.
    """
    _refuse_given(config)
    name = config.data.name.removeprefix(base.TFDS_PREFIX)
    if name in base.STOCK:
        facts, held_out = base.STOCK[name], config.data.held_out
        if not 0 <= held_out < facts.num_train:
            raise ValueError(f"config.data.held_out={held_out} must be 0 or more, and less than {facts.num_train}.")
        return dataclasses.replace(facts, num_train=facts.num_train - held_out, num_test=held_out or facts.num_test)
    try:
        return base.facts(*_open(config))
    except (OSError, ImportError) as error:
        raise ValueError(
            f"how many images and classes has {config.data.name!r}? It cannot be opened: {error} Without data it can "
            f"be one of {', '.join(base.STOCK)}, or synthetic: --config.data.name=imagenet2012."
        ) from error


def _reading(data: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        "num_threads": data.num_threads,
        "num_workers": data.num_workers,
        "on_error": data.on_error,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def _check(config: ml_collections.ConfigDict, facts: base.Facts, num_devices: int) -> None:
    """Refuses keys that contradict each other or the data, before anything is compiled."""
    for key in ("mean", "std"):
        if len(config.data[key]) != facts.channels:
            raise ValueError(
                f"config.data.{key}={tuple(config.data[key])} has {len(config.data[key])} entries, but the images of "
                f"{config.data.name!r} have {facts.channels} channels: give one for each."
            )
    if config.model.num_classes < facts.num_classes:
        raise ValueError(
            f"config.model.num_classes={config.model.num_classes}, but {config.data.name!r} has {facts.num_classes} "
            "classes: use 0 to take the data set's."
        )
    if config.batch_size > facts.num_train:
        raise ValueError(
            f"config.batch_size={config.batch_size} must lie in 1..{facts.num_train}, the size of the training split."
        )
    inputs.check(config, facts.num_train // config.batch_size)
    check_divisible(config.batch_size, num_devices)
    share = config.batch_size // num_devices
    if share % config.accumulate_steps:
        raise ValueError(
            f"config.accumulate_steps={config.accumulate_steps} does not divide the {share} images of each device "
            f"(config.batch_size={config.batch_size} over {num_devices}): give a divisor."
        )
    recipe.check(config, rows=share // config.accumulate_steps, own_optimizer=config.optimizer.name == GIVEN)
    first, last = config.profile_steps
    if first > last:
        raise ValueError(f"config.profile_steps={tuple(config.profile_steps)} must be (first, last) steps, or (0, 0).")


def _parallelize(
    config: ml_collections.ConfigDict, steps_per_epoch: int, devices: Sequence[jax.Device] | None
) -> Parallel:
    numbers: dict[str, Any] = {"mean": tuple(config.data.mean), "std": tuple(config.data.std), "axis_name": AXIS}
    return parallelize(
        functools.partial(
            train_step,
            seed=config.seed,
            accumulate=config.accumulate_steps,
            **recipe.step_options(config, steps_per_epoch=steps_per_epoch),
            **numbers,
        ),
        functools.partial(eval_step, **numbers),
        mode=config.parallel,
        devices=devices,
    )


# Fields of the network that are a run's to decide -> where its config does.
_DECIDED = {
    "num_classes": "config.model.num_classes",
    "axis_name": "config.batch_norm_devices",
    "axis_index_groups": "config.batch_norm_devices",
    "train": "the step",
}


def _create_model(config: ml_collections.ConfigDict, num_devices: int) -> ResNet:
    for field, where in _DECIDED.items():
        if config.model.kwargs.get(field) is not None:
            raise ValueError(f"config.model.kwargs.{field}: leave it out, for {where} decides it.")
    group = config.batch_norm_devices or num_devices
    try:
        groups = device_groups(group, num_devices)
    except ValueError as error:
        raise ValueError(f"config.batch_norm_devices={config.batch_norm_devices}: {error}") from error
    return variants.create_model(
        config.model.name,
        num_classes=config.model.num_classes,
        axis_name=AXIS if group > 1 else None,
        axis_index_groups=groups if group > 1 else None,
        **{field: value for field, value in config.model.kwargs.items() if value is not None},
    )


def _initialise(model: Any, seed: int, image_shape: tuple[int, int, int]) -> Any:
    """Random variables, of the config's seed."""
    return model.init(jax.random.key(seed), jnp.zeros((1, *image_shape)), train=False)
