"""PyTorch's `{name: tensor}` to Flax variables and back: one table of leaf names, two transposes, and strict.

The parameter tree, flattened with dots, has PyTorch's module names already (`layer1.0.downsample.0`), so only the last
part of a name changes, and only kernels change their layout.
"""

import functools
import math
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from resnet_jax.models.resnet import ResNet, traced_images
from resnet_jax.weights import finite
from resnet_jax.weights.errors import ConversionError
from resnet_jax.weights.files.formats import as_numpy
from resnet_jax.weights.names import COUNTER, IGNORED, native_names

Variables = dict[str, Any]

# (collection, leaf) of Flax -> last part of PyTorch's name.
LEAVES = {
    ("params", "kernel"): "weight",
    ("params", "scale"): "weight",
    ("params", "bias"): "bias",
    ("batch_stats", "mean"): "running_mean",
    ("batch_stats", "var"): "running_var",
}
# Number of axes of a kernel -> axes that take PyTorch's layout to Flax's, and back.
TO_FLAX = {4: (2, 3, 1, 0), 3: (2, 1, 0), 2: (1, 0)}  # OIHW -> HWIO, OIW -> WIO, OI -> IO
TO_TORCH = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}
# Output channels that are transposed at a time: few enough that what is read and written fits the processor's cache,
# which makes it three to nine times as fast as all at once.
TILE = 32
# Modules that PyTorch defines after the convolutions and norms beside them, in this order.
LATER = ("maxpool", "layer", "se", "downsample", "fc")
# The first convolution, of a plain and of a deep stem.
FIRST_CONVS = ("conv1", "conv1.0")
# What an error on values that are not finite says of the way round it.
ALLOW = "allow_nonfinite=True lets them pass."


def from_torch(
    model: ResNet, state_dict: Mapping[str, Any], *, dtype: Any = None, allow_nonfinite: bool = False
) -> Variables:
    """Converts PyTorch weights to the variables of `model`.

    Args:
      model: the network that is to take them, e.g. `resnet50()`.
      state_dict: `{name: tensor}`, NumPy arrays or PyTorch tensors of any dtype, layout and device, under
        torchvision's names or others that `names.native_names` understands. `num_batches_tracked` may be there or
        not; blur-pool filters (`*.filt`) are constants and are passed over.
      dtype: dtype of the result; by default each tensor keeps its own.
      allow_nonfinite: take NaN, infinities and negative variances, bit for bit.

    Returns:
      `{'params': ..., 'batch_stats': ...}`, NumPy arrays of their own memory.

    Raises:
      ConversionError: tensors are missing, left over, or of another shape; all are named in one message. Or the result
        would hold NaN, infinities or negative variances (see `finite`).
    """
    _check_is_flat(state_dict)
    return from_native(model, native_names(state_dict), dtype=dtype, allow_nonfinite=allow_nonfinite)


def from_native(
    model: ResNet, state_dict: Mapping[str, Any], *, dtype: Any = None, allow_nonfinite: bool = False
) -> Variables:
    """`from_torch`, of tensors whose names are torchvision's by now."""
    tensors = {name: as_numpy(tensor) for name, tensor in state_dict.items()}
    paths = _paths(model, input_channels(tensors))
    names = _torch_names(paths)
    shapes = {names[path]: _torch_shape(path, shape) for path, shape in paths.items()}
    _check(model, {name: tensor.shape for name, tensor in tensors.items()}, shapes, "the state_dict")

    def leaf(path: tuple[str, ...]) -> np.ndarray:
        tensor = tensors[names[path]]
        tensor = tensor.transpose(_axes(path, tensor.ndim, TO_FLAX))
        copy = _empty(tensor.shape, dtype or tensor.dtype)
        if not tensor.ndim:
            copy[...] = tensor
        for start in range(0, tensor.shape[-1] if tensor.ndim else 0, TILE):
            copy[..., start : start + TILE] = tensor[..., start : start + TILE]
        return copy

    # NumPy lets go of Python while it copies, and the copies are most of the time.
    with ThreadPoolExecutor() as pool:
        leaves = dict(zip(paths, pool.map(leaf, paths), strict=True))
    if not allow_nonfinite:  # what `dtype` cannot hold is infinite by now
        finite.refuse({names[path]: leaf for path, leaf in leaves.items()}, "the state_dict", ALLOW)
    return dict(unflatten_dict(leaves))


