"""A run whose data come from worker processes: they stay from one evaluation to the next, and one may be killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from children import running
from paths import ROOT
from resnet_jax.training import experiment, loop
from tiny import HELPERS, tiny_config, tiny_file

pytestmark = pytest.mark.slow  # a worker takes seconds to start


def test_a_run_tests_with_the_workers_of_its_first_test_and_leaves_none(tmp_path, monkeypatch):
    before, seen = running(), []

    def looked_at(run, original=experiment.eval_batches):
        seen.append(running() - before)
        return original(run)

    monkeypatch.setattr(experiment, "eval_batches", looked_at)
    config = {"data.num_workers": 1, "num_epochs": 3.0}
    result = loop.train(tiny_config(**config), str(tmp_path))
    assert [len(workers) for workers in seen] == [1, 2, 2]  # that of training; and that of the first test
    assert seen[1] == seen[2]
    assert running() == before
    monkeypatch.undo()
    assert loop.evaluate(tiny_config(num_epochs=3.0), str(tmp_path))["correct"] == result["correct"]


def test_a_run_whose_data_worker_is_killed_says_so_in_one_line(tmp_path):
    file = tiny_file(tmp_path / "tiny_run.py", **{"data.num_workers": 1, "num_epochs": 1e6})
    command = [sys.executable, "train.py", f"--config={file}", f"--workdir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": HELPERS}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (tmp_path / "run/metrics.jsonl").exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
            for pid in running(process.pid):
                os.kill(pid, signal.SIGKILL)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("train.py: a worker process that reads data was ended by SIGKILL; ")
    assert "Traceback" not in said
