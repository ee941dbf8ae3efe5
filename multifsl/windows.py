"""One item as several pieces, each embedded by itself; a clip's windows of speech, say.

Shape letters: n items, P pieces of all of them, D embedding width.
"""

import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ENOUGH = 1.0  # seconds of speech


class LittleSpeechWarning(UserWarning):
    """The clips of a class hold less than a second of speech, all together."""


class Windows(NamedTuple):
    """An item's pieces, one or more, each as `Encoder.load` gives an item; and its seconds of speech, where it is speech."""

    pieces: list[Any]
    seconds: float | None = None


def mean_of_windows(z: Tensor, counts: Sequence[int]) -> Tensor:
    """Embeddings [P, D] of pieces, item by item, as one for each item, [n, D].

    Its direction is that of the mean of the pieces' directions, its length their mean length; an item of one piece keeps its own.
    counts: the pieces of each item, from 1; P in all.

    >>> mean_of_windows(torch.tensor([[3.0, 0.0], [0.0, 1.0], [7.0, 7.0]]), [2, 1])
    tensor([[1.4142, 1.4142],
            [7.0000, 7.0000]])
    """
    if len(counts) == len(z):
        return z
    count = torch.tensor(counts, device=z.device)
    item = torch.repeat_interleave(torch.arange(len(counts), device=z.device), count)  # [P]
    sums = z.new_zeros(len(counts), z.shape[1]).index_add(0, item, F.normalize(z, dim=1))
    length = z.new_zeros(len(counts)).index_add(0, item, z.norm(dim=1)) / count
    mean = F.normalize(sums, dim=1) * length.unsqueeze(1)
    return torch.where((count == 1).unsqueeze(1), z[count.cumsum(0) - 1], mean)


def warn_of_little_speech(seconds: Sequence[float | None], labels: Sequence[Hashable], *, stacklevel: int = 2) -> None:
    """A LittleSpeechWarning that names the classes whose items, all together, have less than a second of speech.

    seconds: of each item; None is no speech, and the item's class is not looked at.

    >>> with warnings.catch_warnings(record=True, action="always") as said:
    ...     warn_of_little_speech([0.4, 0.5, 0.7, 0.7], ["ann", "ann", "bo", "bo"])
    >>> len(said), "'ann' (0.9 s)" in str(said[0].message)
    (1, True)
    """
    total: defaultdict[Hashable, float] = defaultdict(float)
    for label, found in zip(labels, seconds, strict=True):
        total[label] += float("inf") if found is None else found
    little = [f"{label!r} ({found:.1f} s)" for label, found in total.items() if found < ENOUGH]
    if little:
        more = f" and {len(little) - 5} more" if len(little) > 5 else ""
        warnings.warn(
            LittleSpeechWarning(
                f"under {ENOUGH:g} s of speech, all clips together: {', '.join(little[:5])}{more}; a voice is told poorly by so "
                "little: give more clips, or longer ones"
            ),
            stacklevel=stacklevel,
        )
