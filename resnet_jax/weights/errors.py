"""The errors of weight files: one class for each kind, apart from the modules that raise them."""


class WeightFileError(ValueError):
    """A file that cannot be read, or is not a file of weights."""


class ConversionError(ValueError):
    """Weights and model do not belong together."""
