"""`resnet-jax evaluate` on a folder of four classes: every number of every form by hand; and `predict --csv`."""

import base64
import csv
import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import BasicBlock, ResNet, cli, inference
from resnet_jax.cli import net
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.transforms import Preprocessing
from resnet_jax.runs import storage

CLASSES = ("ant", "bee", "cat", "dog")
MODEL = ResNet(BasicBlock, (1,), num_classes=4, stage_features=(8,), stem="cifar", stem_features=8)
# Of each test image, three of each class: what it is taken for and how surely; the rest is shared evenly.
SEEN = dict(enumerate([
    ("ant", 0.7), ("bee", 0.6), ("ant", 0.4),
    ("cat", 0.9), ("cat", 0.5), ("bee", 0.8),
    ("cat", 0.7), None, ("dog", 0.55),
    ("dog", 0.7), ("dog", 0.7), ("dog", 0.7),
]))  # fmt: skip


def logits(name, probability):
    row = np.full(4, (1 - probability) / 3)
    row[CLASSES.index(name)] = probability
    return np.log(row).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """FOLDER/{train,test}/CLASS/*.png; the test images are of other sizes than those of training, and one is broken."""
    top = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, size in (("train", 8), ("test", 200)):
        for number, name in enumerate(CLASSES):
            (top / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = rng.integers(256, size=(size, 2 * size, 3), dtype=np.uint8) // 4 + 48 * number
                Image.fromarray(pixels.astype(np.uint8)).save(top / split / name / f"{i}.png")
    (top / "test" / "cat" / "1.png").write_bytes(b"cut")
    return top


@pytest.fixture
def found(monkeypatch):
    """A network whose logits are those above."""
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: MODEL.init(jax.random.key(0), x, train=False), images)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    preprocessing = Preprocessing(8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(net, "load", lambda arguments: net.Net(MODEL, variables, preprocessing, CLASSES))

    def rows(model, variables, preprocessing, read, count, batch_size):
        for index in range(count):
            try:
                image, label = read(index)
                preprocessing.pixels(image)
                yield label, logits(*SEEN[index])
            except UnreadableImage as error:
                yield error

    monkeypatch.setattr(inference, "_rows", rows)


def evaluate(folder, *options):
    return cli.main(["evaluate", "--model=made-up", f"--data={folder}", *options])


def test_the_terminal_shows_the_worst_first(found, folder, capsys):
    assert evaluate(folder) == 1  # one image is broken
    out, err = capsys.readouterr()
    path = f"{folder}/test"
    width = len(f"  {path}/bee/0.png")
    assert out.split("\n", 1)[1] == "\n".join(
        [
            "top-1 63.64% (7/11)",
            "top-5 100.00% (11/11)",
            "worst classes  accuracy  right",
            "  bee            33.33%    1/3",
            "  cat            50.00%    1/2",
            "  ant            66.67%    2/3",
            "  dog           100.00%    3/3",
            "largest confusions   of the class",
            "  bee taken for cat           2/3",
            "  ant taken for bee           1/3",
            "  cat taken for dog           1/2",
            f"{'surest mistakes':<{width}}  is   taken for  probability",
            f"  {path}/bee/0.png  bee  cat             90.00%",
            f"  {path}/ant/1.png  ant  bee             60.00%",
            f"  {path}/cat/2.png  cat  dog             55.00%",
            f"  {path}/bee/1.png  bee  cat             50.00%",
            "",
        ]
    )
    assert f"not counted: {path}/cat/1.png: the 3 bytes are not a whole image" in err
    assert "1 of 12 examples could not be read and are not counted" in err


def test_json_holds_classes_matrix_and_what_is_wrong(found, folder, tmp_path, capsys):
    assert evaluate(folder, f"--json={tmp_path / 'x.json'}") == 1
    assert capsys.readouterr().out.endswith(f"\n{tmp_path / 'x.json'}\n")
    told = json.loads((tmp_path / "x.json").read_text())
    assert {key: told[key] for key in ("model", "data", "split", "count", "correct", "correct_top5")} == {
        "model": "made-up", "data": "folder", "split": "test", "count": 11, "correct": 7, "correct_top5": 11,
    }  # fmt: skip
    assert (told["top1"], told["top5"]) == (pytest.approx(7 / 11), 1)
    assert told["preprocessing"]["image_size"] == 8
    assert told["classes"] == [
        {"class": 0, "name": "ant", "count": 3, "correct": 2, "accuracy": pytest.approx(2 / 3)},
        {"class": 1, "name": "bee", "count": 3, "correct": 1, "accuracy": pytest.approx(1 / 3)},
        {"class": 2, "name": "cat", "count": 2, "correct": 1, "accuracy": 0.5},
        {"class": 3, "name": "dog", "count": 3, "correct": 3, "accuracy": 1.0},
    ]
    assert told["confusion_matrix"] == [[2, 1, 0, 0], [0, 1, 2, 0], [0, 0, 1, 1], [0, 0, 0, 3]]
    assert [entry["index"] for entry in told["wrong"]] == [3, 1, 8, 4]
    assert told["wrong"][0] == {
        "index": 3, "image": f"{folder}/test/bee/0.png", "label": 1, "label_name": "bee", "predicted": 2,
        "predicted_name": "cat", "probability": pytest.approx(0.9), "label_probability": pytest.approx(0.1 / 3),
        "place": 3,  # of the three that share the rest, the lower class comes first: ant, then bee
    }  # fmt: skip
    (unread,) = told["unreadable"]
    assert (unread["index"], unread["origin"]) == (7, f"{folder}/test/cat/1.png")
    assert unread["reason"].startswith("the 3 bytes are not a whole image")


def test_csv_has_a_line_for_each_image_in_the_order_of_the_data(found, folder, tmp_path):
    assert evaluate(folder, f"--csv={tmp_path / 'x.csv'}") == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [row["index"] for row in rows] == [str(i) for i in range(12)]
    assert [row["image"] for row in rows] == [str(path) for path in sorted((folder / "test").glob("*/*.png"))]
    expected = [("", "", "") if seen is None else (CLASSES[i // 3], seen[0], seen[1]) for i, seen in SEEN.items()]
    assert [(r["label_name"], r["predicted_name"], r["probability"] and float(r["probability"])) for r in rows] == [
        (label, name, probability and pytest.approx(probability)) for label, name, probability in expected
    ]
    assert [row["place"] == "1" for row in rows] == [i in (0, 2, 5, 6, 9, 10, 11) for i in range(12)]
    assert rows[7]["error"].startswith("the 3 bytes")
    assert not any(row["error"] for row in rows if row["index"] != "7")


def test_the_page_shows_the_wrong_images_themselves(found, folder, tmp_path):
    assert evaluate(folder, f"--page={tmp_path / 'x.html'}", "--pictures=3") == 1
    text = (tmp_path / "x.html").read_text()
    assert "<h1>63.64 % of 11 images right</h1>" in text
    assert "Wrong: 3 of 4 images" in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert [" ".join(re.sub(r"<.*?>", " ", caption).split()) for caption in captions] == [
        "cat 90.00 % is bee, 3.33 % 0.png",
        "bee 60.00 % is ant, 13.33 % 1.png",
        "dog 55.00 % is cat, 15.00 % 2.png",
    ]
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]*)", text)]
    assert [picture.size for picture in pictures] == [(128, 64)] * 3  # of 400 x 200
    means = [np.asarray(picture).mean() for picture in pictures]
    assert means == pytest.approx([31.5 + 48, 31.5, 31.5 + 96], abs=2)  # a bee, an ant, a cat
    assert "1 more could not be read, and are not counted" in text
    assert re.findall(r"<td>(?:<mark>)?(\d)(?:</mark>)?</td>", text.split("<h2>All images")[1]) == list(
        "2100012000110003"
    )
    assert set(re.findall(r"(?:src|href)=\"(.{10})", text)) == {"data:image"}  # nothing comes from elsewhere


def test_names_are_escaped_and_a_small_image_keeps_its_pixels(found, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SEEN, 7, ("dog", 0.95))
    for name in CLASSES:
        for split in ("train", "test"):
            (tmp_path / split / f"{name}<b>&\n").mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(np.full((4, 6, 3), 10 * CLASSES.index(name) + i, np.uint8))
                image.save(tmp_path / split / f"{name}<b>&\n" / f"{i}.png")
    assert evaluate(tmp_path, f"--page={tmp_path / 'x.html'}", f"--csv={tmp_path / 'x.csv'}") == 0
    text = (tmp_path / "x.html").read_text()
    caption, data = text.split("<figcaption>")[1], re.search(r"image/png;base64,([^\"]*)", text)[1]
    assert caption.startswith("<b>dog&lt;b&gt;&amp;\\n</b> 95.00 %<br>is cat&lt;b&gt;&amp;\\n")
    assert "ant<b>" not in text
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), np.full((4, 6, 3), 21))
    assert [row["label_name"] for row in csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text()))] == [
        f"{name}<b>&\n" for name in CLASSES for _ in range(3)
    ]
    assert "  cat<b>&\\n " in capsys.readouterr().out


