"""PyTorch's files, zip and legacy, and plain pickles, to `{name: array}` in place, without PyTorch.

The pickle in them is read in the room `pickled`, and the arrays returned are views of the file.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files import archive, containers
from resnet_jax.weights.files.pickled import opcodes
from resnet_jax.weights.files.pickled.numpy_arrays import is_array, read_array
from resnet_jax.weights.files.pickled.pickles import MAX_NAME, Budget, Pickle
from resnet_jax.weights.files.pickled.torch_names import Storage, StorageType, Tensor, find_global

# The first pickle of a legacy file, and the version in the second.
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
# How a member of a zip is called that is none of torch.save's -> what such a zip is.
OTHER_ZIPS = {
    (
        "/constants.pkl",
        ".py",
    ): "a TorchScript program: where PyTorch is, torch.save(torch.jit.load(FILE).state_dict(), NEW)",
    (
        "archive_format",
    ): "a program of torch.export: where PyTorch is, torch.save(torch.export.load(FILE).state_dict, NEW)",
    (".npy",): "a .npz: safetensors.numpy.save_file(dict(numpy.load(FILE)), NEW)",
    (".weights.h5",): "a model of Keras's, where PyTorch's files and safetensors are read",
}


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """A file of PyTorch's or a plain pickle, read without its tensors.

    Attributes:
      content: what was saved; tensors in it are `Tensor`s, arrays of NumPy are `Inert`.
      arrays: gives `{name: array}` of some of them, as views of the file.
      unknown: names of what was passed over, since no table has them.
    """

    content: Any
    arrays: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]
    unknown: frozenset[str] = frozenset()


def read_zip(data: memoryview) -> TorchFile:
    """Reads what `torch.save` writes since PyTorch 1.6. Checksums are compared for the pickle and for `arrays`.

    Raises:
      WeightFileError: it is damaged, hostile, or another kind of zip.
    """
    members = archive.read_directory(data)
    folder = _folder(members)
    pickled = members[f"{folder}data.pkl"]
    archive.check_sums(data, [pickled])
    if (order := members.get(f"{folder}byteorder")) and data[order.start :][: order.size] != b"little":
        raise WeightFileError("it was saved on a big-endian machine, which is not read.")

    def find(storage: Storage) -> archive.Member:
        if (member := members.get(f"{folder}data/{storage.key}")) is None:
            raise WeightFileError(f"it has no data for storage {storage.key[:80]!r}: it is damaged.")
        if member.size != storage.nbytes:
            raise WeightFileError(
                f"storage {storage.key[:80]!r} is said to have {storage.nbytes} bytes, the file has {member.size}."
            )
        return member

    def load_storage(identity: Any) -> Storage:
        storage, _ = _storage(identity, 5)
        find(storage)
        return storage

    def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = {name: find(tensor.storage) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        archive.check_sums(data, found.values())
        return _arrays(tensors, {name: data[member.start :][: member.size] for name, member in found.items()}, data)

    machine = _machine(data[pickled.start :][: pickled.size], load_storage, len(data))
    return TorchFile(_run(machine), arrays, frozenset(machine.unknown))


def read_record(data: memoryview, name: str) -> str:
    """A text that stands in the zip beside what was saved.

    Raises:
      WeightFileError: it is not there, or the zip is damaged.
    """
    members = archive.read_directory(data)
    member = members.get(f"{_folder(members)}{name}")
    if member is None:
        raise WeightFileError(f"it has no record {name!r}.")
    archive.check_sums(data, [member])
    return bytes(data[member.start :][: member.size]).decode()


def read_pickle(data: memoryview) -> TorchFile:
    """Reads what `pickle.dump` wrote, or `torch.save` before PyTorch 1.6: pickles in a row, then bytes. No checksums.

    Raises:
      WeightFileError: it is damaged, hostile, or of other things than a dictionary.
    """
    storages: dict[str, Storage] = {}

    def load_storage(identity: Any) -> Storage:
        storage, view = _storage(identity, 6)
        known = storages.setdefault(storage.key, storage)
        if (known.nbytes, known.type.itemsize) != (storage.nbytes, storage.type.itemsize):
            raise WeightFileError(f"storage {storage.key[:80]!r} is said to have two sizes: it is damaged.")
        return storage if view is None else _view(storage, view)

    machine = _machine(data, load_storage, len(data))
    content = _run(machine)
    if isinstance(content, dict):
        if machine.position != len(data) or storages:
            raise WeightFileError("it is a pickle with more behind it, and torch.save did not write it.")
        places: dict[str, int] = {}
    elif content == MAGIC:
        content, places = _legacy(machine, data, storages)
    else:
        raise WeightFileError("it is a pickle, but not one that torch.save wrote, nor a dictionary.")

    def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        found = {name: tensor.storage for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        spans = {name: data[places[storage.key] :][: storage.end] for name, storage in found.items()}
        return _arrays(tensors, spans, data)

    return TorchFile(content, arrays, frozenset(machine.unknown))


def _legacy(machine: Pickle, data: memoryview, storages: Mapping[str, Storage]) -> tuple[Any, dict[str, int]]:
    """What was saved, and where its storages begin, in a file of which the machine has read the first pickle."""
    version, system = _run(machine), _run(machine)
    if version != VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightFileError("it is of a version, or of a big-endian machine, that is not read.")
    content, keys = _run(machine), _run(machine)
    return content, _places(data, machine.position, keys, storages)


def _folder(members: Iterable[str]) -> str:
    """The one folder in the zip that PyTorch puts everything in, with its slash."""
    names = [name for name in members if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    for endings, said in OTHER_ZIPS.items():
        if any(name.endswith(endings) for name in members):
            raise WeightFileError(f"it is {said}.")
    if len(names) != 1:
        raise WeightFileError(f"it is a zip with {len(names)} members data.pkl, where torch.save makes one.")
    return names[0].removesuffix("data.pkl")


def _machine(pickled: memoryview, load_persistent: Callable[[Any], Any], file_size: int) -> Pickle:
    budget = Budget(file_size)
    return Pickle(pickled, 0, find_global(budget), load_persistent, budget)


def _run(machine: Pickle) -> Any:
    """The value of the next pickle, in which names that no table has are where no weights are."""
    machine.memo.clear()
    value = opcodes.run(machine)
    containers.refuse_unknown(value, machine)
    return value


def _storage(identity: Any, most: int) -> tuple[Storage, Any]:
    """A storage from its persistent id: ('storage', type, key, location, count), in legacy files and a view of it."""
    match identity if isinstance(identity, tuple) and len(identity) <= most else None:
        case ("storage", StorageType() as kind, str() as key, str(), int() as count, *rest) if len(key) <= MAX_NAME:
            if not 0 <= count < 1 << 62:
                raise WeightFileError(f"storage {key[:80]!r} is said to have a number of elements that none can have.")
            return Storage(key, kind, 0, count), rest[0] if rest else None
        case ("module", *_):
            raise WeightFileError("a whole model is pickled in it, where only its weights are read.")
    raise WeightFileError("it names a storage in a way that torch.save does not: it is damaged.")


def _view(storage: Storage, view: Any) -> Storage:
    match view:
        case (str(), int() as offset, int() as count) if offset >= 0 and 0 <= count <= storage.count - offset:
            return Storage(storage.key, storage.type, offset, count)
    raise WeightFileError(f"a view of storage {storage.key[:80]!r} is larger than the storage: it is damaged.")


def _places(data: memoryview, position: int, keys: Any, storages: Mapping[str, Storage]) -> dict[str, int]:
    """Where the bytes of each storage begin in a legacy file: behind a count of elements, in the order of `keys`."""
    named = {key for key in keys if isinstance(key, str)} if isinstance(keys, list) else None
    if named != storages.keys() or len(keys) != len(storages):
        raise WeightFileError("its list of storages is not that of its tensors: it is damaged.")
    places = {}
    for key in keys:
        storage = storages[key]
        count = int.from_bytes(data[position : position + 8], "little", signed=True)
        places[key] = position + 8
        position += 8 + storage.nbytes
        if position > len(data):
            raise WeightFileError("it is cut short: its last tensors are missing; download it again.")
        if count != storage.count:
            raise WeightFileError(
                f"storage {key[:80]!r} is said to have {storage.count} elements, and has {count} in the file."
            )
    return places


def _arrays(tensors: Mapping[str, Any], spans: Mapping[str, memoryview], data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of tensors, whose storages are `spans` of the file, and of NumPy's arrays."""
    copies = Budget(len(data))
    known: dict[int, np.ndarray] = {}  # by identity: what was saved under two names is copied once
    for name, tensor in tensors.items():
        try:
            if id(tensor) not in known:
                read = read_array(tensor, copies) if is_array(tensor) else _array(tensor, spans[name], copies)
                known[id(tensor)] = read
        except WeightFileError as error:
            raise WeightFileError(f"tensor {name[:80]!r}: {error}") from error
    return {name: known[id(tensor)] for name, tensor in tensors.items()}


def _array(tensor: Tensor, data: memoryview, copies: Budget) -> np.ndarray:
    """A view of the bytes of the tensor's storage. NumPy checks once more that it stays within them."""
    item = tensor.dtype.itemsize
    try:
        array: np.ndarray = np.ndarray(
            tensor.size,
            tensor.dtype,
            buffer=data,
            offset=tensor.offset * item + tensor.storage.start * tensor.storage.type.itemsize,
            strides=[stride * item for stride in tensor.stride],
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise WeightFileError(f"it does not fit its storage ({error}).") from error
    if tensor.conj or tensor.neg:
        copies.spend(array.nbytes)
        array = np.negative(array) if tensor.neg else array
        array = np.conjugate(array) if tensor.conj else array
        array.flags.writeable = False
    return array
