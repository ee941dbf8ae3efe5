"""LaplacianShot: nearest class mean, where queries that are close to each other should agree (transductive).

Ziko, Dolz, Granger, Ben Ayed: Laplacian Regularized Few-Shot Learning. ICML 2020. https://arxiv.org/abs/2006.15486

With a_qn = ||x_q - m_n||^2 to the prototype m_n, and w(q, p) = 1 where p is among the k nearest queries to q, 0 else, the answers
y_q (each a distribution over the classes) are to minimise

    sum over q of y_q . a_q + lambda / 2 sum over q, p of w(q, p) ||y_q - y_p||^2

which, relaxed by an entropy and bounded from above, is done by rounds that see to all queries at once, from y_q = softmax(-a_q):

    y_q <- softmax(-a_q + lambda sum over p of w(q, p) y_p)

Embeddings are centred by the mean of the train classes and brought to length 1 (CL2N). Prototypes are class means, or rectified,
after BD-CSPN: queries are moved so that their mean is that of the support items, and m_n is the mean, over the support items of
class n and the queries nearest to its mean c_n by cosine, of x * (softmax over n of 10 cos(x, c_n)).

Departures: a fixed number of rounds; the authors' program may stop before that. It counts a query as its own first neighbour,
so that its 3 are 2 others; here 3 are 3 others. It rectifies by the support items that it takes for a class, here by those
labelled so. Queries are moved onto the mean of the class means, which is that of the items where classes have as many. Fewer
queries than classes are not moved: one alone would be moved onto the mean of the support items, whatever it is.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from multifsl.centring import Centred
from multifsl.encoder import Encoder
from multifsl.episode import Batch
from multifsl.functional import (
    Examples,
    class_sums,
    cosine_similarities,
    mask_absent,
    moved_to_support,
    squared_distances,
    without_autocast,
)
from multifsl.method import TransductiveMethod
from multifsl.options import check_counts, check_flags, check_not_negative

SCALE = 10.0  # of the cosines in the weights of rectified prototypes


class LaplacianShot(Centred, TransductiveMethod):
    """Nearest class mean, smoothed over neighbouring queries.

    Args:
        smoothness: the paper's lambda, 0 or more; to be chosen on validation classes, as in the paper.
        neighbours: how many nearest queries each query listens to, at least 1.
        steps: rounds of answers, at least 1.
        rectify: whether queries correct the prototypes before they are compared with them.
        transform: of embeddings: "cl2n" (minus the mean of the train classes, which is 0 until learned, then of length 1), "l2n"
            (of length 1) or "un" (as they are).

    >>> from multifsl.encoder import Features
    >>> method = LaplacianShot(Features(1), transform="un", rectify=False, neighbours=1)
    >>> support = Batch(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.45], [0.6], [0.65]])).argmax(1)  # 0.45 follows 0.6
    tensor([1, 1, 1])
    """

    family = "transfer"
    learns_from = "classes"

    def __init__(
        self,
        encoder: Encoder,
        *,
        smoothness: float = 0.7,
        neighbours: int = 3,
        steps: int = 20,
        rectify: bool = True,
        transform: Literal["cl2n", "l2n", "un"] = "cl2n",
    ) -> None:
        super().__init__(encoder)
        check_not_negative(smoothness=smoothness)
        check_counts(neighbours=neighbours, steps=steps)
        check_flags(rectify=rectify)
        self.centre(transform)
        self.smoothness, self.neighbours, self.steps, self.rectify = smoothness, neighbours, steps, rectify

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        assert isinstance(support.x, Tensor)
        return Examples(self.centring(support.x, support.y >= 0), support.y, present)

    def classify_together(self, state: Examples, x: Tensor, real: Tensor) -> Tensor:
        x = self.centring(x, real)
        sums, counts = class_sums(state.x, state.y, state.present.shape[0])
        prototypes = sums / counts.clamp(min=1).unsqueeze(1)  # [N, D]
        if self.rectify:
            x = moved_to_support(x, real, state)
            prototypes = _rectified(prototypes, state, x, real)
        alone = mask_absent(-squared_distances(x, prototypes), state.present)  # [Q, N]
        near = _nearest(x, real, self.neighbours)
        logits = alone
        with without_autocast(x):
            for _ in range(self.steps):
                logits = alone + self.smoothness * (near @ logits.softmax(1))
        return logits

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)


def _rectified(prototypes: Tensor, support: Examples, x: Tensor, real: Tensor) -> Tensor:
    """Prototypes [N, D] as weighted means of the support items and of the queries x [Q, D] that are nearest to each."""
    items = torch.cat([support.x, x])  # [S + Q, D]
    weights = mask_absent(SCALE * cosine_similarities(items, prototypes), support.present).softmax(1)  # [S + Q, N]
    guess = weights[support.y.shape[0] :].argmax(1).where(real, -1)
    y = torch.cat([support.y, guess])
    sums, counts = class_sums(items * weights.gather(1, y.clamp(min=0).unsqueeze(1)), y, prototypes.shape[0])
    return sums / counts.clamp(min=1).unsqueeze(1)


def _nearest(x: Tensor, real: Tensor, count: int) -> Tensor:
    """1 in [Q, Q] where the column's query is among the `count` that are nearest to the row's; there may be fewer."""
    apart = squared_distances(x, x)
    itself = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
    apart = apart.where(real & ~itself, math.inf)
    nearest = apart.topk(min(count, x.shape[0] - 1), dim=1, largest=False)
    return torch.zeros_like(apart).scatter(1, nearest.indices, nearest.values.isfinite().to(apart.dtype))
