"""Centring: embeddings minus the mean of the train classes', brought to length 1.

Wang, Chao, Weinberger, van der Maaten: SimpleShot. 2019. https://arxiv.org/abs/1911.04623

    "un": z;  "l2n": z / ||z||;  "cl2n": (z - m) / ||z - m||, m the mean of embeddings of the train classes
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.errors import MultifslError
from multifsl.functional import full_precision
from multifsl.method import Method
from multifsl.options import check_choice

Transform = Literal["cl2n", "l2n", "un"]


class Centring(nn.Module):
    """A transform of embeddings, with the mean that it needs; m is 0 until `learn`.

    >>> centring = Centring(2, "cl2n")
    >>> centring.learn(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> centring(torch.tensor([[1.0, 4.0], [3.0, 1.0]]))
    tensor([[0., 1.],
            [1., 0.]])
    """

    mean: Tensor
    seen: Tensor

    def __init__(self, dim: int, transform: Transform) -> None:
        super().__init__()
        check_choice("transform", transform, ("cl2n", "l2n", "un"))
        self.transform = transform
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.tensor(0))  # embeddings that the mean is of

    @torch.no_grad()
    def learn(self, z: Tensor) -> None:
        """Take the mean of embeddings [B, D] of the train classes, forgetting any other. Raises MultifslError for other shapes."""
        width = self.mean.shape[0]
        if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] != width:
            raise MultifslError(
                f"the base classes' embeddings must be [B, {width}] with B of 1 or more, not {list(z.shape)}"
            )
        self.mean.copy_(full_precision(z).mean(0))
        self.seen.fill_(z.shape[0])

    def forward(self, z: Tensor, valid: Tensor | None = None) -> Tensor:
        """Embeddings [B, D], transformed; rows that are not valid [B], which may hold NaN, as 0."""
        z = full_precision(z)
        if self.transform == "cl2n":
            z = z - self.mean
        if valid is not None:
            z = z.where(valid.unsqueeze(1), 0.0)
        return z if self.transform == "un" else F.normalize(z, dim=-1)


class Centred(Method):
    """A method with a `centring`, made by `centre`: it wants to see the train classes where its transform needs their mean."""

    centring: Centring

    def centre(self, transform: Transform) -> None:
        self.transform = transform
        self.centring = Centring(self.encoder.dim, transform)
        self.wants_base = transform == "cl2n"

    def learn_base(self, z: Tensor) -> None:
        self.centring.learn(z)

    @property
    def saw_base(self) -> bool:
        return bool(self.centring.seen)
