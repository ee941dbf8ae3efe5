"""Bias-diminished cosine prototypes (transductive).

Liu, Song, Qin: Prototype Rectification for Few-Shot Learning. ECCV 2020. https://arxiv.org/abs/1911.10713

All embeddings X have length 1. With cos the cosine and eps a scale,

    P_n = mean of the support items of class n; p(n | x) = softmax over n of eps cos(x, P_n)    (basic prototypes, CSPN)
    X_q <- X_q + mean of the class means - mean of the queries    (diminishes the cross-class bias)
    each query is given its most likely class; of each class the Z surest queries join its support items
    P'_n = sum over these items of w_i X_i, w_i = softmax over them of eps cos(X_i, P_n)    (diminishes the intra-class bias)

and a query's class is that of the P' at the highest cosine. The encoder is trained as a classifier of the train classes under a
cosine head.

Departures: one number stands for eps and for the scale that the paper learns with its cosine head. The paper moves queries onto
the mean of the support items, which is that of the class means where all classes have as many. Fewer queries than classes are
not moved: one alone would be moved onto the mean of the support items, whatever it is.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch
from multifsl.functional import (
    Examples,
    class_sums,
    cosine_similarities,
    full_precision,
    mask_absent,
    memberships,
    moved_to_support,
    without_autocast,
)
from multifsl.method import TransductiveMethod
from multifsl.options import check_counts, check_flags, check_positive

NEVER = -1e9  # as a logit; finite, so that a class without items gives no NaN


class BdCspn(TransductiveMethod):
    """Nearest class mean by cosine, the means and the queries corrected by what the queries look like.

    Args:
        scale: what cosines are multiplied by, in weights and logits: the paper's eps, above 0.
        top: how many queries at most may join a class: the paper's Z, at least 1; None for all that are taken for it.
        shift: whether the queries are moved onto the mean of the support set.

    >>> from multifsl.encoder import Features
    >>> method = BdCspn(Features(2))
    >>> support = Batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 1.0], [1.0, 3.0]])).argmax(1)
    tensor([0, 1])
    """

    family = "transfer"
    learns_from = "classes"
    base_head = "cosine"

    def __init__(self, encoder: Encoder, *, scale: float = 10.0, top: int | None = 8, shift: bool = True) -> None:
        super().__init__(encoder)
        check_positive(scale=scale)
        check_counts(top=1 if top is None else top)
        check_flags(shift=shift)
        self.scale, self.top, self.shift = scale, top, shift

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        assert isinstance(support.x, Tensor)
        x = full_precision(support.x).where((support.y >= 0).unsqueeze(1), 0.0)  # padding may hold NaN
        return Examples(nn.functional.normalize(x, dim=1), support.y, present)

    def classify_together(self, state: Examples, x: Tensor, real: Tensor) -> Tensor:
        ways = state.present.shape[0]
        x = nn.functional.normalize(full_precision(x).where(real.unsqueeze(1), 0.0), dim=1)
        if self.shift:
            x = moved_to_support(x, real, state)
        sums, counts = class_sums(state.x, state.y, ways)
        items = torch.cat([state.x, x])  # [S + Q, D]
        scores = self.scale * cosine_similarities(items, sums / counts.clamp(min=1).unsqueeze(1))  # [S + Q, N]
        scores = scores.where(state.present, NEVER)
        joined = self._joining(scores[state.y.shape[0] :], real)
        members = torch.cat([memberships(state.y, ways), joined])  # [S + Q, N]
        weights = scores.where(members, NEVER).softmax(0)
        with without_autocast(x):
            prototypes = weights.T @ items  # [N, D]
        return mask_absent(self.scale * cosine_similarities(x, prototypes), state.present)

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)

    def _joining(self, scores: Tensor, real: Tensor) -> Tensor:
        """Which queries join which class, bool [Q, N], by their scores [Q, N]; of equally sure ones all."""
        chosen = memberships(scores.argmax(1).where(real, -1), scores.shape[1])
        if self.top is None or self.top >= scores.shape[0]:
            return chosen
        sureness = scores.log_softmax(1).where(chosen, -math.inf)
        return chosen & (sureness >= sureness.topk(self.top, dim=0).values[-1])
