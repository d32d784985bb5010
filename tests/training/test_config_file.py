"""A config from its file: where it lies, what it imports, what is refused."""

import pathlib
import sys

import pytest

from paths import ROOT
from resnet_jax import errors
from resnet_jax.training import config_file

MINE = """
from {package} import default

def get_config():
    config = default.get_config()
    config.batch_size = 7
    return config
"""


@pytest.fixture
def alone(monkeypatch):
    """Imports as the installed command has them: neither the repository nor its `configs` is to be found."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder and pathlib.Path(folder) != ROOT])
    for name in [name for name in sys.modules if name.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)


def mine(folder, package="configs"):
    (folder / "mine.py").write_text(MINE.format(package=package))
    return str(folder / "mine.py")


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_config_finds_the_default_from_the_repository_or_in_it(alone, tmp_path, monkeypatch, where):
    monkeypatch.chdir(ROOT if where == "here" else tmp_path)
    path = mine(tmp_path) if where == "here" else str(ROOT / "configs" / "digits_resnet20.py")
    config = config_file.load(path, ["--config.num_epochs=3"])
    assert config.num_epochs == 3
    assert where == "there" or config.batch_size == 7


def test_the_config_s_own_folder_comes_before_the_current_one(alone, tmp_path, monkeypatch):
    for folder, size in (("config", 8), ("current", 16)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sizes.py").write_text(f"SIZE = {size}")
    path = tmp_path / "config" / "mine.py"
    path.write_text("import ml_collections, sizes\nget_config = lambda: ml_collections.ConfigDict({'s': sizes.SIZE})")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.delitem(sys.modules, "sizes", raising=False)
    assert config_file.load(str(path)).s == 8
    monkeypatch.delitem(sys.modules, "sizes")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("x = 1", [], "get_config"),
        (None, [], "there is no file"),
        ("get_config = lambda: {}", [], "gives dict, not a ConfigDict"),
        (MINE.format(package="configs"), ["--config.batchsize=3"], "batchsize"),
        (MINE.format(package="configs"), ["--config.batch_size=many"], "many"),
        (MINE.format(package="configs"), ["other"], r"unknown arguments \['other'\]"),
    ],
)
def test_what_is_no_config_is_refused_with_its_name(tmp_path, text, overrides, message):
    path = tmp_path / "refused.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message) as refusal:
        config_file.load(str(path), overrides)
    assert errors.is_refusal(refusal.value)
    assert overrides or "refused.py" in str(refusal.value)


MISTAKES = {
    "raise ValueError('mine')": ValueError,
    "len(3)": TypeError,
    "{}['mine']": KeyError,
    "None.mine": AttributeError,
    "open('/no/such/file')": FileNotFoundError,
    "from configz import default": ModuleNotFoundError,
    "def mine(:": SyntaxError,
}


@pytest.mark.parametrize("where", ["in get_config", "in the file", "in a module that it imports"])
@pytest.mark.parametrize(("mistake", "kind"), MISTAKES.items())
def test_a_mistake_in_a_config_is_shown_where_it_is(tmp_path, monkeypatch, mistake, kind, where):
    """In a checkout, too, that is called like the package."""
    folder = tmp_path / "resnet_jax"
    folder.mkdir()
    text = {
        "in get_config": f"def get_config():\n    {mistake}\n",
        "in the file": mistake,
        "in a module that it imports": "import module_of_mine",
    }
    (folder / "mine.py").write_text(text[where])
    (folder / "module_of_mine.py").write_text(mistake)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(kind) as raised:
        config_file.load(str(folder / "mine.py"))
    assert not errors.is_refusal(raised.value)
    assert str(folder / ("module_of_mine.py" if "imports" in where else "mine.py")) in errors.message(raised.value)


def test_a_config_does_not_see_the_names_of_the_one_before(tmp_path):
    assert config_file.load(mine(tmp_path)).batch_size == 7
    (tmp_path / "other.py").write_text("x = 1")
    with pytest.raises(ValueError, match="get_config"):
        config_file.load(str(tmp_path / "other.py"))
