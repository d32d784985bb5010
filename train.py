"""Trains a network, or evaluates one: flags only, the work is in `resnet_jax.training.loop`.

python train.py --config=configs/digits_resnet20.py --workdir=runs/digits
python train.py --config=configs/digits_resnet20.py --workdir=runs/digits --mode=eval
"""

import logging
import os
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
from etils import epath
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; any key can be set: --config.batch_size=64.")
WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: config, metrics, checkpoints, curves.")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "Train (or go on), or evaluate the newest checkpoint.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; flags are written --name=value.")
    from resnet_jax.training import loop, report  # after the flags: --help then needs no JAX

    # Our own lines, and from warnings on those of Orbax, Grain and JAX; --verbosity=0 shows all of theirs.
    logging.getLogger("resnet_jax").setLevel(logging.INFO)
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)
    workdir = os.path.expanduser(WORKDIR.value)
    if MODE.value == "eval":
        result = loop.evaluate(CONFIG.value, workdir)
        print(report.accuracy_line(result))
        for logged in report.test_records(report.read_metrics(workdir) if workdir else []):
            if logged["step"] == result["step"]:
                if any(logged[key] != result[key] for key in ("correct", "count")):
                    sys.exit(f"train.py: step {result['step']} was logged with {report.accuracy_line(logged)}")
                print(f"equals what was logged at step {result['step']}")
        return
    result = loop.train(CONFIG.value, workdir)
    print(report.accuracy_line(result))
    print(f"curves      {epath.Path(workdir) / report.CURVES}")
    print(f"checkpoint  {epath.Path(workdir) / 'checkpoints' / str(result['step'])}")


def run(argv: list[str]) -> None:
    """`main`, but what the library itself refuses is one message and no traceback; exit code 1."""
    try:
        main(argv)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if os.sep + "resnet_jax" + os.sep not in raised_in:
            raise
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(run)
