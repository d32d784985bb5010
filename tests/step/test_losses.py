"""Losses against timm's and PyTorch's; smoothing by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.step.losses import binary_cross_entropy, soft_targets, softmax_cross_entropy


def test_smoothing_by_hand(x64):
    np.testing.assert_allclose(
        soft_targets(jnp.array([1]), 4, 0.2, jnp.float64), [[0.05, 0.85, 0.05, 0.05]], rtol=1e-15
    )


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize(("smoothing", "threshold"), [(0.0, None), (0.1, None), (0.1, 0.2), (0.0, 0.2)])
def test_bce_equals_timms(smoothing, threshold, sum_classes, x64):
    torch, loss = pytest.importorskip("torch"), pytest.importorskip("timm.loss")
    rng = np.random.default_rng(0)
    logits, labels = 5 * rng.standard_normal((7, 10)), rng.integers(0, 10, 7)
    mixed = 0.7 * np.eye(10)[labels] + 0.3 * np.eye(10)[labels[::-1]]
    timms = loss.BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold, sum_classes=sum_classes)
    for targets, theirs in ((soft_targets(labels, 10, smoothing, jnp.float64), labels), (mixed, mixed)):
        ours = binary_cross_entropy(logits, targets, target_threshold=threshold, sum_classes=sum_classes)
        assert ours.shape == (7,)
        expected = timms(torch.from_numpy(logits), torch.from_numpy(np.array(theirs)))
        assert float(ours.mean()) == pytest.approx(float(expected), rel=1e-12)


def test_softmax_of_mixed_targets_equals_pytorchs(x64):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((7, 10)), rng.dirichlet(np.ones(10), 7)
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(targets), reduction="none")
    np.testing.assert_allclose(softmax_cross_entropy(logits, targets), expected, rtol=1e-12)


def test_losses_are_float32_for_bfloat16_logits():
    logits, targets = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3))
    assert softmax_cross_entropy(logits, targets).dtype == jnp.float32
    assert binary_cross_entropy(logits, targets).dtype == jnp.float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_equal_pytorchs(smoothing, x64):
    torch = pytest.importorskip("torch")
    functional, torch_of = torch.nn.functional, torch.from_numpy
    rng = np.random.default_rng(0)
    logits, labels, weights = 5 * rng.standard_normal((7, 10)), rng.integers(0, 10, 7), rng.uniform(0, 3, 10)
    soft, mixed = soft_targets(labels, 10, smoothing, jnp.float64), rng.dirichlet(np.ones(10), 7)
    options = {"weight": torch_of(weights), "reduction": "none"}
    for targets, theirs, smooth in ((soft, labels, smoothing), (mixed, mixed, 0.0)):
        expected = functional.cross_entropy(torch_of(logits), torch_of(theirs), label_smoothing=smooth, **options)
        ours = softmax_cross_entropy(logits, targets, class_weights=tuple(weights))
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        expected = functional.binary_cross_entropy_with_logits(
            torch_of(logits), torch_of(np.array(targets)), **options
        ).sum(-1)
        ours = binary_cross_entropy(logits, targets, class_weights=tuple(weights), sum_classes=True)
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
