"""Work that files made to harm cost, and the newer kinds of files cut short anywhere or given as another's."""

import contextlib
import pickle
import time

import numpy as np
import pytest

from resnet_jax.weights.files.formats import WeightFileError, load_state_dict, open_weights
from tests.helpers.growing_files import GROWING

# Each costs some 100 ms here. Where a byte was worked on again and again, such a file cost 2 seconds or, most, minutes.
SIZE, SECONDS = 200_000, 1.9
SIZES = {
    "a tensor of many axes": 600_000,
    "tuples of one hash as keys": 300_000,
    "many arguments of a harmless name": 20_000,
    "one long tuple as a key again and again": 40_000,
}


@pytest.mark.parametrize("attack", GROWING)
def test_work_is_bounded_by_the_size_of_the_file(tmp_path, attack):
    """`python -m benchmarks.hostile_work` shows the curves."""
    content = GROWING[attack](SIZES.get(attack, SIZE))
    (tmp_path / "x").write_bytes(content)
    before = time.process_time()
    with contextlib.suppress(WeightFileError):
        load_state_dict(tmp_path / "x")
    assert time.process_time() - before < SECONDS


ARRAY = {"params": {"w": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}}
WEIGHTS = {"model": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, "args": {"when": pytest.fail}}


def whole(kind):
    if kind == "msgpack":
        from flax import serialization

        return serialization.to_bytes(ARRAY)
    return pickle.dumps(WEIGHTS, kind)


@pytest.mark.parametrize("kind", ["msgpack", *range(6)])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, kind):
    content, path = whole(kind), tmp_path / "x"
    path.write_bytes(content)
    assert open_weights(path)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(WeightFileError):
            open_weights(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(WeightFileError, match="more behind it|does not end like it"):
        open_weights(path)


def test_objects_as_deep_as_the_file_are_shown_and_thrown_away(tmp_path):
    """Recursion in C ends a process, and one in Python is an error of another class."""
    path = tmp_path / "x"
    path.write_bytes(GROWING["objects in objects"](3_000_000))
    with pytest.raises(WeightFileError, match="holds a 'argparse.Namespace'|much more memory"):
        load_state_dict(path)
