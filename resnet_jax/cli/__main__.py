"""`python -m resnet_jax.cli`, where the command is not on the path."""

import sys

from resnet_jax.cli.command import main

if __name__ == "__main__":
    sys.exit(main())
