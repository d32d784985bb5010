"""What is told in one message, and what keeps its traceback: by who raised it, not by where a file lies."""

import importlib.util

import jax.numpy as jnp
import pytest
from etils import epath

from resnet_jax import errors
from resnet_jax.cli import command, train
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.models import variants
from resnet_jax.runs import reporting, storage, workdirs
from resnet_jax.step import metrics
from resnet_jax.training import hosts, loop


def raised_by(call):
    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one, is told by the cases
        call()
    return raised.value


def mine(folder, line):
    """A function `call` of a user's module, in a folder that is called like the package."""
    (folder / "resnet_jax").mkdir()
    path = folder / "resnet_jax" / "mine.py"
    path.write_text(f"def call(*arguments):\n    {line}\n")
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.call


OURS = {
    "a ValueError": lambda folder: workdirs.claim("", None),
    "of a table": lambda folder: variants.create_model("resnet5"),
    "a missing file": lambda folder: workdirs.load_config(str(folder)),
    "what a file system says": lambda folder: storage.read_if_there(epath.Path(folder)),
}


@pytest.mark.parametrize("name", OURS)
def test_what_this_package_refuses_is_one_message(name, tmp_path):
    error = raised_by(lambda: OURS[name](tmp_path))
    assert errors.is_refusal(error)
    assert errors.message(error) == str(error)


def test_our_own_classes_are_refusals_whoever_raises_them_again():
    for kind in (UnreadableImage, hosts.HostsDisagree, loop.Preempted, storage.NotWritten):
        assert errors.is_refusal(raised_by(lambda kind=kind: (_ for _ in ()).throw(kind("from another process"))))
    assert issubclass(UnreadableImage, ValueError)
    assert issubclass(storage.NotWritten, OSError)
    assert storage.NotWritten(2, "gone", "file").filename == "file"


SLIPS = {
    "Python's, in a line of ours": lambda: metrics.merge({}, {"loss": "many"}),
    "a key that is not there": lambda: reporting.accuracy_line({}),
    "JAX's, in a line of ours": lambda: metrics.measure(jnp.zeros((2, 3)), jnp.zeros(3), jnp.zeros(2), jnp.zeros(2)),
}


@pytest.mark.parametrize("name", SLIPS)
def test_what_is_not_said_on_purpose_keeps_its_traceback(name):
    error = raised_by(SLIPS[name])
    assert not errors.is_refusal(error)
    assert "Traceback" in errors.message(error)


@pytest.mark.parametrize("line", ["raise ValueError('mine')", "raise OSError('mine')", "open('/no/such')", "len(3)"])
def test_a_user_s_mistake_is_none_of_ours_though_we_called_it(tmp_path, line):
    call = mine(tmp_path, line)
    error = raised_by(lambda: storage.open_log(call))
    assert not errors.is_refusal(error)
    assert "resnet_jax/mine.py" in errors.message(error)


def test_what_was_noted_on_the_way_is_said():
    error = UnreadableImage("a.png: no image")
    error.add_note("The checkpoint of step 8 is saved.")
    assert errors.message(error) == "a.png: no image\nThe checkpoint of step 8 is saved."


@pytest.mark.parametrize(("name", "code"), [("resnet-jax", 2), ("train.py", 1)])
def test_commands_show_the_one_and_raise_the_other(tmp_path, monkeypatch, capsys, name, code):
    place = {"resnet-jax": (command.list_, "list_models"), "train.py": (train, "_train")}[name]

    def run():
        return command.main(["list"]) if name == "resnet-jax" else train.main([], name)

    monkeypatch.setattr(*place, lambda *_: workdirs.claim("", None))
    try:
        ended = run()
    except SystemExit as end:
        ended = end.code
    assert ended == code
    assert capsys.readouterr().err == f"{name}: a run needs a folder of its own: give --workdir=DIR.\n"
    monkeypatch.setattr(*place, mine(tmp_path, "raise ValueError('mine')"))
    with pytest.raises(ValueError, match="mine"):
        run()
