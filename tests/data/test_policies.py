"""What the policies draw, against torchvision and timm: the same from the same random numbers, and as often."""

import collections
import dataclasses
import functools
import random

import numpy as np
import pytest
from test_operators import picture
from test_transforms import TorchRandom

from resnet_jax.configs import default
from resnet_jax.data import transforms
from resnet_jax.data.augment import autoaugment, crops, operators, policies
from resnet_jax.data.images.pillow import from_array, to_array
from resnet_jax.training import inputs

DRAWS = 10_000
HEIGHT, WIDTH = 61, 224


class MoreTorchRandom(TorchRandom):
    """With the draws that torchvision's policies make."""

    def integers(self, high, size=1):
        drawn = self.torch.randint(high, (size,))
        return drawn.item() if size == 1 else drawn.numpy()

    def random(self, size=1):
        drawn = self.torch.rand(size)
        return drawn.item() if size == 1 else drawn.numpy()

    def permutation(self, size):
        return self.torch.randperm(size).numpy()


@pytest.fixture
def rng():
    return MoreTorchRandom(pytest.importorskip("torch"))


@pytest.fixture
def vision():
    return pytest.importorskip("torchvision.transforms")


def ours(name, **kwargs):
    return autoaugment.create_augmentation(name, **kwargs).policies[0]


# Ours, and the arguments of torchvision's class
TORCHVISION = {
    "trivial": (ours("trivial"), "TrivialAugmentWide", {}),
    "rand": (ours("rand"), "RandAugment", {}),
    "rand-3-14": (ours("rand", num_ops=3, magnitude=14), "RandAugment", {"num_ops": 3, "magnitude": 14}),
    "auto": (ours("auto"), "AutoAugment", {}),
    "auto_cifar10": (ours("auto_cifar10"), "AutoAugment", {"policy": "cifar10"}),
}


@functools.cache
def drawn_by_torchvision(name):
    """The operations of torchvision's policy for each of `DRAWS` images, from PyTorch's seed 1."""
    pytest.importorskip("torch").manual_seed(1)
    vision = pytest.importorskip("torchvision.transforms")
    _, kind, kwargs = TORCHVISION[name]
    if "policy" in kwargs:
        kwargs = {"policy": vision.AutoAugmentPolicy(kwargs["policy"])}
    policy, drawn = getattr(vision, kind)(**kwargs), []
    image = from_array(np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    def note(image, *operation, **_):
        drawn[-1].append(operation)
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision.autoaugment, "_apply_op", note)
        # 14 tensors, the same for each image of this size.
        patch.setattr(policy, "_augmentation_space", functools.cache(policy._augmentation_space))
        for _ in range(DRAWS):
            drawn.append([])
            policy(image)
    return drawn


@pytest.mark.parametrize("name", TORCHVISION)
def test_policies_draw_what_torchvision_draws_from_the_same_random_numbers(rng, name):
    expected = drawn_by_torchvision(name)
    rng.torch.manual_seed(1)
    for operations in expected:
        assert TORCHVISION[name][0](rng, HEIGHT, WIDTH) == operations


def test_magnitudes_are_torchvisions_to_the_last_bit_for_every_size(vision):
    for size in range(16, 320, 3):
        for bins, policy in ((31, vision.RandAugment()), (10, vision.AutoAugment())):
            expected = policy._augmentation_space(bins, (size, size + 7))
            for name, values in policies.magnitudes(bins, size, size + 7).items():
                if values is not None:
                    np.testing.assert_array_equal(values, expected[name][0].numpy(), name)


def chi_square(counts, others):
    """Of two samples of the same size, and its degrees of freedom; categories rarer than 5 in both count as one."""
    keys = counts.keys() | others.keys()
    pairs = np.array([(counts[key], others[key]) for key in keys])
    rare = pairs.sum(1) < 10
    pairs = np.vstack([pairs[~rare], pairs[rare].sum(0)])
    pairs = pairs[pairs.sum(1) > 0]
    return ((pairs[:, 0] - pairs[:, 1]) ** 2 / pairs.sum(1)).sum(), len(pairs) - 1


