"""Runs of a second each: what they draw is looked at elsewhere, and what is equal is compiled once."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def drawn_and_compiled_once(drawn_once: None, compiled_once: None) -> None:
    """For every test of this room."""
