"""What a proof says: rows, each with its bar, and from them a table, JSON and a plot."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from resnet_jax import compiler
from resnet_jax.version import __version__

# What an error may be, for each setting, so that it is still "the same function".
BARS = {"float64": 1e-10, "float32": 1e-5, "default": 1e-5, "bfloat16": 2e-2}
# "default" rounds the factors of each product on some hardware, to bfloat16 on TPUs, to TF32 on NVIDIA GPUs, which is
# eight times as fine. Backend -> share of bfloat16's bar. Rounded so on a CPU, networks of 20 to 152 layers were off by
# at most 5.0e-3 and 6.2e-4 (relative RMS) at their worst stage, so both shares leave at least a factor of two.
DEFAULT_SHARES = {"cpu": None, "gpu": 1 / 4, "tpu": 1.0}
# In bfloat16 ours may be 1.2 times as far from float64 as PyTorch's own; one rounding, 2^-8, is always allowed.
AUTOCAST_FACTOR, AUTOCAST_FLOOR = 1.2, 2.0**-8


class Bar(NamedTuple):
    """What may be off, by how much: "relative", the largest difference, or "rms", for rounding noise."""

    limit: float
    measure: str = "relative"


def bar(dtype: str, backend: str = "cpu", autocast: float | None = None) -> Bar:
    """The bar of a setting on a backend.

    Args:
      dtype: the setting.
      backend: "cpu", "gpu" or "tpu"; an unknown one is given as much room as a TPU.
      autocast: PyTorch's own relative RMS error in bfloat16, where it is known.
    """
    share = {"bfloat16": 1.0, "default": DEFAULT_SHARES.get(backend, 1.0)}.get(dtype)
    if share is None:
        return Bar(BARS[dtype])
    if autocast is None:
        return Bar(share * BARS["bfloat16"], "rms")
    return Bar(share * max(AUTOCAST_FLOOR, AUTOCAST_FACTOR * autocast), "rms")


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage at one size in one setting.

    Attributes:
      dtype: the setting: "float64", "float32" (highest precision), "default" (the backend's) or "bfloat16".
      size: of the images, as "224x224"; "224x224 train" in training mode.
      stage: "stem", "layer1", ..., or of a training step "layer1 running_var", ...
      difference: largest absolute difference.
      reference: largest absolute value of the reference.
      rms: root mean square of the difference over that of the reference.
      cosine: of the angle between ours and the reference.
      bar: what is judged, and what it may be.
      top1, top5: share of the images whose largest logit, or set of the five largest, is the reference's; for logits.
    """

    dtype: str
    size: str
    stage: str
    difference: float
    reference: float
    rms: float
    cosine: float
    bar: Bar
    top1: float | None = None
    top5: float | None = None

    @property
    def relative(self) -> float:
        return self.difference / max(self.reference, np.finfo(np.float64).tiny)

    @property
    def error(self) -> float:
        """What is judged."""
        return self.rms if self.bar.measure == "rms" else self.relative

    @property
    def passed(self) -> bool:
        # Written so that a NaN fails.
        return self.error <= self.bar.limit

    def json(self) -> dict[str, Any]:
        """All of it as plain values. A NaN is None: JSON has none."""
        values = dataclasses.asdict(self) | {"bar": self.bar.limit, "judged": self.bar.measure, "passed": self.passed}
        values |= {"relative": self.relative, "error": self.error}
        return {key: None if isinstance(x, float) and not np.isfinite(x) else x for key, x in values.items()}


