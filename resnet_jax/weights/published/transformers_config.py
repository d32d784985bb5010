"""transformers' files: `config.json` of a ResNet, `preprocessor_config.json`, its tensors' names; read and written.

Every field of `ResNetConfig` is either a field of `ResNet` here or refused; what belongs to a run, or is told by the
weights, is in `OF_A_RUN`. That the two networks are the same function is a test's to show.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import VARIANTS, create_model
from resnet_jax.weights.published import schema
from resnet_jax.weights.published.timm_config import NEUTRAL, differences

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

PROCESSOR = "preprocessor_config.json"
# Name of the block there -> the networks here that have it, and what it widens its `hidden_sizes` by.
LAYER_TYPES = {"basic": ("resnet18", 1), "bottleneck": ("resnet50", 4)}
# The plain networks, of which one may have the depths; else it is the first of the block's with other stages.
PLAIN = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet26", "resnet200")
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
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
KINDS = {
    **dict.fromkeys(("image_processor_type", "feature_extractor_type"), schema.TEXT.or_none()),
    **dict.fromkeys(STEPS, schema.Kind("true or false, or null", lambda value: value in (True, False, None))),
    **dict.fromkeys(("image_mean", "image_std"), schema.NUMBERS.or_none()),
    "resample": schema.COUNT.or_none(),
    "rescale_factor": schema.Kind("a number", schema.number).or_none(),
    "crop_pct": schema.SHARE.or_none(),
}
RESAMPLE = {2: "bilinear", 3: "bicubic"}
# torchvision's names -> those there, below `resnet.`.
NAMES: tuple[tuple[str, str], ...] = (
    (r"conv1\.", "embedder.embedder.convolution."),
    (r"bn1\.", "embedder.embedder.normalization."),
    (r"layer(\d+)\.(\d+)\.conv(\d)\.", "encoder.stages.{0}.layers.{1}.layer.{2}.convolution."),
    (r"layer(\d+)\.(\d+)\.bn(\d)\.", "encoder.stages.{0}.layers.{1}.layer.{2}.normalization."),
    (r"layer(\d+)\.(\d+)\.downsample\.0\.", "encoder.stages.{0}.layers.{1}.shortcut.convolution."),
    (r"layer(\d+)\.(\d+)\.downsample\.1\.", "encoder.stages.{0}.layers.{1}.shortcut.normalization."),
)
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
        "first_stage_stride": 2 if stated["downsample_in_first_stage"] else 1,
        # Basic blocks have no 1x1 convolution, and there transformers does not look at it.
        "stride_in_1x1": stated["downsample_in_bottleneck"] and expansion > 1,
    }
    usual = {"stage_features": (64, 128, 256, 512), "stem_features": 64, "first_stage_stride": 1}
    usual |= {"stride_in_1x1": False, "stage_sizes": VARIANTS[name]["stage_sizes"]}
    return name, {field: value for field, value in fields.items() if value != usual[field]}


def _right(stated: Mapping[str, Any]) -> dict[str, tuple[str, bool]]:
    """Field -> what it must be, and whether it is."""
    depths, widths, act = stated["depths"], stated["hidden_sizes"], stated["hidden_act"]
    expansion = LAYER_TYPES.get(str(stated["layer_type"]), ("", 1))[1]
    few, whole = schema.DEPTHS.right(depths), schema.wholes(widths)
    flags = ("downsample_in_first_stage", "downsample_in_bottleneck")
    return {
        "layer_type": (f"one of {sorted(LAYER_TYPES)}", stated["layer_type"] in list(LAYER_TYPES)),
        # Inside its blocks transformers has ReLU all the same, and the other after stem and addition alone.
        "hidden_act": ("'relu': with another, transformers mixes the two, and no network here does", act == "relu"),
        "depths": (schema.DEPTHS.words, few),
        "hidden_sizes": (
            f"whole numbers that {expansion} divides, as many as depths={depths!r}",
            whole and few and len(widths) == len(depths) and not any(width % expansion for width in widths),
        ),
        **{key: ("a whole number, 1 or more", schema.whole(stated[key])) for key in ("embedding_size", "num_channels")},
        **{key: ("true or false", isinstance(stated[key], bool)) for key in flags},
    }


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
    schema.check(PROCESSOR, processor, KINDS)
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    off = [key for key in STEPS if processor.get(key) is False]
    if kind not in BY_SHARE | BY_SIZE or off:
        what = f"without {', '.join(off)}" if off else f"of type {kind!r:.60}"
        raise ValueError(f"{PROCESSOR} is of an image processor {what}, which is not supported.")
    if missing := [key for key in ("size", "resample", "image_mean", "image_std") if processor.get(key) is None]:
        raise ValueError(f"{PROCESSOR} does not state {', '.join(missing)}.")
    factor = processor.get("rescale_factor")
    if factor is not None and abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"{PROCESSOR}: rescale_factor={factor}, and only 1/255 is supported.")
    shorter = _side(processor["size"], "shortest_edge")
    if kind in BY_SIZE:
        image_size, resize_size = _side(processor.get("crop_size"), "height", "width"), shorter
    else:
        image_size, resize_size = shorter, int(shorter / (processor.get("crop_pct") or 224 / 256))
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
    stated = isinstance(size, dict) and size.keys() == set(keys)
    sides = [size[key] for key in keys] if stated else [size]
    if not all(schema.whole(side, most=schema.MOST_PIXELS) and side == sides[0] for side in sides):
        raise ValueError(f"{PROCESSOR}: the size {size!r:.60} is not one number of pixels for {' and '.join(keys)}.")
    return int(sides[0])


# Written -----------------------------------------------------------------------------------------------


def describe(model: ResNet, in_channels: int, label_names: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` from which transformers builds `model`.

    Raises:
      ValueError: transformers has no such network, or labels are of another number than the classes.
    """
    if label_names is not None and len(label_names) != model.num_classes:
        raise ValueError(f"{len(label_names)} label_names for a network of {model.num_classes} classes.")
    features = model.stage_features or [64 * 2**i for i in range(len(model.stage_sizes))]
    basic = model.block == VARIANTS[LAYER_TYPES["basic"][0]]["block"]
    layer_type = "basic" if basic else "bottleneck"
    config: dict[str, Any] = {
        "architectures": ["ResNetForImageClassification" if model.num_classes else "ResNetModel"],
        "model_type": "resnet",
        "num_channels": in_channels,
        "embedding_size": model.stem_features,
        "hidden_sizes": [width * LAYER_TYPES[layer_type][1] for width in features],
        "depths": list(model.stage_sizes),
        "layer_type": layer_type,
        "hidden_act": "relu",
        "downsample_in_first_stage": model.first_stage_stride == 2,
        "downsample_in_bottleneck": bool(model.stride_in_1x1),
    }
    name, arguments = network(config)
    left = differences(model, create_model(name, **arguments, num_classes=model.num_classes))
    if left := {field: value for field, value in left.items() if field not in NEUTRAL}:
        listed = ", ".join(f"{field}={value!r}" for field, value in left.items())
        raise ValueError(
            f"transformers has no ResNet with {listed}: it has plain ones, with a stem of one convolution, shortcuts "
            "of one, and the mean as pool. --format=timm (format='timm') writes any of these networks."
        )
    if model.num_classes:
        ids = label_names or [f"LABEL_{i}" for i in range(model.num_classes)]
        config |= {"id2label": dict(enumerate(ids)), "label2id": {label: i for i, label in enumerate(ids)}}
    return config


