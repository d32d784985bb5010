"""PyTorch's side of the proof: an independent network for each name, random tensors in it, and its stages' outputs.

PyTorch, torchvision and timm are imported when a function here is called, and only then.
"""

import contextlib
import copy
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import numpy as np

from resnet_jax.models.variants import list_models
from resnet_jax.weights.convert import native_names
from resnet_jax.weights.files.formats import as_numpy

Stages = dict[str, np.ndarray]


def torch_reference(
    name: str,
    *,
    num_classes: int | None = None,
    library: str | None = None,
    stride_in_1x1: bool = False,
    first_stage_stride: int = 1,
    seed: int = 0,
    **kwargs: Any,
) -> Any:
    """An independent PyTorch module for `name`, in evaluation mode, with seeded random weights.

    Args:
      name: one of `list_models()`.
      num_classes: width of the head, where it is not the network's own; 0 leaves it out.
      library: "torchvision" or "timm". By default torchvision where it has the network, else timm; for the networks
        that only the paper has, torchvision's `BasicBlock` put together as He et al. 2015 describes.
      stride_in_1x1: as the field of `ResNet`, which neither library has: the library's strides are moved.
      first_stage_stride: likewise.
      seed: of the weights.
      **kwargs: further arguments of the library's builder.

    Raises:
      ValueError: there is none for `name`.
      ImportError: the library that has it is not installed.
    """
    import torch
    import torchvision

    if num_classes == 0:
        module = torch_reference(
            name,
            library=library,
            stride_in_1x1=stride_in_1x1,
            first_stage_stride=first_stage_stride,
            seed=seed,
            **kwargs,
        )
        module.fc = torch.nn.Identity()
        return module
    torch.manual_seed(seed)
    strides = stride_in_1x1 or first_stage_stride != 1
    if name not in list_models():
        raise ValueError(f"PyTorch has no reference for {name!r}: give one of {list_models()}.")
    family, depth = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz_")
    if library not in (None, "torchvision", "timm"):
        raise ValueError(f"library must be 'torchvision' or 'timm', got {library!r}.")
    if family in ("cifar_resnet", "cifar_plain", "plain"):
        if library or kwargs or strides:
            given = [*kwargs, *(["stride_in_1x1", "first_stage_stride"] if strides else [])]
            raise ValueError(f"{name} is the paper's, and neither library has it: leave out library and {given}.")
        default = 1000 if family == "plain" else 10
        return _torch_network_of_the_paper(family, int(depth), num_classes or default).eval()
    if num_classes is not None:
        kwargs["num_classes"] = num_classes
    library = library or ("torchvision" if hasattr(torchvision.models, name) else "timm")
    if library == "torchvision":
        return with_strides(torchvision.models.get_model(name, **kwargs).eval(), stride_in_1x1, first_stage_stride)
    import timm

    if not timm.is_model(name):
        raise ValueError(f"neither torchvision nor timm {timm.__version__} has {name!r}.")
    return with_strides(timm.create_model(name, **kwargs).eval(), stride_in_1x1, first_stage_stride)


def with_strides(module: Any, stride_in_1x1: bool, first_stage_stride: int) -> Any:
    """A network of torchvision's or timm's with its strides elsewhere, as the fields of `ResNet` say; in place.

    Raises:
      ValueError: its first stage has a shortcut that is no projection.
    """
    from torch import nn

    first = module.layer1[0]
    if first_stage_stride != 1:
        strided, last = (first.conv2, first.conv3) if hasattr(first, "conv3") else (first.conv1, first.conv2)
        if first.downsample is None:
            projection = nn.Conv2d(first.conv1.in_channels, last.out_channels, 1, bias=False)
            first.downsample = nn.Sequential(projection, nn.BatchNorm2d(last.out_channels)).eval()
        if not isinstance(first.downsample[0], nn.Conv2d):
            raise ValueError("first_stage_stride is for networks whose shortcuts are 1x1 convolutions.")
        strided.stride = first.downsample[0].stride = (first_stage_stride, first_stage_stride)
    for block in module.modules():
        if stride_in_1x1 and hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)
    return module


