"""An experiment's config from a recipe, a file or a run, and `--config.KEY=VALUE` flags."""

import difflib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections

from resnet_jax import configs
from resnet_jax.configs import default
from resnet_jax.runs import workdirs
from resnet_jax.training.keys.flags import set_keys

RECIPES = pathlib.Path(configs.__file__).parent


def names() -> list[str]:
    """The recipes that the package brings."""
    return sorted(file.stem for file in RECIPES.glob("*.py") if file.stem != "__init__")


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Runs a config file, `FILE.py` or `FILE.py:ARGUMENT`, and sets keys in what it gives.

    Args:
      path: the file, or the name of a recipe in `resnet_jax/configs`. A file imports from the folder above its package,
        so `configs/x.py` finds `configs.default`, and from the current directory, so that one that lies elsewhere finds
        it, too, where `train.py` does.
      overrides: flags as in `["--config.batch_size=64", "--config.data.flip=False"]`; see `keys.flags.set_keys`.

    Raises:
      ValueError: no such file or recipe, one that defines no config, an unknown flag or key, or a value of another
        type.
      Exception: whatever the file itself raises, as it is: its traceback says where.
    """
    place, *argument = path.split(":", 1)
    file = RECIPES / f"{place}.py" if place in names() else pathlib.Path(place)
    if file.suffix != ".py" or not file.is_file():
        beside = [other.name for other in file.parent.glob("*.py")] if file.suffix else names()
        near = difflib.get_close_matches(file.name, beside)
        hint = f"did you mean {' or '.join(near)}?" if near else f"recipes are {', '.join(names())}."
        raise ValueError(f"--config={path}: there is no file {file} that ends in .py, and no such recipe; {hint}")
    root = file.absolute().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path[:0] = [folder for folder in dict.fromkeys((str(root), os.getcwd())) if folder not in sys.path]
    config = _run(file, argument)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"--config={path}: get_config() gives {type(config).__name__}, not a ConfigDict.")
    set_keys(config, overrides)
    return config


def of_run(workdir: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config that the run in `workdir` was started with; keys that are newer than it have their defaults.

    Raises:
      FileNotFoundError: it holds no run.
      ValueError: its config.json is damaged, or has keys that this version does not have; overrides as in `load`.
    """
    config = default.get_config()
    try:
        _update(config, workdirs.load_config(workdir))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{workdir}/{workdirs.CONFIG} is of another version of this package: {error}") from error
    set_keys(config, overrides)
    return config


def _update(config: ml_collections.ConfigDict, found: dict[str, Any]) -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            _update(config[key], value)
        else:
            config[key] = _tuples(value)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _run(file: pathlib.Path, argument: Sequence[str]) -> Any:
    """What `get_config` of the file gives; what the file raises is its own affair, and keeps its traceback."""
    spec = importlib.util.spec_from_file_location("config_config", file)
    assert spec is not None  # of a file that is called .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the module that it is of
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={file} defines no get_config(), which gives the config.")
    return module.get_config(*argument)