def assert_as_often(counts, others):
    statistic, freedom = chi_square(counts, others)
    # Four standard deviations above the mean of the distribution.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom), (counts, others)


def counted(lists):
    return collections.Counter((name, round(float(magnitude), 3)) for drawn in lists for name, magnitude in drawn)


@pytest.mark.parametrize("name", TORCHVISION)
def test_operations_are_drawn_as_often_as_by_torchvision(name):
    expected, rng = drawn_by_torchvision(name), np.random.default_rng(3)
    assert_as_often(counted(TORCHVISION[name][0](rng, HEIGHT, WIDTH) for _ in range(DRAWS)), counted(expected))


FACTORS = ("Color", "Contrast", "Brightness", "Sharpness")  # timm's arguments are 1 + magnitude
UNITS = dict.fromkeys(FACTORS, 0.09) | {"Rotate": 3.0, "ShearX": 0.03, "ShearY": 0.03}  # magnitude of level 1
UNITS |= {"TranslateXRel": 0.045, "TranslateYRel": 0.045}


@pytest.mark.parametrize("name", ["rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd2-inc1", "rand-m6-inc1"])
def test_operations_are_drawn_as_often_as_by_timm(monkeypatch, name):
    timm = pytest.importorskip("timm.data.auto_augment")
    drawn = []

    def note(operator):
        def noted(image, *arguments, **_):
            drawn.append((operator, *(arguments or (0.0,))))
            return image

        return noted

    for operator in timm._RAND_INCREASING_TRANSFORMS:
        monkeypatch.setitem(timm.NAME_TO_OP, operator, note(operator.removesuffix("Increasing")))
    random.seed(4)
    np.random.seed(4)
    transform = timm.rand_augment_transform(name, {})
    for _ in range(DRAWS):
        transform(from_array(np.zeros((4, 4, 3), np.uint8)))
    expected = [(operator, float(value) - (operator in FACTORS)) for operator, value in drawn]
    rng, policy = np.random.default_rng(5), ours(name)
    found = [operation for _ in range(DRAWS) for operation in policy(rng, HEIGHT, WIDTH)]

    expected = [(operator, max(value, 1.0) if operator == "Posterize" else value) for operator, value in expected]
    levels = [
        np.array([abs(value) / UNITS[operator] for operator, value in some if operator in UNITS])
        for some in (found, expected)
    ]
    error = 4 * np.sqrt(2 / min(map(len, levels)))  # four standard deviations, of a normal level
    assert abs(levels[0].mean() - levels[1].mean()) <= error * levels[1].std() + 1e-9
    assert abs(levels[0].std() - levels[1].std()) <= error * levels[1].std() + 1e-9

    def binned(operations):  # half a level wide, with signs
        for operator, value in operations:
            yield operator, int(np.floor(abs(value) / UNITS.get(operator, 11.0) * 2 + 0.25)), bool(value < 0)

    assert_as_often(collections.Counter(binned(found)), collections.Counter(binned(expected)))


# Colour jitter ------------------------------------------------------------------------------------------

