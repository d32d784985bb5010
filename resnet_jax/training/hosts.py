"""Many hosts: how they find each other, agree on what they run, and stop together."""

import json
import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

HEARTBEAT = 60  # seconds without a sign of life after which a host counts as lost, and the others stop
IN_JOB = "JOB_COMPLETION_INDEX"  # Kubernetes sets it in the pods of an indexed job


class HostsDisagree(ValueError):
    """The hosts of one run were started with different settings, data or versions."""


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
    """
    if jax.process_count() == 1:
        return
    everyones = [json.loads(text) for text in _gather_texts(json.dumps(facts, sort_keys=True))]
    first = everyones[0]
    lines = []
    for name in sorted(set().union(*everyones)):
        other = next((i for i, theirs in enumerate(everyones) if theirs.get(name) != first.get(name)), None)
        if other is not None:
            lines.append(f"  {name}: {first.get(name)!r} in process 0, {everyones[other].get(name)!r} in {other}")
    if lines:
        raise HostsDisagree("the hosts of this run disagree:\n" + "\n".join(lines) + f"\n{remedy}")


def _gather_texts(text: str) -> list[str]:
    """The text of each process, in the order of processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([data.size]))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: data.size] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]


class Preemption:
    """Whether the run has been told to make way (SIGTERM); a context manager.

    Alone, a process notes the signal and goes on to the end of its step. Among several, JAX's coordination service
    passes it on, and all learn of it at the same step.
    """

    def __init__(self) -> None:
        self._told = False
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

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process asks after every step."""
        if jax.process_count() > 1:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._told
