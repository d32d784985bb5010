"""Evaluation preprocessing against torchvision's and timm's, on images of every kind: equal in uint8, then to 1e-6."""

import functools
import io
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import transforms
from resnet_jax.data.transforms import Preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PAIRS = [(224, 256), (224, 232), (176, 176), (96, 97), (64, 48)]  # crop, resize: the last leaves a black frame
CROP_PCTS = [0.875, 0.9, 0.95, 1.0, 0.965]

# Name -> (mode to save in, format). "P:..." has a transparency of that type.
KINDS = {
    "rgb jpeg": ("RGB", "JPEG"),
    "rgb png": ("RGB", "PNG"),
    "rgb webp": ("RGB", "WEBP"),
    "rgb bmp": ("RGB", "BMP"),
    "rgb png, one colour transparent": ("RGB:colour", "PNG"),
    "grey png": ("L", "PNG"),
    "grey jpeg": ("L", "JPEG"),
    "1-bit png": ("1", "PNG"),
    "palette png": ("P", "PNG"),
    "palette png, alphas": ("P:alphas", "PNG"),
    "palette gif, one index transparent": ("P:index", "GIF"),
    "grey and alpha png": ("LA", "PNG"),
    "alpha png": ("RGBA", "PNG"),
    "alpha webp": ("RGBA", "WEBP"),
    "cmyk jpeg": ("CMYK", "JPEG"),
    "cmyk tiff": ("CMYK", "TIFF"),
}
TRANSPARENCIES = {"": None, "colour": (10, 20, 30), "alphas": bytes(range(0, 256, 2)), "index": 3}
SIZES = [(40, 40), (57, 43), (331, 500), (40, 777)]  # height, width
BIG = [(4000, 3000), (40, 4000)]


