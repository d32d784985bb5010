"""The `resnet-jax` command: a thin door to the rooms. Each verb is one function; `main` turns errors into messages."""

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model, list_models
from resnet_jax.weights import convert, formats

Variables = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Exit code: 0 done, 1 a proof or a read-back failed, 2 unusable input."""
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
    verb.set_defaults(run=_list)

    verb = verbs.add_parser("convert", help="PyTorch weights to Flax variables, and back")
    verb.add_argument("source", help="a .pth or .safetensors file, a workdir of train.py, or a folder of variables")
    verb.add_argument("--model", help="the network; a workdir knows its own")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of SOURCE has")
    verb.add_argument("--out", required=True, help="FILE.safetensors (PyTorch's names), or a folder (Orbax)")
    verb.add_argument("--force", action="store_true", help="replace OUT if it is there")
    verb.set_defaults(run=_convert)

    _add_verify(verbs.add_parser("verify", help="compare with PyTorch, stage by stage, in four precisions"))
    return parser


def _list(arguments: argparse.Namespace) -> int:
    names = list_models(arguments.pattern)
    if not names:
        raise ValueError(f"no network matches {arguments.pattern!r}: `resnet-jax list` shows all.")
    for name in names:
        model = create_model(name)
        images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
        init = jax.eval_shape(lambda x, model=model: model.init(jax.random.key(0), x, train=False), images)
        print(f"{name:<20}{sum(leaf.size for leaf in jax.tree.leaves(init['params'])):>13,} parameters")
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
        model = create_model(stored["name"], num_classes=stored["num_classes"], **stored["kwargs"])
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


# verify -------------------------------------------------------------------------------------------------

# ImageNet's mean and standard deviation of each channel, 0..255.
MEAN, STD = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])


def _add_verify(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs="?", help="the network; a record knows its own")
    verb.add_argument("file", nargs="?", help="its weights; by default random ones")
    verb.add_argument("--num-classes", type=int, help="by default as many as the head of FILE has")
    verb.add_argument("--library", choices=("torchvision", "timm"), help="whose network is the reference")
    verb.add_argument("--sizes", help="of the images, as in 224x224,193x225 (the default; 32x32,33x29 for cifar_*)")
    verb.add_argument("--image", nargs="+", metavar="IMAGE", help="compare on these; by default on random images")
    verb.add_argument("--dtypes", help="some of float64,float32,default,bfloat16 (by default all)")
    verb.add_argument("--json", help="write the report here as well")
    verb.add_argument("--plot", metavar="FILE.png", help="draw it")
    verb.add_argument("--record", metavar="PROOF", help="write what PyTorch gives to PROOF.safetensors instead")
    verb.add_argument("--max-mb", type=float, help="with --record: weights are part of it up to so many MB (2)")
    verb.add_argument("--against", metavar="PROOF", help="compare with a record; needs no PyTorch")
    verb.add_argument("--weights", metavar="FILE", help="with --against: the weights, where the record has none")
    verb.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from resnet_jax.weights import report as reports

    if arguments.plot:
        reports.figure_class()  # says now, not after the work, that it is not there
    if arguments.record:
        return _record_proof(arguments)
    report = _check_proof(arguments) if arguments.against else _compare_live(arguments)
    print(report.table())
    if arguments.json:
        pathlib.Path(arguments.json).write_text(report.json() + "\n")
    if arguments.plot:
        reports.plot(report, arguments.plot)
    return 0 if report.passed else 1


def _compare_live(arguments: argparse.Namespace) -> Any:
    from resnet_jax.weights import verify

    _without(arguments, "a live comparison", "max_mb", "weights")
    tensors = formats.load_state_dict(arguments.file) if arguments.file else None
    return verify.verify(
        _model_name(arguments),
        tensors,
        num_classes=arguments.num_classes or (_num_classes(tensors) if tensors else None),
        library=arguments.library,
        dtypes=_dtypes(arguments),
        **_sizes_and_images(arguments),
    )


def _record_proof(arguments: argparse.Namespace) -> int:
    from resnet_jax.weights import proof

    _without(arguments, "--record", "against", "weights", "dtypes", "json", "plot")
    name, classes = _model_name(arguments), arguments.num_classes
    if arguments.file and not classes:
        classes = _num_classes(formats.load_state_dict(arguments.file))
    written = proof.record(
        arguments.record,
        name,
        arguments.file,
        fields={"num_classes": classes} if classes else {},
        library=arguments.library,
        **({} if arguments.max_mb is None else {"max_mb": arguments.max_mb}),
        **_sizes_and_images(arguments),
    )
    for path in written:
        print(f"{path}: written, {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _check_proof(arguments: argparse.Namespace) -> Any:
    from resnet_jax.weights import proof

    _without(arguments, "--against", "model", "file", "num_classes", "library", "sizes", "image", "max_mb")
    return proof.check(arguments.against, weights_file=arguments.weights, dtypes=_dtypes(arguments))


def _without(arguments: argparse.Namespace, mode: str, *others: str) -> None:
    """Refuses what would have no effect."""
    given = [name.replace("_", "-") for name in others if getattr(arguments, name) is not None]
    if given:
        raise ValueError(f"{mode} does not take {', '.join(given)}: leave it out.")


def _model_name(arguments: argparse.Namespace) -> str:
    if not arguments.model:
        raise ValueError("which network? Give its name (`resnet-jax list`), or --against=PROOF.")
    return str(arguments.model)


def _dtypes(arguments: argparse.Namespace) -> list[str]:
    from resnet_jax.weights import verify

    return arguments.dtypes.split(",") if arguments.dtypes else list(verify.SETTINGS)


def _sizes_and_images(arguments: argparse.Namespace) -> dict[str, Any]:
    default = "32x32,33x29" if _model_name(arguments).startswith("cifar_") else "224x224,193x225"
    sizes = [_size(text) for text in (arguments.sizes or default).split(",")]
    if not arguments.image:
        return {"sizes": sizes}
    return {"images": [np.stack([_image(path, *size) for path in arguments.image]) for size in sizes]}


def _image(path: str, height: int, width: int) -> np.ndarray:
    """An image file as `[height, width, 3]`, its middle, normalised as for ImageNet."""
    from resnet_jax.data import transforms

    image = transforms.decode(pathlib.Path(path).expanduser().read_bytes())
    image = transforms.resize_shorter(image, max(height, width))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return ((image[top : top + height, left : left + width] - MEAN) / STD).astype(np.float32)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--sizes: {text!r} is no size; write HEIGHTxWIDTH, as in 224x224,193x225.")
    return int(height), int(width)


if __name__ == "__main__":
    sys.exit(main())
