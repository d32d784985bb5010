"""Our side of the proof: what a network gives at every stage, in evaluation and in one training step."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from resnet_jax import compiler
from resnet_jax.models.resnet import ResNet
from resnet_jax.proof.reference import Stages

# Networks of more blocks are run op by op: XLA takes minutes to compile hundreds of layers for one use.
MOST_JITTED = 60


def stage_outputs(model: ResNet, variables: Any, images: Any) -> Stages:
    """Outputs in evaluation mode: `stem` (what the first stage receives), `layer1`, ..., `pre_logits`, `logits`.

    Args:
      model: a network without the `train` field.
      variables: its variables.
      images: `[batch, h, w, c]`.

    Returns:
      NumPy arrays `[batch, h, w, c]`, the last two `[batch, features]`, in the order of the network.
    """
    names = _stage_names(model)
    found = _apply_for(model)(model, variables, images, names, False)
    return {name: np.asarray(found[name]) for name in names}


def training_outputs(model: ResNet, variables: Any, images: Any) -> Stages:
    """The same in training mode, each stage followed by its updated running statistics, as PyTorch updates them."""
    if model.norm == "batch":
        model = model.clone(norm="batch_unbiased")
    names = _stage_names(model)
    found, updates = _apply_for(model)(model, variables, images, names, True)
    torch_names = {"mean": "running_mean", "var": "running_var"}
    statistics = {
        ".".join([*path[:-1], torch_names[path[-1]]]): np.asarray(leaf)
        for path, leaf in flatten_dict(dict(updates.get("batch_stats", {}))).items()
    }
    return with_statistics({name: np.asarray(found[name]) for name in names}, statistics)


def _stage_names(model: ResNet) -> tuple[str, ...]:
    stages = [f"layer{i + 1}" for i in range(len(model.stage_sizes))]
    return ("stem", *stages, "pre_logits", *(["logits"] if model.num_classes else []))


def _apply_for(model: ResNet) -> Callable[..., Any]:
    if sum(model.stage_sizes) > MOST_JITTED:
        return _apply
    return jax.jit(_apply, static_argnums=(0, 3, 4), compiler_options=compiler.options())


def _apply(model: ResNet, variables: Any, images: Any, features: tuple[str, ...], train: bool) -> Any:
    mutable = ["batch_stats"] if train else False
    return model.apply(variables, images, train=train, features=features, mutable=mutable)


def with_statistics(outputs: Stages, statistics: Mapping[str, np.ndarray]) -> Stages:
    """Each stage, then the running means of its norms, end to end, and their variances; under PyTorch's names."""
    found: Stages = {}
    for stage, output in outputs.items():
        found[stage] = output
        for kind in ("running_mean", "running_var"):
            names = sorted(name for name in statistics if _stage_of(name) == stage and name.endswith(kind))
            if names:
                found[f"{stage} {kind}"] = np.concatenate([statistics[name] for name in names])
    return found


def _stage_of(name: str) -> str:
    first = name.split(".")[0]
    return first if first.startswith("layer") else "stem"
