"""Baseline++: a new cosine head on a frozen encoder.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification. ICLR 2019. https://arxiv.org/abs/1904.04232

    base training: encoder and cosine head as a classifier of all train classes; the head is then thrown away  (section 3.2)
    a new task: logit of k = scale * g_k * cos(f(x), w_k), with w and g trained on the support set and f frozen:
        loss = mean cross-entropy, by gradient descent with momentum, dampening and weight decay as in `baseline`

g_k, a learned length of each class, is not in the paper but in the authors' code, which calls it needed to get its figures
(weight normalisation of w); `learned_norms=False` is the head as printed, g_k = 1.

Gradients are written out. With x of length 1, u_k = w_k / ||w_k|| and E = (softmax - labels) / S [S, N]:
that of g_k is scale * sum_i E_ik (u_k . x_i); that of u_k is r_k = scale * g_k * sum_i E_ik x_i; and that of w_k is
(r_k - (r_k . u_k) u_k) / ||w_k||.

Departures. Their code takes 100 epochs of random batches of 4 at a rate of 0.01, from random weights. Here a step sees the
whole support set, and starts at the class means of the normalised embeddings with g = 1, so that the order of the support set
and the classes' numbers do not matter and an answer can be repeated. 100 such steps at 0.01 hardly move: `lr` is 0.5. The
encoder is frozen for autograd too: no gradient goes into the support set. Base training learns one scale, from 10, and no
lengths.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import (
    class_sums,
    cross_entropy_gradient,
    full_precision,
    mask_absent,
    sgd_step,
    without_autocast,
)
from multifsl.method import EmbeddingMethod
from multifsl.options import (
    check_below_one,
    check_counts,
    check_flags,
    check_not_negative,
    check_positive,
    check_up_to_one,
)


class BaselinePpState(NamedTuple):
    """weight: [N, D], g_k u_k; present: bool [N]."""

    weight: Tensor
    present: Tensor


class BaselinePp(EmbeddingMethod):
    """A cosine head, trained on the support embeddings by gradient descent.

    Args:
        scale: what cosines are multiplied by, above 0; 2 in the authors' code for 200 classes or fewer.
        learned_norms: whether each class has a learned length, as in the authors' code.
        steps: how many, at least 1. lr: the learning rate, above 0.
        momentum: from 0 to below 1. dampening: share of each gradient that the velocity does not take in, from 0 to 1.
        weight_decay: 0 or more; of the lengths too.

    >>> from multifsl.encoder import Features
    >>> method = BaselinePp(Features(2))
    >>> support = Batch(torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).argmax(1)
    tensor([0])
    """

    family = "transfer"
    learns_from = "classes"
    base_head = "cosine"

    def __init__(
        self,
        encoder: Encoder,
        *,
        scale: float = 2.0,
        learned_norms: bool = True,
        steps: int = 100,
        lr: float = 0.5,
        momentum: float = 0.9,
        dampening: float = 0.9,
        weight_decay: float = 0.001,
    ) -> None:
        super().__init__(encoder)
        check_counts(steps=steps)
        check_positive(lr=lr, scale=scale)
        check_flags(learned_norms=learned_norms)
        check_below_one(momentum=momentum)
        check_up_to_one(dampening=dampening)
        check_not_negative(weight_decay=weight_decay)
        self.scale, self.learned_norms, self.steps, self.lr = scale, learned_norms, steps, lr
        self.momentum, self.dampening, self.weight_decay = momentum, dampening, weight_decay

    def adapt(self, support: Batch, present: Tensor) -> BaselinePpState:
        assert isinstance(support.x, Tensor)
        y = support.y
        x = F.normalize(full_precision(support.x.detach()).where((y >= 0).unsqueeze(1), 0.0))  # padding may hold NaN
        sums, counts = class_sums(x, y, present.shape[0])
        head = {"w": sums / counts.clamp(min=1).unsqueeze(1), "g": torch.ones_like(counts)}
        velocity = None
        with without_autocast(x):
            for _ in range(self.steps):
                length = head["w"].norm(dim=1, keepdim=True).clamp(min=1e-12)  # [N, 1]
                u = head["w"] / length
                cosines = x @ u.T  # [S, N]
                wrong = self.scale * cross_entropy_gradient(mask_absent(self.scale * head["g"] * cosines, present), y)
                r = head["g"].unsqueeze(1) * (wrong.T @ x)  # [N, D]
                gradients = {"w": (r - (r * u).sum(1, keepdim=True) * u) / length, "g": (wrong * cosines).sum(0)}
                moved, velocity = sgd_step(
                    head,
                    gradients,
                    velocity,
                    lr=self.lr,
                    momentum=self.momentum,
                    dampening=self.dampening,
                    weight_decay=self.weight_decay,
                )
                head = moved if self.learned_norms else {**moved, "g": head["g"]}
        return BaselinePpState(head["g"].unsqueeze(1) * F.normalize(head["w"]), present)

    def classify(self, state: BaselinePpState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        with without_autocast(x):
            cosines = F.linear(F.normalize(full_precision(x)), state.weight)  # [Q, N]
            return mask_absent(self.scale * cosines, state.present)
