"""A page on runs: their curves, a table of what they came to, and what differs; HTML that needs nothing else."""

import datetime
import functools
import html
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from resnet_jax.training import plots, summary, workdirs
from resnet_jax.training.summary import Run
from resnet_jax.version import __version__

NOTHING = "–"

_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #656d76; --line: #d0d7de; --paper: #fff; --mark: #fff3c4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --mark: #4d3f0a; } }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1.5rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { margin: .3rem 0; } .soft, small, caption { color: var(--soft); }
svg.curves { width: 100%; height: auto; margin-top: 1rem; } svg.curves text { font-family: inherit !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; } thead th { border-bottom: 2px solid var(--line); }
th:first-child, td.text, th.text { text-align: left; } td small { display: block; white-space: nowrap; }
td.text { overflow-wrap: break-word; } td.other { background: var(--mark); } svg.key { vertical-align: middle; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; }
code, td.code, pre { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
@media print { @page { size: A4 landscape; margin: 12mm; } body { margin: 0; padding: 0; max-width: none;
  font-size: 10px; } table, svg.curves, tr { break-inside: avoid; } .wide { overflow: visible; }
  th, td { padding: .2rem .35rem; } td.other { font-weight: 600; } }
"""


def render(runs: Sequence[Run]) -> str:
    """The page, a whole HTML document in one string: no script, no style and no picture from elsewhere.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    curves = plots.draw_svg({run.label: run.rows for run in runs}).replace("<svg", '<svg class="curves"', 1)
    parts = [
        f"<h1>{html.escape(_title(runs))}</h1>",
        "<p class=soft>Curves of training are thin and of the test split bold, one colour a run.</p>",
        curves,
        "<h2>Results</h2>",
        _table(runs, RESULTS),
        *_notes(runs),
        *_seeds(runs),
        "<h2>How they were run</h2>" if len(runs) > 1 else "<h2>How it was run</h2>",
        _table(runs, CIRCUMSTANCES),
        *_differences(runs),
        *_configs(runs),
        f"<p class=soft><small>Made by <code>resnet-jax report</code> of resnet_jax {__version__}.</small></p>",
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_title(runs, True)}</title>'
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n'


# Cells: title, whether it is text (else a number), and what it shows, already escaped -----------------------

Cell = tuple[str, bool, Callable[[Run], str]]


def percent(value: float | None) -> str:
    """'73.35 %'."""
    return NOTHING if value is None else f"{100 * value:.2f} %"


def duration(seconds: float | None) -> str:
    """'0:12:07'."""
    return NOTHING if seconds is None else str(datetime.timedelta(seconds=round(seconds)))


def state(run: Run) -> str:
    """Whether it came to its end, or how far it is."""
    if not run.rows:
        return "no record yet"
    if run.finished:
        return f"finished {_moment(run.written)}"
    where = f"at step {run.steps:,}" + (f" of {run.num_steps:,}" if run.num_steps else "")
    return f"not finished: stopped or still running {where}, last record {_moment(run.written)}"


def _small(text: str) -> str:
    return f"<small>{html.escape(text)}</small>"


def _last(run: Run) -> str:
    if run.last is None:
        return NOTHING
    counts = f"{run.last['correct']:,.0f}/{run.last['count']:,.0f}"
    return f"{percent(run.last['accuracy'])}{_small(counts)}{_small('averaged net') if run.averaged else ''}"


def _best(run: Run) -> str:
    return f"{percent(run.best['accuracy'])}{_small('step ' + format(run.best['step'], ','))}" if run.best else NOTHING


def _loss(run: Run) -> str:
    if run.diverged:
        return f"{run.diverged['loss']}{_small('from step ' + format(run.diverged['step'], ','))}"
    return f"{run.last['loss']:.4f}" if run.last else NOTHING


def _steps(run: Run) -> str:
    planned = f"of {run.num_steps:,}" if run.num_steps and not run.finished else ""
    return f"{run.steps:,}{_small(planned) if planned else ''}"


def _parameters(run: Run) -> str:
    count = summary.count_parameters(run)
    return f"{count:,}" if count is not None else "unknown to this version"


def _data(run: Run) -> str:
    path = str(run.config.get("data.path") or "").rstrip("/").rpartition("/")[2]
    return html.escape(str(run.config.get("data.name", NOTHING))) + (_small(path) if path else "")


def _versions(run: Run) -> str:
    """Of each start, where they differ."""
    return "<br>".join(dict.fromkeys(map(_version, run.starts))) or NOTHING


def _version(start: Any) -> str:
    code = start.get("code", {})
    commit = code.get("commit", "")[:9] + (" and changes" if code.get("dirty") else "")
    jax = start.get("versions", {}).get("jax", NOTHING)
    return html.escape(f"{code.get('resnet_jax', NOTHING)}, jax {jax}") + (_small(commit) if commit else "")


def _devices(run: Run) -> str:
    found = [start.get("devices", {}) for start in run.starts]
    names = [f"{device.get('count', '?')} × {device.get('kind', '?')}" for device in found]
    return "<br>".join(map(html.escape, dict.fromkeys(names))) or NOTHING


def _started(run: Run) -> str:
    again = f"{len(run.starts)} starts" if len(run.starts) > 1 else ""
    return _moment(run.started) + (_small(again) if again else "")


def _moment(time: datetime.datetime | None) -> str:
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M") if time else NOTHING


def _config(key: str, run: Run) -> str:
    return html.escape(str(run.config.get(key, NOTHING)))


RESULTS: tuple[Cell, ...] = (
    ("model", True, functools.partial(_config, "model.name")),
    ("parameters", False, _parameters),
    ("data set", True, _data),
    ("test accuracy, last", False, _last),
    ("best", False, _best),
    ("test loss, last", False, _loss),
    ("training accuracy", False, lambda run: percent(run.train_accuracy)),
    ("images/s", False, lambda run: f"{run.images_per_second:,.0f}" if run.images_per_second else NOTHING),
    ("wall time", False, lambda run: duration(run.seconds)),
)
CIRCUMSTANCES: tuple[Cell, ...] = (
    ("epochs", False, lambda run: f"{run.epochs:g}" if run.finished else f"{run.epochs:.2f}"),
    ("steps", False, _steps),
    ("batch", False, functools.partial(_config, "batch_size")),
    ("seed", False, functools.partial(_config, "seed")),
    ("device", True, _devices),
    ("resnet_jax", True, _versions),
    ("started (UTC)", True, _started),
    ("state", True, lambda run: html.escape(state(run))),
)


# Parts of the page ------------------------------------------------------------------------------------------


def _title(runs: Sequence[Run], escaped: bool = False) -> str:
    models = list(dict.fromkeys(str(run.config.get("model.name", NOTHING)) for run in runs))
    many = f"{len(runs)} runs" if len(runs) > 1 else runs[0].label
    title = f"{many}: {', '.join(models[:4])}{', …' if len(models) > 4 else ''}"
    return html.escape(title) if escaped else title


def _key(number: int) -> str:
    """The line of a run, as the curves have it."""
    style = plots.line_style(number)
    dashes = f' stroke-dasharray="{" ".join(f"{3 * x:g}" for x in style["dashes"])}"' if style["dashes"] else ""
    line = f'<line x1="0" y1="5" x2="28" y2="5" stroke="{style["color"]}" stroke-width="3.5"{dashes}/>'
    return f'<svg class="key" width="28" height="10" aria-hidden="true">{line}</svg>'


def _grid(titles: Sequence[str], rows: Sequence[str], text: Sequence[bool]) -> str:
    heads = "".join(
        f"<th{' class=text' if is_text else ''}>{html.escape(title)}</th>"
        for title, is_text in zip(titles, text, strict=True)
    )
    return (
        f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _table(runs: Sequence[Run], cells: Sequence[Cell]) -> str:
    rows = []
    for number, run in enumerate(runs):
        shown = "".join(f"<td{' class=text' if is_text else ''}>{show(run)}</td>" for _, is_text, show in cells)
        name = f'<th title="{html.escape(run.workdir)}">{_key(number)} {html.escape(run.label)}</th>'
        rows.append(f"<tr>{name}{shown}</tr>")
    return _grid(["run", *(title for title, _, _ in cells)], rows, [True, *(is_text for _, is_text, _ in cells)])


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    yield (
        "<p class=soft><small>Training accuracy is that over the last epoch, while the net changed, on augmented and "
        "mixed images; images/s is the median, evaluations left out. The best of many evaluations on the test split is "
        "chosen by that split: compare runs by the last.</small></p>"
    )
    sizes = {run.last["count"] for run in runs if run.last}
    last = [run.last["accuracy"] for run in runs if run.last]
    if len(sizes) == 1 and (size := sizes.pop()):
        error = math.sqrt(max(p * (1 - p) for p in last) / size)
        yield (
            f"<p class=soft><small>A test split of {size:,.0f} images alone leaves a standard error of "
            f"{100 * error:.2f} points in each accuracy.</small></p>"
        )
    if len({(run.config.get("data.name"), run.config.get("data.fingerprint")) for run in runs}) > 1:
        yield "<p><b>The runs are of different data: their accuracies and losses do not compare.</b></p>"


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean and sample standard deviation (n - 1), as '73.28 % ± 0.25 %'."""
    return f"{form(statistics.fmean(values))} ± {form(statistics.stdev(values))}"


def seed_lines(runs: Sequence[Run]) -> Iterator[tuple[list[Run], list[Run]]]:
    """Groups of runs that differ in the seed alone: those that have finished, two or more, and the others."""
    for group in summary.repeats(runs):
        done = [run for run in group if run.finished]
        if len(done) > 1:
            yield done, [run for run in group if not run.finished]


def _seeds(runs: Sequence[Run]) -> Iterator[str]:
    groups = list(seed_lines(runs))
    if not groups:
        return
    rows, notes = [], []
    for done, left in groups:
        last, best = [run.last["accuracy"] for run in done], [run.best["accuracy"] for run in done]  # type: ignore[index]
        seeds = [run.config.get("seed") for run in done]
        train = [run.train_accuracy for run in done if run.train_accuracy is not None]
        cells = [
            ", ".join(run.label for run in done),
            ", ".join(map(str, seeds)),
            spread(last, percent),
            f"{percent(min(last))} to {percent(max(last))}",
            spread(best, percent),
            spread([run.last["loss"] for run in done], "{:.4f}".format),  # type: ignore[index]
            spread(train, percent) if len(train) > 1 else NOTHING,
        ]
        kinds = [" class=text", " class=text", *[""] * 5]
        rows.append(
            f"<tr>{''.join(f'<td{kind}>{html.escape(c)}</td>' for kind, c in zip(kinds, cells, strict=True))}</tr>"
        )
        notes += [f"{run.label} is left out: it has not finished." for run in left]
        if len(set(seeds)) < len(seeds):
            notes.append("Some have the same seed: they are not independent, and the deviation is too small.")
    titles = ("runs", "seeds", "test accuracy, last", "range", "best", "test loss, last", "training accuracy")
    yield "<h2>Over seeds: mean ± sample standard deviation</h2>"
    yield _grid(titles, rows, [True, True, *[False] * 5])
    yield from (f"<p class=soft><small>{html.escape(note)}</small></p>" for note in notes)


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        return
    found = summary.differences(runs)
    yield (
        f"<details open><summary>Config: {len(found)} keys differ</summary>"
        if found
        else "<p>Their configs are equal.</p>"
    )
    if found:
        rows = []
        for key, values in found.items():
            free = _small("changes no number") if key in workdirs.FREE_KEYS else ""
            cells = "".join(
                f'<td class="text code{"" if value == values[0] else " other"}">{html.escape(value)}</td>'
                for value in values
            )
            rows.append(f"<tr><td class='text code'>{html.escape(key)}{free}</td>{cells}</tr>")
        yield _grid(["key", *(run.label for run in runs)], rows, [True] * (len(runs) + 1))
        yield "<p class=soft><small>Marked: other than in the first run.</small></p></details>"


def _configs(runs: Sequence[Run]) -> Iterator[str]:
    """The whole of the first config, from which the differences lead to the others; command and place of each."""
    yield f"<details><summary>The whole config of {html.escape(runs[0].label)}</summary><pre>"
    yield html.escape("\n".join(f"{key} = {json.dumps(value)}" for key, value in sorted(runs[0].config.items())))
    yield "</pre></details>\n<details><summary>Commands</summary>"
    for run in runs:
        command = " ".join(map(str, run.starts[-1].get("command", []))) if run.starts else "not recorded"
        yield f"<p><b>{html.escape(run.label)}</b> in <code>{html.escape(run.workdir)}</code><br><code>{html.escape(command)}</code></p>"
    yield "</details>"
