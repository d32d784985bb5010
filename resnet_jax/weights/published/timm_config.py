"""timm's `config.json`: what a folder or a repository says of its weights, written and read.

A net that timm can build is written so that timm builds it. What timm has no name for is written under the key
`resnet_jax`, which timm passes over, together with an architecture that timm refuses rather than mistakes.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from resnet_jax.models.resnet import ResNet, feature_info
from resnet_jax.models.values import plain
from resnet_jax.models.variants import ALIASES, VARIANTS, create_model
from resnet_jax.version import __version__
from resnet_jax.weights.convert import FIRST_CONVS
from resnet_jax.weights.published import schema

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

# timm's arguments of a network -> our fields.
FIELDS = {
    **{name: name for name in ("num_classes", "output_stride", "global_pool")},
    **{name: name for name in ("drop_rate", "drop_path_rate", "drop_block_rate")},
    "zero_init_last": "zero_init_residual",
}
# Of a run and not of a network: not written.
OF_A_RUN = {
    *("axis_name", "axis_index_groups", "remat", "dtype", "precision", "train", "freeze_norm", "name", "parent"),
    *("drop_rate", "drop_path_rate", "drop_block_rate"),
}
# Fields that change no output in evaluation, so that timm's network of the name is still the same function.
NEUTRAL = {"zero_init_residual", "fc_init_std", "param_dtype"}
KINDS = {
    "architecture": schema.TEXT.or_none(),
    "model_args": schema.OBJECT.or_none(),  # transformers' TimmWrapper writes null
    "num_classes": schema.COUNT.or_none(),
    "label_names": schema.NAMES.or_none(),
    "pretrained_cfg": schema.OBJECT.or_none(),
    "pretrained_cfg.num_classes": schema.COUNT.or_none(),
    "resnet_jax": schema.OBJECT.or_none(),
}
OURS = {
    "resnet_jax.name": schema.TEXT,
    "resnet_jax.arguments": schema.OBJECT,
    "resnet_jax.arguments.stage_sizes": schema.DEPTHS.or_none(),
}


def read(path: pathlib.Path) -> dict[str, Any]:
    """The content of a `config.json`.

    Raises:
      ValueError: not JSON, or no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds a {type(config).__name__}, and a configuration is a JSON object.")
    return config


