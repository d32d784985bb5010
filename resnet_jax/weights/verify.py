"""The proof that a converted network is the same function: stage by stage against PyTorch, with a report.

PyTorch and torchvision are imported when a function here is called, and only then.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.models.resnet import ResNet, is_stage
from resnet_jax.models.variants import create_model, list_models
from resnet_jax.weights.convert import from_torch, native_names
from resnet_jax.weights.formats import as_numpy

# Largest difference over the largest reference value that is still "the same function", for each dtype.
BARS = {"float64": 1e-10, "float32": 1e-5}
Stages = dict[str, np.ndarray]


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

    Raises:
      ValueError: an unknown name or dtype, or (as `ConversionError`) weights of another network.
      ImportError: PyTorch or torchvision is not installed.
    """
    unknown = [dtype for dtype in dtypes if dtype not in BARS]
    if unknown:
        raise ValueError(f"unknown dtypes {unknown}: give some of {list(BARS)}.")
    build = functools.partial(create_model, name, **({"num_classes": num_classes} if num_classes else {}))
    build()  # refuses an unknown name
    reference = torch_reference(name, num_classes=num_classes, seed=seed)
    randomise_norms(reference, seed)
    source = reference.state_dict() if state_dict is None else state_dict
    from_torch(build(), source)  # strict, and with our message, before PyTorch's
    _load_into_torch(reference, source)
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
    logits, aux = _apply_with_stages(model, variables, images)
    found = {
        name: value[0] if isinstance(value, tuple) else value["__call__"][0]
        for name, value in aux["intermediates"].items()
    }
    stages = [f"layer{i + 1}" for i in range(len(model.stage_sizes))]
    return {name: np.asarray(found[name]) for name in ("stem", *stages, "pre_logits")} | {"logits": np.asarray(logits)}


@functools.partial(jax.jit, static_argnums=0)
def _apply_with_stages(model: ResNet, variables: Any, images: Any) -> Any:
    return model.apply(variables, images, train=False, capture_intermediates=is_stage, mutable=["intermediates"])


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


# PyTorch ------------------------------------------------------------------------------------------------


def torch_reference(name: str, *, num_classes: int | None = None, seed: int = 0) -> Any:
    """An independent PyTorch module for `name`, in evaluation mode, with seeded random weights.

    torchvision's own builder, or for the CIFAR networks its `BasicBlock` put together as He et al. 2015, section 4.2,
    describes.

    Raises:
      ValueError: there is none for `name`.
    """
    import torch
    import torchvision

    torch.manual_seed(seed)
    if name.startswith("cifar_resnet"):
        return _torch_cifar_resnet(int(name.removeprefix("cifar_resnet")), num_classes or 10).eval()
    if name not in list_models() or not hasattr(torchvision.models, name):
        raise ValueError(f"PyTorch has no reference for {name!r}: give one of {list_models()}.")
    return getattr(torchvision.models, name)(num_classes=num_classes or 1000).eval()


def _torch_cifar_resnet(depth: int, num_classes: int) -> Any:
    import torch
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    class OptionA(nn.Module):
        def forward(self, x: Any) -> Any:
            extra = x.shape[1] // 2
            return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))

    def stage(in_features: int, features: int) -> nn.Sequential:
        changes = in_features != features
        first = BasicBlock(in_features, features, 2 if changes else 1, OptionA() if changes else None)
        return nn.Sequential(first, *(BasicBlock(features, features) for _ in range((depth - 2) // 6 - 1)))

    class CifarResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            self.relu = nn.ReLU()
            self.layer1, self.layer2, self.layer3 = stage(16, 16), stage(16, 32), stage(32, 64)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(64, num_classes)

        def forward(self, x: Any) -> Any:
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.fc(torch.flatten(self.avgpool(x), 1))

    return CifarResNet()


def randomise_norms(module: Any, seed: int = 0) -> None:
    """Gives every norm tensor of a PyTorch module a random value, in place, so that no mix-up of two can hide.

    The last scale of each block is small, U(0.1, 0.3), others are U(0.5, 1.5): with all of them near 1 the signals
    of a 152-layer net grow to 1e11, where nothing that is added can be seen.
    """
    import torch

    rng = np.random.default_rng(seed)
    last = "bn3" if any(name.endswith("bn3") for name, _ in module.named_modules()) else "bn2"
    with torch.no_grad():
        for name, norm in module.named_modules():
            if not isinstance(norm, torch.nn.BatchNorm2d):
                continue
            low, high = (0.1, 0.3) if name.endswith(last) else (0.5, 1.5)
            values = {
                "weight": rng.uniform(low, high, norm.num_features),
                "bias": rng.normal(0, 0.1, norm.num_features),
                "running_mean": rng.normal(0, 0.2, norm.num_features),
                "running_var": rng.uniform(0.5, 1.5, norm.num_features),
            }
            for key, value in values.items():
                getattr(norm, key).copy_(torch.from_numpy(value))


def torch_stage_outputs(module: Any, images: np.ndarray) -> Stages:
    """What `stage_outputs` gives, from a PyTorch module of torchvision's names, by forward hooks; NHWC in and out.

    A copy of the module is run, in the dtype of `images`.
    """
    import torch

    found: dict[str, Any] = {}
    module = copy.deepcopy(module).to(torch.from_numpy(images).dtype)

    def keep(name: str) -> Any:
        return lambda _, inputs, output: found.update({name: output})

    stages = [name for name, _ in module.named_children() if name.startswith("layer")]
    module.layer1.register_forward_pre_hook(lambda _, inputs: found.update(stem=inputs[0]))
    for name in stages:
        getattr(module, name).register_forward_hook(keep(name))
    module.fc.register_forward_pre_hook(lambda _, inputs: found.update(pre_logits=inputs[0]))
    with torch.no_grad():
        found["logits"] = module(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    arrays = {name: value.numpy() for name, value in found.items()}
    return {name: np.moveaxis(array, 1, -1) if array.ndim == 4 else array for name, array in arrays.items()}


def _load_into_torch(module: Any, state_dict: Mapping[str, Any]) -> None:
    """PyTorch's own strict reading, apart from ours: nothing that `from_torch` does wrong can reach the reference."""
    import torch

    own = module.double().state_dict()
    given = {name: torch.from_numpy(np.array(as_numpy(x), np.float64)) for name, x in native_names(state_dict).items()}
    module.load_state_dict(own | given, strict=True)
