"""Networks of PyTorch's libraries of which only the shapes matter."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch


def _as_it_is(tensor: torch.Tensor, *args: float, **kwargs: object) -> torch.Tensor:
    return tensor


@contextlib.contextmanager
def hollow() -> Iterator[None]:
    """Modules that are made here hold no numbers; nor are any drawn, which on this device takes most of the time."""
    with torch.device("meta"), mock.patch.multiple(torch.Tensor, normal_=_as_it_is, uniform_=_as_it_is):
        yield
