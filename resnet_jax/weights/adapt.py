"""Variables of one network into another: other classes, other input channels, a backbone inside another module.

Strict by default: what does not fit is an error that names it, unless it is waived by name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.models.checks import whole
from resnet_jax.models.resnet import ResNet, traced_images
from resnet_jax.models.values import plain
from resnet_jax.weights.convert import FIRST_CONVS, ConversionError, Variables
from resnet_jax.weights.files.formats import as_numpy

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Diff:
    """What became of each variable, as dotted names (`params.fc.kernel`); prints as a table.

    Attributes:
      taken: as they are.
      adapted: fitted to another number of input channels.
      initialised: new, from the model's initialisers.
      left_over: given, but unknown to the model or of another shape there.
    """

    taken: tuple[str, ...]
    adapted: tuple[str, ...]
    initialised: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            shown = "" if field.name == "taken" else ", ".join(names)
            lines.append(f"{field.name.replace('_', ' '):<12}{len(names):>5}  {shown}".rstrip())
        return "\n".join(lines)


def adapt(
    model: ResNet,
    variables: Mapping[str, Any],
    *,
    in_channels: int = 3,
    channels: Sequence[int] | None = None,
    waive: Sequence[str] = (),
    key: jax.Array | None = None,
) -> tuple[Variables, Diff]:
    """Fits converted variables to a model with other classes, input channels or output stride.

    >>> import jax, jax.numpy as jnp
    >>> from resnet_jax import adapt, create_model
    >>> model = create_model("test_resnet", train=False)
    >>> pretrained = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    >>> variables, diff = adapt(model.clone(num_classes=10), pretrained, in_channels=1, waive=["fc"])
    >>> print(diff)
    taken          74
    adapted         1  params.conv1.0.kernel
    initialised     2  params.fc.bias, params.fc.kernel
    left over       2  params.fc.bias, params.fc.kernel

    The first convolution follows timm's rule: one channel takes the sum over three; more repeat the given ones and are
    scaled by given / wanted, so that the response to a grey image stays. The output stride is no parameter.

    Args:
      model: the network that is to take the variables.
      variables: those of a network that differs in some parts, e.g. what `from_torch` gives.
      in_channels: channels of the images that the model will see.
      channels: which of the given channels these are, in the order of the images' (`(3, 2, 1)` of 13 bands). Needed
        where there are fewer than the weights have, but for grey images and weights of RGB.
      waive: modules (`fc`, `layer4.0.se`) that may be initialised anew, left over, or both.
      key: of `jax.random`, for what is initialised; by default `jax.random.key(0)`.

    Returns:
      The model's variables, NumPy arrays in the dtypes that they had (new ones in the model's `param_dtype`, new
      statistics in float32 or more), and what became of each.

    Raises:
      ConversionError: a variable without a counterpart of its shape, outside the waived modules.
      ValueError: a waived name that neither network has; fewer channels, without saying which; channels that are not
        among those given.
    """
    if unknown := variables.keys() - {"params", "batch_stats"}:
        raise ConversionError(
            f"variables are {{'params': ..., 'batch_stats': ...}}, got {sorted(unknown)[:5]}: give what `init` or "
            "`from_torch` give, whole."
        )
    in_channels = plain(in_channels)
    if not whole(in_channels):
        raise ValueError(f"in_channels={in_channels!r} must be a whole number, 1 or more.")
    given = {path: as_numpy(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    images = traced_images(model, in_channels)
    key = jax.random.key(0) if key is None else key

    def init() -> Variables:
        clean = model.clone(train=False, dtype=None, param_dtype=jnp.float32)  # float64 would need JAX's permission
        return dict(clean.init(key, jnp.zeros(images.shape)))

    wanted = flatten_dict(jax.eval_shape(init))
    _check_waived(waive, [*given, *wanted])
    result = {path: given[path] for path in wanted if path in given and given[path].shape == wanted[path].shape}
    adapted = {
        path: _fit_channels(given[path], in_channels, channels)
        for path in wanted.keys() & given.keys() - result.keys()
        if ".".join(path[1:-1]) in FIRST_CONVS and _differ_in_channels(given[path].shape, wanted[path].shape)
    }
    if channels is not None and not adapted:
        raise ValueError(f"channels={tuple(channels)} choose among more, but the weights have {in_channels} as well.")
    initialised = wanted.keys() - result.keys() - adapted.keys()
    left_over = given.keys() - result.keys() - adapted.keys()
    refused = sorted(path for path in initialised | left_over if not in_modules(path, waive))
    if refused:
        modules = sorted({path[1] for path in refused})
        way_out = (
            f"If that is meant, adapt(..., waive={modules}) initialises and drops them; else build the other network."
        )
        raise ConversionError(describe(refused, given, wanted, way_out))
    # Under jit what is not wanted is not drawn either.
    fresh = jax.jit(lambda: {path: leaf for path, leaf in flatten_dict(init()).items() if path in initialised})()
    result |= adapted | {path: np.asarray(leaf).astype(_dtype(model, path, leaf)) for path, leaf in fresh.items()}
    names = [
        tuple(sorted(map(".".join, paths)))
        for paths in (result.keys() - adapted.keys() - initialised, adapted, initialised, left_over)
    ]
    return unflatten_dict(result), Diff(*names)


def graft(variables: Mapping[str, Any], backbone: Mapping[str, Any], name: str = "backbone") -> Variables:
    """Puts a network's variables into those of a module that has it as the submodule `name`.

    Args:
      variables: of the outer module, as its `init` gives them.
      backbone: of the network; first `adapt` them if the outer module leaves parts of it out.
      name: of the submodule; dots lead deeper (`encoder.backbone`).

    Returns:
      The outer module's variables with the network's in place of its own; neither argument is changed.

    Raises:
      ConversionError: the submodule's variables and the given ones differ in a name or a shape.
    """
    prefix = tuple(name.split("."))
    outer = flatten_dict(dict(variables))
    given = {(path[0], *prefix, *path[1:]): leaf for path, leaf in flatten_dict(dict(backbone)).items()}
    own = {path: leaf for path, leaf in outer.items() if path[1 : len(prefix) + 1] == prefix}
    if not own:
        inside = sorted({path[1] for path in outer})
        raise ConversionError(f"the module has no submodule {name!r}: it has {', '.join(inside)}.")
    refused = sorted(
        path
        for path in own.keys() | given.keys()
        if path not in own or path not in given or np.shape(own[path]) != np.shape(given[path])
    )
    if refused:
        way_out = f"Fit them to the submodule {name!r} first: adapt(MODEL, variables, waive=['fc']) drops a head."
        raise ConversionError(describe(refused, given, own, way_out))
    return unflatten_dict(outer | given)


def _dtype(model: ResNet, path: Path, leaf: jax.Array) -> Any:
    """Of a new variable: a parameter's is the model's, a statistic's at least float32, that of no float its own."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf.dtype
    return model.param_dtype if path[0] == "params" else jnp.promote_types(model.param_dtype, jnp.float32)


