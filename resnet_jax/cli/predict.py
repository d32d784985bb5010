"""The verb `predict`: the most probable classes of images."""

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import inference
from resnet_jax.cli import net
from resnet_jax.data.sources.folder import EXTENSIONS


def add_verb(verbs: Any) -> None:
    """Adds `predict` to argparse's sub-parsers."""
    verb = verbs.add_parser("predict", help="the most probable classes of images")
    verb.add_argument("images", nargs="+", metavar="IMAGE", help="an image file, or a folder of them")
    verb.add_argument("--top", type=int, default=5, help="classes to show")
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line, for each image")
    form.add_argument("--csv", action="store_true", help="a line for each image and class")
    net.add_net(verb, batch_size=32)
    verb.set_defaults(run=lambda arguments: _predict(arguments, net.load(arguments)))


def _predict(arguments: argparse.Namespace, found: net.Net) -> int:
    """Exit code 1 if an image could not be read; each is named, and the others are predicted."""
    if arguments.top < 1:
        raise ValueError(f"--top={arguments.top} must be 1 or more.")
    if found.class_names is None:
        net.say(f"classes have numbers for names: {arguments.model} does not name them")
    paths, class_names = _image_files(arguments.images), found.class_names
    rows = inference.predictions(
        found.model,
        found.variables,
        paths,
        found.preprocessing,
        batch_size=arguments.batch_size,
        allow_nonfinite=arguments.allow_nonfinite,
    )
    show = _as_json if arguments.json else _as_csv if arguments.csv else _as_text
    if arguments.csv:
        print(",".join(COLUMNS))
    code = 0
    for path, row in zip(paths, rows, strict=True):
        if isinstance(row, Exception):
            code = 1
            net.say(f"left out: {row}")
            show(path, (), str(row))
        else:
            best = np.argsort(-row, kind="stable")[: arguments.top]
            show(path, [Guess(_name(class_names, i), float(row[i]), int(i)) for i in best], "")
    return code


class Guess(NamedTuple):
    """A class that an image may be of."""

    name: str
    probability: float
    number: int


# Of each image its path, and the best classes or the error of one that could not be read ----------------


def _as_text(path: pathlib.Path, top: Sequence[Guess], error: str) -> None:
    if not error:
        print(path, *(f"  {probability:8.2%}  {name}" for name, probability, _ in top), sep="\n")


def _as_json(path: pathlib.Path, top: Sequence[Guess], error: str) -> None:
    keys = ("name", "probability", "class")
    found = {"error": error} if error else {"top": [dict(zip(keys, guess, strict=True)) for guess in top]}
    print(json.dumps({"image": str(path), **found}))


COLUMNS = ("image", "place", "class", "name", "probability", "error")


def _as_csv(path: pathlib.Path, top: Sequence[Guess], error: str) -> None:
    name = str(path).encode("utf-8", "backslashreplace").decode()
    lines = [(name, place, guess.number, guess.name, guess.probability, "") for place, guess in enumerate(top, 1)]
    csv.writer(sys.stdout, lineterminator="\n").writerows([(name, "", "", "", "", error)] if error else lines)


def _name(names: Sequence[str] | None, number: int) -> str:
    return f"class {number}" if names is None else names[number]


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
        net.say(f"left out: {path} is no image by its name ({', '.join(EXTENSIONS)}); name it alone to have it tried")
    return images
