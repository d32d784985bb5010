"""The verb `convert`: weights of anybody's to Flax variables, and back; what was written is read again."""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np
from etils import epath

from resnet_jax.cli import net
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights import convert, pretrained, sources
from resnet_jax.weights.files import formats
from resnet_jax.weights.published import timm_config

Variables = dict[str, Any]
FORMATS = ("safetensors", "torch", "timm", "transformers", "orbax")
FOLDERS = ("timm", "transformers", "orbax")


def add_verb(verbs: Any) -> None:
    """Adds `convert` to argparse's sub-parsers."""
    verb = verbs.add_parser("convert", help="PyTorch weights to Flax variables, and back")
    verb.add_argument("source", help="a tag, a file, a folder, a URL, a workdir of train.py, a folder of variables")
    verb.add_argument("--model", help="the network; by default what SOURCE states, or its tensors tell")
    verb.add_argument("--num-classes", type=int, help="0 leaves the head out; any other number must be that of SOURCE")
    verb.add_argument("--keep-dtype", action="store_true", help="keep float16 and bfloat16, which become float32 else")
    verb.add_argument(
        "--out",
        required=True,
        help="FILE.safetensors or FILE.pth (PyTorch's names), or a folder (Orbax, timm's, transformers')",
    )
    verb.add_argument("--format", choices=FORMATS, help="of OUT; by default what its name says, and of a folder orbax")
    net.add_source(verb)
    net.add_allow_nonfinite(verb)
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    out, form = epath.Path(arguments.out).expanduser(), _format(arguments.out, arguments.format)
    if out.exists() and not arguments.force:
        raise ValueError(f"{out} exists: choose another --out, or give --force to replace it.")
    opened = net.open_source(arguments, arguments.source, arguments.model, arguments.num_classes)
    if halves := sorted({str(x.dtype) for x in opened.tensors.values()} & {"float16", "bfloat16"}):
        done = "kept" if arguments.keep_dtype else "widened to float32, exactly"
        print(f"{arguments.source}: {' and '.join(halves)} {done}")
    model, variables = opened.network()
    if not arguments.keep_dtype:
        variables = jax.tree.map(convert.widened, variables)
    fields = "".join(f", {field}={value!r}" for field, value in opened.identity.fields.items())
    print(f"{arguments.source}: {opened.identity.name}{fields}")
    net.check_finite(arguments.source, variables, allow=arguments.allow_nonfinite)
    _write(out, form, model, variables, opened.source)
    again = _read_back(out, form, model)
    count, same = len(jax.tree.leaves(variables)), jax.tree.map(_same_bits, variables, again)
    if not all(jax.tree.leaves(same)):
        print(f"resnet-jax: {out} was written, but reads back differently: do not use it", file=sys.stderr)
        return 1
    print(f"{out}: written, read back: {count} tensors, bit-equal")
    return 0


def _format(out: str, given: str | None) -> str:
    """What `--out` is to be. A name that ends like a file's is that of a file."""
    suffix = pathlib.PurePath(out).suffix.lower() if not out.endswith("/") else ""
    suffix = suffix if any(map(str.isalpha, suffix)) else ""  # runs/v1.0 is a folder
    by_suffix = {".safetensors": "safetensors", **dict.fromkeys(formats.TORCH_SUFFIXES, "torch")}
    if suffix and suffix not in by_suffix and given not in FOLDERS:
        raise ValueError(
            f"--out={out}: weights are written as {', '.join(by_suffix)}, or into a folder: its name ends in / then."
        )
    if given and suffix in by_suffix and by_suffix[suffix] != given:
        raise ValueError(f"--format={given}, but --out={out} ends as one of {by_suffix[suffix]}: give one of the two.")
    if given in ("safetensors", "torch") and suffix not in by_suffix:
        raise ValueError(f"--format={given} writes a file: let --out={out} end in .{given.replace('torch', 'pth')}.")
    return given or by_suffix.get(suffix, "orbax")


def _read_back(out: epath.Path, form: str, model: ResNet) -> Variables:
    if form != "orbax":
        return convert.from_torch(model, formats.load_state_dict(out), allow_nonfinite=True)
    from resnet_jax.weights.files import orbax_folder

    variables: Variables = orbax_folder.load_variables(str(out))
    return variables


def _write(out: epath.Path, form: str, model: ResNet, variables: Variables, source: sources.Source) -> None:
    """Writes weights and, where the format has a place for it, all that the source states of them."""
    try:
        preprocessing: Preprocessing | None = source.preprocessing()
    except sources.NotStated:
        preprocessing = None
    except ValueError as error:
        net.say(f"{error} The weights are written without it.")
        preprocessing = None
    names = source.label_names
    if names is not None and len(names) != model.num_classes:
        net.say(
            f"{source.text} names {len(names)} classes; the head has {model.num_classes}, and is written without names"
        )
        names = None
    if form in ("timm", "transformers"):
        stated: dict[str, Any] = {"preprocessing": preprocessing, "label_names": names}
        pretrained.save_pretrained(model, variables, out, format=form, **stated, overwrite=True, allow_nonfinite=True)
    elif form == "orbax":
        from resnet_jax.weights.files import orbax_folder

        if names or preprocessing:
            net.say(
                "a folder of Orbax's has no place for class names and preprocessing: --format=timm or transformers has"
            )
        orbax_folder.save_variables(str(out), variables)
    else:
        tensors = convert.to_torch(model, variables, allow_nonfinite=True)
        described = timm_config.describe(model, tensors, preprocessing, names) | {"source": source.text}
        formats.save_state_dict(out, tensors, described)


def _same_bits(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
