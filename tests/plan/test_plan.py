"""The plan: what the compiler says of a step, for devices attached or not, and what the command makes of it."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from paths import ROOT
from resnet_jax import cli, processes
from resnet_jax.plan import chips, hlo, needs
from resnet_jax.training import config_file, experiment

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")

TINY = """
def get_config(batch_norm="local"):
    from resnet_jax.configs import default

    config = default.get_config()
    config.batch_size = 128
    config.batch_norm_devices = 0 if batch_norm == "sync" else 1
    config.model.name = "cifar_resnet20"
    config.model.kwargs.dtype = "bfloat16"
    config.model.kwargs.update(stage_sizes=(1,), stage_features=(16,))
    config.data.name = "imagenet2012"
    config.data.image_size = 8
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    return config
"""
# Of the net above: the stem, one block of two 3x3 convolutions at width 16, 1000 classes; and its batch norms.
NUM_PARAMETERS = 3 * 3 * 3 * 16 + 2 * 3 * 3 * 16 * 16 + 3 * 2 * 16 + 16 * 1000 + 1000
NUM_NORMS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY)
    return str(path)


# What a program's text tells ----------------------------------------------------------------------------

PROGRAM = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (arg: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %arg = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %v = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %w = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} negate(%v)
  ROOT %out = (s32[], bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %w)
}

ENTRY %main (a: f32[100], b: bf16[8,128]) -> f32[100] {
  %a = f32[100]{0:T(128)} parameter(0)
  %b = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start.1 = (f32[100]{0:T(128)S(1)}, f32[100]{0:T(128)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[100]{0:T(128)S(1)} copy-done(%copy-start.1)
  %neg.remat2 = f32[100]{0:T(128)} negate(%copy-done.1)
  %all-reduce.1 = (f32[100]{0:T(128)}, /*index=1*/pred[3]{0:S(1)}) all-reduce(%neg.remat2), to_apply=%add
  %g = f32[100]{0:T(128)} get-tuple-element(%all-reduce.1), index=0
  %all-gather-start.1 = (f32[100]{0}, f32[400]{0}) all-gather-start(%g), dimensions={0}
  %all-gather-done.1 = f32[400]{0} all-gather-done(%all-gather-start.1)
  %t = (s32[], bf16[8,128]{1,0}) tuple(%a, %b)
  %loop = (s32[], bf16[8,128]{1,0}) while(%t), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %slice-start.1 = ((f32[100]{0:T(128)}), f32[60]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%g), slice={[0:60]}
  %slice-done.1 = f32[60]{0:T(128)S(1)} slice-done(%slice-start.1)
  %slice-start.2 = ((f32[100]{0:T(128)}), f32[40]{0:T(128)S(1)}, s32[]{:S(2)}) slice-start(%g), slice={[60:100]}
  %slice-done.2 = f32[40]{0:T(128)S(1)} slice-done(%slice-start.2)
  %p = f32[100]{0:T(128)S(1)} custom-call(%slice-done.1, %slice-done.2), custom_call_target="ConcatBitcast"
  ROOT %r = f32[100]{0:T(128)} add(%p, %a)
}
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
    assert hlo.collectives(PROGRAM) == {
        "all-reduce": hlo.Collective(1, 400 + 3),
        "all-gather": hlo.Collective(1, 1600),
    }


def test_bytes_are_told_apart_by_what_moves_them_and_where():
    negated, reduced, gathered, added = 400, 2 * 400, 400 + 400 + 1600, 2 * 400
    loop = 5 * 2 * 8 * 128  # each time around %v is read; %w stays in the chip
    copied = 400 + 240 + 160  # %a whole and %g in two pieces, whose join %p moves nothing
    assert hlo.traffic(PROGRAM) == hlo.Traffic(
        main_memory=copied + negated + reduced + gathered + added + loop,
        computing=2 * negated + reduced + 3 + gathered + added + 400 + 2 * loop,
        copying=2 * copied,
    )


def test_what_the_compiler_computes_twice_is_counted():
    assert hlo.recomputed(PROGRAM) == 1


# Any devices --------------------------------------------------------------------------------------------


def local(tiny, mode, batch_norm="local"):
    config = config_file.load(f"{tiny}:{batch_norm}", [f"--config.parallel={mode}"])
    return experiment.design(config, experiment.data_facts(config), devices=jax.devices()[:2])


@pytest.mark.slow
def test_both_ways_to_spread_a_step_are_analysed_alike_on_attached_devices(tiny):
    pmap, jit = (needs.analyse(local(tiny, mode)) for mode in ("pmap", "jit"))
    for analysis in (pmap, jit):
        assert analysis.num_parameters == NUM_PARAMETERS
        assert (analysis.num_devices, analysis.batch_per_device) == (2, 64)
        assert analysis.num_steps == 30 * (1_281_167 // 128)
        assert analysis.peak_bytes >= 8 * NUM_PARAMETERS  # parameters and momentum in float32
        assert set(analysis.collectives) == {"all-reduce"}
    assert pmap.flops == pytest.approx(jit.flops, rel=1e-3)


def test_the_abstract_batch_is_what_a_batch_becomes(tiny):
    for mode in ("pmap", "jit"):
        designed = local(tiny, mode)
        abstract = needs.abstract_batch(designed)
        real = designed.parallel.shard(
            {
                "image": np.zeros((128, 8, 8, 3), np.uint8),
                "label": np.zeros(128, np.int32),
                "mask": np.ones(128, np.float32),
            }
        )
        assert real.keys() == abstract.keys()
        for key, leaf in real.items():
            assert (leaf.shape, leaf.dtype) == (abstract[key].shape, abstract[key].dtype)
            assert leaf.sharding.is_equivalent_to(abstract[key].sharding, leaf.ndim)


def analysis_of(batch, **fields):
    numbers = dict.fromkeys(needs.Analysis.__dataclass_fields__, 1) | {"collectives": {}, "batch_per_device": batch}
    return needs.Analysis(**numbers | fields)


@pytest.mark.parametrize(("limit", "refused"), [(4400, 131072), (8, 16), (100, 1000), (1016, 1024)])
def test_the_largest_batch_that_fits_is_bracketed(limit, refused):
    tried = []

    def attempt(batch):
        tried.append(batch)
        return analysis_of(batch) if batch <= limit else needs.DoesNotFit("no")

    best, above = needs.largest_batch(attempt, refused)
    assert best.batch_per_device <= limit < above
    assert best.batch_per_device % 8 == 0
    assert above - best.batch_per_device <= max(8, best.batch_per_device / 8)
    assert len(tried) == len(set(tried))


def test_no_batch_may_fit():
    assert needs.largest_batch(lambda batch: needs.DoesNotFit("no"), 64) == (None, 8)


def test_the_roofline_is_the_slower_of_memory_and_arithmetic():
    chip = chips.Chip(memory=1.0, flops=100.0, bandwidth=10.0)
    found = needs.roofline(analysis_of(30, flops=200, memory_bytes=30), chip)
    assert found == needs.Roofline(seconds=3.0, bound="memory", images_per_second=10.0)
    assert needs.roofline(analysis_of(30, flops=600, memory_bytes=30), chip).bound == "compute"


# The command, without libtpu ----------------------------------------------------------------------------


def refused(capsys, *arguments):
    """The one line that the command gives instead of a plan."""
    assert cli.main(["plan", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("resnet-jax:") == 1
    return shown.err


def test_without_libtpu_the_extra_is_named(tiny, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    assert 'pip install "resnet-linen[tpu]"' in refused(capsys, f"--config={tiny}", "--topology=v5e:2x2")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.batch_sise=64"], "--config.batch_sise: the config has no such key: did you mean batch_size?"),
        (["--config.batch_size=many"], "invalid literal for int"),
        (["--topolgy=v5e:4x4"], "unknown arguments ['--topolgy=v5e:4x4']"),
        (["v5e:4x4"], r"unknown arguments ['v5e:4x4']"),
        (["--config.data.name=folder", "--config.data.path=/none"], "how many images and classes has 'folder'?"),
        (["--config.data.name=imagenet"], "data set 'imagenet' is not known"),
        (["--remat=block", "--compare-remat"], "leave one of the two out"),
    ],
)
def test_unusable_input_is_one_message(flags, message, tiny, capsys):
    assert message in refused(capsys, f"--config={tiny}", "--topology=v5e:2x2", *flags)


def test_a_config_that_is_not_there_is_named(capsys):
    assert "there is no file configs/none.py" in refused(capsys, "--config=configs/none.py", "--topology=v5e:2x2")


def test_the_dialect_of_flags_is_that_of_the_training_script(tiny):
    config = config_file.load(
        f"{tiny}:sync", ["--config.batch_size=64", "--noconfig.data.flip", "--config.model.kwargs.remat", "block"]
    )
    assert (config.batch_size, config.data.flip, config.model.kwargs.remat) == (64, False, "block")
    assert config.batch_norm_devices == 0


def crashing(monkeypatch, cause, modes):
    """The command on two CPUs, where nothing is compiled: the compiler crashes in `modes` and is content in others."""

    def call(function, *settled):
        if settled[-1] in modes:
            raise processes.Crashed(cause, "/tmp/trace.log")
        return analysis_of(64)

    monkeypatch.setattr(processes, "call", call)
    monkeypatch.setattr(chips, "slice_devices", lambda topology: jax.devices()[:2])


@pytest.mark.parametrize(
    ("cause", "advice"), [("SIGSEGV", "Plan another batch, or with another release"), ("SIGKILL", "where memory runs")]
)
def test_a_crash_of_the_compiler_is_one_message(cause, advice, tiny, capsys, monkeypatch):
    crashing(monkeypatch, cause, {"none"})
    assert cli.main(["plan", f"--config={tiny}", "--topology=v6e:2x2"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("resnet-jax: the compiler, libtpu")
    assert f"crashed ({cause}; its last words are in /tmp/trace.log). " in shown.err
    assert advice in shown.err
    assert shown.err.count("\n") == 1
    assert "fit" not in shown.out


def test_a_crash_in_one_memory_mode_leaves_the_others(tiny, capsys, monkeypatch):
    crashing(monkeypatch, "SIGSEGV", {"narrow"})
    flags = ["plan", f"--config={tiny}", "--topology=v6e:2x2", "--compare-remat"]
    assert cli.main(flags) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[-4:])
    assert rows["narrow"] == "crashes the compiler"
    assert rows.keys() == {"none", "block", "narrow", "conv"}
    assert "1.00x" in rows["block"]
    assert cli.main([*flags, "--json"]) == 0
    modes = json.loads(capsys.readouterr().out)["modes"]
    assert {mode: outcome["fits"] for mode, outcome in modes.items()} == {
        "none": True,
        "block": True,
        "narrow": None,
        "conv": True,
    }


def test_verbs_without_a_config_refuse_its_flags(capsys):
    with pytest.raises(SystemExit):
        cli.main(["list", "--config.batch_size=64"])
    assert "unrecognized arguments: --config.batch_size=64" in capsys.readouterr().err


def test_what_does_not_fit_is_exit_code_1(tiny, capsys, monkeypatch):
    def call(function, *settled):
        raise needs.DoesNotFit("Ran out of memory")

    monkeypatch.setattr(processes, "call", call)
    monkeypatch.setattr(chips, "slice_devices", lambda topology: jax.devices()[:2])
    assert cli.main(["plan", f"--config={tiny}", "--topology=v6e:2x2"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit: Ran out of memory" in shown
    assert "no batch fits" in shown


def test_cores_that_share_a_chip_have_a_share_of_it_each():
    """A v3 chip: 30.96 GiB, 123 TFLOP/s and 900 GB/s for two cores."""

    def device(kind, number, coords):
        return types.SimpleNamespace(device_kind=kind, id=number, coords=coords, slice_index=0)

    cores = [device("TPU v3", number, (number // 2, 0, 0)) for number in range(4)]
    assert chips.count_chips(cores) == 2
    assert dataclasses.astuple(chips.device_share(cores)) == pytest.approx((15.48 * 2**30, 61.5e12, 450e9))
    assert chips.device_share([device("TPU v6 lite", 0, (0, 0, 0))]) == chips.CHIPS["TPU v6 lite"]
    assert chips.device_share(jax.devices()) is None


# The command, with it: in a process of its own, for libtpu stays loaded ------------------------------------------

RUNS = {
    "v5e": ["--topology=v5e:2x2", "--config.parallel=pmap"],
    "v6e": ["--topology=v6e:2x4", "--config.parallel=jit", "--batch-per-chip=8"],
    # Refused in seconds, before anything is scheduled.
    "large": ["--topology=v5e:2x2", "--batch-per-chip=131072", "--config.data.image_size=224"],
    "unknown": ["--topology=v5litepod-4"],
}
OTHER_RUNS = {
    "v4": ["--topology=v4:2x2x1", "--config.parallel=pmap"],
    "v5p": ["--topology=v5p:2x2x1", "--config.parallel=jit"],
    "sync": ["--topology=v5e:2x2", "--config.parallel=pmap", "--config.batch_norm_devices=0"],
}
# Only the first compilation of "large" is the compiler's own, shown twice: the search for what fits is a dozen. The
# first of all is made where the command makes it, in a process that may crash; the others without one.
WORKER = """
import contextlib, dataclasses, io, json, sys
from resnet_jax import cli, processes
from resnet_jax.plan import subject
from resnet_jax.plan import needs

