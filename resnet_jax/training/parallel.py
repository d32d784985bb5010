"""The one place that wraps the step for devices: `pmap`, or `jit` over `shard_map`. Same step, same numbers."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Parallel:
    """A train step and an eval step on a set of devices.

    Attributes:
      train_step: `(state, batch) -> (state, metrics)`; the given state's buffers are donated to the new one.
      eval_step: `(state, batch) -> metrics`.
      state_sharding: where the state lives, for initialising and restoring: whole, on every device. It never has a
        device axis, so both modes, and any number of devices, read and write the same checkpoints.
      shard: NumPy batch `[batch, ...]` to the arrays that the two steps take.
      abstract: the same for shapes, `[batch, ...]`, to compile from.
      blocking: wait for each step before dispatching the next. Virtual CPU devices share one pool of threads, in
        which two steps at a time can each hold what the other's collectives wait for.
    """

    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]
    state_sharding: NamedSharding
    shard: Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
    abstract: Callable[[dict[str, jax.ShapeDtypeStruct]], dict[str, jax.ShapeDtypeStruct]]
    blocking: bool


def parallelize(
    train_step: Callable[..., Any],
    eval_step: Callable[..., Any],
    *,
    mode: str = "pmap",
    devices: Sequence[jax.Device] | None = None,
) -> Parallel:
    """Wraps two pure steps, written for `axis_name=AXIS`, for `devices` (by default, all).

    Raises:
      ValueError: an unknown mode.
    """
    if mode not in _WRAPPERS:
        raise ValueError(f"unknown parallel mode {mode!r}: give one of {sorted(_WRAPPERS)}.")
    devices = list(devices if devices is not None else jax.devices())
    # A plain Mesh has Auto axes; make_mesh would give Explicit ones, which this step is not written for.
    mesh = Mesh(np.array(devices), (AXIS,))
    wrap = _WRAPPERS[mode]
    return Parallel(
        train_step=wrap(train_step, mesh, donate=True),
        eval_step=wrap(eval_step, mesh, donate=False),
        state_sharding=NamedSharding(mesh, P()),
        shard=functools.partial(_shard, mesh=mesh, stacked=mode == "pmap"),
        abstract=functools.partial(_abstract, mesh=mesh, stacked=mode == "pmap"),
        blocking=len(devices) > 1 and devices[0].platform == "cpu",
    )


def _pmap(step: Callable[..., Any], mesh: Mesh, *, donate: bool) -> Callable[..., Any]:
    # in_axes/out_axes None: the state goes in and comes out without a device axis, replicated.
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=list(mesh.devices.flat),
    )


def _jit(step: Callable[..., Any], mesh: Mesh, *, donate: bool) -> Callable[..., Any]:
    # check_vma=False: with the default, gradients of the replicated parameters are summed over devices once by JAX
    # and once more by the step, and come out too large by the number of devices, silently.
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())


_WRAPPERS = {"pmap": _pmap, "jit": _jit}


def _shard(batch: dict[str, np.ndarray], *, mesh: Mesh, stacked: bool) -> dict[str, jax.Array]:
    n = mesh.devices.size
    size = len(next(iter(batch.values())))
    check_divisible(size, n)
    if stacked:  # pmap takes [devices, batch / devices, ...]
        batch = {key: value.reshape(n, size // n, *value.shape[1:]) for key, value in batch.items()}
    return jax.device_put(batch, NamedSharding(mesh, P(AXIS)))


def _abstract(batch: dict[str, jax.ShapeDtypeStruct], *, mesh: Mesh, stacked: bool) -> dict[str, jax.ShapeDtypeStruct]:
    sharding = NamedSharding(mesh, P(AXIS))

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        n, (size, *rest) = mesh.devices.size, leaf.shape
        check_divisible(size, n)
        return jax.ShapeDtypeStruct((n, size // n, *rest) if stacked else leaf.shape, leaf.dtype, sharding=sharding)

    return {key: place(leaf) for key, leaf in batch.items()}


def check_divisible(batch_size: int, num_devices: int) -> None:
    """Raises a ValueError that names the two nearest sizes unless the devices divide the batch."""
    if batch_size % num_devices:
        below = batch_size // num_devices * num_devices
        raise ValueError(
            f"a batch of {batch_size} cannot be split evenly over {num_devices} devices: "
            f"use {f'{below} or ' if below else ''}{below + num_devices}."
        )
