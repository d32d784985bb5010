"""XLA's faulty sums: four programs that are right, wrong without the guard and right with it, and who is told of it."""

import ast
import json
import math
import os
import platform
import re
import subprocess
import sys

import jax
import jaxlib
import numpy as np
import pytest

import resnet_jax
from paths import ROOT
from resnet_jax import compiler, processes
from resnet_jax.proof import recorded, stages, verify
from resnet_jax.training import loop
from resnet_jax.weights.files import formats
from tiny import tiny_config

# Version of jaxlib -> what it gets wrong on x86-64, with AVX-512 and with AVX2.
MOST = set(compiler.CANARIES) - {"rows of sums"}
WRONG = {"0.10.0": set(), "0.10.1": set(), "0.10.2": set(compiler.CANARIES), "0.11": MOST, "0.12.0": MOST}
PROOF = str(ROOT / "proofs" / "cifar_resnet20.safetensors")


def start(*command, **environment):
    """Python with this suite's environment, but for what it is guarded by, and with all optimisations."""
    gone = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    kept = {key: value for key, value in os.environ.items() if key not in gone}
    command = [sys.executable, *map(str, command)]
    environment = kept | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# The programs, and a process that is not ours -----------------------------------------------------------

SOMEBODYS = """
import functools, json, math, os, sys, warnings
import jax, numpy as np, optax
import resnet_jax
from resnet_jax import compiler, inference
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.models import layers
from resnet_jax.step import parallel, step

found = {"flags after import": os.environ.get("XLA_FLAGS")}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    resnet_jax.load_pretrained(sys.argv[1])
    resnet_jax.load_pretrained(sys.argv[1])
found["told"] = [[told.category.__name__, told.filename, str(told.message)] for told in caught]
found["wrong"] = compiler.broken()
found["cured"] = [name for name in compiler.CANARIES if compiler.is_right(name, compiler.options())]
found["on a TPU"] = compiler.options("tpu")

pixels = np.random.default_rng(0).standard_normal((64, 1, 1, 128)).astype(np.float32)
found["D shortcut"] = float(abs(jax.jit(lambda x: layers.avg_pool2x2_ceil(x, 2))(pixels) - pixels).max())

# What are no numbers, through each program of ours that people read numbers of.
nan, one = (math.nan,) * 3, (1.0,) * 3
net = {"stem": "cifar", "stem_features": 16, "stage_features": (64,), "num_classes": 5}
model = resnet_jax.ResNet(resnet_jax.BasicBlock, (1,), **net)
shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), np.zeros((1, 8, 8, 3)))
variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
images = np.zeros((2, 8, 8, 3), np.uint8)
try:
    inference.predict(model, variables, list(images), Preprocessing(8, 8, "bilinear", nan, one))
    found["predict"] = "probabilities"
except ValueError as error:
    found["predict"] = str(error)
steps = parallel.parallelize(
    lambda: 0,
    functools.partial(step.eval_step, mean=nan, std=one, axis_name=parallel.AXIS),
    mode="jit",
    devices=jax.devices()[:1],
)
batch = {"image": images, "label": np.zeros(2, np.int32), "mask": np.ones(2, np.float32)}
state = step.create_train_state(model, variables, optax.sgd(0.1))
found["step"] = float(steps.eval_step(state, steps.shard(batch))["loss"])

compiler.guard()
found["guarded too late"] = os.environ.get("XLA_FLAGS")
os.environ["XLA_FLAGS"] = compiler.CURE  # as whoever reads of it might do, and in vain
compiler._wrong.cache_clear()
found["late"] = [compiler.broken(), compiler.options()]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def somebodys(tmp_path_factory):
    """What is found in a process that is not ours, and uses JAX without the flag."""
    file = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_weights(file)
    done = start("-c", SOMEBODYS, file)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_weights(file):
    model = resnet_jax.create_model("test_resnet")
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32), train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    formats.save_state_dict(file, resnet_jax.to_torch(model, variables))


def needs_the_fault(found):
    if not found["wrong"]:
        pytest.skip(f"jaxlib {jaxlib.__version__} sums right on this CPU")


@pytest.mark.slow
def test_without_the_guard_the_programs_are_wrong(somebodys):
    known = [wrong for version, wrong in WRONG.items() if jaxlib.__version__.startswith(version)]
    if not known or platform.machine() != "x86_64":
        pytest.skip(f"nobody has said what jaxlib {jaxlib.__version__} gets wrong on {platform.machine()}")
    assert set(somebodys["wrong"]) == known[0]


@pytest.mark.parametrize("name", compiler.CANARIES)
def test_with_it_they_are_right(name):
    assert compiler.is_right(name)


@pytest.mark.slow
def test_options_cure_each_of_them_too(somebodys):
    assert somebodys["cured"] == list(compiler.CANARIES)
    assert somebodys["on a TPU"] == {}
    assert compiler.options() == {}  # in this process, which has the flag


@pytest.mark.slow
def test_our_own_programs_are_cured_in_anybodys_process(somebodys):
    """No image of NaN gets logits that are numbers; without the options all of them do."""
    assert "not finite" in somebodys["predict"]
    assert math.isnan(somebodys["step"])


def test_the_proof_compiles_with_the_options_too(monkeypatch):
    """Its programs give each stage, which XLA's fault spares where it is seen: so only that they are handed over."""
    monkeypatch.setattr(compiler, "options", lambda: {"xla_no_such_option": "1"})
    model = resnet_jax.ResNet(resnet_jax.BasicBlock, (1,), stem="cifar", stage_features=(8,), stem_features=8)
    images = np.zeros((1, 8, 8, 3), np.float32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        stages.stage_outputs(model, variables, images)


@pytest.mark.slow
def test_the_mean_of_a_d_shortcut_is_right_in_anybodys_process(somebodys):
    """Its windows do not reach over the edge, where no flag keeps XLA from summing up what is not there."""
    assert somebodys["D shortcut"] == 0


@pytest.mark.slow
def test_a_flag_that_comes_too_late_is_not_taken_for_a_cure(somebodys):
    needs_the_fault(somebodys)
    wrong, options = somebodys["late"]
    assert wrong == somebodys["wrong"]  # whatever the compilation cache holds of processes with that flag
    assert options
    assert somebodys["guarded too late"] is None


# The flag -----------------------------------------------------------------------------------------------

CHOSEN = f"--{compiler.FLAG}=+reduce"


@pytest.fixture
def beginning(monkeypatch):
    """As in a process that has not used JAX yet."""
    monkeypatch.setattr(compiler, "_has_begun", lambda: False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, compiler.CURE),
        ("", compiler.CURE),
        ("--xla_dump_to=/tmp --xla_cpu_max_isa=AVX2", f"{compiler.CURE} --xla_dump_to=/tmp --xla_cpu_max_isa=AVX2"),
        (f"--xla_cpu_max_isa=AVX2 {CHOSEN}", f"--xla_cpu_max_isa=AVX2 {CHOSEN}"),
        (f"--{compiler.FLAG}=", f"--{compiler.FLAG}="),
    ],
)
def test_the_users_flags_stay_and_his_choice_wins(given, expected, monkeypatch, beginning):
    monkeypatch.delenv("XLA_FLAGS") if given is None else monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):
        compiler.guard()
        assert os.environ["XLA_FLAGS"] == expected


