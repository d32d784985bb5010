"""What the names of data sets stand for: digits, folders and zips, synthetic images, prepared TFDS data."""

import collections
import concurrent.futures
import hashlib
import io
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import datasets
from resnet_jax.data.images.pillow import UnreadableImage, decode
from resnet_jax.data.sources import base

PATTERNS = [("train", "cat", 3), ("train", "dog", 2), ("test", "cat", 1), ("test", "dog", 2)]


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def files():
    """{relative name: bytes} of a small image folder; the pixel value says which image it is."""
    names = [f"{split}/{label}/{i}.PNG" for split, label, count in PATTERNS for i in range(count)]
    return {name: png(value) for value, name in enumerate(names)}


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return str(root)


def write_zip(path, files, top=""):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return str(path)


def write_tar(path, files, top="", mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def values(dataset):
    """(pixel value, label) of every example."""
    examples = [dataset.source[i] for i in range(len(dataset))]
    return [(int(decode(e["image"])[0, 0, 0]), e["label"]) for e in examples]


# Digits


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    datasets.open_dataset("digits", "train", data_dir=folder)
    return folder


def digits_of(dataset):
    images = [decode(dataset.source[i]["image"], 1).tobytes() for i in range(len(dataset))]
    return collections.Counter(zip(images, [dataset.source[i]["label"] for i in range(len(dataset))], strict=True))


def test_digits_are_sklearns_each_once(data_dir):
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = (datasets.open_dataset("digits", split, data_dir=data_dir) for split in ("train", "test"))
    images = [np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in sklearn.images]
    expected = collections.Counter(zip(images, sklearn.target.tolist(), strict=True))
    assert digits_of(train) + digits_of(test) == expected
    assert (len(train), len(test)) == (1437, 360)
    assert (train.class_names, train.channels, train.num_classes) == (tuple("0123456789"), 1, 10)


def test_digits_split_never_changes(data_dir):
    test = digits_of(datasets.open_dataset("digits", "test", data_dir=data_dir))
    digest = hashlib.sha256(b"".join(image + bytes([label]) for image, label in sorted(test.elements())))
    assert digest.hexdigest()[:16] == "ededcfeb58291790", (
        "the digits are split in another way than before: accuracies are no longer comparable with published ones"
    )


def test_digits_split_is_stratified(data_dir):
    counts = [collections.Counter(), collections.Counter()]
    for count, split in zip(counts, ("train", "test"), strict=True):
        dataset = datasets.open_dataset("digits", split, data_dir=data_dir)
        count.update(dataset.source[i]["label"] for i in range(len(dataset)))
    for label in range(10):
        total = counts[0][label] + counts[1][label]
        assert abs(counts[1][label] - total / 5) <= 1


def test_digits_survive_pickling(data_dir):
    dataset = datasets.open_dataset("digits", "test", data_dir=data_dir)
    again = pickle.loads(pickle.dumps(dataset))
    assert again.source[7] == dataset.source[7]
    assert again.source.origin(7) == "digits/test, record 7"


PREPARE = """
    import sys
    from resnet_jax.data.sources import digits
    {before}
    digits.prepare_digits(sys.argv[1])
"""


def start_prepare(folder, before=""):
    code = textwrap.dedent(PREPARE).format(before=before)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


# Waits until the other has written the whole data set and both are about to rename it.
MEET = """
import os, pathlib, time
whole = digits.SklearnDigits._generate_examples
def meet(self, *arrays):
    yield from whole(self, *arrays)
    (pathlib.Path(sys.argv[1]) / str(os.getpid())).touch()
    while len([p for p in pathlib.Path(sys.argv[1]).iterdir() if p.name.isdigit()]) < 2:
        time.sleep(0.01)
digits.SklearnDigits._generate_examples = meet
"""
DIE = """
import os
def die(self, images, labels):
    yield 0, {"image": digits._png(images[0]), "label": 0}
    os._exit(9)
digits.SklearnDigits._generate_examples = die
"""


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path, monkeypatch):
    """Another one, and this one."""
    from resnet_jax.data.sources import digits

    write = digits.SklearnDigits._generate_examples

    def meet(self, *arrays):
        yield from write(self, *arrays)
        (tmp_path / "0").touch()
        while len([path for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.01)

    process = start_prepare(tmp_path, MEET)
    monkeypatch.setattr(digits.SklearnDigits, "_generate_examples", meet)
    try:
        digits.prepare_digits(str(tmp_path))
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output.decode()
    assert len(datasets.open_dataset("digits", "train", data_dir=str(tmp_path))) == 1437


@pytest.mark.slow
def test_killed_prepare_leaves_nothing_in_the_way(tmp_path):
    process = start_prepare(tmp_path, DIE)
    process.communicate(timeout=120)
    assert process.returncode == 9
    assert not (tmp_path / "sklearn_digits" / "1.0.0").exists()
    assert len(datasets.open_dataset("digits", "train", data_dir=str(tmp_path))) == 1437


def test_foreign_folder_in_the_place_of_the_digits(tmp_path):
    (tmp_path / "sklearn_digits" / "1.0.0").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"sklearn_digits/1\.0\.0 has the splits \[\], not 'train' and 'test'.*Remove it"
    ):
        datasets.open_dataset("digits", "train", data_dir=str(tmp_path))


