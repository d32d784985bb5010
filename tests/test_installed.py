"""What people install: a wheel, with its recipes, from an empty folder; and a source archive with its tests."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from paths import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of wheel and source archive, in a folder."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    changed = subprocess.run(["git", "diff", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    if changed:
        subprocess.run(["git", "apply"], cwd=copy, input=changed, check=True)
    code = "from setuptools import build_meta as b; b.build_wheel({!r}); b.build_sdist({!r})".format(*[str(folder)] * 2)
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


# A train, more epochs, an evaluation, a report: one process of the wheel, as its command would do them one by one.
COMMANDS = """
import sys
from resnet_jax.cli import main
for words in (
    ["train", "--config=digits_resnet20", "--workdir=run", "--config.schedule.warmup_epochs=0",
     "--config.num_epochs=0.5", "--config.model.kwargs.stage_sizes=(1,)", "--config.model.kwargs.stage_features=(8,)",
     "--config.model.kwargs.stem_features=8"],
    ["train", "--workdir=run", "--extend-to=1", "--hosts=one"],
    ["train", "--workdir=run", "--mode=eval", "--hosts=one"],
    ["report", "run"],
):
    assert main(words) == 0, words
"""


@pytest.mark.slow
def test_from_an_empty_folder_with_the_wheel_alone(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    assert not (tmp_path / "installed" / "configs").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMANDS], cwd=empty, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert str(ROOT) not in said
    assert "before flag parsing" not in said
    assert "0.5 epochs become 1: step 22 is the last" in said
    assert "equals what was logged at step 22" in said
    assert "run/report.html" in said


def test_the_source_archive_holds_its_tests_and_what_they_need(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    needed = {name for name in kept if not name.startswith(".")}
    assert needed - names == set()
