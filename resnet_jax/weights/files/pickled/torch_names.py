"""The names that a checkpoint's pickle may use, and what each stands for: a record of ours, never the thing itself.

Whatever is not in `NAMES` is `Unknown`, which `containers.py` refuses outside of the places where no weights are. To
admit a name, add it to the row that says how it is to be read.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.pickled.pickles import Budget, Global, Inert, Unknown, kind, set_items, shown

BITS = ("conj", "neg")
MAX_AXES = 32  # NumPy's oldest limit, and far more than any weight has


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """A class of storages: PyTorch's name, the dtype of its elements (None: NumPy has no such), and their bytes."""

    name: str
    dtype: np.dtype | None
    itemsize: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """`count` elements of the storage `key`, from its element `start`."""

    key: str
    type: StorageType
    start: int
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * self.type.itemsize

    @property
    def end(self) -> int:
        """Bytes from the beginning of the storage to the end of these elements."""
        return (self.start + self.count) * self.type.itemsize


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A tensor that has been checked to lie within its storage; offset and strides count elements.

    With `conj` or `neg` its numbers are the conjugate or negative ones of those in the storage. `beside` are attributes
    that were saved with it.
    """

    storage: Storage
    dtype: np.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    conj: bool = False
    neg: bool = False
    beside: tuple[Any, ...] = dataclasses.field(default=(), repr=False)


def find_global(budget: Budget) -> Callable[[str, str], Any]:
    """A function from (module, name) to what is meant, `Unknown` if that is in no table, for a file with a budget."""
    rebuilders = {name: Global(name, functools.partial(build, budget.file_size)) for name, build in TENSORS.items()}

    def find(module: str, name: str) -> Any:
        full = f"{module}.{name}"
        return rebuilders.get(full) or NAMES.get(full) or Unknown(full)

    return find


def refuse(full: str) -> NoReturn:
    """Says why a name is not read.

    Raises:
      WeightFileError: always.
    """
    save = "Where PyTorch is, and if you trust the file, save the weights alone: torch.save(model.state_dict(), NEW)."
    if full.startswith(("torch.nn.modules.", "torchvision.models.", "timm.models.", "torch.nn.parallel.")):
        raise WeightFileError(f"a whole model is pickled in it ({full[:80]!r}), where only weights are read. {save}")
    raise WeightFileError(
        f"its pickle names {full[:80]!r}, which is not among the names that weights need: it was refused, and nothing "
        f"of it run. {save}"
    )


# Tensors ------------------------------------------------------------------------------------------------


def _tensor(file_size: int, args: tuple[Any, ...]) -> Tensor | Inert:
    """Arguments (storage, offset, size, stride, needs gradients, hooks, bits) of `_rebuild_tensor_v2`, or the first."""
    match args:
        case (Storage() as storage, offset, size, stride) | (Storage() as storage, offset, size, stride, _, _):
            return _checked(storage, storage.type, offset, size, stride, file_size)
        case (Storage() as storage, offset, size, stride, _, _, bits):
            return _with_bits(_checked(storage, storage.type, offset, size, stride, file_size), bits)
    raise WeightFileError("its pickle makes a tensor from something that is no storage: it is damaged.")


def _tensor_v3(file_size: int, args: tuple[Any, ...]) -> Tensor | Inert:
    """Those of `_rebuild_tensor_v3`, whose storage is of bytes, and which have the dtype before the bits."""
    match args:
        case (Storage() as storage, offset, size, stride, _, _, StorageType() as type_, *bits) if len(bits) < 2:
            return _with_bits(_checked(storage, type_, offset, size, stride, file_size), *bits)
    raise WeightFileError("its pickle makes a tensor from something that is no storage: it is damaged.")


def _with_bits(tensor: Tensor | Inert, bits: Any = None) -> Tensor | Inert:
    """The tensor with its bits, `{"conj": True}` or `{"neg": True}`: its numbers change when they are read."""
    if not bits or isinstance(tensor, Inert):
        return tensor
    if not isinstance(bits, dict) or not all(k in BITS and isinstance(v, bool) for k, v in bits.items()):
        said = sorted(shown(key)[:40] for key in bits)[:8] if isinstance(bits, dict) else kind(bits)
        raise WeightFileError(f"its pickle says of a tensor {said}, where PyTorch says {' or '.join(BITS)} at most.")
    if bits.get("neg") and tensor.dtype == bool:
        raise WeightFileError("its pickle has a negative tensor of bool, which PyTorch does not have: it is damaged.")
    return dataclasses.replace(tensor, **bits)


def _checked(
    storage: Storage, type_: StorageType, offset: Any, size: Any, stride: Any, file_size: int
) -> Tensor | Inert:
    if type_.dtype is None:
        return Inert(f"a tensor of {type_.name}")
    numbers = isinstance(size, tuple) and isinstance(stride, tuple) and (offset, *size, *stride)
    if not numbers or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers) or len(size) != len(stride):
        raise WeightFileError(
            "its pickle has a tensor with a size, stride or offset that none can have: it is damaged."
        )
    # Looked at before the product, which of many sizes is a number of as many digits.
    count = math.prod(size) if len(size) <= MAX_AXES else 0
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else -1
    item = type_.dtype.itemsize
    if len(size) > MAX_AXES or (last + 1) * item > storage.nbytes:
        raise WeightFileError(
            f"its pickle has a tensor of shape {size[:8]} that reaches beyond its storage of {storage.nbytes} bytes: "
            "it is damaged."
        )
    # A stride of 0 can make a tensor larger than what is stored; larger than the whole file it is an attack.
    if count * item > file_size:
        raise WeightFileError(f"its pickle has a tensor of shape {size[:8]}, larger than the whole file.")
    return Tensor(storage, type_.dtype, offset, size, stride)


def _parameter(file_size: int, args: tuple[Any, ...]) -> Tensor | Inert:
    """Arguments (tensor, requires_grad, ...) of `_rebuild_parameter`."""
    if not args or not isinstance(args[0], Tensor | Inert):
        raise WeightFileError("its pickle makes a parameter of something that is no tensor: it is damaged.")
    return _beside(args[0], args[3:])


def _subclass(file_size: int, args: tuple[Any, ...]) -> Tensor | Inert:
    """Arguments (function, type, its arguments, attributes) of `_rebuild_from_type_v2`: a tensor with attributes."""
    match args:
        case (Global() as function, Global(), tuple() as arguments, *_) if function.name in PLAIN_TENSORS:
            return _beside(TENSORS[function.name](file_size, arguments), args[3:])
    raise WeightFileError("its pickle makes a tensor in a way that torch.save does not: it is damaged.")


def _beside(tensor: Tensor | Inert, attributes: tuple[Any, ...]) -> Tensor | Inert:
    return dataclasses.replace(tensor, beside=attributes) if isinstance(tensor, Tensor) and attributes else tensor


TENSORS: dict[str, Callable[[int, tuple[Any, ...]], Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}
# Those that may stand inside `_rebuild_from_type_v2`; not itself, so that it cannot nest.
PLAIN_TENSORS = set(TENSORS) - {"torch._tensor._rebuild_from_type_v2"}

# Everything else ----------------------------------------------------------------------------------------


def _mapping(args: tuple[Any, ...]) -> dict[Any, Any]:
    """A dictionary from nothing, from another, from [key, value] pairs (Python 2), or from a factory of defaults."""
    match args:
        case () | (Global() | None,):
            return {}
        case (dict() as items,) | (Global() | None, dict() as items):
            return dict(items)
        case (list() as pairs,) if all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            return set_items({}, [x for pair in pairs for x in pair])
    raise WeightFileError(f"its pickle makes a dictionary of a {kind(args[0])}: it is damaged.")


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    match args:
        case ((tuple() | list()) as sizes,):
            return tuple(sizes)
    raise WeightFileError("its pickle has a torch.Size of something that is no sequence: it is damaged.")


def _inert(full: str) -> Global:
    return Global(full, lambda args: Inert(full, [args]))


# PyTorch's name of a type of elements, as in FloatStorage, and of the dtype -> NumPy's dtype.
_DTYPES: dict[tuple[str, str], Any] = {
    ("Double", "float64"): np.float64,
    ("Float", "float32"): np.float32,
    ("Half", "float16"): np.float16,
    ("BFloat16", "bfloat16"): ml_dtypes.bfloat16,
    ("Long", "int64"): np.int64,
    ("Int", "int32"): np.int32,
    ("Short", "int16"): np.int16,
    ("Char", "int8"): np.int8,
    ("Byte", "uint8"): np.uint8,
    ("Bool", "bool"): np.bool_,
    ("ComplexDouble", "complex128"): np.complex128,
    ("ComplexFloat", "complex64"): np.complex64,
    ("UInt16", "uint16"): np.uint16,
    ("UInt32", "uint32"): np.uint32,
    ("UInt64", "uint64"): np.uint64,
}
# Elements that no array here can hold -> their bytes.
_WITHOUT_DTYPE = {
    **{("QInt8", "qint8"): 1, ("QUInt8", "quint8"): 1, ("QInt32", "qint32"): 4, ("ComplexHalf", "complex32"): 4},
    **{("QUInt4x2", "quint4x2"): 1, ("QUInt2x4", "quint2x4"): 1},
    **{(f"Float8_{kind}", f"float8_{kind}"): 1 for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu")},
}
_TYPES = {names: StorageType(names[1], np.dtype(dtype), np.dtype(dtype).itemsize) for names, dtype in _DTYPES.items()}
_TYPES |= {names: StorageType(names[1], None, size) for names, size in _WITHOUT_DTYPE.items()}

_MAPPINGS = """
    collections.OrderedDict collections.defaultdict collections.Counter
    yacs.config.CfgNode fvcore.common.config.CfgNode easydict.EasyDict addict.addict.Dict munch.Munch
    pytorch_lightning.utilities.parsing.AttributeDict lightning_fabric.utilities.data.AttributeDict
    lightning.fabric.utilities.data.AttributeDict lightning.pytorch.utilities.parsing.AttributeDict
