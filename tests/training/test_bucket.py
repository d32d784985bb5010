"""The whole life of a run in a bucket, through the real clients of Google Cloud Storage, against a server of ours."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from unittest.mock import ANY

import pytest

import fake_gcs
from paths import ROOT
from resnet_jax.runs import history
from resnet_jax.training import loop
from tiny import HELPERS, tiny_config, tiny_file

pytest.importorskip("gcsfs")
pytestmark = pytest.mark.slow

RUN = "runs/one"
MARKS = [f"{RUN}/checkpoints/{step}/commit_success.txt" for step in (8, 16)]  # of a whole checkpoint
CHANGES = {"keep_checkpoints": 1}
# Where the run is stopped with SIGKILL: (which change of which object, the how many-th of them, which of the
# checkpoints 8 and 16 are then whole, the step that the next start goes on from).
KILLS = {
    "all of the first checkpoint written but the mark that says so": (
        ("PUT", "checkpoints/8/commit_success.txt", 1), [False, False], 0,
    ),
    "a few files of the next written": (("PUT", "checkpoints/16/", 4), [True, False], 8),
    "all of the next but the mark": (("PUT", "checkpoints/16/commit_success.txt", 1), [True, False], 8),
    "half-way through the removal of the first checkpoint": (("DELETE", "checkpoints/8/", 5), [ANY, True], 16),
}  # fmt: skip


@pytest.fixture
def store():
    with fake_gcs.serve("bucket", page=20) as running:
        yield running


def start(store, *command):
    paths = os.pathsep.join([HELPERS, *sys.path])
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | store.environment | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def train_killed_at(store, config, what, name, count):
    """A start that the store freezes at one of its requests, killed there; the request is not carried out."""
    reached, killed, seen = threading.Event(), threading.Event(), itertools.count(1)

    def counts(done, object_name):
        """What a killed run has left of its first checkpoint is removed before there is a second."""
        return (
            done == what
            and object_name.startswith(f"{RUN}/{name}")
            and (done == "PUT" or ("bucket", MARKS[1]) in store.objects)
        )

    def freeze(done, object_name):
        if killed.is_set():
            raise ConnectionError
        if counts(done, object_name) and next(seen) == count:
            reached.set()
            killed.wait(60)
            raise ConnectionError

    store.watch = freeze
    process = start(store, "train.py", f"--config={config}", f"--workdir=gs://bucket/{RUN}")
    while not reached.wait(0.1):
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed.set()
    assert process.returncode == -signal.SIGKILL
    store.watch = lambda what, name: None
    return store.names("bucket", f"{RUN}/")


TIMES = ("time", "images_per_second", "seconds_left")


def without_times(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


# The last start, and then all that is done with a run.
AFTER = """
import json, sys
from resnet_jax.cli import train
from resnet_jax import cli
from resnet_jax.training import experiment, loop
from resnet_jax.weights.files import orbax_folder
from resnet_jax.runs import history, workdirs
from tiny import equal, tiny_config

bucket, disk, out, changes = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
left = train._left(loop.train(tiny_config(**changes), bucket), bucket)
found = {"left": left, "records": history.read_metrics(bucket), "starts": workdirs.load_starts(bucket)}
for item in ("variables", "progress"):
    paths = [f"{workdir}/checkpoints/16/{item}" for workdir in (bucket, disk)]
    found[item] = equal(*map(orbax_folder.load_tree, paths))
found["load_variables"] = equal(*map(orbax_folder.load_variables, (bucket, disk)))
found["evaluated"] = loop.evaluate(tiny_config(**changes), bucket)
init = experiment.build(tiny_config(init_from=bucket)).create_state()
found["init_from"] = equal(init.variables, orbax_folder.load_variables(disk))
found["converted"] = [cli.main(["convert", bucket, f"--out={path}"]) for path in (out, "gs://bucket/exported")]
found["exported"] = equal(*map(orbax_folder.load_variables, ("gs://bucket/exported", disk)))
found["reported"] = cli.main(["report", bucket])
found["not to a bucket"] = cli.main(["convert", bucket, "--out=gs://bucket/net.safetensors"])
try:
    loop.train(tiny_config(seed=1, **changes), bucket)
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "moments", [("all of the next but the mark",), pytest.param(tuple(KILLS), marks=pytest.mark.soak)], ids=len
)
def test_a_run_killed_at_its_worst_moments_ends_with_the_bits_of_one_on_a_disk(store, tmp_path, moments):
    config = tiny_file(tmp_path / "config.py", **CHANGES)
    for moment in moments:
        kill, whole, _ = KILLS[moment]
        names = train_killed_at(store, config, *kill)
        assert [mark in names for mark in MARKS] == whole, moment
    result = loop.train(tiny_config(**CHANGES), str(tmp_path / "disk"))
    paths = (str(tmp_path / name) for name in ("disk", "net.safetensors"))
    found = json.loads(
        finish(start(store, "-c", AFTER, f"gs://bucket/{RUN}", *paths, json.dumps(CHANGES))).splitlines()[-1]
    )
    for same in ("variables", "progress", "load_variables", "init_from", "exported"):
        assert found[same], same
    assert without_times(found["records"]) == without_times(history.read_metrics(str(tmp_path / "disk")))
    assert found["evaluated"]["correct"] == result["correct"]
    assert found["converted"] == [0, 0]
    assert found["reported"] == 0
    assert store.read("bucket", f"{RUN}/report.html").startswith(b"<!doctype html>")
    assert found["not to a bucket"] != 0
    assert (tmp_path / "net.safetensors").stat().st_size > 5_000
    assert "config.seed: 0 there, 1 now" in found["refused"]
    assert [entry["first_step"] for entry in found["starts"]] == [0, *(KILLS[moment][2] for moment in moments)]
    assert store.read("bucket", f"{RUN}/curves.png").startswith(b"\x89PNG")
    assert f"curves      gs://bucket/{RUN}/curves.png" in found["left"]
