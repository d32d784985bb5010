"""Set before JAX starts: CPU only, four virtual devices, a kept compilation cache, and strictness."""

import os

from paths import ROOT

SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "NPROC": "8",  # XLA's thread pool: with fewer threads than devices a collective can wait for ever
    "OMP_NUM_THREADS": "1",  # PyTorch's: tests run side by side, and small nets only lose by more
    # Programs are small and many, so that compiling is most of the work: quick to compile, slow to run. What is to be
    # compiled as users have it asks for the fixture `optimised`: the proof, and whatever compilers have got wrong.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    # One process, or one run of the tests, takes over what another has compiled, however small.
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
os.environ.update(SETTINGS)

from collections.abc import Iterator  # noqa: E402 - after the settings, which JAX reads when it is imported

import jax  # noqa: E402 - likewise
import pytest  # noqa: E402 - likewise

from resnet_jax import compiler  # noqa: E402 - likewise

compiler.guard()  # of this process and those that tests start


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """Compiles as users do, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()  # what was compiled otherwise
        yield
    jax.config.update("jax_disable_most_optimizations", True)


_PICTURES: list[bytes] = []


@pytest.fixture(scope="module")
def drawn_once() -> Iterator[None]:
    """All runs leave the curves of the first: to draw them takes longer than to train a net of one block."""
    from resnet_jax.runs import plots

    draw = plots.draw_png

    def draw_first(runs: object) -> bytes:
        if not _PICTURES:
            _PICTURES.append(draw(runs))
        return _PICTURES[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_png", draw_first)
        yield


# Of the keys that decide numbers, those that a step knows nothing of.
NOT_OF_A_STEP = {"data.on_error", "data.max_unreadable", "data.fingerprint"}


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Runs whose steps are the same have those of the first, traced and compiled, and its random variables."""
    from resnet_jax.runs import workdirs
    from resnet_jax.training import experiment

    build, first = experiment.build, {}

    def build_with_programs_of_the_first(config: object) -> experiment.Run:
        run = build(config)
        left_out = workdirs.FREE_KEYS - {"parallel"} | NOT_OF_A_STEP
        decides = {key: value for key, value in workdirs.shared_keys(run.config).items() if key not in left_out}
        replaced = experiment.train_step, experiment.eval_step  # by a test, perhaps
        alike = repr(decides), jax.device_count(), jax.config.jax_enable_x64, *replaced
        if alike not in first:
            first[alike] = {key: getattr(run, key) for key in ("model", "schedule", "tx", "parallel", "_create")}
        for key, value in first[alike].items():
            object.__setattr__(run, key, value)
        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build", build_with_programs_of_the_first)
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of `pytest -m parity`: a line for each comparison with PyTorch that was made."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = [value for report in reports for key, value in report.user_properties if key == "parity"]
    if rows:
        terminalreporter.section("parity with PyTorch, float64")
        header = f"{'network':<33}{'parameters':>12}  {'size':<9}{'worst stage':<12}{'max |diff|':>11}"
        terminalreporter.write_line(header)
        for row in sorted(rows):
            terminalreporter.write_line(row)