def _differ_in_channels(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return (*given[:2], given[3]) == (*wanted[:2], wanted[3])


def _fit_channels(kernel: np.ndarray, wanted: int, channels: Sequence[int] | None) -> np.ndarray:
    """`[h, w, given, out] -> [h, w, wanted, out]`."""
    given = kernel.shape[2]
    if channels is not None:
        if len(channels) != wanted or not all(0 <= channel < given for channel in channels):
            raise ValueError(
                f"channels={tuple(channels)} must be {wanted} of 0..{given - 1}, one for each channel of the images."
            )
        return np.take(kernel, channels, axis=2)
    if wanted == 1 and given == 3:
        return kernel.sum(axis=2, keepdims=True, dtype=kernel.dtype)
    if wanted < given:
        raise ValueError(
            f"the weights are of images with {given} channels, and these have {wanted}: say which of them they are, "
            f"as channels={tuple(range(wanted))}."
        )
    repeated = np.take(kernel, np.arange(wanted) % given, axis=2)
    return (repeated * (given / wanted)).astype(kernel.dtype)


def in_modules(path: Path, modules: Sequence[str]) -> bool:
    """Whether a variable's path (`("params", "fc", "bias")`) leads into one of `modules` (`fc`, `layer4.0.se`)."""
    name = ".".join(path[1:]) + "."
    return any(name.startswith(f"{prefix}.") for prefix in modules)


def _check_waived(waive: Sequence[str], paths: Sequence[Path]) -> None:
    unknown = [prefix for prefix in waive if not any(in_modules(path, [prefix]) for path in paths)]
    if isinstance(waive, str) or unknown:
        raise ValueError(f"waive must list modules such as 'fc' or 'layer4.0.se', got {waive!r}; unknown: {unknown}.")


def describe(refused: Sequence[Path], given: Mapping[Path, Any], wanted: Mapping[Path, Any], way_out: str) -> str:
    """The message on variables that do not fit, both shapes of each."""

    def shape(leaves: Mapping[Path, Any], path: Path) -> str:
        return str(np.shape(leaves[path])) if path in leaves else "nothing"

    lines = [
        f"  {'.'.join(path)}: {shape(given, path)} given, the model has {shape(wanted, path)}" for path in refused[:8]
    ]
    more = [f"  and {len(refused) - 8} more"] if len(refused) > 8 else []
    return "\n".join([f"{len(refused)} variables do not fit:", *lines, *more, way_out])
