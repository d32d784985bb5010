"""Schedules by hand, SGD against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_jax.step.optimizer import create_optimizer, create_schedule, is_kernel, is_not_norm


def test_cosine_with_warm_up_by_hand():
    schedule = create_schedule("cosine", learning_rate=0.4, num_steps=12, warmup_steps=4)
    assert [float(schedule(t)) for t in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert float(schedule(4)) == pytest.approx(0.4)
    assert float(schedule(8)) == pytest.approx(0.2)  # half-way down
    assert float(schedule(12)) == pytest.approx(0.0, abs=1e-9)


def test_one_step_of_warm_up_is_at_the_full_rate():
    assert float(create_schedule("constant", learning_rate=0.4, num_steps=12, warmup_steps=1)(0)) == pytest.approx(0.4)


def test_step_schedule_counts_boundaries_from_the_start_of_the_run():
    schedule = create_schedule("step", learning_rate=1.0, num_steps=9, warmup_steps=2, boundaries=(4, 7), factor=0.1)
    assert [float(schedule(t)) for t in range(9)] == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_linear_equals_the_interpolation_of_ffcv():
    """Up to the whole rate at step 4, from a ten-thousandth of it, and down to 0 at step 12."""
    schedule = create_schedule("linear", learning_rate=1.7, num_steps=12, warmup_steps=4, warmup_start=1e-4)
    expected = np.interp(np.arange(13), [0, 4, 12], [1.7e-4, 1.7, 0.0])
    np.testing.assert_allclose([float(schedule(step)) for step in range(13)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"name": "poly"}, "unknown schedule 'poly'.*cosine"),
        ({"name": "cosine", "warmup_steps": 10}, "warm-up of 10 steps does not fit a run of 10"),
        ({"name": "step", "boundaries": (10,)}, r"boundaries \(10,\) must lie between"),
    ],
)
def test_a_schedule_that_does_not_fit_is_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        create_schedule(learning_rate=0.1, num_steps=10, **kwargs)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_pytorchs_with_a_changing_rate(nesterov, momentum, weight_decay, x64):
    torch = pytest.importorskip("torch")
    if nesterov and not momentum:
        pytest.skip("PyTorch refuses Nesterov without momentum")
    rng = np.random.default_rng(0)
    start, grads = rng.standard_normal(5), rng.standard_normal((6, 5))
    schedule = create_schedule("cosine", learning_rate=0.5, num_steps=6, warmup_steps=2)
    tx = create_optimizer(schedule, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    reference = torch.optim.SGD([parameter], lr=1.0, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    params = {"kernel": jnp.asarray(start)}
    opt_state = tx.init(params)
    for t, grad in enumerate(grads):
        updates, opt_state = tx.update({"kernel": jnp.asarray(grad)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        reference.param_groups[0]["lr"] = float(schedule(jnp.int32(t)))  # as the optimiser counts
        parameter.grad = torch.from_numpy(grad.copy())
        reference.step()
    np.testing.assert_allclose(params["kernel"], parameter.detach().numpy(), rtol=0, atol=1e-13)


def test_decay_can_leave_out_norms_and_biases():
    params = {
        "conv1": {"kernel": jnp.ones(2)},
        "bn1": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "fc": {"bias": jnp.ones(2)},
    }
    assert is_kernel(params) == {
        "conv1": {"kernel": True},
        "bn1": {"scale": False, "bias": False},
        "fc": {"bias": False},
    }
    tx = create_optimizer(1.0, momentum=0.0, weight_decay=0.5, decayed="kernels")
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert updates["conv1"]["kernel"].tolist() == [-0.5, -0.5]
    assert not updates["bn1"]["scale"].any()
    assert not updates["fc"]["bias"].any()


def test_torchvisions_mask_leaves_out_norms_alone():
    params = {
        "layer1": {
            "0": {"conv1": {"kernel": 0}, "bn1": {"scale": 0, "bias": 0}, "se": {"fc1": {"kernel": 0, "bias": 0}}}
        },
        "fc": {"kernel": 0, "bias": 0},
    }
    assert is_not_norm(params) == {
        "layer1": {
            "0": {
                "conv1": {"kernel": True},
                "bn1": {"scale": False, "bias": False},
                "se": {"fc1": {"kernel": True, "bias": True}},
            }
        },
        "fc": {"kernel": True, "bias": True},
    }


def compare(tx, reference, parameters, *, clip=None):
    """Six steps of both from the same tensors and gradients of very different norms, as {dotted name: tensor}."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(value.detach().numpy().copy()) for name, value in parameters.items()}
    opt_state = tx.init(tree_of(params))
    for t in range(6):
        grads = {name: 10.0 ** (t - 3) * rng.standard_normal(value.shape) for name, value in params.items()}
        updates, opt_state = jax.jit(tx.update)(tree_of(grads), opt_state, tree_of(params))
        params = {name: params[name] + updates[name.split(".")[0]][name.split(".")[1]] for name in params}
        for name, parameter in parameters.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        if clip:
            torch.nn.utils.clip_grad_norm_(parameters.values(), clip)
        reference.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(params[name], parameter.detach().numpy(), rtol=1e-12, atol=1e-14)


def tree_of(flat):
    return {"conv": {"kernel": flat["conv.kernel"]}, "fc": {key: flat[f"fc.{key}"] for key in ("kernel", "bias")}}


@pytest.fixture
def parameters(x64):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    shapes = {"conv.kernel": (3, 4), "fc.kernel": (4, 5), "fc.bias": (5,)}
    return {name: torch.nn.Parameter(torch.from_numpy(rng.standard_normal(shape))) for name, shape in shapes.items()}


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_lamb_equals_timms(weight_decay, parameters):
    """Also with a tensor of zeros, whose norm gives no ratio."""
    optim = pytest.importorskip("timm.optim")
    parameters["conv.kernel"].data.zero_()
    groups = [
        {"params": [parameters["conv.kernel"], parameters["fc.kernel"]], "weight_decay": weight_decay},
        {"params": [parameters["fc.bias"]], "weight_decay": 0.0},
    ]
    tx = create_optimizer(0.1, name="lamb", weight_decay=weight_decay, decayed="kernels", eps=1e-6, clip_norm=1.0)
    compare(tx, optim.Lamb(groups, lr=0.1), parameters)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_equals_pytorchs(weight_decay, parameters):
    torch = pytest.importorskip("torch")
    reference = torch.optim.AdamW(parameters.values(), lr=0.1, weight_decay=weight_decay)
    compare(create_optimizer(0.1, name="adamw", weight_decay=weight_decay), reference, parameters)


def test_clipping_equals_pytorchs(parameters):
    """Gradients far below and far above the norm: SGD, for Adam would hide a wrong scale."""
    torch = pytest.importorskip("torch")
    reference = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.9)
    compare(create_optimizer(0.1, clip_norm=0.5), reference, parameters, clip=0.5)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"name": "lars"}, "unknown optimiser 'lars': give one of .*'adamw', 'lamb', 'sgd'"),
        ({"decayed": "biases"}, "unknown weight decay 'biases': give one of .*'all', 'kernels', 'not_norm'"),
    ],
)
def test_an_unknown_name_is_refused(kwargs, said):
    with pytest.raises(ValueError, match=said):
        create_optimizer(0.1, **kwargs)
