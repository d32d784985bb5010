"""The verb `plan`: what a run will need of a TPU slice, without the slice."""

import argparse
import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resnet_jax import processes
from resnet_jax.models.remat import REMATS

GIB = 2**30
NONE = "none"


def add_verb(verbs: Any) -> None:
    """Adds the verb to argparse's sub-parsers."""
    verb = verbs.add_parser("plan", help="what a run needs of a TPU, without one: memory, work, communication")
    verb.add_argument("--config", required=True, metavar="FILE", help="as train.py takes it, --config.KEY=VALUE too")
    verb.add_argument("--topology", required=True, help="a TPU slice: v5e:2x2, v5e:16x16, v4:2x2x1, ...")
    verb.add_argument("--batch-per-chip", type=int, metavar="N", help="config.batch_size: N for each device")
    verb.add_argument("--remat", choices=(NONE, *REMATS), help="config.model.kwargs.remat: what backward keeps")
    verb.add_argument("--compare-remat", action="store_true", help="compile with every --remat")
    verb.add_argument("--json", action="store_true", help="one JSON object")
    verb.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    """Exit code 0 if the step fits, 1 if not."""
    from resnet_jax.plan import needs

    if arguments.compare_remat and arguments.remat:
        raise ValueError("--compare-remat compiles with every --remat: leave one of the two out.")
    subject = _subject(arguments)
    say = (lambda *_: None) if arguments.json else _print
    say(*_header(subject))
    found: dict[str, Any] = {subject.remat: subject.attempt()}
    fits, largest = _fits(found[subject.remat]), None
    say(*_result(found[subject.remat], subject))
    if not fits:
        say("looking for the largest batch that fits, then for memory modes in which this one does ...")
        largest = needs.largest_batch(lambda batch: subject.attempt(batch=batch), subject.batch)
        say(_largest_line(*largest))
    if arguments.compare_remat or not fits:
        for mode in (NONE, *REMATS):
            if mode not in found:
                found[mode] = _attempted(subject, mode)
        say(*_comparison(found, reference=subject.remat))
    if arguments.json:
        print(json.dumps(_record(subject, found, largest)))
    return 0 if fits else 1


def _attempted(subject: "Subject", mode: str) -> Any:
    """As `attempt`; that one mode crashes the compiler is an entry of the comparison, and not its end."""
    try:
        return subject.attempt(remat=mode)
    except CompilerCrashed as crash:
        return crash


# What is planned ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Subject:
    """An experiment on the devices of a slice, and the arguments by which another process comes to the same."""

    arguments: argparse.Namespace
    devices: Sequence[Any]
    experiment: Any

    @property
    def remat(self) -> str:
        return self.experiment.config.model.kwargs.get("remat") or NONE

    @property
    def batch(self) -> int:
        """Images for each device."""
        return int(self.experiment.config.batch_size) // len(self.devices)

    def attempt(self, *, batch: int | None = None, remat: str | None = None) -> Any:
        """The step's `needs.Analysis`, or the `needs.DoesNotFit` that the compiler gives instead.

        Raises:
          CompilerCrashed: it gives neither.
        """
        from resnet_jax.plan import needs

        wanted = {"batch_per_chip": batch or self.batch, "remat": remat or self.remat}
        try:
            return processes.call(_analyse, argparse.Namespace(**vars(self.arguments) | wanted))
        except needs.DoesNotFit as refusal:
            return refusal
        except processes.Crashed as crash:
            raise CompilerCrashed(f"{_compiler()} crashed ({crash}). {_way_out(crash.cause)}") from crash


class CompilerCrashed(ChildProcessError):
    """Whether the step fits is not known."""


def _compiler() -> str:
    try:
        return f"the compiler, libtpu {importlib.metadata.version('libtpu')},"
    except importlib.metadata.PackageNotFoundError:  # TPU_LIBRARY_PATH names it
        return "the compiler, libtpu,"


def _way_out(cause: str) -> str:
    if cause == "SIGKILL":
        return "The system kills processes where memory runs out: plan on a machine with more."
    return (
        "Plan another batch, or with another release: libtpu 0.0.50, which JAX 0.12 on Python 3.12 brings, compiles a "
        "ResNet-50 for v6e where 0.0.42 crashes."
    )


def _subject(arguments: argparse.Namespace) -> Subject:
    from resnet_jax.plan import chips
    from resnet_jax.training import config_file, experiment

    config = config_file.load(arguments.config, arguments.overrides)
    facts = experiment.data_facts(config)
    devices = chips.slice_devices(arguments.topology)
    if arguments.batch_per_chip is not None:
        config.batch_size = arguments.batch_per_chip * len(devices)
    if arguments.remat is not None:
        config.model.kwargs.remat = None if arguments.remat == NONE else arguments.remat
    return Subject(arguments, devices, experiment.design(config, facts, devices=devices))


def _analyse(arguments: argparse.Namespace) -> Any:
    from resnet_jax.plan import needs

    return needs.analyse(_subject(arguments).experiment)


def _fits(outcome: Any) -> bool:
    return not isinstance(outcome, Exception)


# How it is shown ----------------------------------------------------------------------------------------


