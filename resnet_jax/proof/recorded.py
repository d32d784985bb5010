"""A proof to take along: recorded where PyTorch is installed, checked where it is not, as on a TPU machine.

A record holds images, what PyTorch made of them in float64, in evaluation at an even and an odd size and in one
training step, and the weights, or the sha256 of their file; `record_file.py` says how. (The idea of recorded runs is
Polygraphy's; golden logits are MaxText's.)
"""

import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resnet_jax import compiler
from resnet_jax.models.variants import create_model
from resnet_jax.proof import record_file, verify
from resnet_jax.proof.reference import load_into_torch, randomise_norms, torch_reference, torch_versions
from resnet_jax.proof.report import Report
from resnet_jax.weights.convert import from_torch, native_names
from resnet_jax.weights.files.formats import WeightFileError, as_numpy, load_state_dict, save_state_dict


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
    tensors, descriptions = record_file.pack(cases, seed)
    header = {"model": name, "fields": fields, "peers": torch_versions(), "cases": descriptions}
    inside = {f"weights/{key}": tensor for key, tensor in weights.items()}
    if sum(tensor.nbytes for tensor in (tensors | inside).values()) <= max_mb * 1e6:
        return [record_file.save(path, tensors | inside, header | {"weights_file": None})]
    file = pathlib.Path(weights_file or path.with_suffix(".weights.safetensors")).expanduser()
    if not weights_file:
        save_state_dict(file, weights)
    referred = {"name": file.name, "sha256": _sha256(file)}
    written = record_file.save(path, tensors, header | {"weights_file": referred})
    return [written] if weights_file else [written, file]


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
    compiler.warn()
    proof = record_file.load(path)
    build = functools.partial(verify.create_model, proof.name, **proof.fields)
    weights = proof.weights if proof.weights is not None else _referred(proof, path, weights_file)
    return Report(proof.name, tuple(verify.check(build, weights, proof.cases, dtypes)), proof.peers)


def _random_weights(reference: Any, seed: int) -> dict[str, np.ndarray]:
    """Weights of a module, norms made random, rounded to float16: half as large in a file, the same in every dtype."""
    randomise_norms(reference, seed)
    named = native_names(reference.state_dict())
    return {name: as_numpy(tensor).astype(np.float16) for name, tensor in named.items()}


def _storable(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bfloat16 as float32, which safetensors' NumPy side knows."""
    known = set(map(np.dtype, (np.float64, np.float32, np.float16)))
    return {name: x if x.dtype in known else x.astype(np.float32) for name, x in native_names(tensors).items()}


def _referred(
    proof: record_file.Proof, path: str | os.PathLike[str], given: str | os.PathLike[str] | None
) -> dict[str, Any]:
    """The weights that a record only refers to."""
    wanted = proof.weights_file or {}
    if given is None:
        raise WeightFileError(
            f"{path}: the weights are not part of the record: give --weights FILE, which was {wanted['name']!r}, with "
            f"the sha256 {wanted['sha256']}."
        )
    file = pathlib.Path(given).expanduser()
    weights = load_state_dict(file)
    if (found := _sha256(file)) != wanted["sha256"]:
        raise WeightFileError(
            f"{file}: has the sha256 {found}, but the proof was recorded with {wanted['name']!r} of {wanted['sha256']}."
        )
    return weights


def _sha256(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