def picture(height, width, kind, orientation=0):
    """The bytes of a file: coarse colours under noise, so that neither flat nor noisy areas are alone."""
    rng = np.random.default_rng((height, width, len(kind)))
    coarse = Image.fromarray(rng.integers(256, size=(5, 7, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.integers(64, size=(height, width, 3), dtype=np.uint8)
    image = Image.fromarray(np.array(coarse) // 4 * 3 + grain)
    (mode, _, transparency), format = KINDS[kind][0].partition(":"), KINDS[kind][1]
    image = image.quantize(128) if mode == "P" else image.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(grain[..., 0] * 4))
    options = {"transparency": TRANSPARENCIES[transparency]} if transparency else {}
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@functools.cache
def pictures():
    """More than 60 files."""
    small = [picture(*size, kind) for kind in KINDS for size in SIZES]
    return small + [picture(61, 90, "rgb jpeg", orientation=i) for i in range(1, 9)]


def test_there_are_enough_and_of_every_mode():
    opened = [Image.open(io.BytesIO(data)) for data in pictures()]
    assert len(opened) + len(BIG) >= 60
    assert {image.mode for image in opened} == {"RGB", "L", "1", "P", "LA", "RGBA", "CMYK"}
    assert sum(image.getexif().get(0x0112, 1) > 1 for image in opened) == 7
    assert {type(image.info.get("transparency")) for image in opened} == {type(None), tuple, bytes, int}


def rgb(data):
    image = Image.open(io.BytesIO(data))
    image.info.pop("transparency", None)  # no pixel of it: Pillow would warn
    return image.convert("RGB")


def channels_last(tensor):
    return np.moveaxis(tensor.numpy(), 0, -1)


def check(preprocessing, data, plain, normalizing):
    """Against two forms of a reference: one without normalising (uint8 or 0..1), and the whole of it."""
    image = rgb(data)
    expected = channels_last(plain(image))
    if expected.dtype != np.uint8:
        expected = np.rint(expected * 255).astype(np.uint8)
    pixels = preprocessing.pixels(data)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_allclose(preprocessing.normalize(pixels), channels_last(normalizing(image)), rtol=0, atol=1e-6)


def torchvision_pair(crop, resize):
    presets = pytest.importorskip("torchvision.transforms._presets")
    preset = functools.partial(presets.ImageClassification, crop_size=crop, resize_size=resize)
    return Preprocessing(crop, resize, "bilinear", MEAN, STD), preset(mean=[0.0] * 3, std=[1.0] * 3), preset()


def timm_pair(size, crop_pct, interpolation):
    data = pytest.importorskip("timm.data")
    create = functools.partial(
        data.create_transform, size, is_training=False, crop_pct=crop_pct, interpolation=interpolation
    )
    ours = Preprocessing(size, int(size / crop_pct), interpolation, (0.5,) * 3, STD)
    return ours, create(normalize=False), create(mean=(0.5,) * 3, std=STD)


@pytest.mark.parametrize(("crop", "resize"), PAIRS)
def test_equals_torchvision(crop, resize):
    ours, *theirs = torchvision_pair(crop, resize)
    for data in pictures() if (crop, resize) == PAIRS[0] else pictures()[PAIRS.index((crop, resize)) :: 4]:
        check(ours, data, *theirs)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("crop_pct", CROP_PCTS)
def test_equals_timm(crop_pct, interpolation):
    ours, *theirs = timm_pair(128, crop_pct, interpolation)
    i = CROP_PCTS.index(crop_pct)
    for data in pictures() if i == 0 else pictures()[i - 1 :: 4]:
        check(ours, data, *theirs)


@pytest.mark.parametrize(("height", "width"), BIG)
def test_big_images_equal_both(height, width):
    data = picture(height, width, "rgb jpeg")
    for ours, *theirs in (torchvision_pair(224, 256), timm_pair(288, 0.95, "bicubic")):
        check(ours, data, *theirs)


def test_a_frame_of_black_is_added_where_the_resized_image_is_smaller():
    framed = Preprocessing(8, 4, "bilinear", MEAN, STD).pixels(np.full((4, 4, 3), 200, np.uint8))
    assert (framed[2:6, 2:6] == 200).all()
    assert framed.sum() == 200 * 4 * 4 * 3


def test_one_channel_of_mean_makes_a_grey_input():
    grey = Preprocessing(8, 8, "bilinear", (0.25,), (0.5,))
    image = np.full((8, 8), 51, np.uint8)
    result = grey(image)
    assert (result.shape, result.dtype) == ((8, 8, 1), np.float32)
    np.testing.assert_allclose(result, (0.2 - 0.25) / 0.5, rtol=1e-6)


def test_normalize_takes_batches_of_numpy_and_of_jax():
    preprocessing = Preprocessing(4, 4, "bilinear", MEAN, STD)
    batch = np.random.default_rng(0).integers(256, size=(2, 4, 4, 3), dtype=np.uint8)
    expected = (batch / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(preprocessing.normalize(batch), expected, rtol=1e-5, atol=1e-6)
    on_device = preprocessing.normalize(jnp.asarray(batch))
    np.testing.assert_allclose(on_device, preprocessing.normalize(batch), rtol=0, atol=1e-6)


def test_a_call_is_the_normalized_pixels():
    preprocessing = Preprocessing(32, 40, "bicubic", MEAN, STD)
    data = picture(57, 43, "rgb png")
    np.testing.assert_array_equal(preprocessing(data), preprocessing.normalize(preprocessing.pixels(data)))
    assert preprocessing(data).dtype == np.float32


def test_it_pickles_and_hashes():
    preprocessing = Preprocessing(224, 256, "bicubic", MEAN, STD)
    assert pickle.loads(pickle.dumps(preprocessing)) == preprocessing
    assert hash(preprocessing) == hash(Preprocessing(224, 256, "bicubic", MEAN, STD))


def test_an_unreadable_file_is_named(tmp_path):
    preprocessing = Preprocessing(224, 256, "bilinear", MEAN, STD)
    cut, line = tmp_path / "cut.jpg", tmp_path / "line.png"
    cut.write_bytes(picture(57, 43, "rgb jpeg")[:400])
    Image.new("RGB", (4000, 1)).save(line)
    with pytest.raises(transforms.UnreadableImage, match=r"/cut\.jpg: the 400 bytes are not a whole image \(.+\)"):
        preprocessing.pixels(cut)
    with pytest.raises(transforms.UnreadableImage, match=r"/line\.png: an image of 4000 x 1 pixels"):
        preprocessing(str(line))


def test_a_line_is_refused():
    with pytest.raises(transforms.UnreadableImage, match="1024000 pixels long"):
        Preprocessing(224, 256, "bilinear", MEAN, STD).pixels(np.zeros((1, 4000, 3), np.uint8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 0}, r"image_size=0 must be a whole number of pixels"),
        ({"resize_size": 2.5}, r"resize_size=2\.5 must be"),
        ({"interpolation": "lanczos"}, r"interpolation='lanczos' is not known: use 'bilinear' or 'bicubic'"),
        ({"mean": (0.5,)}, r"mean=\(0\.5,\) and std=.* must both have 1 entry \(grey\) or 3"),
        ({"mean": (0.5,) * 2, "std": (1.0,) * 2}, r"must both have"),
        ({"std": (0.2, 0.0, 0.2)}, r"no std may be 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    fields = {"image_size": 8, "resize_size": 8, "interpolation": "bilinear", "mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match=said):
        Preprocessing(**(fields | changes))
