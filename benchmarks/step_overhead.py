"""What a training step costs beside its program: the loop of a run, with and without its input, and the program alone.

python benchmarks/step_overhead.py --config=configs/synthetic_resnet18.py --config.data.image_size=32

In turn in one process, on one batch that is there: the program alone; with the numbers of each step kept on the device
and fetched once a window, as the loop does; with them read step by step. Then with the input of the run. Milliseconds a
step, the median of the rounds; only the differences mean anything on a machine that others share.
"""

import argparse
import contextlib
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import jax

from resnet_jax import compiler
from resnet_jax.training import config_file, experiment
from resnet_jax.training.window import Window

WAYS = ("program alone", "fetched once", "read each step", "with its input")


def make(run: experiment.Run, way: str, state: Any, batches: Iterator[Any], steps: int) -> Any:
    """So many steps; returns the state after them."""
    window, before = Window(run.config.batch_size, 10**9, 0.5), None
    for step in range(1, steps + 1):
        batch = next(batches)
        state, sums = run.parallel.train_step(state, run.parallel.shard(batch) if way == WAYS[3] else batch)
        if run.parallel.blocking:
            jax.block_until_ready(sums)
        if before is not None and way == WAYS[2]:
            _ = {name: float(value) for name, value in before.items()}
        elif before is not None and way != WAYS[0]:
            jax.block_until_ready(before)
        if way in (WAYS[1], WAYS[3]):
            window.add(step, sums)
        before = sums
    window.read()
    return jax.block_until_ready(state)


def main() -> None:
    """Prints the table."""
    compiler.guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/synthetic_resnet18.py")
    parser.add_argument("--steps", type=int, default=50, help="of a round: a window of the log")
    parser.add_argument("--rounds", type=int, default=7)
    arguments, overrides = parser.parse_known_args()
    run = experiment.build(config_file.load(arguments.config, overrides))
    state, found = run.create_state(), {way: list[float]() for way in WAYS}
    with contextlib.closing(experiment.train_batches(run, 0)) as batches:
        there = itertools.repeat(run.parallel.shard(next(batches)))
        sources = {way: batches if way == WAYS[3] else there for way in WAYS}
        for number in range(arguments.rounds + 1):
            for way in WAYS:
                start = time.perf_counter()
                state = make(run, way, state, sources[way], arguments.steps)
                if number:  # the first compiles
                    found[way].append(1e3 * (time.perf_counter() - start) / arguments.steps)
    print(
        f"{run.config.model.name}, batch {run.config.batch_size}, {jax.device_count()} x {jax.devices()[0].device_kind}"
    )
    alone = statistics.median(found[WAYS[0]])
    for way, times in found.items():
        median = statistics.median(times)
        print(f"{way:<16}{median:>9.3f} ms  ({min(times):.3f} to {max(times):.3f}), {median - alone:+.3f}")


if __name__ == "__main__":
    main()
