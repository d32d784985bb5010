"""The verb `plan`: what a run will need of a TPU slice, without the slice."""

import argparse
import json
from typing import Any

from resnet_jax.models.remat import REMATS


def add_verb(verbs: Any) -> None:
    """Adds the verb to argparse's sub-parsers."""
    verb = verbs.add_parser("plan", help="what a run needs of a TPU, without one: memory, work, communication")
    verb.add_argument("--config", required=True, metavar="FILE", help="as train.py takes it, --config.KEY=VALUE too")
    verb.add_argument("--topology", required=True, help="a TPU slice: v5e:2x2, v5e:16x16, v4:2x2x1, ...")
    verb.add_argument("--batch-per-chip", type=int, metavar="N", help="config.batch_size: N for each device")
    verb.add_argument("--remat", choices=("none", *REMATS), help="config.model.kwargs.remat: what backward keeps")
    verb.add_argument("--compare-remat", action="store_true", help="compile with every --remat")
    verb.add_argument("--json", action="store_true", help="one JSON object")
    verb.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    """Exit code 0 if the step fits, 1 if not."""
    from resnet_jax.plan import needs, shown
    from resnet_jax.plan.subject import NONE, Subject, fits

    if arguments.compare_remat and arguments.remat:
        raise ValueError("--compare-remat compiles with every --remat: leave one of the two out.")
    subject = Subject(
        arguments.config, arguments.overrides, arguments.topology, arguments.batch_per_chip, arguments.remat
    )
    say = (lambda *_: None) if arguments.json else _print
    say(*shown.header(subject))
    found: dict[str, Any] = {subject.remat: subject.attempt()}
    fitting, largest = fits(found[subject.remat]), None
    say(*shown.result(found[subject.remat], subject))
    if not fitting:
        say("looking for the largest batch that fits, then for memory modes in which this one does ...")
        largest = needs.largest_batch(lambda batch: subject.attempt(batch=batch), subject.batch)
        say(shown.largest_line(*largest))
    if arguments.compare_remat or not fitting:
        for mode in (NONE, *REMATS):
            if mode not in found:
                found[mode] = subject.attempted(mode)
        say(*shown.comparison(found, reference=subject.remat))
    if arguments.json:
        print(json.dumps(shown.record(subject, found, largest)))
    return 0 if fitting else 1


def _print(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)  # compiling the next takes minutes
