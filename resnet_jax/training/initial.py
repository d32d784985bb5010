"""What a run starts from where `config.init_from` says so: read, compared with the model, and taken or drawn anew."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.models.resnet import ResNet, traced_images
from resnet_jax.weights import convert, resolve
from resnet_jax.weights.adapt import adapt, describe, in_modules
from resnet_jax.weights.errors import ConversionError

logger = logging.getLogger(__name__)

Path = tuple[str, ...]
Flat = Mapping[Path, Any]


def load(
    source: str,
    model: ResNet,
    *,
    channels: int,
    anew: Sequence[str] = (),
    fit_channels: bool = False,
    ema: bool = True,
    seed: int = 0,
) -> convert.Variables:
    """The variables that a run starts from; the log says what was taken, adapted, initialised and left over.

    Args:
      source: a workdir, a checkpoint in one or a folder of variables; or any source of `load_pretrained`.
      model: the network that is to take them.
      channels: of the images that it will see.
      anew: modules, such as "fc", of which nothing is taken from `source`, whatever it has in their place.
      fit_channels: the first convolution may be fitted to `channels`, as `adapt` does it.
      ema: of a run that kept a moving average, take that: it is what the run evaluated.
      seed: of what is drawn, which is what a run from scratch with this seed starts from.

    Returns:
      The model's variables, NumPy arrays, each in the dtype that it was stored in.

    Raises:
      ConversionError: the weights differ from the model in more than the keys of the config allow.
      ValueError: a name in `anew` that neither of them has; no such source.
      FileNotFoundError, DownloadError, WeightFileError: as `load_variables` and `load_pretrained`.
    """
    given, what = _read(source, model, ema)
    wanted = _wanted(model, channels)
    _check_names(source, anew, given, wanted)
    _check_channels(source, channels, given, allowed=fit_channels or any(in_modules(path, anew) for path in _STEMS))
    _check_others(source, anew, given, wanted)
    dropped = {path for path in given.keys() & wanted.keys() if in_modules(path, anew)}
    taken = unflatten_dict({path: leaf for path, leaf in given.items() if path not in dropped})
    variables, diff = adapt(model, taken, in_channels=channels, waive=anew, key=jax.random.key(seed))
    left_over = tuple(sorted((*diff.left_over, *map(".".join, dropped))))
    logger.info("starts from %s, %s:\n%s", source, what, dataclasses.replace(diff, left_over=left_over))
    return variables


def _read(source: str, model: ResNet, ema: bool) -> tuple[dict[Path, np.ndarray], str]:
    """Variables, flat, of whatever network, and what they are in words."""
    opened = resolve.resolve(source, ema=None if ema else False)
    opened.check_evidence(model)
    return flatten_dict(convert.without_model(opened.tensors)), opened.what


def _wanted(model: ResNet, channels: int) -> Flat:
    """The model's variables as shapes; in float32, for float64 would need JAX's permission."""
    model = model.clone(train=False, dtype=None, param_dtype=np.float32)
    return dict(flatten_dict(jax.eval_shape(model.init, jax.random.key(0), traced_images(model, channels))))


# What does not fit --------------------------------------------------------------------------------------

_STEMS: tuple[Path, ...] = tuple(("params", *name.split("."), "kernel") for name in convert.FIRST_CONVS)


def _check_names(source: str, anew: Sequence[str], given: Flat, wanted: Flat) -> None:
    unknown = [name for name in anew if not any(in_modules(path, [name]) for path in (*given, *wanted))]
    if unknown:
        modules = ", ".join(sorted({path[1] for path in wanted}))
        raise ValueError(
            f"config.init_anew={tuple(anew)}: neither the model nor {source} has {', '.join(unknown)}. The model has "
            f"{modules}; name one of these, or a part of one (layer1.0)."
        )


def _check_channels(source: str, channels: int, given: Flat, *, allowed: bool) -> None:
    theirs = next((given[path].shape[2] for path in _STEMS if path in given and given[path].ndim == 4), channels)
    if theirs != channels and not allowed:
        raise ConversionError(
            f"{source} is of images with {theirs} channels, but those of config.data have {channels}: "
            "--config.init_fit_channels=True fits its first convolution to them."
        )


def _check_others(source: str, anew: Sequence[str], given: Flat, wanted: Flat) -> None:
    refused = sorted(
        path
        for path in given.keys() | wanted.keys()
        if not in_modules(path, anew) and _shape(given, path) != _shape(wanted, path)
    )
    if refused:
        modules = sorted({path[1] for path in refused})
        names = modules[0] if len(modules) == 1 else str(tuple(modules))
        way_out = (
            f"--config.init_anew={names} starts these modules anew; or give config.model the network of the weights."
        )
        raise ConversionError(f"{source} and config.model differ: {describe(refused, given, wanted, way_out)}")


def _shape(leaves: Flat, path: Path) -> tuple[int, ...] | None:
    """Without the input channels of a first convolution, which have been seen to."""
    shape = tuple(leaves[path].shape) if path in leaves else None
    return shape[:-2] + shape[-1:] if shape and path in _STEMS else shape
