"""The rule of finite values against NumPy's `isfinite`: exact for every pattern of bits, and named."""

import itertools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from resnet_jax.weights import finite
from resnet_jax.weights.errors import ConversionError

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def bits_of(dtype):
    """Signs, exponents and fractions at their ends and beside them, as values of `dtype`."""
    size = np.dtype(dtype).itemsize
    unsigned = np.dtype(f"u{size}")
    fraction = {2: 7 if dtype is ml_dtypes.bfloat16 else 10, 4: 23, 8: 52}[size]
    exponents = range(1 << (8 * size - 1 - fraction))
    kept = [e for e in exponents if e < 3 or e > len(exponents) - 4 or e % 97 == 0]
    patterns = [
        sign << (8 * size - 1) | exponent << fraction | rest
        for sign, exponent, rest in itertools.product((0, 1), kept, (0, 1, (1 << fraction) - 1))
    ]
    return np.array(patterns, unsigned).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_pattern_of_bits_is_judged_as_numpy_judges_it(dtype):
    values = bits_of(dtype)
    with np.errstate(invalid="ignore"):  # of NaNs that signal
        wanted = np.isfinite(values.astype(np.float64))
    assert set(wanted.tolist()) == {True, False}
    for i, is_finite in enumerate(wanted):
        found = finite.damage({"x": np.concatenate([values[:1], values[i : i + 1], values[:1]])})
        assert (found == "") == is_finite, values[i]
    assert not finite.damage({"all": values[wanted]})


@pytest.mark.parametrize("place", [0, 1, finite._CHUNK - 1, finite._CHUNK, 2 * finite._CHUNK, -1])
def test_no_place_is_missed(place):
    values = np.ones(2 * finite._CHUNK + 5, np.float32)
    assert not finite.damage({"x": values})
    values[place] = -np.inf
    assert finite.damage({"x": values}).endswith(f"x: 1 of {values.size:,} float32 values: 1 -inf")


def test_layouts_byte_orders_and_other_dtypes():
    values = np.ones((4, 3, 5), np.float32)
    values[2, 1, 3] = np.nan
    tensors = {
        "transposed": values.transpose(2, 0, 1),
        "strided": values[::2, ::-1, 1::2],
        "one": values[2, 1, 3],
        "read-only": np.broadcast_to(values[2, 1, 3], (2,)),
        "big-endian": values.astype(">f4"),
        "float8": values.astype(ml_dtypes.float8_e4m3fn),
        "jax": jnp.asarray(values, jnp.bfloat16),
        "missed": values[:2],
        "none": values[:0],
        "integers": np.full(3, 0x7F800000, np.int32),
        "truths": np.array([True]),
    }
    found = finite.damage(tensors)
    assert [line.split(":")[0].strip() for line in found.splitlines()[1:]] == [*tensors][:7]
    assert "read-only: 2 of 2 float32 values: 2 NaN" in found


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_what_they_are_is_counted_and_only_a_variance_has_a_sign(dtype):
    values = np.array([1, np.nan, np.inf, -np.inf, np.inf, -0.0, -1, 0], dtype)
    name = np.dtype(dtype).name
    assert finite.damage({"bn1.running_mean": values}).splitlines()[1:] == [
        f"  bn1.running_mean: 4 of 8 {name} values: 1 NaN, 2 inf, 1 -inf"
    ]
    assert finite.damage({"bn1.running_var": values}).splitlines()[1:] == [
        f"  bn1.running_var: 5 of 8 {name} values: 1 NaN, 2 inf, 1 -inf, 1 below 0, which no variance is"
    ]
    assert not finite.damage({"bn1.running_var": values[[0, 5, 7]], "bn1.running_mean": values[[5, 6]]})


def test_the_first_tensors_are_named_with_the_way_out():
    tensors = {f"x{i}": np.array([np.nan if i % 2 else 1]) for i in range(20)}
    with pytest.raises(ConversionError) as error:
        finite.refuse(tensors, "net.pth", "Or do as told.")
    first, *lines, more, out = str(error.value).splitlines()
    assert first == "net.pth holds values that no trained network has:"
    assert lines == [f"  x{i}: 1 of 1 float64 values: 1 NaN" for i in range(1, 17, 2)]
    assert more == "  and 2 more tensors"
    assert "older checkpoint" in out
    assert out.endswith("Or do as told.")
    finite.refuse({"x0": tensors["x0"]}, "net.pth", "")


def test_a_value_that_is_alone_behind_the_last_chunk_is_not_missed():
    values = np.ones(finite._CHUNK + 1, np.float32)
    values[-1] = np.nan
    assert finite.damage({"x": values}).endswith("1 NaN")
