"""Baseline: a new linear head on a frozen encoder.

Chen, Liu, Kira, Wang, Huang: A Closer Look at Few-shot Classification. ICLR 2019. https://arxiv.org/abs/1904.04232

    base training: encoder and linear head as a classifier of all train classes; the head is then thrown away (section 3.1)
    a new task: logits = W f(x) + b, with W and b trained on the support set and f frozen:
        loss = mean cross-entropy;  g = gradient + weight_decay * weights
        v = g in the first step, then momentum * v + (1 - dampening) * g;  weights = weights - lr * v

Gradients are written out: with P = softmax of the logits and Y the labels as rows of 0 and 1, that of W is
(P - Y)^T X / S, and that of b the sum of (P - Y) / S over the rows.

Departures. Their code (the paper names only SGD and the batch size) takes 100 epochs of random batches of 4 at a rate of 0.01,
from random weights. Here a step sees the whole support set and starts at 0, so that its order does not matter and an answer can be
repeated. 100 full steps at 0.01 do not get far: `lr` is 0.05, so that rate x steps is 5, where theirs is 2 (5-way 1-shot) to 7
(5-way 5-shot). The encoder is frozen for autograd too: no gradient goes into the support set.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import cross_entropy_gradient, full_precision, mask_absent, sgd_step, without_autocast
from multifsl.method import EmbeddingMethod
from multifsl.options import check_below_one, check_counts, check_not_negative, check_positive, check_up_to_one


class BaselineState(NamedTuple):
    """weight: [N, D] and bias: [N], the trained head; present: bool [N]."""

    weight: Tensor
    bias: Tensor
    present: Tensor


class Baseline(EmbeddingMethod):
    """A linear head, trained on the support embeddings by gradient descent.

    Args:
        steps: how many, at least 1. lr: the learning rate, above 0.
        momentum: from 0 to below 1. dampening: share of each gradient that the velocity does not take in, from 0 to 1.
        weight_decay: 0 or more; of the bias too.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> method = Baseline(Features(2), steps=2, lr=1.0)
    >>> support = Batch(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).argmax(1)
    tensor([0])
    """

    family = "transfer"
    learns_from = "classes"

    def __init__(
        self,
        encoder: Encoder,
        *,
        steps: int = 100,
        lr: float = 0.05,
        momentum: float = 0.9,
        dampening: float = 0.9,
        weight_decay: float = 0.001,
    ) -> None:
        super().__init__(encoder)
        check_counts(steps=steps)
        check_positive(lr=lr)
        check_below_one(momentum=momentum)
        check_up_to_one(dampening=dampening)
        check_not_negative(weight_decay=weight_decay)
        self.steps, self.lr = steps, lr
        self.momentum, self.dampening, self.weight_decay = momentum, dampening, weight_decay

    def adapt(self, support: Batch, present: Tensor) -> BaselineState:
        assert isinstance(support.x, Tensor)
        y = support.y
        x = full_precision(support.x.detach()).where((y >= 0).unsqueeze(1), 0.0)  # padding may hold NaN
        head = {"weight": x.new_zeros(present.shape[0], x.shape[1]), "bias": x.new_zeros(present.shape[0])}
        velocity = None
        with without_autocast(x):
            for _ in range(self.steps):
                logits = mask_absent(F.linear(x, head["weight"], head["bias"]), present)
                wrong = cross_entropy_gradient(logits, y)  # [S, N]
                head, velocity = sgd_step(
                    head,
                    {"weight": wrong.T @ x, "bias": wrong.sum(0)},
                    velocity,
                    lr=self.lr,
                    momentum=self.momentum,
                    dampening=self.dampening,
                    weight_decay=self.weight_decay,
                )
        return BaselineState(head["weight"], head["bias"], present)

    def classify(self, state: BaselineState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        with without_autocast(x):
            return mask_absent(F.linear(full_precision(x), state.weight, state.bias), state.present)
