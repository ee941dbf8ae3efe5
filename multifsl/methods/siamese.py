"""Siamese networks: is this pair of one class?

Koch, Zemel, Salakhutdinov: Siamese Neural Networks for One-shot Image Recognition. ICML Deep Learning Workshop 2015.
https://www.cs.cmu.edu/~rsalakhu/papers/oneshot1.pdf (loss "koch")
Hadsell, Chopra, LeCun: Dimensionality Reduction by Learning an Invariant Mapping. CVPR 2006.
http://yann.lecun.com/exdb/publis/pdf/hadsell-chopra-lecun-06.pdf (loss "squared", the default; "plain" leaves out the squares)

    d = ||f(a) - f(b)||
    squared: d^2 for a pair of one class, max(0, m - d)^2 for any other             (Hadsell, equation 4)
    plain: d for a pair of one class, max(0, m - d) for any other
    koch: p(one class) = sigmoid(sum over j of alpha_j |f(a)_j - f(b)_j| + b), binary cross-entropy   (Koch, section 3)

Pairs are all pairs of an episode, support and query together. A query goes to the class of the best pair with a support
item (Koch, section 4.3). Logits are pair scores, summed up by class: -d^2 (squared), -d (plain), or the log-odds of p (koch):
where just one of several classes is right, its chance is the softmax of such log-odds.

Departures. The papers draw pairs from the whole training set; here they are those of an episode. Hadsell's factor of a half is
left out. Contrastive losses see length-1 embeddings unless `normalise=False`: at distances of 0 to 2 a margin of 1 means the same
for every encoder, while raw embeddings of a fresh Conv4 are 5 to 9 apart (28 to 42 for images of 84 x 84), where a margin of 1
pushes nothing apart. Koch starts from random alpha_j; here all are -4 / D and b is 2, so that the closer pair is the likelier one
before any training. His penalty and rates by layer are the trainer's business, his last layer of 4096 sigmoids the encoder's.

Shape letters: S support items, Q queries, N ways, D embedding width, B items of an episode.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs, concat
from multifsl.functional import (
    Examples,
    contrastive_loss,
    euclidean_distances,
    full_precision,
    mask_absent,
    without_autocast,
)
from multifsl.method import EmbeddingMethod, Output
from multifsl.options import check_choice, check_flags, check_positive


class Siamese(EmbeddingMethod):
    """The class of the support items that pair best with the query.

    Args:
        loss: "squared", "plain" (contrastive), or "koch" (cross-entropy of a learned, weighted L1 distance).
        margin: how far apart a contrastive loss wants pairs of two classes, above 0; not used by "koch".
        balanced: whether pairs of one class weigh as much, together, as all others; else each pair weighs the same.
        score: a class is as good as its support items' pairs are in the "mean", or as the best of them ("max").
        normalise: whether embeddings are brought to length 1; None: for the contrastive losses, not for "koch".

    >>> from multifsl.encoder import Features
    >>> method = Siamese(Features(2), normalise=False)
    >>> support = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 0.0]])).round(decimals=4)
    tensor([[-2., -9.]])
    """

    family = "metric"
    class_by_class = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        loss: Literal["squared", "plain", "koch"] = "squared",
        margin: float = 1.0,
        balanced: bool = True,
        score: Literal["mean", "max"] = "mean",
        normalise: bool | None = None,
    ) -> None:
        super().__init__(encoder)
        check_choice("loss", loss, ("squared", "plain", "koch"))
        check_choice("score", score, ("mean", "max"))
        check_positive(margin=margin)
        check_flags(balanced=balanced, normalise=True if normalise is None else normalise)
        self.loss, self.margin, self.balanced, self.score = loss, margin, balanced, score
        self.normalise = loss != "koch" if normalise is None else normalise
        if loss == "koch":
            self.alpha = nn.Parameter(torch.full((encoder.dim,), -4.0 / encoder.dim))  # not 0, where it would stay
            self.bias = nn.Parameter(torch.tensor(2.0))

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        return Examples(self._embedding(support.x, support.y >= 0), support.y, present)

    def classify(self, state: Examples, x: Inputs) -> Tensor:
        return self._by_class(self._unlikeness(self._embedding(x), state.x), state.y, state.present)

    def solve(self, episode: Episode) -> Output:
        (sx, sy), (qx, qy), present, _ = episode
        y, n_support = torch.cat([sy, qy]), sy.shape[0]
        z = self._embedding(concat([sx, qx]), y != PADDING)  # [B, D]
        unlike = self._unlikeness(z, z)  # [B, B]
        known = y >= 0
        pairs = (known.unsqueeze(1) & known).triu(1)  # each pair once, no item with itself
        loss = self._loss(unlike, y.unsqueeze(1) == y, pairs)
        return Output(loss, self._by_class(unlike[n_support:, :n_support], sy, present))

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)

    def _embedding(self, x: Inputs, keep: Tensor | None = None) -> Tensor:
        """[B, D] in full precision, with zeros for the rows that are not kept: padding may hold NaN."""
        assert isinstance(x, Tensor)
        x = full_precision(x)
        x = x if keep is None else x.where(keep.unsqueeze(1), 0.0)
        return F.normalize(x, dim=1) if self.normalise else x

    def _unlikeness(self, a: Tensor, b: Tensor) -> Tensor:
        """Of all pairs of a [Q, D] and b [S, D] -> [Q, S]: distances, or log-odds (koch) that it is not one class."""
        if self.loss != "koch":
            return euclidean_distances(a, b)
        # alpha above and below 0 apart, as two L1 distances: |a_j - b_j| of all pairs at once would be Q * S * D numbers
        alpha = full_precision(self.alpha)
        like, unlike = alpha.clamp(min=0), (-alpha).clamp(min=0)
        with without_autocast(a):
            return torch.cdist(a * unlike, b * unlike, p=1.0) - torch.cdist(a * like, b * like, p=1.0) - self.bias

    def _loss(self, unlike: Tensor, same: Tensor, pairs: Tensor) -> Tensor:
        """Mean over the `pairs`; all are [B, B]."""
        if self.loss == "koch":
            each = F.softplus(torch.where(same, unlike, -unlike))
        else:
            each = contrastive_loss(unlike, same, margin=self.margin, form=self.loss)
        weights = pairs.to(each.dtype)
        if self.balanced:
            own, other = (pairs & same).sum().clamp(min=1), (pairs & ~same).sum().clamp(min=1)
            weights = weights / torch.where(same, own, other)  # each kind 1 in all, or 0 where there is none of it
        total = weights.sum()
        return (weights * each).sum() / total.where(total > 0, 1.0)

    def _by_class(self, unlike: Tensor, y: Tensor, present: Tensor) -> Tensor:
        """Logits [Q, N] of the pairs [Q, S]; a class without support gets -inf too."""
        scores = -unlike.square() if self.loss == "squared" else -unlike
        n_queries, n_classes = scores.shape[0], present.shape[0]
        valid, label = y >= 0, y.clamp(min=0)
        counts = scores.new_zeros(n_classes).index_add(0, label, valid.to(scores.dtype))
        if self.score == "mean":
            sums = scores.new_zeros(n_queries, n_classes).index_add(1, label, scores.where(valid, 0.0))
            logits = sums / counts.clamp(min=1)
        else:
            lowest = scores.new_full((n_queries, n_classes), -math.inf)
            logits = lowest.scatter_reduce(1, label.expand(n_queries, -1), scores.where(valid, -math.inf), "amax")
        return mask_absent(logits, present & (counts > 0))
