"""Many hosts: how they find each other, agree on what they run, and stop together."""

import itertools
import json
import logging
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

logger = logging.getLogger(__name__)

HEARTBEAT = 60  # seconds without a sign of life after which a host counts as lost, and the others stop
PATIENCE = 600  # seconds that hosts wait for one that is later than they: it reads its data, or compiles
IN_JOB = "JOB_COMPLETION_INDEX"  # Kubernetes sets it in the pods of an indexed job


_TURNS = itertools.count()  # names what is agreed on, in the same order by all


class HostsDisagree(ValueError):
    """The hosts of one run were started with different settings, data or versions."""


class HostMissing(RuntimeError):
    """A host of the run did not come to where the others wait for it."""


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, heartbeat: int = HEARTBEAT) -> None:
    """Makes this process one of several, if it is; to be called before JAX uses a device.

    Args:
      coordinator: HOST:PORT of process 0. "" leaves all to the environment: Cloud TPU, SLURM, Kubernetes and Open MPI
        are recognised by `jax.distributed`; where none is, this process is alone.
      num_processes: how many there are; with `coordinator` only.
      process_id: which this one is, from 0; with `coordinator` only.
      heartbeat: seconds after which a host that gives no sign of life is lost, and the processes of the others end.

    Raises:
      ValueError: some of the three are missing, or the environment says that there are others, but not where.
    """
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0, "process_id": process_id >= 0}
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    if all(given.values()):
        jax.distributed.initialize(coordinator, num_processes, process_id, **limits)
    elif any(given.values()):
        missing = ", ".join(f"--{name}" for name, there in given.items() if not there)
        raise ValueError(
            f"to join other hosts by address, give {missing} too; or none of the three on a known cluster."
        )
    elif not _in_plain_pod():
        _join_by_environment(limits)
    if jax.distributed.is_initialized():
        logger.info("process %d of %d", jax.process_index(), jax.process_count())


def _in_plain_pod() -> bool:
    """In a Kubernetes pod that is none of a job's: JAX would ask its API for a job, and fail."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and not {IN_JOB, "TPU_WORKER_HOSTNAMES"} & os.environ.keys()


def _join_by_environment(limits: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(**limits)
    except ValueError as error:
        if "coordinator_address" not in str(error):  # what it says where it recognises no cluster
            raise
        if IN_JOB in os.environ:
            raise ValueError(
                f"{IN_JOB}={os.environ[IN_JOB]}: this is one pod of a Kubernetes job, but JAX cannot find the others: "
                'install "jax[k8s]", or give --coordinator, --num_processes and --process_id.'
            ) from error


def is_first() -> bool:
    """Whether this process is the one that writes for people."""
    return jax.process_index() == 0


def agree(facts: Mapping[str, Any], remedy: str) -> None:
    """Makes sure that all processes hold the same facts; all of them raise, or none. Called by all, in one order.

    Args:
      facts: name -> anything that JSON takes.
      remedy: what to do about a difference, for the message.

    Raises:
      HostsDisagree: the message names each fact that differs, and two processes with their values.
      HostMissing: one did not come within `PATIENCE` seconds.
    """
    if jax.process_count() == 1:
        return
    differences = _compare_at_first(json.dumps(facts, sort_keys=True))
    if differences:
        raise HostsDisagree(f"the hosts of this run disagree:\n{differences}\n{remedy}")


def _compare_at_first(facts: str) -> str:
    """What process 0 finds to differ between the facts of all, in each process.

    Through the coordination service, which waits for hosts that are late, tells which are missing, and takes hosts
    with unlike numbers of devices. A collective of gloo gives up where one comes half a minute after another.
    """
    client, turn = multihost.get_jax_distributed_client(), f"resnet_jax/agree/{next(_TURNS)}"
    client.key_value_set(f"{turn}/{jax.process_index()}", facts)
    try:
        if is_first():
            everyones = [
                client.blocking_key_value_get(f"{turn}/{index}", 1000 * PATIENCE)
                for index in range(jax.process_count())
            ]
            client.key_value_set(f"{turn}/differences", _differences([json.loads(text) for text in everyones]))
        # A late host has kept the first waiting for as long as it may; the others allow for that.
        differences: str = client.blocking_key_value_get(f"{turn}/differences", 2000 * PATIENCE)
        client.wait_at_barrier(f"{turn}/end", 1000 * PATIENCE)  # the store is the first's, and would end with it
    except jax.errors.JaxRuntimeError as error:
        raise HostMissing(
            f"another host of this run has not come to this point within {PATIENCE} s, or has ended: see what it says, "
            f"then start all of them again. The cause: {error}"
        ) from error
    return differences


def _differences(everyones: Sequence[Mapping[str, Any]]) -> str:
    """A line for each fact that is not the same in all processes: its value in process 0, and in one that differs."""
    first, lines = everyones[0], []
    for name in sorted(set().union(*everyones)):
        other = next((i for i, theirs in enumerate(everyones) if theirs.get(name) != first.get(name)), None)
        if other is not None:
            lines.append(f"  {name}: {first.get(name)!r} in process 0, {everyones[other].get(name)!r} in {other}")
    return "\n".join(lines)


class Preemption:
    """Whether the run has been told to make way (SIGTERM); a context manager.

    Alone, a process notes the signal and goes on to where it asks next. Among several, JAX's coordination service
    passes it on, and all learn of it at the same question.
    """

    def __init__(self) -> None:
        self._told = False
        self._asked = 0
        self._before: Any = None

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; a run started in another one keeps those that are there.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *unused: object) -> None:
        self._told = True

    def reached(self) -> bool:
        """Whether to save and stop now; every process asks equally often, or they would not stop at the same place."""
        if jax.process_count() > 1:
            self._asked += 1
            return bool(multihost_utils.reached_preemption_sync_point(self._asked))
        return self._told
