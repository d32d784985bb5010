"""Batches: which examples, in which order, and that neither threads, workers, hosts nor a restart change them."""

import collections
import dataclasses
import functools
import itertools
import logging
import pickle

import numpy as np
import pytest

from resnet_jax.data import datasets, order, pipeline, rows, transforms
from resnet_jax.data.sources import base

AUGMENT = transforms.train_transform(8, padding=2, fill=(9,))
PLAIN = transforms.eval_transform(8)
PLAIN_TRAINING = transforms.train_transform(8, crop="none", flip=False)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Example i is an image of value i with label i; those in `broken` cannot be read."""

    size: int
    broken: tuple[int, ...] = ()

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.broken:
            return {"image": b"broken", "label": index}
        return {"image": np.full((8, 8, 1), index, np.uint8), "label": index}

    def origin(self, index):
        return f"numbered/{index}.png"


def numbered(size, broken=(), num_classes=256):
    names = tuple(str(i) for i in range(num_classes))
    return base.Dataset("numbered", "train", Numbered(size, broken), names, 1)


def synthetic(size=50):
    return datasets.open_dataset("synthetic", "train", image_size=8, num_examples=size)


def take(count, dataset=None, *, batch_size=16, **kwargs):
    settings = {"transform": AUGMENT, "seed": 3, **kwargs}
    with pipeline.train_batches(dataset or synthetic(), batch_size=batch_size, **settings) as batches:
        return list(itertools.islice(batches, count))


def take_all(dataset, batch_size, **kwargs):
    with pipeline.eval_batches(dataset, batch_size=batch_size, **{"transform": PLAIN, **kwargs}) as batches:
        return list(batches)


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], strict=True)


def concatenate(hosts):
    return [
        {name: np.concatenate([batch[name] for batch in step]) for name in step[0]} for step in zip(*hosts, strict=True)
    ]


# Training


def test_a_batch_is_uint8_nhwc_int32_float32():
    (batch,) = take(1)
    found = {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert found == {
        "image": ((16, 8, 8, 3), np.dtype(np.uint8)),
        "label": ((16,), np.dtype(np.int32)),
        "mask": ((16,), np.dtype(np.float32)),
    }
    assert batch["mask"].sum() == 16


def test_images_keep_their_labels():
    for batch in take(4, numbered(50), transform=transforms.train_transform(8, crop="none")):
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize("batch_size", [10, 8, 120])
def test_each_epoch_has_every_example_once_in_an_order_of_its_own(batch_size):
    labels = np.concatenate([batch["label"] for batch in take(240 // batch_size, numbered(40), batch_size=batch_size)])
    epochs = labels.reshape(6, 40)
    for epoch in epochs:
        assert collections.Counter(epoch.tolist()) == dict.fromkeys(range(40), 1)
    assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("position", [0, 7, 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1])
def test_the_randomness_of_a_position_is_numpys_own(position):
    for seed in (0, 5, 2**32 - 1):
        expected = np.random.default_rng((seed, position)).bit_generator.state
        assert rows._generator(seed, position).bit_generator.state == expected


def test_an_example_is_augmented_anew_in_each_epoch():
    dataset = datasets.open_dataset("synthetic", "train", image_size=8, num_examples=1)
    assert len({image.tobytes() for batch in take(1, dataset) for image in batch["image"]}) > 8


def examples(**kwargs):
    """Indices in the order of the rows, of 8 passes over 10 examples in batches of 8."""
    batches = take(10, numbered(10), batch_size=8, transform=PLAIN_TRAINING, **kwargs)
    return np.concatenate([batch["label"] for batch in batches])


@pytest.mark.parametrize("repeats", [2, 3, 4, 10, 11])
def test_repeats_take_the_first_examples_of_each_pass_so_many_times(repeats):
    """As torchvision's RASampler: the order of a pass, each index repeated, cut off to the length of the pass."""
    indices = examples()
    passes = [np.repeat(one, repeats)[:10] for one in indices.reshape(8, 10)]
    stream = np.concatenate(passes).reshape(10, 8)
    found = examples(repeats=repeats)
    for batch, expected in zip(found.reshape(10, 8), stream, strict=True):
        np.testing.assert_array_equal(batch, expected[order.apart(8, repeats)])


