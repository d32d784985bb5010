"""A fault of XLA's CPU compiler that makes sums wrong, silently, and what is done about it.

XLA on CPUs hands some sums to YNNPACK, and in jaxlib 0.10.2 to 0.12.0 some of them come back wrong, in programs that
are right: docs/known-hazards.md has the table. One flag takes sums away from YNNPACK and leaves it convolutions. Two
ways lead to it:

- `guard` sets it for a whole process, pmap and single operations included. XLA reads its flags once, when JAX first
  uses a device, so this is for processes of which we have the beginning: commands, scripts, what they start, tests.
- `options` sets it for one `jax.jit`, at any time. It is for what people read from our own programs in a process that
  somebody else has begun. `jax.pmap` takes no such options, and neither do operations outside of a jit.

Who imports the library and compiles its networks in programs of his own is out of reach of both: `warn` tells him.
"""

import functools
import importlib.util
import mmap
import os
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

FLAG = "xla_cpu_experimental_ynn_fusion_type"
CURE = f"--{FLAG}=-reduce"
SUFFIXES = {".so", ".dylib", ".dll", ".pyd"}

Program: TypeAlias = tuple[Callable[[jax.Array], jax.Array], np.ndarray, np.ndarray]


def guard() -> None:
    """Adds the flag to `XLA_FLAGS`, for this process and those that it starts; to be called before JAX uses a device.

    Nothing is added where the user has chosen a value of the flag himself, or where not every XLA that is installed has
    it. The user's other flags stay. Nor is it added too late: the flags are part of the key of JAX's compilation cache,
    and what a process compiles without the flag would be handed to others as if it had been compiled with it.

    Raises:
      OSError: `XLA_FLAGS` names a file, as XLA allows, that cannot be read.
    """
    if _has_begun():
        return
    given = _given()
    if FLAG not in given and _known():
        os.environ["XLA_FLAGS"] = f"{CURE} {given}".strip()  # in front: XLA reads up to the first word that is no flag


def options(platform: str | None = None) -> dict[str, str]:
    """`compiler_options` of a `jax.jit` whose numbers people read; empty where nothing has to be mended.

    A jit refuses "-reduce" and takes a whole list, here convolutions alone. Whether it is needed is found by trying, as
    a flag that came too late stands in `XLA_FLAGS` all the same.

    Args:
      platform: of the devices that the program is for; by default that of JAX's default device.
    """
    return {FLAG: "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"} if platform in (None, "cpu") and broken() else {}


def broken() -> tuple[str, ...]:
    """Which of `CANARIES` come out wrong; none are tried, and so none are wrong, where the default device is no CPU."""
    device = jax.config.jax_default_device or jax.default_backend()  # type: ignore[attr-defined]  # JAX does not declare it
    return _wrong() if getattr(device, "platform", device) == "cpu" else ()  # it may be a platform's name


def warn() -> None:
    """Warns, once a process, if sums come out wrong in it; to be called by what a user calls.

    It is a Python warning, which a notebook shows whatever the logging is set to.
    """
    if names := broken():
        _warn(names)


def describe() -> dict[str, Any]:
    """For a record of numbers: the flag's value in `XLA_FLAGS`, None without one, and which canaries are wrong."""
    values = [word.partition("=")[2] for word in _given().split() if FLAG in word]
    return {"flag": FLAG, "value": values[-1] if values else None, "wrong": list(broken())}


def _has_begun() -> bool:
    """Whether JAX has used a device in this process, and so has read its flags."""
    bridge = sys.modules.get("jax._src.xla_bridge")  # JAX offers no other way to ask without making it so
    return bridge is not None and bool(bridge.backends_are_initialized())


def _given() -> str:
    """The user's flags: the text of `XLA_FLAGS`, or of the file that it names."""
    text = os.environ.get("XLA_FLAGS", "")
    return text if text.lstrip()[:1] in ("", "-") else pathlib.Path(text).read_text()


@functools.cache
def _known() -> bool:
    """Whether every XLA of this environment has the flag: each ends the process over one that it does not know.

    A look into the libraries is right about versions to come, and takes a sixth of a second where libtpu is. The flag
    is a C string there; a field of that name in a protocol buffer, which does not make it a flag, ends without a zero.
    """
    return all(any(map(_has_flag, libraries)) for libraries in _libraries())