def processor(preprocessing: "Preprocessing") -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers' `BitImageProcessor`, which resizes and crops in whole pixels."""
    shorter, side = preprocessing.resize_size, preprocessing.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        **dict.fromkeys(("do_convert_rgb", *STEPS), True),
        "size": {"shortest_edge": shorter},
        "resample": {name: number for number, name in RESAMPLE.items()}[preprocessing.interpolation],
        "crop_size": {"height": side, "width": side},
        "rescale_factor": 1 / 255,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors under torchvision's names -> the same under those of `ResNetForImageClassification`.

    Without a head they are those of `ResNetModel`.
    """
    whole = "fc.weight" in tensors
    return {_named(name, "resnet." if whole else ""): tensor for name, tensor in tensors.items()}


def _named(name: str, prefix: str) -> str:
    if name.startswith("fc."):
        return f"classifier.1.{name.removeprefix('fc.')}"
    for pattern, theirs in NAMES:
        if match := re.match(pattern, name):
            numbers = [int(text) for text in match.groups()]
            if numbers:  # stages and the layers of a block are counted from 0
                numbers = [numbers[0] - 1, numbers[1], *(number - 1 for number in numbers[2:])]
            return prefix + theirs.format(*numbers) + name[match.end() :]
    raise AssertionError(f"{name!r} is a name of no network that `describe` lets through")
