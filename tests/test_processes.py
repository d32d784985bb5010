"""A function in a process of its own: its answer, its errors, and what is left of a crash."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from resnet_jax import errors, processes


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_answer_comes_back_from_another_process_even_if_no_pipe_holds_it(logs):
    answer, process = processes.call(eval, "data * 1_000_000, __import__('os').getpid()", {"data": b"abc"})
    assert answer == b"abc" * 1_000_000
    assert process != os.getpid()
    assert list(logs.iterdir()) == []


def test_an_error_is_raised_here():
    with pytest.raises(ValueError, match="invalid literal for int") as raised:
        processes.call(int, "many")
    assert "in _answer" in errors.message(raised.value)  # with the frames that it had there


@pytest.mark.parametrize("name", ["SIGSEGV", pytest.param("SIGKILL", marks=pytest.mark.soak)])
def test_a_signal_is_an_exception_that_names_it(name):
    with pytest.raises(processes.Crashed, match=f"{name}; its last words are in "):
        processes.call(signal.raise_signal, signal.Signals[name])


def test_leaving_without_an_answer_is_a_crash_and_what_was_said_is_kept(capfd):
    with pytest.raises(processes.Crashed, match="exit code 3") as caught:
        processes.call(exec, "import os; os.write(2, b'alas'); os._exit(3)")
    assert pathlib.Path(caught.value.log).read_text() == "alas"
    assert capfd.readouterr().err == ""


def test_the_process_ends_with_the_one_that_waits_for_it():
    waiting = "from resnet_jax import processes; processes.call(exec, {!r})"
    works = "import time; print('begun', flush=True); time.sleep(120)"
    with subprocess.Popen([sys.executable, "-c", waiting.format(works)], stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout.readline() == "begun\n"
        caller.kill()
        begun = time.monotonic()
        caller.stdout.read()  # until no process holds the other end any more
        assert time.monotonic() - begun < 60
