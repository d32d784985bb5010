r"""Does depth alone hurt? Plain nets of 20 and 56 layers beside residual ones: He et al. 2015, figures 1 and 6.

python benchmarks/degradation.py --workdir=runs/degradation --config.data.path=cifar10-jpeg-small.zip

Trains the four nets with one recipe, that of `configs/cifar10_small_resnet20.py` (or `--config`; every key of it can
be set), each in a folder of its own under --workdir, and draws WORKDIR/degradation.png and prints the table whenever
one is done. Started again it goes on where it was. With 10,000 images and the default 8 epochs: an hour on 2 CPU cores.

Training error in the figure is that of the augmented images in the steps of an epoch, net in training mode, as the
paper draws it. The table has it for the last epoch, and that of the finished net on the same images as they are.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import math
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from matplotlib.figure import Figure

from resnet_jax.training import checkpoint, config_file, experiment, loop, metrics, records

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "cifar10_small_resnet20.py"
# In the order of training: the shallow pair first, so that a run that is cut off has pairs to show.
NETS = {
    "plain-20": "cifar_plain20",
    "ResNet-20": "cifar_resnet20",
    "plain-56": "cifar_plain56",
    "ResNet-56": "cifar_resnet56",
}
KINDS = ("plain", "ResNet")
COLOURS = {"20": "tab:orange", "56": "tab:blue"}
FIGURE = "degradation.png"
FINAL = "final.json"


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a net came to, in one run of one seed.

    Attributes:
      parameters: their number.
      images: of the training and of the test split.
      train: error of the finished net on the training images, without augmentation, in percent.
    """

    parameters: int
    images: tuple[int, int]
    train: float


@dataclasses.dataclass(frozen=True)
class Curves:
    """Errors in percent, one an epoch: `train` over the steps of the epoch, `test` after it."""

    epochs: list[float]
    train: list[float]
    test: list[float]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: means over the seeds, errors in percent."""

    seeds: int
    parameters: int
    images: tuple[int, int]
    train: float
    augmented: float
    test: float
    best: float


# Training -----------------------------------------------------------------------------------------------


def configs(path: str, overrides: Sequence[str], *, epochs: float, seed: int) -> dict[str, ml_collections.ConfigDict]:
    """Net -> its experiment; they differ in `model.name` only.

    Args:
      path: the recipe.
      overrides: flags as in `["--config.data.path=images.zip"]`.
      epochs: passes over the training split.
      seed: of parameters, order and augmentation.
    """
    common = config_file.load(path, overrides)
    common.num_epochs, common.seed = epochs, seed
    common.log_every_steps = 0  # one record for all steps of an epoch
    common.eval_every_epochs = common.checkpoint_every_epochs = 1.0
    common.checkpoint_every_steps = 0
    result = {net: common.copy_and_resolve_references() for net in NETS}
    for net, config in result.items():
        config.model.name = NETS[net]
    return result


def finish(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to the end, or goes on, then leaves WORKDIR/final.json; done before, it does nothing."""
    if (workdir / FINAL).exists():
        return
    loop.train(config, str(workdir))
    done = dataclasses.asdict(evaluate_on_training_split(config, str(workdir)))
    (workdir / FINAL).write_text(json.dumps(done) + "\n")


def evaluate_on_training_split(config: ml_collections.ConfigDict, workdir: str) -> Finished:
    """The newest checkpoint on the training images as they are, each once, with the running statistics."""
    run = experiment.build(config)
    reading = dataclasses.replace(run, test_data=run.train_data)
    with checkpoint.Checkpointer(workdir) as checkpoints:
        state = checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    sums: dict[str, float] = {}
    with contextlib.closing(experiment.eval_batches(reading)) as batches:
        for batch in batches:
            sums = metrics.merge(sums, run.parallel.eval_step(state, run.parallel.shard(batch)))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Finished(parameters, (len(run.train_data), len(run.test_data)), _error(metrics.compute(sums)))


def _error(record: Mapping[str, Any]) -> float:
    return 100 * (1 - record["accuracy"])


# Reading ------------------------------------------------------------------------------------------------


def folder(workdir: pathlib.Path, net: str, seed: int) -> pathlib.Path:
    """Where a net is trained."""
    return workdir / f"{NETS[net]}-seed{seed}"


def curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Errors from the records of a run that has one of each split an epoch."""
    train, test = ([row for row in rows if row["split"] == split] for split in ("train", "test"))
    whole = list(zip(train, test, strict=False))  # a run that is under way may lack the last evaluation
    return Curves(
        [row["epoch"] for _, row in whole], [_error(row) for row, _ in whole], [_error(row) for _, row in whole]
    )


def read(workdir: pathlib.Path, seeds: Sequence[int]) -> tuple[dict[str, list[Curves]], dict[str, Row]]:
    """Net -> curves, one a seed; and the lines of the table, of nets that are done."""
    drawn: dict[str, list[Curves]] = {}
    table = {}
    for net in NETS:
        runs = [folder(workdir, net, seed) for seed in seeds]
        found = {run: curves(records.read_metrics(str(run))) for run in runs}
        drawn[net] = [lines for lines in found.values() if lines.epochs]
        done = [(run / FINAL, lines) for run, lines in found.items() if (run / FINAL).exists()]
        if done:
            table[net] = row([(Finished(**json.loads(path.read_text())), lines) for path, lines in done])
    return drawn, table


def row(runs: Sequence[tuple[Finished, Curves]]) -> Row:
    """The means over the runs of a net."""

    def mean(number: Any) -> float:
        return statistics.fmean(number(finished, lines) for finished, lines in runs)

    return Row(
        seeds=len(runs),
        parameters=runs[0][0].parameters,
        images=(runs[0][0].images[0], runs[0][0].images[1]),
        train=mean(lambda finished, lines: finished.train),
        augmented=mean(lambda finished, lines: lines.train[-1]),
        test=mean(lambda finished, lines: lines.test[-1]),
        best=mean(lambda finished, lines: min(lines.test)),
    )


# Showing ------------------------------------------------------------------------------------------------


def describe(table: Mapping[str, Row]) -> list[str]:
    """The table, the differences between the depths, and a sentence for each."""
    lines = [
        f"{'error in %':<22}{'parameters':>10}{'seeds':>7}{'training':>10}{'augmented':>11}{'test':>8}{'best test':>11}"
    ]
    for net, one in table.items():
        numbers = f"{one.train:>10.2f}{one.augmented:>11.2f}{one.test:>8.2f}{one.best:>11.2f}"
        lines.append(f"{net:<22}{one.parameters:>10,}{one.seeds:>7}{numbers}")
    pairs = {kind: pair for kind in KINDS if len(pair := _pair(table, kind)) == 2}
    for kind, (shallow, deep) in pairs.items():
        keys = {"train": ">+10.2f", "augmented": ">+11.2f", "test": ">+8.2f", "best": ">+11.2f"}
        numbers = "".join(format(getattr(deep, key) - getattr(shallow, key), form) for key, form in keys.items())
        lines.append(f"{f'{kind}-56 minus {kind}-20':<39}{numbers}")
    return [*lines, "", *(sentence(kind, *pair) for kind, pair in pairs.items())]


def sentence(kind: str, shallow: Row, deep: Row) -> str:
    """What the deeper of two nets did, whichever way it went."""
    train = _compared(deep.train, shallow.train, shallow.images[0] * shallow.seeds)
    test = _compared(deep.test, shallow.test, shallow.images[1] * shallow.seeds)
    verdict = {
        "higher": "degradation: it cannot even fit what the shallower one fits",
        "lower": "no degradation: depth helps to fit",
        "not clearly different": "neither degradation nor gain from depth",
    }[train.split(" by ")[0]]
    return f"{kind}-56 against {kind}-20: training error {train}, test error {test}. On the training images, {verdict}."


def _pair(table: Mapping[str, Row], kind: str) -> list[Row]:
    return [table[net] for net in (f"{kind}-20", f"{kind}-56") if net in table]


def _compared(deep: float, shallow: float, images: int) -> str:
    """In words; differences within two standard errors of so many images are not told apart."""
    error = 2 * math.sqrt(sum(part * (100 - part) for part in (deep, shallow)) / images)
    difference = deep - shallow
    side = "not clearly different" if abs(difference) <= error else "higher" if difference > 0 else "lower"
    return (
        f"{side} by {abs(difference):.1f} points" if abs(difference) > error else f"{side} ({difference:+.1f} points)"
    )


def draw(drawn: Mapping[str, Sequence[Curves]], path: pathlib.Path) -> None:
    """Draws a panel of plain and one of residual nets: training dashed and thin, test bold, a line a seed."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True):
        for depth, colour in COLOURS.items():
            net = f"{kind}-{depth}"
            for lines in drawn.get(net, ()):
                axes.plot(lines.epochs, lines.train, color=colour, lw=1.2, ls="--")
                axes.plot(lines.epochs, lines.test, color=colour, lw=2.5)
        axes.set(title=kind, xlabel="epoch")
    figure.savefig(path, format="png", dpi=120)


# The command --------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, draws, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a folder a net, the figure")
    parser.add_argument("--config", default=str(RECIPE), help="the recipe; keys are set by --config.KEY=VALUE")
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each net for each of them")
    arguments, overrides = parser.parse_known_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("resnet_jax").setLevel(logging.INFO)
    for seed in arguments.seeds:
        for net, config in configs(arguments.config, overrides, epochs=arguments.epochs, seed=seed).items():
            try:
                finish(config, folder(arguments.workdir, net, seed))
            except loop.Preempted as error:
                sys.exit(f"degradation.py: {error}")
            drawn, table = read(arguments.workdir, arguments.seeds)
            draw(drawn, arguments.workdir / FIGURE)
            print("\n".join(["", *describe(table)]), flush=True)
    print(f"figure  {arguments.workdir / FIGURE}")


if __name__ == "__main__":
    main()
