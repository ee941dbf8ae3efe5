"""Relation networks: a learned comparator of class and query.

Sung, Yang, Zhang, Xiang, Torr, Hospedales: Learning to Compare: Relation Network for Few-Shot Learning. CVPR 2018.
https://arxiv.org/abs/1711.06025

    c_k = sum of f(x_i) over the support items of class k                           (section 3.2)
    r_k = g(C(c_k, f(x))), a number within 0 and 1, C the concatenation             (equation 1)
    loss = mean over queries and classes of (r_k - 1 where y = k, else r_k)^2       (equation 2)

Logits are the scores before g's last sigmoid, so their arg max is that of r. Where just one of several classes is right, its
chance is the softmax of such log-odds.

Departures. The paper concatenates feature maps, and g is two blocks of convolution and batch normalisation, then layers of 8 units
and 1. Encoders here give vectors, for images too, so g is a perceptron without normalisation: D + D -> `hidden` -> `hidden` -> 1.
Equation 2 sums, here is the mean. The published figures (Omniglot 99.6 % in 5-way 1-shot) are disputed: the authors' code leaves
batch normalisation in training mode while it tests, so each answer depends on the other queries; without that, users report about
90 % (https://github.com/floodsung/LearningToCompare_FSL/issues/48, and #12). Here a query's answer depends on nothing but itself.

Shape letters: S support items, Q queries, N ways, D embedding width, H hidden units.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs
from multifsl.functional import ClassSums, full_precision, mask_absent, masked_cross_entropy, without_autocast
from multifsl.method import EmbeddingMethod, Output
from multifsl.options import check_choice, check_counts


class Relation(EmbeddingMethod):
    """A perceptron that says how well a query goes with a class.

    Args:
        loss: "mse", the squared error of scores that should be 1 and 0, as in the paper, or "cross_entropy" over the classes.
        hidden: units of each of the perceptron's two hidden layers, at least 1; the paper's blocks have 64 filters.
        pool: what stands for a class, the "sum" of its support embeddings, as in the paper, or their "mean", which does not
            grow with the number of shots, and so can be used with another number than it was trained with.

    >>> from multifsl.encoder import Features
    >>> method = Relation(Features(2))
    >>> support = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).shape
    torch.Size([1, 2])
    """

    family = "metric"
    class_by_class = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        loss: Literal["mse", "cross_entropy"] = "mse",
        hidden: int = 64,
        pool: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(encoder)
        check_choice("loss", loss, ("mse", "cross_entropy"))
        check_choice("pool", pool, ("sum", "mean"))
        check_counts(hidden=hidden)
        self.loss, self.hidden, self.pool = loss, hidden, pool
        self.first = nn.Linear(2 * encoder.dim, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def adapt(self, support: Batch, present: Tensor) -> ClassSums:
        assert isinstance(support.x, Tensor)
        return ClassSums.of(support.x, support.y, present)

    def classify(self, state: ClassSums, x: Inputs) -> Tensor:
        return mask_absent(self._log_odds(state, x), state.present)

    def solve(self, episode: Episode) -> Output:
        state = self.adapt(episode.support, episode.present)
        x, y = episode.query
        assert isinstance(x, Tensor)
        log_odds = self._log_odds(state, x.where((y != PADDING).unsqueeze(1), 0.0))  # padding may hold NaN
        logits = mask_absent(log_odds, state.present)
        if self.loss == "cross_entropy":
            return Output(masked_cross_entropy(logits, y), logits)
        counted = (y >= 0).unsqueeze(1) & state.present  # [Q, N]
        right = y.unsqueeze(1) == torch.arange(state.present.shape[0], device=y.device)
        errors = (log_odds.sigmoid() - right.to(log_odds.dtype)).square().where(counted, 0.0)
        return Output(errors.sum() / counted.sum().clamp(min=1), logits)

    def update(self, state: ClassSums, support: Batch, present: Tensor) -> ClassSums:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: ClassSums, label: int) -> ClassSums:
        return state.without(label)

    def _log_odds(self, state: ClassSums, x: Inputs) -> Tensor:
        """[Q, N], of absent classes too."""
        assert isinstance(x, Tensor)
        classes = state.sums
        if self.pool == "mean":
            classes = classes / state.counts.clamp(min=1).unsqueeze(1)
        with without_autocast(x):
            # A layer of a concatenation is a sum of two layers: N + Q products with D weights instead of N * Q with 2 D.
            of_class, of_query = self.first.weight.chunk(2, dim=1)  # [H, D] each
            h = F.linear(full_precision(x), of_query, self.first.bias).unsqueeze(1) + F.linear(classes, of_class)
            scores: Tensor = self.last(F.relu(self.second(F.relu(h))))  # [Q, N, 1]
            return scores.squeeze(2)