def environment() -> dict[str, Any]:
    """Device, compiler and versions of this side. No date: the same proof on the same machine gives the same file."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": device.device_kind,
        "backend": str(getattr(device.client, "platform_version", "")).strip(),  # XLA's, or the driver's
        "compiler": compiler.describe(),
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,  # XLA is part of it
            "numpy": np.__version__,
            "resnet_jax": __version__,
        },
    }


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` saw.

    Attributes:
      name: of the network.
      rows: in the order in which they were compared: by setting, by size, then from the images on.
      peers: versions of PyTorch, torchvision and timm that gave the reference.
    """

    name: str
    rows: tuple[Row, ...]
    peers: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def first_failure(self) -> Row | None:
        """The first row above its bar: the earliest stage of the first setting and size that shows the difference."""
        return next((row for row in self.rows if not row.passed), None)

    def worst(self, dtype: str) -> Row:
        """The row with the largest relative difference."""
        return max((row for row in self.rows if row.dtype == dtype), key=lambda row: row.relative)

    def verdict(self) -> str:
        """One line."""
        row = self.first_failure
        if row is None:
            return f"{self.name} equals PyTorch at every stage" if self.rows else f"{self.name}: nothing was compared"
        where = f"{row.stage} ({row.dtype}, {row.size}): {row.error:.1e} is over the bar of {row.bar.limit:.0e}"
        return f"{self.name} DIFFERS from PyTorch, first at {where}"

    def table(self) -> str:
        """The rows as aligned text, and the verdict. The bar is on `relative`, or on `RMS` where it says so."""
        stages, sizes = (
            max(len(name) for name in [title, *names]) + 2
            for title, names in (("stage", [row.stage for row in self.rows]), ("size", [row.size for row in self.rows]))
        )
        titles = f"{'max |diff|':>11}{'max |ref|':>11}{'relative':>10}{'RMS':>10}{'1-cosine':>10}{'bar':>9}"
        rms = {"relative": "    ", "rms": " RMS"}
        lines = [f"{'setting':<10}{'size':<{sizes}}{'stage':<{stages}}{titles}      top-1 top-5"]
        for row in self.rows:
            numbers = f"{row.difference:>11.2e}{row.reference:>11.2e}{row.relative:>10.1e}{row.rms:>10.1e}"
            agreement = "" if row.top1 is None else f"  {row.top1:>4.0%}  {row.top5:>4.0%}"
            numbers += f"{1 - row.cosine:>10.1e}{row.bar.limit:>9.1e}{rms[row.bar.measure]}"
            line = f"{row.dtype:<10}{row.size:<{sizes}}{row.stage:<{stages}}{numbers}{agreement}"
            lines.append(line.rstrip() if row.passed else f"{line}  FAILED")
        return "\n".join([*lines, self.verdict()])

    def json(self) -> str:
        """The rows, with the device and the versions that gave them."""
        there = environment()
        content = {"model": self.name, "passed": self.passed, "verdict": self.verdict(), **there}
        content["versions"] = there["versions"] | dict(self.peers)
        return json.dumps(content | {"rows": [row.json() for row in self.rows]}, indent=2)


def figure_class() -> Any:
    """The `Figure` of matplotlib, which needs no screen.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the plot needs matplotlib: pip install "resnet-linen[train]".') from error
    return Figure


def plot(report: Report, path: str) -> None:
    """Draws each stage's error and the bars as a PNG, one panel for each size; crosses are over their bar.

    Raises:
      ImportError: matplotlib is not installed.
    """
    panels: dict[str, list[Row]] = {}
    for row in report.rows:
        statistic = row.stage.partition(" ")[2]
        panels.setdefault(f"{row.size} {statistic}".strip(), []).append(row)
    figure = figure_class()(figsize=(1.5 + 3.2 * len(panels), 4.2), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items(), strict=True
    ):
        _panel(axes, rows)
        axes.set_title(title, fontsize="medium")
    figure.axes[0].set_ylabel("error (dashed: its bar)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.suptitle(report.verdict(), fontsize="medium", color="black" if report.passed else "tab:red")
    figure.savefig(path, format="png", dpi=120)


def _panel(axes: Any, rows: Sequence[Row]) -> None:
    stages = [stage.partition(" ")[0] for stage in dict.fromkeys(row.stage for row in rows)]
    for i, dtype in enumerate(dict.fromkeys(row.dtype for row in rows)):
        shown = [row for row in rows if row.dtype == dtype]
        places = range(len(shown))
        errors = np.nan_to_num([max(row.error, 1e-17) for row in shown], nan=1e3, posinf=1e3)  # 0 has no logarithm
        style = {"color": f"C{i}", "zorder": 3 - 0.1 * i}
        axes.semilogy(places, errors, ".-", label=dtype, lw=1 + i, **style)  # wider below: two may be the same
        axes.semilogy(places, [row.bar.limit for row in shown], "--", lw=1, **style)
        failed = [place for place in places if not shown[place].passed]
        axes.semilogy(failed, errors[failed], "x", color="red", ms=9, mew=2, zorder=4)
    axes.set_xticks(range(len(stages)), stages, rotation=75, fontsize="small")
    axes.grid(alpha=0.3)
