"""TPUs: what a chip can do, and the devices of a slice that is not attached."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

GIB = 2**30
FORMS = (
    "GENERATION:AxB (v2, v3, v5e, v6e) or GENERATION:AxBxC (v4, v5p, tpu7x) in whole hosts of 2x2 chips, as in "
    "v5e:2x2, v5e:16x16, v6e:2x4, v4:2x2x1, v5p:4x4x4, tpu7x:2x2x1, or one chip: v5e:1x1, v5p:1x1x1"
)
# libtpu looks for the machine that it runs on, and allows itself to one process at a time. Neither is wanted where
# it only compiles. Values that are set already, as on a TPU VM, stay.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, or the share of it that one device is.

    Attributes:
      memory: bytes of HBM that the compiler lets a program have.
      flops: peak bfloat16 operations per second.
      bandwidth: bytes per second to and from HBM.
    """

    memory: float
    flops: float
    bandwidth: float


# Device kind -> the chip. FLOP/s and bandwidth are those of the pages "v3", "v4", "v5e" and "tpu7x" (for v5p, v6e and
# itself) under cloud.google.com/tpu/docs, read in November 2026. Memory is what libtpu 0.0.42 names as available in
# its out-of-memory messages, times the devices on a chip; the pages state the chip's whole HBM (16 GB for v5e).
CHIPS = {
    "TPU v3": Chip(2 * 15.48 * GIB, 123e12, 900e9),
    "TPU v4": Chip(2 * 15.25 * GIB, 275e12, 1200e9),
    "TPU v5 lite": Chip(15.75 * GIB, 197e12, 819e9),
    "TPU v5": Chip(95.74 * GIB, 459e12, 2765e9),
    "TPU v6 lite": Chip(31.25 * GIB, 918e12, 1638e9),
    "TPU7x": Chip(2 * 94.75 * GIB, 2307e12, 7380e9),
}


def device_share(devices: Sequence[jax.Device]) -> Chip | None:
    """What one of `devices` has; None for a kind that is not in the table. Cores that share a chip share its parts."""
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        return None
    sharing = len(devices) / count_chips(devices)
    return Chip(*(value / sharing for value in dataclasses.astuple(chip)))


def count_chips(devices: Sequence[jax.Device]) -> int:
    """Chips under `devices`: on some TPUs each of the two cores of a chip is a device."""
    return len({(getattr(d, "slice_index", None), tuple(d.coords)) if hasattr(d, "coords") else d.id for d in devices})


def slice_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice that is not attached, such as "v5e:16x16": programs compile for them but do not run.

    To be called before JAX starts; it then keeps JAX on the CPU, and its compilation cache off, which cannot read
    back a program for such devices.

    Raises:
      ImportError: there is no libtpu.
      ValueError: libtpu knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise ImportError('compiling for a TPU needs libtpu: pip install "resnet-linen[tpu]". No TPU is needed.')
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # else the answer of an earlier compilation stands
    sizes = topology.partition(":")[2].split("x")
    # The default is hosts of 2x2 chips, of which one chip would be a fraction.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if set(sizes) == {"1"} else {}
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"no TPU slice is called {topology!r}: give {FORMS}. libtpu says: {error}") from error
