"""The verb `evaluate`: what a network makes of a data set, class by class, each example counted once."""

import argparse
import dataclasses
import pathlib
import sys
import time
from typing import Any

from etils import epath

from resnet_jax import inference
from resnet_jax.cli import net
from resnet_jax.data import datasets
from resnet_jax.data.sources import base
from resnet_jax.runs import storage
from resnet_jax.scores import files, page, tables


def add_verb(verbs: Any) -> None:
    """Adds `evaluate` to argparse's sub-parsers."""
    verb = verbs.add_parser("evaluate", help="accuracy on a data set, of each class and image")
    verb.add_argument(
        "--data", help="digits, synthetic, tfds:NAME, or the PATH of an image folder; a run knows its own"
    )
    verb.add_argument("--split", default="test", choices=base.SPLITS)
    verb.add_argument("--data-dir", default="", help="where TFDS keeps prepared data")
    left = verb.add_argument_group("files, beside what the terminal shows")
    left.add_argument("--json", metavar="FILE", help="classes, confusion matrix, wrong images: one JSON object")
    left.add_argument(
        "--csv", metavar="FILE", help="a line for each image: its class, what it is taken for, how surely"
    )
    left.add_argument("--page", metavar="FILE.html", help="the wrong images, to be looked at")
    left.add_argument("--pictures", type=int, default=100, help="of wrong images on the page, at most (100)")
    net.add_net(verb, batch_size=64)
    verb.set_defaults(run=lambda arguments: _evaluate(arguments, net.load(arguments)))


def _evaluate(arguments: argparse.Namespace, found: net.Net) -> int:
    """Exit code 1 if an example could not be read; each is named, none is counted."""
    _check_files(arguments)
    dataset = _dataset(arguments, found)
    print(f"{dataset.name}, {dataset.split} split, {len(dataset)} examples; {found.preprocessing}")
    result = inference.evaluate(
        found.model,
        found.variables,
        dataset,
        found.preprocessing,
        batch_size=arguments.batch_size,
        allow_nonfinite=arguments.allow_nonfinite,
        progress=_Progress() if sys.stderr.isatty() else None,
    )
    for line in tables.lines(result, dataset):
        print(line)
    for line in result.unreadable:
        net.say(f"not counted: {line}")
    if result.unread:
        net.say(f"{len(result.unread)} of {len(dataset)} examples could not be read and are not counted")
    sys.stdout.flush()  # it stands whatever becomes of the files
    _write_files(arguments, result, dataset, found)
    return 1 if result.unread else 0


# What else it leaves ------------------------------------------------------------------------------------

FILES = ("json", "csv", "page")


def _check_files(arguments: argparse.Namespace) -> None:
    """Before the work that would be lost."""
    given = {key: pathlib.Path(path).expanduser() for key in FILES if (path := getattr(arguments, key))}
    for key, path in given.items():
        if path.is_dir() or not path.parent.is_dir():
            why = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
            raise ValueError(f"--{key}={path} {why}; give a file.")
    if len(set(given.values())) < len(given):
        raise ValueError(f"{', '.join(f'--{key}={path}' for key, path in given.items())}: give each a file of its own.")
    if arguments.pictures < 1:
        raise ValueError(f"--pictures={arguments.pictures} must be 1 or more.")


def _write_files(
    arguments: argparse.Namespace, result: inference.Result, dataset: base.Dataset, found: net.Net
) -> None:
    about = {"model": arguments.model, "preprocessing": dataclasses.asdict(found.preprocessing)}
    makers = {
        "json": lambda: files.to_json(result, dataset, about),
        "csv": lambda: files.to_csv(result, dataset),
        "page": lambda: page.render(
            result, dataset, f"{arguments.model}; {found.preprocessing}", arguments.pictures
        ).encode("utf-8", "backslashreplace"),
    }
    for key in FILES:
        if path := getattr(arguments, key):
            try:
                storage.write_whole(epath.Path(path).expanduser(), makers[key]())
            except storage.NotWritten as error:
                reason = getattr(error.__cause__, "strerror", None) or error.__cause__
                raise ValueError(f"--{key}={path} could not be written ({reason}): give another file.") from error
            print(path)


def _dataset(arguments: argparse.Namespace, found: net.Net) -> base.Dataset:
    name = arguments.data
    if not name:
        if not found.data:
            raise ValueError(f"give --data=NAME or --data=PATH: {arguments.model} is no run that knows its data.")
        dataset = net.open_of_run(found.data, arguments.split, arguments.data_dir)
        if found.class_names is not None and tuple(found.class_names) != dataset.class_names:
            raise ValueError(f"{arguments.model} was trained on classes of other names than {dataset.name!r} has now.")
        return dataset
    if name not in datasets.KNOWN and not name.startswith(base.TFDS_PREFIX):
        if not pathlib.Path(name).expanduser().exists():
            known = ", ".join(map(repr, datasets.KNOWN))
            raise FileNotFoundError(f"--data={name} is neither a data set ({known}) nor a folder, zip or tar there.")
        return datasets.open_dataset("folder", arguments.split, path=name)
    return datasets.open_dataset(
        name,
        arguments.split,
        data_dir=arguments.data_dir,
        image_size=found.preprocessing.image_size,  # this and what follows for made-up images alone
        channels=found.preprocessing.channels,
        num_classes=found.model.num_classes,
    )


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
