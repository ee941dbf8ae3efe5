"""Ridge regression on embeddings (R2-D2).

Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with Differentiable Closed-form Solvers. ICLR 2019.
https://arxiv.org/abs/1805.08136

    W = argmin of ||X W - Y||^2 + lambda ||W||^2, with X the support embeddings and Y their labels as 0 and 1
      = (X^T X + lambda I)^-1 X^T Y = X^T (X X^T + lambda I)^-1 Y
    logits of the queries X' = alpha X' W + beta
    loss = cross-entropy over the queries, whose gradient goes through W to the encoder; lambda and alpha are learned with it

The two forms of W are equal (Woodbury): the first inverts a D x D matrix, the second an S x S one. The smaller is taken.

Departures: beta, one number for all logits, is left out, since softmax does not see it. lambda and alpha are learned as logarithms,
and so stay above 0. The authors' code appends a 1 to each embedding, and divides X and Y by sqrt(S), which makes its lambda one of
S times as much; its R2-D2 experiments keep lambda at 50, unlearned, which is 50 S here, and start alpha at 1e-4 or 10, by data set.
Lee et al. 2019 (MetaOptNet) take 50 and 1 for R2-D2. Here lambda starts at 1, for embeddings of a length of about 1 to 10.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import (
    Examples,
    full_precision,
    mask_absent,
    memberships,
    solve_positive,
    without_autocast,
)
from multifsl.method import EmbeddingMethod
from multifsl.options import check_flags, check_positive


class RidgeState(NamedTuple):
    """weight: [D, N]; support: the examples themselves, to learn again from."""

    weight: Tensor
    support: Examples


class Ridge(EmbeddingMethod):
    """Ridge regression to one-hot labels, in closed form.

    Args:
        ridge: lambda, or where it starts, a number above 0. It is in the units of squared embeddings: embeddings twice as long
            want four times as much.
        scale: alpha, or where it starts, a number above 0.
        learned: whether lambda and alpha are trained with the encoder.

    >>> from multifsl.encoder import Features
    >>> method = Ridge(Features(2), scale=1.0)
    >>> support = Batch(torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 1.0]])).detach()
    tensor([[0.5000, 0.3000]])
    """

    family = "metric"

    def __init__(self, encoder: Encoder, *, ridge: float = 1.0, scale: float = 10.0, learned: bool = True) -> None:
        super().__init__(encoder)
        check_positive(ridge=ridge, scale=scale)
        check_flags(learned=learned)
        self.ridge, self.scale, self.learned = ridge, scale, learned
        if learned:
            self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))
            self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))

    def adapt(self, support: Batch, present: Tensor) -> RidgeState:
        assert isinstance(support.x, Tensor)
        valid = support.y >= 0
        x = full_precision(support.x).where(valid.unsqueeze(1), 0.0)  # rows of zeros, in Y too, change no sum
        target = memberships(support.y, present.shape[0]).to(x.dtype)  # [S, N]
        ridge, (n, dim) = self.log_ridge.exp() if self.learned else self.ridge, x.shape
        eye = torch.eye(min(n, dim), dtype=x.dtype, device=x.device)
        with without_autocast(x):
            if n <= dim:
                weight = x.T @ solve_positive(x @ x.T + ridge * eye, target)
            else:
                weight = solve_positive(x.T @ x + ridge * eye, x.T @ target)
        return RidgeState(weight, Examples(x, support.y, present))

    def classify(self, state: RidgeState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        with without_autocast(x):
            scale = self.log_scale.exp() if self.learned else self.scale
            return mask_absent(scale * (full_precision(x) @ state.weight), state.support.present)

    def update(self, state: RidgeState, support: Batch, present: Tensor) -> RidgeState:
        assert isinstance(support.x, Tensor)
        both = state.support.and_more(Examples(full_precision(support.x), support.y, present))
        return self.adapt(Batch(both.x, both.y), present)

    def remove(self, state: RidgeState, label: int) -> RidgeState:
        left = state.support.without(label)
        return self.adapt(Batch(left.x, left.y), left.present)
