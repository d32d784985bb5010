"""The whole life of a run in a bucket, through the real clients of Google Cloud Storage, against a server of ours."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import fake_gcs
from test_house import ROOT

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow

RUN = "gs://bucket/runs/one"
CHANGES = {"checkpoint_every_steps": 4}
# Where the run is stopped with SIGKILL: (which change of which object, the how many-th of them).
KILLS = {
    "at the first file of the first checkpoint": ("PUT", "checkpoints/4/", 1),
    "with all of a checkpoint written but the mark that says so": ("PUT", "checkpoints/8/commit_success.txt", 1),
    "half-way through the removal of an old checkpoint": ("DELETE", "checkpoints/4/", 4),
    "at the records of the last evaluation": ("PUT", "metrics", 3),
    "at the picture, after the last step": ("PUT", "curves.png", 1),
}


@pytest.fixture(scope="module")
def store():
    with fake_gcs.serve("bucket", page=7) as running:
        yield running


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.py"
    path.write_text(f"from test_loop import tiny_config\ndef get_config():\n    return tiny_config(**{CHANGES!r})\n")
    return path


def start(store, *command):
    environment = (
        os.environ | store.environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *sys.path])}
    )
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def train_killed_at(store, config, what, name, count):
    """A start that is frozen by the store at one of its requests, and killed there."""
    reached, killed, left = threading.Event(), threading.Event(), iter(range(count - 1, -1, -1))

    def freeze(done, object_name):
        if done == what and object_name.startswith(f"runs/one/{name}") and next(left) == 0:
            reached.set()
            killed.wait(60)
            raise ConnectionError

    store.watch = freeze
    process = start(store, "train.py", f"--config={config}", f"--workdir={RUN}")
    while not reached.wait(0.1):
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store.watch = lambda what, name: None
    killed.set()
    assert process.returncode == -signal.SIGKILL
