"""The verb `prepare`: archives and image folders to sharded ArrayRecord that TFDS reads, without TensorFlow."""

import argparse
import functools
import sys
from typing import Any

KINDS = ("imagenet2012", "cifar10", "cifar100", "folder")
INTERRUPTED = 130  # exit code of what Ctrl-C has stopped, as shells count it


def add_verb(verbs: Any) -> None:
    """Adds the verb to argparse's sub-parsers."""
    verb = verbs.add_parser("prepare", help="ImageNet's tars, CIFAR's archives or an image folder to ArrayRecord")
    verb.add_argument("kind", choices=KINDS, help="what the source holds")
    verb.add_argument(
        "--source",
        help="the folder with ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; cifar-10-python.tar.gz or "
        "cifar-10-binary.tar.gz, or CIFAR-100's; a folder, zip or tar with {train,test}/CLASS/*.jpg",
    )
    verb.add_argument("--name", help="folder only: the new data set's name, as in data.name=tfds:NAME")
    verb.add_argument("--data-dir", default="", help="where TFDS keeps data sets (~/tensorflow_datasets)")
    verb.add_argument("--shard-mb", type=float, default=128.0, help="MB of a shard, about (128)")
    verb.add_argument("--workers", type=int, default=0, help="processes; by default one for each core")
    verb.add_argument("--on-error", choices=("refuse", "skip"), default="refuse", help="about unreadable images")
    verb.add_argument("--decode", action="store_true", help="decode each image, to find damaged ones")
    verb.add_argument("--allow-subset", action="store_true", help="take a part of ImageNet or CIFAR, too")
    verb.add_argument("--check", action="store_true", help="verify what was prepared instead; needs no source")
    verb.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    if (arguments.kind == "folder") != bool(arguments.name):
        raise ValueError("a folder needs --name=NAME for the new data set; the others have names, and take none.")
    if arguments.check:
        return _check(arguments)
    if not arguments.source:
        raise ValueError(f"{arguments.kind} of what? Give --source=PATH, or --check to verify what was prepared.")
    from resnet_jax.data.prepare import run

    say = functools.partial(print, file=sys.stderr, flush=True)
    say(f"{arguments.source}: listing its images")
    try:
        summary = run.prepare(
            _list_source(arguments),
            arguments.data_dir,
            shard_mb=arguments.shard_mb,
            workers=arguments.workers,
            on_error=arguments.on_error,
            decode=arguments.decode,
            say=say,
        )
    except KeyboardInterrupt:
        say("stopped. Whole shards stand: the same command goes on from them.")
        return INTERRUPTED
    counts = ", ".join(f"{count:,} in {split}" for split, count in summary.records.items())
    print(f"{summary.path}: {counts}")
    for what, keys in (("left out as unreadable", summary.skipped), ("stored as PNG of RGB", summary.converted)):
        if keys:
            print(f"{len(keys):,} {what}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}")
    return 0


def _list_source(arguments: argparse.Namespace) -> Any:
    from resnet_jax.data.prepare import cifar, folders, ilsvrc

    if arguments.kind == "folder":
        if arguments.allow_subset:
            raise ValueError("--allow-subset has no meaning for a folder, which has no set size: leave it out.")
        return folders.list_folder(arguments.source, arguments.name)
    if arguments.kind == "imagenet2012":
        return ilsvrc.list_ilsvrc(arguments.source, arguments.allow_subset)
    return cifar.list_cifar(arguments.kind, arguments.source, arguments.allow_subset)


def _check(arguments: argparse.Namespace) -> int:
    """Exit code 1 for damage, as for a failed proof."""
    import tensorflow_datasets as tfds

    from resnet_jax.data.prepare import check, folders, metadata, run

    if arguments.kind == "folder":
        name, version = arguments.name, folders.VERSION
    else:
        name, version = arguments.kind, str(tfds.builder_cls(arguments.kind).VERSION)
    folder = run.dataset_folder(arguments.data_dir, name, version)
    damage = check.find_damage(folder, arguments.workers)
    for line in damage:
        print(line)
    manifest = metadata.read_manifest(folder)
    verdict = "as prepared"
    if damage:
        verdict = f"{len(damage)} files not as prepared: copy or remove them, or remove the folder and prepare again"
    print(f"{folder}: {len(manifest['shards'])} shards, {verdict}")
    return 1 if damage else 0