def without_model(state_dict: Mapping[str, Any]) -> Variables:
    """Variables of whatever network the weights are of; no more than the endings of names is checked.

    They are for `adapt`, which is as strict as `from_torch`, and takes what is of another network in some parts.

    Args:
      state_dict: tensors under torchvision's names, as `native_names` gives them.

    Returns:
      `{'params': ..., 'batch_stats': ...}`, NumPy arrays, which may share memory with `state_dict`.

    Raises:
      ConversionError: a name ends as none of a ResNet's does.
    """
    variables = {}
    for name, tensor in state_dict.items():
        array = as_numpy(tensor)
        path = _flax_path(name, array.ndim)
        variables[path] = array.transpose(TO_FLAX[array.ndim]) if path[-1] == "kernel" else array
    return dict(unflatten_dict(variables))


def _flax_path(name: str, ndim: int) -> tuple[str, ...]:
    """Where a tensor of that name belongs; of the two that PyTorch calls weight, kernels have more axes than scales."""
    *modules, ending = name.split(".")
    for (collection, leaf), of_torch in LEAVES.items():
        if of_torch == ending and (leaf == "kernel") == (ndim in TO_FLAX):
            return (collection, *modules, leaf)
    endings = ", ".join(dict.fromkeys(LEAVES.values()))
    raise ConversionError(f"{name}, with {ndim} axes, is no tensor of a ResNet; theirs end in {endings}.")


def widened(array: np.ndarray) -> np.ndarray:
    """The array, or, of float16 and bfloat16, one of float32, which holds every value of theirs exactly."""
    halves = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    return array.astype(np.float32) if array.dtype in halves else array


def to_torch(model: ResNet, variables: Mapping[str, Any], *, allow_nonfinite: bool = False) -> dict[str, np.ndarray]:
    """Converts the variables of `model` to PyTorch's `state_dict`, in PyTorch's order and with every name it wants.

    `torch_model.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(model, variables).items()})` takes them.

    Args:
      model: the network that the variables belong to.
      variables: `{'params': ..., 'batch_stats': ...}`, NumPy or JAX arrays.
      allow_nonfinite: take NaN, infinities and negative variances, bit for bit.

    Returns:
      `{name: NumPy array}`, each in its own dtype and memory. `num_batches_tracked`, which Flax does not have and
      PyTorch only uses where `momentum=None`, is 0.

    Raises:
      ConversionError: the variables are not those of `model`; every difference is named. Or they hold NaN, infinities
        or negative variances, as those of a run that diverged (see `finite`).
    """
    found = {path: as_numpy(leaf) for path, leaf in flatten_dict(dict(variables)).items()}
    kernels = [found.get(("params", *name.split("."), "kernel")) for name in FIRST_CONVS]
    wanted = _paths(model, next((kernel.shape[-2] for kernel in kernels if kernel is not None and kernel.ndim == 4), 3))
    _check(
        model,
        {".".join(path): leaf.shape for path, leaf in found.items()},
        {".".join(path): shape for path, shape in wanted.items()},
        "the tree of variables",
    )
    names, tensors = _torch_names(wanted), {}
    for path in sorted(wanted, key=_definition_order):
        leaf = found[path]
        tensors[names[path]] = np.array(leaf.transpose(_axes(path, leaf.ndim, TO_TORCH)), order="C")
        if path[-1] == "var":
            tensors[".".join([*path[1:-1], COUNTER])] = np.zeros((), np.int64)
    if not allow_nonfinite:
        finite.refuse(tensors, "the tree of variables", ALLOW)
    return tensors


