"""An evaluation as files: one JSON object with all of it, or a table with a line for each image."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from resnet_jax.data.sources.base import Dataset
from resnet_jax.inference import Result
from resnet_jax.scores import tables

# What is said of an image; `place` is that of its class among all, 1 being right, and `error` why it was not read.
COLUMNS = (
    "index", "image", "label", "label_name", "predicted", "predicted_name", "probability", "label_probability",
    "place", "error",
)  # fmt: skip


def to_json(result: Result, dataset: Dataset, about: Mapping[str, Any]) -> bytes:
    """One object: `about`, what was counted, every class, the confusion matrix, the images that are wrong or unread.

    Rows of `confusion_matrix` are classes, its columns what they are taken for.
    """
    places = tables.wrong(result)
    return json.dumps(
        {
            **about,
            "data": dataset.name,
            "split": dataset.split,
            "count": result.count,
            "correct": result.correct,
            "correct_top5": result.correct_top5,
            "top1": result.top1,
            "top5": result.top5,
            "classes": [
                {
                    "class": score.number,
                    "name": dataset.class_names[score.number],
                    "count": score.count,
                    "correct": score.correct,
                    "accuracy": score.accuracy if score.count else None,
                }
                for score in tables.by_class(result)
            ],
            "confusion_matrix": result.confusion.tolist(),
            "wrong": [_seen(result, dataset, place) for place in places],
            "unreadable": [dataclasses.asdict(each) for each in result.unread],
        }
    ).encode()


def to_csv(result: Result, dataset: Dataset) -> bytes:
    """`COLUMNS`, then a line for each image of the data set, in its order; UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(_images(result, dataset), key=lambda row: row["index"]))
    return text.getvalue().encode("utf-8", "backslashreplace")


def _images(result: Result, dataset: Dataset) -> Iterator[dict[str, Any]]:
    yield from (_seen(result, dataset, place) for place in range(result.count))
    for each in result.unread:
        yield {"index": each.index, "image": each.origin, "error": each.reason}


def _seen(result: Result, dataset: Dataset, place: int) -> dict[str, Any]:
    index, label, predicted = (int(each[place]) for each in (result.index, result.label, result.predicted))
    return {
        "index": index,
        "image": dataset.source.origin(index),
        "label": label,
        "label_name": dataset.class_names[label],
        "predicted": predicted,
        "predicted_name": dataset.class_names[predicted],
        "probability": float(result.probability[place]),
        "label_probability": float(result.label_probability[place]),
        "place": int(result.rank[place]) + 1,
    }
