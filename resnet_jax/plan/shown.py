"""A plan, shown: lines for people, and a record for JSON."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.plan import chips, needs
from resnet_jax.plan.needs import Analysis
from resnet_jax.plan.subject import CompilerCrashed, Outcome, Subject, fits

GIB = 2**30


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def header(subject: Subject) -> Iterator[str]:
    """What is planned, in two lines."""
    config, devices = subject.experiment.config, subject.devices
    hosts, count = len({device.process_index for device in devices}), chips.count_chips(devices)
    cores = f" with {len(devices) // count} devices each" if len(devices) > count else ""
    spread = f"{_plural(count, 'chip')} ({devices[0].device_kind}){cores}, {_plural(hosts, 'host')}"
    yield f"topology     {subject.topology}: {spread}"
    size, early, kwargs = config.data.image_size, config.data.early_sizes, config.model.kwargs
    sizes = f"{size}x{size}" + (f" (before: {', '.join(f'{small}x{small}' for small in early)})" if early else "")
    yield (
        f"step         {config.model.name}, {kwargs.get('dtype') or 'float32'}, {sizes}, "
        f"{subject.batch} images a device, {config.batch_size} in all; remat {subject.remat}"
    )


def result(outcome: Outcome, subject: Subject) -> Iterator[str]:
    """What the compiler says of it."""
    if not fits(outcome):
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
    yield f"  evaluation {outcome.eval_bytes / GIB:.2f} GiB, {outcome.eval_batch} images at a time"
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


def largest_line(largest: Analysis | None, refused: int) -> str:
    """What `needs.largest_batch` has found."""
    if largest is None:
        return "no batch fits"
    batch, peak = largest.batch_per_device, largest.peak_bytes / GIB
    again = _recomputed(largest)
    return f"largest batch that fits: --batch-per-chip={batch}, {peak:.2f} GiB; {refused} does not{again}"


def _recomputed(analysis: Analysis) -> str:
    return f"; the compiler makes room by computing {analysis.recomputed} results twice" if analysis.recomputed else ""


def comparison(found: Mapping[str, Outcome], reference: str) -> Iterator[str]:
    """A table; ratios are to the mode `reference`, where it fits."""
    base = found[reference]
    yield f"{'remat':<8}{'GiB':>8}{'':>8}{'GB':>9}{'':>8}{'TFLOP':>9}"
    for mode, outcome in found.items():
        if not fits(outcome):
            yield f"{mode:<8}{'crashes the compiler' if isinstance(outcome, CompilerCrashed) else 'does not fit'}"
            continue
        peak, accessed = outcome.peak_bytes, outcome.bytes_accessed
        ratios = [peak / base.peak_bytes, accessed / base.bytes_accessed] if fits(base) else [None, None]
        first, second = (f"{ratio:>7.2f}x" if ratio else " " * 8 for ratio in ratios)
        yield f"{mode:<8}{peak / GIB:>8.2f}{first}{accessed / 1e9:>9.2f}{second}{outcome.flops / 1e12:>9.3f}"


def record(
    subject: Subject, found: Mapping[str, Outcome], largest: tuple[Analysis | None, int] | None
) -> dict[str, Any]:
    """All of it, for JSON."""
    chip = chips.device_share(subject.devices)

    def entry(outcome: Outcome) -> dict[str, Any]:
        if not fits(outcome):
            return {"fits": None if isinstance(outcome, CompilerCrashed) else False, "message": str(outcome)}
        estimate = dataclasses.asdict(needs.roofline(outcome, chip)) if chip else None
        return {"fits": True, **dataclasses.asdict(outcome), "roofline": estimate}

    return {
        "topology": subject.topology,
        "device_kind": subject.devices[0].device_kind,
        "devices": len(subject.devices),
        "chips": chips.count_chips(subject.devices),
        "hosts": len({device.process_index for device in subject.devices}),
        "memory_per_device": chip.memory if chip else None,
        "model": subject.experiment.config.model.name,
        "batch_per_device": subject.batch,
        "remat": subject.remat,
        "fits": fits(found[subject.remat]),
        "modes": {mode: entry(outcome) for mode, outcome in found.items()},
        "largest": entry(largest[0]) if largest and largest[0] else None,
    }
