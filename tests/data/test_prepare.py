"""`resnet-jax prepare`: what comes out is what went in, read by plain TFDS; interrupted, damaged and wrong input."""

import fcntl
import io
import json
import math
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

import made_archives
from paths import ROOT
from resnet_jax import cli
from resnet_jax.data import datasets
from resnet_jax.data.images.pillow import UnreadableImage, decode

tfds = pytest.importorskip("tensorflow_datasets")

from resnet_jax.data.prepare import check, cifar, folders, ilsvrc, pickled, run, shards  # noqa: E402 - needs TFDS
from resnet_jax.data.prepare.sources import Entry  # noqa: E402 - likewise


def silent(line):
    """Progress is not looked at."""


def contents(folder):
    """Relative name -> bytes of all files in and below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def records(name, split, data_dir):
    """Examples as plain TFDS reads them, images as stored."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    return list(tfds.data_source(name, split=split, data_dir=str(data_dir), decoders=decoders))


@pytest.fixture
def imagenet(tmp_path):
    return made_archives.write_ilsvrc(tmp_path / "tars", *made_archives.ilsvrc_images())


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(2)
    counts = {"train/cat": 5, "train/dog": 4, "test/cat": 2, "test/dog": 3, "val/cat": 1, "val/dog": 1}
    files = {f"{folder}/{i}.jpg": made_archives.encode(rng) for folder, n in counts.items() for i in range(n)}
    for name, data in files.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    return files


# ImageNet


def test_imagenet_is_what_the_tars_hold(tmp_path, imagenet):
    train, validation = made_archives.ilsvrc_images()
    source = ilsvrc.list_ilsvrc(imagenet, allow_subset=True)
    summary = run.prepare(source, str(tmp_path), shard_mb=0.004, workers=1, say=silent)
    assert (summary.records, summary.skipped) == ({"train": 20, "validation": 6}, [])
    assert sorted(summary.converted) == [f"{synset}_10.JPEG" for synset in made_archives.SYNSETS]

    found = {e["file_name"].decode(): (e["image"], e["label"]) for e in records("imagenet2012", "train", tmp_path)}
    assert found.keys() == train.keys()
    labels = dict(zip(made_archives.SYNSETS, (0, 1, 230, 508, 999), strict=True))
    for name, (image, label) in found.items():
        assert label == labels[name.split("_")[0]]
        if name in summary.converted:  # CMYK: the pixels that Pillow gives
            pixels = np.asarray(Image.open(io.BytesIO(train[name])).convert("RGB"))
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), pixels)
        else:
            assert image == train[name]
    # Labels of the 1st, 8,001st, ... validation image, from the ground truth of the challenge.
    found = {e["file_name"].decode(): (e["image"], e["label"]) for e in records("imagenet2012", "validation", tmp_path)}
    assert {name: image for name, (image, _) in found.items()} == validation
    builder = tfds.builder("imagenet2012", data_dir=str(tmp_path))
    synset = builder.info.features["label"].int2str(found["ILSVRC2012_val_00000001.JPEG"][1])
    assert synset == "n01751748"  # a sea snake, as everybody knows this picture


def test_imagenet_opens_by_its_name(tmp_path, imagenet):
    run.prepare(ilsvrc.list_ilsvrc(imagenet, True), str(tmp_path), shard_mb=0.004, workers=1, say=silent)
    for name in ("imagenet2012", "tfds:imagenet2012", "tfds:imagenet2012:5.1.0"):
        train, test = (datasets.open_dataset(name, split, data_dir=str(tmp_path)) for split in ("train", "test"))
        assert (len(train), len(test), train.num_classes, train.channels) == (20, 6, 1000, 3)
    again = pickle.loads(pickle.dumps(train))
    assert again.source[3] == train.source[3]
    assert decode(again.source[3]["image"]).shape == (20, 16, 3)


