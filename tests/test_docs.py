"""The pages do what they say: every Python block is run, and what it prints is what stands below it."""

import contextlib
import io
import json
import os
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import resnet_jax
from pages import blocks
from paths import ROOT
from resnet_jax import compiler
from resnet_jax.models import variants
from tools import make_notebook


@pytest.fixture(scope="module")
def fine_tuning(tmp_path_factory):
    """The namespace after all blocks of the page, and all that they printed."""
    names, printed = {}, []
    names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
    # One block writes a folder of images.
    with jax.numpy_rank_promotion("allow"), contextlib.chdir(tmp_path_factory.mktemp("page")):
        for block in blocks("docs/fine-tuning.md", "python"):
            exec(compile(block, "fine-tuning.md", "exec"), names)
    return names, "\n".join(printed)


def test_the_page_on_fine_tuning_runs_and_prints_what_it_shows(fine_tuning):
    names, printed = fine_tuning
    assert printed == "\n".join(block.strip() for block in blocks("docs/fine-tuning.md", ""))
    assert names["segmentation"].shape == (4, 8, 8, 3)
    assert names["nnx_logits"].shape == (4, 1000)
    assert np.isfinite(names["loss"])


def test_its_step_moves_what_is_not_frozen(fine_tuning):
    names, _ = fine_tuning
    before, after = names["variables"]["params"], names["tuned"]["params"]
    moved = {
        name for name in before if not all(jax.tree.leaves(jax.tree.map(np.array_equal, before[name], after[name])))
    }
    assert "fc" in moved
    assert not moved & {"conv1", "bn1", "layer1", "layer2"}


def test_the_page_on_training_from_python_runs_and_prints_what_it_shows(tmp_path, monkeypatch):
    printed, sent = [], []
    names = {"print": lambda *values: printed.append(" ".join(map(str, values)))}
    names["wandb"] = types.SimpleNamespace(log=lambda numbers, step: sent.append((step, numbers)))
    monkeypatch.setenv("HOME", str(tmp_path))  # where compiled programs are kept
    with jax.numpy_rank_promotion("allow"), contextlib.chdir(tmp_path):
        for block in blocks("docs/training-from-python.md", "python"):
            exec(compile(block, "training-from-python.md", "exec"), names)
        data = (names["images"][:48], names["labels"][:48])
        fitted = resnet_jax.fit(
            names["Small"](), data, data, workdir="runs/told", num_epochs=1, batch_size=8, callbacks=[names["WandB"]()]
        )
        assert resnet_jax.class_names("runs/mine") == ("dark", "bright")
    assert printed == [block.strip() for block in blocks("docs/training-from-python.md", "")]
    assert [(step, numbers.get("test/accuracy")) for step, numbers in sent][-1] == (6, fitted.record["accuracy"])
    assert sent[0][1]["train/loss"] == fitted.history[0]["loss"]


def test_the_notebook_is_the_page():
    page = ROOT / "docs" / "training-from-python.md"
    assert json.loads(page.with_suffix(".ipynb").read_text()) == make_notebook.notebook(page.read_text())
    cells = make_notebook.notebook(page.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [block.strip() for block in blocks("docs/training-from-python.md", "python")]


def test_the_page_on_hazards_names_what_there_is(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(compiler, "_has_begun", lambda: False)  # as where it is pasted
    (block,) = blocks("docs/known-hazards.md", "python")
    exec(compile(block, "known-hazards.md", "exec"), {})
    assert os.environ["XLA_FLAGS"] == compiler.CURE
    page = (ROOT / "docs" / "known-hazards.md").read_text()
    assert f'    export XLA_FLAGS="$XLA_FLAGS {compiler.CURE}"\n' in page
    assert re.findall(r"^\| ([^|:]+): ", page, re.MULTILINE) == list(compiler.CANARIES)
    (command,) = re.findall(r'^    python -c "(.*)"$', page, re.MULTILINE)
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(command, {})
    assert shown.getvalue() == "()\n"


def test_the_worked_example_of_a_new_part_works(monkeypatch):
    source, line = blocks("CONTRIBUTING.md", "python")
    names = {}
    exec(compile(source, "gather_excite.py", "exec"), names)
    entry = eval("{" + line.strip() + "}", vars(variants) | names)
    monkeypatch.setattr(variants, "VARIANTS", variants.VARIANTS | entry)
    assert resnet_jax.list_models("ge*") == ["geresnet18"]
    small = {"stage_sizes": (1,), "stage_features": (8,), "stem_features": 8, "num_classes": 5, "train": False}
    model = resnet_jax.create_model("geresnet18", **small, zero_init_residual=False)
    plain = resnet_jax.resnet18(**small)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = jax.jit(plain.init)(jax.random.key(0), images)  # the part has no parameters: the same tree
    found = jax.jit(model.apply)(resnet_jax.from_torch(model, resnet_jax.to_torch(model, variables)), images)
    assert found.shape == (2, 5)
    assert not jnp.allclose(found, jax.jit(plain.apply)(variables, images), rtol=1e-3)
    branch = jnp.arange(8.0).reshape(1, 2, 2, 2)
    by_hand = branch * jax.nn.sigmoid(jnp.array([3.0, 4.0])).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(names["GatherExcite"](2).apply({}, branch), by_hand, rtol=1e-6)