def test_flags_in_a_file_stay_too(monkeypatch, tmp_path, beginning):
    """XLA reads the file that XLA_FLAGS names, where that is no flag."""
    file = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(file))
    with pytest.raises(FileNotFoundError):
        compiler.guard()
    file.write_text(f"--xla_cpu_max_isa=AVX2\n{CHOSEN}\n")
    compiler.guard()
    assert os.environ["XLA_FLAGS"] == str(file)
    assert compiler.describe()["value"] == "+reduce"
    file.write_text("--xla_cpu_max_isa=AVX2\n")
    compiler.guard()
    assert os.environ["XLA_FLAGS"] == f"{compiler.CURE} --xla_cpu_max_isa=AVX2\n".strip()


FLAG, FIELD, LONGER = (compiler.FLAG.encode() + after for after in (b"\0", b"\x18\xa6\x03", b"2\0"))
ENVIRONMENTS = {
    "jaxlib alone": ({"jaxlib/a.so": b"", "jaxlib/mlir/b.so": b"\0xla_one\0" + FLAG}, True),
    "a field of a protocol buffer is no flag": ({"jaxlib/a.so": FIELD}, False),
    "a longer name": ({"jaxlib/a.so": LONGER}, False),
    "a TPU's with the flag": ({"jaxlib/a.so": FLAG, "libtpu/libtpu.so": FLAG}, True),
    "a TPU's without it": ({"jaxlib/a.so": FLAG, "libtpu/libtpu.so": FIELD}, False),
    "a GPU's without it": (
        {"jaxlib/a.so": FLAG, "jax_plugins/xla_cuda12/x.so": b"\0", "jax_plugins/y/z.py": b""},
        False,
    ),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_where_an_xla_has_no_such_flag_nothing_is_added(name, monkeypatch, tmp_path, beginning):
    """Stand-ins: XLA would end the process."""
    files, added = ENVIRONMENTS[name]
    for file, content in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content)
    monkeypatch.setattr(compiler, "_homes", lambda package: list(tmp_path.glob(package)))
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    compiler._known.cache_clear()
    try:
        compiler.guard()
    finally:
        compiler._known.cache_clear()
    assert os.environ.get("XLA_FLAGS") == (compiler.CURE if added else None)


