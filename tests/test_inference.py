"""Probabilities and accuracies, against the network applied to one image at a time and counted by hand."""

import dataclasses
import functools
import io
import pickle
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax import BasicBlock, ResNet, inference
from resnet_jax.data.images.pillow import UnreadableImage
from resnet_jax.data.sources.base import Dataset
from resnet_jax.data.transforms import Preprocessing

CLASSES = 7
GREY = Preprocessing(8, 8, "bilinear", (0.3,), (0.4,))
RGB = Preprocessing(8, 10, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODEL = ResNet(BasicBlock, (1,), num_classes=CLASSES, stage_features=(8,), stem="cifar", stem_features=8)


@functools.cache
def variables_of(channels):
    shapes = jax.eval_shape(
        lambda x: MODEL.init(jax.random.key(0), x, train=False), jax.ShapeDtypeStruct((1, 8, 8, channels), jnp.float32)
    )
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: rng.uniform(-1, 1, leaf.shape).astype(np.float32) ** 2 + 0.01, shapes) | {
        "params": jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes["params"])
    }


@dataclasses.dataclass(frozen=True)
class Examples:
    """Arrays or bytes, with labels; where the image is None there is an example that cannot be read."""

    images: tuple
    labels: tuple

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        if self.images[index] is None:
            raise UnreadableImage("reading failed (on purpose)")
        return {"image": self.images[index], "label": self.labels[index]}

    def origin(self, index):
        return f"example {index}"


def dataset_of(images, labels, num_classes=CLASSES):
    names = tuple(f"name {i}" for i in range(num_classes))
    return Dataset("examples", "test", Examples(tuple(images), tuple(labels)), names, images[0].shape[-1])


def noise(count, channels=1, size=8):
    return np.random.default_rng(5).integers(256, size=(count, size, size, channels), dtype=np.uint8)


