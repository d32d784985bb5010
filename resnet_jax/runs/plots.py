"""The curves of runs as a picture: error, loss and learning rate; training thin, test bold, one colour a run."""

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from resnet_jax.runs import history, storage

logger = logging.getLogger(__name__)

CURVES = "curves.png"

# Okabe and Ito's colours (2008), told apart by the colour-blind, without their black and yellow: these are seen on
# white and on black. After the last, they come again with another dash.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A")
DASHES = ((), (4.0, 1.5), (1.0, 1.2))
INK = "#24292f"
_LONGEST = 44  # characters of a name in the picture


def leave_curves(workdir: str) -> None:
    """Draws WORKDIR/curves.png from the run's records; what prevents it is logged, for a picture is not the run."""
    path = epath.Path(workdir) / CURVES
    try:
        plot_curves(history.read_metrics(workdir), str(path))
    except Exception as error:  # no Matplotlib, full disk, or numbers that it cannot draw
        logger.warning("no curves in %s: %s. The run is not touched by this", path, error)


def plot_curves(rows: Sequence[dict[str, Any]], path: str) -> None:
    """Draws the curves of one run as a PNG.

    Args:
      rows: records of a run, as `read_metrics` returns them.
      path: where the picture goes, on a disk or in a bucket.

    Raises:
      ImportError: Matplotlib is not installed.
      NotWritten: disk full, no permission, bucket gone.
    """
    storage.write_whole(epath.Path(path), draw_png({"": rows}))


def draw_png(runs: Mapping[str, Sequence[dict[str, Any]]]) -> bytes:
    """The curves of runs, label -> records, on white.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    return _draw(runs, format="png", dpi=150, legend=len(runs) > 1)


def draw_svg(runs: Mapping[str, Sequence[dict[str, Any]]]) -> str:
    """The same as an `<svg>` element to stand in a page: in its font and colour; the page says which run is which.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}  # the same records: the same bytes
    text = _draw(runs, format="svg", transparent=True, metadata=nothing, legend=False).decode()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'role="img" aria-label="curves of the runs"', text, count=1)


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of run `number`, from 0."""
    again, colour = divmod(number, len(COLORS))
    return {"color": COLORS[colour], "dashes": DASHES[again % len(DASHES)]}


def _draw(runs: Mapping[str, Sequence[dict[str, Any]]], *, legend: bool, **saved: Any) -> bytes:
    figure_class, settings = _matplotlib()
    picture = io.BytesIO()
    with settings():
        width = 12.5
        columns, lines = _legend_shape(list(runs), width) if legend else (0, 0)
        figure = figure_class(figsize=(width, 3.9 + 0.22 * lines), layout="constrained")
        error, loss, rate = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 0.9))
        figure.get_layout_engine().set(w_pad=0.1)
        for number, rows in enumerate(runs.values()):
            _draw_run(error, loss, rows, line_style(number))
        _draw_rates(rate, list(runs.values()))
        _finish_axes(error, loss, rate, list(runs.values()))
        if legend:
            _name_runs(figure, list(runs), columns)
        figure.savefig(picture, **saved)
    return picture.getvalue()


def _draw_run(error: Any, loss: Any, rows: Sequence[dict[str, Any]], style: dict[str, Any]) -> None:
    for split, look in (("train", {"lw": 0.9, "alpha": 0.6}), ("test", {"lw": 2.2, "zorder": 3})):
        part = [row for row in rows if row["split"] == split]
        epochs = [row["epoch"] for row in part]
        look = look | style | ({"marker": "o", "ms": 3} if len(part) == 1 else {})  # one point makes no line
        # A diverged run is drawn as far as it goes: Matplotlib leaves out what is not finite.
        error.plot(epochs, [100 * (1 - row["accuracy"]) for row in part], **look)
        loss.plot(epochs, [row["loss"] for row in part], **look)


def _draw_rates(axes: Any, runs: Sequence[Sequence[dict[str, Any]]]) -> None:
    """One line where all schedules are the same, as of seeds; of equal ones else, those below are wider."""
    # A run with an optimiser of the user's own may not know its rate.
    curves = [[(row["epoch"], row["learning_rate"]) for row in rows if "learning_rate" in row] for rows in runs]
    styles: list[dict[str, Any]] = [line_style(number) for number in range(len(runs))]
    longest = max(curves, key=len)
    if len(runs) > 1 and all(_same_start(curve, longest) for curve in curves):
        curves, styles = [longest], [{"color": INK}]
        axes.set_title("learning rate (the same in all)")
    for number, (curve, style) in enumerate(zip(curves, styles, strict=True)):
        above = sum(_same_start(curve, other) for other in curves[number + 1 :])
        look = {"lw": 1.4 + 1.8 * min(above, 3), "marker": "o" if len(curve) == 1 else ""}
        dashes = style if not above else {"color": style["color"]}
        axes.plot([x for x, _ in curve], [y for _, y in curve], **look, **dashes)


def _same_start(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Of two runs of the same schedule, one may not have come as far."""
    return all(a == b for a, b in zip(left, right, strict=False))


