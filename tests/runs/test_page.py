"""`resnet-jax report`: numbers of records made by hand, a page that needs nothing else, and what is refused."""

import html.parser
import io
import json
import math
import sys

import jax
import pytest
from PIL import Image

from resnet_jax import cli
from resnet_jax.models.variants import create_model
from resnet_jax.runs import cells, history, page, plots, reporting, scalars, summary
from resnet_jax.training import loop
from tiny import tiny_config

CONFIG = {
    "seed": 0,
    "batch_size": 50,
    "num_epochs": 3.0,
    "log_every_steps": 20,
    "model": {"name": "cifar_resnet20", "num_classes": 10, "kwargs": {"norm": None, "dtype": "float32"}},
    "data": {"name": "cifar10", "path": "", "mean": [0.5, 0.5, 0.5], "fingerprint": "f"},
    "ema": {"decay": 0.0},
}
START = {
    "time": "2026-01-02T10:00:00+00:00",
    "command": ["python", "train.py", "--workdir=<here>"],
    "code": {"resnet_jax": "0.1.0", "commit": "0123456789abcdef", "dirty": True},
    "versions": {"jax": "0.10.2"},
    "devices": {"kind": "TPU v5 lite", "count": 8},
}


def train(step, accuracy=0.5, loss=1.0, speed=100.0, **more):
    return {
        "step": step, "split": "train", "epoch": step / 40, "loss": loss, "accuracy": accuracy,
        "learning_rate": 0.1 - step / 2000, "images_per_second": speed, **more,
    }  # fmt: skip


def evaluated(step, correct=60, loss=1.5, **more):
    return {
        "step": step, "split": "test", "epoch": step / 40, "loss": loss, "accuracy": correct / 100,
        "correct": float(correct), "count": 100.0, **more,
    }  # fmt: skip


# Three epochs of 40 steps, with windows of 20, the last cut in two; the best evaluation is the second.
ROWS = [
    train(20, 0.2, speed=10.0), train(40, 0.3), evaluated(40, 60),
    train(60, 0.4), train(80, 0.5), evaluated(80, 72, loss=0.9),
    train(110, 0.6, speed=110.0), train(120, 0.8, speed=120.0), evaluated(120, 70, loss=1.25),
]  # fmt: skip


