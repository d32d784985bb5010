"""Weights by name or by place: from a source to a model and its variables, and from those to a folder."""

import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from resnet_jax import compiler
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.weights import convert, finite
from resnet_jax.weights.adapt import adapt
from resnet_jax.weights.files import formats
from resnet_jax.weights.files.replacing import replacing_folder
from resnet_jax.weights.published import timm_config, transformers_config
from resnet_jax.weights.resolve import OF_THE_FUNCTION, resolve
from resnet_jax.weights.sources import CONFIG, WEIGHTS, is_url, locate

if TYPE_CHECKING:
    from resnet_jax.data.transforms import Preprocessing

logger = logging.getLogger(__name__)


def load_pretrained(
    source: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    channels: Sequence[int] | None = None,
    network: str | None = None,
    ema: bool | None = None,
    container: str | None = None,
    prefix: str | None = None,
    drop: str | Sequence[str] = (),
    key: jax.Array | None = None,
    sharding: Any = None,
    allow_nonfinite: bool = False,
    **overrides: Any,
) -> tuple[ResNet, convert.Variables]:
    """A network with weights, from wherever they are.

        model, variables = load_pretrained("resnet50.a1_in1k", num_classes=10, train=False)

    The licence of published weights is logged before anything is downloaded.

    Args:
      source: a tag of `list_pretrained`; "hf-hub:ORG/REPO", with "@REVISION" after it if need be; a URL of a `.pth` or
        `.safetensors` file; such a file; a folder of `save_pretrained`, of timm's or of transformers'; the workdir of a
        run, one of its checkpoints, or exported variables. A tag wins over a file of its name, which is reached as
        "./NAME".
      num_classes: another width of the head: a new one is initialised. 0 leaves it out.
      in_chans: another number of input channels: the first convolution is fitted by timm's rule (see `adapt`).
      channels: which of the file's channels are taken, in the order of the images'; needed where there are fewer. It
        says `in_chans`, too.
      network: the network's name, where the source does not state it: what it says by its tensors may leave it open.
      ema: the moving average of the weights. By default that of a run which kept one, as it is what the run evaluated,
        and not that of anybody else's file.
      container: of several sets of weights in a file, the one under this name ("teacher").
      prefix: of several networks in one set, the one under this name ("teacher.backbone").
      drop: names, or one, of parts of the file to leave out, such as a head of several layers ("fc").
      key: of `jax.random`, for what is initialised; by default `jax.random.key(0)`.
      sharding: of the variables, or a tree of shardings; by default they lie on the default device.
      allow_nonfinite: take NaN, infinities and negative variances too.
      **overrides: fields of `ResNet`, such as `train=False`, `output_stride=8`, `dtype="bfloat16"`.

    Returns:
      The model, and its variables as `jax.Array`s: parameters in the model's `param_dtype` (weights that are stored in
      half precision become float32), batch statistics in float32 or more.

    Raises:
      ValueError: an unknown source or tag; a network's name without a tag, with a list of those there are.
      TypeError: an override that is no field of `ResNet`.
      DownloadError: the weights could not be had, or came damaged.
      WeightFileError, ConversionError: the file cannot be read, is of another network, or would put NaN, infinities or
        negative variances into the variables.
    """
    changes = overrides | ({} if num_classes is None else {"num_classes": num_classes})
    # What is wrong is refused before anything is downloaded, also where the file itself says what it is of.
    if is_url(source):
        create_model(network or "resnet50", **changes)
    found = locate(source)
    create_model(network or found.name or "resnet50", **changes)
    fields = {} if found.name else {field: value for field, value in overrides.items() if field in DECIDING}
    drop = [drop] if isinstance(drop, str) else drop
    opened = resolve(found, name=network, fields=fields, ema=ema, container=container, prefix=prefix, drop=drop)
    before, variables = opened.network()  # values are looked at as they will be used
    model = before.clone(**changes)
    if channels is not None and in_chans is None:
        in_chans = len(channels)
    if model != before or in_chans is not None:
        variables = _fit(before, model, variables, in_chans, channels, key)
    variables = in_dtypes_of(model, variables)
    if not allow_nonfinite:
        finite.refuse(convert.torch_named(variables), str(source), convert.ALLOW)
    compiler.warn()
    moved: convert.Variables = jax.device_put(variables, sharding)
    return model, moved