def _print(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)  # compiling the next takes minutes


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _header(subject: Subject) -> Iterator[str]:
    from resnet_jax.plan import chips

    config, devices = subject.experiment.config, subject.devices
    hosts, count = len({device.process_index for device in devices}), chips.count_chips(devices)
    cores = f" with {len(devices) // count} devices each" if len(devices) > count else ""
    spread = f"{_plural(count, 'chip')} ({devices[0].device_kind}){cores}, {_plural(hosts, 'host')}"
    yield f"topology     {subject.arguments.topology}: {spread}"
    size, early, kwargs = config.data.image_size, config.data.early_sizes, config.model.kwargs
    sizes = f"{size}x{size}" + (f" (before: {', '.join(f'{small}x{small}' for small in early)})" if early else "")
    yield (
        f"step         {config.model.name}, {kwargs.get('dtype') or 'float32'}, {sizes}, "
        f"{subject.batch} images a device, {config.batch_size} in all; remat {subject.remat}"
    )


def _result(outcome: Any, subject: Subject) -> Iterator[str]:
    from resnet_jax.plan import chips, needs

    if not _fits(outcome):
        yield f"does not fit: {outcome}"
        return
    chip = chips.device_share(subject.devices)
    parts = ", ".join(
        f"{name} {value / GIB:.2f}"
        for name, value in (
            ("arguments", outcome.argument_bytes),
            ("temporaries", outcome.temp_bytes),
            ("program", outcome.code_bytes),
        )
    )
    share = f" of {chip.memory / GIB:.2f} GiB ({outcome.peak_bytes / chip.memory:.0%})" if chip else " GiB"
    yield f"parameters   {outcome.num_parameters:,}"
    yield f"steps        {outcome.num_steps:,}"
    yield "on each device, in each step:"
    yield f"  memory     {outcome.peak_bytes / GIB:.2f}{share}: {parts}"
    yield (
        f"  work       {outcome.flops / 1e12:.4g} TFLOP, {outcome.bytes_accessed / 1e9:.4g} GB read and written, of "
        f"them {outcome.memory_bytes / 1e9:.4g} in HBM{_recomputed(outcome)}"
    )
    yield f"  exchange   {_exchange(outcome.collectives)}"
    if chip:
        line = needs.roofline(outcome, chip)
        yield (
            f"  estimate   {1e3 * line.seconds:.3g} ms, bound by {line.bound}: at best {line.images_per_second:,.0f} "
            f"images/s, {line.images_per_second * outcome.num_devices:,.0f} on all (roofline, nothing was run)"
        )
    yield f"fits; compiled in {outcome.compile_seconds:.0f} s"


def _exchange(collectives: Mapping[str, Any]) -> str:
    found = [f"{found.count} {kind} of {found.bytes / 1e6:.4g} MB" for kind, found in collectives.items()]
    return ", ".join(found) or "none"


def _largest_line(largest: Any, refused: int) -> str:
    if largest is None:
        return "no batch fits"
    batch, peak = largest.batch_per_device, largest.peak_bytes / GIB
    again = _recomputed(largest)
    return f"largest batch that fits: --batch-per-chip={batch}, {peak:.2f} GiB; {refused} does not{again}"


def _recomputed(analysis: Any) -> str:
    return f"; the compiler makes room by computing {analysis.recomputed} results twice" if analysis.recomputed else ""


def _comparison(found: Mapping[str, Any], reference: str) -> Iterator[str]:
    """A table; ratios are to the mode `reference`, where it fits."""
    base = found[reference]
    yield f"{'remat':<8}{'GiB':>8}{'':>8}{'GB':>9}{'':>8}{'TFLOP':>9}"
    for mode, outcome in found.items():
        if not _fits(outcome):
            yield f"{mode:<8}{'crashes the compiler' if isinstance(outcome, CompilerCrashed) else 'does not fit'}"
            continue
        peak, accessed = outcome.peak_bytes, outcome.bytes_accessed
        ratios = [peak / base.peak_bytes, accessed / base.bytes_accessed] if _fits(base) else [None, None]
        first, second = (f"{ratio:>7.2f}x" if ratio else " " * 8 for ratio in ratios)
        yield f"{mode:<8}{peak / GIB:>8.2f}{first}{accessed / 1e9:>9.2f}{second}{outcome.flops / 1e12:>9.3f}"


def _record(subject: Subject, found: Mapping[str, Any], largest: Any) -> dict[str, Any]:
    from resnet_jax.plan import chips, needs

    chip = chips.device_share(subject.devices)

    def entry(outcome: Any) -> dict[str, Any]:
        if not _fits(outcome):
            return {"fits": None if isinstance(outcome, CompilerCrashed) else False, "message": str(outcome)}
        estimate = dataclasses.asdict(needs.roofline(outcome, chip)) if chip else None
        return {"fits": True, **dataclasses.asdict(outcome), "roofline": estimate}

    return {
        "topology": subject.arguments.topology,
        "device_kind": subject.devices[0].device_kind,
        "devices": len(subject.devices),
        "chips": chips.count_chips(subject.devices),
        "hosts": len({device.process_index for device in subject.devices}),
        "memory_per_device": chip.memory if chip else None,
        "model": subject.experiment.config.model.name,
        "batch_per_device": subject.batch,
        "remat": subject.remat,
        "fits": _fits(found[subject.remat]),
        "modes": {mode: entry(outcome) for mode, outcome in found.items()},
        "largest": entry(largest[0]) if largest and largest[0] else None,
    }
