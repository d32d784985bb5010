"""A run directory that says what it is: config.json, and run.json with every start."""

import contextlib
import errno
import json
import pathlib
import shutil
import subprocess
import sys

import ml_collections
import pytest
from etils import epath

from paths import ROOT
from resnet_jax.configs import default
from resnet_jax.runs import storage, workdirs
from resnet_jax.version import __version__

CONFIG = ml_collections.ConfigDict({"seed": 0, "data": {"path": "", "flip": True}, "model": {}})


def make_step(folder):
    """What a run that has made one leaves."""
    (folder / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n')


def test_the_first_process_writes_the_config_and_the_others_compare(tmp_path):
    workdir = str(tmp_path / "run")
    workdirs.claim(workdir, CONFIG, writes=False)
    assert not (tmp_path / "run").exists()
    workdirs.claim(workdir, CONFIG)
    make_step(tmp_path / "run")
    assert workdirs.load_config(workdir) == {"seed": 0, "data": {"path": "", "flip": True}, "model": {}}
    other = CONFIG.copy_and_resolve_references()
    other.data.flip = False
    for writes in (True, False):
        with pytest.raises(ValueError, match=r"config.data.flip: True there, False now\n.*another --workdir"):
            workdirs.claim(workdir, other, writes=writes)


def test_a_free_key_may_change_and_is_written(tmp_path):
    workdirs.claim(str(tmp_path), CONFIG)
    make_step(tmp_path)
    moved = CONFIG.copy_and_resolve_references()
    moved.data.path = "/elsewhere"
    workdirs.claim(str(tmp_path), moved, writes=False)
    assert workdirs.load_config(str(tmp_path))["data"]["path"] == ""
    workdirs.claim(str(tmp_path), moved)
    assert workdirs.load_config(str(tmp_path))["data"]["path"] == "/elsewhere"
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "metrics.jsonl"}


def leave_checkpoint(folder):
    (folder / "checkpoints" / "8").mkdir(parents=True)


