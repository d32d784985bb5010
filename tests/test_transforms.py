"""One image at a time, against torchvision, pixel for pixel, and against values worked out by hand."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import transforms

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


class TorchRandom:
    """Draws from PyTorch's global generator as torchvision does, so that both can be given the same numbers."""

    def __init__(self, torch):
        self.torch = torch

    def uniform(self, low, high):
        return self.torch.empty(1).uniform_(low, high).item()

    def integers(self, high):
        return self.torch.randint(0, high, size=(1,)).item()


# Decoding


@pytest.mark.parametrize("channels", [1, 3])
def test_decode_png_is_lossless(channels):
    image = noise(5, 9, channels)
    np.testing.assert_array_equal(transforms.decode(encode(image, "PNG"), channels), image)


def test_decode_converts_between_grey_and_rgb():
    grey = noise(4, 4, 1)
    np.testing.assert_array_equal(transforms.decode(encode(grey, "PNG"), 3), np.repeat(grey, 3, -1))
    assert transforms.decode(encode(noise(4, 4), "PNG"), 1).shape == (4, 4, 1)


def test_decode_leaves_exif_orientation_alone():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    assert transforms.decode(encode(noise(8, 16), "JPEG", exif=exif)).shape == (8, 16, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
def test_decode_refuses_truncated_images(kind):
    data = encode(noise(32, 32), kind)
    assert transforms.decode(data).shape == (32, 32, 3)
    with pytest.raises(transforms.UnreadableImage, match=r"the \d+ bytes are not a whole image \(.+\)"):
        transforms.decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_decode_refuses_what_is_no_image(data):
    with pytest.raises(transforms.UnreadableImage, match=rf"the {len(data)} bytes are not a whole image"):
        transforms.decode(data)


def test_decode_refuses_four_channels():
    with pytest.raises(ValueError, match=r"channels=4, but .* 1 \(grey\) or 3 \(RGB\)"):
        transforms.decode(b"", 4)


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
        np.testing.assert_array_equal(transforms.resize_shorter(image, size, interpolation), from_pil(resized))
        for crop in (size, size - 1, size - 4, size + 3):
            expected = from_pil(vision.CenterCrop(crop)(resized))
            np.testing.assert_array_equal(transforms.center_crop(from_pil(resized), crop), expected)


def test_eval_transform_equals_torchvision():
    vision = pytest.importorskip("torchvision.transforms")
    image = noise(75, 101)
    expected = vision.Compose([vision.Resize(37), vision.CenterCrop(32)])(to_pil(image))
    np.testing.assert_array_equal(transforms.eval_transform(32, 37)(image), from_pil(expected))


def test_eval_transform_leaves_fitting_images_alone():
    image = noise(32, 32)
    np.testing.assert_array_equal(transforms.eval_transform(32)(image), image)


# Augmentation


def test_random_resized_crop_equals_torchvision():
    torch = pytest.importorskip("torch")
    vision = pytest.importorskip("torchvision.transforms")
    reference = vision.RandomResizedCrop(24)
    for height, width in [(40, 61), (50, 50), (90, 3), (3, 90)]:  # the last two need the fall-back
        for seed in range(40):
            image = noise(height, width, seed=seed)
            torch.manual_seed(seed)
            expected = from_pil(reference(to_pil(image)))
            torch.manual_seed(seed)
            np.testing.assert_array_equal(transforms.random_resized_crop(image, TorchRandom(torch), 24), expected)


def test_pad_and_crop_takes_every_window_of_the_padded_image():
    image = np.arange(1, 13, dtype=np.uint8).reshape(2, 2, 3)
    padded = np.full((4, 4, 3), (100, 101, 102), np.uint8)
    padded[1:3, 1:3] = image
    windows = {padded[i : i + 2, j : j + 2].tobytes() for i in range(3) for j in range(3)}
    rng = np.random.default_rng(0)
    seen = {transforms.pad_and_crop(image, rng, 1, (100, 101, 102)).tobytes() for _ in range(200)}
    assert len(windows) == 9
    assert seen == windows


def test_random_flip_mirrors_half_of_the_images():
    image, rng = noise(2, 3), np.random.default_rng(0)
    results = [transforms.random_flip(image, rng).tobytes() for _ in range(1000)]
    assert set(results) == {image.tobytes(), image[:, ::-1].tobytes()}
    assert 430 < results.count(image.tobytes()) < 570  # within 4.4 standard deviations


@pytest.mark.parametrize("crop", transforms.CROPS)
@pytest.mark.parametrize("shape", [(16, 16, 1), (40, 30, 3), (7, 9, 3)])
def test_train_transform_is_a_picklable_function_of_image_and_rng(crop, shape):
    transform = transforms.train_transform(16, crop=crop, padding=2, fill=(3,))
    image = noise(*shape)
    before = image.copy()
    result = transform(image, np.random.default_rng(5))
    again = pickle.loads(pickle.dumps(transform))(image, np.random.default_rng(5))
    assert (result.shape, result.dtype) == ((16, 16, shape[-1]), np.uint8)
    np.testing.assert_array_equal(result, again)
    np.testing.assert_array_equal(image, before)


def test_train_transform_without_augmentation_is_evaluation():
    image = noise(40, 31)
    plain = transforms.train_transform(16, crop="none", flip=False)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, transforms.eval_transform(16)(image))


def test_eval_transform_pickles():
    transform = transforms.eval_transform(8, 9, "bicubic")
    assert pickle.loads(pickle.dumps(transform)) == transform


# Refusals


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"crop": "random"}, r"crop='random' is not known: use one of 'pad', 'resized', 'none'"),
        ({"padding": -1}, r"padding=-1 pixels must be 0 or more"),
        ({"fill": (0, 256, 0)}, r"fill=\(0, 256, 0\) must be numbers in 0\.\.255"),
        ({"fill": ()}, r"fill=\(\) must be numbers"),
        ({"image_size": 0}, r"image_size=0 must be a whole number of pixels, 1 or more"),
        ({"image_size": 32.0}, r"image_size=32\.0 must be a whole number"),
    ],
)
def test_train_transform_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        transforms.train_transform(**{"image_size": 32, **kwargs})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((-1,), r"image_size=-1 must be"),
        ((32, 31), r"resize_size=31 is less than image_size=32.*use None"),
        ((32, None, "nearest"), r"interpolation='nearest' is not known: use 'bilinear' or 'bicubic'"),
    ],
)
def test_eval_transform_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        transforms.eval_transform(*args)


def test_fill_must_fit_the_channels():
    transform = transforms.train_transform(8, fill=(1, 2))
    with pytest.raises(ValueError, match=r"fill=\(1, 2\) has 2 entries, but the image has 3 channels"):
        transform(noise(8, 8), np.random.default_rng(0))


def test_module_itself_needs_numpy_and_pillow_alone():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("alone", {transforms.__file__!r})
sys.modules["alone"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*sorted({{"jax", "grain", "tensorflow_datasets", "tensorflow", "torch", "sklearn", "cv2"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