def _finish_axes(error: Any, loss: Any, rate: Any, runs: Sequence[Sequence[dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    for axes, title in ((error, "error (%)"), (loss, "loss"), (rate, "learning rate")):
        axes.set_title(axes.get_title() or title)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, 1.02 * max((row["epoch"] for rows in runs for row in rows), default=1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        axes.grid(color=INK, alpha=0.15, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    error.set_ylim(0, _top([100 * (1 - row["accuracy"]) for rows in runs for row in rows]))
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    losses = [row["loss"] for rows in runs for row in rows if math.isfinite(row["loss"]) and row["loss"] > 0]
    if losses:
        loss.set_yscale("log", nonpositive="mask")
        steps = (1.0, 2.0, 5.0) if max(losses) > 5 * min(losses) else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        loss.yaxis.set_major_locator(LogLocator(subs=steps, numticks=20))
        loss.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        loss.yaxis.set_minor_formatter(NullFormatter())
    handles = [Line2D([], [], color=INK, lw=0.9, alpha=0.6), Line2D([], [], color=INK, lw=2.2)]
    error.legend(handles, ["training", "test"])


def _name_runs(figure: Any, names: list[str], columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], lw=2.2, **line_style(number)) for number in range(len(names))]
    # The names come after: a label that begins with "_" would be left out, and "$" begins a formula.
    legend = figure.legend(handles, ["?"] * len(names), loc="outside lower center", ncols=columns)
    for text, name in zip(legend.get_texts(), _short(names), strict=True):
        text.set(text=name, parse_math=False)


def _legend_shape(names: list[str], inches: float) -> tuple[int, int]:
    """Columns and lines of the names below the picture."""
    longest = max(len(name) for name in _short(names))
    columns = max(1, min(len(names), round(inches / (0.075 * longest + 0.8))))
    return columns, -(-len(names) // columns)


def _short(names: list[str]) -> list[str]:
    """Without the middle of long ones, unless two would then be the same."""
    half = _LONGEST // 2
    short = [name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in names]
    return short if len(set(short)) == len(short) else names


def _top(errors: Sequence[float]) -> float:
    """Percent."""
    return min(100.0, 1.05 * max((value for value in errors if math.isfinite(value)), default=100.0)) or 1.0


def _matplotlib() -> tuple[Any, Any]:
    """`Figure`, which needs no screen, and our settings as a context manager."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'curves need Matplotlib ({error}): pip install "resnet-linen[train]".') from error
    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    ours: dict[Any, Any] = {
        **dict.fromkeys(coloured, INK),
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "resnet_jax",
    }

    @contextlib.contextmanager
    def settings() -> Iterator[None]:
        # Not the user's own style: the same records give the same picture everywhere.
        with (
            matplotlib.rc_context({**dict(matplotlib.rcParamsDefault), "backend": "agg", **ours}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", r"Glyph .* missing")  # a name in another script; the page has it right
            yield

    return Figure, settings
