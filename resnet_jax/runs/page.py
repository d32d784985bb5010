"""A page on runs: their curves, a table of what they came to, and what differs; HTML that needs nothing else."""

import html
import json
import math
from collections.abc import Iterator, Sequence

from resnet_jax.runs import cells, markup, plots, summary, workdirs
from resnet_jax.runs.summary import Run


def render(runs: Sequence[Run]) -> str:
    """The page, a whole HTML document in one string: no script, no style and no picture from elsewhere.

    Raises:
      ImportError: Matplotlib is not installed.
    """
    curves = plots.draw_svg({run.label: run.rows for run in runs}).replace("<svg", '<svg class="curves"', 1)
    return markup.document(
        _title(runs),
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
        made_by="resnet-jax report",
    )


def _title(runs: Sequence[Run]) -> str:
    models = list(dict.fromkeys(str(run.config.get("model.name", cells.NOTHING)) for run in runs))
    many = f"{len(runs)} runs" if len(runs) > 1 else runs[0].label
    return f"{many}: {', '.join(models[:4])}{', ...' if len(models) > 4 else ''}"


# Tables -----------------------------------------------------------------------------------------------------


def _table(runs: Sequence[Run], columns: Sequence[cells.Cell]) -> str:
    titles, kinds, shows = zip(*columns, strict=True)
    rows = [[_name(number, run), *(show(run) for show in shows)] for number, run in enumerate(runs)]
    return markup.grid(["run", *titles], ["run", *("text" if is_text else "" for is_text in kinds)], rows)


def _name(number: int, run: Run) -> str:
    """The label, and the line of the run as the curves have it."""
    style = plots.line_style(number)
    dashes = f' stroke-dasharray="{" ".join(f"{3 * x:g}" for x in style["dashes"])}"' if style["dashes"] else ""
    line = f'<line x1="0" y1="5" x2="28" y2="5" stroke="{style["color"]}" stroke-width="3.5"{dashes}/>'
    key = f'<svg class="key" width="28" height="10" aria-hidden="true">{line}</svg>'
    return f'{key} <span title="{html.escape(run.workdir)}">{html.escape(run.label)}</span>'


# Parts of the page ------------------------------------------------------------------------------------------


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    yield markup.quiet(
        "Training accuracy is that over the last epoch, while the net changed, on augmented and mixed images; images "
        "is the median, evaluations left out. The best of many evaluations is chosen by the test split itself: compare "
        "runs by the last."
    )
    tested = [run.test[-1] for run in runs if run.test]
    if len({row["count"] for row in tested}) == 1 and (size := tested[0]["count"]):
        error = 100 * math.sqrt(max(row["accuracy"] * (1 - row["accuracy"]) for row in tested) / size)
        yield markup.quiet(
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
    yield markup.grid(titles, ["text", "text", *[""] * 5], [_seed_row(done) for done, _ in groups])
    for done, left in groups:
        if left:
            yield markup.quiet(f"Left out, for not finished: {', '.join(run.label for run in left)}.")
        if len({run.config.get("seed") for run in done}) < len(done):
            yield markup.quiet("Some have the same seed: they are not independent, and the deviation is too small.")


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
    yield markup.grid(["key", *(run.label for run in runs)], ["text code"] * (len(runs) + 1), rows)
    yield markup.quiet("Marked: other than in the first run.")
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
