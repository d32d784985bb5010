"""PyTorch's files, zip and legacy, to `{name: array}` in place, without PyTorch.

The pickle in them is read by `pickles.py`, names in it are looked up in `torch_names.py`, and the arrays returned are
views of the file.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files import archive
from resnet_jax.weights.files.pickled.opcodes import run
from resnet_jax.weights.files.pickled.pickles import SPARE, Budget, Pickle
from resnet_jax.weights.files.pickled.torch_names import Storage, StorageType, Tensor, find_global

# The first pickle of a legacy file, and the version in the second.
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class TorchFile:
    """A file of PyTorch's, its pickle read and its tensors not yet.

    Attributes:
      content: what was saved; tensors in it are `Tensor`s.
      arrays: gives `{name: array}` of some of them, as views of the file.
    """

    content: Any
    arrays: Callable[[Mapping[str, Tensor]], dict[str, np.ndarray]]


def read_zip(data: memoryview) -> TorchFile:
    """Reads what `torch.save` writes since PyTorch 1.6. Checksums are compared for the pickle and for `arrays`.

    Raises:
      WeightFileError: it is damaged, hostile, or another kind of zip.
    """
    members = archive.read_directory(data)
    folder = _folder(members)
    pickled = members[f"{folder}data.pkl"]
    archive.check_sums(data, [pickled])
    if (order := members.get(f"{folder}byteorder")) and bytes(data[order.start :][: order.size]) != b"little":
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

    def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        found = {name: find(tensor.storage) for name, tensor in tensors.items()}
        archive.check_sums(data, found.values())
        return {
            name: _array(name, tensor, data[found[name].start :][: found[name].size])
            for name, tensor in tensors.items()
        }

    machine = Pickle(data[pickled.start :][: pickled.size], 0, find_global(len(data)), load_storage, _budget(data))
    return TorchFile(run(machine), arrays)


def read_legacy(data: memoryview) -> TorchFile:
    """Reads what `torch.save` wrote before PyTorch 1.6: pickles in a row, then the storages' bytes. No checksums.

    Raises:
      WeightFileError: it is damaged, hostile, or another kind of pickle.
    """
    storages: dict[str, Storage] = {}

    def load_storage(identity: Any) -> Storage:
        storage, view = _storage(identity, 6)
        known = storages.setdefault(storage.key, storage)
        if (known.nbytes, known.type.itemsize) != (storage.nbytes, storage.type.itemsize):
            raise WeightFileError(f"storage {storage.key[:80]!r} is said to have two sizes: it is damaged.")
        return storage if view is None else _view(storage, view)

    machine = Pickle(data, 0, find_global(len(data)), load_storage, _budget(data))
    if run(machine) != MAGIC:
        raise WeightFileError("it is a pickle, but not one that torch.save wrote.")
    version, system = _next(machine), _next(machine)
    if version != VERSION or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightFileError("it is of a version, or of a big-endian machine, that is not read.")
    content, keys = _next(machine), _next(machine)
    places = _places(data, machine.position, keys, storages)

    def arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {
            name: _array(name, tensor, data[places[tensor.storage.key] :][: tensor.storage.end])
            for name, tensor in tensors.items()
        }

    return TorchFile(content, arrays)


def _folder(members: Iterable[str]) -> str:
    """The one folder in the zip that PyTorch puts everything in, with its slash."""
    names = [name for name in members if name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)]
    if any(name.endswith(("/constants.pkl", ".py")) for name in members):
        raise WeightFileError(
            "it is a TorchScript program: where PyTorch is, torch.save(torch.jit.load(FILE).state_dict(), NEW)."
        )
    if len(names) != 1:
        raise WeightFileError(f"it is a zip with {len(names)} members data.pkl, where torch.save makes one.")
    return names[0].removesuffix("data.pkl")


def _budget(data: memoryview) -> Budget:
    return Budget(len(data) + SPARE)


def _next(machine: Pickle) -> Any:
    machine.memo.clear()
    return run(machine)


def _storage(identity: Any, most: int) -> tuple[Storage, Any]:
    """A storage from its persistent id: ('storage', type, key, location, count), in legacy files and a view of it."""
    match identity:
        case ("storage", StorageType() as kind, str() as key, str(), int() as count, *rest) if len(rest) <= most - 5:
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


def _array(name: str, tensor: Tensor, data: memoryview) -> np.ndarray:
    """A view of the bytes of the tensor's storage. NumPy checks once more that it stays within them."""
    item = tensor.dtype.itemsize
    try:
        return np.ndarray(
            tensor.size,
            tensor.dtype,
            buffer=data,
            offset=tensor.offset * item + tensor.storage.start * tensor.storage.type.itemsize,
            strides=[stride * item for stride in tensor.stride],
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise WeightFileError(f"tensor {name[:80]!r} does not fit its storage ({error}).") from error
