"""What files of weights are called, and which file of a folder holds them."""

import os
import pathlib

from resnet_jax.weights.errors import WeightFileError

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
# What can be written; in either case of letters.
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# What a folder may call its weights, the best first, where Hugging Face, timm or this library wrote it.
USUAL = (
    *("model.safetensors", "*.safetensors.index.json", "*.index.json"),
    *("pytorch_model.bin", "pytorch_model.pth", "model.pth", "flax_model.msgpack"),
)
# How the names of files end that may be weights under any other name.
ENDINGS = (".safetensors", ".pth", ".pt", ".th", ".bin", ".pth.tar", ".pt.tar", ".ckpt", ".pkl", ".msgpack")
# Names in a folder that is Orbax's, or a workdir, whatever has been exported into it.
NOT_FOR_FILES = {"checkpoints", "_METADATA", "variables"}


def holds_weights(path: str | os.PathLike[str]) -> bool:
    """Whether `load_state_dict` is to read `path`: a file, or a folder with files that may be weights."""
    place = pathlib.Path(path).expanduser()
    if "://" in str(path):  # a bucket, where workdirs and folders of variables lie, but no file that this could read
        return place.suffix.lower() in SUFFIXES
    return not place.is_dir() or bool(_in_folder(place))


def find(path: pathlib.Path) -> pathlib.Path:
    """The file of weights: `path` itself, or the one in that folder.

    Raises:
      WeightFileError: there is none, or there are several.
    """
    if path.is_dir():
        found = _in_folder(path)
        if len(found) == 1:
            return found[0]
        if found:
            more = f" and {len(found) - 8} more" * (len(found) > 8)
            listed = ", ".join(file.name for file in found[:8])
            raise WeightFileError(f"the folder has several files of weights: {listed}{more}. Name one.")
        raise WeightFileError(f"the folder has no file of weights, which end in {', '.join(ENDINGS)} or .index.json.")
    if not path.is_file():
        raise WeightFileError("there is no such file.")
    return path


def _in_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """The file of weights in a folder, under its usual name, or else all that there may be."""
    for name in USUAL:
        if found := sorted(file for file in folder.glob(name) if file.is_file()):
            return found
    files = sorted(folder.iterdir())
    if NOT_FOR_FILES & {file.name for file in files}:
        return []
    return [file for file in files if file.name.lower().endswith(ENDINGS) and file.is_file()]