def _torch_network_of_the_paper(family: str, depth: int, num_classes: int) -> Any:
    import torch
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    class OptionA(nn.Module):
        def forward(self, x: Any) -> Any:
            extra = x.shape[1] // 2
            return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))

    class NoShortcut(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.new_zeros(())

    def block(in_features: int, features: int) -> nn.Module:
        changes = in_features != features
        shortcut = NoShortcut() if "plain" in family else OptionA() if changes else None
        return BasicBlock(in_features, features, 2 if changes else 1, shortcut)

    class Network(nn.Module):
        plain = "plain" in family

        def __init__(self, widths: tuple[int, ...], sizes: tuple[int, ...], conv1: nn.Module, pool: nn.Module) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv1, nn.BatchNorm2d(widths[0])
            self.relu, self.maxpool = nn.ReLU(), pool
            before = widths[0]
            for i, (width, size) in enumerate(zip(widths, sizes, strict=True)):
                rest = (block(width, width) for _ in range(size - 1))
                self.add_module(f"layer{i + 1}", nn.Sequential(block(before, width), *rest))
                before = width
            self.fc = nn.Linear(before, num_classes)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            for name, module in self.named_children():
                x = module(x) if name.startswith("layer") else x
            return self.fc(torch.mean(x, (2, 3)))

    if family == "plain":
        sizes = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}[depth]
        conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        return Network((64, 128, 256, 512), sizes, conv1, nn.MaxPool2d(3, 2, padding=1))
    conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return Network((16, 32, 64), ((depth - 2) // 6,) * 3, conv1, nn.Identity())


def randomise_norms(module: Any, seed: int = 0) -> None:
    """Gives every norm tensor of a PyTorch module a random value, in place, so that no mix-up of two can hide.

    The last scale of each block is small, U(0.1, 0.3), others are U(0.5, 1.5): with all of them near 1 the signals
    of a 152-layer net grow to 1e11, where nothing that is added can be seen. Without shortcuts none is small.
    """
    import torch

    rng = np.random.default_rng(seed)
    norms = {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, torch.nn.BatchNorm2d | torch.nn.GroupNorm)
    }
    with torch.no_grad():
        for name, norm in norms.items():
            closes = name.endswith("bn3") or (name.endswith("bn2") and name.removesuffix("2") + "3" not in norms)
            low, high = (0.1, 0.3) if closes and not getattr(module, "plain", False) else (0.5, 1.5)
            values = {
                "weight": rng.uniform(low, high, len(norm.weight)),
                "bias": rng.normal(0, 0.1, len(norm.weight)),
                "running_mean": rng.normal(0, 0.2, len(norm.weight)),
                "running_var": rng.uniform(0.5, 1.5, len(norm.weight)),
            }
            for key, value in values.items():
                if hasattr(norm, key):
                    getattr(norm, key).copy_(torch.from_numpy(value))


def torch_stage_outputs(module: Any, images: np.ndarray, *, autocast: bool = False) -> Stages:
    """What `stage_outputs` gives, from a PyTorch module of torchvision's names, by forward hooks; NHWC in and out.

    The module is run in the dtype of `images`: it itself if it has that dtype, else a copy. With `autocast` PyTorch
    chooses the operations that it runs in bfloat16; the result is float32 then.
    """
    import torch

    found: dict[str, Any] = {}
    dtype = torch.from_numpy(images).dtype
    if next(module.parameters()).dtype != dtype:
        module = copy.deepcopy(module).to(dtype)

    def keep(name: str) -> Any:
        # `clone`: activations in place change what a hook has seen.
        return lambda _, inputs, output: found.update({name: output.clone()})

    stages = [name for name, _ in module.named_children() if name.startswith("layer")]
    hooks = [
        module.layer1.register_forward_pre_hook(lambda _, inputs: found.update(stem=inputs[0].clone())),
        *(getattr(module, name).register_forward_hook(keep(name)) for name in stages),
        module.fc.register_forward_pre_hook(lambda _, inputs: found.update(pre_logits=inputs[0])),
    ]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = module(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    for hook in hooks:
        hook.remove()
    if not isinstance(module.fc, torch.nn.Identity):
        found["logits"] = logits
    arrays = {name: (value.float() if autocast else value).numpy() for name, value in found.items()}
    return {name: np.moveaxis(array, 1, -1) if array.ndim == 4 else array for name, array in arrays.items()}


def torch_training_outputs(
    module: Any, images: np.ndarray, *, autocast: bool = False
) -> tuple[Stages, dict[str, np.ndarray]]:
    """One forward pass in training mode, on a copy: the stages, and the running means and variances that it leaves."""
    module = copy.deepcopy(module).train()
    module = module.double() if images.dtype == np.float64 else module.float()
    outputs = torch_stage_outputs(module, images, autocast=autocast)
    buffers = {name: buffer.numpy() for name, buffer in module.named_buffers()}
    return outputs, {name: buffers[name] for name in buffers if name.endswith(("running_mean", "running_var"))}


def torch_versions() -> dict[str, str]:
    """Versions of PyTorch, torchvision and timm, those that are installed."""
    versions = {}
    for package in ("torch", "torchvision", "timm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def load_into_torch(module: Any, state_dict: Mapping[str, Any]) -> None:
    """PyTorch's own strict reading, apart from ours: nothing that `from_torch` does wrong can reach the reference."""
    import torch

    own = module.double().state_dict()
    given = {name: torch.from_numpy(np.array(as_numpy(x), np.float64)) for name, x in native_names(state_dict).items()}
    module.load_state_dict(own | given, strict=True)
