"""Trains a network, evaluates one, or only tries the start of a run: flags only, the work is in `resnet_jax.training`.

python train.py --config=configs/digits_resnet20.py --workdir=runs/digits
python train.py --config=configs/digits_resnet20.py --workdir=runs/digits --mode=eval
python train.py --config=configs/digits_resnet20.py --mode=dry_run

Exit code: 0 done; 1 refused or failed; 130 Ctrl-C; 75 told to make way (SIGTERM), saved: the same command goes on.
"""

import logging
import os
import sys
import time
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

INTERRUPTED = 130  # 128 + SIGINT, as shells say it

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; any key can be set: --config.batch_size=64.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: config, metrics, checkpoints, curves; gs:// too.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "dry_run"], "Train (or go on), evaluate the newest checkpoint, or try the start."
)
HOSTS = flags.DEFINE_enum("hosts", "auto", ["auto", "one"], "Others are found by the environment, or this is alone.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where the environment does not say it.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "With --coordinator: how many processes there are.")
PROCESS_ID = flags.DEFINE_integer("process_id", -1, "With --coordinator: which this one is, from 0.")
HEARTBEAT = flags.DEFINE_integer("heartbeat", 60, "Seconds after which a silent host is lost, and the others stop.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value.")
    from resnet_jax import compiler  # after the flags: --help then needs no JAX
    from resnet_jax.training import hosts, loop

    compiler.guard()

    # Our own lines, and from warnings on those of Orbax, Grain and JAX; --verbosity=0 shows all of theirs.
    logging.getLogger("resnet_jax").setLevel(logging.INFO)
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    if HOSTS.value == "one" and (COORDINATOR.value or NUM_PROCESSES.value or PROCESS_ID.value >= 0):
        raise app.UsageError("--hosts=one is alone; --coordinator, --num_processes and --process_id join others.")
    if HOSTS.value == "auto":
        hosts.join(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, heartbeat=HEARTBEAT.value)
    workdir = os.path.expanduser(WORKDIR.value)
    if MODE.value == "dry_run":
        from resnet_jax.plan import dry_run

        lines = dry_run.dry_run(CONFIG.value)
    elif MODE.value == "eval":
        lines = _compare(loop.evaluate(CONFIG.value, workdir), workdir)
    else:
        lines = _left(loop.train(CONFIG.value, workdir), workdir)
    if hosts.is_first():
        print("\n".join(lines))


def _left(result: dict[str, Any], workdir: str) -> list[str]:
    """What a run left."""
    from etils import epath

    from resnet_jax.runs import plots, reporting
    from resnet_jax.training import checkpoint

    folder = epath.Path(workdir)
    return [
        reporting.accuracy_line(result),
        f"curves      {folder / plots.CURVES}",
        f"checkpoint  {folder / checkpoint.CHECKPOINTS / str(result['step'])}",
    ]


def _compare(result: dict[str, Any], workdir: str) -> list[str]:
    """The accuracy, and whether it is what was logged."""
    from resnet_jax.runs import history, reporting

    lines = [reporting.accuracy_line(result)]
    for logged in history.test_records(history.read_metrics(workdir) if workdir else []):
        if logged["step"] == result["step"]:
            if any(logged[key] != result[key] for key in ("correct", "count")):
                sys.exit(f"train.py: step {result['step']} was logged with {reporting.accuracy_line(logged)}")
            lines.append(f"equals what was logged at step {result['step']}")
    return lines


def run(argv: list[str]) -> None:
    """`main`, but what the library itself refuses is one message and no traceback."""
    try:
        main(argv)
    except Exception as error:
        from resnet_jax import errors

        refused = errors.is_refusal(error)
        if not refused and not _is_one_of_many():
            raise
        print(f"train.py: {errors.message(error)}" if refused else errors.message(error), file=sys.stderr, flush=True)
        _exit(error.exit_code if isinstance(error, errors.Refusal) else 1)
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr, flush=True)
        _exit(INTERRUPTED)


def _is_one_of_many() -> bool:
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _exit(code: int) -> None:
    """Ends the process; one of many that failed at once, for an orderly end waits for all to come to theirs."""
    from resnet_jax import errors

    if code != errors.PREEMPTED and _is_one_of_many():
        from resnet_jax.training import hosts

        # The others hear of each other through the first: its end cuts off what they are about to say.
        time.sleep(2 if hosts.is_first() else 0)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(run)
