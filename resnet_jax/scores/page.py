"""An evaluation as a page: classes, confusions, and pictures of the images that are wrong; it needs nothing else."""

import base64
import html
import io
from collections.abc import Iterator

from resnet_jax.data.images import pillow
from resnet_jax.data.sources.base import Dataset
from resnet_jax.inference import Result
from resnet_jax.runs import cells, markup
from resnet_jax.scores import tables

SIDE = 128  # pixels of a picture's longer side
ROWS = 20  # of each table
MATRIX = 30  # classes of which the whole confusion matrix is shown

_STYLE = """<style>
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem .9rem; }
figure { margin: 0; width: 144px; break-inside: avoid; }
figure img { width: 128px; height: 128px; object-fit: contain; }
figure img.small { image-rendering: pixelated; } figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption small { display: block; }
</style>"""


def render(result: Result, dataset: Dataset, about: str, most: int) -> str:
    """The page, a whole HTML document in one string: no script, and no picture from elsewhere.

    Args:
      result: of `dataset`.
      dataset: read once more for the pictures.
      about: the network and its preprocessing, in words.
      most: pictures of wrong images, those of the surest mistakes.
    """
    return markup.document(
        f"{cells.percent(result.top1)} of {result.count:,} images right",
        _STYLE,
        f"<p>{html.escape(about)}</p>",
        f"<p>{html.escape(dataset.name)}, {html.escape(dataset.split)} split; top-1 {result.correct:,}/{result.count:,}"
        f", top-5 {cells.percent(result.top5)} ({result.correct_top5:,}/{result.count:,}).</p>",
        *_unread(result),
        "<h2>Worst classes</h2>",
        _classes(result, dataset),
        *_confusions(result, dataset),
        *_pictures(result, dataset, most),
        made_by="resnet-jax evaluate",
    )


def _name(dataset: Dataset, number: int) -> str:
    return html.escape(tables.printable(dataset.class_names[number]))


def _unread(result: Result) -> Iterator[str]:
    if result.unread:
        yield f"<p><b>{len(result.unread)} more could not be read, and are not counted.</b></p>"
        yield from map(markup.quiet, result.unreadable[:ROWS])


def _classes(result: Result, dataset: Dataset) -> str:
    scores = tables.worst(tables.by_class(result))
    rows = [
        [_name(dataset, score.number), cells.percent(score.accuracy), f"{score.correct:,}/{score.count:,}"]
        for score in scores[:ROWS]
    ]
    more = f"{len(scores) - ROWS} more classes are no worse." if len(scores) > ROWS else ""
    return markup.grid(("class", "accuracy", "right"), ("text", "", ""), rows) + (markup.quiet(more) if more else "")


def _confusions(result: Result, dataset: Dataset) -> Iterator[str]:
    pairs = tables.confusions(result)
    if not pairs:
        return
    rows = [
        [
            _name(dataset, pair.label),
            _name(dataset, pair.predicted),
            f"{pair.count:,}",
            cells.percent(pair.count / pair.of),
        ]
        for pair in pairs[:ROWS]
    ]
    yield "<h2>Largest confusions</h2>"
    yield markup.grid(("class", "taken for", "images", "of the class"), ("text", "text", "", ""), rows)
    if len(pairs) > ROWS:
        yield markup.quiet(f"{len(pairs) - ROWS} more pairs are confused no oftener.")
    if result.num_classes <= MATRIX:
        yield "<h2>All images: a row is a class, a column what it is taken for</h2>"
        yield _matrix(result, dataset)


def _matrix(result: Result, dataset: Dataset) -> str:
    names = [tables.printable(name) for name in dataset.class_names]
    rows = [
        [html.escape(names[label]), *(_count(count, marked=label != place) for place, count in enumerate(counts))]
        for label, counts in enumerate(result.confusion.tolist())
    ]
    return markup.grid(["", *names], ["text", *[""] * len(names)], rows)


def _count(count: int, *, marked: bool) -> str:
    return f"<mark>{count:,}</mark>" if count and marked else f"{count:,}"


# Pictures -----------------------------------------------------------------------------------------------


def _pictures(result: Result, dataset: Dataset, most: int) -> Iterator[str]:
    places = tables.wrong(result)
    if not len(places):
        yield "<p>No image is wrong.</p>"
        return
    yield f"<h2>Wrong: {min(most, len(places)):,} of {len(places):,} images, the surest mistakes first</h2>"
    yield "<div class=pictures>"
    for place in places[:most]:
        index, label, predicted = (int(each[place]) for each in (result.index, result.label, result.predicted))
        origin = tables.printable(dataset.source.origin(index))
        said = f"<b>{_name(dataset, predicted)}</b> {cells.percent(float(result.probability[place]))}"
        truth = f"is {_name(dataset, label)}, {cells.percent(float(result.label_probability[place]))}"
        file = cells.small(origin.rpartition("/")[2])
        yield (
            f'<figure title="{html.escape(origin)}">{_picture(dataset, index)}'
            f"<figcaption>{said}<br>{truth}{file}</figcaption></figure>"
        )
    yield "</div>"


def _picture(dataset: Dataset, index: int) -> str:
    """The image in the page itself; small ones keep every pixel, larger ones are made small."""
    try:
        image = pillow.open_image(dataset.source[index]["image"], dataset.channels)
    except (pillow.UnreadableImage, OSError) as error:  # it has been read before: its disk may be gone
        return markup.quiet(f"cannot be read any more: {error}")
    small = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    data = base64.b64encode(file.getvalue()).decode()
    kind = "png" if small else "jpeg"
    return f'<img{" class=small" if small else ""} alt="" src="data:image/{kind};base64,{data}">'
