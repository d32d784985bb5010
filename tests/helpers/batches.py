"""Batches of made-up images, and the numbers that normalise them."""

import numpy as np

NUMBERS = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def make_batch(size, *, pixels=8, classes=5, seed=0):
    """uint8 images and labels."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, pixels, pixels, 3), np.uint8),
        "label": rng.integers(0, classes, size).astype(np.int32),
        "mask": np.ones(size, np.float32),
    }
