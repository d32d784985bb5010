"""Each operator against torchvision's and timm's, pixel for pixel."""

import numpy as np
import pytest

from resnet_jax.data.augment import operators, policies
from resnet_jax.data.augment.operators import Sampling
from resnet_jax.data.images import pillow

SHAPES = [(32, 32, 3), (37, 23, 3), (19, 41, 1)]
MAGNITUDES = {
    "ShearX": (-0.99, -0.3, -0.15, 0.01, 0.3, 0.5),
    "ShearY": (-0.99, -0.3, -0.15, 0.01, 0.3, 0.5),
    "TranslateX": (-32.0, -7.47, 0.0, 3.2, 15.9, 50.0),
    "TranslateY": (-32.0, -7.47, 0.0, 3.2, 15.9, 50.0),
    "Rotate": (-135.0, -90.0, -4.5, 0.0, 30.0, 90.0, 117.3),
    "Brightness": (-0.99, -0.33, 0.0, 0.5, 0.99),
    "Color": (-0.99, -0.33, 0.0, 0.5, 0.99),
    "Contrast": (-0.99, -0.33, 0.0, 0.5, 0.99),
    "Sharpness": (-0.99, -0.33, 0.0, 0.5, 0.99),
    "Posterize": (2.0, 4.0, 6.0, 8.0),
    "Solarize": (255.0, 127.5, 93.5, 8.5, 0.0),
    "AutoContrast": (0.0,),
    "Equalize": (0.0,),
    "Invert": (0.0,),
    "Identity": (0.0,),
}


def picture(shape, seed=0):
    """A slope with noise on it, which uses neither all levels nor each equally often."""
    height, width, channels = shape
    slope = 40 + 100 * np.linspace(0, 1, height)[:, None, None] * np.linspace(0.5, 1, width)[:, None]
    noise = np.random.default_rng(seed).normal(0, 25, shape)
    return np.clip(slope + noise * np.arange(1, channels + 1), 0, 250).astype(np.uint8)


def applied(name, magnitude, image, interpolation="nearest", fill=(0,)):
    return operators.apply(image, name, magnitude, Sampling(interpolation, fill))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MAGNITUDES)
def test_operators_equal_torchvisions(name, shape):
    reference = pytest.importorskip("torchvision.transforms.autoaugment")
    image = picture(shape)
    before = image.copy()
    for interpolation in ("nearest", "bilinear", "bicubic"):
        mode = reference.InterpolationMode(interpolation)
        for fill in (None, [90.0], [9.0, 80.0, 170.0][: shape[-1]]):
            for magnitude in MAGNITUDES[name]:
                expected = reference._apply_op(pillow.from_array(image), name, magnitude, mode, fill)
                ours = applied(name, magnitude, image, interpolation, tuple(map(int, fill or (0,))))
                np.testing.assert_array_equal(ours, pillow.to_array(expected), f"{magnitude} {mode} {fill}")
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("name", sorted(policies.SIGNED))
def test_operators_equal_torchvisions_at_every_magnitude_of_the_policies(name):
    """As the policies hold them: in float32, whose last bits decide which pixel is the nearest."""
    reference = pytest.importorskip("torchvision.transforms.autoaugment")
    image = picture((41, 33, 3))
    for space in (policies.wide_magnitudes(31), policies.magnitudes(31, 41, 33), policies.magnitudes(10, 41, 33)):
        for magnitude in [*space[name], *-space[name]]:
            expected = reference._apply_op(
                pillow.from_array(image), name, float(magnitude), reference.InterpolationMode.NEAREST, None
            )
            np.testing.assert_array_equal(applied(name, float(magnitude), image), pillow.to_array(expected))


ADJUSTMENTS = {
    "adjust_brightness": (0.0, 0.6, 1.0, 1.4),
    "adjust_contrast": (0.0, 0.6, 1.0, 1.4),
    "adjust_saturation": (0.0, 0.6, 1.0, 1.4),
    "adjust_hue": (-0.5, -0.13, -0.001, 0.0, 0.1, 0.5),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_adjustments_equal_torchvisions(name, shape):
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = picture(shape)
    for factor in ADJUSTMENTS[name]:
        expected = getattr(functional, name)(pillow.from_array(image), factor)
        np.testing.assert_array_equal(applied(name, factor, image), pillow.to_array(expected), f"{factor}")


TIMM = {  # our name -> timm's
    "Posterize": "PosterizeIncreasing",
    "Solarize": "SolarizeIncreasing",
    "Color": "ColorIncreasing",
    "Contrast": "ContrastIncreasing",
    "Brightness": "BrightnessIncreasing",
    "Sharpness": "SharpnessIncreasing",
}


@pytest.mark.parametrize("name", policies.LEVELS)
def test_levels_and_operators_equal_timms(name, monkeypatch):
    """Given level, sign and interpolation: timm draws the sign in `_randomly_negate`, which is replaced."""
    timm = pytest.importorskip("timm.data.auto_augment")
    other, fill = TIMM.get(name, name), (124, 116, 104)
    image = picture((37, 23, 3))
    for sign in (1, -1):
        monkeypatch.setattr(timm, "_randomly_negate", lambda value, sign=sign: sign * value)
        for level in (0.0, 2.5, 6.0, 7.13, 9.99, 10.0)[: 5 if name == "Posterize" else 6]:
            level_to_arg = timm.LEVEL_TO_ARG[other]
            arguments = level_to_arg(level, {}) if level_to_arg else ()
            to_magnitude = policies.LEVELS[name]
            magnitude = to_magnitude(level) if to_magnitude else 0.0
            magnitude *= sign if name in policies.TIMM_SIGNED else 1
            for interpolation, mode in pillow.INTERPOLATIONS.items():
                expected = timm.NAME_TO_OP[other](pillow.from_array(image), *arguments, fillcolor=fill, resample=mode)
                np.testing.assert_array_equal(
                    applied(name, magnitude, image, interpolation, fill), pillow.to_array(expected), f"{level} {sign}"
                )


def test_posterising_keeps_a_bit_where_timms_asks_for_none():
    assert policies.LEVELS["Posterize"](9.99) == policies.LEVELS["Posterize"](10.0) == 1


def test_the_table_has_nothing_that_no_policy_draws():
    drawn = {*policies.wide_magnitudes(31), *policies.LEVELS, *ADJUSTMENTS}
    assert set(operators.OPERATORS) == drawn | {"Invert"}


def test_a_fill_must_fit_the_channels():
    with pytest.raises(ValueError, match=r"fill=\(1, 2\) has 2 entries, but the image has 3 channels"):
        applied("Rotate", 5.0, picture((8, 8, 3)), fill=(1, 2))


def test_operators_by_hand():
    image = np.array([[1, 2], [3, 4]], np.uint8)[..., None]
    np.testing.assert_array_equal(applied("Rotate", 90.0, image)[..., 0], [[2, 4], [1, 3]])
    np.testing.assert_array_equal(applied("TranslateX", 1.0, image, fill=(9,))[..., 0], [[9, 1], [9, 3]])
    np.testing.assert_array_equal(applied("Solarize", 3.0, image)[..., 0], [[1, 2], [252, 251]])
