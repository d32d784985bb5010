"""The `resnet-jax` command: a thin door to the rooms. Each verb is one function; `main` turns errors into messages."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax import cli_inference
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model, list_models
from resnet_jax.weights import convert, formats, registry

Variables = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code: 0 done, 1 a proof or a read-back failed or an image was left out, 2 unusable input."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
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
    verb.add_argument("source", help="a .pth or .safetensors file, a workdir of train.py, or a folder of variables")
    verb.add_argument("--model", help="the network; a workdir knows its own")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of SOURCE has")
    verb.add_argument("--out", required=True, help="FILE.safetensors (PyTorch's names), or a folder (Orbax)")
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.set_defaults(run=_convert)

    verb = verbs.add_parser("verify", help="compare with PyTorch, stage by stage, in float64 and float32")
    verb.add_argument("model", help="the network")
    verb.add_argument("file", nargs="?", help="its weights; by default random ones")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of FILE has")
    verb.add_argument("--sizes", help="of the images, as in 224x224,193x225 (the default; 32x32,33x29 for cifar_*)")
    verb.add_argument("--json", help="write the report here as well")
    verb.set_defaults(run=_verify)

    cli_inference.add_verbs(verbs, _read)
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
    out = pathlib.Path(arguments.out).expanduser()
    if out.exists() and not arguments.force:
        raise ValueError(f"{out} exists: choose another --out, or give --force to replace it.")
    model, variables = _read(arguments.source, arguments.model, arguments.num_classes)
    _write(out, model, variables)
    _, again = _read(str(out), arguments.model or "", arguments.num_classes, model)
    count, same = len(jax.tree.leaves(variables)), jax.tree.map(_same_bits, variables, again)
    if not all(jax.tree.leaves(same)):
        print(f"resnet-jax: {out} was written, but reads back differently: do not use it", file=sys.stderr)
        return 1
    print(f"{out}: written, read back: {count} tensors, bit-equal")
    return 0


def _read(
    source: str, name: str | None, num_classes: int | None, model: ResNet | None = None
) -> tuple[ResNet, Variables]:
    """Model and variables from a file under PyTorch's names, a workdir, or a folder of variables; strict."""
    if not pathlib.Path(source).expanduser().is_dir():
        tensors = formats.load_state_dict(source)
        model = model or _named(name, source, num_classes or _num_classes(tensors))
        return model, convert.from_torch(model, tensors)
    # Orbax takes a second to import, and files do without it.
    from resnet_jax.training import checkpoint, workdirs

    variables = checkpoint.load_variables(source)
    if model is None and not name:
        stored = workdirs.load_config(source)["model"]
        kwargs = {field: value for field, value in stored["kwargs"].items() if value is not None}
        model = create_model(stored["name"], num_classes=stored["num_classes"], **kwargs)
    model = model or _named(name, source, num_classes or len(variables["params"]["fc"]["bias"]))
    convert.to_torch(model, variables)  # strict, with its message
    return model, variables


def _write(out: pathlib.Path, model: ResNet, variables: Variables) -> None:
    if out.suffix == ".safetensors":
        formats.save_state_dict(out, convert.to_torch(model, variables))
        return
    if out.suffix in formats.TORCH_SUFFIXES:
        raise ValueError(
            f"{out}: give --out a name in .safetensors; PyTorch reads it too (safetensors.torch.load_file)."
        )
    from resnet_jax.training import checkpoint

    checkpoint.save_variables(str(out), variables)


def _named(name: str | None, source: str, num_classes: int | None) -> ResNet:
    if not name:
        raise ValueError(f"{source} does not say which network it holds: give --model=NAME (`resnet-jax list`).")
    return create_model(name, **({"num_classes": num_classes} if num_classes else {}))


def _num_classes(tensors: dict[str, np.ndarray]) -> int | None:
    heads = (["fc", "bias"], ["linear", "bias"])
    return next((len(tensor) for name, tensor in tensors.items() if name.split(".")[-2:] in heads), None)


def _same_bits(left: Any, right: Any) -> bool:
    left, right = np.asarray(left), np.asarray(right)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def _verify(arguments: argparse.Namespace) -> int:
    from resnet_jax.weights import verify

    tensors = formats.load_state_dict(arguments.file) if arguments.file else None
    classes = arguments.num_classes or (_num_classes(tensors) if tensors else None)
    default = "32x32,33x29" if arguments.model.startswith("cifar_") else "224x224,193x225"
    report = verify.verify(
        arguments.model,
        tensors,
        sizes=[_size(text) for text in (arguments.sizes or default).split(",")],
        num_classes=classes,
    )
    print(report.table())
    if arguments.json:
        pathlib.Path(arguments.json).write_text(report.json() + "\n")
    return 0 if report.passed else 1


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--sizes: {text!r} is no size; write HEIGHTxWIDTH, as in 224x224,193x225.")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
