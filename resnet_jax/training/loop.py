"""The order of things: build, restore, step, log, evaluate, save. Nothing here computes."""

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
import ml_collections
from etils import epath

from resnet_jax import compiler, version
from resnet_jax.errors import PREEMPTED, Refusal
from resnet_jax.runs import history, plots, reporting, workdirs
from resnet_jax.step import metrics
from resnet_jax.step.parallel import connect
from resnet_jax.step.step import TrainState
from resnet_jax.training import checkpoint, experiment, hosts, recipe
from resnet_jax.training.keys import effect
from resnet_jax.training.trace import Trace
from resnet_jax.training.window import Window, check_unreadable

logger = logging.getLogger(__name__)


class Preempted(Refusal, RuntimeError):
    """The run was told to make way; it has saved, and the same command goes on with it."""

    exit_code = PREEMPTED


def train(config: ml_collections.ConfigDict, workdir: str, *, extend: bool = False) -> dict[str, Any]:
    """Trains, or goes on training, in `workdir`; returns the record of the last evaluation.

    A run that was killed and is started again ends with the same bits as one that was not: the checkpoint holds the
    whole state, and batches are a function of the seed and the step alone. On several hosts, each calls this with the
    same config and a `workdir` that all of them see; the first alone writes for people.

    Args:
      config: the experiment.
      workdir: the folder of the run.
      extend: the run in `workdir` may have had fewer epochs; all else of it goes on as it is.

    Raises:
      ValueError: the config contradicts itself, a key of it has no effect, or `workdir` belongs to another run.
      workdirs.WorkdirInUse: another process trains in `workdir`.
      hosts.HostsDisagree: the hosts of the run have other configs, data or versions.
      window.TrainingDiverged: loss, gradient or state is not finite; the last good checkpoint stays.
      checkpoint.DamagedCheckpoint: the newest cannot be read, or holds values that are not finite.
      window.TooManyUnreadable: more images cannot be read than the config allows.
      Preempted: SIGTERM came; the state is saved.
      checkpoint.CheckpointNotSaved: the disk is full, or the like; the checkpoints before are whole.
    """
    use_compilation_cache(config.compilation_cache_dir)
    compiler.warn()
    effect.check(config, workdirs.load_config(workdir) if _is_begun(workdir) else None)
    _, record = train_run(experiment.build(config), workdir, extend=extend)
    return record


def train_run(
    run: experiment.Run, workdir: str, *, callbacks: Sequence[reporting.Callback] = (), extend: bool = False
) -> tuple[TrainState, dict[str, Any]]:
    """`train` of what has been built; `callbacks` are told of it in the first process. Also returns the last state."""
    check_hosts(run)
    with workdirs.alone(workdir, writes=hosts.is_first()):
        return _train(run, workdir, callbacks, extend)


def _train(
    run: experiment.Run, workdir: str, callbacks: Sequence[reporting.Callback], extend: bool
) -> tuple[TrainState, dict[str, Any]]:
    added = _extension(run, workdir) if extend else ""
    workdirs.claim(workdir, run.config, writes=hosts.is_first(), extend=extend)
    workdirs.keep_class_names(workdir, run.train_data.class_names, writes=hosts.is_first())
    _check_shared(workdir)
    logger.info("%s", hosts.layout())
    scores: dict[int, float] = {}  # step -> test accuracy
    keep = checkpoint.Keep(run.config.keep_checkpoints, run.config.keep_best, scores)
    first_traced, last_traced = run.config.profile_steps
    trace = Trace(first_traced, last_traced, str(epath.Path(workdir) / "profile"))
    # Listens until the last save has ended, too: a second SIGTERM must not break it off.
    with hosts.Preemption() as preemption, checkpoint.Checkpointer(workdir, keep) as checkpoints:
        state = _restore_or_create(run, checkpoints)
        first_step = int(state.step)
        # Records of later steps belong to a start that was killed before it saved: they will be made again. What was
        # evaluated and which checkpoint is best decides what all hosts do next, so they hear it of one.
        records = history.read_metrics(workdir) if hosts.is_first() else []
        before = [record for record in records if record["step"] <= first_step]
        tested, unreadable = hosts.of_first([history.test_records(before), history.count_unreadable(before)])
        scores.update({record["step"]: record["accuracy"] for record in tested})
        if hosts.is_first():
            _say_of_devices(run, state, workdirs.load_starts(workdir))
            workdirs.record_start(workdir, workdirs.describe_start(first_step=first_step))
        reporter = reporting.Reporter(
            workdir,
            first_step=first_step,
            num_steps=run.num_steps,
            active=hosts.is_first(),
            tensorboard=run.config.tensorboard,
            saved_step=checkpoints.saved_step,
            callbacks=callbacks,
        )
        with reporter, trace, contextlib.closing(run.evaluations):
            if added:
                reporter.say(added)
            steps = _Steps(run, checkpoints, reporter, scores, preemption, unreadable)
            state, last = steps.make(state, trace)
    if hosts.is_first():
        plots.leave_curves(workdir)
    return state, last or tested[-1]