@pytest.mark.slow
def test_a_command_of_ours_has_it_beside_the_users_own():
    code = "from resnet_jax import cli, compiler; cli.main(['list', '-']); print(compiler.describe())"
    for given, value in {"--xla_cpu_enable_fast_math=false": "-reduce", CHOSEN: "+reduce"}.items():
        done = start("-c", code, XLA_FLAGS=given)
        found = ast.literal_eval(done.stdout.splitlines()[-1])
        assert found["value"] == value, done.stderr
        if value == "-reduce":
            assert found["wrong"] == []
        else:
            needs_the_fault(found)  # and it does as he says


def test_processes_of_ours_have_it_whoever_began_their_parent(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")
    assert processes.call(os.getenv, "XLA_FLAGS") == compiler.CURE


STARTS = [
    ROOT / "tests" / "conftest.py",
    *(ROOT / "resnet_jax" / "cli" / f"{name}.py" for name in ("command", "train")),
]


@pytest.mark.parametrize("path", [*STARTS, *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")])
def test_every_script_that_uses_jax_is_guarded(path):
    text = path.read_text()
    if path in STARTS or re.search(r"^ *import jax$", text, re.MULTILINE):
        assert text.count("compiler.guard()") == 1


# Who is told --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_who_imports_the_library_is_told_once_and_what_to_type(somebodys):
    assert somebodys["flags after import"] is None
    needs_the_fault(somebodys)
    ((category, file, message),) = somebodys["told"]
    assert (category, file) == ("RuntimeWarning", "<string>")  # the caller's, so that a notebook names his line
    assert f'export XLA_FLAGS="$XLA_FLAGS {compiler.CURE}"' in message
    assert jaxlib.__version__ in message


class Told(Exception):
    """Instead of the warning: nothing of what would follow is computed."""


CALLS = {
    "load_pretrained": lambda folder: resnet_jax.load_pretrained(folder / "x.safetensors"),
    "verify": lambda folder: verify.verify("cifar_resnet20"),
    "check": lambda folder: recorded.check(PROOF),
    "train": lambda folder: loop.train(tiny_config(), str(folder / "run")),
    "evaluate": lambda folder: loop.evaluate(tiny_config(), str(folder / "run")),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_door_to_the_library_tells(name, tmp_path, monkeypatch):
    def tell(names):
        raise Told(names)

    write_weights(tmp_path / "x.safetensors")
    monkeypatch.setattr(compiler, "_wrong", lambda: ("rows of sums",))
    monkeypatch.setattr(compiler, "_warn", tell)
    with pytest.raises(Told, match="rows of sums"):
        CALLS[name](tmp_path)


def test_on_other_backends_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(compiler, "_wrong", lambda: ("rows of sums",))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiler.broken() == ()
    assert compiler.options() == {}
    with jax.default_device(jax.devices("cpu")[0]):  # as for the proof in float64
        assert compiler.options() == compiler.options("cpu") != {}
