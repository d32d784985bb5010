"""What a run leaves for people: nothing that was logged before a checkpoint is lost, on a disk or in a bucket."""

import errno
import itertools
import json
import logging
import struct

import pytest
from etils import epath

from resnet_jax.runs import history, plots, reporting, scalars, storage

GPATH = type(epath.Path("/"))


def record(step, split="train"):
    numbers = {"epoch": step / 8, "loss": 1 / step, "accuracy": 0.5, "learning_rate": 0.1}
    more = {"images_per_second": 100.0, "seconds_left": 1.0} if split == "train" else {"correct": 5.0, "count": 10.0}
    return {"step": step, "split": split, **numbers, **more}


@pytest.fixture(params=["disk", "bucket"])
def place(request, monkeypatch):
    """The rules of either; those of a bucket on files of the disk."""
    if request.param == "bucket":
        monkeypatch.setattr(storage, "is_bucket", lambda path: True)
        monkeypatch.setattr(storage, "PART_BYTES", 1000)  # six records or so
    return request.param


def write(workdir, steps, first_step=0):
    log = history.Records(str(workdir), first_step=first_step)
    for step in steps:
        log.append(record(step))
    log.close()


def read(workdir):
    return [found["step"] for found in history.read_metrics(str(workdir))]


def test_records_are_read_as_they_were_written(place, tmp_path):
    write(tmp_path, range(1, 31))
    assert history.read_metrics(str(tmp_path)) == [record(step) for step in range(1, 31)]
    parts = sorted(path.name for path in tmp_path.iterdir())
    assert (len(parts) > 3) == (place == "bucket"), parts
    assert parts[0] == "metrics.00001.jsonl" if place == "bucket" else parts == ["metrics.jsonl"]


@pytest.mark.parametrize("first_step", [0, 1, 7, 17, 30, 40])
def test_a_start_drops_what_will_be_made_again_and_goes_on(place, tmp_path, first_step):
    write(tmp_path, range(1, 31))
    write(tmp_path, range(first_step + 1, 36), first_step=first_step)
    assert read(tmp_path) == [*range(1, min(first_step, 30) + 1), *range(first_step + 1, 36)]


def test_a_line_cut_off_by_a_kill_is_left_out_and_then_taken_off(tmp_path):
    write(tmp_path, range(1, 4))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "spl')
    assert read(tmp_path) == [1, 2, 3]
    write(tmp_path, [4, 5], first_step=3)
    assert read(tmp_path) == [1, 2, 3, 4, 5]


class Killed(BaseException):
    """What stands for a SIGKILL: nothing of ours catches it."""


def start_killed_at(moment, folder, first_step, monkeypatch):
    """Starts on `folder`, stopped before the change to a file with number `moment`; whether it was."""
    moments = itertools.count(1)

    def stopping(original):
        def change(*args, **kwargs):
            if next(moments) == moment:
                raise Killed
            return original(*args, **kwargs)

        return change

    with monkeypatch.context() as patch:
        for name in ("write_bytes", "replace", "unlink"):
            patch.setattr(GPATH, name, stopping(getattr(GPATH, name)))
        try:
            history.Records(str(folder), first_step=first_step).close()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("first_step", [0, 3, 12, 29])
def test_a_kill_at_any_moment_of_a_start_loses_nothing_up_to_the_checkpoint(place, tmp_path, monkeypatch, first_step):
    for moment in range(1, 20):
        folder = tmp_path / str(moment)
        folder.mkdir()
        write(folder, range(1, 31))
        killed = start_killed_at(moment, folder, first_step, monkeypatch)
        found = read(folder)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= first_step
        if not killed:
            break
    assert moment > (2 if place == "disk" else 1)
    assert found == list(range(1, first_step + 1))


def test_a_bucket_is_written_before_a_checkpoint_at_the_end_and_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_bucket", lambda path: True)
    log = history.Records(str(tmp_path), first_step=0)
    log.append(record(1))
    assert read(tmp_path) == []
    log.flush()
    assert read(tmp_path) == [1]
    log.append(record(2))
    monkeypatch.setattr(storage, "SECONDS", 0.0)
    log.append(record(3))
    assert read(tmp_path) == [1, 2, 3]
    monkeypatch.setattr(storage, "SECONDS", 1e9)
    log.append(record(4))
    log.close()
    assert read(tmp_path) == [1, 2, 3, 4]


def test_what_is_written_to_a_bucket_grows_as_the_records_do(tmp_path, monkeypatch):
    """Each record written by itself, 2000 of them: a file written whole each time would be 200 MB."""
    monkeypatch.setattr(storage, "is_bucket", lambda path: True)
    monkeypatch.setattr(storage, "PART_BYTES", 4000)
    monkeypatch.setattr(storage, "SECONDS", 0.0)
    written = []
    monkeypatch.setattr(storage, "write_whole", lambda path, content: written.append(len(content)))
    write(tmp_path, range(1, 2001))
    assert len(written) == 2000
    assert sum(written) < 2000 * 4200


