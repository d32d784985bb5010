"""Trains a network, evaluates one, or only tries the start of a run: `resnet-jax train`, from a checkout.

python train.py --config=configs/digits_resnet20.py --workdir=runs/digits
python train.py --config=configs/digits_resnet20.py --workdir=runs/digits --mode=eval
python train.py --config=configs/digits_resnet20.py --mode=dry_run
"""

import sys

from resnet_jax.cli import train

if __name__ == "__main__":
    sys.exit(train.main(sys.argv[1:], "train.py"))