class OrderOfTfds(tfds.core.GeneratorBasedBuilder):
    """TFDS's own writer on the keys of its imagenet2012: it says what the order must be."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"name": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        train, validation = made_archives.ilsvrc_images()
        return {"train": self._generate_examples(train), "validation": self._generate_examples(validation)}

    def _generate_examples(self, names):
        for name in names:
            yield name, {"name": name}


def test_the_order_is_that_of_tfds(tmp_path, imagenet):
    tfds.disable_progress_bar()
    theirs = OrderOfTfds(data_dir=str(tmp_path), file_format="array_record")
    theirs.download_and_prepare()
    run.prepare(ilsvrc.list_ilsvrc(imagenet, True), str(tmp_path), shard_mb=0.004, workers=1, say=silent)
    for split in ("train", "validation"):
        names = [example["name"] for example in theirs.as_data_source(split)]
        assert [example["file_name"] for example in records("imagenet2012", split, tmp_path)] == names


def changed(imagenet, change):
    train, validation = made_archives.ilsvrc_images()
    folder = pathlib.Path(imagenet)
    change(folder, train, validation)
    return imagenet


def swap(folder, train, validation):
    (folder / "ILSVRC2012_img_val.tar").rename(folder / "ILSVRC2012_img_train.tar")


def cut(folder, train, validation):
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-30_000])


def cut_between(folder, train, validation):
    """Right after the last member, which is whole."""
    path = folder / "ILSVRC2012_img_val.tar"
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])


def cut_inner(folder, train, validation):
    inner = made_archives.tar_of({n: data for n, data in train.items() if n.startswith("n01440764")})
    files = {"n01440764.tar": inner[:1500], "n01443537.tar": inner}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(made_archives.tar_of(files))


def unknown_synset(folder, train, validation):
    (folder / "ILSVRC2012_img_train.tar").write_bytes(made_archives.tar_of({"n99999999.tar": b""}))


@pytest.mark.parametrize(
    ("change", "subset", "error", "message"),
    [
        (lambda *_: None, False, ValueError, r"img_train\.tar has 20 images, but train of ILSVRC2012 has 1,281,167; "
         r"995 of 1,000 synsets are missing: n01484850, n01491361, .*, \.\.\.\. Copy it again, or give --allow-subset"),
        (swap, True, ValueError, r"img_train\.tar is the tar of validation images, where a tar for each synset"),
        (cut, True, ValueError, r"img_train\.tar is damaged or was cut short \(.*\), after [\d,]+ bytes: copy it"),
        (cut_between, True, ValueError, r"img_val\.tar is damaged or was cut short \(the block that ends a tar is not"),
        (cut_inner, True, ValueError, r"damaged or was cut short \(in n01440764\.tar: .*beyond the end"),
        (unknown_synset, True, ValueError, r"holds n99999999\.tar, but n99999999 is none of the 1,000 synsets"),
        (lambda folder, *_: shutil.rmtree(folder), True, FileNotFoundError, r"lacks ILSVRC2012_img_train\.tar and IL"),
        (lambda folder, *_: (folder / "ILSVRC2012_img_val.tar").unlink(), False, FileNotFoundError, r"lacks ILSVRC2012_"
         r"img_val\.tar: image-net\.org gives them.*--allow-subset"),
    ],
)  # fmt: skip
def test_imagenet_refuses(imagenet, change, subset, error, message):
    with pytest.raises(error, match=message):
        ilsvrc.list_ilsvrc(changed(imagenet, change), subset)


def test_labels_of_another_tfds_are_refused(monkeypatch):
    monkeypatch.setitem(ilsvrc.LABELS, "labels.txt", "0" * 64)
    with pytest.raises(
        ValueError, match=r"labels\.txt of tensorflow-datasets .* has the SHA-256 70002.*no longer mean"
    ):
        ilsvrc.read_labels.__wrapped__("labels.txt")


# CIFAR


def prepare_cifar(name, data, tmp_path, where):
    (tmp_path / f"{where}.tar.gz").write_bytes(data)
    source = cifar.list_cifar(name, str(tmp_path / f"{where}.tar.gz"), allow_subset=True)
    run.prepare(source, str(tmp_path / where), workers=1, say=silent)
    return tmp_path / where


def test_cifar10_is_the_same_from_every_archive(tmp_path):
    tables = made_archives.cifar_tables()
    folder = prepare_cifar("cifar10", made_archives.cifar10_binary(tables), tmp_path, "binary")
    expected = contents(folder)
    for where, dump in (("python2", made_archives.python2_pickle), ("python3", made_archives.python3_pickle)):
        assert (
            contents(prepare_cifar("cifar10", made_archives.cifar10_python(tables, dump), tmp_path, where)) == expected
        )

    examples = records("cifar10", "train", folder)
    pixels = np.concatenate([table[2] for table in tables[:5]]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    labels = [label for table in tables[:5] for label in table[0]]
    assert {example["id"].decode() for example in examples} == {f"train_{i:05d}" for i in range(20)}
    for example in examples:
        i = int(example["id"].decode().removeprefix("train_"))
        np.testing.assert_array_equal(decode(example["image"]), pixels[i])
        assert example["label"] == labels[i]
    assert datasets.open_dataset("cifar10", "test", data_dir=str(folder)).class_names[9] == "class_9"


def test_cifar100_has_both_labels(tmp_path):
    tables = made_archives.cifar_tables(classes=100)
    folder = prepare_cifar("cifar100", made_archives.cifar100_python(*tables[:2]), tmp_path, "out")
    for example in records("cifar100", "test", folder):
        i = int(example["id"].decode().removeprefix("test_"))
        assert (example["label"], example["coarse_label"]) == (tables[1][0][i], tables[1][1][i])
    assert datasets.open_dataset("cifar100", "train", data_dir=str(folder)).num_classes == 100


def test_pickles_as_python_2_wrote_them_read_as_pickle_reads_them():
    value = {"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [3, 1, 2], "names": ["a", "b"]}
    data = made_archives.python2_pickle(value)
    theirs, ours = pickle.loads(data, encoding="bytes"), pickled.load("x", data)
    np.testing.assert_array_equal(ours[b"data"].uint8(), theirs[b"data"])
    assert ours[b"labels"] == theirs[b"labels"] == [3, 1, 2]
    assert ours[b"names"] == theirs[b"names"] == [b"a", b"b"]


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_code_of_a_pickle_runs(tmp_path):
    tables = made_archives.cifar_tables()
    hostile = made_archives.cifar10_python(tables, lambda value: pickle.dumps(Touch(str(tmp_path / "run")), protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1 is refused: it refers to posix\.mkdir, which no array does"):
        prepare_cifar("cifar10", hostile, tmp_path, "out")
    assert not (tmp_path / "run").exists()


def test_cifar_refuses(tmp_path):
    tables = made_archives.cifar_tables()
    whole = made_archives.cifar10_binary(tables)
    path = tmp_path / "x.tar.gz"
    for data, name, subset, message in (
        (whole, "cifar10", False, r"has 20 images to train with, but cifar10 has 50,000: copy it again, or give --all"),
        (whole, "cifar100", True, r"has no cifar-100-binary/ or cifar-100-python/, but cifar-10-batches-bin: is it an"),
        (whole[: len(whole) // 2], "cifar10", True, r"is no tar, or damaged, or was cut short"),
        (b"no tar", "cifar10", True, r"is no tar, or damaged"),
        (made_archives.cifar10_binary([*tables[:4], ([10], [0], tables[0][2][:1]), tables[5]]), "cifar10", True,
         r"of cifar10's label there are 10 names, and numbers up to 10, where 10 classes were expected"),
        (made_archives.tar_of({"cifar-10-batches-bin/data_batch_1.bin": b"12"}), "cifar10", True,
         r"data_batch_1\.bin has 2 bytes, no multiple of 3073"),
        (made_archives.tar_of({"cifar-10-batches-bin/x": b""}), "cifar10", True, r"lacks cifar-10-batches-bin/data_"),
        (made_archives.cifar10_python(tables, lambda v: made_archives.python2_pickle({"data": []})), "cifar10", True,
         r"data_batch_1 is not as published \(AttributeError"),
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            cifar.list_cifar(name, str(path), subset)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give the path of the archive"):
        cifar.list_cifar("cifar10", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"is a folder: give the path of the archive itself"):
        cifar.list_cifar("cifar10", str(tmp_path))


# Folders


def test_folder_zip_and_tar_give_the_same_bytes(tmp_path, photos):
    (tmp_path / "photos.zip").write_bytes(made_archives.zip_of(photos))
    (tmp_path / "photos.tar").write_bytes(made_archives.tar_of({f"./{name}": data for name, data in photos.items()}))
    found = []
    for path in ("photos", "photos.zip", "photos.tar"):
        source = folders.list_folder(str(tmp_path / path), "my_photos")
        run.prepare(source, str(tmp_path / "out" / path), shard_mb=0.002, workers=1, say=silent)
        found.append(contents(tmp_path / "out" / path))
    assert found[0] == found[1] == found[2]
    assert len([name for name in found[0] if "array_record" in name]) > 5

    for split, top, count in (("train", "train", 9), ("test", "test", 5), ("validation", "val", 2)):
        examples = records("my_photos", split, tmp_path / "out" / "photos")
        assert len(examples) == count
        for example in examples:
            name = example["file_name"].decode()
            assert example["image"] == photos[f"{top}/{name}"]
            assert example["label"] == ["cat", "dog"].index(name.split("/")[0])
    dataset = datasets.open_dataset("tfds:my_photos", "test", data_dir=str(tmp_path / "out" / "photos"))
    assert (len(dataset), dataset.class_names) == (5, ("cat", "dog"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Photos", r"name='My-Photos' cannot name a data set: use small letters"),
        ("mnist", r"name='mnist' is a data set of TFDS's own"),
    ],
)
def test_folder_refuses_names(tmp_path, photos, name, message):
    with pytest.raises(ValueError, match=message):
        folders.list_folder(str(tmp_path / "photos"), name)


def test_two_images_of_one_name(tmp_path):
    train = made_archives.tar_of({"n01440764_1.JPEG": b"1"})
    folder = tmp_path / "tars"
    folder.mkdir()
    files = {"n01440764.tar": train, "n01443537.tar": train}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(made_archives.tar_of(files))
    source = ilsvrc.list_ilsvrc(str(folder), True)
    with pytest.raises(ValueError, match=r"train has two examples by the name of 'n01440764_1\.JPEG': rename one"):
        shards.plan_shards(source, 1.0)


# Unreadable images


def test_unreadable_images_are_refused_or_left_out(tmp_path, photos):
    (tmp_path / "photos/train/cat/1.jpg").write_bytes(b"no image")
    whole = photos["train/dog/2.jpg"]
    (tmp_path / "photos/train/dog/2.jpg").write_bytes(whole[: len(whole) - 40])
    source = folders.list_folder(str(tmp_path / "photos"), "my_photos")
    with pytest.raises(UnreadableImage, match=r"train/cat/1\.jpg: the 8 bytes are no image .*--on-error=skip"):
        run.prepare(source, str(tmp_path / "a"), workers=1, say=silent)
    summary = run.prepare(source, str(tmp_path / "b"), workers=1, on_error="skip", say=silent)
    assert (summary.skipped, summary.records) == (["cat/1.jpg"], {"train": 8, "test": 5, "validation": 2})
    summary = run.prepare(source, str(tmp_path / "c"), workers=1, on_error="skip", decode=True, say=silent)
    assert (sorted(summary.skipped), summary.records["train"]) == (["cat/1.jpg", "dog/2.jpg"], 7)
    assert len(records("my_photos", "train", tmp_path / "c")) == 7


def test_a_source_that_vanishes_is_not_left_out(tmp_path, photos):
    source = folders.list_folder(str(tmp_path / "photos"), "my_photos")
    (tmp_path / "photos/train/cat/1.jpg").unlink()
    with pytest.raises(
        OSError, match=r"cat/1\.jpg can no longer be read \(.*No such file.*\): has the source been moved"
    ):
        run.prepare(source, str(tmp_path / "out"), workers=1, on_error="skip", say=silent)


# Going on, and standing in the way


def make(tmp_path, where="out", **kwargs):
    source = folders.list_folder(str(tmp_path / "photos"), "my_photos")
    return run.prepare(source, str(tmp_path / where), **{"shard_mb": 0.002, "workers": 1, "say": silent, **kwargs})


@pytest.fixture
def half(tmp_path, photos, monkeypatch):
    """A preparation that stopped after three shards."""
    calls = []

    def three(*arguments):
        calls.append(0)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return shards.ensure_shard(*arguments)

    monkeypatch.setattr("resnet_jax.data.prepare.pool.ensure_shard", three)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path)
    monkeypatch.undo()
    return tmp_path / "out/my_photos/1.0.0.preparing"


def test_goes_on_from_whole_shards_and_writes_damaged_ones_again(tmp_path, half):
    done = sorted(half.iterdir())
    assert len(done) == 3
    with pytest.raises(FileNotFoundError, match="not prepared"):  # until it is whole
        datasets.open_dataset("tfds:my_photos", "train", data_dir=str(tmp_path / "out"))
    before = [path.stat().st_ino for path in done]
    data = bytearray(done[1].read_bytes())
    data[100] ^= 1
    done[1].write_bytes(data)
    (half / ".x.tmp").write_bytes(b"left by a killed process")
    make(tmp_path)
    folder = tmp_path / "out/my_photos/1.0.0"
    after = [(folder / path.name).stat().st_ino for path in done]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    make(tmp_path, "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    inodes = {path: path.stat().st_ino for path in folder.iterdir()}
    make(tmp_path)  # all there: nothing to do
    assert inodes == {path: path.stat().st_ino for path in folder.iterdir()}


def test_other_plans_and_preparers_are_refused(tmp_path, photos, half):
    with pytest.raises(
        ValueError, match=r"preparing was begun with shard_mb 0\.002, not 1\.0: do the same again, remove"
    ):
        make(tmp_path, shard_mb=1)
    with open(f"{half}.reports/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another process is preparing .*my_photos/1\.0\.0: wait for it"):
            make(tmp_path)
    make(tmp_path)
    (tmp_path / "photos/train/cat/0.jpg").rename(tmp_path / "photos/train/cat/00.jpg")
    with pytest.raises(ValueError, match=r"1\.0\.0 is there, prepared with source '\w+', not '\w+'"):
        make(tmp_path)
    (tmp_path / "out/my_photos/1.0.0/manifest.json").unlink()
    with pytest.raises(ValueError, match=r"1\.0\.0 is there, and not of our making: remove it"):
        make(tmp_path)


def test_no_space_no_place_and_odd_numbers(tmp_path, photos, monkeypatch):
    with pytest.raises(ValueError, match=r"data_dir=gs://x is not local"):
        run.prepare(folders.list_folder(str(tmp_path / "photos"), "my_photos"), "gs://x")
    for kwargs, message in (
        ({"shard_mb": 0}, "shard_mb=0 must be a number of MB, more than 0"),
        ({"shard_mb": math.inf}, "shard_mb=inf must be a number of MB"),
        ({"shard_mb": 5e-324}, "shard_mb=5e-324 must be a number of MB"),
        ({"shard_mb": math.nan}, "shard_mb=nan must be a number of MB"),
        ({"workers": -1}, "workers=-1 must be 0"),
        ({"on_error": "ignore"}, "on_error='ignore' is not known"),
    ):
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **kwargs)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        make(tmp_path, "file")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    with pytest.raises(OSError, match=r"about 0\.\d+ GB are to be written to .*, but 0\.000 GB are free"):
        make(tmp_path)


# Reading what is damaged


def test_check_names_what_is_damaged(tmp_path, photos):
    make(tmp_path)
    folder = tmp_path / "out/my_photos/1.0.0"
    assert check.find_damage(str(folder)) == []
    names = sorted(path.name for path in folder.glob("*train*"))
    data = bytearray((folder / names[0]).read_bytes())
    data[70] ^= 1
    (folder / names[0]).write_bytes(data)
    (folder / names[1]).unlink()
    (folder / names[2]).write_bytes(b"short")
    (folder / "features.json").write_text("{}")
    (folder / "stranger").write_text("")
    lines = check.find_damage(str(folder))
    assert [line.split(":")[0] for line in lines] == [*names[:3], "features.json", "stranger"]
    assert ["SHA-256" in lines[0], "missing" in lines[1], "5 bytes, not" in lines[2]] == [True] * 3


def test_reading_says_which_shards_are_missing_and_which_record_is_damaged(tmp_path, photos):
    make(tmp_path)
    folder = tmp_path / "out/my_photos/1.0.0"
    dataset = datasets.open_dataset("tfds:my_photos", "train", data_dir=str(tmp_path / "out"))
    shard = folder / dataset.source.shards[1][0]
    first = dataset.source.shards[0][1]
    image = dataset.source[first]["image"]
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(image[-50:], bytes(50)))
    dataset = datasets.open_dataset("tfds:my_photos", "train", data_dir=str(tmp_path / "out"))
    with pytest.raises(UnreadableImage, match=rf"reading failed \(record 0 of {shard.name}: .*"):
        dataset.source[first]
    assert dataset.source[0]["label"] in (0, 1)
    shard.write_bytes(whole[: len(whole) // 2])  # cut short
    dataset = datasets.open_dataset("tfds:my_photos", "train", data_dir=str(tmp_path / "out"))
    with pytest.raises(UnreadableImage, match=rf"record 0 of {shard.name}"):
        dataset.source[first]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=rf"lacks 1 of the \d+ shards of train: {shard.name}\. Copy"):
        datasets.open_dataset("tfds:my_photos", "train", data_dir=str(tmp_path / "out"))


# The command


def test_command(tmp_path, photos, capsys):
    out = f"--data-dir={tmp_path}/out"
    command = ["prepare", "folder", "--name=my_photos", out]
    assert cli.main([*command, f"--source={tmp_path}/photos", "--workers=1"]) == 0
    output = capsys.readouterr()
    assert output.out == f"{tmp_path}/out/my_photos/1.0.0: 9 in train, 5 in test, 2 in validation\n"
    assert "16 of 16 images, " in output.err
    assert cli.main([*command, f"--source={tmp_path}/photos/", "--workers=1"]) == 0
    again = capsys.readouterr()
    assert again.out == output.out
    assert "my_photos/1.0.0 is there already" in again.err
    assert cli.main([*command, "--check"]) == 0
    assert capsys.readouterr().out.endswith("3 shards, as prepared\n")
    shard = next((tmp_path / "out/my_photos/1.0.0").glob("*test*"))
    shard.write_bytes(b"")
    assert cli.main([*command, "--check"]) == 1
    output = capsys.readouterr().out
    assert f"{shard.name}: 0 bytes, not " in output
    assert "3 shards, 1 files not as prepared: copy or remove them, or remove the folder" in output


def test_command_interrupted(tmp_path, photos, capsys, monkeypatch):
    command = ["prepare", "folder", "--name=my_photos", f"--data-dir={tmp_path}/out", f"--source={tmp_path}/photos"]
    with monkeypatch.context() as patch:
        patch.setattr(run, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert cli.main([*command, "--workers=1"]) == 130
    assert capsys.readouterr().err.endswith("stopped. Whole shards stand: the same command goes on from them.\n")
    assert cli.main([*command, "--workers=1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--source=x"], r"a folder needs --name=NAME"),
        (["cifar10", "--source=x", "--name=y"], r"the others have names, and take none"),
        (["cifar10"], r"cifar10 of what\? Give --source=PATH, or --check"),
        (["folder", "--name=y", "--source=x", "--allow-subset"], r"--allow-subset has no meaning for a folder"),
        (["imagenet2012", "--source={tmp}"], r"lacks ILSVRC2012_img_train\.tar and ILSVRC2012_img_val\.tar"),
        (
            ["cifar100", "--check", "--data-dir={tmp}"],
            r"has no manifest\.json: `resnet-jax prepare` has prepared nothing",
        ),
    ],
)
def test_command_refuses(tmp_path, capsys, arguments, message):
    assert cli.main(["prepare", *(argument.format(tmp=tmp_path) for argument in arguments)]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("name", ["imagenet2012", "cifar10", "tfds:cifar100"])
def test_messages_name_the_command(tmp_path, name):
    kind = name.removeprefix("tfds:")
    with pytest.raises(
        FileNotFoundError, match=rf"'{kind}' is not prepared .*`resnet-jax prepare {kind} --source=PATH"
    ):
        datasets.open_dataset(name, "train", data_dir=str(tmp_path))


# Killed


START = """
import sys
from resnet_jax import cli
{before}
code = cli.main(sys.argv[1:])
assert not {{"tensorflow", "torch"}} & set(sys.modules)
sys.exit(code)
"""


def start(*arguments, before=""):
    command = [sys.executable, "-c", START.format(before=before), "prepare", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def children(pid):
    return pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def sources(tmp_path):
    """Kind -> the arguments of the command, data of about a hundred shards of a few images."""
    rng = np.random.default_rng(3)
    names = [f"{split}/{c}/{i:03}.jpg" for split, n in (("train", 60), ("test", 15)) for c in "ab" for i in range(n)]
    for name in names:
        (tmp_path / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "many" / name).write_bytes(made_archives.encode(rng))
    made_archives.write_ilsvrc(tmp_path / "tars", *made_archives.ilsvrc_images(24, 6))
    (tmp_path / "cifar.tar.gz").write_bytes(made_archives.cifar10_python(made_archives.cifar_tables(per_batch=30)))
    return {
        "folder": ["folder", "--name=many", f"--source={tmp_path}/many"],
        "imagenet2012": ["imagenet2012", f"--source={tmp_path}/tars", "--allow-subset"],
        "cifar10": ["cifar10", f"--source={tmp_path}/cifar.tar.gz", "--allow-subset"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "workers_after"),
    [
        ("folder", 2),
        pytest.param("imagenet2012", 1, marks=pytest.mark.soak),
        pytest.param("cifar10", 1, marks=pytest.mark.soak),
    ],
)
def test_killed_and_restarted_is_the_same_and_plain_tfds_reads_it(tmp_path, kind, workers_after):
    arguments = [*sources(tmp_path)[kind], "--shard-mb=0.002"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(["prepare", *arguments, f"--data-dir={whole}", "--workers=1"]) == 0
    total = len(json.loads(next(whole.glob("*/*/manifest.json")).read_text())["shards"])
    process = start(*arguments, f"--data-dir={killed}", "--workers=3")
    wait_for(lambda: len(list(killed.glob("*/*.reports/*_record-*.json"))) >= total // 2)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(workers) >= 3
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))  # no orphans go on
    done = list(killed.glob("*/*.reports/*_record-*.json"))
    print(f"{kind}: killed after {len(done)} of {total} shards")
    assert total // 2 <= len(done) < total
    assert not list(killed.glob("*/*/manifest.json"))

    assert cli.main(["prepare", *arguments, f"--data-dir={killed}", f"--workers={workers_after}"]) == 0
    assert contents(killed) == contents(whole)
    read = """
