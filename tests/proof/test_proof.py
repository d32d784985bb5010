"""Recorded proofs: those in proofs/ hold without PyTorch, damage is seen and named, and a bad file is refused."""

import functools
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

import resnet_jax
from paths import ROOT
from resnet_jax import cli, compiler
from resnet_jax.models import blocks
from resnet_jax.models.norms import batch_norm
from resnet_jax.proof import record_file, recorded, stages, verify
from resnet_jax.weights.files.formats import WeightFileError, save_state_dict

FOLDER = ROOT / "proofs"
PROOFS = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
CIFAR = FOLDER / "cifar_resnet20.safetensors"


@pytest.fixture(autouse=True)
def without_pytorch(request, monkeypatch):
    """Checking never needs it; only tests marked by their argument `pytorch` may have it."""
    if "pytorch" not in request.fixturenames:
        for name in ("torch", "torchvision", "timm"):
            monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def pytorch():
    """PyTorch and its libraries, or a skipped test."""
    pytest.importorskip("torchvision")
    return pytest.importorskip("torch")


# The proofs in the repository ---------------------------------------------------------------------------


def test_the_proofs_cover_every_part():
    assert len(PROOFS) == 10
    records = [record_file.load(FOLDER / f"{name}.safetensors") for name in PROOFS]
    models = [resnet_jax.create_model(record.name, **record.fields) for record in records]
    for field, values in {
        "stem": {"imagenet", "deep", "deep_tiered", "cifar"},
        "shortcut": {"A", "B", "avg"},
        "anti_alias": {None, "avg", "blur"},
        "norm": {"batch", "group"},
        "groups": {1, 32},
        "stem_pool": {None, "conv"},
        "stride_in_1x1": {False, True},
        "first_stage_stride": {1, 2},
    }.items():
        assert {getattr(model, field) for model in models} == values
    assert {str(model.attn) for model in models} >= {"se", "eca", "None"}


@pytest.mark.parametrize("name", PROOFS)
def test_each_proof_holds_two_sizes_and_a_training_step(name):
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size <= 2e6
    proof = record_file.load(path)
    assert name in (proof.name, f"{proof.name}_strides")
    even, odd, train = proof.cases
    assert [side % 2 for side in even.images.shape[1:3]] == [0, 0]
    assert [side % 2 for side in odd.images.shape[1:3]] == [1, 1]
    assert [case.train for case in proof.cases] == [False, False, True]
    assert train.size == f"{even.size} train"
    statistics = [stage for case in proof.cases for stage in case.stages if stage.endswith("running_var")]
    assert bool(statistics) == (name != "resnet50_gn")
    # Signals that explode or vanish would hide damage.
    assert all(1e-2 < np.abs(x).max() < 1e2 for case in proof.cases for x in case.stages.values())


# Checked in `make test`; the other recorded networks in `make parity`.
SHARE = {"cifar_resnet20", "ecaresnet26t", "resnet18_strides"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SHARE else pytest.mark.parity) for name in PROOFS]
)
def test_each_proof_holds_in_float64(name):
    report = recorded.check(FOLDER / f"{name}.safetensors", dtypes=["float64"])
    assert report.passed, report.table()
    assert name in (report.name, f"{report.name}_strides")
    assert {"torch", "torchvision", "timm"} <= report.peers.keys()
    assert list(dict.fromkeys(row.size for row in report.rows)) == [
        case.size for case in record_file.load(FOLDER / f"{name}.safetensors").cases
    ]


@pytest.mark.parity
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", ["cifar_resnet20", "resnetrs50", "resnetblur18"])
def test_a_proof_holds_in_every_setting(name):
    report = recorded.check(FOLDER / f"{name}.safetensors")
    assert {row.dtype for row in report.rows} == set(verify.SETTINGS)
    assert report.passed, report.table()


def read():
    """The header of CIFAR's record and its tensors."""
    with safetensors.safe_open(CIFAR, "np") as file:
        header = json.loads(file.metadata()[record_file.KEY])
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary


def record_of(path, *cases):
    """CIFAR's record with a few of its cases: 0 is evaluation at 32x32, 1 at 33x29, 2 a training step at 32x32."""
    header, tensors = read()
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith("weights/")}
    for i, case in enumerate(cases):
        named = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{case}/")}
        kept |= {f"{i}/{name.split('/', 1)[1]}": tensor for name, tensor in named.items()}
    others = {key: header[key] for key in ("model", "fields", "peers", "weights_file")}
    return record_file.save(path, kept, others | {"cases": [header["cases"][case] for case in cases]})


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """The record of evaluation at 32x32."""
    return record_of(tmp_path_factory.mktemp("record") / "evaluation.safetensors", 0)


