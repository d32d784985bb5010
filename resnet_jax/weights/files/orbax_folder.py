"""Variables in a folder that Orbax wrote: exported ones, or those of a run of `train.py`.

FOLDER/_METADATA                     exported variables: what `model.apply` takes
STEP/variables, STEP/ema             a checkpoint of a run: the same, and their moving average if the run keeps one
WORKDIR/checkpoints/STEP             the checkpoints of a run
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from resnet_jax.errors import Refusal

CHECKPOINTS = "checkpoints"


class NoAverage(Refusal, FileNotFoundError):
    """A moving average is asked of what holds none."""


def save_variables(path: str, variables: Mapping[str, Any]) -> None:
    """Writes `{'params': ..., 'batch_stats': ...}` as an Orbax folder that `load_variables` reads.

    Raises:
      ValueError: the folder exists.
    """
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(absolute(path), jax.tree.map(np.asarray, dict(variables)))


def load_variables(path: str, *, ema: bool = False) -> dict[str, Any]:
    """Variables as NumPy arrays, from an exported folder, a checkpoint, or the newest checkpoint of a workdir.

    Args:
      path: of any of these.
      ema: the moving average of the variables, which only a checkpoint has, of a run that keeps one.

    Raises:
      FileNotFoundError: there is neither at `path`.
      NoAverage: there is no average in it.
    """
    folder = absolute(path)
    if (folder / CHECKPOINTS).exists():
        steps = ocp.utils.checkpoint_steps(folder / CHECKPOINTS)
        if not steps:
            raise FileNotFoundError(f"{folder} is the workdir of a run that has not saved a checkpoint yet.")
        folder = folder / CHECKPOINTS / str(max(steps))
    if ema and not (folder / "ema").exists():
        raise NoAverage(f"{folder} holds no moving average: its run kept none (config.ema.decay=0).")
    if (folder / "variables").exists():
        folder = folder / ("ema" if ema else "variables")
    if not (folder / "_METADATA").exists():
        raise FileNotFoundError(
            f"{path} is neither a workdir of train.py, nor a checkpoint in one, nor exported variables."
        )
    return load_tree(str(folder))


def load_tree(path: str) -> Any:
    """Any one item that Orbax wrote, as nested containers of NumPy arrays, whatever devices it came from."""
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        tree = handler.metadata(absolute(path)).tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return handler.restore(absolute(path), args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def absolute(path: str) -> epath.Path:
    """Orbax takes absolute paths only; a bucket's are so already."""
    folder = epath.Path(path).expanduser()
    return folder if "://" in str(path) else folder.resolve()
