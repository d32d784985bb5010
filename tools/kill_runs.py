r"""Stops runs of train.py at random moments, starts them again, and counts those that end as if nothing had been.

  python tools/kill_runs.py                               # 50 runs, SIGKILL, a third of them in the middle of a save
  python tools/kill_runs.py --how=term --runs=10          # SIGTERM: saves and exits with 75
  python tools/kill_runs.py --how=full --runs=5           # the disk is full for a while (mounts a tmpfs: root only)
  python tools/kill_runs.py --how=devices --runs=5        # 1 and 4 devices by turns, in float64

Each run is started, stopped one to three times, each time with another number of threads and worker processes, and
then left to end. Its last checkpoint, statistics of batch norm and momentum included, must then have the very bits of
a run that was never stopped; with changing devices it must agree to 1e-9, for sums then have another order. Exit code 1
if one does not.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after its settings
import numpy as np  # noqa: E402 - likewise

from resnet_jax import compiler  # noqa: E402 - likewise
from resnet_jax.weights.files import orbax_folder  # noqa: E402 - likewise

STEPS = 60
CONFIG = """
from resnet_jax.configs import default

def get_config():
    config = default.get_config()
    config.batch_size, config.num_epochs = 16, {steps} / 32
    config.batch_norm_devices = {batch_norm_devices}
    config.model.kwargs.update({{"stage_sizes": (1, 1), "stage_features": (8, 16), "stem_features": 8}})
    config.model.kwargs.dtype = config.model.kwargs.param_dtype = "{dtype}"
    config.data.name, config.data.num_examples, config.data.image_size = "synthetic", 512, 16
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.flip = True
    config.log_every_steps, config.checkpoint_every_steps, config.eval_every_epochs = 1, 4, 0.5
    return config
"""
TOLERANCE = {"devices": 1e-9}  # of every number of the last checkpoint; elsewhere bits
SAID = "start the same command again"  # by a run whose disk is full
FULL = 6_000_000  # bytes of the disk that is to be full


def main() -> int:
    compiler.guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--how", choices=["kill", "term", "full", "devices"], default="kill")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(pathlib.Path(folder), arguments.how)
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
            seeds = range(arguments.seed, arguments.seed + arguments.runs)
            results = list(pool.map(trial.one_run, seeds))
    moments = collections.Counter(moment for result in results for moment in result["stopped"])
    same = sum(result["same"] for result in results)
    worst = max(result["difference"] for result in results)
    print(f"{arguments.how}: {len(results)} runs in {time.monotonic() - start:.0f} s, {moments.total()} times stopped:")
    for moment, count in sorted(moments.items()):
        print(f"  {count:4d} {moment}")
    what = f"equal to {TOLERANCE[trial.how]:g}" if trial.how in TOLERANCE else "bit-equal"
    print(f"{same} of {len(results)} ended {what} to the run that was never stopped (largest difference {worst:.3g})")
    return int(same < len(results))


class Started:
    """A run that is going on, in a session of its own, with its worker processes."""

    def __init__(self, command: list[str], settings: dict[str, str]) -> None:
        # A file and not a pipe: nobody reads while the run is going on, and a full pipe would hold it up.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the object
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | settings, stdout=self._log, stderr=self._log, start_new_session=True
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_at_most(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill(self) -> None:
        """All of its processes at once, as when a machine loses power."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def terminate(self) -> None:
        self._process.terminate()

    def end(self, *expected: int) -> int:
        """Waits; the exit code, which must be one of those expected."""
        code = self._process.wait()
        self._log.seek(0)
        output = self._log.read()
        self._log.close()
        if code not in expected or (code == 1 and SAID not in output):
            raise RuntimeError(f"exit code {code}, expected {expected}:\n{output}")
        return code


