"""What the tables of a page show of a run: text for people, escaped where it stands in HTML."""

import datetime
import functools
import html
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resnet_jax.runs.summary import Run

NOTHING = "-"

# Title, whether it is text (else a number), and what it shows, as HTML.
Cell = tuple[str, bool, Callable[[Run], str]]


def count_parameters(run: Run) -> int | None:
    """Parameters of the net, from its config alone; None where this version cannot build it."""
    prefix = "model.kwargs."
    kwargs = {key[len(prefix) :]: value for key, value in run.config.items() if key.startswith(prefix)}
    fields = {key: value for key, value in kwargs.items() if value is not None}
    arguments = (run.config.get("model.name"), run.config.get("model.num_classes"), run.config.get("data.mean"))
    try:
        return _count(json.dumps(fields, sort_keys=True), *arguments[:2], len(arguments[2] or (0, 0, 0)))
    except (ValueError, TypeError, KeyError, AttributeError):  # another version's net, or one of its fields
        return None


@functools.cache
def _count(fields: str, name: str, num_classes: int, channels: int) -> int:
    import jax

    from resnet_jax.models.resnet import traced_images
    from resnet_jax.models.variants import create_model

    model = create_model(name, num_classes=num_classes, **json.loads(fields))
    images = traced_images(model, channels)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def percent(value: float | None) -> str:
    """'73.35 %'."""
    return NOTHING if value is None else f"{100 * value:.2f} %"


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean and sample standard deviation (n - 1), as '73.28 % ± 0.25 %'."""
    with np.errstate(invalid="ignore"):  # a loss that is not finite
        return f"{form(float(np.mean(values)))} ± {form(float(np.std(values, ddof=1)))}"


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


def small(text: str) -> str:
    """A second line, quieter."""
    return f"<small>{html.escape(text)}</small>"


def _last(run: Run) -> str:
    if run.last is None:
        return NOTHING
    counts = f"{run.last['correct']:,.0f}/{run.last['count']:,.0f}"
    top5 = small(f"top-5 {percent(run.last['accuracy_top5'])}") if "accuracy_top5" in run.last else ""
    return f"{percent(run.last['accuracy'])}{small(counts)}{top5}{small('averaged net') if run.averaged else ''}"


def _best(run: Run) -> str:
    return f"{percent(run.best['accuracy'])}{small('step ' + format(run.best['step'], ','))}" if run.best else NOTHING


def _loss(run: Run) -> str:
    if run.diverged:
        return f"{run.diverged['loss']}{small('from step ' + format(run.diverged['step'], ','))}"
    return f"{run.last['loss']:.4f}" if run.last else NOTHING


def _steps(run: Run) -> str:
    planned = f"of {run.num_steps:,}" if run.num_steps and not run.finished else ""
    return f"{run.steps:,}{small(planned) if planned else ''}"


def _parameters(run: Run) -> str:
    count = count_parameters(run)
    return f"{count:,}" if count is not None else "unknown to this version"


def _data(run: Run) -> str:
    path = str(run.config.get("data.path") or "").rstrip("/").rpartition("/")[2]
    return html.escape(str(run.config.get("data.name", NOTHING))) + (small(path) if path else "")


def _versions(run: Run) -> str:
    """Of each start, where they differ."""
    return "<br>".join(dict.fromkeys(map(_version, run.starts))) or NOTHING


def _version(start: Any) -> str:
    code = start.get("code", {})
    commit = code.get("commit", "")[:9] + (" and changes" if code.get("dirty") else "")
    jax = start.get("versions", {}).get("jax", NOTHING)
    return html.escape(f"{code.get('resnet_jax', NOTHING)}, jax {jax}") + (small(commit) if commit else "")


def _devices(run: Run) -> str:
    found = [start.get("devices", {}) for start in run.starts]
    names = [f"{device.get('count', '?')} x {device.get('kind', '?')}" for device in found]
    return "<br>".join(map(html.escape, dict.fromkeys(names))) or NOTHING


def _started(run: Run) -> str:
    again = f"{len(run.starts)} starts" if len(run.starts) > 1 else ""
    return _moment(run.started) + (small(again) if again else "")


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
    ("images per second", False, lambda run: f"{run.images_per_second:,.0f}" if run.images_per_second else NOTHING),
)
CIRCUMSTANCES: tuple[Cell, ...] = (
    ("epochs", False, lambda run: f"{run.epochs:g}" if run.finished else f"{run.epochs:.2f}"),
    ("steps", False, _steps),
    ("batch", False, functools.partial(_config, "batch_size")),
    ("seed", False, functools.partial(_config, "seed")),
    ("wall time", False, lambda run: duration(run.seconds)),
    ("device", True, _devices),
    ("resnet_jax", True, _versions),
    ("started (UTC)", True, _started),
    ("state", True, lambda run: html.escape(state(run))),
)