def test_repeated_examples_are_augmented_differently_and_lie_on_different_devices():
    (batch,) = take(1, synthetic(64), batch_size=32, repeats=4, transform=transforms.train_transform(8, padding=4))
    assert len({image.tobytes() for image in batch["image"]}) > 28
    (batch,) = take(1, numbered(64), batch_size=32, repeats=4, transform=PLAIN_TRAINING)
    assert collections.Counter(collections.Counter(batch["label"].tolist()).values()) == {4: 8}
    for devices in (4, 8, 16):
        assert all(len(set(share)) == 32 // devices for share in batch["label"].reshape(devices, -1))


def test_repeats_come_the_same_on_hosts_threads_and_after_a_restart():
    whole = take(8, repeats=3)
    assert_same(take(3, repeats=3, start_step=5), whole[5:])
    assert_same(take(8, repeats=3, num_threads=0), whole)
    assert_same(concatenate([take(8, repeats=3, process_index=i, process_count=4) for i in range(4)]), whole)


@pytest.mark.parametrize("step", [1, 5])
def test_resuming_continues_the_same_batches(step):
    assert_same(take(8 - step, start_step=step), take(8)[step:])


@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_threads_do_not_change_the_batches(num_threads):
    assert_same(take(8, num_threads=num_threads), take(8, num_threads=2))


@pytest.mark.slow
@pytest.mark.soak
def test_workers_do_not_change_the_batches():
    assert_same(take(8, num_workers=2, num_threads=1), take(8))
    dataset = synthetic(21)
    assert_same(take_all(dataset, 8, num_workers=2, num_threads=1), take_all(dataset, 8))


@pytest.mark.parametrize("process_count", [2, 4])
def test_hosts_together_have_the_batches_of_one(process_count):
    hosts = [take(6, process_index=i, process_count=process_count) for i in range(process_count)]
    assert hosts[0][0]["label"].shape == (16 // process_count,)
    assert_same(concatenate(hosts), take(6))


def test_the_seed_changes_order_and_augmentation():
    labels = [tuple(take(1, numbered(200), seed=seed)[0]["label"]) for seed in (0, 1)]
    assert labels[0] != labels[1]
    one = datasets.open_dataset("synthetic", "train", image_size=8, num_examples=1)
    assert take(1, one, seed=0)[0]["image"].tobytes() != take(1, one, seed=1)[0]["image"].tobytes()


@pytest.mark.parametrize("repeats", [1, 2])
def test_rows_survive_pickling(repeats):
    host = order.Host(0, 4, order.apart(4, repeats))
    shuffled = order.Repeated(order.Shuffled(50, 0), 50, repeats)
    whole = rows.Rows(synthetic(), shuffled, host, 5, functools.partial(rows.augment, AUGMENT, 0), "refuse")
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(whole)).batch(1)["image"], whole.batch(1)["image"])


class Varied:
    """A transform that gives rows of two shapes, or of two types."""

    def __init__(self, other):
        self.other = other

    def __call__(self, image, rng):
        return self.other if image[0, 0, 0] == 2 else image


@pytest.mark.parametrize("other", [np.zeros((1, 8, 1), np.uint8), np.zeros((8, 8, 1), np.float32)])
def test_rows_that_are_not_alike_are_refused_and_not_stretched(other):
    with pytest.raises(ValueError, match=r"an image of shape \(., 8, 1\) and type .*, and before it, .* must be alike"):
        take(1, numbered(3), transform=Varied(other), num_threads=0)


@pytest.mark.parametrize("group", [1, 3, 1000])
def test_the_rows_that_are_begun_together_do_not_change_the_batches(group, monkeypatch):
    expected = take(3, batch_size=40)
    assert rows.GROUP not in (1, 3, 1000)
    monkeypatch.setattr(rows, "GROUP", group)
    assert_same(take(3, batch_size=40), expected)


# Evaluation


@pytest.mark.parametrize(("size", "batch_size"), [(20, 8), (16, 8), (3, 8), (1, 1)])
def test_evaluation_has_every_example_once(size, batch_size):
    batches = take_all(numbered(size), batch_size)
    assert len(batches) == -(-size // batch_size)
    assert {batch["image"].shape for batch in batches} == {(batch_size, 8, 8, 1)}
    labels, mask, images = (np.concatenate([b[name] for b in batches]) for name in ("label", "mask", "image"))
    np.testing.assert_array_equal(labels[mask == 1], np.arange(size))
    np.testing.assert_array_equal(images[mask == 1][:, 0, 0, 0], np.arange(size))
    assert not images[mask == 0].any()


@pytest.mark.parametrize("size", [17, 4])
def test_evaluation_hosts_together_have_the_batches_of_one(size):
    dataset = numbered(size)
    hosts = [take_all(dataset, 8, process_index=i, process_count=2) for i in range(2)]
    assert_same(concatenate(hosts), take_all(dataset, 8))


# Unreadable images


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_unreadable_image_is_refused_by_name(num_threads):
    message = r"numbered/5\.png: the 6 bytes are not a whole image .*Repair or remove it, .*on_error='skip'"
    with pytest.raises(transforms.UnreadableImage, match=message):
        take_all(numbered(12, broken=(5,)), 4, num_threads=num_threads)


@pytest.mark.slow
def test_an_unreadable_image_is_refused_by_name_in_a_worker():
    """In its turn, after the batch before it."""
    (expected, *_) = take_all(numbered(12), 4)
    with pipeline.eval_batches(numbered(12, broken=(5,)), batch_size=4, transform=PLAIN, num_workers=1) as batches:
        assert_same([next(batches)], [expected])
        with pytest.raises(ValueError, match=r"numbered/5\.png: the 6 bytes are not a whole image"):
            next(batches)


def test_an_unreadable_image_is_skipped_counted_and_named_once(caplog):
    rows._warned.clear()
    dataset = numbered(12, broken=(0, 5))
    with caplog.at_level(logging.WARNING):
        batches = take_all(dataset, 4, on_error="skip") + take_all(dataset, 4, on_error="skip")
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(mask == 0), [0, 5, 12, 17])
    named = sorted(record.getMessage().split(":")[0] for record in caplog.records)
    assert named == ["numbered/0.png", "numbered/5.png"]
    (batch,) = take(1, dataset, batch_size=12, on_error="skip")
    assert 12 - batch["mask"].sum() == 2
    assert not batch["image"][batch["mask"] == 0].any()


