"""What `import resnet_jax` costs over importing jax and flax: fresh processes in turn, medians.

python benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

ROUNDS = 10


def seconds(statement: str) -> float:
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    statements = ("import jax, flax", "import resnet_jax")
    for statement in statements:
        seconds(statement)  # fills the disk's cache
    rounds = [[seconds(statement) for statement in statements] for _ in range(ROUNDS)]
    base, whole = (statistics.median(column) for column in zip(*rounds, strict=True))
    over = statistics.median(ours - theirs for theirs, ours in rounds)
    print(f"jax and flax {base:.3f} s, resnet_jax {whole:.3f} s, over them {over:.3f} s (medians of {ROUNDS})")


if __name__ == "__main__":
    main()
