"""The folder of a run, and the config.json that says which run it is."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

CONFIG = "config.json"

# Keys that may differ between the starts of one run: they decide where, how fast and how often, but no number.
FREE_KEYS = {
    "parallel", "log_every_steps", "eval_every_epochs", "checkpoint_every_epochs", "checkpoint_every_steps",
    "keep_checkpoints", "compilation_cache_dir", "data.path", "data.data_dir", "data.num_threads", "data.num_workers",
}  # fmt: skip


def claim(workdir: str, config: Any) -> None:
    """Writes the resolved `config` (an ml_collections.ConfigDict) into `workdir`, unless another run lives there.

    Raises:
      ValueError: no workdir, or one whose config.json differs in a key that is not in `FREE_KEYS`.
    """
    if not workdir:
        raise ValueError("a run needs a folder of its own: give --workdir=DIR.")
    path = epath.Path(workdir) / CONFIG
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n"
    if path.exists():
        here, there = _flat(json.loads(text)), _flat(load_config(workdir))
        differences = [
            f"  config.{key}: {there.get(key)!r} there, {here.get(key)!r} now"
            for key in sorted(here.keys() | there.keys())
            if here.get(key) != there.get(key) and key not in FREE_KEYS
        ]
        if differences:
            raise ValueError(
                f"{workdir} belongs to another run:\n" + "\n".join(differences) + "\n"
                "Use another --workdir, or start with that run's config to continue it."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def load_config(workdir: str) -> dict[str, Any]:
    """The resolved config of the run in `workdir`.

    Raises:
      FileNotFoundError: `workdir` holds no run.
    """
    path = epath.Path(workdir).expanduser() / CONFIG
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no {CONFIG}: it is not the workdir of a run.")
    return json.loads(path.read_text())


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
