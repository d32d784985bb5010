"""What is planned: the train step of a config on a TPU slice, compiled in a process of its own."""

import dataclasses
import functools
import importlib.metadata
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import jax

from resnet_jax import processes
from resnet_jax.errors import Refusal
from resnet_jax.plan import chips, needs
from resnet_jax.training import config_file, experiment
from resnet_jax.training.keys import effect

NONE = "none"  # the mode of rematerialisation that a config calls None


class CompilerCrashed(Refusal, ChildProcessError):
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


Outcome: TypeAlias = needs.Analysis | needs.DoesNotFit | CompilerCrashed


def fits(outcome: Outcome) -> TypeGuard[needs.Analysis]:
    """Whether the step fits, as far as is known."""
    return isinstance(outcome, needs.Analysis)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The train step of a config on a slice: all that another process needs to come to the same.

    Attributes:
      config: path of the config's file.
      overrides: `--config.KEY=VALUE` flags.
      topology: name of the slice: "v5e:2x2".
      batch_per_chip: images for each device; None: as the config has it.
      mode: of rematerialisation, or "none"; None: as the config has it.
    """

    config: str
    overrides: Sequence[str]
    topology: str
    batch_per_chip: int | None = None
    mode: str | None = None

    @functools.cached_property
    def devices(self) -> Sequence[jax.Device]:
        return chips.slice_devices(self.topology)

    @functools.cached_property
    def experiment(self) -> experiment.Experiment:
        config = config_file.load(self.config, self.overrides)
        facts = experiment.data_facts(config)
        if self.batch_per_chip is not None:
            config.batch_size = self.batch_per_chip * len(self.devices)
        if self.mode is not None:
            config.model.kwargs.remat = None if self.mode == NONE else self.mode
        effect.check(config)
        return experiment.design(config, facts, devices=self.devices)

    @property
    def remat(self) -> str:
        return self.experiment.config.model.kwargs.get("remat") or NONE

    @property
    def batch(self) -> int:
        """Images for each device."""
        return int(self.experiment.config.batch_size) // len(self.devices)

    def attempt(self, *, batch: int | None = None, remat: str | None = None) -> needs.Analysis | needs.DoesNotFit:
        """What the step needs, or the refusal that the compiler gives instead.

        Raises:
          CompilerCrashed: it gives neither.
        """
        settled = (self.config, self.overrides, self.topology, batch or self.batch, remat or self.remat)
        try:
            analysis: needs.Analysis = processes.call(_analyse, *settled)
            return analysis
        except needs.DoesNotFit as refusal:
            return refusal
        except processes.Crashed as crash:
            raise CompilerCrashed(f"{_compiler()} crashed ({crash}). {_way_out(crash.cause)}") from crash

    def attempted(self, mode: str) -> Outcome:
        """As `attempt` with another mode; that this crashes the compiler is one outcome, and not the end."""
        try:
            return self.attempt(remat=mode)
        except CompilerCrashed as crash:
            return crash


def _analyse(*settled: Any) -> needs.Analysis:
    return needs.analyse(Subject(*settled).experiment)