def network(config: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments for `create_model`; no name where the configuration is none of timm's or of ours.

    Raises:
      ValueError: a network, or an argument of it, that this package does not have.
    """
    schema.check("config.json", config, KINDS | (OURS if config.get("resnet_jax") is not None else {}))
    if config.get("resnet_jax") is not None:
        name, fields = config["resnet_jax"]["name"], config["resnet_jax"]["arguments"]
        if of_a_run := sorted(fields.keys() & (OF_A_RUN - NEUTRAL)):
            raise ValueError(f"config.json: resnet_jax.arguments states {of_a_run}, of a run and not of a network.")
        return name, {field: plain(value) for field, value in fields.items()}
    if config.get("architecture") is None:
        if "model_type" in config:
            raise ValueError(f"config.json is of transformers' model_type={config['model_type']!r:.60}, and no ResNet.")
        return None, {}
    name = ALIASES.get(config["architecture"], config["architecture"])
    if name not in VARIANTS:
        raise ValueError(f"config.json is of the network {name!r:.60}, which is none of resnet_jax.list_models().")
    model_args = config.get("model_args") or {}
    given = {key: value for key, value in model_args.items() if key != "in_chans"}  # weights tell
    if unknown := sorted(given.keys() - FIELDS.keys()):
        raise ValueError(
            f"config.json builds {name!r} with {unknown}, of which only {sorted(FIELDS)} are understood: give the file "
            "of weights itself to from_torch, with a model of these arguments."
        )
    arguments = {FIELDS[key]: "none" if value == "" else value for key, value in given.items()}
    num_classes = config.get("num_classes", pretrained_config(config).get("num_classes"))
    return name, ({} if num_classes is None else {"num_classes": num_classes}) | arguments


def label_names(config: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes in the order of the logits, if they are stated.

    Raises:
      ValueError: what is stated is no list of names.
    """
    schema.check("config.json", config, {"label_names": KINDS["label_names"]})
    return config.get("label_names")


def pretrained_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `pretrained_cfg`, which in timm's older files is not a part but the whole.

    Raises:
      ValueError: it is no object.
    """
    schema.check("config.json", config, {"pretrained_cfg": KINDS["pretrained_cfg"]})
    inner = config.get("pretrained_cfg")
    return dict(config if inner is None else inner)


def describe(
    model: ResNet,
    tensors: Mapping[str, np.ndarray],
    preprocessing: "Preprocessing | None" = None,
    label_names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The configuration of a network and its weights (under PyTorch's names), for timm and for `network`.

    Raises:
      ValueError: labels of another number than the classes; a field that is a function and not a name.
    """
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f"{len(label_names)} label_names for a network of {model.num_classes} classes.")
    name, arguments = name_and_arguments(model)
    for_timm = {key: arguments[field] for key, field in FIELDS.items() if field in arguments}
    for_timm = {key: "" if value == "none" else value for key, value in for_timm.items() if key != "num_classes"}
    foreign = arguments.keys() - FIELDS.values() - NEUTRAL
    first_conv = next(conv for conv in reversed(FIRST_CONVS) if f"{conv}.weight" in tensors)
    size = preprocessing.image_size if preprocessing else 224
    return {
        "architecture": f"resnet_jax:{name}" if foreign else name,
        "num_classes": model.num_classes,
        "num_features": feature_info(model)[-1].channels,
        **({"model_args": for_timm} if for_timm else {}),
        **({"label_names": list(label_names)} if label_names is not None else {}),
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [tensors[f"{first_conv}.weight"].shape[1], size, size],
            **({"fixed_input_size": False} | _of(preprocessing) if preprocessing else {}),
            "first_conv": first_conv,
            "classifier": "fc",
        },
        "resnet_jax": {"version": __version__, "name": name, "arguments": arguments},
    }


def name_and_arguments(model: ResNet) -> tuple[str, dict[str, Any]]:
    """The name that needs the fewest arguments to give `model`, and these arguments.

    Raises:
      ValueError: a field that is a function and not a name, which no file can hold.
    """
    candidates = {name: differences(model, create_model(name)) for name in VARIANTS}
    unwritten = {name: {k: v for k, v in candidates[name].items() if not _is_written(v)} for name in VARIANTS}
    name = min(candidates, key=lambda name: (len(unwritten[name]), len(candidates[name])))
    if unwritten[name]:
        raise ValueError(
            f"the network is {name!r} with {unwritten[name]}, and functions cannot be written to a file: save its "
            "weights alone, with to_torch and formats.save_state_dict."
        )
    return name, candidates[name] | {"num_classes": model.num_classes}


def differences(model: ResNet, other: ResNet) -> dict[str, Any]:
    """Fields in which `model` is another network than `other`, as they are in `model`."""
    fields = [field.name for field in dataclasses.fields(ResNet) if field.name not in OF_A_RUN]
    changed = {name: getattr(model, name) for name in fields if getattr(model, name) != getattr(other, name)}
    dtype = jnp.dtype(model.param_dtype)
    changed.pop("param_dtype", None)
    return changed | ({} if dtype == jnp.dtype(other.param_dtype) else {"param_dtype": dtype.name})


def _is_written(value: Any) -> bool:
    """Whether JSON has such a value."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def _of(preprocessing: "Preprocessing") -> dict[str, Any]:
    return {
        "crop_pct": _crop_pct(preprocessing.image_size, preprocessing.resize_size),
        "interpolation": preprocessing.interpolation,
        "crop_mode": "center",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }


def _crop_pct(image_size: int, resize_size: int) -> float:
    """The number from which timm computes `resize_size`, rounding down."""
    crop_pct = image_size / resize_size
    return crop_pct if math.floor(image_size / crop_pct) == resize_size else math.nextafter(crop_pct, 0)
