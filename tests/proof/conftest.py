"""The proof is of the programs that users have: compiled with all optimisations."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_as_users_do(optimised: Iterator[None]) -> None:
    """For every test of this room."""
