"""The verb `convert`: weights of anybody's to Flax variables, and back; what was written is read again."""

import argparse
import sys
from typing import Any

import jax
import numpy as np
from etils import epath

from resnet_jax.cli import net
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.convert import from_torch, to_torch
from resnet_jax.weights.files import formats

Variables = dict[str, Any]


def add_verb(verbs: Any) -> None:
    """Adds `convert` to argparse's sub-parsers."""
    verb = verbs.add_parser("convert", help="PyTorch weights to Flax variables, and back")
    verb.add_argument("source", help="a file of PyTorch's or safetensors, a workdir of train.py, a folder of variables")
    verb.add_argument("--model", help="the network; by default it is recognised by its tensors")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of SOURCE has")
    verb.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    verb.add_argument("--keep-dtype", action="store_true", help="keep float16 and bfloat16, which become float32 else")
    verb.add_argument(
        "--out", required=True, help="FILE.safetensors or FILE.pth (PyTorch's names), or a folder (Orbax)"
    )
    net.add_allow_nonfinite(verb)
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    out = epath.Path(arguments.out).expanduser()
    if out.exists() and not arguments.force:
        raise ValueError(f"{out} exists: choose another --out, or give --force to replace it.")
    model, variables = net.read(
        arguments.source,
        arguments.model,
        arguments.num_classes,
        ema=arguments.ema,
        keep_dtype=arguments.keep_dtype,
    )
    net.check_finite(arguments.source, variables, allow=arguments.allow_nonfinite)
    _write(out, model, variables)
    again = _read_back(out, model)
    count, same = len(jax.tree.leaves(variables)), jax.tree.map(_same_bits, variables, again)
    if not all(jax.tree.leaves(same)):
        print(f"resnet-jax: {out} was written, but reads back differently: do not use it", file=sys.stderr)
        return 1
    print(f"{out}: written, read back: {count} tensors, bit-equal")
    return 0


def _read_back(out: epath.Path, model: ResNet) -> Variables:
    if out.is_file():
        return from_torch(model, formats.load_state_dict(out), allow_nonfinite=True)
    from resnet_jax.weights.files import orbax_folder

    variables: Variables = orbax_folder.load_variables(str(out))
    return variables


def _write(out: epath.Path, model: ResNet, variables: Variables) -> None:
    if out.suffix in (".safetensors", *formats.TORCH_SUFFIXES):
        formats.save_state_dict(out, to_torch(model, variables, allow_nonfinite=True))
        return
    from resnet_jax.weights.files import orbax_folder

    orbax_folder.save_variables(str(out), variables)


def _same_bits(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
