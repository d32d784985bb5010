"""The folder of a run, and the files that say which run it is: config.json, classes.json, run.json with its starts."""

import contextlib
import datetime
import fcntl
import itertools
import json
import logging
import os
import pathlib
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from etils import epath

from resnet_jax.errors import Refusal
from resnet_jax.runs import history, storage
from resnet_jax.version import __version__

logger = logging.getLogger(__name__)

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
STARTS = "run.json"
CLASSES = "classes.json"
LOCK = ".lock"
KEPT_STARTS = 1000
EPOCHS = "num_epochs"

# Keys that may differ between the starts of one run: they decide where, how fast, how often and whether it goes on, but
# no number.
FREE_KEYS = {
    "parallel", "log_every_steps", "eval_every_epochs", "checkpoint_every_epochs", "checkpoint_every_steps",
    "keep_checkpoints", "keep_best", "tensorboard", "profile_steps", "compilation_cache_dir",
    "data.path", "data.data_dir", "data.num_threads", "data.num_workers", "data.on_error", "data.max_unreadable",
}  # fmt: skip
# Of these, what each host of a run may choose for itself: where its data lie, and how it reads them.
LOCAL_KEYS = {"compilation_cache_dir", "data.path", "data.data_dir", "data.num_threads", "data.num_workers"}

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class WorkdirInUse(Refusal, RuntimeError):
    """Another process trains in the workdir."""


def claim(workdir: str, config: Any, *, writes: bool = True, extend: bool = False) -> None:
    """Writes the resolved `config` (an ml_collections.ConfigDict) into `workdir`, unless another run lives there.

    The config of a start that made no step is replaced.

    Args:
      workdir: the folder of the run, on a disk or in a bucket.
      config: the resolved config.
      writes: False on every process but the first: it only compares.
      extend: its `num_epochs` may be more than those of the run that lives there.

    Raises:
      ValueError: no workdir, one in a store that is not safe, one whose config.json is of something else, or one in
        which steps have been made with a config that differs in a key that is not in `FREE_KEYS`; with
        `extend`, none to extend, or fewer epochs.
      NotWritten: disk full, no permission, bucket gone.
    """
    if not workdir:
        raise ValueError("a run needs a folder of its own: give --workdir=DIR.")
    if storage.is_bucket(workdir) and not workdir.startswith("gs://"):
        # Orbax marks a checkpoint as whole in gs:// alone; elsewhere it renames, which an object store does not have.
        raise ValueError(f"{workdir}: elsewhere than on a disk or in gs:// a kill could leave half a checkpoint.")
    path = epath.Path(workdir) / CONFIG
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2) + "\n"
    there = storage.read_if_there(path)
    if extend:
        _check_more(workdir, None if there is None else _parse(path, there), config.num_epochs)
    if there is not None:
        found = _parse(path, there)
        if not _is_of_run(found):
            raise ValueError(f"{path} is not the config of a run, and would be overwritten: give another --workdir.")
        if is_bound(workdir):
            free = FREE_KEYS | {EPOCHS} if extend else FREE_KEYS
            _check_same(workdir, _flat(found), _flat(json.loads(text)), free)
    if writes and there != text.encode():
        storage.write_whole(path, text.encode())


def is_bound(workdir: str) -> bool:
    """Whether a run has made steps in `workdir`: it has left a checkpoint or a record of some.

    Raises:
      ValueError: metrics.jsonl is there, and holds something else.
    """
    folder = epath.Path(workdir) / CHECKPOINTS
    saved = folder.exists() and any(path.name.isdigit() for path in folder.iterdir())
    return saved or bool(history.read_metrics(workdir))


