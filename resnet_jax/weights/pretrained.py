"""Weights by name or by place: from a source to a model and its variables, and from those to a folder."""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from resnet_jax import compiler
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.variants import create_model
from resnet_jax.weights import convert, finite
from resnet_jax.weights.adapt import adapt
from resnet_jax.weights.files import formats
from resnet_jax.weights.published import timm_config
from resnet_jax.weights.resolve import OF_THE_FUNCTION, resolve
from resnet_jax.weights.sources import CONFIG, WEIGHTS, locate

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
    found = locate(source)
    changes = overrides | ({} if num_classes is None else {"num_classes": num_classes})
    create_model(network or found.name or "resnet50", **changes)  # refuses a bad one before anything is downloaded
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
    preprocessing: "Preprocessing | None" = None,
    label_names: Sequence[str] | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
) -> None:
    """Writes a folder for `load_pretrained`, and for timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    It holds `model.safetensors`, under PyTorch's names, and timm's `config.json`; it appears whole or not at all. Where
    timm does not have the network (`cifar_*`, another stem), it says so instead of building another.

    Args:
      model: the network, or its name.
      variables: its variables, NumPy or JAX arrays.
      folder: where to; `~` is understood.
      preprocessing: what images need in evaluation. Without it timm assumes its own default, which is logged.
      label_names: of the classes, in the order of the logits.
      overwrite: replace a folder that holds nothing but such files.
      allow_nonfinite: write NaN, infinities and negative variances too, which whoever reads the folder has to allow.

    Raises:
      ConversionError: the variables are not those of the model, or hold NaN, infinities or negative variances.
      ValueError: the folder exists; labels of another number; a field of the model that no file can hold.
    """
    if isinstance(model, str):
        head = variables["params"].get("fc")
        model = create_model(model, num_classes=head["bias"].shape[-1] if head else 0)
    tensors = convert.to_torch(model, variables, allow_nonfinite=allow_nonfinite)
    config = timm_config.describe(model, tensors, preprocessing, label_names)
    if preprocessing is None:
        logger.warning("%s: no preprocessing given: timm will assume ImageNet's mean and std at 224 pixels.", folder)
    with _appearing(pathlib.Path(folder).expanduser(), overwrite) as temporary:
        formats.save_state_dict(temporary / WEIGHTS, tensors)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


# The parts ----------------------------------------------------------------------------------------------


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


@contextlib.contextmanager
def _appearing(folder: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside `folder`, and moves it there once it is complete."""
    there = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if there and not overwrite:
        raise ValueError(f"{folder} exists: choose another folder, or give overwrite=True to replace it.")
    if strangers := [name for name in there if name not in (CONFIG, WEIGHTS)]:
        raise ValueError(
            f"{folder} holds {strangers[:5]} too, and would be replaced as a whole: choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()  # with everybody's usual permissions, which mkdtemp's are not
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
