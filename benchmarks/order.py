"""Time and memory of the order of examples: every position of a pass is asked for, and none is kept.

python benchmarks/order.py --lengths 1281167 100000000

Prints microseconds of a core for a position, seconds for a pass, and how much memory the process took up meanwhile.
"""

import argparse
import resource
import time

from resnet_jax.data.order import Shuffled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1_281_167, 100_000_000])
    for length in parser.parse_args().lengths:
        order, before, start = Shuffled(length, seed=0), _peak(), time.process_time()
        total = sum(order[position] for position in range(length))
        seconds = time.process_time() - start
        assert total == length * (length - 1) // 2, "not every example came once"
        print(
            f"{length:>12,}  {1e6 * seconds / length:.2f} us  {seconds:.1f} s  {_peak() - before} KiB more", flush=True
        )


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
