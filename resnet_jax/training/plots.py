"""The curves of a run as a picture."""

import io
import logging
from collections.abc import Sequence
from typing import Any

from etils import epath

from resnet_jax.training import records, storage

logger = logging.getLogger(__name__)

CURVES = "curves.png"


def leave_curves(workdir: str) -> None:
    """Draws WORKDIR/curves.png from the run's records; what prevents it is logged, for a picture is not the run."""
    path = epath.Path(workdir) / CURVES
    try:
        plot_curves(records.read_metrics(workdir), str(path))
    except Exception as error:  # no Matplotlib, full disk, or numbers that it cannot draw
        logger.warning("no curves in %s: %s. The run is not touched by this", path, error)


def plot_curves(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Draws loss, error and learning rate against the epoch as a PNG; training thin, test bold.

    Args:
      rows: records of a run, as `read_metrics` returns them.
      path: where the picture goes, on a disk or in a bucket.

    Raises:
      ImportError: Matplotlib is not installed.
      NotWritten: disk full, no permission, bucket gone.
    """
    from matplotlib.figure import Figure  # half a second, and needed once

    train = [row for row in rows if row["split"] == "train"]
    test = records.test_records(rows)
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    for split, part, style in (("training", train, {"lw": 1, "alpha": 0.7}), ("test", test, {"lw": 2.2})):
        epochs = [row["epoch"] for row in part]
        loss.semilogy(epochs, [row["loss"] for row in part], label=split, **style)
        error.plot(epochs, [100 * (1 - row["accuracy"]) for row in part], label=split, **style)
    rate.plot([row["epoch"] for row in train], [row["learning_rate"] for row in train], color="tab:gray")
    error.set_ylim(bottom=0)
    for axes, title in ((loss, "loss"), (error, "error (%)"), (rate, "learning rate")):
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    loss.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    storage.write_whole(epath.Path(path), picture.getvalue())
