"""The file of a recorded proof: what is in it, written whole and read strictly. Nothing here runs a network.

A record is a safetensors file with a JSON header. Its tensors, `i` being the number of a case:

    weights/NAME    the weights, under PyTorch's names
    i/images        [batch, h, w, 3]
    i/STAGE         float64: the whole of [batch, features]; of a map [b, h, w, c] the values at `i/STAGE/at`, then of
                    each channel the mean and the standard deviation
    i/STAGE/at      uint32: places in the flattened map
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.proof import verify
from resnet_jax.weights.errors import WeightFileError
from resnet_jax.weights.files.replacing import replacing

KEY = "resnet_jax.proof"  # of the header; one key, since safetensors writes several in any order
VERSION = 1
# Of each map so many values are kept: a shift by a pixel changes nearly all of them.
SAMPLES = 1024


@dataclasses.dataclass(frozen=True)
class Proof:
    """A record.

    Attributes:
      name: of the network.
      fields: of `create_model`, in which it differs from the table's.
      peers: versions of PyTorch, torchvision and timm.
      weights: under PyTorch's names; None where they are in a file of their own.
      weights_file: name and sha256 of that file.
      cases: images and what PyTorch made of them.
    """

    name: str
    fields: Mapping[str, Any]
    peers: Mapping[str, str]
    weights: Mapping[str, np.ndarray] | None
    weights_file: Mapping[str, str] | None
    cases: Sequence[verify.Case]


def load(path: str | os.PathLike[str]) -> Proof:
    """Reads a record and checks that it is whole.

    Raises:
      WeightFileError: it is not a record, not one of this version, or damaged.
    """
    header, tensors = _read(pathlib.Path(path).expanduser())
    try:
        return Proof(
            name=header["model"],
            fields={key: tuple(x) if isinstance(x, list) else x for key, x in header["fields"].items()},
            peers=header["peers"],
            weights=None if header["weights_file"] else _below(tensors, "weights/"),
            weights_file=header["weights_file"],
            cases=[_unpack(tensors, i, description) for i, description in enumerate(header["cases"])],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{path}: the record lacks {error}: record it again.") from error


def pack(cases: Sequence[verify.Case], seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Tensors of the cases, maps sampled, and what the header says about them."""
    tensors: dict[str, np.ndarray] = {}
    descriptions = []
    rng = np.random.default_rng(seed)
    for i, case in enumerate(cases):
        maps = {stage: values for stage, values in case.stages.items() if values.ndim == 4}
        at = {
            stage: np.sort(rng.choice(values.size, min(SAMPLES, values.size), replace=False)).astype(np.uint32)
            for stage, values in maps.items()
        }
        shapes = {stage: list(values.shape) for stage, values in maps.items()}
        stages = verify.sample(case.stages, dataclasses.replace(case, at=at, shapes=shapes))
        halved = case.images.astype(np.float16)
        tensors[f"{i}/images"] = halved if np.array_equal(halved, case.images) else case.images
        tensors |= {f"{i}/{stage}": values for stage, values in stages.items()}
        tensors |= {f"{i}/{stage}/at": places for stage, places in at.items()}
        autocast = {stage: float(f"{error:.3g}") for stage, error in case.autocast.items()}
        descriptions.append({"train": case.train, "stages": list(stages), "shapes": shapes, "autocast": autocast})
    return tensors, descriptions


def _unpack(tensors: Mapping[str, np.ndarray], i: int, description: Mapping[str, Any]) -> verify.Case:
    return verify.Case(
        images=tensors[f"{i}/images"].astype(np.float32),
        stages={stage: tensors[f"{i}/{stage}"] for stage in description["stages"]},
        train=description["train"],
        autocast=description["autocast"],
        at={stage: tensors[f"{i}/{stage}/at"] for stage in description["shapes"]},
        shapes=description["shapes"],
    )


def save(path: pathlib.Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> pathlib.Path:
    """Whole or not at all. Nothing in it depends on when and where it was written."""
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    header = {"version": VERSION, "sha256": _digest(tensors), **header}
    data = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        pathlib.Path(temporary).write_bytes(data)
    return path


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise WeightFileError(f"{path}: there is no such file.")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            names = file.keys() if KEY in metadata else ()
            tensors = {name: file.get_tensor(name) for name in names}
        header = json.loads(metadata[KEY])
        version = header["version"]
    except KeyError as error:
        raise WeightFileError(
            f"{path}: not a recorded proof: write one with `resnet-jax verify NAME --record FILE`."
        ) from error
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise WeightFileError(f"{path}: not a whole recorded proof ({error}): copy or record it again.") from error
    if version != VERSION:
        raise WeightFileError(f"{path}: a proof of version {version}; this program reads {VERSION}: record it anew.")
    if header.get("sha256") != _digest(tensors):
        raise WeightFileError(f"{path}: the tensors are not those that were recorded: copy or record the file again.")
    return header, tensors


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of names, dtypes, shapes and bytes: safetensors itself does not see a changed byte."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype.str} {tensors[name].shape}\n".encode())
        total.update(tensors[name].tobytes())
    return total.hexdigest()
