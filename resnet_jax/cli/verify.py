"""The verb `verify`: a comparison with PyTorch live, its record to take along, and the check of a record."""

import argparse
import pathlib
from typing import Any

import numpy as np

from resnet_jax.cli import net
from resnet_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from resnet_jax.models import variants
from resnet_jax.weights import sources


def add_verb(verbs: Any) -> None:
    """Adds the verb to argparse's sub-parsers."""
    verb = verbs.add_parser("verify", help="compare with PyTorch, stage by stage, in four precisions")
    verb.add_argument("model", nargs="?", help="the network, or a file, which is recognised; a record knows its own")
    verb.add_argument("file", nargs="?", help="its weights, from any source; by default random ones")
    verb.add_argument("--num-classes", type=int, help="of random weights; of a file 0 leaves the head out")
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
    net.add_source(verb)
    verb.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    from resnet_jax.proof import report as reports

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
    from resnet_jax.proof import verify

    _without(arguments, "a live comparison", "max_mb", "weights")
    name, _, tensors, fields = _subject(arguments)
    return verify.verify(
        name,
        tensors,
        **fields,
        library=arguments.library,
        dtypes=_dtypes(arguments),
        **_sizes_and_images(arguments, name),
    )


def _record_proof(arguments: argparse.Namespace) -> int:
    from resnet_jax.proof import recorded

    # The record refers to the file as it is: what is only a part of one has to be converted first.
    _without(arguments, "--record", "against", "weights", "dtypes", "json", "plot", *net.OF_SOURCE)
    name, source, _, fields = _subject(arguments)
    file = None if source is None else sources.locate(source).fetch()
    if file is not None and not pathlib.Path(file).is_file():
        raise ValueError(
            f"--record refers to a file of weights, and {source} is none: `resnet-jax convert` writes one."
        )
    written = recorded.record(
        arguments.record,
        name,
        file,
        fields=fields,
        arguments={field: value for field, value in fields.items() if field != "num_classes"},
        library=arguments.library,
        **({} if arguments.max_mb is None else {"max_mb": arguments.max_mb}),
        **_sizes_and_images(arguments, name),
    )
    for path in written:
        print(f"{path}: written, {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _check_proof(arguments: argparse.Namespace) -> Any:
    from resnet_jax.proof import recorded

    others = ("model", "file", "num_classes", "library", "sizes", "image", "max_mb", *net.OF_SOURCE)
    _without(arguments, "--against", *others)
    return recorded.check(arguments.against, weights_file=arguments.weights, dtypes=_dtypes(arguments))


def _without(arguments: argparse.Namespace, mode: str, *others: str) -> None:
    """Refuses what would have no effect."""
    given = [name.replace("_", "-") for name in others if getattr(arguments, name) is not None]
    if given:
        raise ValueError(f"{mode} does not take {', '.join(given)}: leave it out.")


# Fields that PyTorch's reference can have, too.
OF_BOTH = ("num_classes", "stride_in_1x1", "first_stage_stride")


def _subject(arguments: argparse.Namespace) -> tuple[str, str | None, dict[str, np.ndarray] | None, dict[str, Any]]:
    """The network's name, its source, the tensors of that, and fields of `OF_BOTH`.

    A source given alone says by itself, or by its tensors, what it is of.
    """
    name, source = arguments.model, arguments.file
    if not name:
        raise ValueError("which network? Give its name (`resnet-jax list`), a file of weights, or --against=PROOF.")
    if source is None and name in variants.list_models():
        _without(arguments, "a network with random weights", *net.OF_SOURCE)
        fields = {} if arguments.num_classes is None else {"num_classes": arguments.num_classes}
        return name, None, None, fields
    if source is None:
        name, source = None, name
    opened = net.open_source(arguments, source, name, arguments.num_classes)
    found = opened.identity
    for item in found.left_open:
        net.say(f"{source}: {item}")
    if others := {field: value for field, value in found.fields.items() if field not in OF_BOTH}:
        raise ValueError(
            f"{source} is of {found.name} with {others}, of which PyTorch has no reference here: `resnet-jax convert` "
            "takes it."
        )
    opened.check_evidence(variants.create_model(found.name, **found.fields))
    return found.name, source, opened.tensors, dict(found.fields)


def _dtypes(arguments: argparse.Namespace) -> list[str]:
    from resnet_jax.proof import verify

    return arguments.dtypes.split(",") if arguments.dtypes else list(verify.SETTINGS)


def _sizes_and_images(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    default = "32x32,33x29" if name.startswith("cifar_") else "224x224,193x225"
    sizes = [_size(text) for text in (arguments.sizes or default).split(",")]
    if not arguments.image:
        return {"sizes": sizes}
    return {"images": [np.stack([_image(path, *size) for path in arguments.image]) for size in sizes]}


def _image(path: str, height: int, width: int) -> np.ndarray:
    """An image file as `[height, width, 3]`, its middle, normalised as for ImageNet."""
    from resnet_jax.data.images import pillow

    image = pillow.decode(pathlib.Path(path).expanduser().read_bytes())
    image = pillow.resize_shorter(image, max(height, width))
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return ((image[top : top + height, left : left + width] / 255 - IMAGENET_MEAN) / IMAGENET_STD).astype(np.float32)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError(f"--sizes: {text!r} is no size; write HEIGHTxWIDTH, as in 224x224,193x225.")
    return int(height), int(width)
