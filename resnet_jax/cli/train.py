"""The verb `train`: trains a network, goes on with a run, evaluates one, or only tries the start."""

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from resnet_jax import errors

DESCRIPTION = """\
Trains a network, or goes on with a run; evaluates its newest checkpoint; or tries the start of it.

  resnet-jax train --config=digits_resnet20 --workdir=runs/digits
  resnet-jax train --config=digits_resnet20 --workdir=runs/digits --mode=eval
  resnet-jax train --config=digits_resnet20 --mode=dry_run
  resnet-jax train --workdir=runs/digits --extend-to=60

Any key of the config can be set: --config.batch_size=64; `resnet_jax/configs/default.py` explains each.
Exit code: 0 done; 1 refused or failed; 130 Ctrl-C; 75 told to make way (SIGTERM), saved: the same command goes on.
"""
INTERRUPTED = 130  # 128 + SIGINT, as shells say it
HEARTBEAT = 60


class NotAsLogged(errors.Refusal, RuntimeError):
    """An evaluation gives other numbers than the run has logged."""


def add_verb(verbs: Any) -> None:
    """Adds `train` to argparse's sub-parsers."""
    verb = verbs.add_parser(
        "train",
        help="train, go on with a run, or try the start of one",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(verb)
    verb.set_defaults(run=_run, program="resnet-jax train")


def add_options(verb: argparse.ArgumentParser) -> None:
    """Adds the options of the verb, which are those of `train.py`, too."""
    verb.add_argument("--config", help="a recipe's name, or a file FILE.py; by default, that of the run in --workdir")
    verb.add_argument(
        "--workdir", default="", help="folder of the run: config, metrics, checkpoints, curves; gs:// too"
    )
    modes = ("train", "eval", "dry_run")
    verb.add_argument("--mode", choices=modes, default="train", help="eval: the newest checkpoint; dry_run: only try")
    verb.add_argument(
        "--extend-to", type=float, metavar="EPOCHS", help="more epochs for the run in --workdir: so many in all"
    )
    verb.add_argument("--verbose", action="store_true", help="show what Orbax, Grain and JAX say, too")
    hosts = verb.add_argument_group("several hosts")
    hosts.add_argument("--hosts", choices=("auto", "one"), default="auto", help="by the environment, or this one alone")
    hosts.add_argument(
        "--coordinator", default="", help="HOST:PORT of process 0, where the environment does not say it"
    )
    for name, default, words in (
        ("num_processes", 0, "with --coordinator: how many processes there are"),
        ("process_id", -1, "with --coordinator: which this one is, from 0"),
        ("heartbeat", HEARTBEAT, "seconds after which a silent host is lost, and the others stop"),
    ):
        names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        hosts.add_argument(*names, type=int, default=default, help=words)


def main(argv: Sequence[str], program: str) -> int:
    """`train.py`."""
    parser = argparse.ArgumentParser(
        program, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    arguments, overrides = parser.parse_known_args(argv)
    arguments.overrides, arguments.program = overrides, program
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """What the library itself refuses is one message and no traceback."""
    try:
        return _train(arguments)
    except Exception as error:
        refused = errors.is_refusal(error)
        if not refused and not _is_one_of_many():
            raise
        said = errors.message(error)
        print(f"{arguments.program}: {said}" if refused else said, file=sys.stderr, flush=True)
        return _exit(error.exit_code if isinstance(error, errors.Refusal) else 1)
    except KeyboardInterrupt:
        said = "interrupted; the same command goes on from the newest checkpoint"
        print(f"{arguments.program}: {said}", file=sys.stderr, flush=True)
        return _exit(INTERRUPTED)


def _train(arguments: argparse.Namespace) -> int:
    _show_lines(arguments.verbose)
    from resnet_jax import compiler  # after the options: --help then needs no JAX
    from resnet_jax.training import config_file, hosts, loop

    compiler.guard()
    joins = arguments.coordinator or arguments.num_processes or arguments.process_id >= 0
    if arguments.hosts == "one" and joins:
        raise ValueError("--hosts=one is alone; --coordinator, --num_processes and --process_id join others.")
    workdir = os.path.expanduser(arguments.workdir)
    if arguments.extend_to is not None and arguments.mode != "train":
        raise ValueError(f"--extend-to trains, and --mode={arguments.mode} does not: leave one of them out.")
    if arguments.extend_to is not None and any("config.num_epochs" in text for text in arguments.overrides):
        raise ValueError("--extend-to and --config.num_epochs both say how many epochs: leave one of them out.")
    if arguments.config:
        config = config_file.load(arguments.config, arguments.overrides)
    elif arguments.workdir:
        config = config_file.of_run(workdir, arguments.overrides)
    else:
        raise ValueError("give --config=NAME_OR_FILE, or --workdir=DIR of a run to go on with its own.")
    if arguments.hosts == "auto":
        hosts.join(arguments.coordinator, arguments.num_processes, arguments.process_id, heartbeat=arguments.heartbeat)
    if arguments.extend_to is not None:
        config.num_epochs = arguments.extend_to
    if arguments.mode == "dry_run":
        from resnet_jax.plan import dry_run

        lines = dry_run.dry_run(config)
    elif arguments.mode == "eval":
        lines = _compare(loop.evaluate(config, workdir), workdir)
    else:
        lines = _left(loop.train(config, workdir, extend=arguments.extend_to is not None), workdir)
    if hosts.is_first():
        print("\n".join(lines))
    return 0


def _show_lines(verbose: bool) -> None:
    """Our own lines, and from warnings on those of Orbax, Grain and JAX."""
    from absl import flags
    from absl import logging as absl_logging

    if not flags.FLAGS.is_parsed():  # it has none of ours, and says so before each of its lines
        flags.FLAGS.mark_as_parsed()
    absl_logging.use_absl_handler()
    logging.getLogger("resnet_jax").setLevel(logging.INFO)
    absl_logging.set_verbosity(absl_logging.INFO if verbose else absl_logging.WARNING)


def _left(result: dict[str, Any], workdir: str) -> list[str]:
    """What a run left."""
    from etils import epath

    from resnet_jax.runs import plots, reporting
    from resnet_jax.training import checkpoint

    folder = epath.Path(workdir)
    return [
        reporting.accuracy_line(result),
        f"curves      {folder / plots.CURVES}",
        f"checkpoint  {folder / checkpoint.CHECKPOINTS / str(result['step'])}",
    ]


def _compare(result: dict[str, Any], workdir: str) -> list[str]:
    """The accuracy, and whether it is what was logged."""
    from resnet_jax.runs import history, reporting

    lines = [reporting.accuracy_line(result)]
    for logged in history.test_records(history.read_metrics(workdir) if workdir else []):
        if logged["step"] == result["step"]:
            if any(logged[key] != result[key] for key in ("correct", "count")):
                was = reporting.accuracy_line(logged)
                raise NotAsLogged(f"step {result['step']} was logged with {was}, and now it is {lines[0]}")
            lines.append(f"equals what was logged at step {result['step']}")
    return lines


def _is_one_of_many() -> bool:
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _exit(code: int) -> int:
    """The exit code; one of many that failed ends at once, for an orderly end waits for all of them."""
    if code != errors.PREEMPTED and _is_one_of_many():
        from resnet_jax.training import hosts

        # The others hear of each other through the first: its end cuts off what they are about to say.
        time.sleep(2 if hosts.is_first() else 0)
        os._exit(code)
    return code
