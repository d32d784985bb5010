"""The verb `evaluate`: accuracy on a data set, each example counted once."""

import argparse
import pathlib
import sys
import time
from typing import Any

from resnet_jax import inference
from resnet_jax.cli import net
from resnet_jax.data import datasets
from resnet_jax.data.sources import base


def add_verb(verbs: Any) -> None:
    """Adds `evaluate` to argparse's sub-parsers."""
    verb = verbs.add_parser("evaluate", help="accuracy on a data set, each example counted once")
    verb.add_argument(
        "--data", help="digits, synthetic, tfds:NAME, or the PATH of an image folder; a run knows its own"
    )
    verb.add_argument("--split", default="test", choices=base.SPLITS)
    verb.add_argument("--data-dir", default="", help="where TFDS keeps prepared data")
    net.add_net(verb, batch_size=64)
    verb.set_defaults(run=lambda arguments: _evaluate(arguments, net.load(arguments)))


def _evaluate(arguments: argparse.Namespace, found: net.Net) -> int:
    """Exit code 1 if an example could not be read; each is named, none is counted."""
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
    print(f"top-1 {result.top1:.2%} ({result.correct}/{result.count})")
    print(f"top-5 {result.top5:.2%} ({result.correct_top5}/{result.count})")
    for line in result.unreadable:
        net.say(f"not counted: {line}")
    if result.unreadable:
        net.say(f"{len(result.unreadable)} of {len(dataset)} examples could not be read and are not counted")
    return 1 if result.unreadable else 0


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
