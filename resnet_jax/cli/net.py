"""What the verbs share: from `--model` and its options to a network with all that belongs to it."""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax.data import datasets
from resnet_jax.data.sources import base
from resnet_jax.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.runs import workdirs
from resnet_jax.weights import convert, finite, recognise
from resnet_jax.weights.files import formats

Variables = dict[str, Any]
IMAGENET = Preprocessing(224, 256, "bilinear", IMAGENET_MEAN, IMAGENET_STD)


@dataclasses.dataclass(frozen=True)
class Net:
    """A network with all that belongs to it."""

    model: ResNet
    variables: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: Sequence[str] | None = None
    assumed: bool = False  # the preprocessing, since nothing tells it
    data: Mapping[str, Any] | None = None  # `config.data` of the run that it comes from


def add_net(verb: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds to a verb the options that `load` reads."""
    verb.add_argument("--model", required=True, help="a tag (resnet50.tv2_in1k), a workdir, a file or a folder")
    verb.add_argument("--network", help="the network of a file or folder that does not say which it holds")
    verb.add_argument("--batch-size", type=int, default=batch_size)
    add_allow_nonfinite(verb)
    options = verb.add_argument_group("preprocessing, where --model does not say it, or to change it")
    options.add_argument("--image-size", type=int, help="pixels")
    options.add_argument("--resize-size", type=int, help="pixels of the shorter side, before the crop")
    options.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    options.add_argument("--mean", type=_numbers, help="of each channel, in units of full scale: 0.485,0.456,0.406")
    options.add_argument("--std", type=_numbers, help="likewise")


def add_allow_nonfinite(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--allow-nonfinite", action="store_true", help="take weights with NaN, infinities or negative variances, too"
    )


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


# The network --------------------------------------------------------------------------------------------


def load(arguments: argparse.Namespace) -> Net:
    """The network that `--model` stands for, with its preprocessing as the options change it.

    Raises:
      ValueError: options that contradict the source or each other; no such source.
    """
    source, path = arguments.model, pathlib.Path(arguments.model).expanduser()
    config = workdirs.find_config(path)
    if arguments.network and (config or not path.exists()):
        what = "is a run, which does" if config else "is no file or folder that exists"
        raise ValueError(f"--network is for weights that do not say which network they are of, but {source} {what}.")
    if config:
        averaged = bool(config.get("ema", {}).get("decay"))  # what the run itself evaluated, then
        net = _of_run(config, *read(source, None, None, ema=averaged))
    elif arguments.network:
        net = _assumed(*read(source, arguments.network, None))
    else:
        net = _of_source(source)
    check_finite(source, net.variables, allow=arguments.allow_nonfinite)
    return dataclasses.replace(net, preprocessing=_adjusted(arguments, net))


def _adjusted(arguments: argparse.Namespace, net: Net) -> Preprocessing:
    """The net's preprocessing with what the options change; what is only assumed is said aloud."""
    given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Preprocessing)}
    changes = {name: value for name, value in given.items() if value is not None}
    preprocessing = dataclasses.replace(net.preprocessing, **changes)
    if arguments.image_size and not arguments.resize_size and preprocessing.resize_size < arguments.image_size:
        raise ValueError(
            f"--image-size={arguments.image_size} is more than the {preprocessing.resize_size} pixels that the "
            "shorter side is resized to, which would add a black frame: give --resize-size as well."
        )
    if net.assumed and len(changes) < len(given):
        say(f"{arguments.model} does not say how its images are prepared; assumed, as customary: {preprocessing}")
    return preprocessing


def _of_run(config: Mapping[str, Any], model: ResNet, variables: Mapping[str, Any]) -> Net:
    data = config["data"]
    # Runs of before there were these keys are evaluated at the size they are trained at, in bilinear.
    size, interpolation = data.get("eval_size") or data["image_size"], data.get("eval_interpolation", "bilinear")
    resize, mean, std = data["eval_resize"] or size, tuple(data["mean"]), tuple(data["std"])
    preprocessing = Preprocessing(size, resize, interpolation, mean, std)
    return Net(model, variables, preprocessing, data=data)


