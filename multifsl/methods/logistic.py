"""Logistic regression on embeddings.

Tian, Wang, Krishnan, Tenenbaum, Isola: Rethinking Few-Shot Image Classification: a Good Embedding Is All You Need? ECCV 2020.
https://arxiv.org/abs/2003.11539: on an encoder that stays as it is, a logistic regression of the support embeddings, brought to
length 1. And, for an encoder that is trained by episodes, through the regression (LR-D2, section 3.3):
Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers. ICLR 2019.
https://arxiv.org/abs/1805.08136

    W, b = argmin of c * sum of -log softmax(W x_i + b)[y_i] over the support items + ||W||^2 / 2
    logits of a query x = scale * (W x + b)

W lies in the span of the support set, W = A^T X, and A [S, N] is found there by Newton's method: a step takes a Cholesky factor of
an S x S matrix a class (Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, section 3.5), whatever D is. A last
step, the one that gradients pass through, makes the gradient that of the minimum itself (implicit differentiation).

Departures: none from Tian et al. in the answers, which do not depend on `scale`: they use scikit-learn's regression with c = 1, of
which this is the minimum. LR-D2 differs: its regressions are binary, one class against the rest, its bias is penalised, it learns
lambda = 1 / c, and its gradients unroll all steps.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import (
    Examples,
    class_inverses,
    full_precision,
    highest_precision,
    mask_absent,
    memberships,
    solve_positive,
    without_autocast,
)
from multifsl.method import EmbeddingMethod
from multifsl.options import check_counts, check_flags, check_positive

EASY = 128  # c times the support items; beyond, one class of many items against many of few may need more steps
STEP_LENGTHS = 6  # a step is halved up to five times, until it does not lead uphill


class LogisticState(NamedTuple):
    """weight: [D, N]; bias: [N]; support: the examples themselves, to learn again from."""

    weight: Tensor
    bias: Tensor
    support: Examples


class Logistic(EmbeddingMethod):
    """Multinomial logistic regression with an L2 penalty, to its minimum.

    Args:
        c: what the errors count for against the penalty, a number above 0, as in scikit-learn, which for two classes has one row
            of weights, so that half of its C is the same.
        balanced: whether every class counts as much, whatever its number of examples: an item's c is S / (N * its class's items)
            times as much, scikit-learn's class_weight="balanced". Without, one example among fives is hardly ever the answer.
        normalise: whether embeddings are brought to length 1.
        scale: what the regression's logits are multiplied by, a number above 0, or "learned", trained from 10. It changes no
            answer, but how sure it is: the regression's own probabilities, those of 1, are near even with few examples of length 1.
        iterations: Newton steps. None: 5, which are enough for embeddings of length 1 and c times the number of support items up
            to 128, or else 15, which are enough for c times the squared length up to about 1e5.

    >>> from multifsl.encoder import Features
    >>> method = Logistic(Features(2), scale=1.0)
    >>> support = Batch(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 0.0]])).softmax(1)
    tensor([[0.6626, 0.3374]])
    """

    family = "transfer"

    def __init__(
        self,
        encoder: Encoder,
        *,
        c: float = 1.0,
        balanced: bool = True,
        normalise: bool = True,
        scale: float | Literal["learned"] = "learned",
        iterations: int | None = None,
    ) -> None:
        super().__init__(encoder)
        check_positive(c=c)
        check_flags(balanced=balanced, normalise=normalise)
        if iterations is not None:
            check_counts(iterations=iterations)
        self.c, self.balanced, self.normalise, self.iterations = c, balanced, normalise, iterations
        self.number_or_learned("scale", scale, 10.0)

    def adapt(self, support: Batch, present: Tensor) -> LogisticState:
        assert isinstance(support.x, Tensor)
        valid = support.y >= 0
        raw = full_precision(support.x).where(valid.unsqueeze(1), 0.0)  # padding may hold NaN
        x = self._embedding(raw)
        with without_autocast(x):
            a, bias = self._regression(highest_precision(x @ x.T), support.y, present)
            return LogisticState(x.T @ a.T.to(x), bias.to(x), Examples(raw, support.y, present))

    def classify(self, state: LogisticState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        with without_autocast(x):
            logits = self._embedding(full_precision(x)) @ state.weight + state.bias
        return mask_absent(self.number("scale") * logits, state.support.present)

    def update(self, state: LogisticState, support: Batch, present: Tensor) -> LogisticState:
        assert isinstance(support.x, Tensor)
        both = state.support.and_more(Examples(full_precision(support.x), support.y, present))
        return self.adapt(Batch(both.x, both.y), present)

    def remove(self, state: LogisticState, label: int) -> LogisticState:
        left = state.support.without(label)
        return self.adapt(Batch(left.x, left.y), left.present)

    def _embedding(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1) if self.normalise else x

    def _regression(self, kernel: Tensor, y: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """A^T [N, S] and b [N] at the minimum, of the support items' inner products [S, S]."""
        fixed = kernel.detach()
        valid = y >= 0
        target = memberships(y, present.shape[0]).T.to(fixed)  # [N, S]
        c = self.c * self._shares(target, valid)  # [S]
        lengths = 0.5 ** torch.arange(STEP_LENGTHS, device=y.device).to(fixed)

        def log_p(f: Tensor) -> Tensor:
            """[..., N, S]; 0 where an item or a class is not there."""
            f = f.where(present.unsqueeze(1), -math.inf)
            return f.log_softmax(-2).where(present.unsqueeze(1) & valid, 0.0)

        def cost(a: Tensor, f: Tensor) -> Tensor:
            return 0.5 * (a * (a @ fixed)).sum((-2, -1)) - (c * target * log_p(f)).sum((-2, -1))

        def gap(k: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            """p [N, S], and what the minimum has at 0: c (target - p) - a."""
            p = log_p(a @ k + b.unsqueeze(1)).exp().where(present.unsqueeze(1) & valid, 0.0)
            return p, c * (target - p) - a

        easy = self.normalise and self.c * len(y) <= EASY
        steps = self.iterations or (5 if easy else 15)
        a, b = torch.zeros_like(target), torch.zeros_like(target[:, 0])
        with torch.no_grad():
            for _ in range(steps):
                p, error = gap(fixed, a, b)
                da, db = _newton_step(fixed, c * p, error, valid, present)
                f, df = a @ fixed + b.unsqueeze(1), da @ fixed + db.unsqueeze(1)
                t = lengths.view(-1, 1, 1)
                downhill = cost(a + t * da, f + t * df) <= cost(a, f) * (1 + 1e-12)
                length = lengths.where(downhill, 0.0).amax()
                a, b = a + length * da, b + length * db
        p, error = gap(kernel, a, b)
        da, db = _newton_step(fixed, c * p.detach(), error, valid, present)
        return a + da, b + db

    def _shares(self, target: Tensor, valid: Tensor) -> Tensor:
        """What each item counts for [S], from the labels [N, S]."""
        if not self.balanced:
            return torch.ones_like(target[0])
        counts = target.sum(1)
        return valid.sum() / ((counts > 0).sum() * (counts @ target).clamp(min=1))


def _newton_step(
    kernel: Tensor, weight: Tensor, error: Tensor, valid: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """The da [N, S] and db [N] that bring `error` [N, S] to 0, to first order; linear in `error`.

    With da = error - weight * (kernel da + db + nu), of which nu [S] keeps the sums of da over the classes, and db those over the
    items, as they were: at 0. Solved for da by class, then for nu, then for db.
    """
    inverse = class_inverses(kernel, weight)  # [N, S, S]
    shift = (inverse @ (error @ kernel).unsqueeze(2)).squeeze(2)  # [N, S]
    sums = inverse.sum(2)  # [N, S]
    over_classes = inverse.sum(0) + torch.diag_embed((~valid).to(kernel))
    solved = solve_positive(over_classes, torch.cat([sums, shift.sum(0, keepdim=True)]).T)  # [S, N + 1]
    # A bias common to all classes changes nothing, and one of an absent class does not count: both are held at 0.
    here = present.to(kernel)
    held = sums.sum() / here.sum().clamp(min=1).square() * here * here.unsqueeze(1) + torch.diag_embed(1 - here)
    left = torch.diag_embed(sums.sum(1)) - sums @ solved[:, :-1] + held
    right = (error - shift).sum(1) + sums @ solved[:, -1]
    db = solve_positive(left, right.unsqueeze(1)).squeeze(1)
    nu = -solved[:, -1] - solved[:, :-1] @ db
    return error - shift - (inverse @ (db.unsqueeze(1) + nu).unsqueeze(2)).squeeze(2), db