def make(folder, rows=ROWS, starts=(START,), **changes):
    """A workdir as a run leaves it, with keys of the config changed."""
    folder.mkdir(parents=True)
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        room, _, name = key.rpartition("__")
        (config[room] if room else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "run.json").write_text(json.dumps({"starts": list(starts)}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


class Page(html.parser.HTMLParser):
    """What a page holds: tags in order, attributes, text; every element closed."""

    VOID = ("meta", "line", "path", "use", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())

    def rows(self):
        """The text of each table row's cells, HTML left out."""
        return "|".join(part for part in self.text if part)


@pytest.fixture
def undrawn(monkeypatch):
    """Of a report whose picture nobody looks at, that is not drawn."""
    monkeypatch.setattr(plots, "draw_png", lambda runs: b"")


def written(tmp_path, capsys, *workdirs):
    assert cli.main(["report", *workdirs, f"--out={tmp_path / 'out'}"]) == 0
    content = (tmp_path / "out" / "report.html").read_text()
    return content, Page(content), capsys.readouterr().out


def test_numbers_of_one_run_by_hand(tmp_path):
    (run,) = summary.read_runs([make(tmp_path / "run")])
    assert (run.label, run.steps, run.epochs, run.num_steps, run.finished) == ("run", 120, 3.0, 120, True)
    assert (run.last["accuracy"], run.last["loss"]) == (0.70, 1.25)
    assert (run.best["accuracy"], run.best["step"]) == (0.72, 80)
    assert run.train_accuracy == pytest.approx((30 * 0.6 + 10 * 0.8) / 40)  # steps 81 to 120, by their number
    assert run.images_per_second == 100.0  # median of 10, 100, 100, 100, 110, 120
    assert cells.count_parameters(run) == 269_722  # He et al. 2016, table 6: 0.27 million
    assert not run.averaged


def test_the_parameters_counted_are_those_of_the_net(tmp_path):
    (run,) = summary.read_runs([make(tmp_path / "run", model__name="resnet18", data__mean=[0.5])])
    variables = jax.eval_shape(
        lambda: create_model("resnet18", num_classes=10).init(
            jax.random.key(0), jax.numpy.zeros((1, 64, 64, 1)), train=False
        )
    )
    assert cells.count_parameters(run) == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    (other,) = summary.read_runs([make(tmp_path / "other", model__name="of another version")])
    assert cells.count_parameters(other) is None


@pytest.mark.parametrize(
    ("seconds", "starts", "expected"),
    [
        # Times of records in seconds after 10:00:00; starts likewise.
        ([60, 120, 180], [0], 180),
        ([60, 120, 5000 + 60], [0, 5000], 180),  # the gap between them is not counted
        ([60, 120], [0, 5000], 120),  # started again, and no record yet
        ([None, None], [0, 5000], None),  # of an earlier version: nobody knows the gap
    ],
)
def test_wall_time(tmp_path, seconds, starts, expected):
    def moment(second):
        return f"2026-01-02T{10 + second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}+00:00"

    rows = [train(20 * (i + 1), **({"time": moment(s)} if s else {})) for i, s in enumerate(seconds)]
    workdir = make(tmp_path / "run", rows, [START | {"time": moment(start)} for start in starts])
    assert summary.read_runs([workdir])[0].seconds == expected


def test_the_page_of_one_run_shows_them(tmp_path, capsys):
    _, found, said = written(tmp_path, capsys, make(tmp_path / "run"))
    shown = found.rows()
    assert "cifar_resnet20|269,722|cifar10|70.00 %|70/100|72.00 %|step 80|1.2500|65.00 %|100" in shown
    assert "|3|120|50|0|" in shown
    assert "8 x TPU v5 lite|0.1.0, jax 0.10.2|012345678 and changes|2026-01-02 10:00|finished " in shown
    assert "standard error of 4.58 points" in shown  # sqrt(0.7 * 0.3 / 100)
    assert "Over seeds" not in shown
    assert said.startswith("run  test accuracy  70.00 %, best 72.00 % at step 80; finished ")
    with Image.open(tmp_path / "out" / "report.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500


def test_by_default_the_report_of_one_run_lies_beside_it_and_is_the_same_each_time(tmp_path, monkeypatch):
    workdir = make(tmp_path / "run", [row | {"time": START["time"]} for row in ROWS])
    found = []
    for _ in range(2):
        assert cli.main(["report", workdir]) == 0
        found.append([(tmp_path / "run" / name).read_bytes() for name in ("report.png", "report.html")])
    assert found[0] == found[1]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "run", make(tmp_path / "b")]) == 0
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == ["report.html", "report.png"]


def seeds(tmp_path, *corrects):
    return [
        make(tmp_path / f"seed{i}", [*ROWS[:-1], evaluated(120, correct, loss=i)], seed=i, data__path=f"/elsewhere/{i}")
        for i, correct in enumerate(corrects)
    ]


def test_seeds_have_a_mean_and_a_sample_deviation(tmp_path, capsys, undrawn):
    unfinished = make(tmp_path / "seed9", ROWS[:4], seed=9)
    other = make(tmp_path / "other", batch_size=100)
    _, found, said = written(tmp_path, capsys, *seeds(tmp_path, 70, 73, 79), unfinished, other)
    shown = found.rows()
    # 70, 73, 79: mean 74, deviations -4, -1, 5, so sqrt(42 / 2); losses 0, 1, 2; the best are 72, 73, 79.
    assert "seed0, seed1, seed2|0, 1, 2|74.00 % ± 4.58 %|70.00 % to 79.00 %|74.67 % ± 3.79 %|1.0000 ± 1.0000" in shown
    assert "Left out, for not finished: seed9." in shown
    assert "3 seeds: test accuracy 74.00 % ± 4.58 %" in said
    assert "seed9  test accuracy  60.00 %, best 60.00 % at step 40; not finished" in said


def test_the_same_seed_twice_is_said(tmp_path, capsys, undrawn):
    _, found, _ = written(tmp_path, capsys, make(tmp_path / "a"), make(tmp_path / "b"))
    assert "not independent" in found.rows()
    assert "Their configs are equal in every key." in found.rows()


def test_only_what_differs_is_shown_and_what_changes_no_number_comes_last(tmp_path, capsys, undrawn):
    paths = [make(tmp_path / "a"), make(tmp_path / "b", batch_size=64, data__path="x"), make(tmp_path / "c", zero=None)]
    runs = summary.read_runs(paths)
    assert summary.differences(runs) == {
        "batch_size": ["50", "64", "50"],
        "zero": ["-", "-", "null"],
        "data.path": ['""', '"x"', '""'],
    }
    assert list(summary.differences(runs))[-1] == "data.path"
    text, found, _ = written(tmp_path, capsys, *paths)
    assert "Config: 3 keys differ|key|a|b|c|batch_size|50|64|50|zero|-|-|null" in found.rows()
    assert text.count("<mark>") == 3
    assert "different data" not in found.rows()


def test_runs_of_different_data_are_drawn_and_warned_about(tmp_path, capsys):
    _, found, _ = written(tmp_path, capsys, make(tmp_path / "a"), make(tmp_path / "b", data__fingerprint="g"))
    assert "The runs are of different data" in found.rows()


HOSTILE = '<script>alert("1")</script>&$x^{$ _é\n'


def test_a_hostile_name_is_escaped_and_nothing_comes_from_elsewhere(tmp_path, capsys):
    name = HOSTILE.replace("/", "")
    start = START | {"command": [HOSTILE], "devices": {"kind": HOSTILE, "count": 1}, "versions": {"jax": HOSTILE}}
    hostile = make(tmp_path / ("_" + name), starts=[start], model__name=HOSTILE, data__name=HOSTILE, batch_size=HOSTILE)
    text, found, _ = written(tmp_path, capsys, hostile, make(tmp_path / "b"))
    assert "<script" not in text
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(found.tags)
    assert all(
        value.startswith("#") for name, value in found.attributes if name in ("href", "src", "xlink:href", "data")
    )
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert "@import" not in text
    assert all(part.startswith("#") for part in text.split("url(")[1:])
    links = {value for name, value in found.attributes if "://" in (value or "")}
    assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    assert "_<script>alert" in found.rows()


def test_the_picture_does_not_hang_on_the_users_style(tmp_path):
    import matplotlib

    before = plots.draw_png({"a": ROWS})
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.draw_png({"a": ROWS}) == before


@pytest.mark.parametrize("count", [1, 8, 20])
def test_any_number_of_runs_has_a_style_each(count):
    styles = [json.dumps(plots.line_style(number)) for number in range(count)]
    assert len(set(styles)) == count
    picture = plots.draw_png({f"runs/of/a/rather/long/name/{i}": ROWS for i in range(count)})
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width > image.height
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_labels_are_as_short_as_tells_them_apart():
    assert summary.labels(["/x/a/run", "/x/b/run", "/x/b/other"]) == ["a/run", "b/run", "other"]
    assert summary.labels(["/run", "/a/run", "gs://bucket/a/run"]) == ["/run", "/a/run", "bucket/a/run"]
    assert summary.labels(["/x/a\nb"]) == ["a\\nb"]


DIVERGED = [*ROWS[:5], evaluated(80, 10, loss=math.nan)]


def test_a_diverged_run_is_drawn_as_far_as_it_goes(tmp_path, capsys):
    for loss in (math.nan, math.inf):
        assert plots.draw_png({"": [*ROWS[:5], evaluated(80, 10, loss=loss)]})
        assert plots.draw_png({"": [evaluated(80, 10, loss=loss)]})
    assert plots.draw_png({"": [train(20, loss=0.0)]})  # no logarithm
    workdirs = [
        make(tmp_path / "a", DIVERGED),
        make(tmp_path / "b", [*ROWS[:-1], evaluated(120, loss=math.nan)], seed=1),
    ]
    _, found, _ = written(tmp_path, capsys, *workdirs, make(tmp_path / "c", seed=2))
    assert "nan|from step 80" in found.rows()
    assert "at step 80 of 120" in found.rows()
    assert "nan ± nan" in found.rows()


def test_what_was_averaged_is_said(tmp_path, capsys, caplog, undrawn):
    older = make(tmp_path / "older", ema__decay=0.9)  # records of a version that did not say it
    newer = make(tmp_path / "newer", [*ROWS[:-1], evaluated(120, averaged=True)], ema__decay=0.9)
    plain = make(tmp_path / "plain", [*ROWS[:-1], evaluated(120, averaged=False)])
    _, found, said = written(tmp_path, capsys, older, newer, plain)
    assert found.rows().count("averaged net") == 2
    assert [", averaged net" in line for line in said.splitlines()[:3]] == [True, True, False]


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_real_run_says_what_it_evaluated_and_has_a_report(tmp_path, capsys, caplog, decay, compiled_once, undrawn):
    caplog.set_level("INFO", logger="resnet_jax")
    config = tiny_config(**{"num_epochs": 1.0, "ema.decay": decay, "schedule.warmup_epochs": 0.0})
    result = loop.train(config, str(tmp_path / "run"))
    assert result == history.read_metrics(str(tmp_path / "run"))[-1]
    assert result["averaged"] is bool(decay)
    assert loop.evaluate(config, str(tmp_path / "run"))["averaged"] is bool(decay)
    assert reporting.accuracy_line(result).endswith(", averaged net") == bool(decay)
    assert any("averaged net" in message for message in caplog.messages) == bool(decay)
    (run,) = summary.read_runs([str(tmp_path / "run")])
    assert (run.finished, run.num_steps, run.averaged) == (True, 8, bool(decay))
    assert 0 <= run.seconds < 600
    _, found, _ = written(tmp_path, capsys, str(tmp_path / "run"))
    assert cells.percent(result["accuracy"]) in found.rows()


def test_tensorboard_has_no_scalar_of_it(tmp_path):
    from test_reporting import shown

    pytest.importorskip("tensorboardX")
    with reporting.Reporter(str(tmp_path), first_step=0, num_steps=9, tensorboard=True) as reporter:
        reporter.test(
            5, {key: value for key, value in evaluated(5, averaged=True).items() if key not in ("step", "split")}
        )
    assert scalars.TENSORBOARD in {path.name for path in tmp_path.iterdir()}
    assert set(shown(tmp_path)) == {f"test/{name}" for name in ("epoch", "loss", "accuracy", "correct", "count")}


def refused(capsys, *arguments):
    assert cli.main(["report", *arguments]) == 2
    return capsys.readouterr().err


def test_runs_without_a_record_are_listed_and_alone_refused(tmp_path, capsys, undrawn):
    empty = make(tmp_path / "empty", [])
    _, found, _ = written(tmp_path, capsys, make(tmp_path / "run"), empty)
    assert "no record yet" in found.rows()
    assert "there is no record yet in" in (said := refused(capsys, empty, f"--out={tmp_path}/o"))
    assert "Wait for it, or train with `python train.py" in said
    assert not (tmp_path / "o").exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    workdir = make(tmp_path / "run")
    assert "holds no config.json: it is not the workdir of a run" in refused(capsys, workdir, str(tmp_path))
    assert "is given twice" in refused(capsys, workdir, workdir + "/")
    (tmp_path / "run" / "config.json").write_text("[]")
    assert "config.json holds list, not the config of a run" in refused(capsys, workdir)
    assert "run.json does not hold the starts" in refused(capsys, make(tmp_path / "other", starts=[5]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops\n", "metrics.jsonl, line 2, is no record of a run"),
        ("5\n", "metrics.jsonl, line 2, is no record of a run"),
        ('{"step": 2, "split": "train", "epoch": 0.1}\n', "no number in loss, accuracy, images_per_second"),
        (json.dumps(evaluated(2) | {"loss": "small"}) + "\n", "no number in loss"),
        (json.dumps(evaluated(2) | {"epoch": 0}) + "\n", "no number in split or epoch"),
        (json.dumps(evaluated(2) | {"split": "else"}) + "\n", "split 'else', has no number in split or epoch"),
    ],
    ids=["no JSON", "no object", "half", "text", "epoch 0", "split"],
)
def test_a_damaged_line_is_named(tmp_path, capsys, line, message):
    workdir = make(tmp_path / "run", ROWS[:1])
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write(line + json.dumps(ROWS[1]) + "\n")
    assert message in refused(capsys, workdir)


def test_lines_that_end_otherwise_are_read(tmp_path):
    """As an editor of Windows leaves them; and the last one cut off by a crash is left out."""
    workdir = make(tmp_path / "run", [])
    (tmp_path / "run" / "metrics.jsonl").write_bytes(json.dumps(ROWS[0]).encode() + b"\r\n\r\n" + b'{"step": 4')
    assert [row["step"] for row in summary.read_runs([workdir])[0].rows] == [20]


def test_an_out_that_cannot_be_written_is_refused(tmp_path, capsys, undrawn):
    workdir = make(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert "is a file: give a folder" in refused(capsys, workdir, f"--out={tmp_path}/file")
    said = refused(capsys, workdir, "--out=/proc/nowhere")
    assert "/proc/nowhere/report.png could not be written (" in said
    assert "give another folder as --out=DIR" in said


def test_without_matplotlib_the_way_out_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 'pip install "resnet-linen[train]"' in refused(capsys, make(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, pytest.param(20, marks=pytest.mark.soak)])
def test_long_runs_make_a_page_that_opens(tmp_path, count):
    """Half a megabyte for each: twenty are ten."""
    rows = [train(step, loss=1 + math.sin(step) / 2) for step in range(1, 3000)]
    workdirs = [make(tmp_path / str(i), [*rows, evaluated(3000)], seed=i) for i in range(count)]
    assert len(page.render(summary.read_runs(workdirs))) < 500_000 * count