def _libraries() -> list[list[pathlib.Path]]:
    """For each XLA the files of its package, in one of which it is: jaxlib's, and those of TPUs and GPUs."""
    tpu = os.environ.get("TPU_LIBRARY_PATH")  # which JAX itself sets to the installed one
    homes = [*_homes("jaxlib"), *([pathlib.Path(tpu)] if tpu else _homes("libtpu"))]
    homes += [folder for home in _homes("jax_plugins") for folder in home.iterdir()]
    found = [[home] if home.is_file() else list(home.rglob("*")) for home in homes]
    found = [[path for path in files if path.suffix in SUFFIXES and path.stat().st_size] for files in found]
    return [libraries for libraries in found if libraries]


def _homes(package: str) -> list[pathlib.Path]:
    spec = importlib.util.find_spec(package)
    return [pathlib.Path(path) for path in spec.submodule_search_locations or ()] if spec else []


def _has_flag(library: pathlib.Path) -> bool:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(FLAG.encode() + b"\0") >= 0


# The canaries -------------------------------------------------------------------------------------------
# Programs that are right, and that XLA is known to get wrong: the function, its argument, and the truth.


def _rows_of_sums() -> Program:
    """Squared norms of 32,769 rows; row i is (i, 0, 0). The last comes out as if it were shorter."""
    x = np.zeros((32_769, 3), np.float32)
    x[:, 0] = np.arange(len(x))
    return jax.vmap(lambda row: jnp.sum(jnp.square(jnp.eye(3, dtype=row.dtype) @ row))), x, x[:, 0].astype(float) ** 2


def _sums_of_products() -> Program:
    """Sums over the last axis of a product with a matrix product."""
    x = np.random.default_rng(0).standard_normal((5, 60, 60)).astype(np.float32)
    truth = np.sum((x.astype(float) @ np.full(x.shape, 0.5)) * x, -1)
    return lambda x: jnp.sum((x @ jnp.full_like(x, 0.5)) * x, -1), x, truth


def _nan_through_relu() -> Program:
    """The mean of what is not a number is not a number, and comes out as 0."""
    x = np.full((2, 7, 7, 512), np.nan, np.float32)
    return lambda x: jnp.maximum(x, 0).mean((1, 2)), x, x[:, 0, 0]


def _windows_over_the_edge() -> Program:
    """A 2x2 mean over one real pixel, padding not counted, is that pixel."""
    x = np.random.default_rng(0).standard_normal((64, 1, 1, 128)).astype(np.float32)
    window: dict[str, Any] = {"strides": (2, 2), "padding": ((0, 1), (0, 1)), "count_include_pad": False}
    return functools.partial(nn.avg_pool, window_shape=(2, 2), **window), x, x


CANARIES: dict[str, Callable[[], Program]] = {
    "rows of sums": _rows_of_sums,
    "sums of products": _sums_of_products,
    "a mean of NaN": _nan_through_relu,
    "windows over the edge": _windows_over_the_edge,
}


@functools.cache
def _wrong() -> tuple[str, ...]:
    # Whatever the user has set for his own programs: a NaN is meant here, and products are exact.
    with (
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.default_matmul_precision("highest"),
        jax.transfer_guard("allow"),
    ):
        return tuple(name for name in CANARIES if not is_right(name))


def is_right(name: str, compiler_options: dict[str, str] | None = None) -> bool:
    """Compiles and runs a canary; what goes wrong is off by 2 in a thousand or more, rounding by a millionth."""
    function, x, truth = CANARIES[name]()
    # A number that was never there makes it a program that no compilation cache has, from whatever process.
    new = np.frombuffer(os.urandom(8), np.uint32)
    program = jax.jit(lambda x: (function(x), jnp.asarray(new)), compiler_options=compiler_options)
    found = jax.device_get(program(jax.device_put(x))[0])
    return np.allclose(found, truth, rtol=1e-4, atol=1e-4, equal_nan=True)


@functools.cache  # so, once
def _warn(names: tuple[str, ...]) -> None:
    warnings.warn(
        f"XLA's CPU compiler (jaxlib {jaxlib.__version__}) makes sums wrong here (tried: {', '.join(names)}) "
        "and gives no sign of it: programs that you compile here may give wrong numbers. Before Python starts, type\n"
        f'    export XLA_FLAGS="$XLA_FLAGS {CURE}"\n'
        "or, in Python before JAX uses a device: import resnet_jax.compiler; resnet_jax.compiler.guard()",
        RuntimeWarning,
        stacklevel=4,  # the caller of what called `warn`
    )
