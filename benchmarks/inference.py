"""Images a second of inference: batch norm folded and not, beside PyTorch eager and compiled, in turn in one process.

python benchmarks/inference.py --models=resnet50,cifar_resnet20 --batch-sizes=1,16 --rounds=7

All four have the same random weights, and their logits are compared before anything is timed. A round times each once;
medians over the rounds are printed, and the medians of the rounds' ratios to PyTorch eager. On a machine that others
load, pin it to one core (`taskset -c 1 python ...`): PyTorch's threads wait for one another, and a core that is taken
away from one of them stops them all, which made PyTorch up to 15 times slower.
"""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch

import resnet_jax
from resnet_jax import compiler
from resnet_jax.proof import verify

NETS = ("resnet50", "resnet50d", "seresnet50", "resnext50_32x4d", "cifar_resnet20")
BASE = "PyTorch eager"
# images -> logits, waiting for them
Run = Callable[[np.ndarray], np.ndarray]


def jax_run(model: resnet_jax.ResNet, variables: dict, device: jax.Device) -> Run:
    """One jitted call; the images are NHWC."""
    variables = jax.device_put(variables, device)
    apply = jax.jit(functools.partial(model.apply, train=False))
    return lambda images: np.asarray(apply(variables, jax.device_put(images, device)))


def torch_run(module: torch.nn.Module, device: str) -> Run:
    """One call of the module; the images are NHWC, as PyTorch has them in its channels-last format."""

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images).to(device).permute(0, 3, 1, 2)).cpu().numpy()

    return run


def contestants(name: str, images: np.ndarray) -> dict[str, Run]:
    """Each, warmed up on `images` and seen to give the same logits."""
    reference = verify.torch_reference(name)
    verify.randomise_norms(reference)
    model = resnet_jax.create_model(name, precision="highest")
    variables = resnet_jax.from_torch(model, reference.state_dict())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reference = reference.to(device, memory_format=torch.channels_last)
    runs = {
        "folded": jax_run(*resnet_jax.fold_batch_norm(model, variables), jax.devices()[0]),
        "unfolded": jax_run(model, variables, jax.devices()[0]),
        BASE: torch_run(reference, device),
        "torch.compile": torch_run(torch.compile(reference), device),
    }
    expected = runs[BASE](images)
    for who in list(runs):
        try:
            logits = runs[who](images)
        except Exception as error:  # of torch.compile alone: no compiler, or one that fails
            if who != "torch.compile":
                raise
            print(f"{who} is left out: {str(error).strip().splitlines()[0]}")
            del runs[who]
            continue
        difference = np.abs(logits - expected).max() / np.abs(expected).max()
        if difference > 1e-3:
            raise ValueError(f"{name}: {who} differs from {BASE} by {difference:.1e}: a time would mean nothing.")
    return runs


def rates(runs: dict[str, Run], images: np.ndarray, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each in every round; a turn is as many calls as take about `seconds`."""
    found: dict[str, list[float]] = {who: [] for who in runs}
    calls = {who: max(1, round(seconds / _time(run, images, 1))) for who, run in runs.items()}
    for _ in range(rounds):
        for who, run in runs.items():
            found[who].append(calls[who] * len(images) / _time(run, images, calls[who]))
    return found


def _time(run: Run, images: np.ndarray, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run(images)
    return time.perf_counter() - start


def main() -> None:
    """Prints a table for each net and batch size."""
    compiler.guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(NETS), help="names, with commas")
    parser.add_argument("--batch-sizes", default="1,16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn, about")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind} ({jax.devices()[0].platform}), {torch.get_num_threads()} PyTorch threads")
    versions = f"jax {jax.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(f"{versions}; {arguments.image_size}x{arguments.image_size}, float32, {arguments.rounds} rounds")
    print(f"{'net':<18}{'batch':>5}  {'':<14}{'images/s':>9}  {'(least to most)':<17}{'of ' + BASE:>18}")
    for name in arguments.models.split(","):
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            shape = (batch_size, arguments.image_size, arguments.image_size, 3)
            images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            runs = contestants(name, images)
            found = rates(runs, images, arguments.rounds, arguments.seconds)
            for who, values in found.items():
                ratio = statistics.median(ours / base for ours, base in zip(values, found[BASE], strict=True))
                spread = f"({min(values):.1f} to {max(values):.1f})"
                median = statistics.median(values)
                print(f"{name:<18}{batch_size:>5}  {who:<14}{median:>9.1f}  {spread:<17}{ratio:>18.2f}", flush=True)


if __name__ == "__main__":
    main()
