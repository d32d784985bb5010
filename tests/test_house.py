"""The house stays as drawn: who imports whom, what is public, what is pinned."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Room -> rooms it may import. Within a room imports are free, where the graph below has no cycle.
ALLOWED = {
    "resnet_jax.models": set(),
    "resnet_jax.data": {"resnet_jax.processes"},
    "resnet_jax.processes": set(),
    "resnet_jax.version": set(),
    "resnet_jax.weights": {"resnet_jax.models", "resnet_jax.data.transforms", "resnet_jax.version"},
    "resnet_jax.training.step": {
        "resnet_jax.training.losses",
        "resnet_jax.training.metrics",
        "resnet_jax.training.mixing",
        "resnet_jax.training.parts",
    },
    "resnet_jax.training.averaging": set(),
    "resnet_jax.training.losses": set(),
    "resnet_jax.training.metrics": set(),
    "resnet_jax.training.mixing": set(),
    "resnet_jax.training.recipe": {
        "resnet_jax.training.averaging",
        "resnet_jax.training.losses",
        "resnet_jax.training.mixing",
        "resnet_jax.training.optimizer",
        "resnet_jax.training.parts",
    },
    "resnet_jax.training.optimizer": set(),
    "resnet_jax.training.parts": set(),
    "resnet_jax.training.parallel": set(),
    "resnet_jax.training.storage": set(),
    "resnet_jax.training.records": {"resnet_jax.training.storage"},
    "resnet_jax.training.scalars": {"resnet_jax.training.storage"},
    "resnet_jax.training.plots": {"resnet_jax.training.records", "resnet_jax.training.storage"},
    "resnet_jax.training.report": {
        "resnet_jax.training.plots",
        "resnet_jax.training.records",
        "resnet_jax.training.scalars",
        "resnet_jax.training.storage",
    },
    "resnet_jax.training.summary": {
        "resnet_jax.training.records",
        "resnet_jax.training.storage",
        "resnet_jax.training.workdirs",
    },
    "resnet_jax.training.cells": {"resnet_jax.models", "resnet_jax.training.summary"},
    "resnet_jax.training.page": {
        "resnet_jax.training.cells",
        "resnet_jax.training.plots",
        "resnet_jax.training.summary",
        "resnet_jax.training.workdirs",
        "resnet_jax.version",
    },
    "resnet_jax.training.workdirs": {"resnet_jax.training.storage", "resnet_jax.version"},
    "resnet_jax.training.chips": set(),
    "resnet_jax.training.config_file": set(),
    "resnet_jax.training.hlo": set(),
    "resnet_jax.training.checkpoint": {"resnet_jax.training.step"},
    "resnet_jax.training": {
        "resnet_jax.training",
        "resnet_jax.data",
        "resnet_jax.models",
        "resnet_jax.weights",
        "resnet_jax.version",
    },
    "resnet_jax.inference": {"resnet_jax.data", "resnet_jax.models"},
    "resnet_jax.cli_inference": {
        "resnet_jax.inference",
        "resnet_jax.training",
        "resnet_jax.data",
        "resnet_jax.models",
        "resnet_jax.weights",
    },
    "resnet_jax.cli_plan": {"resnet_jax.training", "resnet_jax.models", "resnet_jax.processes"},
    "resnet_jax.cli_verify": {"resnet_jax.data", "resnet_jax.weights"},
    "resnet_jax.cli_prepare": {"resnet_jax.data"},
    "resnet_jax.cli_report": {"resnet_jax.training"},
    "resnet_jax.cli": {
        "resnet_jax.cli_inference",
        "resnet_jax.cli_plan",
        "resnet_jax.cli_prepare",
        "resnet_jax.cli_report",
        "resnet_jax.cli_verify",
        "resnet_jax.training",
        "resnet_jax.data",
        "resnet_jax.models",
        "resnet_jax.weights",
    },
    "resnet_jax": {"resnet_jax.models", "resnet_jax.weights", "resnet_jax.version"},
    "train": {"resnet_jax.training"},
    "configs": {"configs"},  # on the default, or on a sibling
}
MAY_IMPORT_TORCH = {"resnet_jax.weights.reference", "resnet_jax.weights.verify"}
SOURCES = [*(ROOT / "resnet_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py"), ROOT / "train.py"]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """(imported module, whether at the top of the file) for each import in it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, node in tree.body) for name in names)


def inside(name, room):
    return name == room or name.startswith(room + ".")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_run_one_way(path):
    name = module_name(path)
    room = max((room for room in ALLOWED if inside(name, room)), key=len)
    for imported, at_top in imports(path):
        root = imported.split(".")[0]
        assert root != "tensorflow"
        assert root != "timm" or name == "resnet_jax.weights.reference"
        if root in ("torch", "torchvision", "timm"):
            assert name in MAY_IMPORT_TORCH, f"{name} imports {root}"
            assert not at_top, f"{name} imports {root} at its top: import it where it is used"
        if root in ("resnet_jax", "configs"):
            allowed = ALLOWED[room] | ({room} if room.count(".") == 1 and room != "resnet_jax" else set())
            assert any(inside(imported, other) for other in allowed), f"{name} may not import {imported}"


def test_importing_the_library_needs_no_extra():
    """Import, build, convert: with every module of the extras made impossible to import."""
    code = """
import sys
for name in ("torch", "torchvision", "timm", "tensorflow", "tensorflow_datasets", "grain", "ml_collections",
             "cv2", "sklearn", "matplotlib", "tqdm"):
    sys.modules[name] = None
import jax, resnet_jax, resnet_jax.cli, numpy as np
model = resnet_jax.cifar_resnet20()
variables = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False))
variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)
from resnet_jax.weights import formats
formats.save_state_dict(sys.argv[1], resnet_jax.to_torch(model, variables))
back = resnet_jax.from_torch(model, formats.load_state_dict(sys.argv[1]))
assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, back)))
assert resnet_jax.cli.main(["convert", sys.argv[1], "--model=cifar_resnet20", "--out=" + sys.argv[1] + ".out"]) == 0
print("fine")
"""
    pytest.importorskip("resnet_jax.cli")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code, folder + "/x.safetensors"], cwd=ROOT, capture_output=True, text=True
        )
    assert done.stdout.endswith("fine\n"), done.stderr


def test_every_module_and_config_imports():
    for path in SOURCES:
        importlib.import_module(module_name(path))


def test_a_key_that_the_default_config_does_not_have_is_refused():
    from configs import default

    config = default.get_config()
    with pytest.raises(AttributeError, match='Did you mean "batch_size"'):
        config.batchsize = 3
    with pytest.raises(AttributeError):
        config.data.flop = True
    config.model.kwargs.drop_block_size = 7  # for ResNet to judge


def test_public_names_exist():
    import resnet_jax

    for name in resnet_jax.__all__:
        assert hasattr(resnet_jax, name)


def test_hooks_use_the_versions_of_the_dev_extra():
    hooks = set(re.findall(r"(\w+==[\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert hooks
    assert hooks <= set(PROJECT["optional-dependencies"]["dev"])


def test_the_wheel_holds_the_package_alone(tmp_path):
    from setuptools import find_packages

    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.split(".")[0] for name in find_packages(str(ROOT), include=include)} == {"resnet_jax"}


def test_changelog_has_the_version():
    import resnet_jax

    assert f"## [{resnet_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
