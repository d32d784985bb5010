"""Bytes and memory of our training step for a TPU, beside one in the style of Flax's ImageNet example; needs no TPU.

pip install "resnet-linen[tpu,train]"
python benchmarks/plan_vs_flax_example.py --topology=v5e:2x2 --batch-per-chip=128

Both are ResNet-50 in bfloat16 with batch norm per device, SGD with momentum and weight decay, under pmap, and compiled
by the same compiler in the same run. Ours also takes uint8 images, masks the examples that are padding, pads as PyTorch
does and measures the gradient's norm. Two compilations of a few minutes.
"""

import argparse
import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_jax import compiler
from resnet_jax.configs import imagenet_resnet50
from resnet_jax.data.sources import base
from resnet_jax.plan import chips, hlo, needs
from resnet_jax.training import experiment

GIB = 2**30


class ExampleBlock(nn.Module):
    """A bottleneck as in the example: 'SAME' padding, one-pass variance, the last scale 0 at the start."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
        norm = functools.partial(nn.BatchNorm, use_running_average=False, momentum=0.9, dtype=jnp.bfloat16)
        y = nn.relu(norm()(conv(self.features, (1, 1))(x)))
        y = nn.relu(norm()(conv(self.features, (3, 3), (self.strides,) * 2)(y)))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.features, (1, 1))(y))
        if x.shape != y.shape:
            x = norm()(conv(4 * self.features, (1, 1), (self.strides,) * 2)(x))
        return nn.relu(x + y)


class ExampleNet(nn.Module):
    """ResNet of the given stages, for training only."""

    stage_sizes: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), (2, 2), padding=[(3, 3), (3, 3)], use_bias=False, dtype=jnp.bfloat16)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=jnp.bfloat16)(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                x = ExampleBlock(64 * 2**i, 2 if i > 0 and j == 0 else 1)(x)
        return nn.Dense(1000, dtype=jnp.bfloat16)(jnp.mean(x, (1, 2))).astype(jnp.float32)


def example_step(model: nn.Module, tx: optax.GradientTransformation, state: Any, batch: Any) -> Any:
    """One step, with the gradients' mean and nothing more exchanged but the metrics and the running statistics."""

    def loss_fn(params: Any) -> Any:
        variables = {"params": params, "batch_stats": state["batch_stats"]}
        logits, updates = model.apply(variables, batch["image"], mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        accuracy = jnp.mean(jnp.argmax(logits, -1) == batch["label"])
        return loss, (updates["batch_stats"], {"loss": loss, "accuracy": accuracy})

    grads, (batch_stats, metrics) = jax.grad(loss_fn, has_aux=True)(state["params"])
    grads, batch_stats, metrics = jax.lax.pmean((grads, batch_stats, metrics), "batch")
    updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "batch_stats": batch_stats, "opt_state": opt_state}, metrics


def compile_example(devices: list[Any], batch: int, size: int, stage_sizes: tuple[int, ...]) -> Any:
    model = ExampleNet(stage_sizes)
    decay = optax.add_decayed_weights(1e-4, lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params))
    tx = optax.chain(decay, optax.sgd(0.1, momentum=0.9))

    def init() -> Any:
        variables = model.init(jax.random.key(0), jnp.zeros((1, size, size, 3)))
        return dict(variables) | {"opt_state": tx.init(variables["params"])}

    mesh = Mesh(np.array(devices), ("batch",))

    def place(spec: Any, x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    shapes = {
        "image": jax.ShapeDtypeStruct((len(devices), batch, size, size, 3), jnp.bfloat16),
        "label": jax.ShapeDtypeStruct((len(devices), batch), jnp.int32),
    }
    step = jax.pmap(
        functools.partial(example_step, model, tx),
        axis_name="batch",
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
        devices=devices,
    )
    state = jax.tree.map(functools.partial(place, P()), jax.eval_shape(init))
    return step.lower(state, jax.tree.map(functools.partial(place, P("batch")), shapes)).compile()


def compile_ours(devices: list[Any], batch: int, size: int, stage_sizes: tuple[int, ...]) -> Any:
    config = imagenet_resnet50.get_config()
    config.batch_size, config.data.image_size, config.parallel = batch * len(devices), size, "pmap"
    config.model.kwargs.stage_sizes = stage_sizes
    ours = experiment.design(config, base.STOCK["imagenet2012"], devices=devices)
    step: Any = ours.parallel.train_step
    return step.lower(needs.abstract_state(ours), needs.abstract_batch(ours)).compile()


def main() -> None:
    compiler.guard()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--batch-per-chip", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--stage-sizes", default="3,4,6,3")
    arguments = parser.parse_args()
    devices = chips.slice_devices(arguments.topology)
    stage_sizes = tuple(map(int, arguments.stage_sizes.split(",")))
    measured = {}
    print(f"{'':<9}{'GB':>8}{'computing':>11}{'copying':>9}{'in HBM':>8}{'GiB peak':>10}{'TFLOP':>8}  collectives")
    for name, build in {"example": compile_example, "ours": compile_ours}.items():
        start = time.perf_counter()
        compiled = build(devices, arguments.batch_per_chip, arguments.image_size, stage_sizes)
        measured[name] = _gigabytes(compiled)
        print(f"{_row(name, measured[name])}{_rest(compiled)}  [{time.perf_counter() - start:.0f} s]", flush=True)
    print(_row("ratio", [ours / theirs for ours, theirs in zip(measured["ours"], measured["example"], strict=True)]))


def _gigabytes(compiled: Any) -> list[float]:
    """The compiler's own count, and ours."""
    traffic = hlo.traffic(compiled.as_text())
    counts = (compiled.cost_analysis()["bytes accessed"], traffic.computing, traffic.copying, traffic.main_memory)
    return [count / 1e9 for count in counts]


def _row(name: str, values: list[float]) -> str:
    return f"{name:<9}" + "".join(f"{value:>{width}.4f}" for value, width in zip(values, (8, 11, 9, 8), strict=True))


def _rest(compiled: Any) -> str:
    collectives = hlo.collectives(compiled.as_text()).items()
    exchanged = ", ".join(f"{found.count} {kind} ({found.bytes / 1e6:.1f} MB)" for kind, found in collectives)
    peak = compiled.memory_analysis().peak_memory_in_bytes / GIB
    return f"{peak:>10.3f}{compiled.cost_analysis()['flops'] / 1e12:>8.3f}  {exchanged}"


if __name__ == "__main__":
    main()
