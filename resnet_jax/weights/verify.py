"""The proof that a converted network is the same function: stage by stage against PyTorch, with a report.

PyTorch's side of it is in `reference.py`.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.weights.convert import from_torch
from resnet_jax.weights.reference import Stages, load_into_torch, randomise_norms, torch_reference, torch_stage_outputs

# Largest difference over the largest reference value that is still "the same function", for each dtype.
BARS = {"float64": 1e-10, "float32": 1e-5}
# Networks of more blocks are run op by op: XLA takes minutes to compile hundreds of layers for one use.
MOST_JITTED = 60


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage at one size in one dtype. `relative` is `difference / reference`, both largest absolute values."""

    dtype: str
    size: str
    stage: str
    difference: float
    reference: float

    @property
    def relative(self) -> float:
        return self.difference / max(self.reference, np.finfo(np.float64).tiny)

    @property
    def passed(self) -> bool:
        # Written so that a NaN fails.
        return self.relative <= BARS[self.dtype]


@dataclasses.dataclass(frozen=True)
class Report:
    """What `verify` saw."""

    name: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return bool(self.rows) and all(row.passed for row in self.rows)

    def worst(self, dtype: str) -> Row:
        """The row with the largest relative difference."""
        return max((row for row in self.rows if row.dtype == dtype), key=lambda row: row.relative)

    def table(self) -> str:
        """The rows as aligned text, and the verdict."""
        lines = [f"{'dtype':<9}{'size':<10}{'stage':<12}{'max |diff|':>12}{'max |ref|':>12}{'relative':>12}{'bar':>9}"]
        for row in self.rows:
            numbers = f"{row.difference:>12.2e}{row.reference:>12.2e}{row.relative:>12.2e}{BARS[row.dtype]:>9.0e}"
            lines.append(f"{row.dtype:<9}{row.size:<10}{row.stage:<12}{numbers}{'' if row.passed else '  FAILED'}")
        verdict = "equals PyTorch at every stage" if self.passed else "DIFFERS from PyTorch"
        return "\n".join([*lines, f"{self.name} {verdict}"])

    def json(self) -> str:
        """The rows, with the device and versions that gave them."""
        import torch

        return json.dumps(
            {
                "model": self.name,
                "passed": self.passed,
                "device": jax.devices("cpu")[0].device_kind,
                "versions": {"jax": jax.__version__, "torch": torch.__version__},
                "rows": [
                    dataclasses.asdict(row) | {"relative": row.relative, "passed": row.passed} for row in self.rows
                ],
            },
            indent=2,
        )


def verify(
    name: str,
    state_dict: Mapping[str, Any] | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = ((224, 224), (193, 225)),
    dtypes: Sequence[str] = ("float64", "float32"),
    batch_size: int = 2,
    seed: int = 0,
    num_classes: int | None = None,
    library: str | None = None,
) -> Report:
    """Compares the network `name` with PyTorch's own, on the CPU, on seeded random images.

    Args:
      name: one of `list_models()`.
      state_dict: PyTorch weights; by default random ones with random norm tensors.
      sizes: (height, width) of the images; an even and an odd one see different paddings.
      dtypes: "float64" separates the same function from a close one; "float32" is run at the highest precision.
      batch_size: images of each size.
      seed: of the images and of random weights.
      num_classes: width of the head, where it is not the network's own.
      library: "torchvision" or "timm"; by default torchvision where it has the network.

    Raises:
      ValueError: an unknown name or dtype, or (as `ConversionError`) weights of another network.
      ImportError: PyTorch, or torchvision or timm, whose network it is, is not installed.
    """
    unknown = [dtype for dtype in dtypes if dtype not in BARS]
    if unknown:
        raise ValueError(f"unknown dtypes {unknown}: give some of {list(BARS)}.")
    build = functools.partial(create_model, name, **({"num_classes": num_classes} if num_classes else {}))
    build()  # refuses an unknown name
    reference = torch_reference(name, num_classes=num_classes, library=library, seed=seed)
    randomise_norms(reference, seed)
    source = reference.state_dict() if state_dict is None else state_dict
    from_torch(build(), source)  # strict, and with our message, before PyTorch's
    load_into_torch(reference, source)
    rows: list[Row] = []
    for dtype in dtypes:
        with jax.enable_x64(dtype == "float64"), jax.default_device(jax.devices("cpu")[0]):
            model = build(param_dtype=dtype, precision="highest")
            variables = from_torch(model, source, dtype=dtype)
            for height, width in sizes:
                rng = np.random.default_rng(seed)
                images = rng.standard_normal((batch_size, height, width, 3)).astype(dtype)
                ours = stage_outputs(model, variables, images)
                theirs = torch_stage_outputs(reference, images)
                rows += compare(ours, theirs, dtype=dtype, size=f"{height}x{width}")
    return Report(name, tuple(rows))


def stage_outputs(model: ResNet, variables: Any, images: Any) -> Stages:
    """Outputs in evaluation mode: `stem` (what the first stage receives), `layer1`, ..., `pre_logits`, `logits`.

    Args:
      model: a network without the `train` field.
      variables: its variables.
      images: `[batch, h, w, c]`.

    Returns:
      NumPy arrays `[batch, h, w, c]`, the last two `[batch, features]`, in the order of the network.
    """
    stages = [f"layer{i + 1}" for i in range(len(model.stage_sizes))]
    names = ("stem", *stages, "pre_logits", *(["logits"] if model.num_classes else []))
    apply = _apply if sum(model.stage_sizes) > MOST_JITTED else _jitted
    found = apply(model, variables, images, names)
    return {name: np.asarray(found[name]) for name in names}


def _apply(model: ResNet, variables: Any, images: Any, features: tuple[str, ...]) -> Any:
    return model.apply(variables, images, train=False, features=features)


_jitted = jax.jit(_apply, static_argnums=(0, 3))


def compare(ours: Stages, theirs: Stages, *, dtype: str, size: str) -> list[Row]:
    """One row for each stage.

    Raises:
      ValueError: other stages, or a stage of another shape.
    """
    if list(ours) != list(theirs):
        raise ValueError(f"cannot compare the stages {list(ours)} with {list(theirs)}.")
    rows = []
    for stage, reference in theirs.items():
        if ours[stage].shape != reference.shape:
            raise ValueError(f"{stage} has shape {ours[stage].shape}, PyTorch's has {reference.shape}.")
        difference = np.abs(ours[stage].astype(np.float64) - reference.astype(np.float64)).max()
        rows.append(Row(dtype, size, stage, float(difference), float(np.abs(reference).max())))
    return rows