def _assumed(model: ResNet, variables: Mapping[str, Any]) -> Net:
    """With ImageNet's customary preprocessing: a file of weights tells nothing about it."""
    small = dataclasses.replace(IMAGENET, image_size=32, resize_size=32)
    return Net(model, variables, small if model.stem == "cifar" else IMAGENET, assumed=True)


def _of_source(source: str) -> Net:
    """Any source of `load_pretrained`, with what it knows of images and classes."""
    from resnet_jax.weights import pretrained, sources  # with what they need, for those who need it

    model, variables = pretrained.load_pretrained(source, allow_nonfinite=True)  # `load` checks
    try:
        class_names = sources.class_names(source)
    except ValueError as error:
        say(f"classes have numbers for names: {error}")
        class_names = None
    try:
        return Net(model, variables, sources.preprocessing(source), class_names)
    except ValueError:  # a file, or a folder or repository without it
        return dataclasses.replace(_assumed(model, variables), class_names=class_names)


# Weights and model --------------------------------------------------------------------------------------


def read(
    source: str, name: str | None, num_classes: int | None, *, ema: bool = False, keep_dtype: bool = False
) -> tuple[ResNet, Variables]:
    """Model and variables from weights under PyTorch's names, a workdir, or a folder of variables; strict.

    Their values are for `check_finite`.
    """
    if formats.holds_weights(source):
        tensors = _read_tensors(source, ema=ema, keep_dtype=keep_dtype)
        if name:
            model = create_model(name, num_classes=num_classes or _num_classes(tensors))
        else:
            name, overrides = recognise.identify(tensors)
            model = create_model(name, **overrides)
            print(f"{source}: {name}{''.join(f', {field}={value!r}' for field, value in overrides.items())}")
        return model, convert.from_torch(model, tensors, allow_nonfinite=True)
    # Orbax takes a second to import, and files do without it.
    from resnet_jax.weights.files import orbax_folder

    variables = orbax_folder.load_variables(source, ema=ema)
    if name:
        head = variables["params"].get("fc", {"bias": ()})
        model = create_model(name, num_classes=num_classes or len(head["bias"]))
    else:
        stored = workdirs.load_config(source)["model"]
        kwargs = {field: value for field, value in stored["kwargs"].items() if value is not None}
        model = create_model(stored["name"], num_classes=stored["num_classes"], **kwargs)
    convert.to_torch(model, variables, allow_nonfinite=True)  # strict, with its message
    return model, variables


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


def _read_tensors(source: str, *, ema: bool = False, keep_dtype: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a file under torchvision's names; halves are widened, with a note, unless they are to be kept."""
    tensors = recognise.native_names(formats.load_state_dict(source, ema=ema))
    halves = sorted({str(x.dtype) for x in tensors.values()} & {"float16", "bfloat16"})
    if not halves or keep_dtype:
        return tensors
    print(f"{source}: {' and '.join(halves)} widened to float32, exactly")
    return convert.upcast_halves(tensors)


def _num_classes(tensors: Mapping[str, np.ndarray]) -> int:
    """Width of the head of tensors under torchvision's names; 0 without one."""
    return len(tensors["fc.weight"]) if "fc.weight" in tensors else 0


# What they show and open ---------------------------------------------------------------------------------


def open_of_run(data: Mapping[str, Any], split: str, data_dir: str = "") -> base.Dataset:
    """One split of the data of a run, whose `config.data` is `data`; `data_dir` is where they lie now."""
    keys = ("path", "image_size", "num_examples")
    options = {key: data[key] for key in keys}
    return datasets.open_dataset(data["name"], split, data_dir=data_dir or data["data_dir"], **options)


def say(text: str) -> None:
    """A line for people; what a program reads goes to standard output."""
    print(f"resnet-jax: {text}", file=sys.stderr)