@functools.cache
def logits_by_hand(channels, count=37):
    """One image at a time, normalised in NumPy."""
    preprocessing, apply = GREY if channels == 1 else RGB, jax.jit(functools.partial(MODEL.apply, train=False))
    rows = []
    for image in noise(count, channels):
        x = (preprocessing.pixels(image) / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        rows.append(apply(variables_of(channels), x.astype(np.float32)[None])[0])
    return np.stack(rows)


def labels_at_rank(logits):
    """For each row the class of some place: 0, 1, ..., 6, 0, ... best first."""
    order = np.argsort(-logits, axis=-1)
    return [int(order[i, i % CLASSES]) for i in range(len(order))]


@pytest.mark.parametrize("batch_size", [1, 8, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_example_is_counted_once_and_right(batch_size, channels):
    preprocessing = GREY if channels == 1 else RGB
    dataset = dataset_of(noise(37, channels), labels_at_rank(logits_by_hand(channels)))
    seen = []
    result = inference.evaluate(
        MODEL,
        variables_of(channels),
        dataset,
        preprocessing,
        batch_size=batch_size,
        progress=lambda done, total: seen.append((done, total)),
    )
    # 37 = 5 * 7 + 2: the first place six times; places 0 to 4 in all but two of every seven.
    assert (result.count, result.correct, result.correct_top5) == (37, 6, 27)
    assert (result.top1, result.top5, result.unreadable) == (6 / 37, 27 / 37, ())
    assert seen == [(i + 1, 37) for i in range(37)]


def test_accuracy_equals_numpys():
    logits = logits_by_hand(1)
    labels = np.random.default_rng(0).integers(CLASSES, size=37)
    result = inference.evaluate(MODEL, variables_of(1), dataset_of(noise(37), labels), GREY, batch_size=10)
    assert result.correct == np.sum(np.argmax(logits, -1) == labels)
    assert result.correct_top5 == np.sum(np.any(np.argsort(-logits, -1)[:, :5] == labels[:, None], -1))


def test_each_example_and_the_confusions_equal_numpys():
    logits = logits_by_hand(1).astype(np.float64)
    labels = np.random.default_rng(0).integers(CLASSES, size=37)
    images = [*noise(37)]
    images[5] = None
    result = inference.evaluate(MODEL, variables_of(1), dataset_of(images, labels), GREY, batch_size=10)
    kept, row = np.delete(np.arange(37), 5), np.arange(36)
    powers = np.exp(logits - logits.max(-1, keepdims=True))[kept]
    probabilities, predicted = powers / powers.sum(-1, keepdims=True), np.argmax(logits, -1)[kept]
    for name, expected in (("index", kept), ("label", labels[kept]), ("predicted", predicted)):
        np.testing.assert_array_equal(getattr(result, name), expected)
    np.testing.assert_array_equal(result.rank, np.argsort(np.argsort(-powers, -1), -1)[row, labels[kept]])
    np.testing.assert_allclose(result.probability, probabilities.max(-1), rtol=1e-4)
    np.testing.assert_allclose(result.label_probability, probabilities[row, labels[kept]], rtol=1e-4, atol=1e-7)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (labels[kept], predicted), 1)
    np.testing.assert_array_equal(result.confusion, confusion)


def test_of_equal_logits_the_first_class_wins():
    logits = np.array([1.0, 5.0, 5.0, 0.0])
    assert [inference._rank(label, logits) for label in range(4)] == [2, 0, 1, 3]


def test_the_unreadable_are_named_and_not_counted():
    images = [*noise(10)]
    buffer = io.BytesIO()
    Image.fromarray(images[2][..., 0]).save(buffer, format="PNG")
    images[2], images[4], images[9] = buffer.getvalue(), buffer.getvalue()[:40], None
    labels = np.argmax(logits_by_hand(1)[:10], -1)
    result = inference.evaluate(MODEL, variables_of(1), dataset_of(images, labels), GREY, batch_size=4)
    assert (result.count, result.correct) == (8, 8)
    assert result.unreadable[0].startswith("example 4: the 40 bytes are not a whole image")
    assert result.unreadable[1:] == ("example 9: reading failed (on purpose)",)


def test_a_batch_of_unreadable_ones_alone():
    images = [*noise(4), None, None, *noise(1)]
    result = inference.evaluate(MODEL, variables_of(1), dataset_of(images, [0] * 7), GREY, batch_size=2)
    assert (result.count, len(result.unreadable)) == (5, 2)


@pytest.mark.parametrize("train", [None, True, False])
def test_predict_gives_probabilities_in_order_whatever_holds_the_image(train, tmp_path):
    images = noise(5, 3, size=13)
    Image.fromarray(images[1]).save(tmp_path / "x.png")
    buffer = io.BytesIO()
    Image.fromarray(images[2]).save(buffer, format="BMP")
    mixed = [images[0], tmp_path / "x.png", buffer.getvalue(), Image.fromarray(images[3]), images[4]]
    probabilities = inference.predict(MODEL.clone(train=train), variables_of(3), mixed, RGB, batch_size=2)
    inputs = np.stack([RGB(image) for image in images])
    expected = jax.nn.softmax(jax.jit(functools.partial(MODEL.apply, train=False))(variables_of(3), inputs))
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


def test_grey_images_for_an_rgb_network():
    grey = noise(2, 1)
    of_grey = inference.predict(MODEL, variables_of(3), [*grey], RGB)
    np.testing.assert_array_equal(of_grey, inference.predict(MODEL, variables_of(3), [*np.repeat(grey, 3, -1)], RGB))


def test_predictions_go_on_after_an_error_and_predict_does_not(tmp_path):
    mixed = [noise(1)[0], tmp_path / "none.png", b"nothing", noise(1)[0]]
    rows = list(inference.predictions(MODEL, variables_of(1), mixed, GREY))
    assert isinstance(rows[1], FileNotFoundError)
    assert isinstance(rows[2], UnreadableImage)
    np.testing.assert_array_equal(rows[0], rows[3])
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        inference.predict(MODEL, variables_of(1), mixed, GREY)


def test_one_compilation_serves_all_batches_and_calls(caplog):
    def compiled(model, count, preprocessing):
        caplog.clear()
        inference.predict(model, variables_of(1), [*noise(count)], preprocessing, batch_size=4)
        return sum(record.getMessage().startswith("Compiling jit(_logits)") for record in caplog.records)

    with jax.log_compiles():
        assert compiled(MODEL.clone(num_classes=CLASSES), 9, GREY) <= 1
        assert compiled(MODEL.clone(num_classes=CLASSES), 6, pickle.loads(pickle.dumps(GREY))) == 0
        assert compiled(MODEL.clone(num_classes=CLASSES), 3, GREY) == 1  # smaller batches are another program


class SlowExamples(Examples):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)


def test_no_thread_outlives_an_interrupted_evaluation():
    dataset = dataclasses.replace(dataset_of(noise(1), [0]), source=SlowExamples(tuple(noise(37)), (0,) * 37))
    before = threading.active_count()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inference.evaluate(MODEL, variables_of(1), dataset, GREY, batch_size=4, progress=stop)
    assert threading.active_count() == before


def evaluate(
    model=MODEL, variables=None, images=None, labels=(0, 1), num_classes=CLASSES, preprocessing=GREY, **kwargs
):
    dataset = dataset_of([*noise(2)] if images is None else images, labels, num_classes)
    return inference.evaluate(model, variables or variables_of(1), dataset, preprocessing, **kwargs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": 8}, r"the network has 7 classes, but 'examples' has 8"),
        ({"labels": (0, 7)}, r"example 1: label 7, but 'examples' has 7 classes, 0\.\.6"),
        ({"labels": (-1, 0)}, r"example 0: label -1, but"),
        ({"preprocessing": RGB}, r"takes images of 1 channels, but mean=\(0\.485.* are for 3"),
        ({"batch_size": 0}, r"batch_size=0 must be 1 or more"),
        ({"model": MODEL.clone(num_classes=0), "num_classes": 0}, r"has no classes"),
        ({"model": MODEL.clone(global_pool="none")}, r"gives \(2, 8, 8, 7\) and not logits"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        evaluate(**arguments)


def test_nothing_to_read_is_refused():
    unreadable = Dataset("gone", "test", Examples((None,) * 3, (0,) * 3), tuple("abcdefg"), 1)
    with pytest.raises(ValueError, match=r"none of the 3 examples of 'gone' can be read.*on purpose"):
        inference.evaluate(MODEL, variables_of(1), unreadable, GREY)
    with pytest.raises(ValueError, match="there are no images"):
        inference.predict(MODEL, variables_of(1), [], GREY)
