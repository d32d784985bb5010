"""Checkpoints on disk, through Orbax, and nothing but Orbax.

WORKDIR/checkpoints/STEP/variables   what `model.apply` takes; the format of an exported model, too
WORKDIR/checkpoints/STEP/progress    the optimiser's state and the step count
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from resnet_jax.training.step import TrainState

CHECKPOINTS = "checkpoints"


class CheckpointMismatch(ValueError):
    """A checkpoint holds other variables than the model that is to take them."""


class Checkpointer:
    """The checkpoints of one run; a context manager. Saving is asynchronous, and atomic: a step exists whole or not."""

    def __init__(self, workdir: str, *, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(keep), enable_async_checkpointing=True
        )
        handlers = {name: ocp.StandardCheckpointHandler() for name in ("variables", "progress")}
        self._manager = ocp.CheckpointManager(_absolute(workdir) / CHECKPOINTS, options=options, item_handlers=handlers)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *unused: object) -> None:
        self._manager.close()  # waits for the last save

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def saved_step(self) -> int | None:
        """Step of the newest checkpoint that is whole by now, asked of the disk: one being saved does not count."""
        return max(ocp.utils.checkpoint_steps(self._manager.directory), default=None)

    def save(self, step: int, state: TrainState) -> None:
        """Copies the state to the host, then writes it in the background; donating it afterwards is safe."""
        items = {
            "variables": ocp.args.StandardSave(state.variables),
            "progress": ocp.args.StandardSave(_progress(state)),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
        """The newest checkpoint, in the shape of `state` and placed by `sharding`, whatever devices wrote it.

        Raises:
          CheckpointMismatch: it belongs to another model.
        """
        step = self._manager.latest_step()
        found = _shapes(self._manager.item_metadata(step)["variables"])
        check_same(found, _shapes(state.variables), f"checkpoint {self._manager.directory / str(step)}")

        def abstract(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

        items = {
            "variables": ocp.args.StandardRestore(abstract(state.variables)),
            "progress": ocp.args.StandardRestore(abstract(_progress(state))),
        }
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return state.replace(
            params=restored["variables"]["params"],
            batch_stats=restored["variables"].get("batch_stats", {}),
            **restored["progress"],
        )


def _progress(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def save_variables(path: str, variables: Mapping[str, Any]) -> None:
    """Writes `{'params': ..., 'batch_stats': ...}` as an Orbax folder that `load_variables` reads.

    Raises:
      ValueError: the folder exists.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(_absolute(path), jax.tree.map(np.asarray, dict(variables)))


def load_variables(path: str) -> dict[str, Any]:
    """Variables as NumPy arrays, from an exported folder or from the newest checkpoint of a workdir.

    Raises:
      FileNotFoundError: there is neither at `path`.
    """
    folder = _absolute(path)
    if (folder / CHECKPOINTS).exists():
        steps = ocp.utils.checkpoint_steps(folder / CHECKPOINTS)
        if not steps:
            raise FileNotFoundError(f"{folder} is the workdir of a run that has not saved a checkpoint yet.")
        folder = folder / CHECKPOINTS / str(max(steps)) / "variables"
    if not (folder / "_METADATA").exists():
        raise FileNotFoundError(f"{path} is neither a workdir of train.py nor a folder of exported variables.")
    return load_tree(str(folder))


def load_tree(path: str) -> Any:
    """Any one item that Orbax wrote, as nested containers of NumPy arrays, whatever devices it came from."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(_absolute(path)).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(_absolute(path), args=ocp.args.PyTreeRestore(restore_args=as_numpy))


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


def _absolute(path: str) -> epath.Path:
    """Orbax takes absolute paths only; a bucket's are so already."""
    folder = epath.Path(path).expanduser()
    return folder if "://" in str(path) else folder.resolve()
