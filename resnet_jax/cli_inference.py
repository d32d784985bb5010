"""The verbs `predict` and `evaluate`: what network, which images, and how the result is shown."""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax import inference
from resnet_jax.data import datasets
from resnet_jax.data.folder import EXTENSIONS
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.models.resnet import ResNet

# (source, name of the network or None, number of classes or None, ema=the moving average) -> model and variables.
Read = Callable[..., tuple[ResNet, dict[str, Any]]]
IMAGENET = Preprocessing(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Net:
    """A network with all that belongs to it."""

    model: ResNet
    variables: Mapping[str, Any]
    preprocessing: Preprocessing
    class_names: Sequence[str] | None = None
    assumed: bool = False  # the preprocessing, since nothing tells it
    data: Mapping[str, Any] | None = None  # `config.data` of the run that it comes from


def add_verbs(verbs: Any, read: Read) -> None:
    """Adds both verbs to argparse's sub-parsers; `read` is what reads files and folders of weights."""
    verb = verbs.add_parser("predict", help="the most probable classes of images")
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder of them")
    verb.add_argument("--top", type=int, default=5, help="classes to show")
    verb.add_argument("--json", action="store_true", help="one JSON object a line, for each image")
    _add_net(verb, batch_size=32)
    verb.set_defaults(run=lambda arguments: _predict(arguments, _load(arguments, read)))

    verb = verbs.add_parser("evaluate", help="accuracy on a data set, each example counted once")
    verb.add_argument(
        "--data", help="digits, synthetic, tfds:NAME, or the PATH of an image folder; a run knows its own"
    )
    verb.add_argument("--split", default="test", choices=datasets.SPLITS)
    verb.add_argument("--data-dir", default="", help="where TFDS keeps prepared data")
    _add_net(verb, batch_size=64)
    verb.set_defaults(run=lambda arguments: _evaluate(arguments, _load(arguments, read)))


def _add_net(verb: argparse.ArgumentParser, batch_size: int) -> None:
    verb.add_argument("--model", required=True, help="a tag (resnet50.tv2_in1k), a workdir, a file or a folder")
    verb.add_argument("--network", help="the network of a file or folder that does not say which it holds")
    verb.add_argument("--batch-size", type=int, default=batch_size)
    options = verb.add_argument_group("preprocessing, where --model does not say it, or to change it")
    options.add_argument("--image-size", type=int, help="pixels")
    options.add_argument("--resize-size", type=int, help="pixels of the shorter side, before the crop")
    options.add_argument("--interpolation", choices=("bilinear", "bicubic"))
    options.add_argument("--mean", type=_numbers, help="of each channel, in units of full scale: 0.485,0.456,0.406")
    options.add_argument("--std", type=_numbers, help="likewise")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


# The network --------------------------------------------------------------------------------------------


def _load(arguments: argparse.Namespace, read: Read) -> Net:
    source, path = arguments.model, pathlib.Path(arguments.model).expanduser()
    config = _run_config(path)
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
        _say(f"{arguments.model} does not say how its images are prepared; assumed, as customary: {preprocessing}")
    return preprocessing


def _run_config(path: pathlib.Path) -> dict[str, Any] | None:
    """The config of a workdir of train.py; None if `path` is none. Others put a config.json beside weights too."""
    if not (path / "config.json").is_file():
        return None
    config = json.loads((path / "config.json").read_text())
    return config if {"model", "data"} <= set(config) else None


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
    from resnet_jax.weights import hub, sources  # with what they need, for those who need it

    model, variables = hub.load_pretrained(source)
    try:
        class_names = sources.class_names(source)
    except ValueError as error:
        _say(f"classes have numbers for names: {error}")
        class_names = None
    try:
        return Net(model, variables, sources.preprocessing(source), class_names)
    except ValueError:  # a file, or a folder or repository without it
        return dataclasses.replace(_assumed(model, variables), class_names=class_names)


# predict ------------------------------------------------------------------------------------------------


def _predict(arguments: argparse.Namespace, net: Net) -> int:
    """Exit code 1 if an image could not be read; each is named, and the others are predicted."""
    if arguments.top < 1:
        raise ValueError(f"--top={arguments.top} must be 1 or more.")
    paths, class_names = _image_files(arguments.images), _class_names(net)
    rows = inference.predictions(net.model, net.variables, paths, net.preprocessing, batch_size=arguments.batch_size)
    code = 0
    for path, row in zip(paths, rows, strict=True):
        if isinstance(row, Exception):
            code = 1
            _say(f"left out: {row}")
            if arguments.json:
                print(json.dumps({"image": str(path), "error": str(row)}))
            continue
        top = [(class_names[i], float(row[i]), int(i)) for i in np.argsort(-row, kind="stable")[: arguments.top]]
        if arguments.json:
            keys = ("name", "probability", "class")
            print(json.dumps({"image": str(path), "top": [dict(zip(keys, line, strict=True)) for line in top]}))
        else:
            print(path, *(f"  {probability:8.2%}  {name}" for name, probability, _ in top), sep="\n")
    return code


def _class_names(net: Net) -> Sequence[str]:
    """Those that come with the network, or of its run's data, or numbers."""
    names = net.class_names
    if names is None and net.data:
        try:
            names = _open_of_run(net.data, "test").class_names
        except (OSError, ValueError, ImportError) as error:
            _say(f"classes have numbers for names, since the data of the run cannot be opened: {error}")
    if names is None:
        return [f"class {i}" for i in range(net.model.num_classes)]
    if len(names) != net.model.num_classes:
        raise ValueError(f"there are {len(names)} class names for the network's {net.model.num_classes} classes.")
    return names


def _image_files(given: Iterable[str]) -> list[pathlib.Path]:
    """The files themselves, and the images in folders and folders of folders, sorted; others there are named."""
    paths: list[pathlib.Path] = []
    for path in (pathlib.Path(name).expanduser() for name in given):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist: give image files, or folders of them.")
        paths += _images_of(path) if path.is_dir() else [path]
    return paths


def _images_of(folder: pathlib.Path) -> list[pathlib.Path]:
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    files = [folder / path for path in inside if not any(part.startswith(".") for part in path.parts)]
    images = [path for path in files if path.suffix.lower() in EXTENSIONS]
    if not images:
        raise ValueError(f"{folder} has no images ({', '.join(EXTENSIONS)}) among its {len(files)} files.")
    for path in sorted(set(files) - set(images)):
        _say(f"left out: {path} is no image by its name ({', '.join(EXTENSIONS)}); name it alone to have it tried")
    return images


# evaluate -----------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace, net: Net) -> int:
    """Exit code 1 if an example could not be read; each is named, none is counted."""
    dataset = _dataset(arguments, net)
    print(f"{dataset.name}, {dataset.split} split, {len(dataset)} examples; {net.preprocessing}")
    result = inference.evaluate(
        net.model,
        net.variables,
        dataset,
        net.preprocessing,
        batch_size=arguments.batch_size,
        progress=_Progress() if sys.stderr.isatty() else None,
    )
    print(f"top-1 {result.top1:.2%} ({result.correct}/{result.count})")
    print(f"top-5 {result.top5:.2%} ({result.correct_top5}/{result.count})")
    for line in result.unreadable:
        _say(f"not counted: {line}")
    if result.unreadable:
        _say(f"{len(result.unreadable)} of {len(dataset)} examples could not be read and are not counted")
    return 1 if result.unreadable else 0


def _dataset(arguments: argparse.Namespace, net: Net) -> datasets.Dataset:
    name = arguments.data
    if not name:
        if not net.data:
            raise ValueError(f"give --data=NAME or --data=PATH: {arguments.model} is no run that knows its data.")
        return _open_of_run(net.data, arguments.split, arguments.data_dir)
    if name not in datasets.KNOWN and not name.startswith(datasets.TFDS_PREFIX):
        if not pathlib.Path(name).expanduser().exists():
            known = ", ".join(map(repr, datasets.KNOWN))
            raise FileNotFoundError(f"--data={name} is neither a data set ({known}) nor a folder, zip or tar there.")
        return datasets.open_dataset("folder", arguments.split, path=name)
    return datasets.open_dataset(
        name,
        arguments.split,
        data_dir=arguments.data_dir,
        image_size=net.preprocessing.image_size,  # this and what follows for made-up images alone
        channels=net.preprocessing.channels,
        num_classes=net.model.num_classes,
    )


def _open_of_run(data: Mapping[str, Any], split: str, data_dir: str = "") -> datasets.Dataset:
    keys = ("path", "image_size", "num_examples")
    options = {key: data[key] for key in keys}
    return datasets.open_dataset(data["name"], split, data_dir=data_dir or data["data_dir"], **options)


class _Progress:
    """One line on the terminal, rewritten a few times a second."""

    def __init__(self) -> None:
        self.start = self.shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - self.shown < 0.2:
            return
        self.shown = now
        rate = done / max(now - self.start, 1e-9)
        text = f"\r{done:,} of {total:,} images, {rate:.0f}/s, {(total - done) / rate:.0f} s left  "
        print(text, end="\n" if done == total else "", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(f"resnet-jax: {text}", file=sys.stderr)
