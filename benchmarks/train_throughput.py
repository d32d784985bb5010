"""Images a second of a training step: this library beside PyTorch, the same net and batch, in turn in one process.

python benchmarks/train_throughput.py --model=cifar_resnet20 --batch-size=128 --rounds=7

Each round times a few steps of each; medians and the median of the rounds' ratios are printed. Only the ratio means
anything on a machine that others share.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

import resnet_jax
from resnet_jax import compiler
from resnet_jax.proof import verify
from resnet_jax.step.optimizer import create_optimizer
from resnet_jax.step.parallel import AXIS, parallelize
from resnet_jax.step.step import create_train_state, eval_step, train_step

RECIPE = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def jax_stepper(name: str, batch: dict[str, np.ndarray], num_classes: int):
    """A function that makes `n` training steps."""
    numbers = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "axis_name": AXIS}
    step, evaluate = functools.partial(train_step, **numbers), functools.partial(eval_step, **numbers)
    parallel = parallelize(step, evaluate, devices=jax.devices()[:1])
    model = resnet_jax.create_model(name, num_classes=num_classes)
    tx = create_optimizer(0.01, **RECIPE)

    def create():
        images = jnp.zeros((1, *batch["image"].shape[1:]))
        return create_train_state(model, model.init(jax.random.key(0), images, train=False), tx)

    state = jax.jit(create, out_shardings=parallel.state_sharding)()

    def steps(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, sums = parallel.train_step(state, parallel.shard(batch))
        jax.block_until_ready((state.params, sums))

    return steps


def torch_stepper(name: str, batch: dict[str, np.ndarray], num_classes: int):
    """The same in PyTorch: uint8 images are normalised in the step, gradients cleared, SGD."""
    model = verify.torch_reference(name, num_classes=num_classes).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, **RECIPE)
    images = torch.from_numpy(batch["image"].transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(batch["label"]).long()

    def steps(n: int) -> None:
        for _ in range(n):
            loss = torch.nn.functional.cross_entropy(model((images.float() / 255 - 0.5) / 0.25), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def main() -> None:
    """Prints the table."""
    compiler.guard()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each in a round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rng, size, classes = np.random.default_rng(0), arguments.image_size, 10
    batch = {
        "image": rng.integers(0, 256, (arguments.batch_size, size, size, 3), np.uint8),
        "label": rng.integers(0, classes, arguments.batch_size).astype(np.int32),
        "mask": np.ones(arguments.batch_size, np.float32),
    }
    steppers = {"resnet_jax": jax_stepper, "PyTorch": torch_stepper}
    steppers = {name: make(arguments.model, batch, classes) for name, make in steppers.items()}
    rates: dict[str, list[float]] = {name: [] for name in steppers}
    for run in steppers.values():
        run(2)  # compiles, warms up
    for _ in range(arguments.rounds):
        for name, run in steppers.items():
            start = time.perf_counter()
            run(arguments.steps)
            rates[name].append(arguments.batch_size * arguments.steps / (time.perf_counter() - start))
    print(f"{arguments.model}, batch {arguments.batch_size}, {size}x{size}, {jax.devices()[0].device_kind}")
    print(f"jax {jax.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, values in rates.items():
        print(f"{name:<12}{statistics.median(values):>8.0f} images/s  ({min(values):.0f} to {max(values):.0f})")
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    print(f"ratio       {statistics.median(ratios):>8.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
