"""The recipe of a config, built or refused: schedule, optimiser, loss, mixing, averaging."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import optax

from resnet_jax.step import averaging, losses, mixing, optimizer, parts

LOSSES: dict[str, Callable[..., Any]] = {"softmax": losses.softmax_cross_entropy, "bce": losses.binary_cross_entropy}


def create_schedule(config: ml_collections.ConfigDict, *, steps_per_epoch: int, num_steps: int) -> optax.Schedule:
    """The learning rate at each step, in steps or, with `config.schedule.per_epoch`, in epochs."""
    schedule = config.schedule
    unit = steps_per_epoch if schedule.per_epoch else 1  # steps to each step of the schedule
    return optimizer.create_schedule(
        schedule.name,
        learning_rate=config.optimizer.learning_rate,
        num_steps=num_steps // unit,
        warmup_steps=round(schedule.warmup_epochs * steps_per_epoch) // unit,
        warmup_start=schedule.warmup_start,
        boundaries=[round(epoch * steps_per_epoch) // unit for epoch in schedule.boundaries],
        factor=schedule.factor,
        final_rate=schedule.final_rate,
        under_warmup=schedule.under_warmup,
        hold=unit,
    )


def create_optimizer(
    config: ml_collections.ConfigDict, schedule: optax.Schedule, rates: Mapping[str, float] | None = None
) -> optax.GradientTransformation:
    """`config.optimizer` with its schedule, and the factors on it of single layers."""
    numbers = {key: config.optimizer[key] for key in ("momentum", "nesterov", "eps", "weight_decay", "clip_norm")}
    return optimizer.create_optimizer(
        schedule,
        name=config.optimizer.name,
        betas=tuple(config.optimizer.betas),
        decayed=config.optimizer.decayed,
        rates=rates,
        **numbers,
    )


def resolve_parts(config: ml_collections.ConfigDict, shapes: Callable[[], Any]) -> parts.Parts:
    """What `config.optimizer` and `freeze_norm` make of the layers of a net.

    Args:
      config: resolved.
      shapes: gives the shapes of the net's variables; not called where all layers are treated alike.

    Raises:
      ValueError: as `parts.resolve`.
    """
    rates, layer_decay = config.optimizer.rates, config.optimizer.layer_decay
    freeze_norm = config.model.kwargs.get("freeze_norm")
    if not rates and layer_decay == 1 and not freeze_norm:
        return parts.Parts()
    return parts.resolve(shapes(), rates=rates, layer_decay=layer_decay, freeze_norm=freeze_norm)


def step_options(config: ml_collections.ConfigDict, *, steps_per_epoch: int) -> dict[str, Any]:
    """The arguments of `train_step` that are the recipe's."""
    mix, ema = config.mix, config.ema
    options: dict[str, Any] = {"label_smoothing": config.optimizer.label_smoothing, "loss": _loss(config.loss)}
    if mix.mixup or mix.cutmix:
        options["draw_mix"] = functools.partial(mixing.draw, mixup=mix.mixup, cutmix=mix.cutmix, prob=mix.prob)
    if ema.decay:
        options["update_average"] = functools.partial(
            averaging.update_average,
            decay=ema.decay,
            every=ema.every_steps,
            steps_per_epoch=steps_per_epoch,
            copy_steps=round(ema.copy_epochs * steps_per_epoch),
        )
    return options


def _loss(config: ml_collections.ConfigDict) -> Any:
    options: dict[str, Any] = {"class_weights": tuple(config.class_weights)} if config.class_weights else {}
    if config.name == "bce":
        options |= {"target_threshold": config.target_threshold, "sum_classes": config.sum_classes}
    return functools.partial(LOSSES[config.name], **options) if options else LOSSES[config.name]


def check(config: ml_collections.ConfigDict, *, rows: int, own_optimizer: bool = False) -> None:
    """Refuses a recipe that contradicts itself; its numbers are in their ranges already.

    Args:
      config: resolved.
      rows: images that a device works through at a time.
      own_optimizer: `config.optimizer` and `config.schedule` describe none.

    Raises:
      ValueError: naming the keys on both sides, and the way out.
    """
    if not own_optimizer:
        _check_optimizer(config.optimizer)
        _check_schedule(config)
    _check_loss(config)
    _check_mix(config, rows)
    _check_ema(config)


