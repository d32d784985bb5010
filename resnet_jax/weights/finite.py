"""What no trained network is made of, found and named: NaN, infinities, and variances below zero.

It is stopped where weights come in, for what a network gives need not tell of it: XLA's CPU compiler can turn the NaN
of an early layer into a zero, and the probabilities that come of it look like any others.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from resnet_jax.weights.errors import ConversionError

# Floats whose infinity has every bit of the exponent set, as NaN has, and as no other number does.
_IEEE = {np.dtype(dtype): np.dtype(f"u{np.dtype(dtype).itemsize}") for dtype in (np.float64, np.float32, np.float16)}
_IEEE[np.dtype(ml_dtypes.bfloat16)] = np.dtype(np.uint16)
# Values looked at a time: what is made of them stays in the processor's cache.
_CHUNK = 1 << 17
_SHOWN = 8  # tensors
_VARIANCE = "running_var"


def refuse(tensors: Mapping[str, Any], source: str, way_out: str) -> None:
    """Raises a `ConversionError` that names the tensors, if any holds such values.

    Args:
      tensors: as for `damage`.
      source: where they come from, the beginning of a sentence.
      way_out: what else to do than to take other weights, a sentence or "".
    """
    if found := damage(tensors):
        raise ConversionError(
            f"{source} holds {found}\nIt is damaged, or the run that it comes from had diverged: take another one, or "
            f"an older checkpoint of that run. {way_out}".rstrip()
        )


def damage(tensors: Mapping[str, Any]) -> str:
    """Which tensors hold such values, how many and what they are, a line for each; "" if none does.

    It is exact, for float16, bfloat16, float32 and float64 at the price of reading each byte once, and integers pass.

    Args:
      tensors: `{name: array}` under PyTorch's names (a variance ends in `running_var`), of NumPy or JAX.
    """
    lines = [f"  {name}: {said}" for name, tensor in tensors.items() if (said := _wrong(name, np.asarray(tensor)))]
    if not lines:
        return ""
    more = [f"  and {len(lines) - _SHOWN} more tensors"] if len(lines) > _SHOWN else []
    return "\n".join(["values that no trained network has:", *lines[:_SHOWN], *more])


@np.errstate(invalid="ignore")  # NumPy warns of some NaNs, which random bits can be
def _wrong(name: str, values: np.ndarray) -> str:
    """`3 of 36,864 float32 values: 2 NaN, 1 inf`; "" if nothing is wrong."""
    signed = name.rpartition(".")[2] != _VARIANCE
    if _is_finite(values) and (signed or not (values < 0).any()):
        return ""
    wide = values.astype(np.float64)
    found = {
        "NaN": np.isnan(wide),
        "inf": np.isposinf(wide),
        "-inf": np.isneginf(wide),
        "below 0, which no variance is": np.isfinite(wide) & (wide < 0) & (not signed),
    }
    counts = {what: int(np.sum(where)) for what, where in found.items() if where.any()}
    listed = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    return f"{sum(counts.values()):,} of {values.size:,} {values.dtype} values: {listed}"


def _is_finite(values: np.ndarray) -> bool:
    if not jnp.issubdtype(values.dtype, jnp.inexact):
        return True
    if values.dtype not in _IEEE:
        return bool(np.isfinite(values).all())
    # Of bits, for NumPy takes ten times as long over a float16 or a bfloat16 as a number.
    unsigned = _IEEE[values.dtype]
    exponent = np.array(np.inf, values.dtype).view(unsigned)
    bits = values.view(unsigned).ravel(order="K")
    return all((bits[i : i + _CHUNK] & exponent).max() != exponent for i in range(0, bits.size, _CHUNK))
