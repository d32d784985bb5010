"""Files made to harm: one clear error for each, nothing run, nothing imported, no memory beyond the file's size."""

import os
import pickle
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from handmade import DATA, legacy, mapping, named, safetensors, storage, tensor, zipped
from hostile_files import GOOD, HOSTILE, wide_end
from paths import ROOT
from resnet_jax.weights.files.formats import WeightFileError, load_state_dict
from resnet_jax.weights.files.pickled import opcodes
from resnet_jax.weights.files.pickled.pickles import Budget, Pickle
from resnet_jax.weights.files.pickled.torch_names import find_global

MOST = 64 << 20  # what reading may take beyond the size of the file

EVENTS: list[tuple[str, str]] = []
WATCHED = (
    "exec",
    "import",
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "ctypes.dlopen",
)
WATCHING = False


def watch(event, arguments):
    """Notes what a reader must never do. A hook cannot be taken away, only switched off."""
    if WATCHING and event in WATCHED:
        EVENTS.append((event, str(arguments)[:80]))


sys.addaudithook(watch)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Loads a file of the given bytes; gives the error. Fails if anything ran, was imported, or took much memory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(GOOD))
    load_state_dict(path)  # imports what is imported lazily

    def load(content):
        global WATCHING
        path.write_bytes(content)
        EVENTS.clear()
        tracemalloc.start()
        WATCHING = True
        try:
            with pytest.raises(WeightFileError) as caught:
                load_state_dict(path)
        finally:
            WATCHING = False
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert not EVENTS
        assert not (tmp_path / "harmed").exists()
        assert peak < len(content) + MOST
        return str(caught.value)

    return load


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_a_readable_message(watched, name):
    content, said = HOSTILE[name]
    message = watched(content)
    assert message.isprintable()
    assert 20 < len(message) < 700
    assert re.search(said, message), message


def test_the_table_is_long_enough():
    assert len(HOSTILE) > 150