"""
_INERTS = """
    torch.Tensor torch.nn.parameter.Parameter torch.nn.parameter.Buffer torch.device torch.Generator
    torch.strided torch.sparse_coo torch.contiguous_format torch.channels_last torch.preserve_format
    torch.per_tensor_affine torch.per_channel_affine torch.serialization._get_layout
    torch._utils._rebuild_sparse_tensor torch._utils._rebuild_sparse_csr_tensor torch._utils._rebuild_qtensor
    torch._utils._rebuild_meta_tensor_no_storage torch._utils._rebuild_nested_tensor
    torch._utils._rebuild_device_tensor_from_numpy torch._utils._rebuild_device_tensor_from_cpu_tensor
    torch._utils._rebuild_wrapper_subclass torch._utils._rebuild_xla_tensor
    argparse.Namespace types.SimpleNamespace collections.deque _codecs.encode
    copy_reg._reconstructor copyreg._reconstructor
    datetime.datetime datetime.date datetime.time datetime.timedelta datetime.timezone
    pathlib.Path pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath
    pathlib._local.Path pathlib._local.PosixPath pathlib._local.WindowsPath
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.ndarray numpy.memmap numpy.dtype ml_dtypes.bfloat16
    numpy.bool numpy.bool_ numpy.float16 numpy.float32 numpy.float64
    numpy.int8 numpy.int16 numpy.int32 numpy.int64 numpy.uint8 numpy.uint16 numpy.uint32 numpy.uint64
    numpy.dtypes.Float16DType numpy.dtypes.Float32DType numpy.dtypes.Float64DType numpy.dtypes.BoolDType
    numpy.dtypes.Int8DType numpy.dtypes.Int16DType numpy.dtypes.Int32DType numpy.dtypes.Int64DType
    numpy.dtypes.UInt8DType numpy.dtypes.UInt16DType numpy.dtypes.UInt32DType numpy.dtypes.UInt64DType
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode typing.Any
    mmengine.logging.history_buffer.HistoryBuffer
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
"""
_BUILTINS = "set frozenset list dict tuple int float str bool complex bytes bytearray slice range object long unicode"

NAMES: dict[str, Any] = {
    **{name: Global(name, _mapping) for name in _MAPPINGS.split()},
    **{name: _inert(name) for name in _INERTS.split()},
    **{f"{module}.{name}": _inert(name) for module in ("builtins", "__builtin__") for name in _BUILTINS.split()},
    "torch.Size": Global("torch.Size", _size),
    **{f"torch{cuda}.{names[0]}Storage": type_ for names, type_ in _TYPES.items() for cuda in ("", ".cuda")},
    **{f"torch.{names[1]}": type_ for names, type_ in _TYPES.items()},
    **{
        f"torch.{name}": StorageType("bytes", np.dtype(np.uint8), 1)
        for name in ("UntypedStorage", "storage.UntypedStorage")
    },
}
