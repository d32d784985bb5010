"""A fine-tuned run taken away whole: its exports say of an image what the run says."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import resnet_jax
import resnet_jax.inference
from resnet_jax import cli
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.runs import workdirs
from resnet_jax.training import loop
from tiny import TINY, tiny_config

NAMES = ("ant", "bee", "cat")
PREPARED = Preprocessing(16, 18, "bicubic", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def photographs(top):
    """FOLDER/{train,test}/CLASS/*.png: the classes differ in colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for i, name in enumerate(NAMES):
            (top / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = rng.integers(0, 100, (20, 24, 3), dtype=np.uint8)
                pixels[..., i] += 120
                Image.fromarray(pixels).save(top / split / name / f"{j}.png")
    return top


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a net that started from another's weights, and the folder of images."""
    top = tmp_path_factory.mktemp("tuned")
    model = resnet_jax.cifar_resnet20(**TINY, num_classes=7)
    shapes = resnet_jax.weights.convert.torch_shapes(model)
    rng = np.random.default_rng(0)
    tensors = {name: rng.uniform(0.1, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    resnet_jax.save_pretrained(model, resnet_jax.from_torch(model, tensors), top / "before")
    data = {"data.name": "folder", "data.path": str(photographs(top / "data")), "data.image_size": 16}
    prepared = {"data.eval_resize": 18, "data.eval_interpolation": "bicubic"}
    start = {"init_from": str(top / "before"), "init_anew": ("fc",), "num_epochs": 2.0}
    normalised = {"data.mean": PREPARED.mean, "data.std": PREPARED.std}
    config = tiny_config(**data, **prepared, **start, **normalised, **{"model.num_classes": 3, "ema.decay": 0.5})
    loop.train(config, str(top / "run"))
    return top / "run", top / "data", config


def said(source, images, capsys):
    capsys.readouterr()
    assert cli.main(["predict", str(images), f"--model={source}", "--json", "--top=3"]) == 0
    return [json.loads(line)["top"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_every_export_says_what_the_run_says(run, tmp_path, capsys):
    workdir, data, _ = run
    images = shutil.copytree(data / "test", tmp_path / "images")
    wanted = said(workdir, images, capsys)
    assert len(wanted) == 6
    assert {line["name"] for line in wanted[0]} == set(NAMES)
    assert resnet_jax.class_names(workdir) == NAMES
    assert resnet_jax.preprocessing(workdir) == PREPARED
    checkpoints = workdir / "checkpoints"
    assert said(checkpoints / max(os.listdir(checkpoints), key=int), images, capsys) == wanted
    shutil.move(data, tmp_path / "gone")  # nothing of it is needed
    try:
        for out, flags in {"x.safetensors": [], "x.pth": [], "x": ["--format=timm"]}.items():
            assert cli.main(["convert", str(workdir), f"--out={tmp_path}/{out}", *flags]) == 0
            assert said(tmp_path / out, images, capsys) == wanted
            assert resnet_jax.class_names(tmp_path / out) == NAMES
            assert resnet_jax.preprocessing(tmp_path / out) == PREPARED
    finally:
        shutil.move(tmp_path / "gone", data)
    model, variables = resnet_jax.load_pretrained(workdir, train=False)
    paths = sorted(images.rglob("*.png"))
    rows = resnet_jax.inference.predict(model, variables, paths, PREPARED)
    order = np.argsort(-rows[0])
    assert [NAMES[i] for i in order] == [line["name"] for line in wanted[0]]
    assert wanted[0][0]["probability"] == float(rows[0].max())


def test_a_run_goes_on_with_its_own_classes_alone(run):
    workdir, data, config = run
    (data / "train" / "cat").rename(data / "train" / "cow")
    (data / "test" / "cat").rename(data / "test" / "cow")
    try:
        with pytest.raises(ValueError, match="config.data.fingerprint"):
            loop.train(config, str(workdir))
    finally:
        (data / "train" / "cow").rename(data / "train" / "cat")
        (data / "test" / "cow").rename(data / "test" / "cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant", "bee", "cow"), "class 2 was 'cat' and is 'cow'"),
        (("ant", "bee"), "class 2 was 'cat' and is 'nothing'"),
        (("ant", "bee", "cat", "dog"), "class 3 was 'nothing' and is 'dog'"),
    ],
)
def test_names_once_kept_stay(tmp_path, names, message):
    workdirs.keep_class_names(str(tmp_path), NAMES)
    workdirs.keep_class_names(str(tmp_path), NAMES, writes=False)
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        workdirs.keep_class_names(str(tmp_path), names)
    assert workdirs.load_class_names(str(tmp_path)) == NAMES
