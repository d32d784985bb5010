"""The fast way through a JPEG: a window cut before decoding has the very pixels of the whole, and damage is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import transforms
from resnet_jax.data.augment import crops
from resnet_jax.data.images import jpeg, opencv, pillow

pytest.importorskip("cv2")

KINDS = {  # name -> channels, and Pillow's options
    "4:4:4": (3, {"subsampling": "4:4:4"}),
    "4:2:2": (3, {"subsampling": "4:2:2"}),
    "4:2:0": (3, {"subsampling": "4:2:0"}),
    "grey": (1, {}),
    "progressive": (3, {"progressive": True}),
    "restarts": (3, {"restart_marker_rows": 1}),
    "optimised": (3, {"optimize": True, "quality": 30}),
    "rgb": (3, {"keep_rgb": True, "subsampling": "4:4:4"}),
}
CUT = [name for name in KINDS if name not in ("progressive", "restarts")]


def photo(height, width, channels=3, seed=0):
    """Smooth shapes with noise: large and small coefficients, and colours that differ from row to row."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] * 9 / max(height, width)
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(0.2, 2, size=(channels, 2))]
    return np.clip(127 + 90 * np.stack(waves, -1) + rng.normal(0, 12, (height, width, channels)), 0, 255).astype(
        np.uint8
    )


def encode(image, kind="JPEG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        buffer, kind, **{"quality": 90, **options}
    )
    return buffer.getvalue()


def jpeg_of(name, height=99, width=131, seed=0):
    channels, options = KINDS[name]
    return encode(photo(height, width, channels, seed), **options)


def window_of(data, window, size=10_000, channels=3):
    return opencv.decode(data, opencv.read_header(data, channels), opencv.place(window, size), channels)


# The header


@pytest.mark.parametrize("name", KINDS)
def test_the_header_is_what_pillow_reads(name):
    header = jpeg.read_header(jpeg_of(name))
    assert (header.height, header.width, header.channels) == (99, 131, KINDS[name][0])
    assert header.sampling == (2 if name in ("4:2:0", "progressive", "restarts", "optimised") else 1)
    assert header.one_scan == (name != "progressive")


def test_what_is_not_a_plain_jpeg_is_left_to_pillow():
    cmyk = io.BytesIO()
    Image.new("CMYK", (8, 8), (10, 20, 30, 40)).save(cmyk, "JPEG")
    others = [encode(photo(8, 8), kind) for kind in ("PNG", "BMP", "WEBP", "GIF", "TIFF")]
    twelve_bits = bytearray(jpeg_of("grey"))
    twelve_bits[jpeg.read_header(bytes(twelve_bits)).height_at - 1] = 12
    for data in [cmyk.getvalue(), bytes(twelve_bits), *others, b"", b"\xff\xd8", b"text"]:
        assert opencv.read_header(data, 3) is None
    assert opencv.read_header(jpeg_of("4:2:0"), 1) is None  # colour in a grey data set: grey is Pillow's
    data = jpeg_of("grey")
    assert all(jpeg.read_header(data[:end]) is None for end in range(jpeg.read_header(data).pixels_at + 1))


def test_an_image_too_large_is_left_to_pillows_refusal(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert opencv.read_header(jpeg_of("4:2:0"), 3) is None
    transform = transforms.train_transform(16, crop="resized", decoder="opencv")
    with pytest.raises(pillow.UnreadableImage, match="MAX_IMAGE_PIXELS"):
        transform.from_encoded(jpeg_of("4:2:0"), 3, np.random.default_rng(0))


def test_filling_before_a_marker_is_read_over():
    data = jpeg_of("4:2:0")
    at = jpeg.read_header(data).height_at - 5  # of the frame's 0xff
    filled = data[:at] + b"\xff\xff" + data[at:-2] + b"\xff\xff" + data[-2:]
    assert jpeg.read_header(filled).height == 99
    np.testing.assert_array_equal(window_of(filled, (50, 3, 49, 100)), pillow.decode(data)[50:99, 3:103])


# A window


@pytest.mark.parametrize("name", KINDS)
def test_a_window_has_the_very_pixels_of_the_whole_image(name, capfd):
    rng = np.random.default_rng(1)
    for height, width in [(96, 128), (99, 131), (17, 200), (8, 8), (1, 1), (203, 33)]:
        data = jpeg_of(name, height, width, seed=height)
        whole = pillow.decode(data)
        windows = [transforms.sample_window(height, width, rng, (0.02, 1.0), (0.1, 10.0)) for _ in range(40)]
        for top, left, h, w in [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1), *windows]:
            found = window_of(data, (top, left, h, w))
            np.testing.assert_array_equal(found, whole[top : top + h, left : left + w], strict=True)
    assert capfd.readouterr().err == ""  # of libjpeg


