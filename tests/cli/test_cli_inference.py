"""The verbs predict and evaluate, and their exit codes."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax import cli, inference
from resnet_jax.data import datasets
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.weights.files import formats, orbax_folder

MODEL = resnet_jax.cifar_resnet20(num_classes=4)
GREY = Preprocessing(16, 18, "bilinear", (0.25,), (0.5,))


def random_variables(channels):
    images = jax.ShapeDtypeStruct((1, 16, 16, channels), jnp.float32)
    shapes = jax.eval_shape(lambda x: MODEL.init(jax.random.key(0), x, train=False), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.uniform(0.05, 0.15, leaf.shape).astype(leaf.dtype), shapes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a random RGB network."""
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    formats.save_state_dict(path, resnet_jax.to_torch(MODEL, random_variables(3)))
    return str(path)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, folder):
    """A run of a grey network on a folder of four classes, as train.py leaves it."""
    path = tmp_path_factory.mktemp("run")
    orbax_folder.save_variables(str(path / "checkpoints" / "5" / "variables"), random_variables(1))
    data = {"image_size": 16, "eval_resize": 18, "mean": [0.25], "std": [0.5], "num_examples": 9, "data_dir": ""}
    config = {
        "model": {"name": "cifar_resnet20", "num_classes": 4, "kwargs": {"norm": None, "dtype": "float32"}},
        "data": {"name": "folder", "path": str(folder), **data},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "classes.json").write_text(json.dumps(["ant", "bee", "cat", "dog"]))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FOLDER/{train,test}/CLASS/*.png, three test images in each of four classes."""
    top = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("ant", "bee", "cat", "dog"):
            (top / split / name).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(rng.integers(256, size=(20, 24, 3), dtype=np.uint8))
                image.save(top / split / name / f"{i}.png")
    return top


def test_predict_shows_the_top_classes_by_name(workdir, folder, capsys):
    path = str(folder / "test" / "bee" / "1.png")
    assert cli.main(["predict", path, f"--model={workdir}", "--top=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    probabilities = inference.predict(MODEL, random_variables(1), [path], GREY)[0]
    order = np.argsort(-probabilities)[:3]
    assert lines[0] == path
    assert [line.split() for line in lines[1:]] == [
        [f"{probabilities[i]:.2%}", ("ant", "bee", "cat", "dog")[i]] for i in order
    ]


def test_predict_of_folders_in_json_names_all_that_it_leaves_out(workdir, folder, tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    whole = (folder / "test" / "ant" / "0.png").read_bytes()
    (tmp_path / "b.PNG").write_bytes(whole)
    (tmp_path / "sub" / "a.png").write_bytes(whole)
    (tmp_path / "cut.png").write_bytes(whole[:200])
    Image.new("L", (1, 4_000_000)).save(tmp_path / "line.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    assert cli.main(["predict", str(tmp_path), f"--model={workdir}", "--json"]) == 1
    out, err = capsys.readouterr()
    found = {
        pathlib.Path(line["image"]).relative_to(tmp_path).as_posix(): line for line in map(json.loads, out.splitlines())
    }
    assert list(found) == ["b.PNG", "cut.png", "line.png", "sub/a.png"]
    assert found["b.PNG"]["top"] == found["sub/a.png"]["top"]
    assert sorted(entry["class"] for entry in found["b.PNG"]["top"]) == [0, 1, 2, 3]
    assert set(found["b.PNG"]["top"][0]) == {"name", "probability", "class"}
    assert "the 200 bytes are not a whole image" in found["cut.png"]["error"]
    assert "1 x 4000000 pixels" in found["line.png"]["error"]
    assert f"left out: {tmp_path}/notes.txt is no image by its name" in err
    assert f"left out: {tmp_path}/cut.png: the 200 bytes" in err
    assert "hidden" not in out + err


def test_evaluate_counts_all_of_a_runs_data(workdir, folder, capsys):
    assert cli.main(["evaluate", f"--model={workdir}", "--batch-size=5"]) == 0
    out = capsys.readouterr().out
    paths = sorted((folder / "test").glob("*/*.png"))
    probabilities = inference.predict(MODEL, random_variables(1), paths, GREY)
    correct = int(np.sum(np.argmax(probabilities, -1) == np.repeat(np.arange(4), 3)))
    assert out.startswith(f"folder, test split, 12 examples; {GREY}\n")
    assert f"({correct}/12)\ntop-5 100.00% (12/12)\n" in out


def test_evaluate_names_what_it_could_not_read(weights, folder, tmp_path, capsys):
    for path in folder.rglob("*.png"):
        (tmp_path / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(folder)).write_bytes(path.read_bytes())
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"")
    options = ["--network=cifar_resnet20", f"--data={tmp_path}"]
    assert cli.main(["evaluate", f"--model={weights}", *options]) == 1
    out, err = capsys.readouterr()
    assert "/11)" in out
    assert f"not counted: {tmp_path}/test/cat/1.png: the 0 bytes are not a whole image" in err
    assert "1 of 12 examples could not be read" in err
    assert "does not say how its images are prepared; assumed, as customary: Preprocessing(image_size=32" in err


def test_options_change_the_preprocessing(weights, capsys):
    options = ["--network=cifar_resnet20", "--data=synthetic", "--image-size=12", "--resize-size=14"]
    options += ["--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25", "--interpolation=bicubic"]
    assert cli.main(["evaluate", f"--model={weights}", *options]) == 0
    out, err = capsys.readouterr()
    assert str(Preprocessing(12, 14, "bicubic", (0.5,) * 3, (0.25,) * 3)) in out
    assert "assumed" not in err