# Prepared TFDS data


def test_tfds_reads_what_is_prepared(data_dir):
    dataset = datasets.open_dataset("tfds:sklearn_digits", "test", data_dir=data_dir)
    digits = datasets.open_dataset("digits", "test", data_dir=data_dir)
    assert (len(dataset), dataset.num_classes, dataset.channels) == (360, 10, 1)
    assert dataset.source[3] == digits.source[3]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("no_such_thing", "`resnet-jax prepare folder --name=no_such_thing --source=PATH"),
        ("sklearn_digits:9.9.9", r"(tfds\.builder|`resnet-jax prepare)"),
        ("mnist", r"tfds\.builder\('mnist', .*download_and_prepare\(\), where TensorFlow is installed$"),
    ],
    ids=["unknown", "version", "known"],
)
def test_tfds_says_how_to_prepare(data_dir, name, way):
    message = rf"'{name}' is not prepared as ArrayRecord in {data_dir}: give the data_dir where it is\. .*once: {way}"
    with pytest.raises(FileNotFoundError, match=message):
        datasets.open_dataset(f"tfds:{name}", "train", data_dir=data_dir)


# Folders and zips


@pytest.mark.parametrize(
    "kind", ["folder", "folder in folder", "zip", "zip with top folder", "tar", "tar with top folder"]
)
def test_folder_zip_and_tar_hold_the_same(tmp_path, files, kind):
    if kind.startswith("folder"):
        write_folder(tmp_path / "in" if kind == "folder in folder" else tmp_path, files)
        path = str(tmp_path)
    else:
        write = write_tar if kind.startswith("tar") else write_zip
        path = write(tmp_path / f"data.{kind[:3]}", files, "cifar/" if kind.endswith("with top folder") else "")
    train, test = (datasets.open_dataset("folder", split, path=path) for split in ("train", "test"))
    assert values(train) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)]
    assert values(test) == [(5, 0), (6, 1), (7, 1)]
    assert (train.class_names, train.channels) == (("cat", "dog"), 3)
    assert train.source.origin(3).endswith("train/dog/0.PNG")


def add_links(path, links, type_):
    with tarfile.open(path, "a") as archive:
        for name, target in links.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = type_, target
            archive.addfile(member)


def test_links_in_a_tar_are_the_files_that_they_lead_to(tmp_path, files):
    path = write_tar(tmp_path / "data.tar", files, "./")
    add_links(path, {"./train/cat/3.png": "./train/cat/1.PNG"}, tarfile.LNKTYPE)
    add_links(path, {"./train/dog/2.png": "../cat/3.png", "./train/dog/3.png": "0.PNG"}, tarfile.SYMTYPE)
    train = datasets.open_dataset("folder", "train", path=path)
    assert values(train) == [(0, 0), (1, 0), (2, 0), (1, 0), (3, 1), (4, 1), (1, 1), (3, 1)]
    for number, (target, type_) in enumerate([("gone.png", tarfile.LNKTYPE), ("a.png", tarfile.SYMTYPE)]):
        path = write_tar(tmp_path / f"{number}.tar", files)
        add_links(path, {"train/cat/a.png": target}, type_)  # the second leads to itself
        with pytest.raises(ValueError, match=r"link train/cat/a\.png -> .*png, which is no file in it: make it anew"):
            datasets.open_dataset("folder", "train", path=path)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_validation_serves_as_test(tmp_path, files, name):
    path = write_folder(tmp_path, {file.replace("test/", f"{name}/"): data for file, data in files.items()})
    assert len(datasets.open_dataset("folder", "test", path=path)) == 3


