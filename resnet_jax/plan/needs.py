"""What a train step will need, from the compiler: memory, work and communication, on devices attached or not."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnet_jax.errors import Refusal
from resnet_jax.plan import hlo
from resnet_jax.plan.chips import GIB, Chip, device_share
from resnet_jax.training.experiment import Experiment, eval_batch_size


@dataclasses.dataclass(frozen=True)
class Analysis:
    """One train step as compiled. Work, bytes and memory are those of one device.

    Attributes:
      num_devices: that the step is compiled for.
      batch_per_device: images.
      image_size: pixels; the largest of the run, where the size rises.
      num_parameters: of the network.
      num_steps: of the whole run.
      flops: operations; those that rematerialisation repeats are counted again.
      bytes_accessed: read and written by all operations, in whatever memory, as the compiler counts it.
      memory_bytes: read from and written to the device's main memory alone.
      peak_bytes: highest use of the device's memory, arguments included.
      argument_bytes: the state, whose buffers the new one takes over, and the batch.
      temp_bytes: intermediate results.
      code_bytes: the program; 0 where the backend does not say.
      recomputed: instructions by which the compiler computes something again for lack of memory, unasked.
      collectives: kind -> how many, how large.
      eval_batch: images on a device in a batch of the evaluation.
      eval_bytes: of the device's memory in an evaluation, beside whose step the whole state stays there.
      compile_seconds: for tracing and compiling both steps.
    """

    num_devices: int
    batch_per_device: int
    image_size: int
    num_parameters: int
    num_steps: int
    flops: float
    bytes_accessed: float
    memory_bytes: int
    peak_bytes: int
    argument_bytes: int
    temp_bytes: int
    code_bytes: int
    recomputed: int
    collectives: dict[str, hlo.Collective]
    eval_batch: int
    eval_bytes: int
    compile_seconds: float


class DoesNotFit(Refusal):
    """The step needs more memory than the device has; the message is the compiler's."""


def analyse(experiment: Experiment) -> Analysis:
    """Compiles both steps of `experiment` for its devices, from shapes alone: no state and no batch is made.

    Raises:
      DoesNotFit: it is known already that one of them does not fit. (Not every backend's compiler knows it.)
    """
    state = abstract_state(experiment)
    start = time.perf_counter()
    compiled = _compile(experiment.parallel.train_step, state, abstract_batch(experiment))
    tested = abstract_eval_batch(experiment)
    evaluation = _compile(experiment.parallel.eval_step, state, tested).memory_analysis()
    seconds = time.perf_counter() - start
    cost, memory, text = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    mesh = experiment.parallel.state_sharding.mesh
    num_devices = mesh.size
    # Of the state a compiled evaluation may take only what it uses: the rest stays where it is.
    eval_bytes = (
        _size(state) + _size(tested) // num_devices + evaluation.temp_size_in_bytes + evaluation.output_size_in_bytes
    )
    chip, eval_batch = device_share(list(mesh.devices.flat)), eval_batch_size(experiment.config) // num_devices
    if chip and eval_bytes > chip.memory:
        raise DoesNotFit(
            f"the evaluation, {eval_batch} images a device at a time, needs {eval_bytes / GIB:.2f} GiB, with the state "
            f"beside it, of {chip.memory / GIB:.2f}: a smaller batch, or more config.accumulate_steps, lessen it."
        )
    return Analysis(
        num_devices=num_devices,
        batch_per_device=experiment.config.batch_size // num_devices,
        image_size=experiment.config.data.image_size,
        num_parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        num_steps=experiment.num_steps,
        flops=cost.get("flops", 0.0),
        bytes_accessed=cost.get("bytes accessed", 0.0),
        memory_bytes=hlo.traffic(text).main_memory,
        peak_bytes=_peak(memory),
        argument_bytes=memory.argument_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        recomputed=hlo.recomputed(text),
        collectives=hlo.collectives(text),
        eval_batch=eval_batch,
        eval_bytes=eval_bytes,
        compile_seconds=seconds,
    )


def _compile(step: Any, state: Any, batch: Any) -> Any:
    try:
        return step.lower(state, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_reason(str(error))) from error


