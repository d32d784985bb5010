"""transformers' files beside its weights: `config.json` of a ResNet, and `preprocessor_config.json`, read.

Every field of `ResNetConfig` is either a field of `ResNet` here or refused; what belongs to a run, or is told by the
weights, is in `OF_A_RUN`. That the two networks are the same function is a test's to show.
"""

import logging
from collections.abc import Mapping
from typing import Any

from resnet_jax.models.variants import VARIANTS

logger = logging.getLogger(__name__)

PROCESSOR = "preprocessor_config.json"
# Name of the block there -> the networks here that have it, and what it widens its `hidden_sizes` by.
LAYER_TYPES = {"basic": ("resnet18", 1), "bottleneck": ("resnet50", 4)}
# The plain networks, of which one may have the depths; else it is the first of the block's with other stages.
PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet26", "resnet200")
ACTIVATIONS = {
    **{name: name for name in ("relu", "leaky_relu", "silu", "gelu", "tanh")},
    "swish": "silu",
}
# Of ResNetConfig: what it is where the file does not say it.
DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "layer_type": "bottleneck",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
# What changes no output of the network, or is told by the weights.
OF_A_RUN = {
    *("architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id"),
    *("num_labels", "problem_type", "_name_or_path", "out_features", "out_indices", "stage_names", "return_dict"),
    *("output_hidden_states", "output_attentions", "is_encoder_decoder", "chunk_size_feed_forward", "finetuning_task"),
    *("use_cache", "_commit_hash", "torchscript", "use_bfloat16", "pruned_heads", "_attn_implementation_autoset"),
}
# Image processors: ConvNeXt's crops as `crop_pct` says, BiT's and CLIP's as `crop_size` does.
BY_SHARE = {f"ConvNext{kind}" for kind in ("FeatureExtractor", "ImageProcessor", "ImageProcessorFast")}
BY_SIZE = {
    f"{model}{kind}"
    for model in ("Bit", "CLIP")
    for kind in ("FeatureExtractor", "ImageProcessor", "ImageProcessorFast")
}
RESAMPLE = {2: "bilinear", 3: "bicubic"}
WARPED = 384  # pixels from which ConvNeXt's processor changes the ratio of the sides, and crops nothing


def is_of_a_resnet(config: Mapping[str, Any]) -> bool:
    """Whether `config` is of transformers' own ResNet (its TimmWrapper writes timm's keys)."""
    return config.get("model_type") == "resnet"