@contextlib.contextmanager
def alone(workdir: str, *, writes: bool = True) -> Iterator[None]:
    """Holds the lock of `workdir`, which a killed process lets go; a bucket, and some network disks, have none.

    Two at once would write the same files, and each remove what the other is about to save.

    Args:
      workdir: the folder of the run; made where it is missing.
      writes: False on every process but the first: it needs no lock.

    Raises:
      WorkdirInUse: another process trains in `workdir`.
      NotWritten: disk full, no permission.
    """
    if not writes or not workdir or storage.is_bucket(workdir):
        yield
        return
    with contextlib.ExitStack() as stack:
        with storage.named(path := epath.Path(workdir) / LOCK):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("ab"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirInUse(
                f"another process is training in {workdir}: wait for its end, stop it, or give another --workdir. "
                "(Hosts of one run need to know of each other: --coordinator, --num_processes, --process_id.)"
            ) from None
        except OSError as error:
            logger.warning("%s has no locks (%s): take care that no other process trains in it", workdir, error)
        yield


def shared_keys(config: Any) -> dict[str, Any]:
    """The keys of a resolved config in which all hosts of a run must agree: dotted name -> value."""
    flat = _flat(json.loads(config.to_json_best_effort()))
    return {key: value for key, value in flat.items() if key not in LOCAL_KEYS}


def load_config(workdir: str) -> dict[str, Any]:
    """The resolved config of the run in `workdir`.

    Raises:
      FileNotFoundError: `workdir` holds no run.
    """
    content = storage.read_if_there(path := epath.Path(workdir).expanduser() / CONFIG)
    if content is None:
        raise FileNotFoundError(f"{workdir} holds no {CONFIG}: it is not the workdir of a run.")
    config: dict[str, Any] = _parse(path, content)
    return config


def find_run(place: epath.PathLike) -> tuple[dict[str, Any], tuple[str, ...] | None] | None:
    """Config and class names of the run that `place` is of: its workdir, or one of its checkpoints.

    None if it is of no run, as others put a config.json beside weights, too. Runs of before there was the file have no
    names (None).

    Raises:
      ValueError: a file of the run is damaged.
    """
    folder = epath.Path(place)
    for workdir in (folder, folder.parent.parent):
        path = workdir / CONFIG
        if workdir == folder or folder.parent.name == CHECKPOINTS:
            try:
                config = _parse(path, path.read_bytes()) if path.is_file() else {}
            except ValueError:
                if not (workdir / CHECKPOINTS).exists():
                    return None
                raise
            if _is_of_run(config):
                return config, load_class_names(str(workdir))
    return None


def keep_class_names(workdir: str, names: Sequence[str], *, writes: bool = True) -> None:
    """Writes the names of the classes, in the order of the logits, into a run's folder; once it has steps, they stay.

    Args:
      workdir: the folder of the run.
      names: those of the data.
      writes: False on every process but the first: it only compares.

    Raises:
      ValueError: the run has been trained on classes of other names.
      NotWritten: disk full, no permission, bucket gone.
    """
    there = load_class_names(workdir)
    if there == tuple(names):
        return
    if there is None or not is_bound(workdir):
        if writes:
            storage.write_whole(epath.Path(workdir) / CLASSES, (json.dumps(list(names), indent=0) + "\n").encode())
    else:
        pairs = list(itertools.zip_longest(there, names, fillvalue="nothing"))
        odd, (theirs, ours) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        raise ValueError(
            f"{workdir} was trained on {len(there)} classes of other names than the {len(names)} of the data now: "
            f"class {odd} was {theirs!r} and is {ours!r}. Give it the data of its start, or use another --workdir."
        )


def load_class_names(workdir: str) -> tuple[str, ...] | None:
    """The names of a run's classes, in the order of the logits; None of a run from before they were kept.

    Raises:
      ValueError: the file is there, and holds no list of names.
    """
    text = storage.read_if_there(path := epath.Path(workdir) / CLASSES)
    if text is None:
        return None
    names = _parse(path, text)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} does not hold the names of a run's classes: move it away.")
    return tuple(names)


def _is_of_run(config: Any) -> bool:
    return isinstance(config, dict) and {"model", "data"} <= set(config)


def _parse(path: epath.Path, content: bytes) -> Any:
    try:
        config = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): move it away, and start with the very config of that run to continue it."
        ) from error
    return config


def describe_start(*, first_step: int) -> dict[str, Any]:
    """This process as an entry of run.json: command, code, versions, machine, devices; nothing secret.

    Args:
      first_step: steps that the run has made before this start.

    Returns:
      What `json.dumps` takes. Of the environment only XLA_FLAGS and JAX_* are in it.
    """
    devices = jax.devices()
    held = Counter(device.process_index for device in devices)
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "first_step": first_step,
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "code": {"resnet_jax": __version__, **_git()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "local_count": jax.local_device_count(),
        },
        "processes": {
            "count": jax.process_count(),
            "index": jax.process_index(),
            "devices_of_each": [held[index] for index in range(jax.process_count())],
        },
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name == "XLA_FLAGS" or name.startswith("JAX_")
        },
    }


def record_start(workdir: str, entry: Mapping[str, Any]) -> None:
    """Adds `entry` to the list in run.json; of very many starts the last `KEPT_STARTS` are kept.

    Raises:
      ValueError: run.json is there and holds no such list.
      NotWritten: disk full, no permission, bucket gone.
    """
    path = epath.Path(workdir) / STARTS
    starts = [*load_starts(workdir), entry][-KEPT_STARTS:]
    storage.write_whole(path, (json.dumps({"starts": starts}, indent=2) + "\n").encode())


def load_starts(workdir: str) -> list[dict[str, Any]]:
    """The starts of a run, oldest first, as `describe_start` made them.

    Raises:
      ValueError: run.json is there and holds no such list.
    """
    text = storage.read_if_there(path := epath.Path(workdir) / STARTS)
    if text is None:
        return []
    try:
        return list(json.loads(text)["starts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold the starts of a run ({error}): move it away.") from error


def _check_more(workdir: str, there: Mapping[str, Any] | None, num_epochs: float) -> None:
    if there is None:
        raise ValueError(f"{workdir} holds no run that could have more epochs: start one without --extend-to.")
    if num_epochs < there[EPOCHS]:
        raise ValueError(f"--extend-to={num_epochs:g}: the run in {workdir} has {there[EPOCHS]:g} epochs; give more.")


def _check_same(
    workdir: str, there: Mapping[str, Any], here: Mapping[str, Any], free: Collection[str] = FREE_KEYS
) -> None:
    differences = [
        f"  config.{key}: {_shown(key, there)} there, {_shown(key, here)} now"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key) and key not in free
    ]
    if differences:
        raise ValueError(
            f"{workdir} belongs to another run:\n" + "\n".join(differences) + "\n"
            "Start with that run's config to go on with it, with --extend-to=EPOCHS for more of them; or use another "
            f"--workdir, which --config.init_from={workdir} starts from its weights."
        )


def _shown(key: str, flat: Mapping[str, Any]) -> str:
    return repr(flat[key]) if key in flat else "no such key"  # in a config of another version


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Commit, and whether files under version control differ from it; nothing where the code is no checkout."""
    root = pathlib.Path(__file__).resolve().parents[2]
    # An installed package may lie below somebody else's checkout, whose commit says nothing about it.
    if not (root / ".git").exists():
        return {}
    try:
        changed = _ask_git(root, "status", "--porcelain", "--untracked-files=no")
        return {"commit": _ask_git(root, "rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout that it cannot read
        return {}


def _ask_git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
