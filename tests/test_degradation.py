"""The degradation benchmark: its recipe, its reading of records, its words, its figure."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

pytest.importorskip("matplotlib")
from benchmarks import degradation
from resnet_jax import BasicBlock, create_model
from resnet_jax.data import datasets
from resnet_jax.models import variants
from resnet_jax.weights.files import orbax_folder

PLAIN_20, PLAIN_56, RESNET_20, RESNET_56 = "plain-20", "plain-56", "ResNet-20", "ResNet-56"
PNG = b"\x89PNG\r\n\x1a\n"


def train(step, accuracy):
    return {"step": step, "split": "train", "epoch": step / 10, "accuracy": accuracy}


def test(step, accuracy):
    return {"step": step, "split": "test", "epoch": step / 10, "accuracy": accuracy}


test.__test__ = False
RECORDS = [train(10, 0.25), test(10, 0.5), train(20, 0.5), test(20, 0.75), train(30, 0.75), test(30, 0.625)]


def row(training, test, images=10_000):
    errors = {"training": training, "augmented": training + 1, "test": test, "best test": test - 1}
    return degradation.Row(1, 269_434, {"training": images, "test": images // 5}, errors)


def table(plain_20=30.0, plain_56=40.0, resnet_20=28.0, resnet_56=20.0):
    """As training errors go; those of the test are 5 points above."""
    errors = {PLAIN_20: plain_20, RESNET_20: resnet_20, PLAIN_56: plain_56, RESNET_56: resnet_56}
    return {net: row(error, error + 5) for net, error in errors.items()}


def leave_run(workdir, net, *, seed=0, rows=RECORDS, final=None):
    run = degradation.folder(workdir, net, seed)
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    if final is not None:
        (run / degradation.FINAL).write_text(json.dumps({"parameters": 7, "images": [40, 20], "train": final}))


# The four runs


def test_the_four_configs_differ_in_the_name_of_the_net_only():
    found = degradation.configs(str(degradation.RECIPE), ["--config.data.path=x.zip"], epochs=8.0, seed=3)
    assert [config.model.name for config in found.values()] == [
        "cifar_plain20", "cifar_resnet20", "cifar_plain56", "cifar_resnet56",
    ]  # fmt: skip
    for config in found.values():
        assert (config.num_epochs, config.seed, config.data.path) == (8.0, 3, "x.zip")
        config.model.name = ""
    assert len({config.to_json() for config in found.values()}) == 1


@pytest.mark.parametrize("key", ["num_epochs=3", "seed=1", "model.name=resnet18"])
def test_keys_that_the_benchmark_sets_are_refused_as_flags(key):
    with pytest.raises(ValueError, match=f"config.{key.split('=')[0]} cannot be set: "):
        degradation.configs(str(degradation.RECIPE), [f"--config.{key}"], epochs=8.0, seed=0)


def test_a_plain_net_is_its_residual_one_without_shortcuts():
    from resnet_jax import create_model

    for plain, residual in ((PLAIN_20, RESNET_20), (PLAIN_56, RESNET_56)):
        models = [create_model(degradation.NETS[net], num_classes=10) for net in (plain, residual)]
        apart = {
            field.name
            for field in dataclasses.fields(models[0])
            if getattr(models[0], field.name) != getattr(models[1], field.name)
        }
        assert apart == {"shortcut"}


# Reading


def test_curves_are_errors_in_percent_an_epoch():
    found = degradation.curves(RECORDS)
    assert found == degradation.Curves([1.0, 2.0, 3.0], [75.0, 50.0, 25.0], [50.0, 25.0, 37.5])


def test_an_epoch_in_two_parts_counts_each_step_once():
    whole = degradation.curves([train(10, 0.5), test(10, 0.5), train(12, 1.0), train(20, 0.5), test(20, 0.5)])
    assert whole.train == [50.0, pytest.approx((2 * 0 + 8 * 50) / 10)]


def test_an_epoch_that_is_not_evaluated_yet_is_not_drawn():
    assert degradation.curves([*RECORDS, train(35, 0.9)]) == degradation.curves(RECORDS)
    assert degradation.curves([]).epochs == []


def test_the_table_has_means_over_the_seeds_that_are_done(tmp_path):
    better = [{**record, "accuracy": record["accuracy"] + 0.125} for record in RECORDS]
    leave_run(tmp_path, PLAIN_20, seed=0, final=10.0)
    leave_run(tmp_path, PLAIN_20, seed=1, rows=better, final=20.0)
    leave_run(tmp_path, PLAIN_20, seed=2, rows=RECORDS[:2])
    leave_run(tmp_path, RESNET_20, seed=0, rows=RECORDS[:1])
    drawn, found = degradation.read(tmp_path, [0, 1, 2])
    assert [len(drawn[net]) for net in degradation.NETS] == [3, 0, 0, 0]
    errors = {"training": 15.0, "augmented": 18.75, "test": 31.25, "best test": 18.75}
    assert found == {PLAIN_20: degradation.Row(2, 7, {"training": 80, "test": 40}, errors)}


# Words


def test_differences_are_the_deeper_net_minus_the_shallower():
    lines = degradation.describe(table())
    numbers = {line[:25].strip(): [float(part) for part in line.split()[-4:]] for line in lines if " minus " in line}
    assert numbers == {"plain-56 minus plain-20": [10.0] * 4, "ResNet-56 minus ResNet-20": [-8.0] * 4}


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ({}, "As in the paper: with more layers the plain net fits its training images worse, the residual net fits "
             "its training images better."),
        ({"plain_56": 20.0}, "Not quite .* plain net fits its training images better"),
        ({"resnet_56": 38.0}, "Not quite .* plain net .* worse, the residual net fits its training images worse"),
        ({"resnet_56": 28.5}, "Not quite .* plain net .* worse, the residual net fits them about as well"),
    ],
)  # fmt: skip
def test_the_verdict_goes_whichever_way_the_numbers_go(errors, words):
    last = degradation.describe(table(**errors))[-2]
    assert re.match(words, last), last


def test_sides_are_told_apart_beyond_two_standard_errors():
    # 10,000 images at 50 %: a standard error is 0.5 points, that of a difference 0.71.
    assert degradation.side(row(50.0, 50.0), row(51.3, 50.0), "training") == 0
    assert degradation.side(row(50.0, 50.0), row(51.5, 50.0), "training") == 1
    assert degradation.side(row(51.5, 50.0), row(50.0, 50.0), "training") == -1
    assert degradation.side(row(50.0, 50.0), row(50.0, 53.0), "test") == 0  # of 2,000 images
    assert degradation.side(row(0.0, 50.0), row(0.0, 50.0), "training") == 0


def test_what_is_not_done_yet_is_not_compared():
    half = {net: line for net, line in table().items() if net != RESNET_56}
    lines = degradation.describe(half)
    assert [line for line in lines if "minus" in line] == [line for line in lines if line.startswith("plain-56 minus")]
    assert not any("the paper" in line for line in lines)
    assert len(degradation.describe({PLAIN_20: row(1.0, 2.0)})) == 2


# The figure


def test_the_figure_has_a_panel_a_kind_on_one_scale(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(degradation.Figure, "savefig", lambda figure, *unused, **options: figures.append(figure))
    one, other = degradation.curves(RECORDS), degradation.curves(RECORDS[:4])
    low = degradation.Curves([1.0, 2.0], [12.0, 6.0], [10.0, 5.0])
    degradation.draw({PLAIN_20: [one, other], PLAIN_56: [one], RESNET_20: [low], RESNET_56: []}, tmp_path / "x.png")
    plain, residual = figures[0].axes
    assert plain.get_title() == "plain nets"
    assert [text.get_text() for text in plain.get_legend().get_texts()] == [
        "plain-20, test", "plain-20, training", "plain-56, test", "plain-56, training",
    ]  # fmt: skip
    assert [list(line.get_ydata()) for line in residual.lines] == [low.test, low.train]
    assert [len(line.get_xdata()) for line in plain.lines] == [3, 3, 2, 2, 3, 3]
    assert plain.get_ylim() == residual.get_ylim()


def test_the_figure_of_a_run_that_has_only_begun_is_a_picture(tmp_path):
    degradation.draw({}, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(PNG)


# The command


TINY = "plain_tiny"


def error_by_hand(workdir, split):
    """In percent, of the net in `workdir`, on all 64 images at once."""
    model, variables = create_model(TINY, num_classes=10), orbax_folder.load_variables(str(workdir))
    source = datasets.open_dataset("synthetic", split, image_size=16, num_examples=64).source
    examples = [source[index] for index in range(64)]
    images = (np.stack([example["image"] for example in examples]) / np.float32(255) - 0.5) / 0.25
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, images.astype(np.float32))
    return 100 * np.mean(np.argmax(np.asarray(logits), -1) != np.array([example["label"] for example in examples]))


@pytest.mark.slow
def test_the_command_trains_measures_draws_and_goes_on(tmp_path, monkeypatch, capsys):
    tiny = {"block": BasicBlock, "stage_sizes": (1,), "stage_features": (8,), "stem": "cifar", "stem_features": 8}
    monkeypatch.setitem(variants.VARIANTS, TINY, tiny)
    monkeypatch.setattr(degradation, "NETS", {PLAIN_20: TINY})
    data = {
        "name": "synthetic",
        "num_examples": 64,
        "image_size": 16,
        "mean": "(0.5,0.5,0.5)",
        "std": "(0.25,0.25,0.25)",
    }
    command = [f"--workdir={tmp_path}", "--config.batch_size=32", *(f"--config.data.{k}={v}" for k, v in data.items())]
    degradation.main([*command, "--epochs=2"])
    run = degradation.folder(tmp_path, PLAIN_20, 0)
    left, printed = (run / "metrics.jsonl").read_bytes(), capsys.readouterr().out
    assert (tmp_path / degradation.FIGURE).read_bytes().startswith(PNG)
    table = printed.strip().splitlines()[:2]
    assert table[1].split()[0] == PLAIN_20
    final = json.loads((run / degradation.FINAL).read_text())
    assert final["images"] == [64, 64]
    assert final["train"] == pytest.approx(error_by_hand(run, "train"))
    degradation.main([*command, "--epochs=2"])
    assert (run / "metrics.jsonl").read_bytes() == left
    assert capsys.readouterr().out.strip().splitlines()[:2] == table
    with pytest.raises(ValueError, match="num_epochs"):
        degradation.main([*command, "--epochs=3"])
