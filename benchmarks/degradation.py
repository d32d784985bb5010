r"""Does depth alone hurt? Plain nets of 20 and 56 layers beside residual ones: He et al. 2015, figures 1 and 6.

python benchmarks/degradation.py --workdir=runs/degradation --config.data.path=cifar10-jpeg-small.zip

Trains the four nets with one recipe, that of `configs/cifar10_small_resnet20.py` (or `--config`), each in a folder of
its own under --workdir; draws WORKDIR/degradation.png and prints the table whenever one is done. Started again it goes
on where it was. 10,000 images for the default 8 epochs took 2 busy CPU cores 98 minutes.

Training error in the figure, and `augmented` in the table, is that of the augmented images of an epoch, each in its
step, with the batch's statistics in batch norm. `training` in the table is that of the finished net on the same images
as they are, with the running statistics, as at a test.
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

from resnet_jax import compiler
from resnet_jax.runs import history
from resnet_jax.step import metrics
from resnet_jax.training import checkpoint, config_file, experiment, loop

RECIPE = pathlib.Path(__file__).parent.parent / "configs" / "cifar10_small_resnet20.py"
# In the order of training: the shallow pair first, so that a run that is cut off has something to compare.
NETS = {
    "plain-20": "cifar_plain20",
    "ResNet-20": "cifar_resnet20",
    "plain-56": "cifar_plain56",
    "ResNet-56": "cifar_resnet56",
}
PANELS = {"plain": "plain nets", "ResNet": "residual nets"}
COLOURS = {20: "tab:orange", 56: "tab:blue"}
FIGURE = "degradation.png"
FINAL = "final.json"  # of each net
NOTE = "(Apart by more than two standard errors of that many images; what another seed would give is not in them.)"
SET_HERE = {
    "num_epochs": "--epochs sets it",
    "seed": "--seeds sets it",
    "model.name": "the four nets are given",
    "log_every_steps": "there is one record an epoch",
    "eval_every_epochs": "each epoch is evaluated",
}


@dataclasses.dataclass(frozen=True)
class Curves:
    """Errors in percent, one an epoch: `train` over the steps of the epoch, `test` after it."""

    epochs: list[float]
    train: list[float]
    test: list[float]


@dataclasses.dataclass(frozen=True)
class Row:
    """What a net came to, as means over its runs.

    Attributes:
      runs: how many, one a seed.
      parameters: of the net.
      images: of each split that `errors` are measured on, over all runs.
      errors: in percent: `training`, `augmented`, `test`, `best test`.
    """

    runs: int
    parameters: int
    images: dict[str, int]
    errors: dict[str, float]


# Training -----------------------------------------------------------------------------------------------


def configs(path: str, overrides: Sequence[str], *, epochs: float, seed: int) -> dict[str, ml_collections.ConfigDict]:
    """Net -> its experiment; they differ in `model.name` only.

    Args:
      path: the recipe.
      overrides: flags as in `["--config.data.path=images.zip"]`.
      epochs: passes over the training split.
      seed: of parameters, order and augmentation.

    Raises:
      ValueError: as `config_file.load`, and for a key that is set here.
    """
    for key, reason in SET_HERE.items():
        if any(flag.split("=")[0] == f"--config.{key}" for flag in overrides):
            raise ValueError(f"--config.{key} cannot be set: {reason}.")
    common = config_file.load(path, overrides)
    common.num_epochs, common.seed = epochs, seed
    common.log_every_steps, common.eval_every_epochs = 0, 1.0
    result = {net: common.copy_and_resolve_references() for net in NETS}
    for net, config in result.items():
        config.model.name = NETS[net]
    return result


def finish(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Trains to the end, or goes on, then leaves WORKDIR/final.json; of one that is done, checks the config."""
    loop.train(config, str(workdir))
    if not (workdir / FINAL).exists():
        (workdir / FINAL).write_text(json.dumps(measure(config, str(workdir))) + "\n")


def measure(config: ml_collections.ConfigDict, workdir: str) -> dict[str, Any]:
    """The newest checkpoint on the training images as they are, each once.

    Returns:
      `parameters`, `images` of the training and the test split, and `train`, an error in percent.
    """
    run = experiment.build(config)
    with checkpoint.Checkpointer(workdir) as checkpoints:
        state = checkpoints.restore(run.abstract_state(), run.parallel.state_sharding)
    sums: dict[str, float] = {}
    with contextlib.closing(experiment.eval_batches(dataclasses.replace(run, test_data=run.train_data))) as batches:
        for batch in batches:
            sums = metrics.merge(sums, run.parallel.eval_step(state, run.parallel.shard(batch)))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "images": (len(run.train_data), len(run.test_data)),
        "train": _error(metrics.compute(sums)),
    }


def _error(record: Mapping[str, Any]) -> float:
    return 100 * (1 - record["accuracy"])


# Reading ------------------------------------------------------------------------------------------------


def read(workdir: pathlib.Path, seeds: Sequence[int]) -> tuple[dict[str, list[Curves]], dict[str, Row]]:
    """Net -> its curves, one a seed, as far as they have come; and net -> its line of the table, of those done."""
    drawn: dict[str, list[Curves]] = {}
    table = {}
    for net in NETS:
        folders = [folder(workdir, net, seed) for seed in seeds]
        found = {run: curves(history.read_metrics(str(run))) for run in folders}
        drawn[net] = [lines for lines in found.values() if lines.epochs]
        done = [(json.loads((run / FINAL).read_text()), found[run]) for run in folders if (run / FINAL).exists()]
        if done:
            table[net] = summary(done)
    return drawn, table


def folder(workdir: pathlib.Path, net: str, seed: int) -> pathlib.Path:
    """Where a net is trained."""
    return workdir / f"{NETS[net]}-seed{seed}"