def network(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and arguments for `create_model`.

    Raises:
      ValueError: a field, or a value of one, that `ResNet` does not have.
    """
    stated = DEFAULTS | {key: value for key, value in config.items() if key in DEFAULTS}
    if unknown := sorted(config.keys() - DEFAULTS.keys() - OF_A_RUN):
        raise ValueError(
            f"config.json has {unknown}, which are no fields of transformers' ResNetConfig that are known here."
        )
    for key, (kind, right) in _right(stated).items():
        if not right:
            raise ValueError(f"config.json: {key}={stated[key]!r} must be {kind}.")
    name, expansion = LAYER_TYPES[stated["layer_type"]]
    sizes = tuple(stated["depths"])
    same = VARIANTS[name]["block"]
    name = next((n for n in PLAIN if (VARIANTS[n]["block"], VARIANTS[n]["stage_sizes"]) == (same, sizes)), name)
    fields = {
        "stage_sizes": sizes,
        "stage_features": tuple(width // expansion for width in stated["hidden_sizes"]),
        "stem_features": stated["embedding_size"],
        "act": ACTIVATIONS[stated["hidden_act"]],
        "first_stage_stride": 2 if stated["downsample_in_first_stage"] else 1,
        # Basic blocks have no 1x1 convolution, and there transformers does not look at it.
        "stride_in_1x1": stated["downsample_in_bottleneck"] and expansion > 1,
    }
    usual = {"stage_features": (64, 128, 256, 512), "stem_features": 64, "act": "relu", "first_stage_stride": 1}
    usual |= {"stride_in_1x1": False, "stage_sizes": VARIANTS[name]["stage_sizes"]}
    return name, {field: value for field, value in fields.items() if value != usual[field]}


def _right(stated: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Field -> what it must be, and whether it is."""
    depths, widths = stated["depths"], stated["hidden_sizes"]
    expansion = LAYER_TYPES.get(str(stated["layer_type"]), ("", 1))[1]
    whole = {key: _are_whole(stated[key]) for key in ("depths", "hidden_sizes")}
    flags = ("downsample_in_first_stage", "downsample_in_bottleneck")
    return {
        "layer_type": (f"one of {sorted(LAYER_TYPES)}", stated["layer_type"] in list(LAYER_TYPES)),
        "hidden_act": (f"one of {sorted(ACTIVATIONS)}", stated["hidden_act"] in list(ACTIVATIONS)),
        "depths": ("whole numbers, 1 or more", whole["depths"]),
        "hidden_sizes": (
            f"whole numbers that {expansion} divides, as many as depths={depths!r}",
            whole["hidden_sizes"]
            and whole["depths"]
            and len(widths) == len(depths)
            and not any(width % expansion for width in widths),
        ),
        **{key: ("a whole number, 1 or more", _are_whole([stated[key]])) for key in ("embedding_size", "num_channels")},
        **{key: ("true or false", isinstance(stated[key], bool)) for key in flags},
    }


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(type(n) is int and n > 0 for n in values)


def label_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the classes in the order of the logits; None where the file has none but `LABEL_0`, `LABEL_1`, ...

    Raises:
      ValueError: `id2label` is no numbering of names.
    """
    if not (given := config.get("id2label")):
        return None
    try:
        names = {int(key): value for key, value in given.items()}
        ordered = tuple(names[i] for i in range(len(given)))
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise ValueError("config.json: id2label must give a name to each number from 0 on.") from error
    if not all(isinstance(name, str) for name in ordered):
        raise ValueError("config.json: id2label must give a name to each number from 0 on.")
    return None if all(name == f"LABEL_{i}" for i, name in enumerate(ordered)) else ordered


def images(processor: Mapping[str, Any]) -> dict[str, Any]:
    """What `preprocessor_config.json` says of images, in timm's terms, with a `resize_size`.

    Raises:
      ValueError: another processor, or a setting of it, that is not supported here.
    """
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    off = [key for key in ("do_resize", "do_rescale", "do_normalize", "do_center_crop") if processor.get(key) is False]
    if kind not in BY_SHARE | BY_SIZE or off:
        what = f"without {', '.join(off)}" if off else f"of type {kind!r}"
        raise ValueError(f"{PROCESSOR} is of an image processor {what}, which is not supported.")
    if missing := [key for key in ("size", "resample", "image_mean", "image_std") if key not in processor]:
        raise ValueError(f"{PROCESSOR} does not state {', '.join(missing)}.")
    factor = processor.get("rescale_factor", 1 / 255)
    if abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{PROCESSOR}: rescale_factor={factor}, and only 1/255 is supported.")
    shorter = _side(processor["size"], "shortest_edge")
    if kind in BY_SIZE:
        image_size, resize_size = _side(processor.get("crop_size"), "height", "width"), shorter
    else:
        image_size, resize_size = shorter, int(shorter / processor.get("crop_pct", 224 / 256))
        if image_size >= WARPED:
            raise ValueError(f"{PROCESSOR}: at {WARPED} pixels and more images are warped, which is not supported.")
    return {
        "input_size": (3, image_size, image_size),
        "resize_size": resize_size,
        "interpolation": RESAMPLE.get(processor["resample"], f"Pillow's {processor['resample']}"),
        "mean": processor["image_mean"],
        "std": processor["image_std"],
    }


def _side(size: Any, *keys: str) -> int:
    """The one number that `size` states, plain or under all of `keys`."""
    sides = {size} if isinstance(size, int) else {size.get(key) for key in keys} if isinstance(size, dict) else {None}
    side = next(iter(sides))
    if len(sides) != 1 or type(side) is not int or side < 1 or (isinstance(size, dict) and size.keys() != set(keys)):
        raise ValueError(f"{PROCESSOR}: the size {size!r} is not one number of pixels for {' and '.join(keys)}.")
    return side