def test_only_the_active_process_leaves_anything(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="resnet_jax")
    folder = tmp_path / "run"
    with reporting.Reporter(str(folder), first_step=0, num_steps=8, active=False, tensorboard=True) as reporter:
        reporter.train(3, record(3))
        reporter.test(8, record(8, "test"))
        reporter.say("a line")
        reporter.flush()
    assert not folder.exists()
    assert not caplog.records
    with reporting.Reporter(str(folder), first_step=0, num_steps=8) as reporter:
        reporter.train(3, record(3))
        reporter.test(8, record(8, "test"))
        reporter.say("a line")
    assert [(found["step"], found["split"]) for found in history.read_metrics(str(folder))] == [
        (3, "train"),
        (8, "test"),
    ]
    assert [found.message.split("  ")[0] for found in caplog.records] == ["step 3/8", "step 8", "a line"]


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_message_that_names_file_and_checkpoint(tmp_path, caplog):
    def run():
        with reporting.Reporter(str(tmp_path), first_step=8, num_steps=16, saved_step=lambda: 8) as reporter:
            reporter.train(9, record(9))
            log = reporter._sinks[0]._log
            log._file.close()
            log._file = epath.Path("/dev/full").open("ab")
            reporter.train(10, record(10))

    with pytest.raises(storage.NotWritten, match=r"No space left on device\. .*again.* That is step 8\.$") as caught:
        run()
    assert f"{tmp_path}/metrics.jsonl could not be written" in str(caught.value)
    assert not caplog.records
    assert read(tmp_path) == [9]


def test_a_full_bucket_is_said_at_the_flush_before_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_bucket", lambda path: True)
    reporter = reporting.Reporter(str(tmp_path), first_step=0, num_steps=16, saved_step=lambda: None)
    reporter.train(9, record(9))
    monkeypatch.setattr(GPATH, "write_bytes", full)
    with pytest.raises(storage.NotWritten, match=r"metrics\.jsonl could not be written: No space.*checkpoint\.$"):
        reporter.flush()
    with pytest.raises(storage.NotWritten, match="No space"):
        reporter.__exit__(None)


def test_what_ends_a_run_is_not_hidden_by_a_bucket_that_is_gone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "is_bucket", lambda path: True)
    reporter = reporting.Reporter(str(tmp_path), first_step=0, num_steps=9)
    reporter.train(9, record(9))
    monkeypatch.setattr(GPATH, "write_bytes", full)
    reporter.__exit__(ZeroDivisionError)
    assert "No space left" in caplog.text


@pytest.mark.parametrize("reason", ["no Matplotlib", "full disk", "no numbers"])
def test_a_picture_that_cannot_be_made_is_logged_and_no_more(tmp_path, monkeypatch, caplog, reason):
    write(tmp_path, [1, 2])
    if reason == "no Matplotlib":
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    elif reason == "full disk":
        monkeypatch.setattr(GPATH, "write_bytes", full)
    else:
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    plots.leave_curves(str(tmp_path))
    assert "curves.png" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl"]


def test_curves_are_a_picture(tmp_path):
    write(tmp_path, range(1, 9))
    plots.leave_curves(str(tmp_path))
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").stat().st_size > 5000


def test_a_test_record_as_a_line():
    assert reporting.accuracy_line(record(8, "test")) == "test accuracy 50.00 % (5/10)"


def events(folder):
    """The events of TensorBoard's files, in the order in which it reads them; framing checked."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            data, content, head, tail = content[12 : 12 + length], content[16 + length :], content[:12], content
            assert struct.unpack("<I", head[8:])[0] == masked_crc32c(head[:8])
            assert struct.unpack("<I", tail[12 + length : 16 + length])[0] == masked_crc32c(data)
            yield event_pb2.Event.FromString(data)


def shown(folder):
    """{tag: {step: value}} as TensorBoard shows them: a start takes back what was said of its steps and later ones."""
    found = {}
    for event in events(folder):
        if event.HasField("session_log"):
            for values in found.values():
                for step in [step for step in values if step >= event.step]:
                    del values[step]
        for value in event.summary.value:
            assert event.step not in found.setdefault(value.tag, {}), "a step is there twice"
            found[value.tag][event.step] = value.simple_value
    return found


def test_tensorboard_shows_every_number_once_after_a_kill(place, tmp_path):
    pytest.importorskip("tensorboardX")
    (tmp_path / "tensorboard").mkdir()
    with reporting.Reporter(str(tmp_path), first_step=0, num_steps=9, tensorboard=True) as reporter:
        for step in (1, 2, 3, 4):
            reporter.train(step, record(step) | {"loss": 9.0})
    with reporting.Reporter(str(tmp_path), first_step=2, num_steps=9, tensorboard=True) as reporter:
        for step in (3, 4, 5):
            reporter.train(step, record(step))
        reporter.test(5, record(5, "test"))
    found = shown(tmp_path)
    assert found["train/loss"] == pytest.approx({1: 9.0, 2: 9.0, 3: 1 / 3, 4: 0.25, 5: 0.2})
    assert found["test/accuracy"] == {5: 0.5}
    assert next(events(tmp_path)).file_version == "brain.Event:2"


def test_without_tensorboardx_a_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX.proto", None)
    assert scalars.open_if_installed(str(tmp_path), first_step=0) is None
    assert "pip install tensorboardX" in caplog.text
    assert json.dumps(sorted(tmp_path.iterdir())) == "[]"


@pytest.mark.parametrize("line", ['{"step": 3, oops}', '{"split": "train"}'], ids=["no JSON", "no record"])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    """Edited by hand, say. One that was cut off has no end of line."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2, is no record of a run .*remove that line"):
        history.read_metrics(str(tmp_path))


def test_on_a_disk_a_record_is_there_as_soon_as_it_is_made(tmp_path):
    """And so survives a kill at any moment after."""
    log = history.Records(str(tmp_path), first_step=0)
    for step in (1, 2):
        log.append(record(step))
        assert read(tmp_path) == list(range(1, step + 1))
    log.close()
