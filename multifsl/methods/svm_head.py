"""Support vector machine on embeddings (MetaOptNet-SVM).

Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019.
https://arxiv.org/abs/1904.03758, with the multi-class machine of Crammer and Singer (JMLR 2001)

    w_k, xi = argmin of sum over k of ||w_k||^2 / 2 + c * sum over i of xi_i,
              with w_(y_i) . x_i - w_k . x_i >= 1 - xi_i for all other classes k, and xi_i >= 0
    dual:     w_k = sum over i of a_ik x_i, a = argmin of sum over k of ||w_k||^2 / 2 - sum over i of a_(i, y_i),
              with a_(i, y_i) <= c, a_ik <= 0 for the other classes, and a sum of 0 over k for each i
    logits of a query x = scale * w_k . x, with a learned scale; loss = cross-entropy over the queries

The dual is solved by an interior-point method (predictor and corrector, Mehrotra 1992). Its steps fall apart by class: each takes
Cholesky factors of an S x S matrix a class, and of one more, not of one S N x S N matrix. It tells which constraints hold with
equality, and under those the solution is that of a linear system, exactly. A last step of it, the one that gradients pass through,
makes the gradient that of the solution itself (implicit differentiation).

Departures: `smoothing` adds smoothing / 2 * ||a||^2 to the dual, which is not in the paper, but in the authors' code, with 1; it
rounds off the corner of the hinge, and makes a unique. The authors smooth the labels of the outer loss by 0.1; here it is plain.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

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
from multifsl.options import check_counts, check_positive


class SvmHeadState(NamedTuple):
    """weight: [D, N]; support: the examples themselves, to learn again from."""

    weight: Tensor
    support: Examples


class SvmHead(EmbeddingMethod):
    """The multi-class support vector machine of Crammer and Singer, to its solution.

    Args:
        c: the most that one support item can weigh, a number above 0.
        smoothing: of the hinge, a number above 0. It is in the units of squared embeddings; 1 is little beside embeddings of length
            10, and 1e-6 is the paper's machine.
        scale: what the machine's scores are multiplied by to give logits, a number above 0, or "learned", trained from 1.
        iterations: interior-point steps. How many it takes grows with the embeddings' length and c: 20 are enough for lengths up to
            3,000 and c = 0.1, or up to 500 and c = 10. With too few the answers are wrong, and nothing says so.

    >>> from multifsl.encoder import Features
    >>> method = SvmHead(Features(2), c=10.0, smoothing=1e-6)
    >>> support = Batch(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 1, 0]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 0.0]])).detach()
    tensor([[ 0.5000, -0.5000]])
    """

    family = "metric"

    def __init__(
        self,
        encoder: Encoder,
        *,
        c: float = 0.1,
        smoothing: float = 1.0,
        scale: float | Literal["learned"] = "learned",
        iterations: int = 20,
    ) -> None:
        super().__init__(encoder)
        check_positive(c=c, smoothing=smoothing)
        check_counts(iterations=iterations)
        self.c, self.smoothing, self.iterations = c, smoothing, iterations
        self.number_or_learned("scale", scale, 1.0)

    def adapt(self, support: Batch, present: Tensor) -> SvmHeadState:
        assert isinstance(support.x, Tensor)
        valid = support.y >= 0
        x = full_precision(support.x).where(valid.unsqueeze(1), 0.0)  # padding may hold NaN
        with without_autocast(x):
            # Before the products: of items that hardly differ, it is their differences that count.
            wide = highest_precision(x)
            a = self._dual(wide @ wide.T, support.y, present)
            return SvmHeadState((wide.T @ a.T).to(x), Examples(x, support.y, present))

    def classify(self, state: SvmHeadState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        with without_autocast(x):
            return mask_absent(self.number("scale") * (full_precision(x) @ state.weight), state.support.present)

    def update(self, state: SvmHeadState, support: Batch, present: Tensor) -> SvmHeadState:
        assert isinstance(support.x, Tensor)
        both = state.support.and_more(Examples(full_precision(support.x), support.y, present))
        return self.adapt(Batch(both.x, both.y), present)

    def remove(self, state: SvmHeadState, label: int) -> SvmHeadState:
        left = state.support.without(label)
        return self.adapt(Batch(left.x, left.y), left.present)

    def _dual(self, kernel: Tensor, y: Tensor, present: Tensor) -> Tensor:
        """a^T [N, S], of the support items' inner products [S, S]."""
        fixed, valid = kernel.detach(), y >= 0
        usable = present.unsqueeze(1) & valid  # [N, S]
        target = memberships(y, present.shape[0]).T.to(fixed)  # [N, S]
        with torch.no_grad():
            size = fixed.diagonal().sum() / valid.sum().clamp(min=1) + self.smoothing
            room, slope = self._interior_point(fixed, target, usable, 1 / size)
            # Constraints that hold with equality have no room; where both are small, either answer will do.
            free = usable & ((room * size > slope) | (room == room.where(usable, -1.0).amax(0)))
            inverse = class_inverses(fixed, free.to(fixed) / self.smoothing)
            a = (self.c * target).where(~free, 0.0)
            a = a + _equality_step(inverse, a @ fixed + self.smoothing * a - target, -a.sum(0), valid)[0]
        gradient = a @ kernel + self.smoothing * a - target
        return a + _equality_step(inverse, gradient, torch.zeros_like(a[0]), valid)[0]

    def _interior_point(self, kernel: Tensor, target: Tensor, usable: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The room [N, S] that a has to its bounds, and the slope [N, S] of the cost there; one of the two is 0 at the solution.

        scale: how large a solution is that no bound holds.
        """
        count, valid = usable.sum().clamp(min=1), usable.any(0)
        tiny = torch.finfo(kernel.dtype).eps ** 2
        even = target - 1 / usable.sum(0).clamp(min=1)
        a = (scale.clamp(max=self.c) * even).where(usable, 0.0)
        room = (self.c * target - a).where(usable, 1.0)
        gradient = a @ kernel + self.smoothing * a - target
        slope = (gradient.where(usable, -math.inf).amax(0) - gradient + 1).where(usable, 1.0)
        for _ in range(self.iterations):
            inverse = class_inverses(kernel, (room / (self.smoothing * room + slope)).where(usable, 0.0))
            gap = (room * slope).where(usable, 0.0).sum() / count
            drift = (room.where(usable, 0.0).sum(0) - self.c).where(valid, 0.0)  # by rounding, of sums that are c

            def step(aim: Tensor, inverse: Tensor = inverse, drift: Tensor = drift) -> tuple[Tensor, Tensor]:
                da, nu = _equality_step(inverse, aim, drift, valid)
                return da, (nu - da @ kernel - self.smoothing * da).where(usable, 0.0)

            da, ds = step(-slope)  # as if nothing kept it from the bounds
            length = _length(room, slope, da, ds).clamp(max=1)
            ahead = ((room - length * da) * (slope + length * ds)).where(usable, 0.0).sum() / count
            aim = (ahead / gap) ** 3 * gap
            da, ds = step((aim + da * ds) / room - slope)
            length = (0.99 * _length(room, slope, da, ds)).clamp(max=1)
            room, slope = (room - length * da).clamp(min=tiny), (slope + length * ds).clamp(min=tiny)
        return room, slope


def _equality_step(inverse: Tensor, gradient: Tensor, total: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The da [N, S] = inverse (nu - gradient) whose sums over the classes are `total` [S], and nu [S]; linear in both."""
    descent = (inverse @ gradient.unsqueeze(2)).squeeze(2)  # [N, S]
    over_classes = inverse.sum(0) + torch.diag_embed((~valid).to(inverse))
    nu = solve_positive(over_classes, (total + descent.sum(0)).unsqueeze(1)).squeeze(1)
    return (inverse @ nu.unsqueeze(1)).squeeze(2) - descent, nu


def _length(room: Tensor, slope: Tensor, da: Tensor, ds: Tensor) -> Tensor:
    """The longest step that leaves room - da and slope + ds at 0 or above."""
    never = torch.finfo(room.dtype).max
    to_bound = (room / da.where(da > 0, 1.0)).where(da > 0, never).amin()
    return torch.minimum(to_bound, (slope / (-ds).where(ds < 0, 1.0)).where(ds < 0, never).amin())