def test_a_perfect_network_has_nothing_to_show(monkeypatch, found, folder, tmp_path, capsys):
    for i in range(12):
        monkeypatch.setitem(SEEN, i, (CLASSES[i // 3], 0.7))
    assert evaluate(folder, f"--page={tmp_path / 'x.html'}") == 1
    out = capsys.readouterr().out
    assert "confusions" not in out
    assert "mistakes" not in out
    assert "No image is wrong." in (tmp_path / "x.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json={dir}"], "is a folder; give a file"),
        (["--csv={dir}/none/x.csv"], "there is no folder {dir}/none"),
        (["--csv={dir}/x", "--json={dir}/x"], "give each a file of its own"),
        (["--page={dir}/x.html", "--pictures=0"], "--pictures=0 must be 1 or more"),
    ],
)
def test_files_that_cannot_be_are_refused_before_the_work(found, folder, tmp_path, capsys, options, said):
    assert evaluate(folder, *(option.format(dir=tmp_path) for option in options)) == 2
    out, err = capsys.readouterr()
    assert said.format(dir=tmp_path) in err
    assert not out


def test_a_full_disk_takes_nothing_from_the_terminal(found, folder, tmp_path, capsys, monkeypatch):
    def full(path, content):
        raise storage.NotWritten(str(path)) from OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_whole", full)
    assert evaluate(folder, f"--csv={tmp_path / 'x.csv'}") == 2
    out, err = capsys.readouterr()
    assert "top-1 63.64% (7/11)" in out
    assert "x.csv could not be written (No space left on device): give another file" in err


def test_predict_csv_has_a_line_for_each_image_and_class(found, folder, capsys, monkeypatch):
    probabilities = [np.float32([0.1, 0.2, 0.3, 0.4]), UnreadableImage("cut"), np.float32([0.4, 0.3, 0.2, 0.1])]
    monkeypatch.setattr(inference, "predictions", lambda *_, **__: iter(probabilities))
    path = folder / "test" / "cat"
    assert cli.main(["predict", str(path), "--model=made-up", "--csv", "--top=2"]) == 1
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows == [
        ["image", "place", "class", "name", "probability", "error"],
        [f"{path}/0.png", "1", "3", "dog", str(float(np.float32(0.4))), ""],
        [f"{path}/0.png", "2", "2", "cat", str(float(np.float32(0.3))), ""],
        [f"{path}/1.png", "", "", "", "", "cut"],
        [f"{path}/2.png", "1", "0", "ant", str(float(np.float32(0.4))), ""],
        [f"{path}/2.png", "2", "1", "bee", str(float(np.float32(0.3))), ""],
    ]
