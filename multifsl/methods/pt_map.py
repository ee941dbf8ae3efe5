"""PT-MAP: class centres by optimal transport, every class having as many queries (transductive).

Hu, Gripon, Pateux: Leveraging the Feature Distribution in Transfer-based Few-Shot Learning. ICANN 2021.
https://arxiv.org/abs/2006.03806

    f(v) = (v + 1e-6)^beta, then brought to length 1                                (the power transform, equation 1)
    less the mean of the support items, or of the queries, then brought to length 1     (in the authors' program)

From c_j = mean of the support items of class j, rounds of

    M = of all M >= 0 with rows that sum to 1 and columns that sum to |Q| / N, the one with the least
        sum of M_ij ||f_i - c_j||^2 - (entropy of M) / lambda
    mu_j = sum over support items and queries of M_ij f_i / sum of M_ij; M_ij of a support item is 1 in its own class, 0 else
    c_j <- c_j + alpha (mu_j - c_j)

M is found by Sinkhorn's iterations: rows and columns scaled in turn. A query's class is that of its largest M at the last centres.

It is told that **the classes are balanced among the queries**, and answers so whether they are or not.

Departures: Sinkhorn's iterations are fixed in number, start from the last round's factors, and run on logarithms; the authors
stop below 1e-6 of change. The paper takes embeddings of 0 and more; of a negative number the power is here that of its absolute
value, with its sign. Fewer queries than classes cannot be balanced (one query would be of all classes alike): the columns of M
are then free, which makes it a softmax.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch
from multifsl.errors import MultifslError
from multifsl.functional import (
    Examples,
    full_precision,
    mask_absent,
    memberships,
    moved_to_support,
    squared_distances,
    without_autocast,
)
from multifsl.method import TransductiveMethod
from multifsl.options import check_counts, check_flags, check_positive

NEVER = -1e9  # as a logit; finite, so that no row or column is empty
EPSILON = 1e-6  # keeps the power's slope finite at 0


class PtMap(TransductiveMethod):
    """Power transform and optimal transport; for queries that have as many of each class.

    Args:
        power: beta, above 0; 1 leaves embeddings as they are.
        scale: lambda, above 0: the larger, the harder the assignments.
        rate: alpha, how far centres move each round, above 0 and at most 1.
        steps: rounds, at least 1.
        sinkhorn_steps: iterations a round, at least 1.
        centre: whether the mean of the support set is taken from it, and that of the queries from them, and both are brought to
            length 1 again, as the authors' program does; False for the embeddings of equation 1 as they are.

    >>> from multifsl.encoder import Features
    >>> method = PtMap(Features(2))
    >>> support = Batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 0.5], [1.0, 0.9]])).softmax(1).sum(0)  # as many of each
    tensor([1., 1.])
    """

    family = "transfer"
    learns_from = "classes"

    def __init__(
        self,
        encoder: Encoder,
        *,
        power: float = 0.5,
        scale: float = 10.0,
        rate: float = 0.2,
        steps: int = 20,
        sinkhorn_steps: int = 20,
        centre: bool = True,
    ) -> None:
        super().__init__(encoder)
        check_positive(power=power, scale=scale)
        if not (isinstance(rate, int | float) and 0 < rate <= 1):
            raise MultifslError(f"rate must be a number above 0 and at most 1, not {rate!r}")
        check_counts(steps=steps, sinkhorn_steps=sinkhorn_steps)
        check_flags(centre=centre)
        self.power, self.scale, self.rate = power, scale, rate
        self.steps, self.sinkhorn_steps, self.centre = steps, sinkhorn_steps, centre

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        assert isinstance(support.x, Tensor)
        return Examples(self._transform(support.x, support.y >= 0), support.y, present)

    def classify_together(self, state: Examples, x: Tensor, real: Tensor) -> Tensor:
        x = self._transform(x, real)
        own = memberships(state.y, state.present.shape[0]).to(x.dtype)  # [S, N]
        support = state.x
        if self.centre:
            x = moved_to_support(x, real, state)
            mean = support.sum(0) / own.sum().clamp(min=1)  # padding is 0
            support, x = (nn.functional.normalize(z - mean, dim=1) for z in (support, x))
        z = torch.cat([support, x])  # [S + Q, D]
        with without_autocast(x):
            centres = own.T @ support / own.sum(0).clamp(min=1).unsqueeze(1)  # [N, D]
            factors = x.new_zeros(state.present.shape[0])
            for _ in range(self.steps):
                logits, factors = self._transport(x, centres, factors, real, state.present)
                masses = torch.cat([own, logits.softmax(1).where(real.unsqueeze(1), 0.0)])  # [S + Q, N]
                means = masses.T @ z / masses.sum(0).where(state.present, 1.0).unsqueeze(1)
                centres = centres + self.rate * (means - centres)
        return mask_absent(self._transport(x, centres, factors, real, state.present)[0], state.present)

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)

    def _transform(self, x: Tensor, valid: Tensor) -> Tensor:
        x = full_precision(x).where(valid.unsqueeze(1), 0.0)  # padding may hold NaN
        powers = (x.abs() + EPSILON) ** self.power
        powers = powers.where(x >= 0, -powers).where(valid.unsqueeze(1), 0.0)
        return nn.functional.normalize(powers, dim=1)

    def _transport(
        self, x: Tensor, centres: Tensor, factors: Tensor, real: Tensor, present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [Q, N] whose softmax is M, and the logarithms [N] of the columns' factors, which the next round starts from."""
        scores = (-self.scale * squared_distances(x, centres)).where(present, NEVER)
        countable = scores.where(real.unsqueeze(1), NEVER)  # padding queries carry no mass into the columns
        balanced = real.sum() >= present.sum()
        column = (real.sum() / present.sum().clamp(min=1)).clamp(min=EPSILON).log()
        for _ in range(self.sinkhorn_steps):
            rows = (scores + factors).logsumexp(1, keepdim=True)  # [Q, 1]
            factors = (column - (countable - rows).logsumexp(0)).where(present & balanced, 0.0)
        return scores + factors, factors
