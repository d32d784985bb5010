"""The errors of weight files: one class for each kind, apart from the modules that raise them."""

from resnet_jax.errors import Refusal


class WeightFileError(Refusal, ValueError):
    """A file that cannot be read, or is not a file of weights."""


class ConversionError(Refusal, ValueError):
    """Weights that do not belong to the model, or, with values that are not finite, to none."""
