"""Batches of encoded images by either decoder: the same on any threads, workers and hosts, and never mislabelled."""

import io
import itertools
import zipfile

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import datasets, pipeline, transforms
from resnet_jax.data.images import pillow

pytest.importorskip("cv2")

CLASSES, EACH = 3, 7


def photo(label, number):
    """A JPEG whose colour tells its label, of a size of its own, with noise."""
    rng = np.random.default_rng((label, number))
    colour = np.array((50 + 70 * label, 128, 200 - 70 * label))
    pixels = colour + rng.normal(0, 10, (90 + 9 * number, 120 - 7 * number, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", progressive=number == 3)
    return buffer.getvalue()


def write(path, damage=()):
    """A zip with {train,test}/CLASS/NUMBER.jpg; those in `damage`, as (class, number), are cut in half."""
    with zipfile.ZipFile(path, "w") as archive:
        for split, label, number in itertools.product(("train", "test"), range(CLASSES), range(EACH)):
            data = photo(label, number)
            data = data[: len(data) // 2] if (label, number) in damage else data
            archive.writestr(f"{split}/c{label}/{number}.jpg", data)
    return datasets.open_dataset("folder", "train", path=str(path))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos") / "photos.zip")


EVERYTHING = {
    "augment": "rand-m7-mstd0.5-inc1",
    "color_jitter": (0.4, 0.4, 0.4, 0.1),
    "fill": (124, 116, 104),
    "erase": 0.5,
    "erase_noise": (58.0, 57.0, 57.0),
}


def take(count, dataset, decoder="opencv", batch_size=8, augmentation=None, sizes={0: 32}, **kwargs):  # noqa: B006
    transform = {
        first: transforms.train_transform(size, crop="resized", decoder=decoder, **augmentation or {})
        for first, size in sizes.items()
    }
    with pipeline.train_batches(dataset, batch_size=batch_size, transform=transform, seed=5, **kwargs) as batches:
        return list(itertools.islice(batches, count))


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for name in ("image", "label", "mask"):
            np.testing.assert_array_equal(batch[name], other[name], strict=True)


@pytest.mark.parametrize("decoder", pillow.DECODERS)
@pytest.mark.parametrize("num_threads", [0, 1, 4])
def test_threads_do_not_change_the_batches(dataset, decoder, num_threads):
    assert_same(take(6, dataset, decoder, num_threads=num_threads), take(6, dataset, decoder, num_threads=2))


def test_a_restart_and_hosts_do_not_change_the_batches(dataset):
    whole = take(6, dataset)
    assert_same(take(2, dataset, start_step=4), whole[4:])
    hosts = [take(6, dataset, process_index=index, process_count=2) for index in range(2)]
    both = [{name: np.concatenate([one[name], two[name]]) for name in one} for one, two in zip(*hosts, strict=True)]
    assert_same(both, whole)


@pytest.mark.parametrize("decoder", pillow.DECODERS)
def test_nothing_changes_the_batches_with_every_augmentation_on(dataset, decoder):
    settings = {"decoder": decoder, "augmentation": EVERYTHING, "repeats": 2}
    whole = take(6, dataset, num_threads=0, **settings)
    assert_same(take(6, dataset, num_threads=4, **settings), whole)
    assert_same(take(2, dataset, start_step=4, **settings), whole[4:])
    hosts = [take(6, dataset, process_index=index, process_count=2, **settings) for index in range(2)]
    for part, rows in zip(hosts, (slice(0, 4), slice(4, 8)), strict=True):
        assert_same(part, [{name: batch[name][rows] for name in batch} for batch in whole])
    plain = take(6, dataset, decoder, repeats=2)  # the same crops and flips
    changed = [(batch["image"] != other["image"]).any((1, 2, 3)) for batch, other in zip(whole, plain, strict=True)]
    assert np.concatenate(changed).mean() > 0.9
    for batch, other in zip(whole, plain, strict=True):
        np.testing.assert_array_equal(batch["label"], other["label"])


@pytest.mark.slow
def test_workers_do_not_change_the_batches_with_every_augmentation_on(dataset):
    """Nor where a run goes on from a later step, across a change of the size."""
    settings = {"augmentation": EVERYTHING, "repeats": 2, "sizes": {0: 24, 3: 32}}
    expected = take(6, dataset, num_threads=0, **settings)[1:]
    assert_same(take(5, dataset, num_workers=2, num_threads=1, start_step=1, **settings), expected)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["zip", "folder", "array_record"])
def test_workers_do_not_change_the_batches(dataset, kind, tmp_path):
    if kind == "array_record":  # of grey PNGs
        dataset = datasets.open_dataset("digits", "train", data_dir=str(tmp_path))
    if kind == "folder":
        with zipfile.ZipFile(dataset.source.archive.path) as archive:
            archive.extractall(tmp_path)
        dataset = datasets.open_dataset("folder", "train", path=str(tmp_path))
    batches = take(6, dataset, num_workers=2, num_threads=1)
    assert batches[0]["image"].shape == (8, 32, 32, 1 if kind == "array_record" else 3)
    assert_same(batches, take(6, dataset, num_threads=0))


@pytest.mark.parametrize("decoder", pillow.DECODERS)
def test_images_keep_their_labels_and_both_decoders_the_same_order(dataset, decoder):
    for batch, other in zip(take(6, dataset, decoder), take(6, dataset, "pillow"), strict=True):
        red = batch["image"][..., 0].mean((1, 2))
        np.testing.assert_array_equal(np.rint((red - 50) / 70), batch["label"])
        np.testing.assert_array_equal(batch["label"], other["label"])


@pytest.mark.parametrize("decoder", pillow.DECODERS)
def test_a_truncated_jpeg_is_refused_by_name_or_left_out_and_the_others_keep_their_labels(tmp_path, decoder):
    dataset = write(tmp_path / "photos.zip", damage=[(1, 2), (2, 3), (0, 6)])
    number = CLASSES * EACH  # one batch is one pass
    (batch,) = take(1, dataset, decoder, batch_size=number, on_error="skip")
    assert batch["mask"].sum() == number - 3
    red = batch["image"][..., 0].mean((1, 2))
    np.testing.assert_array_equal(np.rint((red - 50) / 70)[batch["mask"] == 1], batch["label"][batch["mask"] == 1])
    assert not batch["image"][batch["mask"] == 0].any()
    with pytest.raises(
        pillow.UnreadableImage, match=r"photos\.zip/train/c\d/[236]\.jpg: the \d+ bytes are not a whole"
    ):
        take(1, dataset, decoder, batch_size=number)


def average(image, rng):
    return np.full((2, 2, 3), image.mean(), np.uint8)


def test_a_function_of_ones_own_is_given_decoded_images(dataset):
    with pipeline.train_batches(dataset, batch_size=4, transform=average, seed=0) as batches:
        assert next(batches)["image"].shape == (4, 2, 2, 3)