def save_pretrained(
    model: ResNet | str,
    variables: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    format: str = "timm",
    preprocessing: "Preprocessing | None" = None,
    label_names: Sequence[str] | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
) -> None:
    """Writes a folder for `load_pretrained`, and for timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    It holds `model.safetensors`, under PyTorch's names, and timm's `config.json`; it appears whole or not at all. Where
    timm does not have the network (`cifar_*`, another stem), it says so instead of building another.
    `format="transformers"` writes one for `AutoModelForImageClassification.from_pretrained` and
    `AutoImageProcessor.from_pretrained`, of the networks that these have.

    Args:
      model: the network, or its name.
      variables: its variables, NumPy or JAX arrays.
      folder: where to; `~` is understood.
      format: "timm" or "transformers".
      preprocessing: what images need in evaluation. Without it timm assumes its own default, which is logged.
      label_names: of the classes, in the order of the logits.
      overwrite: replace a folder that holds nothing but such files. It stands until the new one is complete.
      allow_nonfinite: write NaN, infinities and negative variances too, which whoever reads the folder has to allow.

    Raises:
      ConversionError: the variables are not those of the model, or hold NaN, infinities or negative variances.
      ValueError: the folder exists; labels of another number; a field of the model that no file can hold; another
        format, or a network that transformers does not have.
    """
    if isinstance(model, str):
        head = variables["params"].get("fc")
        model = create_model(model, num_classes=head["bias"].shape[-1] if head else 0)
    if format not in ("timm", "transformers"):
        raise ValueError(f"format={format!r} must be 'timm' or 'transformers'.")
    tensors = convert.to_torch(model, variables, allow_nonfinite=allow_nonfinite)
    if format == "transformers":
        first_conv = next(conv for conv in reversed(convert.FIRST_CONVS) if f"{conv}.weight" in tensors)
        in_channels = tensors[f"{first_conv}.weight"].shape[1]
        texts = {CONFIG: transformers_config.describe(model, in_channels, label_names)}
        texts |= {transformers_config.PROCESSOR: transformers_config.processor(preprocessing)} if preprocessing else {}
        tensors = transformers_config.named(tensors)
    else:
        texts = {CONFIG: timm_config.describe(model, tensors, preprocessing, label_names)}
    if preprocessing is None:
        logger.warning(
            "%s: no preprocessing given: whoever reads it will assume ImageNet's mean and std at 224 pixels.", folder
        )
    with replacing_folder(pathlib.Path(folder).expanduser(), overwrite, OURS) as temporary:
        formats.save_state_dict(temporary / WEIGHTS, tensors)
        for file, content in texts.items():
            (temporary / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# The parts ----------------------------------------------------------------------------------------------


# What a folder of weights may hold to be replaced.
OURS = (CONFIG, WEIGHTS, transformers_config.PROCESSOR)
# Fields that choose among networks of the same tensors, or nearly so, where the source does not state its own.
DECIDING = {*OF_THE_FUNCTION, "shortcut", "stem", "output_stride"}


def _fit(
    before: ResNet,
    model: ResNet,
    variables: convert.Variables,
    in_chans: int | None,
    channels: Sequence[int] | None,
    key: jax.Array | None,
) -> convert.Variables:
    given = next(variables["params"][name] for name in variables["params"] if name.startswith("conv1"))
    given = given.get("0", given)["kernel"].shape[2]
    waive = ["fc"] if model.num_classes != before.num_classes else []
    wanted = given if in_chans is None else in_chans
    fitted, diff = adapt(model, variables, in_channels=wanted, channels=channels, waive=waive, key=key)
    if diff.adapted or diff.initialised or diff.left_over:
        logger.warning("the network differs from the weights:\n%s", diff)
    return fitted


def in_dtypes_of(model: ResNet, variables: convert.Variables) -> convert.Variables:
    """Parameters in the model's `param_dtype`, statistics in it or in float32, whichever is wider."""
    param_dtype = jnp.dtype(model.param_dtype)
    dtypes = {"params": param_dtype, "batch_stats": jnp.promote_types(param_dtype, jnp.float32)}
    return {
        name: jax.tree.map(lambda leaf, dtype=dtypes[name]: leaf.astype(dtype, copy=False), tree)
        for name, tree in variables.items()
    }
