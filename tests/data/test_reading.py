"""Only a broken image is an unreadable image: what the operating system refuses ends a run, in its own words."""

import errno
import functools
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax import inference
from resnet_jax.data import datasets, pipeline, transforms
from resnet_jax.data.images import pillow
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources import base, folder, reading
from resnet_jax.data.sources.reading import SourceFailed

PLAIN = transforms.eval_transform(4)
# Each says something about the machine, the disk, its network or its mount.
OF_THE_SYSTEM = ["EMFILE", "ENFILE", "EIO", "ESTALE", "ETIMEDOUT", "ENOMEM", "EACCES", "EPERM", "ENOTCONN", "ENODEV"]


@pytest.fixture
def waits(monkeypatch):
    """The seconds that were waited, and no waiting."""
    slept = []
    monkeypatch.setattr(reading.time, "sleep", slept.append)
    return slept


class Failing:
    """Eight grey images; reading the fourth fails so many times, each time with this error."""

    def __init__(self, error, times=100):
        self.error, self.times = error, times

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3 and self.times:
            self.times -= 1
            raise self.error
        return {"image": np.full((4, 4, 1), index, np.uint8), "label": 0}

    def origin(self, index):
        return f"failing/{index}"


def masks(source, **kwargs):
    dataset = base.Dataset("failing", "train", source, ("a",), 1)
    settings = {"batch_size": 8, "transform": PLAIN, "num_threads": 0, "on_error": "skip", **kwargs}
    with pipeline.eval_batches(dataset, **settings) as batches:
        return [batch["mask"].tolist() for batch in batches]


@pytest.mark.parametrize("name", OF_THE_SYSTEM)
def test_what_the_system_refuses_is_tried_again_and_then_ends_the_run(name, waits):
    code = getattr(errno, name)
    assert masks(Failing(OSError(code, os.strerror(code)), times=3)) == [[1.0] * 8]
    assert waits == list(reading.WAITS[:3])
    with pytest.raises(SourceFailed, match=rf"failing/3: .* failed 5 times in 8 seconds \(.*{os.strerror(code)}\)"):
        masks(Failing(OSError(code, os.strerror(code))))


def test_evaluate_does_not_leave_it_out_either(waits):
    dataset = base.Dataset("failing", "train", Failing(OSError(errno.EIO, os.strerror(errno.EIO))), ("a",), 1)
    with pytest.raises(SourceFailed, match="failing/3"):
        inference._pixels(functools.partial(inference._labelled, dataset), None, 3)


def test_an_image_that_is_broken_is_not_tried_again(waits):
    for error in (UnreadableImage("made up"), OSError("image file is truncated")):  # Pillow's have no number
        assert masks(Failing(error)) == [[1, 1, 1, 0, 1, 1, 1, 1]]
    assert waits == []


@pytest.fixture
def photos(tmp_path):
    for split in ("train", "test"):
        for i in range(3):
            path = tmp_path / f"photos/{split}/cat/{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(path)
    return tmp_path / "photos"


def test_a_file_that_is_gone_is_unreadable_and_a_folder_that_is_gone_is_not(photos, waits):
    dataset = datasets.open_dataset("folder", "train", path=str(photos))
    (photos / "train/cat/1.png").unlink()
    with pytest.raises(UnreadableImage, match="No such file"):
        dataset[1]
    assert waits == []
    shutil.rmtree(photos / "train")  # as a mount that was lost
    with pytest.raises(SourceFailed, match="train/cat/0.png: .*No such file"):
        dataset[0]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_that_is_gone_is_no_fault_of_its_images(photos, waits, kind):
    archive = shutil.make_archive(str(photos), kind, photos)
    dataset = pickle.loads(pickle.dumps(datasets.open_dataset("folder", "train", path=archive)))  # as in a worker
    os.rename(archive, archive + ".away")
    with pytest.raises(SourceFailed, match=r"train/cat/0.png: .*No such file"):
        dataset[0]
    os.rename(archive + ".away", archive)
    assert isinstance(dataset[0]["image"], bytes)


def test_a_zip_is_opened_anew_after_the_system_refused_to_read_it(photos, waits, monkeypatch):
    archive = shutil.make_archive(str(photos), "zip", photos)
    dataset = datasets.open_dataset("folder", "train", path=archive)
    assert isinstance(dataset.source, folder.FolderSource)
    opened = []
    read = zipfile.ZipFile.read

    def stale(self, name):
        if not opened:
            opened.append(self)
        if self is opened[0]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(self, name)

    monkeypatch.setattr(zipfile.ZipFile, "read", stale)
    assert isinstance(dataset[0]["image"], bytes)
    with open(archive, "wb") as file:  # written over while a worker starts
        file.write(b"PK no zip")
    with pytest.raises(SourceFailed, match="no longer a whole zip"):
        pickle.loads(pickle.dumps(dataset))[0]


def test_a_decoder_that_cannot_be_loaded_is_no_broken_image(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "plugin.py")

    monkeypatch.setattr(pillow.Image, "open", refuse)
    with pytest.raises(OSError, match=r"Too many open files: 'plugin\.py'") as caught:
        pillow.decode(b"whole")
    assert not isinstance(caught.value, UnreadableImage)


# Shards, all of which ArrayRecord keeps open. `prepare` needs TFDS, which takes seconds to import.