def _size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def abstract_state(experiment: Experiment) -> Any:
    """The state as the step takes it: shapes, dtypes and where it lives."""
    sharding = experiment.parallel.state_sharding
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), experiment.abstract_state()
    )


def abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `data.pipeline` as the step takes it, of the largest images that the run trains with."""
    return _abstract(experiment, experiment.config.batch_size, experiment.config.data.image_size)


def abstract_eval_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the evaluation, likewise."""
    data = experiment.config.data
    return _abstract(experiment, eval_batch_size(experiment.config), data.eval_size or data.image_size)


def _abstract(experiment: Experiment, batch: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
        "image": jax.ShapeDtypeStruct((batch, size, size, experiment.facts.channels), np.uint8),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
        "mask": jax.ShapeDtypeStruct((batch,), np.float32),
    }
    return experiment.parallel.abstract(shapes)


def _reason(message: str) -> str:
    """The sentence that names the sizes; a code stands before it, and hundreds of lines on buffers can follow."""
    return message[max(message.find("Ran out of memory"), 0) :].partition("\n")[0]


def _peak(memory: Any) -> int:
    # Not every backend follows the use over time (a CPU's peak leaves the temporaries out); the sum is never less.
    parts = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    followed = memory.peak_memory_in_bytes > memory.temp_size_in_bytes
    return memory.peak_memory_in_bytes if followed else parts + memory.temp_size_in_bytes


def describe(analysis: Analysis) -> list[str]:
    """Lines for people, of a step on devices of unknown size."""
    exchange = [f"{found.count} {kind} of {found.bytes / 1e6:.4g} MB" for kind, found in analysis.collectives.items()]
    peak, arguments, temporaries = (
        f"{size / 2**20:,.1f} MiB" for size in (analysis.peak_bytes, analysis.argument_bytes, analysis.temp_bytes)
    )
    return [
        f"parameters   {analysis.num_parameters:,}",
        f"on each of {analysis.num_devices} devices, in each step of {analysis.batch_per_device} images there, "
        f"{analysis.image_size}x{analysis.image_size} pixels:",
        f"  memory     {peak}: arguments {arguments}, temporaries {temporaries}",
        f"  evaluation {analysis.eval_bytes / 2**20:,.1f} MiB, {analysis.eval_batch} images there at a time",
        f"  work       {analysis.flops / 1e12:.4g} TFLOP, {analysis.bytes_accessed / 1e9:.4g} GB read and written",
        f"  exchange   {', '.join(exchange) or 'none'}",
        f"compiled in {analysis.compile_seconds:.0f} s",
    ]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that a step can take: each part of the chip at its peak, and all at once. No measurement."""

    seconds: float
    bound: str
    images_per_second: float


def roofline(analysis: Analysis, chip: Chip) -> Roofline:
    """Estimate for one device after Williams et al. 2009 (doi:10.1145/1498765.1498785); communication is left out."""
    times = {"memory": analysis.memory_bytes / chip.bandwidth, "compute": analysis.flops / chip.flops}
    bound = max(times, key=times.__getitem__)
    return Roofline(times[bound], bound, analysis.batch_per_device / times[bound])


def largest_batch(
    attempt: Callable[[int], Analysis | DoesNotFit], refused: int, *, multiple: int = 8, tolerance: float = 1 / 8
) -> tuple[Analysis | None, int]:
    """Looks for the largest batch per device that fits, by compiling: halves until one does, then bisects.

    A line through the memory of small batches would name too small a one: where memory runs out, the compiler starts
    to compute results again, and fits more than twice as many images of a ResNet-50.

    Args:
      attempt: compiles with so many images per device.
      refused: a batch that does not fit.
      multiple: only multiples of this are tried.
      tolerance: stop where the smallest batch refused is larger than the largest that fits by this share or less.

    Returns:
      The analysis of the largest batch found to fit, None if there is none; and the smallest found not to fit.
    """
    best, fitting = None, 0
    while True:
        guess = (fitting + refused) // 2 // multiple * multiple
        if guess <= fitting or (best and refused - fitting <= tolerance * fitting):
            return best, refused
        outcome = attempt(guess)
        if isinstance(outcome, DoesNotFit):
            refused = guess
        else:
            best, fitting = outcome, guess
