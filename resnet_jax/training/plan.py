"""What a train step will need, from the compiler: memory, work and communication, on devices attached or not."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np

from resnet_jax.training.chips import Chip
from resnet_jax.training.experiment import Experiment

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
)  # fmt: skip
# `%x = (f32[64]{0}, /*index=1*/f32[]) all-reduce(...)`. What is asynchronous counts where it is done, with its result.
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(COLLECTIVES)})(?:-done)?\(", re.MULTILINE)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Collective:
    """How often one kind of collective occurs in a program, and the bytes of its results on one device."""

    count: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One train step as compiled. Work, bytes and memory are those of one device.

    Attributes:
      num_devices: that the step is compiled for.
      batch_per_device: images.
      num_parameters: of the network.
      num_steps: of the whole run.
      flops: operations; those that rematerialisation repeats are counted again.
      bytes_accessed: read and written by all operations, as the compiler estimates it.
      peak_bytes: highest use of the device's memory, arguments included.
      argument_bytes: the state, whose buffers the new one takes over, and the batch.
      temp_bytes: intermediate results.
      code_bytes: the program; 0 where the backend does not say.
      collectives: kind -> how many, how large.
      compile_seconds: for tracing and compiling.
    """

    num_devices: int
    batch_per_device: int
    num_parameters: int
    num_steps: int
    flops: float
    bytes_accessed: float
    peak_bytes: int
    argument_bytes: int
    temp_bytes: int
    code_bytes: int
    collectives: dict[str, Collective]
    compile_seconds: float


class DoesNotFit(Exception):
    """The step needs more memory than the device has: `needed` and `available` bytes, where the compiler says so."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        sizes = [_size(*found) for found in re.findall(r"\b(\d+(?:\.\d+)?)([KMGT]?)\b(?=\)| of | hbm)", message)]
        self.needed, self.available = sizes[:2] if len(sizes) > 1 else (None, None)


def analyse(experiment: Experiment) -> Analysis:
    """Compiles the train step of `experiment` for its devices, from shapes alone: no state and no batch is made.

    Raises:
      DoesNotFit: the compiler knows already that the step does not fit. (Not every backend knows it.)
    """
    state = abstract_state(experiment)
    start = time.perf_counter()
    try:
        compiled = experiment.parallel.train_step.lower(state, abstract_batch(experiment)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(str(error)) from error
    seconds = time.perf_counter() - start
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    num_devices = experiment.parallel.state_sharding.mesh.size
    return Analysis(
        num_devices=num_devices,
        batch_per_device=experiment.config.batch_size // num_devices,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        num_steps=experiment.num_steps,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        peak_bytes=_peak(memory),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        collectives=count_collectives(compiled.as_text()),
        compile_seconds=seconds,
    )


def abstract_state(experiment: Experiment) -> Any:
    """The state as the step takes it: shapes, dtypes and where it lives."""
    sharding = experiment.parallel.state_sharding
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), experiment.abstract_state()
    )


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `data.pipeline` as the step takes it."""
    batch, size = experiment.config.batch_size, experiment.config.data.image_size
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, size, size, experiment.facts.channels), np.uint8),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch,), np.float32),
    }
    return experiment.parallel.abstract(shapes)


def _peak(memory: Any) -> int:
    # Not every backend follows the use over time; the sum of the parts is never less.
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.peak_memory_in_bytes or parts + memory.temp_size_in_bytes


def count_collectives(hlo: str) -> dict[str, Collective]:
    """Collectives in an optimised program's text. In a loop's body they count once, however often it runs."""
    found: dict[str, Collective] = {}
    for results, kind in _COLLECTIVE.findall(hlo):
        before = found.get(kind, Collective(0, 0))
        found[kind] = Collective(before.count + 1, before.bytes + _bytes(results))
    return found


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a step can take: each part of the chip at its peak, and all at once. No measurement."""

    seconds: float
    bound: str
    images_per_second: float


def roofline(analysis: Analysis, chip: Chip) -> Roofline:
    """Estimate for one device after Williams et al. 2009 (doi:10.1145/1498765.1498785); communication is left out."""
    times = {"memory": analysis.bytes_accessed / chip.bandwidth, "compute": analysis.flops / chip.flops}
    bound = max(times, key=times.__getitem__)
    return Roofline(times[bound], bound, analysis.batch_per_device / times[bound])


def _bytes(shapes: str) -> int:
    """Bytes of the arrays in an HLO type; `pred` takes one."""
    return sum(
        math.prod(map(int, sizes.split(","))) * max(int(bits or 8) // 8, 1) if sizes else max(int(bits or 8) // 8, 1)
        for _, bits, sizes in _ARRAY.findall(shapes)
    )


def _size(number: str, unit: str) -> float:
    return float(number) * _UNITS[unit]
