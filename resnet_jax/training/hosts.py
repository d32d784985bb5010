"""Many hosts: how they find each other, agree on what they run, and stop together."""

import contextlib
import itertools
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from resnet_jax.errors import Refusal

logger = logging.getLogger(__name__)

HEARTBEAT = 60  # seconds without a sign of life after which a host counts as lost, and the others stop
PATIENCE = 600  # seconds that hosts wait for one that is later than they: it reads its data, or compiles
QUIET = 10  # seconds after which a wait is said
IN_JOB = "JOB_COMPLETION_INDEX"  # Kubernetes sets it in the pods of an indexed job
# Launchers that JAX does not know, or not all releases of. Their variables: how many processes there are and which this
# one is, of all and of those on its node.
LAUNCHERS = {
    "Open MPI": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")),
    "an MPI's Hydra": ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"),
    "torchrun": ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
}

_TURNS = itertools.count()  # names what is agreed on, in the same order by all


class HostsDisagree(Refusal, ValueError):
    """The hosts of one run were started with different settings, data or versions."""


class HostMissing(Refusal, RuntimeError):
    """A host of the run did not come to where the others wait for it."""


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, heartbeat: int = HEARTBEAT) -> None:
    """Makes this process one of several, if it is; to be called before JAX uses a device.

    Args:
      coordinator: HOST:PORT of process 0. "" leaves all to the environment: Cloud TPU, SLURM, Kubernetes and Open MPI 4
        are recognised by `jax.distributed`; where none is, this process is alone.
      num_processes: how many there are; with `coordinator` only. One of `LAUNCHERS` says this and the next by itself.
      process_id: which this one is, from 0; with `coordinator` only.
      heartbeat: seconds after which a host that gives no sign of life is lost, and the processes of the others end.

    Raises:
      ValueError: some of the three are missing, or the environment says that there are others, but not where.
      HostMissing: not all have come within `PATIENCE` seconds.
    """
    options: dict[str, Any] = {
        "heartbeat_timeout_seconds": heartbeat,
        "shutdown_timeout_seconds": heartbeat,
        "initialization_timeout": PATIENCE,
    }
    if coordinator and num_processes <= 0 and process_id < 0 and (launched := _launched()):
        _, num_processes, process_id, options["local_device_ids"] = launched
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0, "process_id": process_id >= 0}
    if all(given.values()):
        with _joining(f"process {process_id} of {num_processes} waits for all to come to {coordinator}"):
            jax.distributed.initialize(coordinator, num_processes, process_id, **options)
    elif any(given.values()):
        missing = ", ".join(f"--{name}" for name, there in given.items() if not there)
        raise ValueError(
            f"to join other hosts by address, give {missing} too; or none of the three on a known cluster."
        )
    elif not _in_plain_pod():
        _join_by_environment(options)


def layout() -> str:
    """How many processes and devices a run has, in words."""
    devices, here = jax.devices(), jax.local_device_count()
    each = f", {here} of them here" if jax.process_count() > 1 else ""
    return (
        f"process {jax.process_index()} of {jax.process_count()}; {len(devices)} "
        f"device{'s' if len(devices) > 1 else ''} in all ({devices[0].device_kind}){each}"
    )


def _launched() -> tuple[str, int, int, list[int] | None] | None:
    """Which launcher has started how many processes, which this one is, and its device where others share the node."""
    for name, variables in LAUNCHERS.items():
        texts = [os.environ.get(variable, "") for variable in variables]
        size, rank, near, local = (int(text) if text.isdigit() else -1 for text in texts)
        if size > 1 and rank >= 0:
            return f"{variables[0]}={size}: {name}", size, rank, [local] if near != 1 and local >= 0 else None
    return None


def _sees_its_own() -> bool:
    """Whether a task of SLURM or Open MPI 4 is to take all devices that it sees; JAX takes the one of its number."""
    nodes = os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES"))
    one_a_node = nodes is not None and os.environ.get("SLURM_NTASKS") == nodes
    alone = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    return one_a_node or alone or "SLURM_GPUS_PER_TASK" in os.environ


