"""An evaluation as tables: accuracy of each class, confusions, wrong images; and as lines for a terminal."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from resnet_jax.data.sources.base import Dataset
from resnet_jax.inference import Result

TOP = 10  # rows of each table on a terminal
WIDTH = 40  # characters of a class's name there


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """One class: its number, its examples that were read, and those of them that are right."""

    number: int
    count: int
    correct: int

    @property
    def accuracy(self) -> float:
        """A share of 1; NaN for a class without examples."""
        return self.correct / self.count if self.count else float("nan")


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Examples of one class that are taken for another; `of` are all of the class that were read."""

    label: int
    predicted: int
    count: int
    of: int


def by_class(result: Result) -> list[ClassScore]:
    """Every class, by number."""
    confusion = result.confusion
    numbers = zip(confusion.sum(axis=1), confusion.diagonal(), strict=True)
    return [ClassScore(number, int(count), int(correct)) for number, (count, correct) in enumerate(numbers)]


def worst(scores: Sequence[ClassScore]) -> list[ClassScore]:
    """Those that have examples, the least accurate first; of equals the one with more examples."""
    return sorted((score for score in scores if score.count), key=lambda score: (score.accuracy, -score.count))


def confusions(result: Result) -> list[Confusion]:
    """All pairs of classes that are confused, the most frequent first."""
    table = result.confusion
    pairs = ((int(label), int(predicted)) for label, predicted in np.argwhere(table) if label != predicted)
    found = (Confusion(*pair, int(table[pair]), int(table[pair[0]].sum())) for pair in pairs)
    return sorted(found, key=lambda each: -each.count)


def wrong(result: Result) -> np.ndarray:
    """Places in the arrays of `result` of the wrong examples, the surest mistakes first."""
    places = np.flatnonzero(result.rank)
    return places[np.argsort(-result.probability[places], kind="stable")]


def printable(text: str) -> str:
    """A name of a file or folder may hold anything: line ends, bytes that are no text."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


# On a terminal ------------------------------------------------------------------------------------------


def lines(result: Result, dataset: Dataset) -> Iterator[str]:
    """What was counted, the worst classes, the largest confusions and the surest mistakes; no more than fits."""
    yield f"top-1 {result.top1:.2%} ({result.correct}/{result.count})"
    yield f"top-5 {result.top5:.2%} ({result.correct_top5}/{result.count})"
    names = [_short(name) for name in dataset.class_names]
    scores = worst(by_class(result))
    rows = [(names[score.number], f"{score.accuracy:.2%}", f"{score.correct}/{score.count}") for score in scores]
    yield from _table("worst classes", ("accuracy", "right"), rows, "classes")
    if empty := result.num_classes - len(scores):
        yield f"  {empty} of the {result.num_classes} classes have no example that was read"
    pairs = [
        (f"{names[pair.label]} taken for {names[pair.predicted]}", f"{pair.count}/{pair.of}")
        for pair in confusions(result)
    ]
    yield from _table("largest confusions", ("of the class",), pairs, "pairs")
    images = [
        (
            printable(dataset.source.origin(int(result.index[place]))),
            names[result.label[place]],
            names[result.predicted[place]],
            f"{result.probability[place]:.2%}",
        )
        for place in wrong(result)[: TOP + 1]
    ]
    yield from _table("surest mistakes", ("is", "taken for", "probability"), images, "", result.count - result.correct)


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= WIDTH else name[: WIDTH - 3] + "..."


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], what: str, total: int | None = None
) -> Iterator[str]:
    """A title and the first rows, in columns of their widths; the first column is to the left, and so are words."""
    if not rows:
        return
    total = len(rows) if total is None else total
    shown = [(title, *columns), *((f"  {row[0]}", *row[1:]) for row in rows[:TOP])]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    left = [True, *(column in ("is", "taken for") for column in columns)]
    for row in shown:
        cells = zip(row, widths, left, strict=True)
        yield "  ".join(cell.ljust(width) if to_left else cell.rjust(width) for cell, width, to_left in cells).rstrip()
    if total > TOP:
        yield f"  ... and {total - TOP} more{what and f' {what}'}: --json and --csv have all"
