"""Makes a notebook of a page: its text, and each Python block as a cell; what stands below a block is left out.

python tools/make_notebook.py docs/training-from-python.md
"""

import json
import pathlib
import re
import sys

PIECES = re.compile(r"^```(\w*)\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def notebook(page: str) -> dict:
    """The notebook, in Jupyter's format 4.5, of a page's Markdown."""
    cells, end = [], 0
    for piece in PIECES.finditer(page):
        _add(cells, "markdown", page[end : piece.start()])
        if piece[1] == "python":
            _add(cells, "code", piece[2])
        end = piece.end()
    _add(cells, "markdown", page[end:])
    return {"cells": cells, "metadata": KERNEL, "nbformat": 4, "nbformat_minor": 5}


def _add(cells: list, kind: str, text: str) -> None:
    if text.strip():
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        source = text.strip().splitlines(keepends=True)
        cells.append({"cell_type": kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": source, **more})


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        text = json.dumps(notebook(path.read_text()), indent=1, ensure_ascii=False) + "\n"
        path.with_suffix(".ipynb").write_text(text)