@pytest.mark.parametrize("name", CUT)
def test_rows_below_the_window_are_not_decoded(name):
    data = jpeg_of(name, 400, 64)
    header = jpeg.read_header(data)
    block = 8 * header.sampling
    assert jpeg.cut(data, header, 1)[1] == block
    assert jpeg.cut(data, header, block)[1] == 2 * block  # the next row of colours is blended in
    assert jpeg.cut(data, header, 399)[1] == 400


@pytest.mark.parametrize("name", ["progressive", "restarts"])
def test_others_are_decoded_whole(name):
    data = jpeg_of(name, 400, 64)
    assert jpeg.cut(data, jpeg.read_header(data), 1)[1] == 400


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_large_window_is_decoded_at_a_fraction_of_its_size(name, reduction, capfd):
    data = jpeg_of(name, 533, 401)
    whole = pillow.decode(data).astype(float)
    for top, left, height, width in [(0, 0, 533, 401), (100, 50, 300, 256), (5, 7, 257, 259)]:
        found = window_of(data, (top, left, height, width), size=256 // reduction)
        assert abs(found.shape[0] - height / reduction) <= 1
        assert abs(found.shape[1] - width / reduction) <= 1
        trimmed = found[: height // reduction - 1, : width // reduction - 1].astype(float)
        rows, columns = (
            np.arange(n) * reduction + start for n, start in zip(trimmed.shape[:2], (top, left), strict=True)
        )
        mean = np.mean([whole[rows + i][:, columns + j] for i in range(reduction) for j in range(reduction)], axis=0)
        assert abs(trimmed - mean).mean() < 8  # moved by up to half a pixel; another place would be 60 or more off
    assert capfd.readouterr().err == ""


def test_exif_turns_no_window():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(40, 80), exif=exif)
    np.testing.assert_array_equal(window_of(data, (0, 0, 40, 80)), pillow.decode(data))


def test_grey_in_a_colour_data_set_and_in_a_grey_one():
    data = jpeg_of("grey")
    grey = window_of(data, (3, 4, 50, 60), channels=1)
    assert grey.shape == (50, 60, 1)
    np.testing.assert_array_equal(grey, pillow.decode(data, 1)[3:53, 4:64])
    np.testing.assert_array_equal(window_of(data, (3, 4, 50, 60), channels=3), np.repeat(grey, 3, -1))


# Damage


def places(data):
    """Where to cut: in the header, at its end, in the pixels, near the end and in the end marker."""
    start = jpeg.read_header(data).pixels_at
    return [1, 3, 100, start - 1, start, start + 1, start + 50, len(data) // 2, *range(len(data) - 40, len(data))]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("decoder", pillow.DECODERS)
def test_a_truncated_file_is_never_half_an_image(name, decoder, capfd):
    data = jpeg_of(name)
    transform = transforms.train_transform(16, crop="resized", decoder=decoder)
    assert transform.from_encoded(data, 3, np.random.default_rng(0)).shape == (16, 16, 3)
    for end in places(data):
        with pytest.raises(pillow.UnreadableImage, match=rf"the {end} bytes are not a whole image"):
            transform.from_encoded(data[:end], 3, np.random.default_rng(0))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [*CUT, "restarts"])
def test_pixels_that_stop_before_the_end_marker_are_refused(name, capfd):
    data = jpeg_of(name)
    with pytest.raises(pillow.UnreadableImage, match="pixels end too early"):
        window_of(data[: len(data) // 2] + jpeg.END, (0, 0, 99, 131))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", [*CUT, "restarts"])
def test_a_marker_among_the_pixels_is_damage(name):
    data = bytearray(jpeg_of(name))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\x55"
    with pytest.raises(pillow.UnreadableImage, match="a marker lies among the JPEG's pixels"):
        window_of(bytes(data), (0, 0, 99, 131))


# Both decoders


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(99, 131), (375, 500), (900, 700), (60, 40)])
def test_both_decoders_take_the_same_window_and_nearly_the_same_pixels(height, width, channels):
    data = encode(photo(height, width, channels), quality=95)
    opencv_one, pillow_one = (
        transforms.train_transform(112, crop="resized", decoder=decoder) for decoder in ("opencv", "pillow")
    )
    differences, flipped = [], []
    for seed in range(20):
        ours, theirs = (t.from_encoded(data, channels, np.random.default_rng(seed)) for t in (opencv_one, pillow_one))
        assert ours.shape == theirs.shape == (112, 112, channels)
        differences.append(abs(ours.astype(int) - theirs).mean())
        flipped.append(abs(ours[:, ::-1].astype(int) - theirs).mean())
    assert max(differences) < 4  # levels in 255
    assert np.mean(differences) < 2
    assert min(flipped) > 5 * max(differences)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "CMYK", "16 bits", "palette"])
