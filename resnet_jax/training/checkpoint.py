"""Checkpoints on disk, through Orbax, and nothing but Orbax.

WORKDIR/checkpoints/STEP/variables   what `model.apply` takes; the format of an exported model, too
WORKDIR/checkpoints/STEP/progress    the optimiser's state and the step count
WORKDIR/checkpoints/STEP/ema         a moving average of the variables, likewise; only of runs that keep one
"""

import contextlib
import dataclasses
import errno
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from resnet_jax.errors import Refusal
from resnet_jax.step.step import TrainState
from resnet_jax.training import sound
from resnet_jax.weights.files.orbax_folder import CHECKPOINTS, absolute


class CheckpointMismatch(Refusal, ValueError):
    """A checkpoint holds other variables than the model that is to take them."""


class DamagedCheckpoint(Refusal, RuntimeError):
    """A checkpoint that is there cannot be read, or holds values that are not finite."""


class CheckpointNotSaved(Refusal, RuntimeError):
    """A checkpoint could not be written; those before it are whole."""


@dataclasses.dataclass(frozen=True)
class Keep(checkpoint_managers.PreservationPolicy):
    """Orbax's form of: the `latest` newest, and of those with a score the `best` highest.

    Attributes:
      latest: how many of the newest.
      best: how many of the best; of equals the older stays.
      scores: step -> score; filled in by the owner as the run goes on. A step without one is none of the best.
    """

    latest: int
    best: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [info.step for info in checkpoints]
        return [step in self.kept(steps) for step in steps]

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Which of `steps`, that rise, stay."""
        scored = [step for step in steps if step in self.scores]
        best = sorted(scored, key=lambda step: (-self.scores[step], step))[: self.best]
        return {*steps[-self.latest :], *best}


class Checkpointer:
    """The checkpoints of one run; a context manager. Saving is asynchronous, and atomic: a step exists whole or not.

    Args:
      workdir: of the run; any path that `etils.epath` takes. On several hosts, one that all of them see.
      keep: which checkpoints stay.

    Raises (on leaving, if a save in the background failed):
      CheckpointNotSaved: as `save`.
    """

    def __init__(self, workdir: str, keep: Keep | None = None) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep or checkpoint_managers.LatestN(None),
            enable_async_checkpointing=True,
        )
        self._keep = keep
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("variables", "progress", "ema")}
        self._folder = absolute(workdir) / CHECKPOINTS
        with self._told():
            if keep is not None and jax.process_index() == 0:
                _clear(self._folder)
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        with contextlib.suppress(CheckpointNotSaved) if kind else contextlib.nullcontext(), self._told():
            self._manager.close()  # waits for the last save

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def saved_step(self) -> int | None:
        """Step of the newest checkpoint that is whole by now, asked of the disk: one being saved does not count."""
        return max(ocp.utils.checkpoint_steps(self._folder), default=None) if self._folder.exists() else None

    def save(self, step: int, state: TrainState) -> None:
        """Copies the state to the host, then writes it in the background; donating it afterwards is safe.

        Raises:
          CheckpointNotSaved: this one, or the one before it in the background, could not be written.
        """
        if step == self.latest_step():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with self._told():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Returns when what has been saved is whole on its disk.

        Raises:
          CheckpointNotSaved: as `save`.
        """
        with self._told():
            self._manager.wait_until_finished()

    def tidy(self) -> None:
        """Removes what a score that was not known when it was saved leaves outside of what is kept; after `wait`.

        Raises:
          CheckpointNotSaved: the store refuses.
        """
        assert self._keep is not None
        steps = sorted(self._manager.all_steps())
        with self._told():
            for step in sorted({*steps} - self._keep.kept(steps)):
                self._manager.delete(step)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever a store raises, in words: which checkpoint is the last whole one, and what to do."""
        try:
            yield
        except Exception as error:
            step = self.saved_step()
            last = "there is none before it" if step is None else f"the last whole one is of step {step}"
            raise CheckpointNotSaved(
                f"a checkpoint in {self._folder} could not be written; {last}. Make room, or mend the storage, and "
                f"start the same command again: it goes on from there. The cause: {_short(error)}"
            ) from error

    def restore(self, state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest checkpoint, in the shape of `state` and placed by `sharding`, whatever devices wrote it.

        Raises:
          CheckpointMismatch: it belongs to another model.
          DamagedCheckpoint: it is whole by its name, but cannot be read, or holds NaN, infinities or negative
            variances.
        """
        step = self._manager.latest_step()
        folder = self._folder / str(step)
        with _damage(folder):
            found = _shapes(self._manager.item_metadata(step)["variables"])
        check_same(found, _shapes(state.variables), f"checkpoint {folder}")
        if state.ema is not None and not (folder / "ema").exists():
            raise CheckpointMismatch(
                f"checkpoint {folder} holds no moving average, which config.ema.decay asks for: use the config the run "
                "was started with (config.json in its workdir), or another --workdir."
            )

        def abstract(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        items = {name: ocp.args.StandardRestore(abstract(tree)) for name, tree in _items(state).items()}
        with _damage(folder):
            restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        whole = state.replace(
            params=restored["variables"]["params"],
            batch_stats=restored["variables"].get("batch_stats", {}),
            ema=restored.get("ema"),
            **restored["progress"],
        )
        if damage := sound.damage(whole):
            raise DamagedCheckpoint(
                f"checkpoint {folder} holds {damage}\nRemove that folder to go on from the one before it."
            )
        return whole


def _clear(folder: epath.Path, seconds: float = 30.0) -> None:
    """Removes what killed and failed saves left, which is never taken for a checkpoint.

    A save that failed in this very process, or another process that is still ending, may have writes under way into
    what is being removed. They come to an end, so it is tried again for `seconds`; Orbax's own clearing gives up.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            for path in folder.iterdir() if folder.exists() else ():
                if ocp.utils.is_tmp_checkpoint(path):
                    path.rmtree()
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def _damage(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise DamagedCheckpoint(
            f"checkpoint {folder} cannot be read: remove that folder to go on from the one before it. The cause: "
            f"{_short(error)}"
        ) from error


def _short(error: Exception) -> str:
    """Its message without TensorStore's description of itself, which is pages of JSON."""
    return str(error).partition(" [tensorstore_spec=")[0]


def _items(state: TrainState) -> dict[str, Any]:
    """What a checkpoint of the state consists of: name of the item -> tree."""
    items = {"variables": state.variables, "progress": {"step": state.step, "opt_state": state.opt_state}}
    return items if state.ema is None else items | {"ema": state.ema}


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """Raises `CheckpointMismatch`, naming every difference, unless two `{dotted name: shape}` tables agree."""
    lines = [f"  missing from it: {name} {wanted[name]}" for name in sorted(wanted.keys() - found.keys())]
    lines += [f"  unknown to the model: {name} {found[name]}" for name in sorted(found.keys() - wanted.keys())]
    lines += [
        f"  {name}: {found[name]} there, {wanted[name]} in the model"
        for name in sorted(wanted.keys() & found.keys())
        if tuple(found[name]) != tuple(wanted[name])
    ]
    if lines:
        shown = lines[:10] + ([f"  and {len(lines) - 10} more"] if len(lines) > 10 else [])
        raise CheckpointMismatch(
            f"{source} holds another model than config.model describes:\n" + "\n".join(shown) + "\n"
            "Use the config the run was started with (config.json in its workdir), or another --workdir."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in flatten_dict(dict(tree), sep=".").items()}
