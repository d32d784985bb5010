"""The verb `list`: the networks, or the published weights."""

import argparse
from typing import Any

import jax
import numpy as np

from resnet_jax.models.variants import create_model, list_models
from resnet_jax.weights.published import registry


def add_verb(verbs: Any) -> None:
    """Adds `list` to argparse's sub-parsers."""
    verb = verbs.add_parser("list", help="the networks, with their numbers of parameters")
    verb.add_argument("pattern", nargs="?", default="*", help="as in a shell: 'resnext*'")
    verb.add_argument("--pretrained", action="store_true", help="published weights instead, with accuracy and licence")
    verb.set_defaults(run=_list)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.pretrained:
        return _list_pretrained(arguments.pattern)
    names = list_models(arguments.pattern)
    if not names:
        raise ValueError(f"no network matches {arguments.pattern!r}: `resnet-jax list` shows all.")
    for name in names:
        model = create_model(name)
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        init = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), images)
        print(f"{name:<20}{sum(leaf.size for leaf in jax.tree.leaves(init['params'])):>13,} parameters")
    return 0


def _list_pretrained(pattern: str) -> int:
    tags = registry.list_pretrained(pattern)
    if not tags:
        raise ValueError(f"no published weights match {pattern!r}: `resnet-jax list --pretrained` shows all.")
    for entry in map(registry.get_pretrained, tags):
        print(registry.summary(entry))
    return 0