def _extension(run: experiment.Run, workdir: str) -> str:
    """What more epochs make of the schedule, in words; "" where nothing is added."""
    there = (epath.Path(workdir) / workdirs.CONFIG).exists() and workdirs.load_config(workdir)[workdirs.EPOCHS]
    if not there or there == run.config.num_epochs:
        return ""  # a start of before has said it; or there is nothing to extend, which `claim` says
    line = f"{there:g} epochs become {run.config.num_epochs:g}: step {run.num_steps} is the last"
    if run.schedule is None:
        return line
    steps = round(there * run.steps_per_epoch)
    earlier = recipe.create_schedule(run.config, steps_per_epoch=run.steps_per_epoch, num_steps=steps)
    before, after = float(earlier(steps - 1)), float(run.schedule(steps))
    return (
        f"{line}. The schedule is that of a run of so many epochs from its start: the rate goes on from {after:.3g} at "
        f"step {steps}, having come to {before:.3g}"
    )


def _is_begun(workdir: str) -> bool:
    return bool(workdir) and (epath.Path(workdir) / workdirs.CONFIG).exists() and workdirs.is_bound(workdir)


def evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """Evaluates the newest checkpoint of `workdir`, or `config.init_from` if no `workdir` is given, on the test split.

    Returns:
      `loss`, `accuracy`, `correct`, `count`, `averaged` (whether the moving average was evaluated) and `step`; of more
      than 5 classes `accuracy_top5` and `correct_top5`, too. Every example of the split is counted once.

    Raises:
      ValueError, FileNotFoundError: nothing to evaluate, or a checkpoint of another model.
      Preempted: SIGTERM came.
    """
    use_compilation_cache(config.compilation_cache_dir)
    compiler.warn()
    run = experiment.build(config)
    check_hosts(run)
    if not workdir:
        if not run.config.init_from:
            raise ValueError("nothing to evaluate: give --workdir of a run, or --config.init_from=WEIGHTS.")
        state = run.create_state()
    else:
        workdirs.load_config(workdir)
        with checkpoint.Checkpointer(workdir) as checkpoints:
            if checkpoints.latest_step() is None:
                raise FileNotFoundError(f"{workdir} has no checkpoint yet: train first, with --mode=train.")
            state = _restore_or_create(run, checkpoints)
    # Of several hosts, each would otherwise keep SIGTERM to itself.
    with contextlib.closing(run.evaluations), hosts.Preemption() as preemption:
        return {"step": int(state.step), **_evaluate(run, state, lambda: _stop_if_told(preemption))}


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder`, unless JAX was told of another one or `folder` is empty."""
    if folder and not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(folder))


# Before the first step ----------------------------------------------------------------------------------


def check_hosts(run: experiment.Run) -> None:
    """Hosts that disagree would train on other data, or wait for each other for ever.

    Raises:
      hosts.HostsDisagree: they do.
    """
    facts = {f"config.{key}": value for key, value in workdirs.shared_keys(run.config).items()}
    versions = {"version of resnet_jax": version.__version__, "version of jax": jax.__version__}
    devices = {"number of devices": jax.local_device_count()}
    hosts.agree(facts | versions | devices, "Start all of them with the same command, data and environment.")
    if jax.process_count() > 1:
        connect(getattr(run.model, "axis_index_groups", None))


def _check_shared(workdir: str) -> None:
    """Each host must see what the first one writes."""
    hosts.agree({}, "")  # waits for the first one to have written it
    seen = (epath.Path(workdir) / workdirs.CONFIG).exists()
    hosts.agree(
        {f"{workdir} holds the config that the first wrote": seen},
        "--workdir must be on storage that every host sees: a network disk, or a bucket.",
    )


def _restore_or_create(run: experiment.Run, checkpoints: checkpoint.Checkpointer) -> TrainState:
    step = checkpoints.latest_step()
    hosts.agree({"newest checkpoint": step}, "Start all of them again, once all see the same --workdir.")
    if step is None:
        return run.create_state()
    state = checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    logger.info("restored the checkpoint of step %d", int(state.step))
    return state


def _say_of_devices(run: experiment.Run, state: TrainState, starts: Sequence[Mapping[str, Any]]) -> None:
    """A line in the log where a run goes on with another number of devices, and batch norm tells them apart."""
    size, now = run.config.batch_norm_devices, jax.device_count()
    made = [start["devices"]["count"] for start in starts if start["first_step"] < int(state.step)]
    before = made[-1] if made else now  # of the last start that left a step
    if state.batch_stats and size and before != now:
        rows, rows_now = (size * run.config.batch_size // run.config.accumulate_steps // n for n in (before, now))
        logger.warning(
            "this run had %d devices, and goes on with %d: with config.batch_norm_devices=%d each statistic of batch "
            "norm was over %d images, and is over %d from here on; a run on either number alone would end with others",
            *(before, now, size, rows, rows_now),
        )


# Steps --------------------------------------------------------------------------------------------------


class _Steps:
    """All steps that are left of a run, and what is due after each."""

    def __init__(
        self,
        run: experiment.Run,
        checkpoints: checkpoint.Checkpointer,
        reporter: reporting.Reporter,
        scores: dict[int, float],
        preemption: hosts.Preemption,
        unreadable: int = 0,
    ) -> None:
        self._run, self._checkpoints, self._reporter = run, checkpoints, reporter
        self._preemption = preemption
        self._scores = scores  # step -> test accuracy, of this start and those before it
        self._unreadable = unreadable  # images, of the starts before

    def make(self, state: TrainState, trace: Trace) -> tuple[TrainState, dict[str, Any] | None]:
        """Makes them; returns the state after the last and the record of the last evaluation, if there was one."""
        run, step, before = self._run, int(state.step), None
        # A start that was killed or told to stop may have saved a step and not yet evaluated it.
        last = self._evaluate(step, state) if step and self._evaluates(step) and step not in self._scores else None
        self._window = Window(
            run.config.batch_size,
            run.facts.num_train,
            run.config.data.max_unreadable,
            seen=step * run.config.batch_size,
            unreadable=self._unreadable,
            saved_step=self._checkpoints.saved_step,
        )
        if step < run.num_steps:
            self._reporter.say(
                f"step {step}: compiling the training step; this can take minutes, a later start is quicker"
            )
        with contextlib.closing(experiment.train_batches(run, step)) as batches:
            while step < run.num_steps:
                with trace.step(step + 1):
                    state, sums = run.parallel.train_step(state, run.parallel.shard(next(batches)))
                if run.parallel.blocking:
                    jax.block_until_ready(sums)
                # The step before is waited for, so that the devices always have the next one to work on, and never hold
                # the batches of many. What it counted stays there ...
                if before is not None:
                    jax.block_until_ready(before)
                step, before = step + 1, sums
                self._window.add(step, sums)
                preempted = self._preemption.reached()
                # ... but before anything is written it is all in, and the state is looked at: one that is not finite is
                # never evaluated or saved, and the windows of a resumed run are those of an uninterrupted one.
                if preempted or self._reports(step):
                    self._window.read()
                    self._report(step, state)
                    if preempted:
                        self._make_way(step, state)
                    last = self._save_and_evaluate(step, state) or last
                    self._window.restart()
        return state, last

    # What is due after a step:

    def _evaluates(self, step: int) -> bool:
        return self._every(step, self._run.config.eval_every_epochs * self._run.steps_per_epoch)

    def _saves(self, step: int) -> bool:
        config = self._run.config
        interval = config.checkpoint_every_steps or config.checkpoint_every_epochs * self._run.steps_per_epoch
        # Which evaluation is the best is known when it has ended, and a state is saved before one begins.
        return self._every(step, interval) or (config.keep_best > 0 and self._evaluates(step))

    def _reports(self, step: int) -> bool:
        return self._evaluates(step) or self._saves(step) or self._every(step, self._run.config.log_every_steps)

    def _every(self, step: int, interval: float) -> bool:
        return step == self._run.num_steps or (interval > 0 and step % max(round(interval), 1) == 0)

    # Doing it:

    def _report(self, step: int, state: TrainState) -> None:
        numbers, run = self._window.close(), self._run
        self._window.check(step, state)  # after the clock has stopped, and before anything is written
        position = {"epoch": step / run.steps_per_epoch}
        if run.schedule is not None:
            position["learning_rate"] = float(run.schedule(step - 1))
        left = (run.num_steps - step) * numbers.pop("seconds_per_step")
        self._reporter.train(step, position | numbers | {"seconds_left": left})

    def _save_and_evaluate(self, step: int, state: TrainState) -> dict[str, Any] | None:
        if self._saves(step):
            self._save(step, state)
        return self._evaluate(step, state) if self._evaluates(step) else None

    def _evaluate(self, step: int, state: TrainState) -> dict[str, Any]:
        self._checkpoints.wait()  # whatever an evaluation meets, or makes of this process, the step is not lost to it
        try:
            # An evaluation can take longer than the time that is left after SIGTERM.
            found = _evaluate(self._run, state, lambda: self._preemption.reached() and self._make_way(step, state))
        except Preempted:
            raise
        except Exception as error:
            error.add_note(self._what_stands(step))
            raise
        found = hosts.of_first(found)
        self._scores[step] = found["accuracy"]
        record = self._reporter.test(step, {"epoch": step / self._run.steps_per_epoch, **found})
        if self._run.config.keep_best:
            self._checkpoints.tidy()
        return record

    def _what_stands(self, step: int) -> str:
        saved = self._checkpoints.saved_step()
        if saved == step:
            return f"The checkpoint of step {step} is saved: the same command goes on with this evaluation."
        newest = "there is no checkpoint yet" if saved is None else f"the newest checkpoint is of step {saved}"
        return f"This was the evaluation of step {step}, at which none was due to be saved; {newest}."

    def _save(self, step: int, state: TrainState) -> None:
        self._reporter.flush()  # a checkpoint never stands without the numbers of the steps before it
        self._checkpoints.save(step, state)
        self._reporter.saved(step)

    def _make_way(self, step: int, state: TrainState) -> NoReturn:
        """Saves; what else is due after this step is done on the next start."""
        self._save(step, state)
        raise Preempted(f"told to stop (SIGTERM): saved step {step} of {self._run.num_steps}; start again to go on.")


def _stop_if_told(preemption: hosts.Preemption) -> None:
    if preemption.reached():
        raise Preempted("told to stop (SIGTERM) while evaluating; start again.")


def _evaluate(run: experiment.Run, state: TrainState, before_batch: Callable[[], Any]) -> dict[str, Any]:
    """Metrics over the whole test split, each example once, and whether they are of the moving average."""
    sums: dict[str, float] = {}
    with contextlib.closing(experiment.eval_batches(run)) as batches:
        for batch in batches:
            before_batch()
            sums = metrics.merge(sums, run.parallel.eval_step(state, run.parallel.shard(batch)))
    unreadable = len(run.test_data) - int(sums["count"])
    if unreadable:
        logger.warning("%d of the %d test images could not be read and are not counted", unreadable, len(run.test_data))
    check_unreadable(unreadable, len(run.test_data), run.config.data.max_unreadable)
    counts: dict[str, Any] = {name: sums[name] for name in ("correct", "correct_top5", "count") if name in sums}
    return {**metrics.compute(sums), **counts, "averaged": state.ema is not None}
