"""The verb `info`: all that is known of published weights."""

import argparse
from typing import Any

from resnet_jax.weights.published import registry


def add_verb(verbs: Any) -> None:
    """Adds `info` to argparse's sub-parsers."""
    verb = verbs.add_parser("info", help="all that is known of published weights")
    verb.add_argument("tag", help="as in `resnet-jax list --pretrained`: resnet50.a1_in1k")
    verb.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    for key, value in registry.facts(registry.get_pretrained(arguments.tag)).items():
        print(f"{key:<16}{value}")
    return 0