@pytest.mark.parametrize(
    "write",
    [
        write_folder,
        lambda path, files: write_zip(path / "data.zip", files),
        lambda path, files: write_tar(path / "data.tar", files),
    ],
)
def test_hidden_files_and_other_kinds_are_left_out(tmp_path, files, write):
    junk = dict.fromkeys(("train/cat/.hidden.png", "train/.git/a.png", "train/cat/notes.txt", "train/x.png"), b"junk")
    mac = {"__MACOSX/train/cat/0.png": b"junk", "train/__MACOSX/0.png": b"junk"}
    dataset = datasets.open_dataset("folder", "train", path=write(tmp_path, {**files, **junk, **mac}))
    assert values(dataset) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1)]


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".webp"])
def test_extensions(tmp_path, files, suffix):
    path = write_folder(tmp_path, {name.replace(".PNG", suffix): data for name, data in files.items()})
    assert len(datasets.open_dataset("folder", "train", path=path)) == 5


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_archives_are_read_by_many_threads_and_pickle(tmp_path, files, write):
    many = {f"{split}/a/{i:03}.png": png(i) for split in ("train", "test") for i in range(200)}
    dataset = datasets.open_dataset("folder", "train", path=write(tmp_path / "data", many))
    dataset.source[0]
    again = pickle.loads(pickle.dumps(dataset))
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda i: again.source[i % 200]["image"], range(2000)))
    assert images == [many[f"train/a/{i % 200:03}.png"] for i in range(2000)]


def remove(files, start):
    return {name: data for name, data in files.items() if not name.startswith(start)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: remove(f, "test/"),
            FileNotFoundError,
            r"has no test/ or val/ or validation/; it has train/\. The layout",
        ),
        (lambda f: remove(f, "train/"), FileNotFoundError, r"has no train/; it has test/"),
        (lambda f: remove(f, "test/dog"), ValueError, r"different classes: train/ alone has dog\. "),
        (lambda f: {**f, "test/bird/0.png": png(0)}, ValueError, r"different classes: test/ alone has bird\. "),
        (lambda f: {**remove(f, "train/dog"), "train/dog/a.txt": b""}, ValueError, r"train/dog has no images: remove"),
        (lambda f: {**remove(f, "train/"), "train/a.txt": b""}, ValueError, r"train is empty: it needs a folder"),
        (lambda f: {**f, "train/dog/puppies/0.png": png(0)}, ValueError, r"train/dog/puppies has images, but .*: move"),
    ],
)
@pytest.mark.parametrize("write", [write_folder, lambda path, files: write_zip(path / "data.zip", files)])
def test_folder_refuses(tmp_path, files, change, error, message, write):
    path = write(tmp_path, change(files))
    with pytest.raises(error, match=message):
        datasets.open_dataset("folder", "train", path=path)