config, runs = sys.argv[1], json.loads(sys.argv[2])
attempt, known, refused = subject.Subject.attempt, [], []

def quick(subject, *, batch=None, remat=None):
    batch = batch or subject.batch
    if batch == 131072 and not remat:
        refused[:] = refused or [attempt(subject)]
        return refused[0]
    if batch > 4400 * (31 if remat == "block" else 1):
        return needs.DoesNotFit("too large")
    return dataclasses.replace(known[0], batch_per_device=batch)

def remember(subject):
    known.append(attempt(subject))
    processes.call = lambda function, *arguments: function(*arguments)
    return known[-1]

def run(name, arguments):
    subject.Subject.attempt = quick if name.startswith("large") else remember
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["plan", "--config=" + config, *arguments])
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

print(json.dumps({name: run(name, arguments) for name, arguments in runs.items()}))
"""


def planned(tiny, wanted):
    """What the command says of each run."""
    bare = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, tiny, json.dumps(wanted)], cwd=ROOT, env=bare, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def as_json(runs):
    return {name: [*arguments, "--json"] for name, arguments in runs.items()}


@pytest.fixture(scope="module")
def runs(tiny):
    return planned(tiny, as_json(RUNS) | {"large, shown": RUNS["large"]})


@pytest.fixture(scope="module")
def other_runs(tiny):
    return planned(tiny, as_json(OTHER_RUNS))


def result(runs, name):
    return json.loads(runs[name]["out"])


@pytest.fixture
def made(request, name):
    """The runs that `name` is of."""
    return request.getfixturevalue("runs" if name in RUNS else "other_runs")


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("name", "devices", "num_chips", "hosts", "gib"),
    [
        ("v5e", 4, 4, 1, 15.75),
        ("v6e", 8, 8, 2, 31.25),
        pytest.param("v4", 8, 4, 1, 15.25, marks=pytest.mark.soak),
        pytest.param("v5p", 4, 4, 1, 95.74, marks=pytest.mark.soak),
    ],
)
def test_a_step_is_compiled_for_each_kind_of_slice(name, devices, num_chips, hosts, gib, made):
    found = result(made, name)
    assert made[name]["code"] == 0
    assert found["fits"]
    assert (found["devices"], found["chips"], found["hosts"]) == (devices, num_chips, hosts)
    assert found["memory_per_device"] == pytest.approx(gib * 2**30)
    step = found["modes"]["none"]
    assert step["num_parameters"] == NUM_PARAMETERS
    assert step["batch_per_device"] == found["batch_per_device"] == (8 if name == "v6e" else 128 // devices)
    assert 8 * NUM_PARAMETERS < step["argument_bytes"] <= step["peak_bytes"] < found["memory_per_device"]
    # The stem and the block, forward, are 0.32e6 multiply-adds an image; a step is between two and three times that.
    forward = 2 * (8 * 8 * 9 * 3 * 16 + 2 * 8 * 8 * 9 * 16 * 16)
    assert 2 < step["flops"] / step["batch_per_device"] / forward < 3.5
    assert step["roofline"]["images_per_second"] > 0


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    "name", ["v5e", "v6e", pytest.param("v4", marks=pytest.mark.soak), pytest.param("v5p", marks=pytest.mark.soak)]
)
def test_with_batch_norm_per_device_only_the_gradients_are_exchanged(name, made):
    collectives = result(made, name)["modes"]["none"]["collectives"]
    # One, of all gradients, running statistics (mean and variance of each norm's 16 channels) and metrics.
    assert collectives.keys() == {"all-reduce"}
    assert collectives["all-reduce"]["count"] == 1
    payload = 4 * (NUM_PARAMETERS + NUM_NORMS * 2 * 16)
    assert payload < collectives["all-reduce"]["bytes"] <= payload + 4 * 8


@pytest.mark.slow
@pytest.mark.soak
@needs_libtpu
def test_synchronised_batch_norm_exchanges_twice_more_for_each_norm(other_runs):
    collectives = result(other_runs, "sync")["modes"]["none"]["collectives"]
    # The sums of forward and of backward, and the one of the gradients.
    assert collectives.keys() == {"all-reduce"}
    assert collectives["all-reduce"]["count"] == 2 * NUM_NORMS + 1


@pytest.mark.slow
@needs_libtpu
def test_a_batch_that_does_not_fit_is_refused_with_what_would(runs):
    found = result(runs, "large")
    assert runs["large"]["code"] == 1
    assert not found["fits"]
    assert "Ran out of memory" in found["modes"]["none"]["message"]
    assert found["largest"]["batch_per_device"] == 4096
    assert [mode for mode, outcome in found["modes"].items() if outcome["fits"]] == ["block"]
    shown = runs["large, shown"]["out"]
    assert "does not fit: Ran out of memory on HBM" in shown
    assert "largest batch that fits: --batch-per-chip=4096" in shown
    assert shown.count("\n") < 12


@pytest.mark.slow
@needs_libtpu
def test_an_unknown_slice_is_refused_with_the_known_forms(runs):
    assert runs["unknown"]["code"] == 2
    assert "no TPU slice is called 'v5litepod-4'" in runs["unknown"]["err"]
    assert "v5e:16x16" in runs["unknown"]["err"]
