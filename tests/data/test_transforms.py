"""One image at a time, against torchvision, pixel for pixel, and against values worked out by hand."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import transforms
from resnet_jax.data.augment import crops
from resnet_jax.data.augment.autoaugment import create_augmentation

PACKAGE = pathlib.Path(transforms.__file__).parent.parent


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)


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


# Evaluation


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


def test_policy_jitter_and_erasing_follow_crop_and_flip_in_this_order():
    settings = {"crop": "resized", "fill": (124, 116, 104)}
    changes = {"augment": "trivial", "color_jitter": (0.4, 0.4, 0.4, 0.1), "erase": 1.0}
    transform = pickle.loads(pickle.dumps(transforms.train_transform(16, **settings, **changes)))
    for seed in range(20):
        image, rng = noise(40, 30, seed=seed), np.random.default_rng(seed)
        expected = transforms.train_transform(16, **settings)(image, rng)
        expected = create_augmentation("trivial", color_jitter=changes["color_jitter"])(expected, rng)
        expected = crops.random_erase(expected, rng, 1.0, (124, 116, 104))
        np.testing.assert_array_equal(transform(image, np.random.default_rng(seed)), expected)


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


def test_a_colour_must_fit_the_channels_of_a_policy():
    transform = transforms.train_transform(8, augment="trivial", augment_fill="mean", fill=(1, 2, 3), crop="none")
    with pytest.raises(ValueError, match=r"fill=\(1, 2, 3\) has 3 entries, but the image has 1 channels"):
        [transform(noise(8, 8, 1), np.random.default_rng(seed)) for seed in range(30)]


def test_images_and_transforms_need_numpy_and_pillow_alone():
    code = f"""
import sys, types
for name, folder in (("resnet_jax", {str(PACKAGE)!r}), ("resnet_jax.data", {str(PACKAGE / "data")!r})):
    sys.modules[name] = types.ModuleType(name)  # without what its __init__ imports
    sys.modules[name].__path__ = [folder]
import resnet_jax.data.transforms
print(*sorted({{"jax", "grain", "tensorflow_datasets", "tensorflow", "torch", "sklearn", "cv2"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
