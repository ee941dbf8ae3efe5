"""TIM: class weights that make the queries' classes sure, and evenly spread (transductive).

Boudiaf, Masud, Rony, Dolz, Piantanida, Ben Ayed: Transductive Information Maximization For Few-Shot Learning. NeurIPS 2020.
https://arxiv.org/abs/2008.11297

Embeddings z have length 1, and p(k | z) = softmax over k of -tau / 2 ||z - w_k||^2. Starting from the class means, the weights w of
one task are to minimise lambda CE - H(Y) + alpha H(Y | X): CE is the cross-entropy of the support items, H(Y | X) the mean entropy
of the queries' p, H(Y) the entropy of their mean. "gd" takes steps of Adam. "adm" alternates between two closed forms, for a q of
the queries that stands in for their p:

    q_ik ~ p_ik^(1 + alpha) / (sum over the queries i of p_ik^(1 + alpha))^(1/2), each row summing to 1
    w_k <- [ c / |S| sum over S of (y_ik z_i + p_ik (w_k - z_i)) + 1 / |Q| sum over Q of (q_ik z_i + p_ik (w_k - z_i)) ]
           / [ c / |S| sum over S of y_ik + 1 / |Q| sum over Q of q_ik ],   c = lambda / (1 + alpha)

Departures: with fewer queries than classes, which cannot be of all classes, H(Y) is left out. H(Y) is largest where all classes
have as many queries, so that TIM does worse where they have not: many queries of one class are shared out among the others.
Where a task's embeddings have no structure, adm amplifies rounding by the round, and where they hardly differ, so does gd, whose
Adam divides by gradients near 0: the answers may then hinge on the last digit.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch
from multifsl.functional import (
    Examples,
    adam_step,
    class_sums,
    full_precision,
    mask_absent,
    memberships,
    squared_distances,
    without_autocast,
)
from multifsl.method import TransductiveMethod
from multifsl.options import check_choice, check_counts, check_not_negative, check_positive

NEVER = -1e9  # as a logit; finite, so that 0 log 0 is 0


class Tim(TransductiveMethod):
    """Class weights by mutual information of the queries and their answers.

    Args:
        solver: "adm" (closed forms in turn) or "gd" (Adam).
        steps: rounds of the solver, at least 1. By default the paper's: 150 for adm, 1000 for gd.
        lr: the rate of Adam, above 0; used by gd alone.
        scale: what half the squared distances are multiplied by: the paper's tau, above 0.
        support_weight: of the support items' cross-entropy: the paper's lambda, above 0.
        entropy_weight: of the queries' mean entropy: the paper's alpha, 0 or more.

    >>> from multifsl.encoder import Features
    >>> method = Tim(Features(2))
    >>> support = Batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[3.0, 1.0], [1.0, 1.1]])).argmax(1)
    tensor([0, 1])
    """

    family = "transfer"
    learns_from = "classes"

    def __init__(
        self,
        encoder: Encoder,
        *,
        solver: Literal["adm", "gd"] = "adm",
        steps: int | None = None,
        lr: float = 1e-4,
        scale: float = 15.0,
        support_weight: float = 0.1,
        entropy_weight: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        check_choice("solver", solver, ("adm", "gd"))
        check_counts(steps=1 if steps is None else steps)
        check_positive(lr=lr, scale=scale, support_weight=support_weight)
        check_not_negative(entropy_weight=entropy_weight)
        self.solver, self.lr, self.scale = solver, lr, scale
        self.steps = steps if steps is not None else 150 if solver == "adm" else 1000
        self.support_weight, self.entropy_weight = support_weight, entropy_weight

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        assert isinstance(support.x, Tensor)
        return Examples(_unit(support.x, support.y >= 0), support.y, present)

    def classify_together(self, state: Examples, x: Tensor, real: Tensor) -> Tensor:
        x = _unit(x, real)
        sums, counts = class_sums(state.x, state.y, state.present.shape[0])
        weights = sums / counts.clamp(min=1).unsqueeze(1)  # [N, D]
        with without_autocast(x):
            weights = (self._adm if self.solver == "adm" else self._gd)(weights, state, x, real)
        return mask_absent(-self.scale / 2 * squared_distances(x, weights), state.present)

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)

    def _adm(self, weights: Tensor, support: Examples, x: Tensor, real: Tensor) -> Tensor:
        z, labels, n = _joined(support, x)
        power = 1 + self.entropy_weight
        shares = torch.cat([self.support_weight / power * _shares(support.y >= 0, z), _shares(real, z)])  # [S + Q, 1]
        even = real.sum() >= support.present.sum()
        for _ in range(self.steps):
            log_p = self._log_p(z, weights, support.present)  # [S + Q, N]
            powers = power * log_p[n:]
            spread = powers.where(real.unsqueeze(1), NEVER).logsumexp(0).where(even, 0.0)
            q = (powers - spread / 2).softmax(1)
            targets = torch.cat([labels, q])
            mass = (shares * targets).sum(0).where(support.present, 1.0).unsqueeze(1)
            weights = weights + _pull(shares * (targets - log_p.exp()), z, weights) / mass
        return weights

    def _gd(self, weights: Tensor, support: Examples, x: Tensor, real: Tensor) -> Tensor:
        z, labels, n = _joined(support, x)
        support_shares, query_shares = self.support_weight * _shares(support.y >= 0, z), _shares(real, z)
        count, moments, even = real.sum().clamp(min=1), None, real.sum() >= support.present.sum()
        for _ in range(self.steps):
            log_p = self._log_p(z, weights, support.present)
            p = log_p.exp()
            log_marginal = (log_p[n:].where(real.unsqueeze(1), NEVER).logsumexp(0) - count.log()).where(even, 0.0)
            by_p = (
                log_marginal - self.entropy_weight * log_p[n:]
            )  # the loss by p, times |Q|, up to what is equal for all k
            by_logit = query_shares * p[n:] * (by_p - (p[n:] * by_p).sum(1, keepdim=True))
            by_logit = torch.cat([support_shares * (p[:n] - labels), by_logit])  # [S + Q, N]
            gradient = self.scale * _pull(by_logit, z, weights)
            moved, moments = adam_step({"w": weights}, {"w": gradient}, moments, lr=self.lr)
            weights = moved["w"]
        return weights

    def _log_p(self, z: Tensor, weights: Tensor, present: Tensor) -> Tensor:
        logits = self.scale * (z @ weights.T - weights.square().sum(1) / 2)  # ||z||^2 is equal for all classes
        return logits.where(present, NEVER).log_softmax(1)


def _joined(support: Examples, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Support items and queries [S + Q, D], the labels of the former [S, N], and S."""
    labels = memberships(support.y, support.present.shape[0]).to(x.dtype)
    return torch.cat([support.x, x]), labels, labels.shape[0]


def _unit(x: Tensor, valid: Tensor) -> Tensor:
    return nn.functional.normalize(full_precision(x).where(valid.unsqueeze(1), 0.0), dim=1)  # padding may hold NaN


def _shares(valid: Tensor, like: Tensor) -> Tensor:
    """1 / count for the rows that are valid, 0 for padding: [B, 1]."""
    return (valid.to(like.dtype) / valid.sum().clamp(min=1)).unsqueeze(1)


def _pull(by_logit: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """sum over i of by_logit_ik (z_i - w_k): [N, D]."""
    return by_logit.T @ z - weights * by_logit.sum(0).unsqueeze(1)