class Trial:
    """One config, the run that was never stopped, and those that are."""

    def __init__(self, folder: pathlib.Path, how: str) -> None:
        self.how, self._folder = how, folder
        self._config = folder / "config.py"
        sync = how == "devices"
        values = {"steps": STEPS, "batch_norm_devices": int(not sync), "dtype": "float64" if sync else "float32"}
        self._config.write_text(CONFIG.format(**values))
        started = time.monotonic()
        self._start(folder / "whole", threads=1, workers=0).end(0)
        self._seconds = time.monotonic() - started
        self._expected = last_checkpoint(folder / "whole")

    def one_run(self, seed: int) -> dict[str, Any]:
        """Stops one run one to three times; whether it ended as it should, and when it was stopped."""
        rng = random.Random(seed)
        with self._storage(seed) as workdir:
            stopped = [self._stop_once(workdir, rng, turn) for turn in range(rng.randint(1, 3))]
            self._start(workdir, **self._workers(rng), devices=self._devices(len(stopped))).end(0)
            difference = largest_difference(last_checkpoint(workdir), self._expected)
        return {
            "stopped": stopped,
            "difference": difference,
            "same": difference <= TOLERANCE.get(self.how, 0.0),
        }

    @contextlib.contextmanager
    def _storage(self, seed: int) -> Iterator[pathlib.Path]:
        """A workdir; where the disk is to be full, on a small disk of its own."""
        folder = self._folder / f"run{seed}"
        folder.mkdir()
        if self.how != "full":
            yield folder / "workdir"
            return
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={FULL}", "none", str(folder)], check=True)
        try:
            yield folder / "workdir"
        finally:
            subprocess.run(["umount", str(folder)], check=True)

    def _stop_once(self, workdir: pathlib.Path, rng: random.Random, turn: int) -> str:
        """Starts the run, and stops it at a random moment; says when that was."""
        process = self._start(workdir, **self._workers(rng), devices=self._devices(turn))
        moment = rng.choice(["any", "training", "saving"])
        self._wait(process, workdir, rng, moment)
        when = describe(process, workdir)
        if self.how == "full":
            return self._fill(process, workdir, when)
        if self.how == "term":
            process.terminate()
            # Before the run listens, SIGTERM ends it as it ends any process.
            return f"{when}, exit code {process.end(75, -signal.SIGTERM, 0)}"
        process.kill()
        process.end(-signal.SIGKILL, 0)
        return when

    def _fill(self, process: Started, workdir: pathlib.Path, when: str) -> str:
        """Fills the disk until the run gives up, then makes room."""
        ballast = workdir.parent / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)
        code = process.end(0, 1)
        ballast.unlink()
        return f"{when}, exit code {code}"

    def _wait(self, process: Started, workdir: pathlib.Path, rng: random.Random, moment: str) -> None:
        """Until the moment has come, or the process has ended."""
        if moment == "any":
            process.wait_at_most(rng.uniform(0, self._seconds))
            return
        before, wanted = records(workdir), rng.randint(1, STEPS // 2)
        while not process.ended() and records(workdir) < before + wanted:
            time.sleep(0.005)
        while moment == "saving" and not process.ended() and not saving(workdir):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.02))

    def _devices(self, turn: int) -> int:
        return (1, 4)[turn % 2] if self.how == "devices" else 1

    def _workers(self, rng: random.Random) -> dict[str, int]:
        return {"threads": rng.choice([0, 1, 3]), "workers": rng.choice([0, 0, 1, 2])}

    def _start(self, workdir: pathlib.Path, *, threads: int, workers: int, devices: int = 1) -> Started:
        command = [sys.executable, str(ROOT / "train.py"), f"--config={self._config}", f"--workdir={workdir}"]
        command += [f"--config.data.num_threads={threads}", f"--config.data.num_workers={workers}"]
        settings = {
            "JAX_NUM_CPU_DEVICES": str(devices),
            "NPROC": "8",
            "JAX_ENABLE_X64": str(int(self.how == "devices")),
        }
        return Started(command, settings)


def describe(process: Started, workdir: pathlib.Path) -> str:
    """At which moment of its life a run is."""
    if process.ended():
        return "after the end"
    if not (workdir / "run.json").exists():
        return "before the first start had restored or created a state"
    return "in the middle of a save" if saving(workdir) else "elsewhere: starting, training, evaluating"


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def records(workdir: pathlib.Path) -> int:
    """How many there are in metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def last_checkpoint(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Every number of the last checkpoint: parameters, batch statistics, momentum, step."""
    folder = workdir / "checkpoints" / str(STEPS)
    trees = [orbax_folder.load_tree(str(folder / item)) for item in ("variables", "progress")]
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(trees)}


def largest_difference(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """0 for the same bits; infinite for other names or shapes."""
    if left.keys() != right.keys() or any(left[name].shape != right[name].shape for name in left):
        return float("inf")
    if all(left[name].tobytes() == right[name].tobytes() for name in left):
        return 0.0
    return max(float(np.max(np.abs(left[name] - right[name]), initial=0.0)) for name in left)


if __name__ == "__main__":
    sys.exit(main())