@pytest.mark.slow
def test_the_command_needs_no_pytorch(tmp_path):
    """In a process of its own, compiled as users have it, in every setting, with a report; nor is matplotlib needed."""
    code = """
import sys
for name in ("torch", "torchvision", "timm", "matplotlib", "grain", "cv2"):
    sys.modules[name] = None
from resnet_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""
    record = record_of(tmp_path / "step.safetensors", 2)
    flags = ["verify", f"--against={record}", f"--json={tmp_path}/report.json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=FOLDER.parent, capture_output=True, text=True, env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("cifar_resnet20 equals PyTorch at every stage\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert report["platform"] == "cpu"
    assert report["compiler"] == {"flag": compiler.FLAG, "value": "-reduce", "wrong": []}
    assert {"python", "jax", "jaxlib", "torch"} <= report["versions"].keys()
    assert {row["dtype"] for row in report["rows"]} == set(verify.SETTINGS)


# Damage -------------------------------------------------------------------------------------------------


def change_leaf(variables, path, change):
    """The variables with one leaf changed; `path` as `params/layer2/0/conv2/kernel`."""
    flat = flatten_dict(variables, sep="/")
    return unflatten_dict(flat | {path: change(flat[path])}, sep="/")


def transposed(variables):
    return change_leaf(variables, "params/layer2/0/conv2/kernel", lambda x: x.swapaxes(0, 1))


def swapped(variables, collection, left, right):
    """What a converter would give that mixes up two names."""
    rename = {left: right, right: left}
    flat = {}
    for path, leaf in flatten_dict(variables).items():
        of_norm = path[0] == collection and not path[-2].startswith(("conv", "fc"))
        flat[(*path[:-1], rename.get(path[-1], path[-1]) if of_norm else path[-1])] = leaf
    return unflatten_dict(flat)


def same_padding(*args, conv, groups=1, stride=1, **kwargs):
    return conv(
        args[0], (3, 3), strides=(args[1] if len(args) > 1 else stride,) * 2, padding="SAME", name=kwargs["name"]
    )


DAMAGE = {
    "a transposed kernel": (transposed, "layer2"),
    "scale and bias swapped": (lambda v: swapped(v, "params", "scale", "bias"), "stem"),
    "mean and var swapped": (lambda v: swapped(v, "batch_stats", "mean", "var"), "stem"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_damaged_variables_fail_and_the_first_bad_stage_is_named(kind, dtype, evaluation, monkeypatch, capsys):
    change, first = DAMAGE[kind]
    original = verify.from_torch
    monkeypatch.setattr(verify, "from_torch", lambda *args, **kwargs: change(original(*args, **kwargs)))
    assert cli.main(["verify", f"--against={evaluation}", f"--dtypes={dtype}"]) == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith(f"cifar_resnet20 DIFFERS from PyTorch, first at {first} ({dtype}, 32x32): "), verdict


def build_with(monkeypatch, norm):
    original = verify.create_model
    monkeypatch.setattr(verify, "create_model", lambda name, **kwargs: original(name, **(kwargs | {"norm": norm})))


def test_another_epsilon_fails(evaluation, monkeypatch, capsys):
    build_with(monkeypatch, functools.partial(batch_norm, epsilon=1e-3))
    assert cli.main(["verify", f"--against={evaluation}", "--dtypes=float64"]) == 1
    assert "first at stem (float64, 32x32)" in capsys.readouterr().out


def test_same_padding_fails_where_a_stride_meets_an_even_size(monkeypatch, tmp_path):
    monkeypatch.setattr(blocks, "conv3x3", same_padding)
    # A function of its own, so that what was compiled with the right padding is not found again.
    original = stages._apply
    monkeypatch.setattr(stages, "_apply", lambda *args: original(*args))
    report = recorded.check(record_of(tmp_path / "x.safetensors", 0, 1), dtypes=["float64"])
    first = report.first_failure
    assert (first.stage, first.size) == ("layer2", "32x32")
    # 33x29 gives 17x15: no even size before a stride, and nothing to see. That is why a proof holds both.
    assert all(row.passed for row in report.rows if row.size == "33x29")


def test_float64_without_a_cpu_is_one_message(monkeypatch, capsys):
    def devices(platform=None):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", devices)
    assert cli.main(["verify", f"--against={CIFAR}", "--dtypes=float64"]) == 2
    assert "JAX_PLATFORMS=tpu,cpu" in capsys.readouterr().err


def test_flaxs_biased_running_variance_fails(monkeypatch, tmp_path):
    build_with(
        monkeypatch, lambda **kwargs: batch_norm(**kwargs)
    )  # by its name "batch" it would be PyTorch's in training
    report = recorded.check(record_of(tmp_path / "x.safetensors", 2), dtypes=["float64"])
    assert (report.first_failure.stage, report.first_failure.size) == ("stem running_var", "32x32 train")


def test_a_sample_sees_a_shift_and_a_single_value():
    values = np.maximum(np.random.default_rng(0).standard_normal((2, 28, 28, 64)), 0)
    case = verify.Case(np.zeros((2, 56, 56, 3)), {"layer1": values})
    tensors, (description,) = record_file.pack([case], seed=0)
    kept = verify.Case(case.images, {}, at={"layer1": tensors["0/layer1/at"]}, shapes=description["shapes"])
    assert tensors["0/layer1"].shape == (record_file.SAMPLES + 2 * 64,)

    def relative(changed):
        reference = {"layer1": tensors["0/layer1"]}
        (row,) = verify.compare(verify.sample({"layer1": changed}, kept), reference, dtype="float64", size="")
        return row.relative

    assert relative(values) == 0
    assert relative(np.roll(values, 1, axis=2)) > 0.5
    one = values.copy()
    place = np.setdiff1d(np.arange(values.size), tensors["0/layer1/at"])[0]
    one.flat[place] += 0.1
    assert relative(one) > 1e-6
    with pytest.raises(ValueError, match="layer1 has shape"):
        verify.sample({"layer1": values[:, 1:]}, kept)


# Bad files ----------------------------------------------------------------------------------------------


def rewritten(path, **changes):
    """The record of CIFAR with another header."""
    header, tensors = read()
    header |= changes
    header = {key: value for key, value in header.items() if value is not None or key == "weights_file"}
    safetensors.numpy.save_file(tensors, path, metadata={record_file.KEY: json.dumps(header)})


def flipped(path):
    data = bytearray(CIFAR.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)


BAD = {
    "cut": (lambda path: path.write_bytes(CIFAR.read_bytes()[:-1]), "not a whole recorded proof"),
    "a flipped byte": (flipped, "not those that were recorded"),
    "text": (lambda path: path.write_text("<html>"), "not a whole recorded proof"),
    "weights": (lambda path: save_state_dict(path, {"fc.bias": np.zeros(3, np.float32)}), "not a recorded proof"),
    "another version": (functools.partial(rewritten, version=2), "a proof of version 2; this program reads 1"),
    "no model": (functools.partial(rewritten, model=None), "lacks 'model'"),
    "no header": (
        lambda path: safetensors.numpy.save_file({}, path, metadata={record_file.KEY: "[1]"}),
        "not a whole recorded proof",
    ),
    "missing": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_one_message(kind, tmp_path, capsys):
    make, said = BAD[kind]
    path = tmp_path / "x.safetensors"
    make(path)
    assert cli.main(["verify", f"--against={path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"resnet-jax: {path}: ")
    assert said in error


# Recording ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_that_do_not_fit_are_referred_to(pytorch, tmp_path, capsys, monkeypatch):
    path, weights = tmp_path / "x.safetensors", tmp_path / "x.weights.safetensors"
    assert cli.main(["verify", "cifar_resnet20", f"--record={path}", "--max-mb=0.2", "--sizes=16x16"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [str(path), str(weights)]
    monkeypatch.setitem(sys.modules, "torch", None)
    check = ["verify", f"--against={path}", "--dtypes=float64"]
    assert cli.main(check) == 2
    assert "give --weights FILE, which was 'x.weights.safetensors'" in capsys.readouterr().err
    assert cli.main([*check, f"--weights={weights}"]) == 0
    others = record_file.load(CIFAR).weights
    save_state_dict(weights, {name: x.astype(np.float32) for name, x in others.items()})
    assert cli.main([*check, f"--weights={weights}"]) == 2
    assert "has the sha256" in capsys.readouterr().err


@pytest.mark.slow
def test_a_record_of_given_weights_and_image(pytorch, tmp_path, capsys):
    """A head of another width, a photograph, everything in one file; the same each time."""
    from PIL import Image

    reference = verify.torch_reference("cifar_resnet20", num_classes=7)
    verify.randomise_norms(reference)
    save_state_dict(tmp_path / "w.safetensors", {key: x.numpy() for key, x in reference.state_dict().items()})
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    flags = [f"{tmp_path}/w.safetensors", "--sizes=16x16", "--image", f"{tmp_path}/x.png", f"{tmp_path}/x.png"]
    for name in ("a", "b"):
        assert cli.main(["verify", "cifar_resnet20", *flags, f"--record={tmp_path}/{name}.safetensors"]) == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded = record_file.load(tmp_path / "a.safetensors")
    assert loaded.fields == {"num_classes": 7}
    # 40x60 becomes 16x24, of which the middle 16 columns are shown, in units of ImageNet's deviation.
    small = np.asarray(Image.fromarray(noise).resize((24, 16), Image.Resampling.BILINEAR))[:, 4:20]
    shown = loaded.cases[0].images[1] * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]
    np.testing.assert_allclose(shown, small, atol=1e-4)
    report = recorded.check(tmp_path / "a.safetensors", dtypes=["float64", "float32"])
    assert report.passed, report.table()


def test_a_record_is_a_safetensors_file(pytorch, tmp_path):
    with pytest.raises(WeightFileError, match="give a name that ends so"):
        recorded.record(tmp_path / "x.pth", "cifar_resnet20")
