"""Opening, resizing and cropping one image, against torchvision and values worked out by hand."""

import io
import logging
import warnings

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.images import pillow

SIZES = [(8, 8), (31, 47), (47, 31), (33, 100), (7, 5), (64, 64), (75, 56)]


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze()).save(buffer, format=kind, **options)
    return buffer.getvalue()


def to_pil(image):
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def from_pil(image):
    return np.array(image).reshape(image.height, image.width, -1)


# Decoding


@pytest.mark.parametrize("channels", [1, 3])
def test_decode_png_is_lossless(channels):
    image = noise(5, 9, channels)
    np.testing.assert_array_equal(pillow.decode(encode(image, "PNG"), channels), image)


def test_decode_converts_between_grey_and_rgb():
    grey = noise(4, 4, 1)
    np.testing.assert_array_equal(pillow.decode(encode(grey, "PNG"), 3), np.repeat(grey, 3, -1))
    assert pillow.decode(encode(noise(4, 4), "PNG"), 1).shape == (4, 4, 1)


def test_decode_leaves_exif_orientation_alone():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    assert pillow.decode(encode(noise(8, 16), "JPEG", exif=exif)).shape == (8, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_decode_refuses_truncated_images(kind):
    data = encode(noise(32, 32), kind)
    assert pillow.decode(data).shape == (32, 32, 3)
    with pytest.raises(pillow.UnreadableImage, match=r"the \d+ bytes are not a whole image \(.+\)"):
        pillow.decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(pillow.UnreadableImage, match=rf"the {len(data)} bytes are not a whole image"):
        pillow.decode(data)


def test_decode_refuses_four_channels():
    with pytest.raises(ValueError, match=r"channels=4, but .* 1 \(grey\) or 3 \(RGB\)"):
        pillow.decode(b"", 4)


# Sizes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [5, 32, 37, 81])
def test_resize_and_crop_equal_torchvision(size, interpolation, channels):
    vision = pytest.importorskip("torchvision.transforms")
    resize = vision.Resize(size, interpolation=vision.InterpolationMode(interpolation))
    for height, width in SIZES:
        image = noise(height, width, channels)
        resized = resize(to_pil(image))
        np.testing.assert_array_equal(pillow.resize_shorter(image, size, interpolation), from_pil(resized))
        for crop in (size, size - 1, size - 4, size + 3):
            expected = from_pil(vision.CenterCrop(crop)(resized))
            np.testing.assert_array_equal(pillow.center_crop(from_pil(resized), crop), expected)


# Other kinds of images and of sources


def sixteen_bits(kind):
    values = np.array([[0, 255, 256], [257, 40000, 65535]], np.uint16)
    buffer = io.BytesIO()
    image = Image.fromarray(values.astype(np.int32) if kind == "TIFF" else values)
    assert image.mode == {"TIFF": "I", "PNG": "I;16"}[kind]
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_keep_the_high_byte_with_a_note(kind, channels, caplog):
    pillow._note_16_bits.cache_clear()
    expected = np.array([[0, 0, 1], [1, 156, 255]], np.uint8)[..., None]
    with caplog.at_level(logging.WARNING, pillow.__name__):
        decoded = pillow.decode(sixteen_bits(kind), channels)
        pillow.decode(sixteen_bits(kind), channels)
    np.testing.assert_array_equal(decoded, np.repeat(expected, channels, -1))
    assert [record.message for record in caplog.records] == [
        "16-bit images are scaled to 8 bits; PyTorch's pipelines would turn all grey values above 255 white"
    ]


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([[0, 65536]], np.int32), "grey values of 0 to 65536 do not fit into 16 bits"),
        (np.array([[-1, 5]], np.int32), "grey values of -1 to 5 do not fit"),
        (np.array([[0.5, 1.0]], np.float32), "floating-point numbers has no known range"),
    ],
)
def test_values_without_a_scale_are_refused(array, said):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="TIFF")
    with pytest.raises(pillow.UnreadableImage, match=said):
        pillow.decode(buffer.getvalue())


def test_transparency_changes_no_colour_and_warns_of_nothing():
    palette = Image.fromarray(noise(9, 9)).quantize(16)
    colours = np.array(palette.convert("RGB"))
    palette.info["transparency"] = bytes(range(16))
    buffer = io.BytesIO()
    palette.save(buffer, format="PNG")
    reopened = Image.open(io.BytesIO(buffer.getvalue()))
    assert isinstance(reopened.info["transparency"], bytes)
    np.testing.assert_array_equal(pillow.decode(buffer.getvalue()), colours)
    pillow.open_image(reopened)
    assert "transparency" in reopened.info  # the caller's image is left as it was


def test_a_path_bytes_a_pillow_image_and_an_array_are_the_same(tmp_path):
    array = noise(6, 7)
    (tmp_path / "x.png").write_bytes(encode(array, "PNG"))
    for source in (tmp_path / "x.png", str(tmp_path / "x.png"), encode(array, "PNG"), Image.fromarray(array), array):
        np.testing.assert_array_equal(pillow.to_array(pillow.open_image(source)), array)
    grey = pillow.to_array(pillow.open_image(array, 1))
    np.testing.assert_array_equal(pillow.to_array(pillow.open_image(grey[..., 0], 1)), grey)
    np.testing.assert_array_equal(pillow.to_array(pillow.open_image(grey, 3)), np.repeat(grey, 3, -1))


def test_a_path_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        pillow.open_image(tmp_path / "none.jpg")


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (noise(4, 4).astype(np.float32), TypeError, "must be uint8, 0..255, got float32"),
        (noise(4, 4, 2), ValueError, r"1, 3 or 4 channels\], got shape \(4, 4, 2\)"),
        (noise(4, 4)[None], ValueError, r"got shape \(1, 4, 4, 3\)"),
        (noise(0, 4), ValueError, r"got shape \(0, 4, 3\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(array, kind, said):
    with pytest.raises(kind, match=said):
        pillow.open_image(array)


def test_a_decompression_bomb_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(pillow.UnreadableImage, match=r"not to be opened: Image size \(400 pixels\).*MAX_IMAGE_PIXELS"):
        pillow.decode(encode(noise(20, 20), "PNG"))
    with warnings.catch_warnings():  # up to twice the limit Pillow only warns
        warnings.simplefilter("ignore")
        assert pillow.decode(encode(noise(12, 12), "PNG")).shape == (12, 12, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1)])
def test_a_line_is_refused_before_it_is_resized(height, width, monkeypatch):
    monkeypatch.setattr(pillow, "resize", lambda *_: pytest.fail("resized"))
    said = rf"{width} x {height} pixels, its shorter side resized to 256, would be 1024000 pixels long, more than 64 "
    with pytest.raises(pillow.UnreadableImage, match=said):
        pillow.resize_shorter(noise(height, width), 256)


def test_64_megapixels_are_the_limit():
    assert pillow.shorter_to(1, 976, 256) == (256, 249_856)  # 63,963,136 pixels
    with pytest.raises(pillow.UnreadableImage, match="64 megapixels"):
        pillow.shorter_to(1, 977, 256)
