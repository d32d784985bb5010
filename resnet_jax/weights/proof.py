"""A proof to take along: recorded where PyTorch is installed, checked where it is not, as on a TPU machine.

A record is a safetensors file. It holds images, what PyTorch made of them in float64, in evaluation at an even and an
odd size and in one training step, and the weights, or the sha256 of their file. (The idea of recorded runs is
Polygraphy's; golden logits are MaxText's.) Tensors, `i` being the number of a case:

    weights/NAME    the weights, under PyTorch's names
    i/images        [batch, h, w, 3]
    i/STAGE         float64: the whole of [batch, features]; of a map [b, h, w, c] the values at `i/STAGE/at`, then of
                    each channel the mean and the standard deviation
    i/STAGE/at      uint32: places in the flattened map
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from resnet_jax.models.variants import create_model
from resnet_jax.weights import verify
from resnet_jax.weights.convert import from_torch, native_names
from resnet_jax.weights.formats import WeightFileError, as_numpy, load_state_dict, save_state_dict
from resnet_jax.weights.reference import load_into_torch, randomise_norms, torch_reference, torch_versions
from resnet_jax.weights.report import Report

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


def record(
    path: str | os.PathLike[str],
    name: str,
    weights_file: str | os.PathLike[str] | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
    arguments: Mapping[str, Any] | None = None,
    library: str | None = None,
    sizes: Sequence[tuple[int, int]] = verify.SIZES,
    images: Sequence[np.ndarray] | None = None,
    batch_size: int = 2,
    seed: int = 0,
    max_mb: float = 2.0,
) -> list[pathlib.Path]:
    """Runs PyTorch and writes what it gave.

    Args:
      path: the record, FILE.safetensors.
      name: one of `list_models()`.
      weights_file: the weights; by default random ones, with random norm tensors, that float16 holds exactly.
      fields: of `create_model`, numbers, strings and tuples of them.
      arguments: the same for the builder of PyTorch's library.
      library: "torchvision" or "timm"; by default torchvision where it has the network.
      sizes: (height, width) of the images; the first is used for the training step too.
      images: instead of random images, arrays `[batch, h, w, 3]`, normalised.
      batch_size: images of each size.
      seed: of images, weights and of the places that are kept.
      max_mb: weights are part of the record where it stays within so many millions of bytes. Larger ones are referred
        to by the sha256 of their file; random ones are written beside the record, as NAME.weights.safetensors.

    Returns:
      The files that were written.

    Raises:
      ValueError: an unknown network, weights of another one, or a path that is no .safetensors.
      ImportError: PyTorch, or torchvision or timm, whose network it is, is not installed.
    """
    path, fields = pathlib.Path(path).expanduser(), dict(fields or {})
    if path.suffix != ".safetensors":
        raise WeightFileError(f"{path}: a proof is a .safetensors file; give a name that ends so.")
    classes = fields.get("num_classes")
    model = create_model(name, **fields)  # refuses an unknown name
    reference = torch_reference(name, num_classes=classes, library=library, seed=seed, **(arguments or {}))
    weights = _random_weights(reference, seed) if weights_file is None else _storable(load_state_dict(weights_file))
    from_torch(model, weights)
    load_into_torch(reference, weights)
    images = verify.random_images(sizes, batch_size, seed) if images is None else images
    cases = [verify.torch_case(reference, x) for x in images]
    cases.append(verify.torch_case(reference, images[0], train=True))
    tensors, descriptions = _pack(cases, seed)
    header = {"model": name, "fields": fields, "peers": torch_versions(), "cases": descriptions}
    inside = {f"weights/{key}": tensor for key, tensor in weights.items()}
    if sum(tensor.nbytes for tensor in (tensors | inside).values()) <= max_mb * 1e6:
        return [_write(path, tensors | inside, header | {"weights_file": None})]
    beside = [] if weights_file else [path.with_suffix(".weights.safetensors")]
    for file in beside:
        save_state_dict(file, weights)
    file = pathlib.Path(weights_file or beside[0]).expanduser()
    return [_write(path, tensors, header | {"weights_file": {"name": file.name, "sha256": _sha256(file)}}), *beside]


def check(
    path: str | os.PathLike[str],
    *,
    weights_file: str | os.PathLike[str] | None = None,
    dtypes: Sequence[str] = tuple(verify.SETTINGS),
) -> Report:
    """Runs our network on the images of a record and compares; needs no PyTorch.

    Args:
      path: the record.
      weights_file: where the record refers to a file of weights, that file.
      dtypes: the settings; "float64" runs on the CPU, the others on JAX's default device.

    Raises:
      WeightFileError: no record, a damaged one, or other weights than it was made with.
      ValueError: an unknown setting.
    """
    verify.check_dtypes(dtypes)
    proof = load(path)
    build = functools.partial(verify.create_model, proof.name, **proof.fields)
    weights = proof.weights if proof.weights is not None else _referred(proof, path, weights_file)
    return Report(proof.name, tuple(verify.check(build, weights, proof.cases, dtypes)), proof.peers)


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


def _random_weights(reference: Any, seed: int) -> dict[str, np.ndarray]:
    """Weights of a PyTorch module, norms made random, rounded to float16: half as large, and the same in every dtype."""
    randomise_norms(reference, seed)
    named = native_names(reference.state_dict())
    return {name: as_numpy(tensor).astype(np.float16) for name, tensor in named.items()}


def _storable(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bfloat16 as float32, which safetensors' NumPy side knows."""
    known = set(map(np.dtype, (np.float64, np.float32, np.float16)))
    return {name: x if x.dtype in known else x.astype(np.float32) for name, x in native_names(tensors).items()}


