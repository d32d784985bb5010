"""The `resnet-jax` command: a thin door to the rooms. Each verb is one function; `main` turns errors into messages."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from resnet_jax import cli_inference, cli_plan, cli_prepare, cli_report, cli_verify
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model, list_models
from resnet_jax.weights import convert, formats, recognise, registry

Variables = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code: 0 done, 1 a no (a proof or read-back failed, an image left out), 2 unusable input."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and "config" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides = rest  # --config.KEY=VALUE, of the verbs that take --config
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:  # the reader has seen enough, as in `resnet-jax list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet-jax", description=__doc__.split(":")[0] + ".")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("list", help="the networks, with their numbers of parameters")
    verb.add_argument("pattern", nargs="?", default="*", help="as in a shell: 'resnext*'")
    verb.add_argument("--pretrained", action="store_true", help="published weights instead, with accuracy and licence")
    verb.set_defaults(run=_list)

    verb = verbs.add_parser("info", help="all that is known of published weights")
    verb.add_argument("tag", help="as in `resnet-jax list --pretrained`: resnet50.a1_in1k")
    verb.set_defaults(run=_info)

    verb = verbs.add_parser("convert", help="PyTorch weights to Flax variables, and back")
    verb.add_argument("source", help="a file of PyTorch's or safetensors, a workdir of train.py, a folder of variables")
    verb.add_argument("--model", help="the network; by default it is recognised by its tensors")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of SOURCE has")
    verb.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    verb.add_argument("--keep-dtype", action="store_true", help="keep float16 and bfloat16, which become float32 else")
    verb.add_argument(
        "--out", required=True, help="FILE.safetensors or FILE.pth (PyTorch's names), or a folder (Orbax)"
    )
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.set_defaults(run=_convert)

    cli_verify.add_verb(verbs)
    cli_inference.add_verbs(verbs, _read)
    cli_plan.add_verb(verbs)
    cli_prepare.add_verb(verbs)
    cli_report.add_verb(verbs)
    return parser


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


def _info(arguments: argparse.Namespace) -> int:
    for key, value in registry.facts(registry.get_pretrained(arguments.tag)).items():
        print(f"{key:<16}{value}")
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    out = epath.Path(arguments.out).expanduser()
    if out.exists() and not arguments.force:
        raise ValueError(f"{out} exists: choose another --out, or give --force to replace it.")
    model, variables = _read(
        arguments.source,
        arguments.model,
        arguments.num_classes,
        ema=arguments.ema,
        keep_dtype=arguments.keep_dtype,
    )
    _write(out, model, variables)
    again = _read_back(out, model)
    count, same = len(jax.tree.leaves(variables)), jax.tree.map(_same_bits, variables, again)
    if not all(jax.tree.leaves(same)):
        print(f"resnet-jax: {out} was written, but reads back differently: do not use it", file=sys.stderr)
        return 1
    print(f"{out}: written, read back: {count} tensors, bit-equal")
    return 0


def _read(
    source: str, name: str | None, num_classes: int | None, *, ema: bool = False, keep_dtype: bool = False
) -> tuple[ResNet, Variables]:
    """Model and variables from weights under PyTorch's names, a workdir, or a folder of variables; strict."""
    if formats.holds_weights(source):
        tensors = _read_tensors(source, ema=ema, keep_dtype=keep_dtype)
        if name:
            model = create_model(name, num_classes=num_classes or _num_classes(tensors))
        else:
            name, overrides = recognise.identify(tensors)
            model = create_model(name, **overrides)
            print(f"{source}: {name}{''.join(f', {field}={value!r}' for field, value in overrides.items())}")
        return model, convert.from_torch(model, tensors)
    # Orbax takes a second to import, and files do without it.
    from resnet_jax.training import checkpoint, workdirs

    variables = checkpoint.load_variables(source, ema=ema)
    if name:
        head = variables["params"].get("fc", {"bias": ()})
        model = create_model(name, num_classes=num_classes or len(head["bias"]))
    else:
        stored = workdirs.load_config(source)["model"]
        kwargs = {field: value for field, value in stored["kwargs"].items() if value is not None}
        model = create_model(stored["name"], num_classes=stored["num_classes"], **kwargs)
    convert.to_torch(model, variables)  # strict, with its message
    return model, variables


def _read_tensors(source: str, *, ema: bool = False, keep_dtype: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a file under torchvision's names; halves are widened, with a note, unless they are to be kept."""
    tensors = recognise.native_names(formats.load_state_dict(source, ema=ema))
    halves = sorted({str(x.dtype) for x in tensors.values()} & {"float16", "bfloat16"})
    if not halves or keep_dtype:
        return tensors
    print(f"{source}: {' and '.join(halves)} widened to float32, exactly")
    return convert.upcast_halves(tensors)


def _read_back(out: epath.Path, model: ResNet) -> Variables:
    if out.is_file():
        return convert.from_torch(model, formats.load_state_dict(out))
    from resnet_jax.training import checkpoint

    variables: Variables = checkpoint.load_variables(str(out))
    return variables


def _write(out: epath.Path, model: ResNet, variables: Variables) -> None:
    if out.suffix in (".safetensors", *formats.TORCH_SUFFIXES):
        formats.save_state_dict(out, convert.to_torch(model, variables))
        return
    from resnet_jax.training import checkpoint

    checkpoint.save_variables(str(out), variables)


def _num_classes(tensors: Mapping[str, np.ndarray]) -> int:
    """Width of the head of tensors under torchvision's names; 0 without one."""
    return len(tensors["fc.weight"]) if "fc.weight" in tensors else 0


def _same_bits(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


if __name__ == "__main__":
    sys.exit(main())
