"""The order of things: build, restore, step, log, evaluate, save. Nothing here computes."""

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Mapping

import jax
import ml_collections

from resnet_jax.training import checkpoint, experiment, metrics, report, workdirs
from resnet_jax.training.step import TrainState

logger = logging.getLogger(__name__)


class TrainingDiverged(RuntimeError):
    """Loss or gradient is not finite."""


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains, or goes on training, in `workdir`; returns the record of the last evaluation.

    A run that was killed and is started again ends with the same bits as one that was not: the checkpoint holds the
    whole state, and batches are a function of the seed and the step alone.

    Raises:
      ValueError: the config contradicts itself, or `workdir` belongs to another run.
      TrainingDiverged: loss or gradient is not finite; the last good checkpoint stays.
    """
    use_compilation_cache(config.compilation_cache_dir)
    run = experiment.build(config)
    workdirs.claim(workdir, run.config)
    with checkpoint.Checkpointer(workdir, keep=run.config.keep_checkpoints) as checkpoints:
        state = _restore_or_create(run, checkpoints)
        first_step = int(state.step)
        workdirs.record_start(workdir, workdirs.describe_start(first_step=first_step))
        with report.Reporter(
            workdir,
            first_step=first_step,
            num_steps=run.num_steps,
            tensorboard=run.config.get("tensorboard", False),
            saved_step=checkpoints.saved_step,
        ) as reporter:
            _steps(run, state, checkpoints, reporter)
    report.leave_curves(workdir)
    return report.test_records(report.read_metrics(workdir))[-1]


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Evaluates the newest checkpoint of `workdir`, or `config.init_from` if no `workdir` is given, on the test split.

    Returns:
      `loss`, `accuracy`, `correct`, `count` and `step`; every example of the split is counted once.

    Raises:
      ValueError, FileNotFoundError: nothing to evaluate, or a checkpoint of another model.
    """
    use_compilation_cache(config.compilation_cache_dir)
    run = experiment.build(config)
    if not workdir:
        if not run.config.init_from:
            raise ValueError("nothing to evaluate: give --workdir of a run, or --config.init_from=WEIGHTS.")
        return {"step": 0, **_evaluate(run, run.create_state())}
    workdirs.load_config(workdir)
    with checkpoint.Checkpointer(workdir) as checkpoints:
        if checkpoints.latest_step() is None:
            raise FileNotFoundError(f"{workdir} has no checkpoint yet: train first, with --mode=train.")
        state = _restore_or_create(run, checkpoints)
    return {"step": int(state.step), **_evaluate(run, state)}


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`, unless JAX was told of another one or `folder` is empty."""
    if folder and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))


# Steps --------------------------------------------------------------------------------------------------


def _steps(
    run: experiment.Run, state: TrainState, checkpoints: checkpoint.Checkpointer, reporter: report.Reporter
) -> None:
    """All steps that are left."""
    config, step = run.config, int(state.step)
    window, waiting = _Window(), None
    is_due = functools.partial(_is_due, run)
    with contextlib.closing(experiment.train_batches(run, step)) as batches:
        if step < run.num_steps:
            reporter.say(f"step {step}: compiling the training step; this can take minutes, a later start is quicker")
        while step < run.num_steps:
            state, sums = run.parallel.train_step(state, run.parallel.shard(next(batches)))
            if run.parallel.blocking:
                jax.block_until_ready(sums)
            # Numbers are read one step late, so that the devices always have the next step to work on ...
            if waiting is not None:
                window.add(step, waiting)
            step, waiting = step + 1, sums
            evaluate_now = is_due(step, config.eval_every_epochs * run.steps_per_epoch)
            save_now = is_due(step, _checkpoint_interval(run))
            # ... but before anything is written they are all in: a state that is not finite is never saved, and the
            # windows of a resumed run are those of an uninterrupted one.
            if evaluate_now or save_now or is_due(step, config.log_every_steps):
                window.add(step, waiting)
                waiting = None
                reporter.train(step, _numbers(run, step, window))
            if evaluate_now:
                reporter.test(step, {"epoch": step / run.steps_per_epoch, **_evaluate(run, state)})
            if save_now:
                reporter.flush()  # what a checkpoint takes for made is never lost by a kill
                checkpoints.save(step, state)
            if waiting is None:
                window = _Window()


class _Window:
    """Sums since the last report, and how long they took."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.start = time.monotonic()

    def add(self, step: int, sums: Mapping[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in sums.items()}
        for name, what in (("loss", "loss"), ("grad_norm", "norm of the gradient")):
            if not math.isfinite(values[name]):
                raise TrainingDiverged(
                    f"the {what} is {values[name]} at step {step}. No state since the last checkpoint was kept. Start "
                    "again in a new --workdir with a lower --config.optimizer.learning_rate or a longer "
                    "--config.schedule.warmup_epochs; --config.init_from=OLD_WORKDIR goes on from its weights."
                )
        self.sums = metrics.merge(self.sums, values)


def _numbers(run: experiment.Run, step: int, window: _Window) -> dict[str, float]:
    seconds = max(time.monotonic() - window.start, 1e-9)
    steps = window.sums["steps"]
    unreadable = round(steps * run.config.batch_size - window.sums["count"])
    return {
        "epoch": step / run.steps_per_epoch,
        **metrics.compute(window.sums),
        "learning_rate": float(run.schedule(step - 1)),
        "images_per_second": window.sums["count"] / seconds,
        "seconds_left": (run.num_steps - step) * seconds / steps,
        **({"unreadable": unreadable} if unreadable else {}),
    }


def _evaluate(run: experiment.Run, state: TrainState) -> dict[str, float]:
    """Metrics over the whole test split, each example once."""
    sums: dict[str, float] = {}
    with contextlib.closing(experiment.eval_batches(run)) as batches:
        for batch in batches:
            sums = metrics.merge(sums, run.parallel.eval_step(state, run.parallel.shard(batch)))
    unreadable = len(run.test_data) - int(sums["count"])
    if unreadable:
        logger.warning("%d of the %d test images could not be read and are not counted", unreadable, len(run.test_data))
    return {**metrics.compute(sums), "correct": sums["correct"], "count": sums["count"]}


def _is_due(run: experiment.Run, step: int, every: float) -> bool:
    return step == run.num_steps or (every > 0 and step % max(round(every), 1) == 0)


def _checkpoint_interval(run: experiment.Run) -> float:
    return run.config.checkpoint_every_steps or run.config.checkpoint_every_epochs * run.steps_per_epoch


def _restore_or_create(run: experiment.Run, checkpoints: checkpoint.Checkpointer) -> TrainState:
    if checkpoints.latest_step() is None:
        return run.create_state()
    state = checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    logger.info("restored the checkpoint of step %d", int(state.step))
    return state
