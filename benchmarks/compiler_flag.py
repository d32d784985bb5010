"""What the flag of `resnet_jax.compiler` costs or brings: a training step and inference with it and without, in turn.

python benchmarks/compiler_flag.py --rounds=7
python benchmarks/compiler_flag.py --rounds=3 --seconds=0.2 --cases=train:cifar_resnet20:8:32,infer:test_resnet:1:64

XLA reads its flags once a process, so there are two processes, one with the flag and one without, which compile once
and then take turns; a round times each for about `--seconds`. Medians over the rounds are printed, and the median of
the rounds' ratios with its range. Only the ratio means anything on a machine that others share.
"""

import argparse
import functools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

import resnet_jax
from resnet_jax import compiler
from resnet_jax.step.optimizer import create_optimizer
from resnet_jax.step.parallel import AXIS, parallelize
from resnet_jax.step.step import create_train_state, eval_step, train_step

# What is done : network : batch : pixels.
CASES = ("train:cifar_resnet20:128:32", "train:resnet18:16:224", "infer:resnet50:1:224", "infer:resnet50:16:224")


def train(name: str, batch_size: int, size: int) -> Callable[[], object]:
    """One training step, as `train.py` makes it on one device."""
    numbers = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "axis_name": AXIS}
    step, evaluate = functools.partial(train_step, **numbers), functools.partial(eval_step, **numbers)
    parallel = parallelize(step, evaluate, mode="pmap", devices=jax.devices()[:1])
    model = resnet_jax.create_model(name)
    tx = create_optimizer(0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def create():
        return create_train_state(model, model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)), train=False), tx)

    state = jax.jit(create, out_shardings=parallel.state_sharding)()
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, model.num_classes, batch_size).astype(np.int32),
        "mask": np.ones(batch_size, np.float32),
    }

    def run() -> object:
        nonlocal state
        state, sums = parallel.train_step(state, parallel.shard(batch))
        return state.params, sums

    return run


def infer(name: str, batch_size: int, size: int) -> Callable[[], object]:
    """Logits of one batch, as somebody compiles them who has loaded a network."""
    model = resnet_jax.create_model(name, train=False)
    images = np.random.default_rng(0).standard_normal((batch_size, size, size, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images[:1])
    return functools.partial(jax.jit(model.apply), variables, images)


def take_turns(case: str, seconds: float, guarded: bool) -> None:
    """A process of one side: compiles, and at each line that it reads times a turn and prints seconds for one call."""
    if guarded:
        compiler.guard()
    kind, name, batch_size, size = case.split(":")
    run = {"train": train, "infer": infer}[kind](name, int(batch_size), int(size))

    def timed(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(run())
        return (time.perf_counter() - start) / calls

    timed(2)  # compiles, warms up
    calls = max(1, round(seconds / timed(1)))
    for _ in sys.stdin:
        print(timed(calls), flush=True)


def start(case: str, seconds: float, guarded: bool) -> subprocess.Popen:
    command = [sys.executable, __file__, f"--cases={case}", f"--seconds={seconds}", f"--side={int(guarded)}"]
    others = [word for word in os.environ.get("XLA_FLAGS", "").split() if compiler.FLAG not in word]
    return subprocess.Popen(
        command,
        env=os.environ | {"XLA_FLAGS": " ".join(others)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def turn(side: subprocess.Popen) -> float:
    side.stdin.write("\n")
    return float(side.stdout.readline())


def compare(case: str, rounds: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds for one call without the flag and with it, in each round."""
    sides = [start(case, seconds, guarded) for guarded in (False, True)]
    try:
        for side in sides:
            turn(side)  # waits until it has compiled, so that no round is timed beside the other's compiler
        return [(turn(sides[0]), turn(sides[1])) for _ in range(rounds)]
    finally:
        for side in sides:
            side.communicate()  # ends it, as it reads the end of its input


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="train or infer:network:batch:pixels, with commas")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn, about")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        take_turns(arguments.cases, arguments.seconds, bool(arguments.side))
        return
    print(f"jaxlib {jaxlib.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {arguments.rounds} rounds")
    print(f"{'':<30}{'without':>11}{'with':>11}  with / without")
    for case in arguments.cases.split(","):
        found = compare(case, arguments.rounds, arguments.seconds)
        without, guarded = (statistics.median(column) * 1e3 for column in zip(*found, strict=True))
        ratios = [second / first for first, second in found]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{case:<30}{without:>8.1f} ms{guarded:>8.1f} ms  {spread}", flush=True)


if __name__ == "__main__":
    main()
