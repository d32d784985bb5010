"""The verb `report`: curves and a table of one or several runs, as a picture and a page."""

import argparse
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

PNG, HTML = "report.png", "report.html"


def add_verb(verbs: Any) -> None:
    """Adds the verb to argparse's sub-parsers."""
    verb = verbs.add_parser("report", help="curves and a table of one or several runs, as PNG and as a page")
    verb.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="of train.py, on a disk or in a bucket")
    verb.add_argument(
        "--out", metavar="DIR", help=f"where {PNG} and {HTML} go: by default WORKDIR, or ./report for several"
    )
    verb.set_defaults(run=_report)


def _report(arguments: argparse.Namespace) -> int:
    from resnet_jax.runs import page, plots, summary

    runs = summary.read_runs(arguments.workdirs)
    out = _out(arguments)
    files = {
        PNG: plots.draw_png({run.label: run.rows for run in runs}),
        HTML: page.render(runs).encode("utf-8", "backslashreplace"),
    }
    for name, content in files.items():
        _write(out / name, content)
    for line in _lines(runs):
        print(line)
    for name in files:
        print(out / name)
    return 0


def _out(arguments: argparse.Namespace) -> epath.Path:
    given = arguments.out or (arguments.workdirs[0] if len(arguments.workdirs) == 1 else "report")
    out = epath.Path(os.path.expanduser(given))
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={out} is a file: give a folder, in which {PNG} and {HTML} are written.")
    return out


def _write(path: epath.Path, content: bytes) -> None:
    from resnet_jax.runs import storage

    try:
        storage.write_whole(path, content)
    except storage.NotWritten as error:
        reason = getattr(error.__cause__, "strerror", None) or error.__cause__
        raise ValueError(f"{path} could not be written ({reason}): give another folder as --out=DIR.") from error


def _lines(runs: Sequence[Any]) -> Iterator[str]:
    """One line a run, and one for each set of seeds."""
    from resnet_jax.runs import cells, summary

    width = max(len(run.label) for run in runs)
    for run in runs:
        accuracy = f"{cells.percent(run.last['accuracy'] if run.last else None):>8}"
        averaged = ", averaged net" if run.averaged else ""
        best = f", best {cells.percent(run.best['accuracy'])} at step {run.best['step']:,}" if run.best else ""
        yield f"{run.label:<{width}}  test accuracy {accuracy}{averaged}{best}; {cells.state(run)}"
    for done, _ in summary.repeats(runs):
        accuracy = cells.spread([run.test[-1]["accuracy"] for run in done], cells.percent)
        yield f"{len(done)} seeds: test accuracy {accuracy} (mean, sample standard deviation)"
