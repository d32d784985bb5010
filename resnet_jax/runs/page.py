"""A page on runs: their curves, a table of what they came to, and what differs; HTML that needs nothing else."""

import html
import json
import math
from collections.abc import Iterator, Sequence

from resnet_jax.runs import cells, plots, summary, workdirs
from resnet_jax.runs.summary import Run
from resnet_jax.version import __version__

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
th { font-weight: 600; vertical-align: bottom; } thead th { border-bottom: 2px solid var(--line); }
td.text, th.text, td.run, th.run { text-align: left; }
td.run { font-weight: 600; overflow-wrap: anywhere; min-width: 6rem; }
td small { display: block; white-space: nowrap; }
td.text { overflow-wrap: break-word; } mark { background: var(--mark); color: inherit; }
svg.key { vertical-align: middle; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; }
code, td.code, pre { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
@media print { @page { size: A4 landscape; margin: 12mm; }
  html { font-size: 10.5px; }
  body { margin: 0; padding: 0; max-width: none; font-size: 1rem; } table, svg.curves, tr { break-inside: avoid; }
  .wide { overflow: visible; } th, td { padding: .2rem .35rem; } mark { font-weight: 600; } }
"""


def render(runs: Sequence[Run]) -> str:
    """The page, a whole HTML document in one string: no script, no style and no picture from elsewhere.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    curves = plots.draw_svg({run.label: run.rows for run in runs}).replace("<svg", '<svg class="curves"', 1)
    title = html.escape(_title(runs))
    parts = [
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n<body>',
        f"<h1>{title}</h1>",
        "<p class=soft>Thin: training. Bold: test split. One colour a run, as in the tables.</p>",
        curves,
        "<h2>Results</h2>",
        _table(runs, cells.RESULTS),
        *_notes(runs),
        *_seeds(runs),
        "<h2>How they were run</h2>" if len(runs) > 1 else "<h2>How it was run</h2>",
        _table(runs, cells.CIRCUMSTANCES),
        *_differences(runs),
        *_configs(runs),
        f"<p class=soft><small>Made by <code>resnet-jax report</code> of resnet_jax {__version__}.</small></p>",
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _title(runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(str(run.config.get("model.name", cells.NOTHING)) for run in runs))
    many = f"{len(runs)} runs" if len(runs) > 1 else runs[0].label
    return f"{many}: {', '.join(models[:4])}{', ...' if len(models) > 4 else ''}"


# Tables -----------------------------------------------------------------------------------------------------


def _grid(titles: Sequence[str], kinds: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; `kinds` are the CSS classes of the columns."""

    def line(tag: str, row: Sequence[str]) -> str:
        classes = (f' class="{kind}"' if kind else "" for kind in kinds)
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(classes, row, strict=True))

    head = f"<thead><tr>{line('th', [html.escape(title) for title in titles])}</tr></thead>"
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table>{head}<tbody>\n{body}\n</tbody></table></div>"


def _table(runs: Sequence[Run], columns: Sequence[cells.Cell]) -> str:
    titles, kinds, shows = zip(*columns, strict=True)
    rows = [[_name(number, run), *(show(run) for show in shows)] for number, run in enumerate(runs)]
    return _grid(["run", *titles], ["run", *("text" if is_text else "" for is_text in kinds)], rows)


def _name(number: int, run: Run) -> str:
    """The label, and the line of the run as the curves have it."""
    style = plots.line_style(number)
    dashes = f' stroke-dasharray="{" ".join(f"{3 * x:g}" for x in style["dashes"])}"' if style["dashes"] else ""
    line = f'<line x1="0" y1="5" x2="28" y2="5" stroke="{style["color"]}" stroke-width="3.5"{dashes}/>'
    key = f'<svg class="key" width="28" height="10" aria-hidden="true">{line}</svg>'
    return f'{key} <span title="{html.escape(run.workdir)}">{html.escape(run.label)}</span>'


# Parts of the page ------------------------------------------------------------------------------------------


def _quiet(text: str) -> str:
    return f"<p class=soft><small>{html.escape(text)}</small></p>"


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    yield _quiet(
        "Training accuracy is that over the last epoch, while the net changed, on augmented and mixed images; images "
        "is the median, evaluations left out. The best of many evaluations is chosen by the test split itself: compare "
        "runs by the last."
    )
    tested = [run.test[-1] for run in runs if run.test]
    if len({row["count"] for row in tested}) == 1 and (size := tested[0]["count"]):
        error = 100 * math.sqrt(max(row["accuracy"] * (1 - row["accuracy"]) for row in tested) / size)
        yield _quiet(
            f"Each accuracy has a standard error of {error:.2f} points from the size of the test split, {size:,.0f} "
            "images, alone."
        )
    if len({(run.config.get("data.name"), run.config.get("data.fingerprint")) for run in runs}) > 1:
        yield "<p><b>The runs are of different data: their accuracies and losses do not compare.</b></p>"


def _seeds(runs: Sequence[Run]) -> Iterator[str]:
    groups = summary.repeats(runs)
    if not groups:
        return
    titles = ("runs", "seeds", "test accuracy, last", "range", "best", "test loss, last", "training accuracy")
    yield "<h2>Over seeds: mean ± sample standard deviation</h2>"
    yield _grid(titles, ["text", "text", *[""] * 5], [_seed_row(done) for done, _ in groups])
    for done, left in groups:
        if left:
            yield _quiet(f"Left out, for not finished: {', '.join(run.label for run in left)}.")
        if len({run.config.get("seed") for run in done}) < len(done):
            yield _quiet("Some have the same seed: they are not independent, and the deviation is too small.")


def _seed_row(done: Sequence[Run]) -> list[str]:
    last, losses = ([run.test[-1][key] for run in done] for key in ("accuracy", "loss"))
    best = [max(row["accuracy"] for row in run.test) for run in done]
    train = [accuracy for run in done if (accuracy := run.train_accuracy) is not None]
    row = [
        ", ".join(run.label for run in done),
        ", ".join(str(run.config.get("seed")) for run in done),
        cells.spread(last, cells.percent),
        f"{cells.percent(min(last))} to {cells.percent(max(last))}",
        cells.spread(best, cells.percent),
        cells.spread(losses, "{:.4f}".format),
        cells.spread(train, cells.percent) if len(train) > 1 else cells.NOTHING,
    ]
    return [html.escape(cell) for cell in row]


def _differences(runs: Sequence[Run]) -> Iterator[str]:
    if len(runs) < 2:
        return
    rows = []
    for key, values in summary.differences(runs).items():
        free = cells.small("changes no number") if key in workdirs.FREE_KEYS else ""
        marked = (f"<{'span' if value == values[0] else 'mark'}>{html.escape(value)}" for value in values)
        rows.append([f"{html.escape(key)}{free}", *(f"{cell}</{cell[1:5]}>" for cell in marked)])
    if not rows:
        yield "<p>Their configs are equal in every key.</p>"
        return
    yield f"<details open><summary>Config: {len(rows)} {'keys differ' if len(rows) > 1 else 'key differs'}</summary>"
    yield _grid(["key", *(run.label for run in runs)], ["text code"] * (len(runs) + 1), rows)
    yield _quiet("Marked: other than in the first run.")
    yield "</details>"


def _configs(runs: Sequence[Run]) -> Iterator[str]:
    """The whole of the first config, from which the differences lead to the others; command and place of each."""
    lines = (f"{key} = {json.dumps(value)}" for key, value in sorted(runs[0].config.items()))
    whole = html.escape("\n".join(lines))
    yield f"<details><summary>The whole config of {html.escape(runs[0].label)}</summary><pre>{whole}</pre></details>"
    yield "<details><summary>Places and commands</summary>"
    for run in runs:
        command = " ".join(map(str, run.starts[-1].get("command", []))) if run.starts else "not recorded"
        label, workdir, command = map(html.escape, (run.label, run.workdir, command))
        yield f"<p><b>{label}</b> <code>{workdir}</code><br><code>{command}</code></p>"
    yield "</details>"
