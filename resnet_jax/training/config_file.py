"""An experiment's config from its file and `--config.KEY=VALUE` flags, as `train.py` reads them."""

import difflib
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from resnet_jax.training.keys.flags import set_keys


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Runs a config file, `FILE.py` or `FILE.py:ARGUMENT`, and sets keys in what it gives.

    Args:
      path: the file. It imports from the folder above its package, so `configs/x.py` finds `configs.default`, and from
        the current directory, so that one that lies elsewhere finds it, too, where `train.py` does.
      overrides: flags as in `["--config.batch_size=64", "--config.data.flip=False"]`; see `keys.flags.set_keys`.

    Raises:
      ValueError: no such file, one that defines no config, an import that fails, an unknown flag or key, or a value of
        another type.
    """
    file = pathlib.Path(path.rpartition(".py")[0] + ".py")
    if not file.is_file():
        beside = [other.name for other in file.parent.glob("*.py")]
        near = difflib.get_close_matches(file.name, beside)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"--config={path}: there is no file {file}{hint}")
    root = file.absolute().parent
    while (root / "__init__.py").exists():
        root = root.parent
    sys.path[:0] = [folder for folder in dict.fromkeys((str(root), os.getcwd())) if folder not in sys.path]
    argv = ["", f"--config={path}"]
    sys.modules.pop("config_config", None)  # ml_collections would run the file among the names of the one before
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        with warnings.catch_warnings():  # of ml_collections 1.1, about itself
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            values(argv)
        config = values["config"].value
    except (flags.Error, AttributeError, ImportError, KeyError, TypeError, OSError, SyntaxError) as error:
        raise ValueError(f"--config={path}: {_message(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(f"--config={path}: get_config() gives {type(config).__name__}, not a ConfigDict.")
    set_keys(config, overrides)
    return config


def _message(error: Exception) -> str:
    """The text of an error, also where another error stands in its place, as in ml_collections' of unknown keys."""
    inner = error.args[0] if len(error.args) == 1 else None
    if isinstance(inner, Exception):
        return _message(inner)
    return (inner if isinstance(inner, str) else str(error)).replace("\n", " ")