def test_other_formats_are_the_same_image_to_both(kind):
    if kind == "CMYK":
        buffer = io.BytesIO()
        Image.fromarray(photo(64, 64)).convert("CMYK").save(buffer, "JPEG")
        data = buffer.getvalue()
    elif kind == "16 bits":
        data = encode(photo(64, 64, 1).astype(np.uint16) * 257, "PNG")
    elif kind == "palette":
        buffer = io.BytesIO()
        Image.fromarray(photo(64, 64)).quantize(32).save(buffer, "GIF")
        data = buffer.getvalue()
    else:
        data = encode(photo(64, 64), kind)
    transform = transforms.train_transform(32, crop="resized", decoder="opencv")
    from_file = transform.from_encoded(data, 3, np.random.default_rng(4))
    np.testing.assert_array_equal(from_file, transform(pillow.decode(data), np.random.default_rng(4)))


@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_as_near_to_pillow_as_area_averaging_and_nearer_than_interpolation(channels):
    import cv2

    for side in (60, 112, 140, 170, 200, 224, 300, 500):
        image = photo(side, side, channels, seed=side)
        expected = pillow.resize(image, 112, 112, "bilinear").astype(int)
        plain = cv2.resize(image, (112, 112)).reshape(112, 112, channels)
        ours = abs(opencv.resize(image, 112).astype(int) - expected).mean()
        assert ours < 2
        if side > 150:
            assert ours < 0.5 * abs(plain.astype(int) - expected).mean()


@pytest.mark.parametrize("name", ["4:2:0", "grey"])
@pytest.mark.parametrize("shape", [(50, 40), (90, 101), (150, 80), (131, 99)])  # larger, smoothed, averaged, at a half
def test_an_image_is_written_where_it_belongs(name, shape):
    data, channels = jpeg_of(name, *shape), KINDS[name][0]
    transform = transforms.train_transform(47, crop="resized", crop_scale=(0.9, 1), decoder="opencv")
    mirrored = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        window = crops.sample_window(*shape, rng, (0.9, 1))
        expected = opencv.resize(window_of(data, window, 47, channels), 47)
        mirrored.add(mirror := rng.random() < 0.5)
        room = np.zeros((47, 47, channels), np.uint8)
        assert transform.begin_encoded(data, channels, np.random.default_rng(seed))(room) is room
        np.testing.assert_array_equal(room, expected[:, ::-1] if mirror else expected)
        np.testing.assert_array_equal(room, transform.from_encoded(data, channels, np.random.default_rng(seed)))
    assert mirrored == {True, False}


@pytest.mark.parametrize("channels", [1, 3])
def test_a_window_too_large_for_the_room_of_a_thread_is_resized_alike(channels, monkeypatch):
    image = photo(150, 170, channels)
    expected = opencv.resize(image, 112)
    monkeypatch.setattr(opencv._scratch, "room", np.empty(image.size - 1, np.uint8))
    np.testing.assert_array_equal(opencv.resize(image, 112), expected)


def test_resizing_leaves_a_plain_colour_alone():
    for side in (1, 7, 60, 120, 150, 223, 225, 700):
        assert set(opencv.resize(np.full((side, side + 3, 3), 201, np.uint8), 112).ravel()) == {201}


def test_the_decoder_is_resolved_by_name_and_refused_by_name(monkeypatch):
    assert [pillow.resolve_decoder(name) for name in ("auto", "opencv", "pillow")] == ["opencv", "opencv", "pillow"]
    with pytest.raises(ValueError, match="decoder='cv2' is not known: use 'auto', 'opencv' or 'pillow'"):
        pillow.resolve_decoder("cv2")
    with pytest.raises(ValueError, match="decoder='auto' is not known here: use 'opencv' or 'pillow', or what pillow"):
        transforms.train_transform(8, decoder="auto")
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    assert pillow.resolve_decoder("auto") == "pillow"
    with pytest.raises(ImportError, match="needs OpenCV, which cannot be imported.*pip install opencv-python-headless"):
        pillow.resolve_decoder("opencv")
    with pytest.raises(ImportError, match="needs OpenCV"):
        transforms.train_transform(8, crop="resized", decoder="opencv")