SHARDS = 80
PREPARE = """
    import sys
    from resnet_jax.data.prepare import folders, run
    source = folders.list_folder(sys.argv[1], "many")
    run.prepare(source, sys.argv[2], shard_mb=1e-6, workers=1, say=lambda line: None)
"""
READ = """
    import os, resource, sys
    import numpy as np
    from resnet_jax.data import datasets, pipeline, transforms
    from resnet_jax.data.sources import reading, records

    if __name__ == "__main__":
        data_dir, workers, raised, hard = sys.argv[1], *map(int, sys.argv[2:])
        reading.WAITS = (0.01,)
        soft = len(os.listdir("/proc/self/fd")) + 40
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if not raised:
            records._allow_open = lambda shards: None
        dataset = datasets.open_dataset("tfds:many", "train", data_dir=data_dir)
        settings = dict(batch_size=8, transform=transforms.eval_transform(4), num_workers=workers, on_error="skip")
        with pipeline.eval_batches(dataset, **settings) as batches:
            print(int(sum(batch["mask"].sum() for batch in batches)), "read")
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    for split, count in (("train", SHARDS), ("test", 1)):
        (root / f"photos/{split}/cat").mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(root / f"photos/{split}/cat/{i}.png")
    python(root, PREPARE, str(root / "photos"), str(root / "out"))
    assert len(list((root / "out/many/1.0.0").glob("*train*"))) >= SHARDS // 2
    return root


def python(folder, code, *arguments):
    (folder / "script.py").write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(folder / "script.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.soak), 1])  # a worker raises its own, too
def test_more_shards_than_files_may_be_open_are_read_all_the_same(shards, workers):
    done = python(shards, READ, shards / "out", workers, 1, 4096)
    assert f"{SHARDS} read" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_shard_that_comes_back_is_read(shards, monkeypatch):
    dataset = datasets.open_dataset("tfds:many", "train", data_dir=str(shards / "out"))
    expected = [dataset[i]["image"] for i in range(len(dataset))]
    dataset = pickle.loads(pickle.dumps(dataset))
    name = shards / "out/many/1.0.0" / dataset.source.shards[3][0]
    away = name.rename(shards / "away")
    waited = []
    monkeypatch.setattr(reading.time, "sleep", lambda seconds: waited.append(seconds) or away.rename(name))
    assert [dataset[i]["image"] for i in range(len(dataset))] == expected
    assert len(waited) == 1


@pytest.mark.slow
def test_files_that_cannot_be_opened_are_not_left_out(shards):
    """Trying again closes those that are open, which may be enough to come through."""
    done = python(shards, READ, shards / "out", 0, 0, 4096)
    assert "Too many open files" in done.stderr
    ended = [line for line in done.stderr.splitlines() if "SourceFailed: many/train, record" in line]
    assert f"{SHARDS} read" in done.stdout or "Too many open files" in ended[0], done.stderr


@pytest.mark.slow
def test_shards_that_can_never_all_be_open_are_refused_at_once(shards):
    done = python(shards, READ, shards / "out", 0, 1, 60)
    assert "shards stay open while they are read, but this process may open no more than 60 files" in done.stderr


# What has `__len__` and `__getitem__` alone


def some_images():
    return [np.full((5, 4, 3), i, np.uint8) for i in range(3)]


def listed():
    return [{"image": image, "label": i, "path": f"{i}.jpg"} for i, image in enumerate(some_images())]


def of_grain():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(listed()).map(lambda example: {**example, "label": np.int64(example["label"])})


def of_torch():
    data = pytest.importorskip("torch.utils.data")

    class Pairs(data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.fromarray(some_images()[index]), index

    return Pairs()


@pytest.mark.parametrize("make", [listed, of_grain, of_torch])
def test_anything_with_a_length_and_items_is_a_source(make):
    dataset = base.Dataset("mine", "train", make(), ("a", "b", "c"), 3)
    with pipeline.eval_batches(dataset, batch_size=3, transform=transforms.eval_transform(4)) as batches:
        (batch,) = batches
    assert (batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()) == ([0, 1, 2], [0, 1, 2])
    assert dataset.source.origin(2) == "example 2 of mine/train"
    kept, held = base.hold_out(dataset, 1)
    assert (len(kept), held[0]["label"], held.source.origin(0)) == (2, 2, "example 2 of mine/train")


def test_grey_images_need_no_axis_and_encoded_ones_are_bytes(photos):
    data = (photos / "train/cat/2.png").read_bytes()
    dataset = base.Dataset("mine", "train", [(np.full((5, 4), 7, np.uint8), 0), (data, 0)], ("a",), 1)
    assert (dataset[0]["image"].shape, dataset[1]["image"]) == ((5, 4, 1), data)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"image": 1}, r"is of type dict with the keys \['image'\]: give"),
        (None, "is of type NoneType: give"),
        ((np.zeros((3, 5, 5), np.uint8), 0), r"shape \(3, 5, 5\) and type uint8, where .* \[height, width, 3\]"),
        ((np.zeros((5, 5, 3), np.float32), 0), r"type float32, where"),
        ((b"", 0.5), "'float' object cannot be interpreted as an integer"),
        ((b"", 2), "label 2, but 'mine' has 2 classes"),
    ],
)
def test_examples_that_are_none_are_refused_by_their_place(example, message):
    with pytest.raises(ValueError, match=r"example 0 of mine/train.*" + message):
        base.Dataset("mine", "train", [example], ("a", "b"), 3)[0]
