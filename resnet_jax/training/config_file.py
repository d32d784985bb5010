"""An experiment's config from its file and `--config.KEY=VALUE` flags, as `train.py` reads them."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Runs a config file, `FILE.py` or `FILE.py:ARGUMENT`, and sets keys in what it gives.

    Args:
      path: the file. It imports from the folder above its package, so `configs/x.py` finds `configs.default`, and from
        the current directory, so that one that lies elsewhere finds it, too, where `train.py` does.
      overrides: flags as in `["--config.batch_size=64", "--config.data.flip=False"]`.

    Raises:
      ValueError: no such file, one that defines no config, an unknown flag or key, or a value of another type.
      Exception: whatever the file itself raises, as it is: its traceback says where.
    """
    place, *argument = path.split(":", 1)
    file = pathlib.Path(place)
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(f"--config={path}: there is no file {file}, or it is not called .py.")
    root = file.absolute().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path[:0] = [folder for folder in dict.fromkeys((str(root), os.getcwd())) if folder not in sys.path]
    config = _run(file, argument)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"--config={path}: get_config() gives {type(config).__name__}, not a ConfigDict.")
    argv, values = ["", *overrides], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        left = values(argv)[1:]
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"--config={path}: {_message(error)}") from error
    if left:
        raise ValueError(f"unknown arguments {left}: keys of the config are set by --config.KEY=VALUE.")
    return config


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


def _message(error: Exception) -> str:
    """The text of an error, also where another error stands in its place, as in ml_collections' of unknown keys."""
    inner = error.args[0] if len(error.args) == 1 else None
    if isinstance(inner, Exception):
        return _message(inner)
    return (inner if isinstance(inner, str) else str(error)).replace("\n", " ")