WHOLE = {
    "zip": zipped(GOOD),
    "legacy": legacy(GOOD),
    "safetensors": safetensors('{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}', DATA["data/0"]),
    "index": b'{"weight_map": {"w": "part.safetensors"}}',
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_file_cut_short_anywhere_is_refused(kind, tmp_path):
    (tmp_path / "part.safetensors").write_bytes(WHOLE["safetensors"])
    path = tmp_path / "x"
    path.write_bytes(WHOLE[kind])
    np.testing.assert_array_equal(load_state_dict(path)["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    for length in range(len(WHOLE[kind])):
        path.write_bytes(WHOLE[kind][:length])
        with pytest.raises(WeightFileError):
            load_state_dict(path)


def test_a_pipe_or_folder_under_the_name_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightFileError, match="the folder has no file of weights"):
        load_state_dict(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # without one, whoever opens it to read would wait for ever
    try:
        for path in (tmp_path / "pipe", "/dev/null"):
            with pytest.raises(WeightFileError, match="no such file"):
                load_state_dict(path)
    finally:
        os.close(writer)


def test_harmless_objects_beside_the_weights_are_passed_over(tmp_path):
    """What checkpoints have besides tensors: settings, dates, NumPy scalars, optimizers, sets."""
    from handmade import call, named, number, text

    beside = {
        "args": call("argparse.Namespace") + b"}" + text("lr") + b"G?\xb9\x99\x99\x99\x99\x99\x9asb",
        "best": call("numpy.core.multiarray.scalar", call("numpy.dtype", text("f8")), b"U\x01x"),
        "groups": call("__builtin__.set", b"](K\x01K\x02e"),
        "default": call("collections.defaultdict", named("__builtin__.list")),
        "old": call("collections.OrderedDict", b"]]" + text("a") + b"aNaa"),
        "when": call("datetime.datetime", b"U\x02xx"),
        "rng": b"(" + number(1 << 63) + b"\x8f(K\x01\x90(K\x02\x91t",
        "tuples": b"}K\x01K\x02\x86Ns",
    }
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(mapping(state_dict=GOOD, **beside)))
    assert load_state_dict(path).keys() == {"w"}


def test_memory_of_the_whole_process_stays_bounded(tmp_path):
    """All hostile files in a process that may not grow: what the C and Rust libraries take counts as well."""
    code = """
import resource, sys
sys.path[:0] = ["tests/helpers", "."]
from resnet_jax.weights.files.formats import WeightFileError, load_state_dict
from hostile_files import GOOD, HOSTILE
from handmade import zipped, safetensors
for warm in (zipped(GOOD), safetensors('{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}')):
    open(sys.argv[1], "wb").write(warm)
    load_state_dict(sys.argv[1])
read = 0
for name, (content, _) in HOSTILE.items():
    open(sys.argv[1], "wb").write(content)
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    # The file is mapped, by us and by safetensors; the two threads that compare checksums have a stack each.
    resource.setrlimit(resource.RLIMIT_AS, (pages + 2 * len(content) + (64 << 20) + (16 << 20), -1))
    try:
        load_state_dict(sys.argv[1])
    except WeightFileError:
        read += 1
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
print(read, len(HOSTILE))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        cwd=ROOT, capture_output=True, text=True, env={"MALLOC_ARENA_MAX": "1", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(HOSTILE))] * 2


def test_ten_thousand_mutated_files_give_arrays_or_the_error():
    from benchmarks import fuzz_formats

    tally = fuzz_formats.run(10_000, seed=0)
    assert tally.inputs == 10_000
    assert tally.arrays + tally.errors == tally.inputs, tally.crashes[:3]
    assert tally.arrays > 100
    assert tally.errors > 5_000
    assert tally.most_memory < MOST


def test_a_directory_with_an_end_of_64_bits_is_read(tmp_path):
    (tmp_path / "x").write_bytes(wide_end())
    assert load_state_dict(tmp_path / "x").keys() == {"w"}


def test_a_tensor_may_be_as_large_as_its_file_and_not_larger(tmp_path):
    """By strides of 0, as `expand` makes them: one row of 12 bytes many times."""

    def content(rows):
        return zipped(mapping(w=tensor(size=(rows, 3), stride=(0, 1))))

    rows = len(content(1)) // 12
    (tmp_path / "fits").write_bytes(content(rows))
    np.testing.assert_array_equal(load_state_dict(tmp_path / "fits")["w"], [[0, 1, 2]] * rows)
    (tmp_path / "larger").write_bytes(content(rows + 1))
    with pytest.raises(WeightFileError, match="larger than the whole file"):
        load_state_dict(tmp_path / "larger")


def machine(data):
    """Our interpreter before a pickle."""
    budget = Budget(1 << 20)
    return Pickle(memoryview(data), 0, find_global(budget), lambda identity: identity, budget)


@pytest.mark.parametrize("opcode", [b"R", b"\x81", b"Q"], ids=["reduce", "newobj", "persistent id"])
def test_what_makes_an_object_is_charged_512_bytes_for_it(opcode):
    """One of our records with its tuples, or a small dictionary, and some room."""
    prepared = b"(" + named("collections.OrderedDict") + b"q\x00)q\x01" + storage()[:-1] + b"q\x02"
    once = b"h\x02Q" if opcode == b"Q" else b"h\x00h\x01" + opcode

    def left(times):
        state = machine(prepared + times * once + b"t.")
        opcodes.run(state)
        return state.budget.left

    assert left(1) - left(2) >= 512


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_are_read_as_pickle_reads_them(protocol):
    numbers = [0, 255, -1, 256, 65_536, -(1 << 31), 1 << 40, -(1 << 63), 2.5, None, True, False]
    value = {"numbers": numbers, "again": numbers, 7: ((), ("x",), (1, "x"), (1, 2, 3), tuple(range(9)), [[], {}])}
    value |= {"é\U0001f600": "long" * 100, "path": os.fsdecode(b"no UTF-8: \xff")}
    assert opcodes.run(machine(pickle.dumps(value, protocol))) == value
