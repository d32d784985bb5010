"""The proof that a converted network is the same function: stage by stage against PyTorch, with a report.

PyTorch's side of it is in `reference.py`, ours in `stages.py`, the report in `report.py`, proofs to take along in
`proof.py`.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax import compiler
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.proof.reference import (
    Stages,
    load_into_torch,
    randomise_norms,
    torch_reference,
    torch_stage_outputs,
    torch_training_outputs,
    torch_versions,
)
from resnet_jax.proof.report import Bar, Report, Row, bar
from resnet_jax.proof.stages import stage_outputs, training_outputs, with_statistics
from resnet_jax.weights.convert import from_torch

# Setting -> fields of the network. "default" is what a backend multiplies in if nothing is asked of it.
SETTINGS: dict[str, dict[str, Any]] = {
    "float64": {"param_dtype": "float64", "precision": "highest"},
    "float32": {"param_dtype": "float32", "precision": "highest"},
    "default": {"param_dtype": "float32", "precision": "default"},
    "bfloat16": {"dtype": "bfloat16", "param_dtype": "float32"},
}
SIZES = ((224, 224), (193, 225))


@dataclasses.dataclass(frozen=True)
class Case:
    """Images, and what PyTorch makes of them in float64.

    Attributes:
      images: `[batch, h, w, 3]`; every setting gets the same numbers, which float32 holds exactly.
      stages: the reference, by stage; in training mode with the updated running statistics.
      train: training mode.
      autocast: PyTorch's own relative RMS error in bfloat16, by stage, where it was measured.
      at: for a stage of which the reference holds a sample, the places that it holds; see `proof.py`.
      shapes: of the stages in `at`.
    """

    images: np.ndarray
    stages: Stages
    train: bool = False
    autocast: Mapping[str, float] = dataclasses.field(default_factory=dict)
    at: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> str:
        _, height, width, _ = self.images.shape
        return f"{height}x{width}{' train' if self.train else ''}"


def verify(
    name: str,
    state_dict: Mapping[str, Any] | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    images: Sequence[np.ndarray] | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
    batch_size: int = 2,
    seed: int = 0,
    num_classes: int | None = None,
    library: str | None = None,
    **strides: Any,
) -> Report:
    """Compares the network `name` with PyTorch's own, which runs on the CPU in float64.

    Args:
      name: one of `list_models()`.
      state_dict: PyTorch weights; by default random ones with random norm tensors.
      sizes: (height, width) of the images; an even and an odd one see different paddings.
      images: instead of seeded random images of those sizes, arrays `[batch, h, w, 3]`, normalised.
      dtypes: some of "float64" (on the CPU: it separates the same function from a close one) and, on JAX's default
        device, "float32" at the highest precision, "default", the precision that the backend chooses, and "bfloat16".
      batch_size: images of each size.
      seed: of the images and of random weights.
      num_classes: width of the head, where it is not the network's own.
      library: "torchvision" or "timm"; by default torchvision where it has the network.
      **strides: `stride_in_1x1` and `first_stage_stride`, as the fields of `ResNet`.

    Raises:
      ValueError: an unknown name or dtype, or (as `ConversionError`) weights of another network.
      ImportError: PyTorch, or torchvision or timm, whose network it is, is not installed.
    """
    check_dtypes(dtypes)
    compiler.warn()
    fields = strides | ({} if num_classes is None else {"num_classes": num_classes})
    build = functools.partial(create_model, name, **fields)
    build()  # refuses an unknown name
    reference = torch_reference(name, library=library, seed=seed, **fields)
    randomise_norms(reference, seed)
    source = reference.state_dict() if state_dict is None else state_dict
    from_torch(build(), source)  # strict, and with our message, before PyTorch's
    load_into_torch(reference, source)
    images = random_images(sizes, batch_size, seed) if images is None else images
    cases = [torch_case(reference, x, autocast="bfloat16" in dtypes) for x in images]
    return Report(name, tuple(check(build, source, cases, dtypes)), torch_versions())


def check_dtypes(dtypes: Iterable[str]) -> None:
    """Raises `ValueError` for what is no setting."""
    unknown = [dtype for dtype in dtypes if dtype not in SETTINGS]
    if unknown:
        raise ValueError(f"unknown dtypes {unknown}: give some of {list(SETTINGS)}.")


def random_images(sizes: Sequence[tuple[int, int]], batch_size: int, seed: int) -> list[np.ndarray]:
    """Seeded normal images `[batch_size, h, w, 3]`: float32, of values that float16 holds too, for small files."""
    shapes = [(batch_size, height, width, 3) for height, width in sizes]
    return [np.random.default_rng(seed).standard_normal(s).astype(np.float16).astype(np.float32) for s in shapes]


def torch_case(module: Any, images: np.ndarray, *, train: bool = False, autocast: bool = True) -> Case:
    """What a PyTorch module makes of `images` in float64, and, if asked, how far its own bfloat16 is from that."""
    images = images.astype(np.float32)

    def run(images: np.ndarray, autocast: bool = False) -> Stages:
        if not train:
            return torch_stage_outputs(module, images, autocast=autocast)
        return with_statistics(*torch_training_outputs(module, images, autocast=autocast))

    exact = run(images.astype(np.float64))
    rough = run(images, autocast=True) if autocast else {}
    return Case(images, exact, train, {stage: _relative_rms(rough[stage], exact[stage]) for stage in rough})


def check(
    build: Callable[..., ResNet], state_dict: Mapping[str, Any], cases: Sequence[Case], dtypes: Sequence[str]
) -> list[Row]:
    """Runs our network on every case in every setting and compares.

    Args:
      build: fields of the setting -> the network.
      state_dict: PyTorch's names -> weights.
      cases: images and references.
      dtypes: names in `SETTINGS`.
    """
    rows: list[Row] = []
    for dtype in dtypes:
        with _arithmetic(dtype):
            model = build(**SETTINGS[dtype])
            variables = from_torch(model, state_dict, dtype=model.param_dtype)
            for case in cases:
                run = training_outputs if case.train else stage_outputs
                ours = run(model, variables, case.images.astype(model.param_dtype))
                rows += compare(sample(ours, case), case.stages, dtype=dtype, size=case.size, bars=_bars(dtype, case))
    return rows


def _bars(dtype: str, case: Case) -> dict[str, Bar]:
    """The bar of each stage. PyTorch's error in bfloat16 is the largest up to there: on few values it is chance."""
    if not case.autocast:
        return dict.fromkeys(case.stages, bar(dtype, jax.default_backend()))
    errors = itertools.accumulate((case.autocast[stage] for stage in case.stages), max)
    return {stage: bar(dtype, jax.default_backend(), error) for stage, error in zip(case.stages, errors, strict=True)}


