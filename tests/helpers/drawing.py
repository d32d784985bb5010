"""Random variables of a network, of which no two values are alike."""

import jax
import numpy as np


def drawn(shapes, seed=0):
    """Normal values for each leaf of a tree of shapes, none below zero where it is a variance."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape).astype(leaf.dtype)
        return np.abs(values) if path[-1].key == "var" else values

    return jax.tree_util.tree_map_with_path(draw, shapes)