def _pack(cases: Sequence[verify.Case], seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
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


def _write(path: pathlib.Path, tensors: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> pathlib.Path:
    """Whole or not at all. Nothing in it depends on when and where it was written."""
    tensors = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    header = {"version": VERSION, "sha256": _digest(tensors), **header}
    data = safetensors.numpy.save(tensors, metadata={KEY: json.dumps(header, sort_keys=True)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    return temporary.replace(path)


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise WeightFileError(f"{path}: there is no such file.")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if KEY in metadata else {}  # noqa: SIM118
        header = json.loads(metadata[KEY])
        version = header["version"]
    except KeyError as error:
        raise WeightFileError(
            f"{path}: not a recorded proof: write one with `resnet-jax verify NAME --record FILE`."
        ) from error
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise WeightFileError(f"{path}: not a whole recorded proof ({error}): copy or record it again.") from error
    if version != VERSION:
        raise WeightFileError(
            f"{path}: a proof of version {version}, and this program reads {VERSION}: record it anew."
        )
    if header.get("sha256") != _digest(tensors):
        raise WeightFileError(f"{path}: the tensors are not those that were recorded: copy or record the file again.")
    return header, tensors


def _referred(proof: Proof, path: str | os.PathLike[str], given: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The weights that a record only refers to."""
    wanted = proof.weights_file or {}
    if given is None:
        raise WeightFileError(
            f"{path}: the weights are not part of the record: give --weights FILE, the file {wanted['name']!r} with the "
            f"sha256 {wanted['sha256']}."
        )
    file = pathlib.Path(given).expanduser()
    weights = load_state_dict(file)
    if (found := _sha256(file)) != wanted["sha256"]:
        raise WeightFileError(
            f"{file}: has the sha256 {found}, but the proof was recorded with {wanted['name']!r} of {wanted['sha256']}."
        )
    return weights


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """sha256 of names, dtypes, shapes and bytes: safetensors itself does not see a changed byte."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype.str} {tensors[name].shape}\n".encode())
        total.update(tensors[name].tobytes())
    return total.hexdigest()