def _check_optimizer(config: ml_collections.ConfigDict) -> None:
    _one_of("optimizer.name", config.name, optimizer.OPTIMIZERS)
    _one_of("optimizer.decayed", config.decayed, optimizer.DECAYED)
    if config.name == "sgd" and config.nesterov and not config.momentum:
        raise ValueError("config.optimizer.nesterov=True needs config.optimizer.momentum above 0, which is 0.")
    _check_rates(config.rates)


def _check_rates(rates: Any) -> None:
    """Pairs of a prefix and a factor, each prefix once; whether the net has them is for `parts.resolve` to see."""
    shown = f"config.optimizer.rates={tuple(rates)}"
    for pair in rates:
        if not isinstance(pair, (tuple, list)) or list(map(type, pair)) not in ([str, float], [str, int]):
            raise ValueError(
                f"{shown} holds {pair!r}: give pairs of a prefix and a factor, as in "
                "--config.optimizer.rates=\"('layer1',0.1),('fc',10.0)\", and a comma after a single one."
            )
        if not 0 <= pair[1] < math.inf:
            raise ValueError(f"{shown}: {pair[0]!r} has the factor {pair[1]}: give 0 (frozen) or more.")
    prefixes = [prefix for prefix, _ in rates]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ValueError(f"{shown} gives {prefix!r} twice: leave one of them out.")


def _check_schedule(config: ml_collections.ConfigDict) -> None:
    schedule = config.schedule
    _one_of("schedule.name", schedule.name, optimizer.SCHEDULES)
    if schedule.warmup_epochs >= config.num_epochs:
        raise ValueError(
            f"config.schedule.warmup_epochs={schedule.warmup_epochs} is not shorter than "
            f"config.num_epochs={config.num_epochs}: shorten the warm-up, or train for longer."
        )
    epochs = {"num_epochs": config.num_epochs, "schedule.warmup_epochs": schedule.warmup_epochs}
    if schedule.name == "step":
        epochs |= {f"schedule.boundaries[{i}]": epoch for i, epoch in enumerate(schedule.boundaries)}
    for key, value in epochs.items():
        if schedule.per_epoch and value != int(value):
            raise ValueError(f"config.schedule.per_epoch=True needs whole epochs, but config.{key}={value}.")


def _check_loss(config: ml_collections.ConfigDict) -> None:
    loss, smoothing = config.loss, config.optimizer.label_smoothing
    _one_of("loss.name", loss.name, LOSSES)
    if loss.class_weights and len(loss.class_weights) != config.model.num_classes:
        raise ValueError(
            f"config.loss.class_weights has {len(loss.class_weights)} entries, but there are "
            f"{config.model.num_classes} classes: give one for each, in the order of their names."
        )
    if loss.class_weights and not any(loss.class_weights):
        raise ValueError("config.loss.class_weights are all 0: nothing would be learnt.")
    if loss.target_threshold is None:
        return
    low = smoothing / config.model.num_classes
    if not low <= loss.target_threshold < 1 - smoothing + low:
        raise ValueError(
            f"config.loss.target_threshold={loss.target_threshold} does not part the targets {low:g} and "
            f"{1 - smoothing + low:g} that config.optimizer.label_smoothing={smoothing} gives: put it between them."
        )


def _check_mix(config: ml_collections.ConfigDict, rows: int) -> None:
    mix = config.mix
    if not (mix.mixup or mix.cutmix):
        return
    on = "config.mix.mixup" if mix.mixup else "config.mix.cutmix"
    if config.model.num_classes < 2:
        raise ValueError(
            f"{on} mixes classes, but config.model.num_classes={config.model.num_classes}: give 2 or more, or leave "
            "mixing out."
        )
    if rows % 2:
        raise ValueError(
            f"{on} mixes rows in pairs, but each device works through {rows} at a time (config.batch_size="
            f"{config.batch_size} over the devices, in config.accumulate_steps={config.accumulate_steps} parts): "
            "make that number even."
        )


def _check_ema(config: ml_collections.ConfigDict) -> None:
    ema = config.ema
    if ema.copy_epochs >= config.num_epochs:
        raise ValueError(
            f"config.ema.copy_epochs={ema.copy_epochs} is not shorter than config.num_epochs={config.num_epochs}: "
            "nothing would be averaged."
        )


def _one_of(key: str, value: str, known: Any) -> None:
    if value not in known:
        raise ValueError(f"unknown config.{key}={value!r}: give one of {', '.join(sorted(known))}.")
