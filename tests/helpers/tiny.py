"""A run that takes a second: its config, its last state, and whether two of them are the same."""

import os

import jax
import numpy as np

from paths import ROOT
from resnet_jax.configs import default
from resnet_jax.training import checkpoint, experiment

TINY = {"stage_sizes": (1,), "stage_features": (8,), "stem_features": 8}
TWO_STAGES = {"stage_sizes": (1, 1), "stage_features": (8, 16), "stem_features": 8}


def tiny_config(net=TINY, **changes):
    """A net, of one block by itself, on 64 synthetic images of 8 pixels: 8 steps an epoch."""
    config = default.get_config()
    config.batch_size = 8
    config.num_epochs = 2.0
    config.model.kwargs.update(net)
    config.data.name = "synthetic"
    config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config.data.num_examples = 64
    config.data.num_threads = 1
    config.optimizer.learning_rate = 0.02
    config.log_every_steps = 3
    config.compilation_cache_dir = ""
    config.update_from_flattened_dict(changes)
    if config.data.name != "synthetic" and "data.num_examples" not in changes:
        config.data.num_examples = default.get_config().data.num_examples  # which has no effect there
    return config


# Where a process of its own finds this file.
HELPERS = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])


def tiny_file(path, **changes):
    """The same config as a file."""
    path.write_text(f"from tiny import tiny_config\ndef get_config(): return tiny_config(**{changes!r})\n")
    return path


def equal(left, right):
    left, right = (jax.tree_util.tree_leaves_with_path(tree) for tree in (left, right))
    return [path for path, _ in left] == [path for path, _ in right] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(left, right, strict=True)
    )


def narrow(monkeypatch, count):
    """Leaves this process so many of its devices."""
    monkeypatch.setattr(jax, "devices", lambda *args, devices=jax.devices: devices(*args)[:count])
    monkeypatch.setattr(jax, "device_count", lambda: count)


def final_state(workdir, config):
    run = experiment.build(config)
    with checkpoint.Checkpointer(str(workdir)) as checkpoints:
        return checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
