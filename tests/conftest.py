"""Set before JAX starts: CPU only, four virtual devices, a kept compilation cache, and strictness."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "4",
    "NPROC": "8",  # XLA's thread pool: with fewer threads than devices a collective can wait for ever
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla"),
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
os.environ.update(SETTINGS)

import contextlib  # noqa: E402 - see the docstring
from collections.abc import Callable, Iterator  # noqa: E402

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., contextlib.AbstractContextManager[None]]:
    """`with once(object, name, value):` replaces an attribute inside the block only."""

    @contextlib.contextmanager
    def replace(target: object, name: str, value: object) -> Iterator[None]:
        with monkeypatch.context() as context:
            context.setattr(target, name, value)
            yield

    return replace
