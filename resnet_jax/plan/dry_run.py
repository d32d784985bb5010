"""The start of a run, tried: all is built, a batch of each split read, both steps compiled, and nothing is written."""

import contextlib

import ml_collections

from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources import base
from resnet_jax.plan import needs
from resnet_jax.training import experiment, inputs, loop
from resnet_jax.training.keys import effect

SECONDS = 15.0  # that images of a split are looked at
SHOWN = 10  # that cannot be read, named


def dry_run(config: ml_collections.ConfigDict) -> list[str]:
    """Builds everything, reads a batch to train and one to test on, and compiles both steps, as `train` would.

    Images of both splits are looked at, for `SECONDS` each. No step is made, and nothing written.

    Returns:
      Lines for people: data, steps, parameters, and what the compiler says of the steps on each device.

    Raises:
      ValueError, UnreadableImage, needs.DoesNotFit: as `train` would fail.
    """
    effect.check(config)
    run = experiment.build(config)
    loop.check_hosts(run)
    looked = [_look(run, dataset) for dataset in (run.train_data, run.test_data)]
    with contextlib.closing(experiment.train_batches(run, 0)) as batches:
        batch = next(batches)
    with contextlib.closing(experiment.eval_batches(run)) as batches:
        next(batches)
    if run.config.init_from:
        run.load_initial()
    return [
        f"data         {run.config.data.name}: {run.facts.num_train:,} images to train on, {run.facts.num_test:,} to "
        f"test on, {run.facts.num_classes} classes; fingerprint {run.config.data.fingerprint}",
        *looked,
        f"batch        {run.config.batch_size} images, {len(batch['label'])} on this host, {batch['image'].shape[1:]}",
        f"run          {run.num_steps:,} steps, {run.steps_per_epoch:,} an epoch",
        *needs.describe(needs.analyse(run)),
        "nothing was trained or written",
    ]


def _look(run: experiment.Run, dataset: base.Dataset) -> str:
    """A line on the images of a split; those that cannot be read are refused by name, or named, as `train` would."""
    count, unreadable = inputs.look(dataset, SECONDS)
    named = "\n".join(unreadable[:SHOWN])
    if unreadable and run.config.data.on_error == "refuse":
        raise UnreadableImage(
            f"{len(unreadable)} of {count} {dataset.split} images that were looked at cannot be read:\n{named}\n"
            "Repair or remove them, or leave such images out with --config.data.on_error=skip."
        )
    state = f"{len(unreadable)} cannot be read:\n{named}" if unreadable else "all can be read"
    return f"images       looked at {count:,} of {len(dataset):,} of the {dataset.split} split: {state}"
