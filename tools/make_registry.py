"""Writes the package's tables of published weights from the tables of the installed timm and torchvision.

    python tools/make_registry.py

makes `registry.json` and `imagenet1k.json` in `resnet_jax/weights/published`. Accuracies of timm's weights are not in
its wheel: they come from `timm_results.csv` beside this file. A test holds the written tables to the installed
libraries.
"""

import csv
import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

import timm
import torch
import torchvision
from timm.models import _registry, resnet
from torchvision.models._meta import _IMAGENET_CATEGORIES

from resnet_jax.models.variants import ALIASES

HERE = pathlib.Path(__file__).parent
PACKAGE = HERE.parent / "resnet_jax" / "weights" / "published"
# timm's configuration names no repository for it, and its URL is where the file is known to be.
WITHOUT_BUILDER = "resnext101_32x48d.fb_wsl_ig1b_ft_in1k"
# Taken over under timm's names. The rest of its fields have the same value for every ResNet, or none.
TIMM_FIELDS = (
    *("num_classes", "license", "input_size", "test_input_size", "crop_pct", "test_crop_pct", "interpolation"),
    *("crop_mode", "mean", "std", "pool_size", "first_conv", "classifier", "origin_url", "paper_ids"),
)


def timm_entries() -> list[dict[str, Any]]:
    """The tags of timm's `resnet.py`, and the one whose network it cannot build."""
    tags = timm.list_models(module="resnet", pretrained=True, include_tags=True)
    reported = timm_results(tags)
    entries = []
    for tag in [*tags, WITHOUT_BUILDER]:
        architecture, _, name = tag.partition(".")
        config = resnet.default_cfgs[architecture].cfgs[name]
        file, url = ("model.safetensors", config.url or None)
        repo = f"timm/{tag}" if tag != WITHOUT_BUILDER else None
        entries.append(
            {
                "tag": tag,
                "library": "timm",
                "architecture": architecture,
                "repo": repo,
                "file": file if repo else None,
                "url": url,
                "sha256": sha256_prefix(url),
                "non_commercial": "-nc-" in (config.license or ""),
                "num_parameters": count_parameters(architecture, config.num_classes),
                "reported": reported.get(tag, []),
                **{field: getattr(config, field) for field in TIMM_FIELDS},
            }
        )
    return entries


def torchvision_entries(mirrors: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The weights of torchvision's ResNets, with the repository among `mirrors` (timm's) that holds the same file."""
    for name in torchvision.models.list_models(torchvision.models):
        builder = torchvision.models.get_model_builder(name)
        if builder.__module__ != "torchvision.models.resnet":
            continue
        for weights in torchvision.models.get_model_weights(name):
            mirror = next(entry for entry in mirrors if (entry["url"] or "").endswith(weights.url.rpartition("/")[2]))
            yield torchvision_entry(f"{name}.{weights.name}", name, weights, mirror)


def torchvision_entry(tag: str, name: str, weights: Any, mirror: dict[str, Any]) -> dict[str, Any]:
    transform = weights.transforms()
    (metrics,) = weights.meta["_metrics"].values()
    (size,), (resize_size,) = transform.crop_size, transform.resize_size
    return {
        "tag": tag,
        "library": "torchvision",
        "architecture": name,
        "repo": mirror["repo"],
        "file": mirror["file"],
        "url": weights.url,
        "sha256": sha256_prefix(weights.url),
        "non_commercial": False,
        "num_parameters": weights.meta["num_params"],
        "reported": [accuracy(size, metrics["acc@1"], metrics["acc@5"], f"torchvision {version(torchvision)}")],
        "num_classes": len(weights.meta["categories"]),
        "license": mirror["license"],  # torchvision's own table has none; this is the mirror's
        "input_size": (3, size, size),
        "resize_size": resize_size,
        "interpolation": transform.interpolation.value,
        "crop_mode": "center",
        "mean": transform.mean,
        "std": transform.std,
        "first_conv": mirror["first_conv"],
        "classifier": mirror["classifier"],
        "origin_url": weights.meta["recipe"],
        "gflops": weights.meta["_ops"],
        "file_size_mib": weights.meta["_file_size"],
        "min_size": weights.meta["min_size"],
    }


def timm_results(tags: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Tag -> its accuracies."""
    lines = (HERE / "timm_results.csv").read_text().splitlines()
    results: dict[str, list[dict[str, Any]]] = {}
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        found = accuracy(int(row["image_size"]), float(row["top1"]), float(row["top5"]), "timm results-imagenet.csv")
        results.setdefault(row["tag"], []).append(found)
    unknown = results.keys() - set(tags)
    if unknown:
        raise ValueError(f"timm_results.csv has {sorted(unknown)}, unknown to timm {timm.__version__}.")
    return results


def accuracy(image_size: int, top1: float, top5: float, source: str) -> dict[str, Any]:
    return {"image_size": image_size, "top1": top1, "top5": top5, "source": source}


def aliases() -> dict[str, str]:
    """Old names of weights -> tags. timm leads several ig_* names to the narrowest net; here, to their own."""
    result = {}
    for name, target in _registry._module_to_deprecated_models["resnet"].items():
        architecture = ALIASES[name]
        tag = target.partition(".")[2] or resnet.default_cfgs[architecture].tags[0]
        result[name] = f"{architecture}.{tag}"
    return result


def sha256_prefix(url: str | None) -> str | None:
    """The eight hexadecimal digits at the end of a file's name: how PyTorch's hub publishes its hash."""
    found = re.search(r"-([0-9a-f]{8})\.pth$", url or "")
    return found and found[1]


def count_parameters(architecture: str, num_classes: int) -> int:
    without_head, width = count_without_head(architecture)
    return without_head + (width + 1) * num_classes


@functools.cache
def count_without_head(architecture: str) -> tuple[int, int]:
    """Parameters of a network before its `fc`, and the channels that `fc` takes."""
    # Nothing is drawn: on this device that takes most of the time.
    undrawn = mock.patch.multiple(torch.nn.init, kaiming_normal_=mock.DEFAULT, kaiming_uniform_=mock.DEFAULT)
    with torch.device("meta"), undrawn:
        if architecture == WITHOUT_BUILDER.partition(".")[0]:
            module = resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], 0, cardinality=32, base_width=48)
        else:
            module = timm.create_model(architecture, num_classes=0)
    return sum(parameter.numel() for parameter in module.parameters()), module.num_features


def version(library: Any) -> str:
    return str(library.__version__).partition("+")[0]


def registry() -> dict[str, Any]:
    """All of `registry.json`."""
    entries = timm_entries()
    entries += torchvision_entries([entry for entry in entries if ".tv" in entry["tag"]])
    made_from = {library.__name__: version(library) for library in (timm, torchvision)}
    return {"made_from": made_from, "aliases": aliases(), "entries": entries}


def registry_text() -> str:
    """One line for each entry, so that a change shows in a diff."""
    table = registry()
    entries = ",\n".join(json.dumps(entry) for entry in table.pop("entries"))
    head = json.dumps(table, indent=1)
    return f'{head[:-2]},\n "entries": [\n{entries}\n ]\n}}\n'


def class_names_text() -> str:
    """ImageNet-1k's names in the order of the logits, as torchvision shortens them."""
    return json.dumps(_IMAGENET_CATEGORIES, indent=0) + "\n"


if __name__ == "__main__":
    (PACKAGE / "registry.json").write_text(registry_text())
    (PACKAGE / "imagenet1k.json").write_text(class_names_text())