def test_a_saved_folder_says_how_images_are_prepared_and_what_classes_are_called(tmp_path, folder, capsys):
    transform = Preprocessing(16, 18, "bilinear", (0.25,) * 3, (0.5,) * 3)
    saved, path = str(tmp_path / "saved"), str(folder / "test" / "ant" / "0.png")
    resnet_jax.save_pretrained(
        MODEL, random_variables(3), saved, preprocessing=transform, label_names=("w", "x", "y", "z")
    )
    assert cli.main(["predict", path, f"--model={saved}"]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[-1] for line in out.splitlines()[1:]} == set("wxyz")
    assert "assumed" not in err
    assert cli.main(["evaluate", f"--data={folder}", f"--model={saved}"]) == 0
    assert str(transform) in capsys.readouterr().out


def test_a_saved_folder_that_does_not_say_so_is_assumed_aloud(tmp_path, folder, capsys):
    saved, path = str(tmp_path / "saved"), str(folder / "test" / "ant" / "0.png")
    resnet_jax.save_pretrained(MODEL, random_variables(3), saved)
    assert cli.main(["predict", path, f"--model={saved}"]) == 0
    out, err = capsys.readouterr()
    assert "class 3" in out
    assert "classes have numbers for names" in err
    assert "assumed, as customary" in err


def test_progress_is_one_rewritten_line(monkeypatch, capsys, workdir):
    monkeypatch.setattr("resnet_jax.cli.net.sys.stderr.isatty", lambda: True, raising=False)
    assert cli.main(["evaluate", f"--model={workdir}"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("\r")
    assert err.count("\n") == 1
    assert "12 of 12 images" in err


def test_names_are_those_of_the_run_wherever_its_data_are_now(workdir, folder, tmp_path, capsys, monkeypatch):
    def gone(*_, **__):
        raise FileNotFoundError("/data does not exist")

    monkeypatch.setattr(datasets, "open_dataset", gone)
    image = str(folder / "test" / "ant" / "0.png")
    assert cli.main(["predict", image, f"--model={workdir}"]) == 0
    assert "ant" in capsys.readouterr().out.replace(image, "")
    shutil.copytree(workdir, tmp_path / "old")
    (tmp_path / "old" / "classes.json").unlink()  # as of a run from before names were kept
    assert cli.main(["predict", image, f"--model={tmp_path / 'old'}"]) == 0
    out, err = capsys.readouterr()
    assert "class 0" in out
    assert f"classes have numbers for names: {tmp_path / 'old'} does not name them" in err


def test_data_of_other_names_are_not_what_the_run_is_evaluated_on(workdir, tmp_path, capsys):
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "classes.json").write_text(json.dumps(["ant", "bee", "cow", "dog"]))
    assert cli.main(["evaluate", f"--model={tmp_path / 'run'}"]) == 2
    assert "was trained on classes of other names than 'folder' has now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["predict", "{dir}/none.jpg", "--model={run}"], "none.jpg does not exist"),
        (["predict", "{dir}", "--model={run}"], "has no images (.jpg, .jpeg, .png, .bmp, .webp) among its 0 files"),
        (["predict", "{png}", "--model={run}", "--top=0"], "--top=0 must be 1 or more"),
        (["predict", "{png}", "--model={run}", "--network=resnet18"], "states that its network is cifar_resnet20"),
        (["predict", "{png}", "--model=none.pth", "--network=resnet18"], "none.pth: there is no such file or folder"),
        (["predict", "{png}", "--model={run}", "--mean=0.5,0.5,0.5"], "must both have 1 entry (grey) or 3"),
        (["predict", "{png}", "--model={run}", "--image-size=20"], "give --resize-size as well"),
        (["predict", "{png}", "--model={file}", "--network=resnet18"], "another network"),
        (
            ["predict", "{png}", "--model={file}", "--network=cifar_resnet20", "--mean=0.5", "--std=0.5"],
            "takes images of 3 channels",
        ),
        (["evaluate", "--model={file}", "--network=cifar_resnet20"], "give --data=NAME or --data=PATH"),
        (
            ["evaluate", "--model={file}", "--network=cifar_resnet20", "--data=nowhere"],
            "nowhere is neither a data set ('digits', 'folder'",
        ),
        (["evaluate", "--model={run}", "--data=folder"], "needs a path"),
    ],
)
def test_unusable_input_is_one_message_and_exit_code_2(workdir, weights, folder, tmp_path, capsys, arguments, said):
    png = folder / "test" / "ant" / "0.png"
    filled = [argument.format(dir=tmp_path, run=workdir, file=weights, png=png) for argument in arguments]
    assert cli.main(filled) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("resnet-jax: ")
    assert not out


def test_of_a_run_with_an_average_that_is_taken(workdir, folder, tmp_path, capsys):
    """As the run itself evaluated: the logits of its average are 0, 0, 1, 0 for any image."""
    shutil.copytree(workdir, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"ema": {"decay": 0.9}}))
    average = random_variables(1)
    average["params"]["fc"] = {"kernel": np.zeros((64, 4), np.float32), "bias": np.float32([0, 0, 1, 0])}
    orbax_folder.save_variables(str(tmp_path / "run" / "checkpoints" / "5" / "ema"), average)
    path = str(folder / "test" / "ant" / "0.png")
    assert cli.main(["predict", path, f"--model={tmp_path / 'run'}", "--top=1"]) == 0
    assert capsys.readouterr().out.split() == [path, f"{np.e / (np.e + 3):.2%}", "cat"]
