"""Time and memory of the order of examples: positions of a pass are asked for one by one, and none is kept.

python benchmarks/order.py --lengths 1281167 100000000

Prints microseconds of a core for a position, what these are for a whole pass, the time that a pass takes to begin, and
how much memory the process has taken up meanwhile.
"""

import argparse
import resource
import time

from resnet_jax.data.order import Shuffled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_281_167, 100_000_000])
    parser.add_argument("--positions", type=int, default=1_000_000, help="of each pass, at most")
    arguments = parser.parse_args()
    for length in arguments.lengths:
        order, memory, times = Shuffled(length, seed=0), _peak(), [time.process_time()]
        order[0]
        times.append(time.process_time())
        count = min(length, arguments.positions)
        for position in range(count):
            order[position]
        times.append(time.process_time())
        begun, each = 1000 * (times[1] - times[0]), 1e6 * (times[2] - times[1]) / count
        print(
            f"{length:>12,}  {each:.2f} us  {each * length / 1e6:.1f} s  {begun:.1f} ms to begin  "
            f"{_peak() - memory} KiB more",
            flush=True,
        )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
