"""Rematerialisation: the same numbers, less memory."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals

import resnet_jax
from resnet_jax import compiler

IMAGES = np.random.default_rng(0).standard_normal((8, 32, 32, 3)).astype(np.float32)
# XLA for the CPU undoes rematerialisation before this version.
KEEPS_REMAT = tuple(map(int, re.findall(r"\d+", jax.__version__)[:2])) >= (0, 12)


def net(sizes=(3, 3), **kwargs):
    return resnet_jax.ResNet(
        resnet_jax.Bottleneck, sizes, num_classes=5, stage_features=(16, 32)[-len(sizes):], stem="cifar", train=True,
        **kwargs,
    )  # fmt: skip


SMALL = (1,)  # one block, which projects: where numbers alone matter


@pytest.fixture(scope="module")
def variables():
    return jax.jit(net(SMALL).init)(jax.random.key(0), IMAGES)


@functools.cache
def compiled(remat, sizes, fused=None):
    def step(params, batch_stats, images):
        def loss(params):
            logits, updates = net(sizes, remat=remat).apply(
                {"params": params, "batch_stats": batch_stats}, images, mutable=["batch_stats"]
            )
            return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), updates

        return jax.value_and_grad(loss, has_aux=True)(params)

    shapes = jax.eval_shape(net(sizes).init, jax.random.key(0), IMAGES)
    return (
        jax.jit(step).lower(shapes["params"], shapes["batch_stats"], IMAGES).compile(fused and {compiler.FLAG: fused})
    )


@pytest.mark.parametrize("remat", ["block", "narrow", "conv", jax.checkpoint_policies.dots_saveable])
def test_no_number_changes_beyond_rounding(remat, variables):
    arguments = (variables["params"], variables["batch_stats"], IMAGES)
    for plain, rematted in zip(
        jax.tree.leaves(compiled(None, SMALL)(*arguments)),
        jax.tree.leaves(compiled(remat, SMALL)(*arguments)),
        strict=True,
    ):
        scale = max(float(jnp.abs(plain).max()), 1e-3)
        np.testing.assert_allclose(rematted, plain, rtol=0, atol=2e-5 * scale)


def test_the_tree_of_variables_stays_as_it_is(variables):
    shapes = jax.eval_shape(net(SMALL, remat="block").init, jax.random.key(0), IMAGES)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)


# What YNNPACK is given where nobody has set the flag.
SUMS_TOO = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION,LIBRARY_FUSION_TYPE_REDUCE"


def memory(remat, fused=None):
    return compiled(remat, (3, 3), fused).memory_analysis().temp_size_in_bytes


@pytest.mark.skipif(not KEEPS_REMAT, reason="XLA for the CPU undoes rematerialisation before JAX 0.12")
def test_the_training_step_needs_less_memory():
    modes = (None, "conv", "narrow", "block")
    plain, conv, narrow, block = (memory(mode) for mode in modes)
    assert block < 0.6 * plain
    assert block < narrow < conv
    assert block < 0.95 * conv
    assert conv < plain
    # In a process without the flag a plain step keeps more: what the mode saves is seen there.
    assert memory("conv", SUMS_TOO) < 0.85 * memory(None, SUMS_TOO)


def total(sizes, **kwargs):
    """A function of a net's parameters to differentiate, and parameters for it."""
    model = net(sizes, **kwargs)
    shapes = jax.eval_shape(net(sizes).init, jax.random.key(0), IMAGES)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

    def loss(params):
        variables = {"params": params, "batch_stats": zeros["batch_stats"]}
        return jnp.sum(model.apply(variables, IMAGES, mutable=["batch_stats"])[0])

    return loss, zeros["params"]


def kept(remat, capsys):
    """Channels of the convolutions' outputs that stay for the backward pass."""
    print_saved_residuals(*total((2, 2), remat=remat))
    lines = [line for line in capsys.readouterr().out.splitlines() if "output of conv_general_dilated" in line]
    return collections.Counter(int(re.search(r",(\d+)\]", line)[1]) for line in lines)


def test_each_mode_keeps_the_convolutions_that_it_says(capsys):
    # Two stages of two blocks, of widths 16 and 32: the last convolution of each is four times as wide, and so is the
    # second stage's shortcut; the first has none, for the stem gives its 64 channels already.
    assert not kept("block", capsys)
    assert kept("narrow", capsys) == {16: 4, 32: 4}
    assert kept("conv", capsys) == {16: 4, 32: 4, 64: 2, 128: 3}


@functools.cache
def sums(remat):
    """Exchanges in the gradient of a net with synchronised norms."""
    loss, params = total(SMALL, remat=remat, axis_name="batch")
    step = jax.make_jaxpr(jax.grad(loss), axis_env=[("batch", 2)])(params)
    return len(re.findall(r"\bpsum\w*\[", str(step)))


@pytest.mark.parametrize("remat", ["block", "narrow", "conv"])
def test_statistics_are_exchanged_once(remat):
    """Devices would otherwise meet once more for each synchronised norm, in the backward pass."""
    assert sums(remat) == sums(None) > 0


def test_an_unknown_policy_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"unknown remat 'blok'.*block.*conv"):
        jax.eval_shape(net(remat="blok").init, jax.random.key(0), IMAGES)


def test_a_block_with_arguments_is_rematerialised_too():
    model = resnet_jax.ResNet(
        functools.partial(resnet_jax.Bottleneck, reduce_first=2), (1,), 2, shortcut="B3x3", remat="block", train=False
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert variables["params"]["layer1"]["0"]["conv1"]["kernel"].shape[-1] == 32