def test_path_must_lead_somewhere(tmp_path, files):
    with pytest.raises(ValueError, match=r"'folder' needs a path: of a folder, or of a zip or tar"):
        datasets.open_dataset("folder", "train")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give the path"):
        datasets.open_dataset("folder", "train", path=str(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("no zip")
    with pytest.raises(ValueError, match=r"notes\.txt is neither a folder nor a zip nor a tar"):
        datasets.open_dataset("folder", "train", path=str(tmp_path / "notes.txt"))
    whole = write_zip(tmp_path / "data.zip", files)
    (tmp_path / "half.zip").write_bytes((tmp_path / "data.zip").read_bytes()[: os.path.getsize(whole) // 2])
    with pytest.raises(ValueError, match=r"half\.zip looks like a zip that was cut short .*copy it again"):
        datasets.open_dataset("folder", "train", path=str(tmp_path / "half.zip"))


def test_tars_that_cannot_be_read(tmp_path, files):
    with pytest.raises(ValueError, match=r"data\.tar\.gz is a compressed tar, .*unpack it, or decompress it"):
        datasets.open_dataset("folder", "train", path=write_tar(tmp_path / "data.tar.gz", files, mode="w:gz"))
    path = pathlib.Path(write_tar(tmp_path / "data.tar", files))
    whole = path.read_bytes()
    for size in (5000, 5120):  # in a member, and between two
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"data\.tar looks like a tar that was cut short .*copy it again"):
            datasets.open_dataset("folder", "train", path=str(path))
    path.write_bytes(whole)
    dataset = datasets.open_dataset("folder", "train", path=str(path))
    path.write_bytes(whole[:1000])
    with pytest.raises(UnreadableImage, match=r"reading failed \(.*data\.tar ends before byte"):
        dataset.source[4]


def test_damaged_member_and_vanished_file_are_unreadable(tmp_path, files):
    path = tmp_path / "data.zip"
    write_zip(path, files)
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("train/cat/1.PNG").header_offset + 30 + len("train/cat/1.PNG")
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(UnreadableImage, match="reading failed"):
        datasets.open_dataset("folder", "train", path=str(path)).source[1]
    dataset = datasets.open_dataset("folder", "train", path=write_folder(tmp_path / "plain", files))
    (tmp_path / "plain/train/cat/1.PNG").unlink()
    with pytest.raises(UnreadableImage, match="reading failed .*No such file"):
        dataset.source[1]


# Synthetic


def test_synthetic_is_a_function_of_seed_split_and_index():
    def image(split="train", index=12, **kwargs):
        return datasets.open_dataset("synthetic", split, image_size=9, **kwargs).source[index]["image"]

    assert (image().shape, image().dtype) == ((9, 9, 3), np.uint8)
    assert image(channels=1).shape == (9, 9, 1)
    np.testing.assert_array_equal(image(), image(num_examples=50))
    assert len({image().tobytes(), image("test").tobytes(), image(index=22).tobytes(), image(seed=1).tobytes()}) == 4


def test_synthetic_can_be_learned():
    train, test = (
        datasets.open_dataset("synthetic", split, image_size=16, num_examples=200, num_classes=5)
        for split in base.SPLITS
    )
    assert collections.Counter(train.source[i]["label"] for i in range(200)) == dict.fromkeys(range(5), 40)
    means = np.stack([np.mean([train.source[i]["image"] for i in range(k, 200, 5)], axis=0) for k in range(5)])
    for flip in (1, -1):
        nearest = [
            int(np.argmin(((means - test.source[i]["image"][:, ::flip]) ** 2).sum((1, 2, 3)))) for i in range(200)
        ]
        assert nearest == [test.source[i]["label"] for i in range(200)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_examples": 0}, r"num_examples=0: it must be 1 or more"),
        ({"num_classes": -1}, r"num_classes=-1: it must be"),
        ({"image_size": 0}, r"image_size=0: it must be"),
        ({"channels": 2}, r"channels=2: use 1 \(grey\) or 3 \(RGB\)"),
        ({"seed": -1}, r"seed=-1: it must be 0 or more"),
    ],
)
def test_synthetic_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        datasets.open_dataset("synthetic", "train", **kwargs)


# Names


@pytest.mark.parametrize(
    ("name", "split", "path", "message"),
    [
        ("cifar", "train", "", r"'cifar' is not known: use one of 'digits', 'folder', 'synthetic', .*, 'tfds:NAME'"),
        ("digits", "val", "", r"split='val' is not known: use 'train' or 'test'"),
        (
            "digits",
            "train",
            "x.zip",
            r"path='x\.zip' is given, but the data set 'digits' reads no path: use .*'folder'",
        ),
    ],
)
def test_open_dataset_refuses(name, split, path, message):
    with pytest.raises(ValueError, match=message):
        datasets.open_dataset(name, split, path=path)


class Listed:
    """A source of what is in a list; an image that is None is unreadable."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        image, label = self.examples[index]
        if image is None:
            raise UnreadableImage("made up")
        return {"image": image, "label": label}

    def origin(self, index):
        return f"example {index}"


def test_the_fingerprint_tells_data_apart_by_any_example_label_and_name():
    def of(train=(), test=(), names=("a", "b")):
        """Sixteen examples in each split, all of which are looked at, with some of them changed."""
        plain = {i: (np.full((2, 2, 1), i, np.uint8), i % 2) for i in range(16)}
        splits = (Listed(list((plain | dict(changes)).values())) for changes in (train, test))
        return base.fingerprint(*(base.Dataset("x", "train", source, names, 1) for source in splits))

    image = np.full((2, 2, 1), 7, np.uint8)
    image[1, 1, 0] = 8
    different = [
        of(),
        of(names=("b", "a")),
        of(train={5: (np.full((2, 2, 1), 5, np.uint8), 0)}),
        of(test={5: (np.full((2, 2, 1), 5, np.uint8), 0)}),
        of(train={7: (image, 1)}),
        of(train={15: (None, 1)}),
        of(test={16: (image, 1)}),
        of(train={7: (image.tobytes() + b"x", 1)}),
    ]
    assert len(set(different)) == len(different)
    assert of() == of() == of(train={7: (np.full((2, 2, 1), 7, np.uint8).tobytes(), 1)})