def _in_plain_pod() -> bool:
    """In a Kubernetes pod that is none of a job's: JAX would ask its API for a job, and fail."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and not {IN_JOB, "TPU_WORKER_HOSTNAMES"} & os.environ.keys()


def _join_by_environment(options: dict[str, Any]) -> None:
    if _sees_its_own() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        options["local_device_ids"] = []  # no restriction
    try:
        with _joining("this process waits for all that its environment speaks of"):
            jax.distributed.initialize(**options)
    except ValueError as error:
        if "coordinator_address" not in str(error):  # what it says where it recognises no cluster
            raise
        if launched := _launched():
            raise ValueError(
                f"{launched[0]} has started {launched[1]} processes, of which this is number {launched[2]}, but JAX "
                "cannot tell where number 0 is: give --coordinator=HOST:PORT, its machine and a free port there; the "
                "numbers are taken from the environment. --hosts=one is for processes that know nothing of each other."
            ) from error
        if IN_JOB in os.environ:
            raise ValueError(
                f"{IN_JOB}={os.environ[IN_JOB]}: this is one pod of a Kubernetes job, but JAX cannot find the others: "
                'install "jax[k8s]", or give --coordinator, --num_processes and --process_id.'
            ) from error


@contextlib.contextmanager
def _joining(what: str) -> Iterator[None]:
    with _said(lambda: f"{what}, for up to {PATIENCE} s"):
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise HostMissing(
                f"{what}: not all of them have within {PATIENCE} s, or their addresses are wrong: see what the others "
                f"say, then start all of them again. The cause: {error}"
            ) from error


@contextlib.contextmanager
def _said(line: Callable[[], str]) -> Iterator[None]:
    """Logs `line()` if what is done takes longer than `QUIET` seconds: a wait is not to look like a standstill."""

    def say() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the store has gone, of which the wait itself will tell
            logger.warning("%s", line())

    timer = threading.Timer(QUIET, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this process is the one that writes for people."""
    return jax.process_index() == 0


def of_first(value: Any) -> Any:
    """The value that the first process gives, anything that JSON takes, in every process. Called by all, in one order.

    Raises:
      HostMissing: the first did not come within `PATIENCE` seconds.
    """
    if jax.process_count() == 1:
        return value
    with _meeting() as (client, turn, left):
        if is_first():
            client.key_value_set(f"{turn}/value", json.dumps(value))
        return json.loads(client.blocking_key_value_get(f"{turn}/value", left()))


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
    with _meeting() as (client, turn, left):
        client.key_value_set(f"{turn}/{jax.process_index()}", facts)
        if is_first():
            everyones = [
                json.loads(client.blocking_key_value_get(f"{turn}/{index}", left()))
                for index in range(jax.process_count())
            ]
            client.key_value_set(f"{turn}/differences", _differences(everyones))
        differences: str = client.blocking_key_value_get(f"{turn}/differences", left())
        return differences


@contextlib.contextmanager
def _meeting() -> Iterator[tuple[Any, str, Callable[[], int]]]:
    """The store, a name for what is put there, and how many milliseconds are left; all leave together.

    Raises:
      HostMissing: a process did not come within `PATIENCE` seconds of this one.
    """
    client, turn = multihost.get_jax_distributed_client(), f"resnet_jax/agree/{next(_TURNS)}"
    deadline, here = time.monotonic() + PATIENCE, str(jax.process_index())

    def missing() -> str:
        names = {key.rpartition("/")[2] for key, _ in client.key_value_dir_get(f"{turn}/here/")}
        absent = [index for index in range(jax.process_count()) if str(index) not in names]
        who = ", ".join(map(str, absent[:8])) + (" and others" if len(absent) > 8 else "")
        return f"process {who}" if absent else "what the first is to say"

    try:
        client.key_value_set(f"{turn}/here/{here}", "")
        with _said(lambda: f"process {here} waits for {missing()}, for up to {PATIENCE} s"):
            yield client, turn, lambda: max(1, round(1000 * (deadline - time.monotonic())))
            # The store is the first's, and would end with it. All are here by now, if but just.
            client.wait_at_barrier(f"{turn}/end", 1000 * max(QUIET, round(deadline - time.monotonic())))
    except jax.errors.JaxRuntimeError as error:
        raise HostMissing(
            f"another host of this run has not come to this point within {PATIENCE} s, or has ended: see what it says, "
            f"then start all of them again. The cause: {error}"
        ) from error


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
