"""The `resnet-jax` command: the verbs, and `main`, which turns errors into messages."""

import argparse
import os
import sys
from collections.abc import Sequence

from resnet_jax import compiler, errors
from resnet_jax.cli import convert, evaluate, info, plan, predict, prepare, report, train, verify
from resnet_jax.cli import list as list_

VERBS = (list_, info, convert, verify, predict, evaluate, train, plan, prepare, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code: 0 done, 1 a no (a proof or read-back failed, an image left out), 2 unusable input."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and "config" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = rest  # --config.KEY=VALUE, of the verbs that take --config
    try:
        compiler.guard()
        return int(arguments.run(arguments))
    except BrokenPipeError:  # the reader has seen enough, as in `resnet-jax list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not errors.is_refusal(error):
            raise
        print(f"resnet-jax: {errors.message(error)}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet-jax", description="ResNets in JAX, equal to PyTorch's.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_verb(verbs)
    return parser