@contextlib.contextmanager
def _arithmetic(dtype: str) -> Iterator[None]:
    """float64 runs on the CPU, which has it; everything else where JAX runs by default."""
    if dtype != "float64":
        yield
        return
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise ValueError(
            f"float64 runs on the CPU, which JAX was told to leave out ({error}): add it, as in JAX_PLATFORMS=tpu,cpu, "
            "or leave float64 out of the dtypes."
        ) from error
    with jax.enable_x64(True), jax.default_device(cpu):
        yield


def sample(outputs: Stages, case: Case) -> Stages:
    """The outputs as the references of `case` hold them: whole or, at the stages in `case.at`, sampled.

    A sample is some values, and of each channel mean and standard deviation over images and positions. The values show
    what moves (a shift by a pixel), the means and deviations any single value that is off.

    Raises:
      ValueError: a stage has another shape than the reference's.
    """
    found = dict(outputs)
    for stage in case.at.keys() & outputs.keys():
        x = outputs[stage].astype(np.float64)
        _check_shape(stage, x.shape, tuple(case.shapes[stage]))
        found[stage] = np.concatenate([x.ravel()[case.at[stage]], x.mean((0, 1, 2)), x.std((0, 1, 2))])
    return found


def _check_shape(stage: str, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    if ours != theirs:
        raise ValueError(f"{stage} has shape {ours}, PyTorch's has {theirs}.")


def compare(ours: Stages, theirs: Stages, *, dtype: str, size: str, bars: Mapping[str, Bar] | None = None) -> list[Row]:
    """One row for each stage; `bars` by stage; by default the setting's on a CPU.

    Raises:
      ValueError: other stages, or a stage of another shape.
    """
    if list(ours) != list(theirs):
        raise ValueError(f"cannot compare the stages {list(ours)} with {list(theirs)}.")
    rows = []
    for stage, reference in theirs.items():
        _check_shape(stage, ours[stage].shape, reference.shape)
        a, b = ours[stage].astype(np.float64), reference.astype(np.float64)
        classes = stage == "logits" and b.ndim == 2
        rows.append(
            Row(
                *(dtype, size, stage, float(np.abs(a - b).max()), float(np.abs(b).max())),
                rms=_relative_rms(a, b),
                cosine=_cosine(a, b),
                bar=bars[stage] if bars else bar(dtype),
                top1=_agreement(a, b, 1) if classes else None,
                top5=_agreement(a, b, 5) if classes else None,
            )
        )
    return rows


def _relative_rms(ours: np.ndarray, reference: np.ndarray) -> float:
    difference = np.linalg.norm(ours.astype(np.float64) - reference)
    return float(difference / max(float(np.linalg.norm(reference)), np.finfo(np.float64).tiny))


def _cosine(ours: np.ndarray, reference: np.ndarray) -> float:
    lengths = max(float(np.linalg.norm(ours) * np.linalg.norm(reference)), np.finfo(np.float64).tiny)
    return float(np.clip(np.vdot(ours, reference) / lengths, -1, 1))


def _agreement(ours: np.ndarray, theirs: np.ndarray, k: int) -> float:
    """Share of the images whose k largest logits belong to the same classes."""
    largest = [np.sort(np.argsort(-logits, axis=-1, kind="stable")[:, :k], axis=-1) for logits in (ours, theirs)]
    return float(np.mean(np.all(largest[0] == largest[1], axis=-1)))
