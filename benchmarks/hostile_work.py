"""Work that files made to harm cost: size of the file against seconds of this processor, for each attack.

python -m benchmarks.hostile_work --sizes=100000,1000000,10000000

Each file is read by `load_state_dict` to its end or to its refusal. Where a reader works on a byte more than once, the
last column, of nanoseconds for a byte, grows with the size; here it must not.
"""

import argparse
import pathlib
import tempfile
import time

from resnet_jax.weights.files.formats import WeightFileError, load_state_dict
from tests.helpers.growing_files import GROWING


def seconds(path: pathlib.Path) -> tuple[float, str]:
    """Seconds of processor time to read a file, and what came of it."""
    start = time.process_time()
    try:
        said = f"{len(load_state_dict(path))} tensors"
    except WeightFileError as error:
        said = str(error).removeprefix(f"{path}: ")
    return time.process_time() - start, said


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="100000,1000000,10000000", help="bytes, about")
    parser.add_argument("--only", default="", help="attacks whose names hold this text")
    arguments = parser.parse_args()
    print(f"{'attack':50} {'kB':>8} {'seconds':>8} {'ns/byte':>8}  what came of it")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x"
        for name, made in GROWING.items():
            if arguments.only not in name:
                continue
            for size in map(int, arguments.sizes.split(",")):
                content = made(size)
                path.write_bytes(content)
                taken, said = seconds(path)
                row = f"{len(content) / 1e3:8.0f} {taken:8.3f} {taken / len(content) * 1e9:8.0f}"
                print(f"{name:50} {row}  {said[:60]}", flush=True)


if __name__ == "__main__":
    main()
