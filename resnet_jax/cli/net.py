"""What the verbs share: from `--model` and its options to a network with all that belongs to it."""

import argparse
import ast
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax.data import datasets
from resnet_jax.data.sources import base
from resnet_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.weights import convert, finite, pretrained, resolve, sources

IMAGENET = Preprocessing(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network with all that belongs to it."""

    model: ResNet
    variables: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: Sequence[str] | None = None
    data: Mapping[str, Any] | None = None  # `config.data` of the run that it comes from


def add_net(verb: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds to a verb the options that `load` reads."""
    verb.add_argument("--model", required=True, help="a tag (resnet50.tv2_in1k), a workdir, a URL, a file or a folder")
    verb.add_argument("--network", help="the network of a file or folder that does not say which it holds")
    verb.add_argument("--batch-size", type=int, default=batch_size)
    add_source(verb)
    add_allow_nonfinite(verb)
    options = verb.add_argument_group("preprocessing, where --model does not say it, or to change it")
    options.add_argument("--image-size", type=int, help="pixels")
    options.add_argument("--resize-size", type=int, help="pixels of the shorter side, before the crop")
    options.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    options.add_argument("--mean", type=_numbers, help="of each channel, in units of full scale: 0.485,0.456,0.406")
    options.add_argument("--std", type=_numbers, help="likewise")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


# What `add_source` adds; each is None where it is not given.
OF_SOURCE = ("set", "container", "prefix", "drop", "ema")


def add_source(verb: argparse.ArgumentParser) -> None:
    """Adds to a verb the options that `open_source` reads."""
    options = verb.add_argument_group("weights that do not say all of themselves")
    options.add_argument("--set", action="append", metavar="FIELD=VALUE", help="a field of the network")
    options.add_argument("--container", help="of several sets of weights in a file, the one under this name")
    options.add_argument("--prefix", help="of several networks in one set, the one whose names begin so")
    options.add_argument("--drop", action="append", metavar="PREFIX", help="leave out what begins so")
    options.add_argument("--ema", action="store_true", default=None, help="take the moving average of the weights")


def add_allow_nonfinite(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--allow-nonfinite", action="store_true", help="take weights with NaN, infinities or negative variances, too"
    )


def _fields(given: Sequence[str]) -> dict[str, Any]:
    """`["stride_in_1x1=True", "stem_pool=max"]` as fields of `ResNet`; what is no Python value is text."""
    fields: dict[str, Any] = {}
    for text in given:
        field, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: write FIELD=VALUE, as in --set stride_in_1x1=True.")
        try:
            fields[field] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            fields[field] = value
    try:
        create_model("resnet18", **fields)
    except TypeError as error:
        raise ValueError(f"--set: {error}") from error
    return fields


# The network --------------------------------------------------------------------------------------------


def open_source(
    arguments: argparse.Namespace, source: str, network: str | None, num_classes: int | None = None
) -> resolve.Opened:
    """The weights of `source`, as the options of `add_source` say; `num_classes` is what somebody says they have.

    Raises:
      ValueError: as `resolve.resolve`; or the head has another number of classes.
    """
    opened = resolve.resolve(
        source,
        name=network,
        fields=_fields(arguments.set or ()),
        ema=arguments.ema,
        container=arguments.container,
        prefix=arguments.prefix,
        drop=arguments.drop or (),
    )
    head = opened.tensors.get("fc.weight")
    classes = 0 if head is None else len(head)
    if num_classes == 0 and classes:
        say(f"{source}: its head of {classes} classes is left out")
        return opened.without_head()
    if num_classes not in (None, classes):
        raise ValueError(
            f"--num-classes={num_classes}, but {source} has {f'a head of {classes}' if classes else 'no head'}: leave "
            "it out, or give 0, which leaves the head out; load_pretrained(..., num_classes=) starts a new one."
        )
    return opened


def load(arguments: argparse.Namespace) -> Net:
    """The network that `--model` stands for, with its preprocessing as the options change it.

    Raises:
      ValueError: options that contradict the source or each other; no such source.
    """
    opened = open_source(arguments, arguments.model, arguments.network)
    model, variables = opened.network()
    variables = pretrained.in_dtypes_of(model, variables)
    check_finite(arguments.model, variables, allow=arguments.allow_nonfinite)
    source = opened.source
    names = source.label_names
    if names is not None and len(names) != model.num_classes:
        raise ValueError(f"{source.text} names {len(names)} classes, and its network has {model.num_classes}.")
    preprocessing = _preprocessing(arguments, source, model)
    return Net(model, variables, preprocessing, names, None if source.run is None else source.run["data"])


def _preprocessing(arguments: argparse.Namespace, source: sources.Source, model: ResNet) -> Preprocessing:
    """What the source states, as the options change it; where it states nothing, what is assumed is said aloud."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Preprocessing)}
    changes = {name: value for name, value in given.items() if value is not None}
    if len(changes) == len(given):
        return Preprocessing(**changes)
    try:
        stated, assumed = source.preprocessing(), False
    except sources.NotStated:
        small = dataclasses.replace(IMAGENET, image_size=32, resize_size=32)
        stated, assumed = small if model.stem == "cifar" else IMAGENET, True
    except ValueError as error:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{error} Say how images are to be prepared, with all of {options}.") from error
    preprocessing = dataclasses.replace(stated, **changes)
    if arguments.image_size and not arguments.resize_size and preprocessing.resize_size < arguments.image_size:
        raise ValueError(
            f"--image-size={arguments.image_size} is more than the {preprocessing.resize_size} pixels that the "
            "shorter side is resized to, which would add a black frame: give --resize-size as well."
        )
    if assumed:
        say(f"{source.text} does not say how its images are prepared; assumed, as customary: {preprocessing}")
    return preprocessing


def check_finite(source: str, variables: Mapping[str, Any], *, allow: bool) -> None:
    """Refuses NaN, infinities and negative variances or, if they are allowed, names them.

    Raises:
      ConversionError: there are some, and they are not allowed.
    """
    tensors = convert.torch_named(variables)
    if not allow:
        finite.refuse(tensors, source, "--allow-nonfinite lets them pass.")
    elif found := finite.damage(tensors):
        say(f"{source} holds {found}")


# What they show and open ---------------------------------------------------------------------------------


def open_of_run(data: Mapping[str, Any], split: str, data_dir: str = "") -> base.Dataset:
    """One split of the data of a run, whose `config.data` is `data`; `data_dir` is where they lie now."""
    keys = ("path", "image_size", "num_examples")
    options = {key: data[key] for key in keys}
    return datasets.open_dataset(data["name"], split, data_dir=data_dir or data["data_dir"], **options)


def say(text: str) -> None:
    """A line for people; what a program reads goes to standard output."""
    print(f"resnet-jax: {text}", file=sys.stderr)
