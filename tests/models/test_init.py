"""A new network is drawn from timm's and torchvision's distributions, tensor by tensor."""

import functools

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax.weights import convert
from resnet_jax.weights.names import COUNTER

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

SEEDS = 4


def drawn(model):
    """Every tensor of `SEEDS` new networks of ours, under PyTorch's names."""
    init = jax.jit(functools.partial(model.init, train=False))
    images = np.zeros((1, 32, 32, 3), np.float32)
    return [resnet_jax.to_torch(model, init(jax.random.key(seed), images)) for seed in range(SEEDS)]


def drawn_by(library, name):
    torch.manual_seed(0)
    states = [library(name).state_dict() for _ in range(SEEDS)]
    return [{key: tensor.numpy() for key, tensor in state.items()} for state in states]


def deviations(ours, theirs):
    """How far mean and standard deviation of two samples are apart, in standard errors of their difference."""
    count, spread = ours.size, theirs.std()
    kurtosis = np.mean((theirs - theirs.mean()) ** 4) / spread**4
    mean = abs(ours.mean() - theirs.mean()) / (spread * np.sqrt(2 / count))
    # Of the standard deviation of a sample: sigma * sqrt((kurtosis - 1) / 4n)
    std = abs(ours.std() - spread) / (spread * np.sqrt((kurtosis - 1) / (2 * count)))
    return mean, std


@pytest.mark.parity
@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "resnet50d",
        "seresnet50",
        "ecaresnet50d",
        "resnet50_gn",
        pytest.param("resnet10t", marks=pytest.mark.share),
    ],
)
def test_mean_and_deviation_of_each_tensor_are_timms(name):
    model = resnet_jax.create_model(name, zero_init_residual=True)
    ours, theirs = drawn(model), drawn_by(timm.create_model, name)
    assert ours[0].keys() == theirs[0].keys()
    small: dict[str, list] = {}
    for key in theirs[0]:
        left, right = (np.stack([state[key] for state in states]).ravel() for states in (ours, theirs))
        if np.ptp(right) == 0:
            np.testing.assert_array_equal(left, right)  # scales, running statistics
            continue
        if left.size < 400:  # too few to say something alone: all of one kind and size together
            small.setdefault(f"{key.split('.', 2)[-1]} {left.size}", []).append((left, right))
            continue
        mean, std = deviations(left, right)
        assert mean < 5, key
        assert std < 5, key
        assert np.abs(left).max() == pytest.approx(np.abs(right).max(), rel=0.35), key  # the same kind of tails
    for kind, pairs in small.items():
        assert max(deviations(*map(np.concatenate, zip(*pairs, strict=True)))) < 5, kind


def test_the_comparison_can_fail():
    rng = np.random.default_rng(0)
    sample, other = rng.normal(0, 1, (2, 20_000))
    assert max(deviations(sample, other)) < 5
    assert deviations(sample * 1.05, other)[1] > 5
    assert deviations(sample + 0.06, other)[0] > 5


TIMM = timm.list_models(module="resnet")
TORCHVISION = [name for name in TIMM if hasattr(torchvision.models, name)]


@pytest.mark.parametrize("name", TIMM)
def test_each_name_starts_as_its_library_does(name):
    """Torchvision's ten with every last scale at 1, timm's others at 0; the next test ties the field to the tensors."""
    assert resnet_jax.create_model(name).zero_init_residual == (name not in TORCHVISION)


def of_norms(tensors):
    """Of the tensors by name; in a program, the others are then not drawn."""
    return {key: tensor for key, tensor in tensors.items() if "bn" in key and not key.endswith(COUNTER)}


@pytest.mark.parametrize(
    ("name", "library", "last"),
    [
        ("seresnet18", timm.create_model, 0),
        ("resnet26", timm.create_model, 0),
        ("resnet18", torchvision.models.get_model, 1),
        ("resnet50", torchvision.models.get_model, 1),
    ],
)
def test_all_scales_and_biases_of_norms_start_as_theirs(name, library, last):
    model = resnet_jax.create_model(name)
    images = np.zeros((1, 32, 32, 3), np.float32)
    init = jax.jit(lambda: of_norms(convert.torch_named(model.init(jax.random.key(0), images, train=False))))
    ours = init()
    scales = {key: tensor.numpy() for key, tensor in of_norms(library(name).state_dict()).items()}
    for key, value in scales.items():
        np.testing.assert_array_equal(ours[key], value)
    closing = [key for key in scales if key.endswith("bn3.weight")] or [k for k in scales if k.endswith("bn2.weight")]
    assert {float(value) for key in closing for value in np.unique(ours[key])} == {float(last)}
