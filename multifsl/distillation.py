"""Distillation: the encoder that is trained imitates a teacher, a larger or pretrained one, in which items are alike.

After Park, Kim, Lu and Cho: Relational Knowledge Distillation. CVPR 2019. https://arxiv.org/abs/1904.05068. The teacher embeds the
train items once. In each task, over all pairs of its items, support and query,

    loss = the method's loss + WEIGHT * (1 - correlation of cos(f(x_i), f(x_j)) and cos(g(x_i), g(x_j)))

with f the encoder and g the teacher less its mean over the train items, for which cosines spread around 0. Departure: the paper
compares distances, brought to a mean of 1, by Huber's loss, and angles between three items. A correlation asks for neither the
scale nor the mean of the teacher's cosines, which an encoder that ends in a ReLU could not have.

Shape letters: T tasks, B items of a task, D and E the embeddings' widths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.episode import PADDING, Episode
from multifsl.functional import full_precision
from multifsl.method import Method, Output

WEIGHT = 2.0


class Imitation(nn.Module):
    """A method that is trained beside a teacher's embeddings of the same items.

    >>> from multifsl.encoder import Features
    >>> from multifsl.episode import Batch
    >>> from multifsl.registry import build
    >>> y = torch.tensor([[0, 1]])
    >>> def batch(x):
    ...     return Episode(Batch(x, y), Batch(x, y), torch.ones(1, 2, dtype=torch.bool))
    >>> model = Imitation(build("methods", "prototypical", encoder=Features(2)))
    >>> model(batch(torch.eye(2)[None]), batch(torch.randn(1, 2, 5))).loss.shape
    torch.Size([1])
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, episodes: Episode, taught: Episode) -> Output:
        """Loss [T] and logits [T, Q, N]. taught: the same episodes with the teacher's embeddings, less their mean, as items."""
        made = self.method.encode(episodes)
        output = self.method.solve_embedded(made)
        return Output(output.loss + WEIGHT * unlikeness(_all(made), _all(taught), _real(episodes)), output.logits)


def unlikeness(pupil: Tensor, teacher: Tensor, real: Tensor) -> Tensor:
    """1 - the correlation [T], over all pairs, of cosines of embeddings pupil [T, B, D] with those of teacher [T, B, E].

    real [T, B]: False for padding, whose pairs do not count.
    """
    pairs = real.unsqueeze(1) & real.unsqueeze(2) & ~torch.eye(real.shape[1], dtype=torch.bool, device=real.device)
    spread = []
    for z in (pupil, teacher):
        z = F.normalize(full_precision(z).where(real.unsqueeze(2), 0.0), dim=-1)
        cosines = z @ z.mT  # [T, B, B]
        mean = cosines.where(pairs, 0.0).sum((1, 2), keepdim=True) / pairs.sum((1, 2), keepdim=True).clamp(min=1)
        spread.append((cosines - mean).where(pairs, 0.0).flatten(1))
    return 1 - F.cosine_similarity(spread[0], spread[1], dim=1)


def _all(episodes: Episode) -> Tensor:
    assert isinstance(episodes.support.x, Tensor) and isinstance(episodes.query.x, Tensor)
    return torch.cat([episodes.support.x, episodes.query.x], 1)


def _real(episodes: Episode) -> Tensor:
    return torch.cat([episodes.support.y, episodes.query.y], 1) != PADDING
