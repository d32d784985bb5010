"""The pure steps: numbers by hand and against PyTorch; masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import resnet_jax
from batches import NUMBERS, make_batch
from resnet_jax.step import metrics
from resnet_jax.step.step import TrainState, create_train_state, cross_entropy, eval_step, normalize, train_step


@pytest.fixture(scope="module")
def state():
    model = resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1,), num_classes=5, stage_features=(8,), stem="cifar", stem_features=8
    )
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return create_train_state(model, variables, optax.identity())  # the update is then the gradient itself


def test_normalize_by_hand():
    out = normalize(jnp.full((1, 1, 1, 2), 255, jnp.uint8), (0.5, 0.25), (0.5, 0.25))
    assert out.ravel().tolist() == [1.0, 3.0]
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_pytorchs(label_smoothing, x64):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = 9 * rng.standard_normal((7, 10)), rng.integers(0, 10, 7)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=label_smoothing, reduction="none"
    )
    np.testing.assert_allclose(cross_entropy(logits, labels, label_smoothing), expected, rtol=1e-12)


def test_loss_is_float32_for_bfloat16_logits():
    assert cross_entropy(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32)).dtype == jnp.float32


def test_measure_by_hand():
    logits = jnp.array([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    sums = metrics.measure(logits, jnp.array([0, 0, 1]), jnp.array([1.0, 2.0, 4.0]), jnp.array([1.0, 1.0, 0.0]))
    assert {key: float(value) for key, value in sums.items()} == {"loss": 3.0, "correct": 1.0, "count": 2.0}
    assert metrics.compute(metrics.merge({}, sums)) == {"loss": 1.5, "accuracy": 0.5}


def test_top5_equals_numpys_and_of_equal_logits_the_lower_class_is_first():
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 6, (200, 9)).astype(np.float32)  # many are equal
    labels, mask = rng.integers(0, 9, 200).astype(np.int32), (rng.random(200) < 0.7).astype(np.float32)
    sums = metrics.measure(jnp.asarray(logits), jnp.asarray(labels), jnp.zeros(200), jnp.asarray(mask))
    best = np.argsort(-logits, axis=-1, kind="stable")
    assert float(sums["correct_top5"]) == np.sum((best[:, :5] == labels[:, None]).any(-1) * mask)
    assert float(sums["correct"]) == np.sum((best[:, 0] == labels) * mask)
    assert metrics.compute(metrics.merge({}, sums))["accuracy_top5"] == sums["correct_top5"] / sums["count"]


def test_of_five_classes_no_top5_is_told():
    sums = metrics.measure(jnp.eye(5), jnp.arange(5), jnp.zeros(5), jnp.ones(5))
    assert sums.keys() == {"loss", "correct", "count"}


def test_metrics_of_no_example_are_refused():
    with pytest.raises(ValueError, match="no example was counted"):
        metrics.compute({"loss": 0.0, "correct": 0.0, "count": 0.0})


def test_masked_examples_change_neither_loss_nor_metrics(state):
    evaluate = jax.jit(functools.partial(eval_step, **NUMBERS))
    batch = make_batch(4)
    padded = {key: np.concatenate([value, value[:2]]) for key, value in batch.items()}
    padded["label"][4:] = 0
    padded["mask"][4:] = 0
    whole, masked = evaluate(state, batch), evaluate(state, padded)
    assert whole["count"] == masked["count"] == 4
    for key in whole:
        np.testing.assert_allclose(whole[key], masked[key], rtol=1e-6)


def test_a_masked_label_gives_no_gradient(state):
    step = jax.jit(functools.partial(train_step, **NUMBERS))
    batch = make_batch(4)
    batch["mask"][3] = 0
    other = batch | {"label": np.array([*batch["label"][:3], (batch["label"][3] + 1) % 5], np.int32)}
    (one, sums), (two, _) = step(state, batch), step(state, other)
    assert sums["count"] == 3
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)


def test_train_step_counts_and_moves_the_statistics(state):
    new, sums = jax.jit(functools.partial(train_step, **NUMBERS))(state, make_batch(4))
    assert new.step == state.step + 1
    assert np.abs(new.batch_stats["bn1"]["mean"] - state.batch_stats["bn1"]["mean"]).max() > 0
    grads = jax.tree.map(lambda a, b: a - b, new.params, state.params)
    assert float(sums["grad_norm"]) == pytest.approx(float(optax.tree.norm(grads)), rel=1e-3)


def test_a_net_without_statistics_trains():
    model = resnet_jax.ResNet(
        resnet_jax.BasicBlock, (1,), num_classes=5, stage_features=(32,), stem="cifar", stem_features=32, norm="group"
    )
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    state = create_train_state(model, variables, optax.sgd(0.1))
    state, _ = jax.jit(functools.partial(train_step, **NUMBERS))(state, make_batch(4))
    assert set(state.variables) == {"params"}
    assert eval_step(state, make_batch(4), **NUMBERS)["count"] == 4


def test_dropout_differs_from_device_to_device_and_mixing_does_not():
    """The net is a stand-in that gives the random numbers of its dropout as logits, the mix the number of its draw."""
    shape = (2, 5)

    def apply(variables, images, *, train, mutable, rngs):
        drawn.append(jax.random.uniform(rngs["dropout"]))
        return variables["params"]["w"] * images.sum((1, 2))[:, :1] * jnp.ones(shape), {}

    def draw_mix(key, size):
        mixed.append(jax.random.uniform(key))
        return jnp.ones(size), jnp.ones(())

    drawn, mixed = [], []
    state = TrainState.create(apply_fn=apply, params={"w": jnp.ones(())}, tx=optax.sgd(0.1), batch_stats={})
    batch = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), make_batch(4))

    def numbers(part):
        del drawn[:], mixed[:]
        train_step(state, part, draw_mix=draw_mix, axis_name="batch", **NUMBERS)
        return drawn[0], mixed[0]

    dropped, share = jax.vmap(numbers, axis_name="batch", out_axes=0)(batch)
    assert dropped[0] != dropped[1]
    assert share[0] == share[1]


def test_where_there_is_an_average_it_is_evaluated(state):
    evaluate = jax.jit(functools.partial(eval_step, **NUMBERS))
    other = jax.tree.map(lambda x: 1.5 * x, state.variables)
    averaged = evaluate(state.replace(ema=other), make_batch(4))
    alone = evaluate(state.replace(params=other["params"], batch_stats=other["batch_stats"]), make_batch(4))
    assert averaged == alone != evaluate(state, make_batch(4))


def test_the_gradient_is_that_of_the_mean_over_what_counts():
    """Of a net of one weight, times an image's brightness, and a loss that is its output."""

    def apply(variables, images, **_):
        return variables["params"]["w"] * images[:, 0, 0, :1] * jnp.ones((1, 5)), {}

    state = TrainState.create(apply_fn=apply, params={"w": jnp.ones(())}, tx=optax.sgd(1.0), batch_stats={})
    batch = make_batch(4) | {"mask": np.array([1, 1, 0, 1], np.float32)}
    batch["image"] = np.broadcast_to(np.uint8([51, 102, 153, 204])[:, None, None, None], batch["image"].shape)
    numbers = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    new, sums = train_step(state, batch, loss=lambda logits, targets: logits[:, 0], **numbers)
    assert float(new.params["w"]) == pytest.approx(1 - (0.2 + 0.4 + 0.8) / 3)
    assert float(sums["grad_norm"]) == pytest.approx((0.2 + 0.4 + 0.8) / 3)


def test_part_j_of_a_batch_has_the_rows_from_j_on_in_steps_of_the_number_of_parts():
    """The net's running statistics are what it has seen last: the second of two parts."""

    def apply(variables, images, **_):
        brightness = images[:, 0, 0, :1]
        return variables["params"]["w"] * brightness * jnp.ones((1, 5)), {"batch_stats": {"seen": brightness[:, 0]}}

    stats = {"seen": jnp.zeros(2)}
    state = TrainState.create(apply_fn=apply, params={"w": jnp.ones(())}, tx=optax.sgd(1.0), batch_stats=stats)
    image = np.broadcast_to(np.uint8([51, 102, 153, 204])[:, None, None, None], (4, 8, 8, 3))
    numbers = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    new, _ = train_step(state, make_batch(4) | {"image": image}, accumulate=2, **numbers)
    assert new.batch_stats["seen"].tolist() == pytest.approx([0.4, 0.8])