import sys, tensorflow_datasets as tfds
name, folder = sys.argv[1:]
builder = tfds.builder_from_directory(folder)
counts = {split: sum(example["image"].shape[-1] == 3 for example in builder.as_data_source(split))
          for split in builder.info.splits}
assert "tensorflow" not in sys.modules and "resnet_jax" not in sys.modules
print(sorted(counts.values()))
"""
    folder = next(killed.glob("*/*.*"))
    done = subprocess.run([sys.executable, "-c", read, kind, str(folder)], capture_output=True, text=True, check=True)
    expected = {"folder": [30, 120], "imagenet2012": [6, 120], "cifar10": [30, 150]}
    assert done.stdout.strip() == str(expected[kind])


NO_LOCKS = """
import fcntl
def refuse(*_):
    raise OSError("no locks on this file system")
fcntl.flock = refuse
"""


@pytest.mark.slow
def test_two_at_once_do_no_harm_even_without_locks(tmp_path):
    arguments = [*sources(tmp_path)["folder"], "--shard-mb=0.002", "--workers=1"]
    processes = [start(*arguments, f"--data-dir={tmp_path}/out", before=NO_LOCKS) for _ in range(2)]
    codes = [process.wait(timeout=120) for process in processes]
    for process in processes:
        process.stdout.close()
    assert 0 in codes
    assert cli.main(["prepare", *arguments, f"--data-dir={tmp_path}/out"]) == 0  # finds it whole, clears up
    assert cli.main(["prepare", *arguments, f"--data-dir={tmp_path}/whole"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# Places where the process kills itself: within a shard, between a shard and its report, before and after the renaming.
MOMENTS = {
    "in a shard": "from resnet_jax.data.prepare import sources as m; name, n = 'serialize', 7",
    "before a shard's renaming": "import os as m; name, n = 'replace', 5",
    "before a report's renaming": "import os as m; name, n = 'replace', 6",
    "before the metadata": "from resnet_jax.data.prepare import metadata as m; name, n = '_split_info', 2",
    "before the manifest": "from resnet_jax.data.prepare import metadata as m; name, n = 'write_json', 1",
    "before the data set's renaming": "import os as m; name, n = 'rename', 1",
    "after the data set's renaming": "from resnet_jax.data.prepare import metadata as m; name, n = 'summarize', 1",
}
KILL = """
import os, signal
{where}
whole, calls = getattr(m, name), []
def call(*arguments, **kwargs):
    calls.append(0)
    if len(calls) == n:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **kwargs)
