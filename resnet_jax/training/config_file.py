"""An experiment's config from a recipe, a file or a run, and `--config.KEY=VALUE` flags."""

import difflib
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from resnet_jax import configs
from resnet_jax.configs import default
from resnet_jax.runs import workdirs

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
      overrides: flags as in `["--config.batch_size=64", "--config.data.flip=False"]`.

    Raises:
      ValueError: no such file or recipe, one that defines no config, an import that fails, an unknown flag or key, or a
        value of another type.
    """
    head, suffix, argument = path.rpartition(".py")
    if not suffix and os.sep not in path:
        if path not in names():
            near = difflib.get_close_matches(path, names(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}."
            raise ValueError(f"--config={path}: it is neither a file that ends in .py nor a recipe: {hint}")
        head, argument = str(RECIPES / path), ""
    file = pathlib.Path(head + ".py")
    if not file.is_file():
        raise ValueError(f"--config={path}: there is no file {file}.")
    root = file.absolute().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path[:0] = [folder for folder in dict.fromkeys((str(root), os.getcwd())) if folder not in sys.path]
    sys.modules.pop("config_config", None)  # ml_collections would run the file among the names of the one before
    values = flags.FlagValues()
    argv = [f"--config={file}{argument}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *argv])
    return _read(values, argv, f"--config={path}")


def _read(values: flags.FlagValues, argv: Sequence[str], source: str) -> ml_collections.ConfigDict:
    try:
        with warnings.catch_warnings():  # of ml_collections 1.1, about itself
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            left = values(["", *argv])[1:]
        config = values["config"].value
    except (flags.Error, AttributeError, ImportError, KeyError, TypeError, OSError, SyntaxError) as error:
        raise ValueError(f"{source}: {_message(error)}") from error
    if left:
        raise ValueError(f"unknown arguments {left}: keys of the config are set by --config.KEY=VALUE.")
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"{source}: get_config() gives {type(config).__name__}, not a ConfigDict.")
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
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", *overrides])
    return _read(values, overrides, f"--workdir={workdir}")


def _update(config: ml_collections.ConfigDict, found: dict[str, Any]) -> None:
    for key, value in found.items():
        if isinstance(value, dict):
            _update(config[key], value)
        else:
            config[key] = _tuples(value)


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _message(error: Exception) -> str:
    """The text of an error, also where another error stands in its place, as in ml_collections' of unknown keys."""
    inner = error.args[0] if len(error.args) == 1 else None
    if isinstance(inner, Exception):
        return _message(inner)
    return (inner if isinstance(inner, str) else str(error)).replace("\n", " ")
