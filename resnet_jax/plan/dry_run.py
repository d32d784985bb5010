"""The start of a run, tried: everything is built, one batch is read and the step compiled, and nothing is written."""

import contextlib

import ml_collections

from resnet_jax.plan import needs
from resnet_jax.training import experiment, loop
from resnet_jax.training.keys import effect


def dry_run(config: ml_collections.ConfigDict) -> list[str]:
    """Builds everything, reads one batch and compiles the step, as `train` would; makes no step and writes nothing.

    Returns:
      Lines for people: data, steps, parameters, and what the compiler says of the step on each device.

    Raises:
      ValueError, needs.DoesNotFit: as `train` would fail.
    """
    effect.check(config)
    run = experiment.build(config)
    loop.check_hosts(run)
    with contextlib.closing(experiment.train_batches(run, 0)) as batches:
        batch = next(batches)
    if run.config.init_from:
        run.load_initial()
    return [
        f"data         {run.config.data.name}: {run.facts.num_train:,} images to train on, {run.facts.num_test:,} to "
        f"test on, {run.facts.num_classes} classes; fingerprint {run.config.data.fingerprint}",
        f"batch        {run.config.batch_size} images, {len(batch['label'])} on this host, {batch['image'].shape[1:]}",
        f"run          {run.num_steps:,} steps, {run.steps_per_epoch:,} an epoch",
        *needs.describe(needs.analyse(run)),
        "nothing was trained or written",
    ]
