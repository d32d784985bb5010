"""Live verification: what is judged by which bar, what a report says, and what the command refuses."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from resnet_jax import cli
from resnet_jax.proof import verify
from resnet_jax.proof.report import Bar, Report, Row, bar, plot

ROW = Row("float64", "32x32", "stem", 2e-16, 1.0, 1e-16, 1.0, bar("float64"))


def test_bars():
    assert bar("float64", "tpu") == (1e-10, "relative")
    assert bar("float32", "tpu", autocast=0.5) == (1e-5, "relative")
    assert bar("default", "cpu", autocast=0.5) == (1e-5, "relative")
    # Rounding noise: 1.2 times PyTorch's own, at least one rounding of bfloat16; a number if PyTorch's is unknown.
    assert bar("bfloat16", autocast=0.01) == (pytest.approx(0.012), "rms")
    assert bar("bfloat16", autocast=1e-4) == (2**-8, "rms")
    assert bar("bfloat16") == (2e-2, "rms")
    assert bar("default", "tpu", autocast=0.01) == (pytest.approx(0.012), "rms")
    assert bar("default", "gpu", autocast=0.01) == (pytest.approx(0.003), "rms")
    assert bar("default", "some accelerator") == (2e-2, "rms")


def test_the_bar_of_a_stage_is_of_the_worst_up_to_there():
    stages = {"stem": np.ones(3), "layer1": np.ones(3), "logits": np.ones(3)}
    errors = {"stem": 0.01, "layer1": 0.02, "logits": 0.001}
    case = verify.Case(np.zeros((1, 4, 4, 3)), stages, autocast=errors)
    limits = [limit for limit, _ in verify._bars("bfloat16", case).values()]
    np.testing.assert_allclose(limits, [0.012, 0.024, 0.024])


def test_numbers_of_a_row():
    """By hand: differences 0, 3, 4 to a reference of 0, 6, 8."""
    (row,) = verify.compare({"stem": np.array([0, 3, 4.0])}, {"stem": np.array([0, 6, 8.0])}, dtype="float64", size="")
    assert (row.difference, row.reference, row.relative, row.rms) == (4, 8, 0.5, 0.5)
    assert row.cosine == pytest.approx(1)
    assert row.top1 is None
    (row,) = verify.compare({"stem": np.array([1, 0.0])}, {"stem": np.array([0, 1.0])}, dtype="float64", size="")
    assert row.cosine == 0


def test_agreement_of_the_largest_logits():
    """Two of three images have the same largest class; one of them has another set of five."""
    theirs = np.tile(np.arange(7.0), (3, 1))
    ours = theirs.copy()
    ours[1, [0, 2]] = ours[1, [2, 0]]  # the fifth becomes the last
    ours[2, [5, 6]] = ours[2, [6, 5]]  # the first two change places
    (row,) = verify.compare({"logits": ours}, {"logits": theirs}, dtype="float64", size="")
    assert (row.top1, row.top5) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_noise_is_judged_by_its_rms_and_nan_fails():
    row = dataclasses.replace(ROW, difference=0.5, rms=1e-3)
    assert not row.passed
    assert dataclasses.replace(row, bar=Bar(1e-2, "rms")).passed
    assert not dataclasses.replace(ROW, difference=math.nan).passed
    assert not Report("x", ()).passed
    assert dataclasses.replace(ROW, difference=math.nan).json()["error"] is None


def test_the_verdict_names_the_first_failure():
    bad = dataclasses.replace(ROW, stage="layer2", difference=0.5)
    worse = dataclasses.replace(ROW, stage="layer3", difference=0.9)
    report = Report("net", (ROW, bad, worse))
    assert report.table().splitlines()[-1] == report.verdict()
    assert report.verdict() == (
        "net DIFFERS from PyTorch, first at layer2 (float64, 32x32): 5.0e-01 is over the bar of 1e-10"
    )
    assert [line.endswith("FAILED") for line in report.table().splitlines()] == [False, False, True, True, False]
    content = json.loads(report.json())
    assert content["verdict"] == report.verdict()
    assert [row["passed"] for row in content["rows"]] == [True, False, False]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    rows = (ROW, dataclasses.replace(ROW, stage="layer1", difference=math.nan), dataclasses.replace(ROW, size="33x29"))
    plot(Report("net", rows), tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["verify", "resnet18", "--plot=x.png"]) == 2
    assert 'pip install "resnet-linen[train]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "which network?"),
        (["resnet18", "--weights=x"], "a live comparison does not take weights"),
        (["resnet18", "--max-mb=1"], "a live comparison does not take max-mb"),
        (["resnet18", "--record=x.safetensors", "--dtypes=float64"], "--record does not take dtypes"),
        (["resnet18", "--against=x.safetensors"], "--against does not take model"),
        (["--against=x.safetensors", "--sizes=8x8", "--num-classes=3"], "does not take num-classes, sizes"),
        (["--against=x.safetensors", "--dtypes=float63"], "unknown dtypes ['float63']"),
        (["resnet18", "--dtypes=float63"], "unknown dtypes ['float63']"),
    ],
)
def test_flags_that_contradict_are_refused(flags, said, capsys):
    assert cli.main(["verify", *flags]) == 2
    assert said in capsys.readouterr().err


def test_four_settings_live():
    pytest.importorskip("torchvision")
    report = verify.verify("cifar_resnet20", sizes=[(32, 32)], dtypes=list(verify.SETTINGS))
    assert report.passed, report.table()
    errors = {dtype: max(row.error for row in report.rows if row.dtype == dtype) for dtype in verify.SETTINGS}
    # Each setting did what it says: none is exact, and each is as far off as its arithmetic.
    assert errors["float64"] < 1e-13
    assert 1e-9 < errors["float32"] < 1e-5
    assert 1e-4 < errors["bfloat16"] < 1e-2
    assert report.peers["torch"]
