"""Writes what every config comes to: `python tools/golden_configs.py`. A changed default then shows in each it reaches.

tests/training/golden/NAME.json holds the keys of resnet_jax/configs/NAME.py, a line each, with references resolved.
"""

import json
import pathlib

from flax import traverse_util

from resnet_jax.training import config_file

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "tests" / "training" / "golden"


def texts() -> dict[str, str]:
    """Name of a config -> content of its file."""
    paths = [path for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"]
    return {path.stem: _text(path) for path in sorted(paths)}


def _text(path: pathlib.Path) -> str:
    config = config_file.load(str(path)).copy_and_resolve_references()
    flat = traverse_util.flatten_dict(json.loads(config.to_json_best_effort()), sep=".")
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(flat.items()))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    found = texts()
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.json"):
        if path.stem not in found:
            path.unlink()
    for name, text in found.items():
        (FOLDER / f"{name}.json").write_text(text)
    print(f"{FOLDER}: {len(found)} configs")


if __name__ == "__main__":
    main()