setattr(m, name, call)
"""
# Each command in a fork of one interpreter, after some code: the exit code of each.
ALL_AT_ONCE = """
import json, os, sys
from resnet_jax import cli
from resnet_jax.data.prepare import run

ended = []
for before, arguments in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        exec(before)
        sys.exit(cli.main(arguments))
    ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(ended))
"""


@pytest.mark.slow
def test_killed_at_awkward_moments(tmp_path, photos):
    make(tmp_path, "whole")
    command = ["prepare", "folder", "--name=my_photos", f"--source={tmp_path}/photos", "--shard-mb=0.002"]
    commands = [
        (KILL.format(where=where), [*command, "--workers=1", f"--data-dir={tmp_path}/{i}"])
        for i, where in enumerate(MOMENTS.values())
    ]
    done = subprocess.run(
        [sys.executable, "-c", ALL_AT_ONCE, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert json.loads(done.stdout) == [-signal.SIGKILL] * len(MOMENTS), done.stderr
    for i, where in enumerate(MOMENTS.values()):
        assert contents(tmp_path / str(i)) != contents(tmp_path / "whole")  # at least what the killed one has left
        make(tmp_path, str(i))
        assert contents(tmp_path / str(i)) == contents(tmp_path / "whole"), where


@pytest.mark.slow
def test_disk_that_fills_up_while_writing(tmp_path, photos):
    make(tmp_path, "whole", shard_mb=1)
    limit = "import resource, signal\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    limit += "\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    command = ["folder", "--name=my_photos", f"--source={tmp_path}/photos", "--shard-mb=1", "--workers=1"]
    process = start(*command, f"--data-dir={tmp_path}/out", before=limit)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "File too large" in output
    assert "Whole shards stand: free space, and the same command goes on" in output
    make(tmp_path, shard_mb=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_shard_and_its_report_are_on_disk_before_they_have_their_names(tmp_path, monkeypatch):
    """A report vouches for a whole shard also after a loss of power."""
    calls, replace = [], os.replace

    def named(temporary, path):
        calls.append(("named", temporary, path))
        replace(temporary, path)

    monkeypatch.setattr(
        shards.os, "fsync", lambda file: calls.append(("on disk", os.readlink(f"/proc/self/fd/{file}")))
    )
    monkeypatch.setattr(shards.os, "replace", named)
    shard = shards.Shard("x", "train", [Entry(key, None, 1, ()) for key in range(3)])
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards.reports").mkdir()
    report = shards.ensure_shard(str(tmp_path / "shards"), shard, lambda entry: (b"record", False), skip=False)
    assert report.records == 3
    assert [call[0] for call in calls] == ["on disk", "named"] * 2
    assert [calls[i][1] for i in (0, 2)] == [calls[i][1] for i in (1, 3)]
    assert [calls[i][2] for i in (1, 3)] == [f"{tmp_path}/shards/x", f"{tmp_path}/shards.reports/x.json"]
