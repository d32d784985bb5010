"""Reading a ResNet-152 file and making variables of it: this library beside PyTorch, each time in a fresh process.

python benchmarks/read_weights.py --rounds=7

"read" ends when every byte of every array has been looked at once. "variables" ends with arrays in Flax's layout: ours
with `from_torch`, PyTorch's with `torch.load`, `.numpy()`, a transpose and `jnp.asarray`, done plainly; "on device" is
ours moved there with `jax.device_put` as well. Imports and the start of JAX's backend come before the clock starts.
Memory is how far the process's resident set grew at its highest over the call, mapped pages of the file included, over
the file's size. The processes take turns; medians are printed.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

MODEL = "resnet152"
FILES = {"zip": "x.pth", "legacy": "legacy.pth", "safetensors": "x.safetensors"}


def read_ours(path: str) -> None:
    """Our arrays, read to the last byte."""
    from resnet_jax.weights.files.formats import load_state_dict

    for array in load_state_dict(path).values():
        look_at(array)


def read_torch(path: str) -> None:
    """PyTorch's tensors, read to the last byte."""
    import torch

    for tensor in torch.load(path, weights_only=True).values():
        look_at(tensor.numpy())


def variables_ours(path: str) -> object:
    """Our variables, as NumPy arrays."""
    import resnet_jax
    from resnet_jax.weights.files.formats import load_state_dict

    return resnet_jax.from_torch(resnet_jax.create_model(MODEL), load_state_dict(path))


def device_ours(path: str) -> None:
    """Our variables, as JAX arrays, moved as `load_pretrained` moves them."""
    import jax

    jax.block_until_ready(jax.device_put(variables_ours(path)))


def variables_torch(path: str) -> None:
    """What somebody writes who has PyTorch."""
    import jax
    import jax.numpy as jnp
    import torch

    axes = {4: (2, 3, 1, 0), 2: (1, 0)}
    arrays = {name: tensor.numpy() for name, tensor in torch.load(path, weights_only=True).items()}
    jax.block_until_ready({name: jnp.asarray(x.transpose(axes.get(x.ndim))) for name, x in arrays.items()})


# Label -> (what to do, the file to do it with); the second of each group is PyTorch.
CASES: dict[str, tuple[Callable[[str], object], str]] = {
    "read zip, ours": (read_ours, "zip"),
    "read zip, PyTorch": (read_torch, "zip"),
    "read legacy, ours": (read_ours, "legacy"),
    "read legacy, PyTorch": (read_torch, "legacy"),
    "read safetensors, ours": (read_ours, "safetensors"),
    "variables, ours": (variables_ours, "zip"),
    "variables on device, ours": (device_ours, "zip"),
    "variables on device, PyTorch": (variables_torch, "zip"),
}


def look_at(array: np.ndarray) -> None:
    """Adds up all bytes."""
    array.reshape(-1).view(np.uint8).sum()


def resident(field: str) -> int:
    """Bytes of a field of the process's status: VmRSS now, VmHWM at its highest."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def measure(label: str, path: str) -> None:
    """Runs one case and prints seconds and growth."""
    import jax.numpy as jnp
    import torch  # noqa: F401 - in every process, so that all start with the same

    import resnet_jax.weights.convert  # noqa: F401 - likewise

    jnp.zeros(()).block_until_ready()
    with open(path, "rb") as file:  # into the page cache
        while file.read(1 << 20):
            pass
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
    before, start = resident("VmRSS"), time.perf_counter()
    kept = CASES[label][0](path)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resident("VmHWM") - before]), kept is None)


def write_files(folder: pathlib.Path) -> None:
    """The same random weights in each format, saved by PyTorch and by safetensors' own writer for it."""
    import torch
    import torchvision
    from safetensors.torch import save_file

    state_dict = getattr(torchvision.models, MODEL)().state_dict()
    torch.save(state_dict, folder / FILES["zip"])
    torch.save(state_dict, folder / FILES["legacy"], _use_new_zipfile_serialization=False)
    save_file(state_dict, folder / FILES["safetensors"])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measure(*arguments.one)
        return
    from resnet_jax import compiler  # here alone, as it would be part of what a process of one case measures

    compiler.guard()
    root = pathlib.Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    found: dict[str, list[list[float]]] = {label: [] for label in CASES}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_files(folder)
        for _ in range(arguments.rounds):
            for label, (_, kind) in CASES.items():
                command = [sys.executable, __file__, "--one", label, str(folder / FILES[kind])]
                output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                found[label].append(json.loads(output[: output.index("]") + 1]))
        sizes = {kind: (folder / file).stat().st_size for kind, file in FILES.items()}
    print(f"{MODEL}, {sizes['zip'] / 1e6:.1f} MB, {os.cpu_count()} cores, medians of {arguments.rounds}")
    for label, (_, kind) in CASES.items():
        times, growths = zip(*found[label], strict=True)
        spread = f"({min(times):.2f} to {max(times):.2f})"
        growth = statistics.median(growths) / sizes[kind]
        print(f"{label:<30}{statistics.median(times):>7.3f} s {spread:<16}{growth:>6.2f} x")


if __name__ == "__main__":
    main()