def leave_half_a_checkpoint(folder):
    (folder / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir(parents=True)


@pytest.mark.parametrize(
    ("leave", "bound"),
    [(lambda folder: None, False), (leave_half_a_checkpoint, False), (leave_checkpoint, True), (make_step, True)],
    ids=["nothing", "half a checkpoint", "a checkpoint", "a record"],
)
def test_a_workdir_is_bound_by_a_run_that_has_made_a_step(tmp_path, leave, bound):
    workdir, other = str(tmp_path), CONFIG.copy_and_resolve_references()
    workdirs.claim(workdir, CONFIG)
    workdirs.keep_class_names(workdir, ["ant"])
    leave(tmp_path)
    other.seed = 1
    refused = pytest.raises(ValueError, match="belongs to another run") if bound else contextlib.nullcontext()
    for writes in (False, True):
        with refused:
            workdirs.claim(workdir, other, writes=writes)
    assert workdirs.load_config(workdir)["seed"] == (0 if bound else 1)
    with pytest.raises(ValueError, match="other names") if bound else contextlib.nullcontext():
        workdirs.keep_class_names(workdir, ["bee"])
    assert workdirs.load_class_names(workdir) == (("ant",) if bound else ("bee",))


@pytest.mark.parametrize("content", ['{"architecture": "resnet50"}', "[]", '{"data": {}}'])
def test_the_config_of_something_else_is_not_overwritten(tmp_path, content):
    """As a folder of weights has one."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json is not the config of a run.*give another --workdir"):
        workdirs.claim(str(tmp_path), CONFIG)
    assert (tmp_path / "config.json").read_text() == content


def test_a_key_that_another_version_did_not_have_is_told_from_one_that_was_none(tmp_path):
    older = CONFIG.copy_and_resolve_references()
    del older.data["flip"]
    workdirs.claim(str(tmp_path), older)
    make_step(tmp_path)
    with pytest.raises(ValueError, match="config.data.flip: no such key there, True now"):
        workdirs.claim(str(tmp_path), CONFIG)


def test_a_damaged_config_is_named_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text("{")
    for read in (lambda: workdirs.claim(str(tmp_path), CONFIG), lambda: workdirs.load_config(str(tmp_path))):
        with pytest.raises(
            ValueError, match=r"config.json is damaged .*: move it away, and start with the very config"
        ):
            read()


HOLD = """
import sys, time
from resnet_jax.runs import workdirs
with workdirs.alone(sys.argv[1]):
    print("holds", flush=True)
    time.sleep(600)
"""


def test_two_runs_at_once_in_one_workdir_are_refused_until_the_first_is_killed(tmp_path):
    workdir = str(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, workdir]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(workdirs.WorkdirInUse, match=r"another process is training in .*run: wait for its end"):
            workdirs.alone(workdir).__enter__()
        with workdirs.alone(workdir, writes=False):  # another host of that run
            pass
        other.kill()
    with workdirs.alone(workdir):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdirs.fcntl, "flock", refuse)
    with workdirs.alone(str(tmp_path)):
        assert "has no locks ([Errno 37] No locks available)" in caplog.text


def test_no_workdir_is_said():
    with pytest.raises(ValueError, match="give --workdir=DIR"):
        workdirs.claim("", CONFIG)


def test_a_store_where_a_checkpoint_could_be_half_there_is_refused():
    with pytest.raises(ValueError, match=r"s3://bucket/run: elsewhere than on a disk or in gs://"):
        workdirs.claim("s3://bucket/run", CONFIG)


def test_a_bucket_without_its_client_names_what_to_install(monkeypatch):
    def missing(path):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(type(epath.Path("/")), "read_bytes", missing)
    with pytest.raises(OSError, match=r"gs://b/run/config\.json lies in a bucket: pip install 'resnet-linen\[gcs\]'"):
        workdirs.claim("gs://b/run", CONFIG)


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path, monkeypatch):
    workdirs.claim(str(tmp_path), CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    moved = CONFIG.copy_and_resolve_references()
    moved.data.path = "/elsewhere"

    def full(path, content):
        pathlib.Path(path).write_bytes(content[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(epath.Path("/")), "write_bytes", full)
    for write in (lambda: workdirs.claim(str(tmp_path), moved), lambda: workdirs.record_start(str(tmp_path), {})):
        with pytest.raises(storage.NotWritten, match=r"(config|run)\.json could not be written: No space left"):
            write()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"config.json": before}


def test_a_start_says_what_runs_where(monkeypatch):
    import jax

    shown = {"JAX_TEST": "1", "XLA_FLAGS": "--xla_cpu_enable_fast_math=false"}
    for name, value in (shown | {"HF_TOKEN": "secret", "AWS_SECRET_ACCESS_KEY": "secret"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["train.py", "--config=a.py", "--config.seed=1"])
    entry = workdirs.describe_start(first_step=40)
    assert entry["first_step"] == 40
    assert entry["command"][1:] == ["train.py", "--config=a.py", "--config.seed=1"]
    assert entry["devices"] == {"platform": "cpu", "kind": "cpu", "count": 4, "local_count": 4}
    assert entry["processes"] == {"count": 1, "index": 0, "devices_of_each": [4]}
    assert entry["versions"]["jax"] == jax.__version__
    assert entry["versions"].keys() == {"python", *workdirs._PACKAGES}
    assert entry["code"]["resnet_jax"] == __version__
    assert shown.items() <= entry["environment"].items()
    assert "secret" not in json.dumps(entry)


def test_starts_are_added_and_the_last_of_very_many_kept(tmp_path, monkeypatch):
    assert workdirs.load_starts(str(tmp_path)) == []
    monkeypatch.setattr(workdirs, "KEPT_STARTS", 3)
    for step in range(5):
        workdirs.record_start(str(tmp_path), {"first_step": step})
    assert json.loads((tmp_path / "run.json").read_text()) == {"starts": [{"first_step": step} for step in (2, 3, 4)]}


@pytest.mark.parametrize("content", ["{", "[]", '{"starts": 3}'])
def test_another_file_in_its_place_is_not_overwritten(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json does not hold the starts of a run .*: move it away"):
        workdirs.record_start(str(tmp_path), {})
    assert (tmp_path / "run.json").read_text() == content


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_changes_are_those_of_the_checkout_the_code_runs_from(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "resnet_jax"
    module = package / "runs" / "workdirs.py"
    module.parent.mkdir(parents=True)
    shutil.copy(ROOT / "resnet_jax" / "runs" / "workdirs.py", module)
    monkeypatch.setattr(workdirs, "__file__", str(module))
    assert workdirs._git() == {}  # no checkout
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    assert workdirs._git() == {}  # below somebody else's
    (tmp_path / ".git").rename(package.parent / ".git")
    git(package.parent, "add", "-A")
    git(package.parent, "commit", "-qm", "b", "--allow-empty")
    assert workdirs._git() == {"commit": git(package.parent, "rev-parse", "HEAD"), "dirty": False}
    module.write_text("changed")
    assert workdirs._git()["dirty"] is True
    monkeypatch.setenv("PATH", "")
    assert workdirs._git() == {}


# Where, how fast and how often, and whether it goes on: whatever they are, a run comes to the same numbers.
FREE = {
    *("parallel", "log_every_steps", "eval_every_epochs", "checkpoint_every_epochs", "checkpoint_every_steps"),
    *("keep_checkpoints", "keep_best", "tensorboard", "profile_steps", "compilation_cache_dir"),
    *("data.path", "data.data_dir", "data.num_threads", "data.num_workers", "data.on_error", "data.max_unreadable"),
}


def test_every_key_that_decides_a_number_must_be_that_of_the_run(tmp_path):
    config = default.get_config()
    workdirs.claim(str(tmp_path), config)
    there = workdirs._flat(workdirs.load_config(str(tmp_path)))
    assert there.keys() >= FREE
    for key in there:
        changed = {**there, key: "another"}
        with contextlib.nullcontext() if key in FREE else pytest.raises(ValueError, match=f"config.{key}: .* there, "):
            workdirs._check_same(str(tmp_path), there, changed)
