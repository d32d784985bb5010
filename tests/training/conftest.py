"""Runs of a second each: what they draw is looked at elsewhere."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def curves_of_the_first_run(drawn_once: Iterator[None]) -> None:
    """For every test of this room."""