def curves(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Errors from the records of a run, oldest first; that of training is the mean over the steps of an epoch."""
    result, start, last, total = Curves([], [], []), 0, 0, 0.0
    for record in rows:
        if record["split"] == "train":  # one an epoch, two where a start was told to stop within it
            total += (record["step"] - last) * _error(record)
            last = record["step"]
        else:
            result.epochs.append(record["epoch"])
            result.train.append(total / (last - start))
            result.test.append(_error(record))
            start, total = last, 0.0
    return result


def summary(runs: Sequence[tuple[Mapping[str, Any], Curves]]) -> Row:
    """The line of a net, from what `measure` gave and the curves of each of its runs."""
    errors = {
        "training": [final["train"] for final, _ in runs],
        "augmented": [lines.train[-1] for _, lines in runs],
        "test": [lines.test[-1] for _, lines in runs],
        "best test": [min(lines.test) for _, lines in runs],
    }
    train, test = (len(runs) * number for number in runs[0][0]["images"])
    return Row(
        runs=len(runs),
        parameters=runs[0][0]["parameters"],
        images={"training": train, "test": test},
        errors={column: statistics.fmean(values) for column, values in errors.items()},
    )


# Showing ------------------------------------------------------------------------------------------------


def describe(table: Mapping[str, Row]) -> list[str]:
    """The table, the differences between the depths, and what they say, whichever way it went."""
    columns = ("training", "augmented", "test", "best test")
    lines = [f"{'error in %':<25}{'parameters':>10}{'seeds':>7}" + "".join(f"{column:>11}" for column in columns)]
    for net, row in table.items():
        numbers = "".join(f"{row.errors[column]:>11.2f}" for column in columns)
        lines.append(f"{net:<25}{row.parameters:>10,}{row.runs:>7}{numbers}")
    pairs = {kind: (table[f"{kind}-20"], table[f"{kind}-56"]) for kind in PANELS if f"{kind}-56" in table}
    for kind, (shallow, deep) in pairs.items():
        numbers = "".join(f"{deep.errors[column] - shallow.errors[column]:>+11.2f}" for column in columns)
        lines.append(f"{f'{kind}-56 minus {kind}-20':<42}{numbers}")
    if pairs:
        lines += ["", *(sentence(kind, *pair) for kind, pair in pairs.items()), *verdict(pairs), NOTE]
    return lines


def sentence(kind: str, shallow: Row, deep: Row) -> str:
    """What more layers did to the errors."""
    words = {1: "higher", -1: "lower", 0: "not clearly another"}
    parts = []
    for split in ("training", "test"):
        before, after = shallow.errors[split], deep.errors[split]
        parts.append(f"its {split} error is {words[side(shallow, deep, split)]} ({after:.2f} % against {before:.2f} %)")
    return f"{kind}-56 beside {kind}-20: {', '.join(parts)}."


def verdict(pairs: Mapping[str, tuple[Row, Row]]) -> list[str]:
    """Whether this is what the paper saw: more layers fit the training images worse, unless they are residual."""
    if len(pairs) < 2:
        return []
    plain, residual = (side(*pairs[kind], "training") for kind in PANELS)
    seen = {1: "fits its training images worse", -1: "fits its training images better", 0: "fits them about as well"}
    claim = "As in the paper" if (plain, residual) == (1, -1) else "Not quite the paper's picture"
    return [f"{claim}: with more layers the plain net {seen[plain]}, the residual net {seen[residual]}."]


def side(shallow: Row, deep: Row, split: str) -> int:
    """1: the deeper net's error is higher; -1: lower; 0: they are within two standard errors of so many images."""
    errors = [row.errors[split] for row in (shallow, deep)]
    apart = errors[1] - errors[0]
    noise = 2 * math.sqrt(sum(error * (100 - error) for error in errors) / shallow.images[split])
    return 0 if abs(apart) <= noise else 1 if apart > 0 else -1


def draw(drawn: Mapping[str, Sequence[Curves]], path: pathlib.Path) -> None:
    """Draws a panel of plain and one of residual nets: training thin and dashed, test bold; each seed a line."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    for axes, (kind, title) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        for depth, colour in COLOURS.items():
            net = f"{kind}-{depth}"
            for number, lines in enumerate(drawn.get(net, ())):
                labels = (f"{net}, test", f"{net}, training") if number == 0 else (None, None)
                axes.plot(lines.epochs, lines.test, color=colour, lw=2.6, label=labels[0])
                axes.plot(lines.epochs, lines.train, color=colour, lw=1.2, ls="--", label=labels[1])
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_tick_params(labelleft=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(frameon=False)
    figure.axes[0].set_ylabel("error (%)")
    figure.savefig(path, format="png", dpi=120)


# The command --------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, draws, prints."""
    compiler.guard()
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="where the nets and the figure go")
    parser.add_argument("--config", default=str(RECIPE), help="the recipe; its keys are set by --config.KEY=VALUE")
    parser.add_argument("--epochs", type=float, default=8.0, help="of each net")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="each trains the four nets anew")
    arguments, overrides = parser.parse_known_args(argv)
    for seed in arguments.seeds:
        for net, config in configs(arguments.config, overrides, epochs=arguments.epochs, seed=seed).items():
            try:
                finish(config, folder(arguments.workdir, net, seed))
            except loop.Preempted as error:
                sys.exit(f"degradation.py: {error}")
            drawn, table = read(arguments.workdir, arguments.seeds)
            draw(drawn, arguments.workdir / FIGURE)
            print("", *describe(table), f"figure: {arguments.workdir / FIGURE}", sep="\n", flush=True)


if __name__ == "__main__":
    logging.getLogger("resnet_jax").setLevel(logging.INFO)
    main()