class Unread(Numbered):
    """The images in `broken` fail when they are read, not when they are decoded."""

    def __getitem__(self, index):
        if index in self.broken:
            raise transforms.UnreadableImage("reading failed")
        return super().__getitem__(index)


def test_an_image_that_fails_on_reading_is_named_in_its_turn(caplog):
    rows._warned.clear()
    dataset = dataclasses.replace(numbered(12), source=Unread(12, (2, 7)))
    mask = np.concatenate([batch["mask"] for batch in take_all(dataset, 6, on_error="skip", num_threads=0)])
    np.testing.assert_array_equal(np.flatnonzero(mask == 0), [2, 7])
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "numbered/2.png: reading failed",
        "numbered/7.png: reading failed",
    ]
    with pytest.raises(transforms.UnreadableImage, match=r"numbered/2\.png: reading failed\. Repair or remove it"):
        take_all(dataset, 12)


class WithALine(Numbered):
    def __getitem__(self, index):
        return {"image": np.zeros((1, 4000, 1), np.uint8), "label": 1} if index == 1 else super().__getitem__(index)


def test_an_image_too_long_to_resize_is_unreadable_too():
    dataset = dataclasses.replace(numbered(3), source=WithALine(3))
    settings = {"transform": transforms.eval_transform(224, 256)}
    (batch,) = take_all(dataset, 3, on_error="skip", **settings)
    assert list(batch["mask"]) == [1, 0, 1]
    with pytest.raises(transforms.UnreadableImage, match=r"numbered/1\.png: an image of 4000 x 1 pixels"):
        take_all(dataset, 3, **settings)


def test_skipping_everything_is_an_error():
    with pytest.raises(ValueError, match=r"none of the 3 images of 'numbered' can be read"):
        take_all(numbered(3, broken=(0, 1, 2)), 4, on_error="skip")


@pytest.mark.parametrize("on_error", ["refuse", "skip"])
def test_a_label_out_of_range_is_never_let_through(on_error):
    with pytest.raises(ValueError, match=r"numbered/2\.png: label 2, but 'numbered' has 2 classes, 0\.\.1"):
        take_all(numbered(3, num_classes=2), 4, on_error=on_error)


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 0}, r"batch_size=0 must be 1 or more"),
        (
            {"batch_size": 9, "process_count": 2},
            r"batch_size=9 cannot be split evenly .*process_count=2 hosts: use 8 or 10",
        ),
        ({"process_index": 2, "process_count": 2}, r"process_index=2 must lie in 0\.\.1: process_count=2"),
        ({"num_workers": -1}, r"num_workers=-1 must be 0 or more"),
        ({"on_error": "ignore"}, r"on_error='ignore' is not known: use 'refuse' or 'skip'"),
        ({"dataset": numbered(0)}, r"the train split of 'numbered' is empty"),
        ({"seed": -1}, r"seed=-1 must lie in 0"),
        ({"start_step": -1}, r"start_step=-1 must be 0 or more"),
    ],
)
def test_bad_numbers_are_refused(kwargs, message):
    settings = {"dataset": numbered(10), "batch_size": 4, "seed": 0, "transform": AUGMENT, **kwargs}
    with pytest.raises(ValueError, match=message):
        pipeline.train_batches(settings.pop("dataset"), **settings)
    if not {"seed", "start_step"} & kwargs.keys():
        settings = {"dataset": numbered(10), "batch_size": 4, "transform": PLAIN, **kwargs}
        with pytest.raises(ValueError, match=message):
            pipeline.eval_batches(settings.pop("dataset"), **settings)


def test_a_closed_iterator_ends():
    batches = pipeline.train_batches(synthetic(), batch_size=4, transform=AUGMENT, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)
