"""The launch commands of docs/large-runs.md, run on loopback: data, size, workdir and address alone are replaced."""

import os
import pathlib
import subprocess
import sys

import pytest
from test_hosts import small

import launching
from pages import blocks
from resnet_jax.cli import train
from resnet_jax.runs import history, workdirs
from resnet_jax.training import loop
from tiny import tiny_config

PAGE = "docs/large-runs.md"
# What srun and gcloud do for a command: start it for each task, with the variables by which tasks find each other.
STAND_IN = """#!{python}
import os, subprocess, sys
command = {command}
node = dict(SLURM_JOB_ID="{job}", SLURM_STEP_NODELIST="localhost", SLURM_STEP_NUM_NODES="1", SLURM_NTASKS="2")
tasks = [
    subprocess.Popen(command, env=os.environ | node | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)))
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


def commands(word):
    """The blocks that hold `word`."""
    return [block for block in blocks(PAGE, "bash") if word in block]


@pytest.fixture
def loopback(tmp_path):
    """From a command of the page to the same one here: `(replace, environment, workdir)`."""
    config, workdir = small(tmp_path), tmp_path / "run"
    address = f"127.0.0.1:{launching.free_port()}"
    replaced = {
        "configs/imagenet_resnet50.py": config,
        "/net/tfds": "",  # which made-up data do not have
        "/net/runs/r50": workdir,
        "gs://my-bucket/r50": workdir,
        "10.0.0.1:9900": address,
        "cd resnet_jax && .venv/bin/python": "python",
    }

    def replace(text):
        for old, new in replaced.items():
            text = text.replace(old, str(new))
        return text

    (programs := tmp_path / "bin").mkdir()
    path = os.pathsep.join([str(programs), os.path.dirname(sys.executable), os.environ["PATH"]])
    return replace, os.environ | {"JAX_NUM_CPU_DEVICES": "1", "NPROC": "4", "PATH": path}, workdir


def program(environment, name, text):
    """Puts a program of that name in front of all others."""
    path = pathlib.Path(environment["PATH"].split(os.pathsep)[0], name)
    path.write_text(text)
    path.chmod(0o755)


def stand_in(environment, name, command):
    program(environment, name, STAND_IN.format(python=sys.executable, job=launching.free_port(), command=command))


def start(script, environment):
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=launching.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check(workdir):
    """One run, by two processes of a device each, to its end."""
    (entry,) = workdirs.load_starts(str(workdir))
    assert entry["processes"]["devices_of_each"] == [1, 1]
    assert history.test_records(history.read_metrics(str(workdir)))[-1]["step"] == 16


@pytest.fixture(params=["given", pytest.param("run", marks=[pytest.mark.slow, pytest.mark.soak])])
def python(request, loopback, tmp_path):
    """Looks at the commands that two hosts have got: `python(flags of each)`. They are run, or only written down."""
    _, environment, workdir = loopback
    if request.param == "run":
        return lambda *expected: check(workdir)
    program(environment, "python", f'#!/bin/sh\necho "$@" > {tmp_path}/given-$$\n')

    def look(*expected):
        given = sorted(path.read_text().split() for path in tmp_path.glob("given-*"))
        assert [command[0] for command in given] == ["train.py"] * 2
        same = [f"--config={tmp_path}/small.py", "--config.data.data_dir=", f"--workdir={workdir}"]
        assert [command[1:] for command in given] == [same + flags for flags in expected]

    return look


def test_two_machines_by_hand(loopback, python):
    """With the flags that are given to the hosts of all other tests here."""
    replace, environment, _ = loopback
    running = [start(replace(block), environment) for block in commands("--coordinator=10.0.0.1")]
    outputs = launching.finish(running)
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
    address = replace("--coordinator=10.0.0.1:9900")
    python(*([address, "--num_processes=2", f"--process_id={index}"] for index in range(2)))


def test_a_slurm_job_and_its_requeue(loopback, tmp_path, python):
    """Nothing need be said to its tasks: JAX reads their variables."""
    replace, environment, _ = loopback
    (script,) = commands("#SBATCH")
    stand_in(environment, "srun", "sys.argv[1:]")
    running = start(replace(script), environment)
    (output,) = launching.finish([running])
    assert running.returncode == 0, output
    python([], [])
    # Told to make way, the job goes back into the queue.
    program(environment, "srun", "#!/bin/sh\nexit 75\n")
    program(environment, "scontrol", f"#!/bin/sh\necho $@ > {tmp_path}/requeued\n")
    launching.finish([told := start(script, environment | {"SLURM_JOB_ID": "77"})])
    assert told.returncode == 75
    assert (tmp_path / "requeued").read_text() == "requeue 77\n"


def test_a_tpu_pod_slice(loopback, python):
    """`gcloud` hands the command to the shell of each worker; here two, found by SLURM's variables."""
    replace, environment, _ = loopback
    (block,) = commands("gcloud")
    stand_in(environment, "gcloud", '["bash", "-c", sys.argv[-1].removeprefix("--command=")]')
    running = start(replace(block), environment)
    (output,) = launching.finish([running])
    assert running.returncode == 0, output
    python([], [])


def interrupt(_):
    raise KeyboardInterrupt


def fail(_):
    loop.evaluate(tiny_config(), "")


@pytest.mark.parametrize(
    ("main", "code", "said"),
    [(interrupt, 130, "interrupted; the same command goes on"), (fail, 1, "train.py: nothing to evaluate")],
)
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_many_hosts_that_is_interrupted_or_fails_ends_at_once_and_the_first_last(
    monkeypatch, capsys, index, main, code, said
):
    """An orderly end would wait for the others; they would die of the first one's in the middle of a message."""
    ended = []
    monkeypatch.setattr(train, "_train", main)
    monkeypatch.setattr(train, "_is_one_of_many", lambda: True)
    monkeypatch.setattr(train.time, "sleep", lambda seconds: ended.append(f"after {seconds} s"))
    monkeypatch.setattr(train.os, "_exit", lambda code: ended.append(code))
    monkeypatch.setattr("jax.process_index", lambda: index)
    assert train.main([], "train.py") == code  # only because this process was not ended
    assert ended == [f"after {0 if index else 2} s", code]
    assert said in capsys.readouterr().err