def torch_named(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a tree of variables as they are, in Flax's layout, under the names that PyTorch has for them."""
    return {_torch_name(path): leaf for path, leaf in flatten_dict(dict(variables)).items()}


def native(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Any network's variables under torchvision's names and in its layout, as views where that is possible."""
    return {
        _torch_name(path): _in_layout_of_torch(path, as_numpy(leaf))
        for path, leaf in flatten_dict(dict(variables)).items()
    }


def _in_layout_of_torch(path: tuple[str, ...], leaf: np.ndarray) -> np.ndarray:
    return leaf.transpose(TO_TORCH[leaf.ndim]) if path[-1] == "kernel" and leaf.ndim in TO_TORCH else leaf


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array on a boundary of 64 bytes, which JAX takes over on the CPU where it would copy another."""
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes].view(dtype).reshape(shape)


def torch_shapes(model: ResNet, in_channels: int = 3) -> dict[str, tuple[int, ...]]:
    """PyTorch's name of each tensor of `model` -> its shape there, without `num_batches_tracked`."""
    return {_torch_name(path): _torch_shape(path, shape) for path, shape in _paths(model, in_channels).items()}


def _paths(model: ResNet, in_channels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path of each leaf of the model's variables -> its shape; nothing is computed."""
    traced = model.clone(train=False, dtype=None, param_dtype=jnp.float32)  # float64 would need JAX's permission
    if type(model) is ResNet and model.block_widths is None:
        # From the second on the blocks of a stage are alike: two of each are traced, and the second is repeated.
        traced = traced.clone(stage_sizes=tuple(min(size, 2) for size in model.stage_sizes))
    paths = dict(_traced_once(traced, in_channels) if _has_hash(traced) else _traced(traced, in_channels))
    for i, (size, known) in enumerate(zip(model.stage_sizes, traced.stage_sizes, strict=True)):
        second = {path: shape for path, shape in paths.items() if path[1:3] == (f"layer{i + 1}", "1")}
        for j in range(known, size):
            paths |= {(*path[:2], str(j), *path[3:]): shape for path, shape in second.items()}
    return paths


def _traced(model: ResNet, in_channels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    variables = jax.eval_shape(model.init, jax.random.key(0), traced_images(model, in_channels))
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(variables).items()}


_traced_once = functools.lru_cache(maxsize=128)(_traced)


def _has_hash(model: ResNet) -> bool:
    """Not with a field of the user's own that has none, as a dataclass."""
    try:
        hash(model)
    except TypeError:
        return False
    return True


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in _axes(path, len(shape), TO_TORCH))


def _axes(path: tuple[str, ...], ndim: int, of_kernels: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """The order of axes on the other side: only kernels have another, and a norm's own of one axis has not."""
    return of_kernels[ndim] if path[-1] == "kernel" and ndim in of_kernels else tuple(range(ndim))


def _torch_name(path: tuple[str, ...]) -> str:
    collection, *modules, leaf = path
    return ".".join([*modules, LEAVES.get((collection, leaf), leaf)])  # a norm of the user's own may have others


def _torch_names(paths: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """PyTorch's name of each leaf; a part of the user's own may have leaves that cannot have one."""
    names: dict[str, tuple[str, ...]] = {}
    for path in paths:
        name = _torch_name(path)
        if name in names or path[-1] in IGNORED:
            why = f"so would {'.'.join(names[name])}" if name in names else "such tensors are passed over"
            raise ConversionError(
                f"the model's variable {'.'.join(path)} would be PyTorch's {name}, and {why}: give a norm or "
                "an attention of your own other names for its variables."
            )
        names[name] = path
    return {path: name for name, path in names.items()}


def input_channels(tensors: Mapping[str, Any]) -> int:
    """Channels of the images, from the first convolution among tensors of PyTorch's names; 3 if there is none."""
    weights = [tensors.get(f"{name}.weight") for name in FIRST_CONVS]
    return next((weight.shape[1] for weight in weights if weight is not None and weight.ndim == 4), 3)


def _definition_order(path: tuple[str, ...]) -> list[tuple[int, int, str]]:
    """Sorts leaves as PyTorch defines modules: conv1, bn1, ..., se, downsample; then the later layers, fc."""
    collection, *modules, leaf = path
    order = []
    for module in modules:
        kind = module.rstrip("0123456789")
        number = module.removeprefix(kind)
        # conv1 bn1 conv2 bn2 ... : by number first, the convolution before its norm
        last = LATER.index(kind) + 1 if kind in LATER else 0
        order.append((last, int(number or 0), {"conv": "0", "bn": "1"}.get(kind, kind)))
    known = list(LEAVES)
    return [*order, (0, known.index((collection, leaf)) if (collection, leaf) in known else len(known), leaf)]


# Errors -------------------------------------------------------------------------------------------------


def _check_is_flat(state_dict: Any) -> None:
    """Refuses what people give in place of `{name: tensor}`, with what to give."""
    if isinstance(state_dict, str | os.PathLike):
        raise ConversionError(
            f"from_torch takes {{name: tensor}}, got the path {os.fspath(state_dict)!r}: give load_state_dict(PATH); "
            "load_pretrained(PATH) finds the network as well."
        )
    if not isinstance(state_dict, Mapping):
        way = "give its state_dict()" if hasattr(state_dict, "state_dict") else "give a state_dict"
        raise ConversionError(f"from_torch takes {{name: tensor}}, got a {type(state_dict).__name__}: {way}.")
    nested = [name for name, value in state_dict.items() if not hasattr(value, "shape")]
    if nested:
        inner = [name for name in nested if isinstance(state_dict[name], Mapping)]
        way = f"give what stands under {inner[0]!r}" if inner else "give the tensors alone"
        raise ConversionError(
            f"from_torch takes {{name: tensor}}, and under {nested[0]!r} stands a "
            f"{type(state_dict[nested[0]]).__name__}: {way}."
        )


def _check(
    model: ResNet,
    found: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Raises one `ConversionError` that names every difference and, where it can tell, the way out."""
    missing, left_over = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    other = [name for name in wanted.keys() & found.keys() if found[name] != wanted[name]]
    if not (missing or left_over or other):
        return
    lines = [
        *_listed(f"missing from {source}", missing, lambda name: f"{name} {wanted[name]}"),
        *_listed("left over, unknown to the model", left_over, lambda name: f"{name} {found[name]}"),
        *_listed("of another shape", other, lambda name: f"{name}: {found[name]} given, the model has {wanted[name]}"),
    ]
    blocks = dict.fromkeys(_block_name(block) for block in np.ravel(np.array(model.block, object)))
    described = f"{'/'.join(blocks)} x {tuple(model.stage_sizes)}, {model.num_classes} classes"
    head = f"{source} does not fit the model ({described}):"
    raise ConversionError("\n".join([head, *lines, _way_out(found, missing, left_over, other)]))


def _block_name(block: Any) -> str:
    return str(getattr(block, "func", block).__name__)


def _listed(title: str, names: Iterable[str], line: Any, most: int = 8) -> list[str]:
    names = sorted(names)
    rest = [f"    and {len(names) - most} more"] if len(names) > most else []
    return [f"  {title} ({len(names)}):", *(f"    {line(name)}" for name in names[:most]), *rest] if names else []


def _way_out(
    found: Mapping[str, tuple[int, ...]], missing: Collection[str], left_over: Collection[str], other: Collection[str]
) -> str:
    odd = [*missing, *left_over, *other]
    if all("fc." in name for name in odd):
        if any(name.startswith("fc.") and name.split(".")[1].isdigit() for name in left_over):
            return "The head has several layers, and here it has one: drop='fc' (--drop fc) leaves it out."
        bias = next((shape for name, shape in found.items() if name.endswith("fc.bias")), (0,))
        return f"Only the head differs: build the model with num_classes={bias[0]}."
    same = len(found) - len(left_over) - len(other)
    if same < 4 * len(odd):
        return "These are the weights of another network: build the one that they belong to (resnet_jax.list_models())."
    if not left_over and not other:
        return f"The other {same} fit, so the file is not whole, or was written by a network without these."
    return (
        f"The other {same} fit, so the network is nearly the one: change the fields of the model that these belong to."
    )