STRENGTHS = [(0.4, 0.4, 0.4, 0.0), (1.5, 0.2, 0.0, 0.5), (0.3, 0.6, 0.2, 0.1)]


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_color_jitter_draws_what_torchvision_draws_from_the_same_random_numbers(rng, vision, strengths):
    reference = vision.ColorJitter(*strengths)
    ranges = reference.brightness, reference.contrast, reference.saturation, reference.hue
    rng.torch.manual_seed(6)
    expected = [reference.get_params(*ranges) for _ in range(DRAWS // 5)]
    rng.torch.manual_seed(6)
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    for order, *factors in expected:
        wanted = [(names[i], factors[i]) for i in order if factors[i] is not None]
        assert policies.color_jitter(rng, HEIGHT, WIDTH, strengths) == wanted


def test_color_jitter_is_uniform_in_factors_and_order():
    rng = np.random.default_rng(7)
    drawn = [policies.color_jitter(rng, 1, 1, (0.4, 1.5, 0.2, 0.1)) for _ in range(DRAWS)]
    orders = collections.Counter(tuple(name for name, _ in operations) for operations in drawn)
    assert len(orders) == 24
    assert_as_often(orders, collections.Counter(dict.fromkeys(orders, DRAWS / 24)))
    for name, low, high in [
        ("adjust_brightness", 0.6, 1.4),
        ("adjust_contrast", 0.0, 2.5),
        ("adjust_saturation", 0.8, 1.2),
        ("adjust_hue", -0.1, 0.1),
    ]:
        values = np.array([dict(operations)[name] for operations in drawn])
        tenths = np.histogram(values, bins=10, range=(low, high))[0]
        assert tenths.sum() == DRAWS
        assert ((tenths - DRAWS / 10) ** 2 / (DRAWS / 10)).sum() < 9 + 4 * np.sqrt(18)


@pytest.mark.parametrize("channels", [1, 3])
def test_jittered_and_augmented_pixels_equal_torchvisions(rng, vision, channels):
    """Policy and jitter from one stream of random numbers; with the defaults, and as torchvision's training script."""
    jitter = (0.4, 0.4, 0.4, 0.1)
    for name, kind in (("trivial", "TrivialAugmentWide"), ("rand", "RandAugment"), ("auto", "AutoAugment")):
        for sampling in ({}, {"interpolation": "bilinear"}):
            modes = {key: vision.InterpolationMode(value) for key, value in sampling.items()}
            reference = vision.Compose([getattr(vision, kind)(**modes), vision.ColorJitter(*jitter)])
            augmentation = autoaugment.create_augmentation(name, color_jitter=jitter, **sampling)
            for seed in range(30):
                image = picture((33, 47, channels), seed)
                rng.torch.manual_seed(seed)
                expected = to_array(reference(from_array(image)))
                rng.torch.manual_seed(seed)
                np.testing.assert_array_equal(augmentation(image, rng), expected)


def test_timms_policy_takes_either_interpolation_and_the_mean_colour():
    image, mean = picture((24, 24, 3)), (124, 116, 104)
    augmentation = autoaugment.create_augmentation("rand-m7-mstd0.5-inc1", mean=mean)
    turn = (lambda *_: [policies.Operation("Rotate", 20.0)],)
    augmentation, rng = dataclasses.replace(augmentation, policies=turn), np.random.default_rng(12)
    counts = collections.Counter(augmentation(image, rng).tobytes() for _ in range(400))
    expected = [
        operators.apply(image, "Rotate", 20.0, operators.Sampling(mode, mean)).tobytes()
        for mode in ("bilinear", "bicubic")
    ]
    assert set(counts) == set(expected)
    assert all(160 < count < 240 for count in counts.values())


# Random erasing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(61, 224), (3, 50)])
def test_erased_windows_are_torchvisions(rng, vision, height, width):
    """But for PyTorch's float32, which in a rare draw rounds a side to the other neighbour."""
    draws = 4 * DRAWS // 10
    image = rng.torch.zeros(3, height, width)
    rng.torch.manual_seed(11)
    expected = [vision.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(draws)]
    rng.torch.manual_seed(11)
    found = [crops.sample_erased(height, width, rng) or (0, 0, height, width) for _ in range(draws)]
    same = sum(window == other for window, other in zip(found, expected, strict=True))
    assert same >= draws - 1


def test_erased_windows_are_as_frequent_as_torchvisions(rng, vision):
    numpy = np.random.default_rng(8)
    rng.torch.manual_seed(8)
    image = rng.torch.zeros(1, 24, 40)
    expected = [vision.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(DRAWS)]
    found = [crops.sample_erased(24, 40, numpy) for _ in range(DRAWS)]
    for part in range(4):
        assert_as_often(*(collections.Counter(window[part] for window in windows) for windows in (found, expected)))


def test_a_window_is_erased_with_the_given_probability_to_the_mean_and_the_image_stays():
    rng, image = np.random.default_rng(9), np.full((16, 16, 3), 7, np.uint8)
    results = [crops.random_erase(image, rng, 0.25, (120, 130, 140)) for _ in range(2000)]
    erased = [result for result in results if (result != 7).any()]
    assert 500 - 4 * 20 < len(erased) < 500 + 4 * 20
    for result in erased:
        rows, columns = np.nonzero(result[..., 0] == 120)
        window = result[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (window == (120, 130, 140)).all()
        assert (result == 7).all(-1).sum() == 256 - window[..., 0].size
    assert (image == 7).all()


def test_noise_has_the_datas_mean_and_deviation():
    rng, image = np.random.default_rng(10), np.zeros((200, 200, 3), np.uint8)
    mean, std = (124, 116, 104), (58.4, 57.1, 57.4)
    pixels = [result[result.any(-1)] for result in (crops.random_erase(image, rng, 1.0, mean, std) for _ in range(10))]
    pixels = np.concatenate(pixels).astype(float)
    np.testing.assert_allclose(pixels.mean(0), mean, atol=1.0)
    np.testing.assert_allclose(pixels.std(0), std, rtol=0.04)  # clipping takes about two levels
    assert (np.abs(np.corrcoef(pixels.T) - np.eye(3)) < 0.02).all()


def test_erasing_to_the_rounded_mean_is_nearly_zero_once_normalised():
    """0.009 of a deviation, as `random_erase` says: half a level in 255, over the smallest deviation."""
    config = default.get_config().data
    config.mean, config.std = transforms.IMAGENET_MEAN, transforms.IMAGENET_STD
    config.crop, config.decoder, config.erase = "none", "pillow", 1.0
    image = np.zeros((64, 64, 3), np.uint8)
    result = inputs.train_transform(config, 64)(image, np.random.default_rng(3))
    erased = result.any(-1)
    assert 0 < erased.sum() < 64 * 64
    preprocessing = transforms.Preprocessing(64, 64, "bilinear", config.mean, config.std)
    assert np.abs(preprocessing.normalize(result)[erased]).max() < 0.009


# Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"augment": "randaug"}, r"augment='randaug' is not known: use one of 'none', 'trivial', 'rand', 'auto', "),
        ({"augment": "rand-m11-inc1"}, r"augment='rand-m11-inc1' is not known.*any level m of 0\.\.10"),
        ({"augment": "rand-m9-n0-inc1"}, r"is not known"),
        ({"augment": "rand-m9-mstd0.5"}, r"is not known"),
        ({"augment": "trivial", "augment_magnitude": 3}, r"augment_magnitude=3 has no effect with augment='trivial'"),
        ({"augment_fill": "mean"}, r"augment_fill='mean' has no effect with augment='none'"),
        ({"augment": "rand", "augment_magnitude": 31}, r"augment_magnitude=31 lie in 0\.\.30"),
        ({"augment": "rand", "augment_ops": 0}, r"augment_ops=0 must be 1 or more"),
        (
            {"augment": "auto", "augment_interpolation": "area"},
            r"augment_interpolation='area' is not known: use one of",
        ),
        ({"augment": "auto", "augment_fill": "white"}, r"augment_fill='white' is not known: use 'black' or 'mean'"),
        ({"color_jitter": (0.4, 0.4, 0.4)}, r"color_jitter=\(0\.4, 0\.4, 0\.4\) must be the strengths"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, r"the last at most 0\.5"),
        ({"erase": 1.5}, r"erase=1\.5 is a probability"),
        ({"erase_noise": (9.0,)}, r"erase_noise=\(9\.0,\) has no effect with erase=0\.0"),
    ],
)
def test_train_transform_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        transforms.train_transform(32, **kwargs)
