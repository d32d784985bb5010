"""Mutated weight files: each must give arrays or `WeightFileError`, without a crash, an import or much memory.

python -m benchmarks.fuzz_formats --inputs=200000 --seed=0

Seeds are small files of each format. A mutation flips bits, sets bytes to extreme values, cuts, repeats, swaps, inserts
opcodes and numbers, or splices two files; the checksums of a zip are then made right again in half of the cases, so
that what stands behind them is reached. Memory is what Python and NumPy allocate, measured for each. It prints a tally,
and exits with 1 if anything else than arrays or the error came out.
"""

import argparse
import collections
import dataclasses
import logging
import pathlib
import pickle
import struct
import sys
import tempfile
import time
import tracemalloc
import zlib

import numpy as np
from flax import serialization, traverse_util

from resnet_jax.weights.files.formats import WeightFileError, open_weights, save_state_dict
from tests.helpers import handmade

SHARED_MEMORY = pathlib.Path("/dev/shm")
OPCODES = (
    b"()]}.0125NIJKLMFGSVXBCUTQRabcdeghjlpqrstu\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x8e\x8f\x90\x91\x92\x93\x94\x95\x96"
)
NUMBERS = [struct.pack("<q", 1 << n) for n in (0, 7, 15, 31, 62)] + [struct.pack("<q", -(1 << n)) for n in (0, 31, 63)]
NAMES = [b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n"]


@dataclasses.dataclass
class Tally:
    """What came out of the inputs."""

    inputs: int = 0
    arrays: int = 0
    errors: int = 0
    crashes: list[str] = dataclasses.field(default_factory=list)
    most_memory: int = 0
    longest: float = 0.0
    messages: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def seeds(folder: pathlib.Path) -> list[bytes]:
    """A small file of each format and way of writing."""
    weights = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1.5]), "c": np.array(3)}
    for name in ("x.pth", "x.safetensors"):
        save_state_dict(folder / name, weights)
    view = b"(" + handmade.text("v") + handmade.number(1) + handmade.number(4) + b"t"
    tensors = handmade.mapping(w=handmade.tensor(), v=handmade.tensor(size=(3,), stride=(2,), offset=1))
    viewed = handmade.tensor(handmade.storage(view=view), size=(2, 2), stride=(2, 1))
    beside = handmade.mapping(state_dict=tensors, args=handmade.call("argparse.Namespace"), epoch=b"K\x03")
    plain = {"model": weights, "args": {"when": collections.Counter.update}, "ema": {"a": weights["a"].astype(">f4")}}
    index = b'{"weight_map": {"a": "x.safetensors", "b": "x.safetensors", "c": "x.safetensors"}}'
    files = [(folder / name).read_bytes() for name in ("x.pth", "x.safetensors")]
    return [
        *files,
        handmade.zipped(beside),
        handmade.legacy(tensors),
        handmade.legacy(handmade.mapping(w=viewed)),
        index,
        *(pickle.dumps(plain, protocol) for protocol in (0, 2, 4, 5)),
        serialization.to_bytes({"params": {"fc": {"kernel": weights["a"]}}, "step": 3}),
    ]


def mutate(rng: np.random.Generator, corpus: list[bytes]) -> bytes:
    """One of the files with one to four changes."""
    data = bytearray(corpus[rng.integers(len(corpus))])
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1))
        end = at + int(rng.integers(1, 17))
        other = corpus[rng.integers(len(corpus))]
        match rng.integers(9):
            case 0:
                data[at:end] = (
                    bytes(byte ^ (1 << int(rng.integers(8))) for byte in data[at:end][:1]) + data[at + 1 : end]
                )
            case 1:
                data[at : at + 1] = bytes([rng.choice([0, 1, 0x7F, 0x80, 0xFF])])
            case 2:
                del data[at:end]
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at:end] * int(rng.integers(1, 50))
            case 5:
                data[at:at] = bytes([OPCODES[rng.integers(len(OPCODES))]])
            case 6:
                number = NUMBERS[rng.integers(len(NUMBERS))][: rng.choice([1, 2, 4, 8])]
                data[at : at + len(number)] = number
            case 7:
                data[at:at] = NAMES[rng.integers(len(NAMES))]
            case 8:
                start = int(rng.integers(len(other) + 1))
                data[at:end] = other[start : start + end - at]
    return with_sums(bytes(data)) if rng.integers(2) else bytes(data)


def with_sums(data: bytes) -> bytes:
    """A zip with the checksums that its members have, as far as its directory can still be followed."""
    place = data.find(b"PK\x01\x02")
    mended = bytearray(data)
    while place >= 0 and place + 46 <= len(data):
        size, header = struct.unpack_from("<L", data, place + 24)[0], struct.unpack_from("<L", data, place + 42)[0]
        if header + 30 <= len(data):
            name, extra = struct.unpack_from("<2H", data, header + 26)
            start = header + 30 + name + extra
            crc = struct.pack("<L", zlib.crc32(data[start : start + size]))
            mended[place + 16 : place + 20] = mended[header + 14 : header + 18] = crc
        place = data.find(b"PK\x01\x02", place + 4)
    return bytes(mended)


def run(inputs: int, seed: int = 0) -> Tally:
    """Reads so many mutated files."""
    rng, tally = np.random.default_rng(seed), Tally()
    # In memory where the system has such a folder: writing takes twenty times as long as reading elsewhere.
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as name:
        folder = pathlib.Path(name)
        corpus = seeds(folder)
        for _ in range(inputs):
            (folder / "input").write_bytes(mutate(rng, corpus))
            read(folder / "input", tally)
    return tally


def read(path: pathlib.Path, tally: Tally) -> None:
    """Reads one file to its last byte and counts what came of it."""
    tracemalloc.start()
    start = time.perf_counter()
    tally.inputs += 1
    try:
        opened = open_weights(path)
        arrays = [*opened.tensors.values(), *traverse_util.flatten_dict(opened.variables or {}).values()]
        # Arrays of stride 0 may be larger than what is stored, but not than the file: so reading all of them is cheap.
        assert all(array.nbytes <= path.stat().st_size and array.tobytes() is not None for array in arrays)
        tally.arrays += 1
    except WeightFileError as error:
        tally.errors += 1
        tally.messages[" ".join(str(error).removeprefix(f"{path}: ").split()[:5])] += 1
    except BaseException as error:
        tally.crashes.append(f"{type(error).__name__}: {error} ({path.read_bytes()!r})")
    tally.longest = max(tally.longest, time.perf_counter() - start)
    tally.most_memory = max(tally.most_memory, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()


def main() -> int:
    """Prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()  # a line for each file that is read
    imported = set(sys.modules)
    start = time.perf_counter()
    tally = run(arguments.inputs, arguments.seed)
    print(f"{tally.inputs} inputs in {time.perf_counter() - start:.0f} s, seed {arguments.seed}")
    print(f"{tally.arrays} gave arrays, {tally.errors} WeightFileError, {len(tally.crashes)} anything else")
    print(f"most memory {tally.most_memory / 2**20:.2f} MiB, longest {tally.longest * 1e3:.0f} ms")
    print(f"{len(tally.messages)} kinds of messages; modules imported: {sorted(set(sys.modules) - imported)}")
    for crash in tally.crashes[:10]:
        print(crash)
    return 1 if tally.crashes else 0


if __name__ == "__main__":
    sys.exit(main())
