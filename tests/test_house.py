"""The house stays as drawn: who imports whom, what is public, what is pinned."""

import ast
import builtins
import collections
import graphlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import tomllib
import typing

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

PACKAGE = ROOT / "resnet_jax"
# Room -> what it may import beside itself; within a room imports are free, and nowhere do they run in a circle.
ALLOWED = {
    "models": set(),
    "weights": {"models", "runs.workdirs", "data.transforms", "compiler", "version"},
    "weights.files": {"weights.errors"},
    "proof": {"models", "weights", "compiler", "version"},
    "data": {"processes"},
    "data.images": set(),
    "data.sources": {"data.images"},
    "data.augment": {"data.images"},
    "data.prepare": {"data.images", "data.sources", "processes"},
    "step": {"compiler"},
    "runs": {"models", "version"},
    "configs": set(),
    "training": {"configs", "step", "runs", "data", "models", "weights", "compiler", "version"},
    "plan": {"training", "data", "processes"},
    "inference": {"data", "models", "weights", "compiler"},
    "scores": {"inference", "runs", "data"},
    "processes": {"compiler"},
    "compiler": set(),
    "errors": set(),
    "version": set(),
    "cli": {"inference", "scores", "plan", "training", "runs", "proof", "weights", "data", "models", "compiler"},
    # resnet_jax/__init__.py
    "": {"models", "weights", "data.transforms", "runs.reporting", "training.fit", "version"},
}
MAY_IMPORT_TORCH = {"resnet_jax.proof.reference", "resnet_jax.proof.verify"}
SOURCES = [*PACKAGE.rglob("*.py"), *(ROOT / "configs").glob("*.py"), ROOT / "train.py"]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in SOURCES}


def imports(path):
    """(imported name, whether at the top of the file) for each import in it."""
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
    for imported, at_top in imports(path):
        root = imported.split(".")[0]
        assert root != "tensorflow"
        assert root != "timm" or name == "resnet_jax.proof.reference"
        if root in ("torch", "torchvision", "timm"):
            assert name in MAY_IMPORT_TORCH, f"{name} imports {root}"
            assert not at_top, f"{name} imports {root} at its top: import it where it is used"
        assert root != "configs", f"{name} imports from the checkout alone"
        if root == "resnet_jax" and inside(name, "resnet_jax"):
            own = name.removeprefix("resnet_jax").removeprefix(".")
            room = max((room for room in ALLOWED if inside(own, room) or not room), key=len)
            wanted = imported.removeprefix("resnet_jax.")
            allowed = ALLOWED[room] | ({room} if room else set()) | {"errors"}
            assert any(inside(wanted, other) for other in allowed), f"{name} may not import {imported}"
        if root == "resnet_jax" and name == "train":
            assert inside(imported, "resnet_jax.cli")


def graph(place):
    """Place -> places that its files import, where `place` says what part of the house a module is."""
    arrows = collections.defaultdict(set)
    for path in SOURCES:
        for imported, _ in imports(path):
            while imported and imported not in MODULES:
                imported = imported.rpartition(".")[0]
            if imported and place(imported) != place(module_name(path)):
                arrows[place(module_name(path))].add(place(imported))
    return arrows


@pytest.mark.parametrize("depth", [2, 3, 9], ids=["rooms", "rooms in rooms", "files"])
def test_no_imports_run_in_a_circle(depth):
    arrows = graph(lambda module: ".".join(module.split(".")[:depth]))
    graphlib.TopologicalSorter(arrows).prepare()  # raises with the circle


def picture():
    """The rooms of README: path of a folder -> what its lines say; and the single files."""
    text = re.search(r"^## The rooms\n\n```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)[1]
    rooms, files, above, path = {}, set(), [], ""
    for line in text.splitlines():
        indent, words = re.match(r"( *)(.*)", line).groups()
        if len(indent) > 8:
            rooms[path] += " " + words
            continue
        name, _, said = words.partition(" ")
        above = [*above[: len(indent) // 2], name.rstrip("/")]
        path = "/".join(above)
        if name.endswith("/"):
            rooms[path] = said
        else:
            files.add(path)
    return rooms, files


def test_the_picture_in_readme_is_the_house():
    rooms, files = picture()
    folders = [path for path in PACKAGE.rglob("*") if path.is_dir() and (path / "__init__.py").exists()]
    drawn = {path.relative_to(ROOT).as_posix() for path in (PACKAGE, *folders)}
    assert {room for room in rooms if room.startswith("resnet_jax")} == drawn
    assert all((ROOT / path).is_dir() for path in rooms)
    assert {path for path in files if "/" in path} == {
        f"resnet_jax/{path.name}" for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
    }
    for folder in folders:
        there = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")}
        said = set(re.findall(r"\w+", rooms[folder.relative_to(ROOT).as_posix()]))
        assert there <= said or folder.name == "configs", (
            f"{folder.name} holds {sorted(there - said)}, of which README says nothing"
        )


def test_no_room_is_crowded():
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "configs"):
        count = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
        assert count <= 13, f"{folder.relative_to(ROOT)} holds {count} files: make a room in it"


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
from resnet_jax.weights.files import formats
formats.save_state_dict(sys.argv[1], resnet_jax.to_torch(model, variables))
back = resnet_jax.from_torch(model, formats.load_state_dict(sys.argv[1]))
assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, back)))
assert resnet_jax.cli.main(["convert", sys.argv[1], "--model=cifar_resnet20", "--out=" + sys.argv[1] + ".out/"]) == 0
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
    from resnet_jax.configs import default

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


def test_what_public_functions_return_and_raise_is_public():
    import resnet_jax

    lazy = {"Preprocessing": resnet_jax.Preprocessing}
    functions = [value for name in resnet_jax.__all__ if inspect.isfunction(value := getattr(resnet_jax, name))]
    said = " ".join(f"{typing.get_type_hints(each, localns=lazy)['return']} {each.__doc__}" for each in functions)
    types = set(re.findall(r"resnet_jax\.[\w.]+\.([A-Z]\w+)", said)) | set(re.findall(r"\b[A-Z]\w+Error\b", said))
    assert types >= {"Preprocessing", "Diff", "FeatureInfo", "Pretrained", "ConversionError", "DownloadError"}
    assert types <= {*resnet_jax.__all__, *dir(builtins)}


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
