"""easyfsl 1.5.0 beside today's torch."""

from typing import Any
from unittest import mock

from torch.utils.data import Sampler


def sampler_of(kind: type, *args: Any, **kwargs: Any) -> Any:
    """One of its samplers: they hand torch's `Sampler` an argument that it no longer takes."""
    with mock.patch.object(Sampler, "__init__", return_value=None):
        return kind(*args, **kwargs)
