"""Meta-LSTM: the update rule itself is learned, as the cell of an LSTM whose state is the weights.

Ravi, Larochelle: Optimization as a Model for Few-Shot Learning. ICLR 2017. https://openreview.net/forum?id=rJY0-Kcll

With g_t and L_t the gradient and the value of the support set's loss at theta_{t-1}, for every single weight alike:

    theta_0 = learned,  theta_t = f_t * theta_{t-1} - i_t * g_t,  t = 1..steps              (a cell state)
    i_t = sigmoid(W_I [h_t, theta_{t-1}, i_{t-1}] + b_I), f_t alike
    h_t = LSTM of the preprocessed [L_t, g_t], which the paper's experiments put in the place of g_t and L_t themselves
    preprocessed v = (log|v| / 10, sign v) where |v| >= e^-10, else (-1, e^10 v)           (of Andrychowicz et al. 2016)

The loss of the queries at theta_steps trains all of it. g_t and L_t count as constants, which leaves second derivatives
out, unless `second_order`. Nothing is handed from one task to the next: states begin at 0, and the
statistics of batch normalisation are the task's own.

Departures: gate biases begin in the middle of the authors' ranges (their code draws b_F from 4..5, b_I from -5..-4): forget
gates at 0.99, input gates at `lr`. Each update sees the whole support set; some of the authors' settings take minibatches. The
gates are fed their last values, as the equation says; the authors' code feeds what stands under the sigmoid. The authors clip
the meta-gradient to a norm of 0.25; here that is left to who trains. At evaluation they normalise the queries by running
averages of the support passes (95 % of the last pass), here by the support set's statistics under the last weights.

Shape letters: P adapted weights, H hidden units, N ways.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from multifsl.adaptation import AdaptationMethod, Weights, gradients
from multifsl.encoder import Encoder
from multifsl.episode import Batch
from multifsl.errors import MultifslError
from multifsl.options import check_counts, check_flags

FORGET = 0.99  # where the forget gates begin
SCALE = 10.0  # p of the preprocessing


class MetaLstm(AdaptationMethod):
    """A learned optimiser from a learned initialisation.

    Args:
        steps: updates in training. test_steps: at evaluation; None takes as many.
        lr: where the input gates, which are the learning rates, begin: between 0 and 1.
        hidden: units of the LSTM below the gates.
        second_order: let the meta-gradient through the gradients and losses that come in.
        trainable, max_way, head, batch_norm, vectorize: see AdaptationMethod.

    >>> from multifsl.encoder import Features
    >>> _ = torch.manual_seed(0)
    >>> method = MetaLstm(Features(2), head="shared", lr=0.5)
    >>> support = Batch(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).argmax(1)
    tensor([0])
    """

    family = "optimisation"

    def __init__(
        self,
        encoder: Encoder,
        *,
        steps: int = 5,
        test_steps: int | None = None,
        lr: float = 0.01,
        hidden: int = 20,
        second_order: bool = False,
        trainable: str = "all",
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        batch_norm: Literal["support", "query"] = "support",
        vectorize: bool = False,
    ) -> None:
        check_counts(steps=steps, test_steps=1 if test_steps is None else test_steps, hidden=hidden)
        check_flags(second_order=second_order)
        if not isinstance(lr, int | float) or not 0 < lr < 1:
            raise MultifslError(f"lr, where a gate begins, must be a number between 0 and 1, not {lr!r}")
        super().__init__(
            encoder, trainable=trainable, max_way=max_way, head=head, batch_norm=batch_norm, vectorize=vectorize
        )
        self.steps, self.test_steps = steps, steps if test_steps is None else test_steps
        self.lr, self.hidden, self.second_order = lr, hidden, second_order
        self.lstm = nn.LSTMCell(4, hidden)  # holds the weights; `lstm` computes
        self.input_gate, self.forget_gate = nn.Linear(hidden + 2, 1), nn.Linear(hidden + 2, 1)
        for parameter in [*self.lstm.parameters(), *self.input_gate.parameters(), *self.forget_gate.parameters()]:
            nn.init.uniform_(parameter, -0.01, 0.01)
        nn.init.constant_(self.input_gate.bias, math.log(lr / (1 - lr)))
        nn.init.constant_(self.forget_gate.bias, math.log(FORGET / (1 - FORGET)))

    def serve(self, support: Batch, present: Tensor) -> Weights:
        with torch.no_grad():  # else each step would keep some 10 * H numbers a weight
            return self.inner_loop(support, present)

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        start = self.initial(present.shape[0])
        theta = torch.cat([w.flatten() for w in start.values()])  # [P]
        h = c = theta.new_zeros(self.hidden, theta.shape[0])  # [H, P]
        i = f = torch.zeros_like(theta)
        second_order = self.training and self.second_order
        for _ in range(self.steps if self.training else self.test_steps):
            with torch.enable_grad():
                found, loss = gradients(
                    lambda weights: self.loss(weights, support, present), split(theta, start), create_graph=second_order
                )
            g = torch.cat([v.flatten() for v in found.values()])
            h, c = lstm(self.lstm, torch.cat([preprocess(loss.expand_as(g)), preprocess(g)]), h, c)
            i, f = gate(self.input_gate, h, theta, i), gate(self.forget_gate, h, theta, f)
            theta = f * theta - i * g
        return split(theta, start)


def split(theta: Tensor, like: Weights) -> Weights:
    """Numbers [P] as weights of the names and shapes of others.

    >>> split(torch.arange(3.0), {"a": torch.zeros(1, 2), "b": torch.zeros(1)})
    {'a': tensor([[0., 1.]]), 'b': tensor([2.])}
    """
    parts = theta.split([w.numel() for w in like.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(like.items(), parts, strict=True)}


def preprocess(v: Tensor) -> Tensor:
    """Numbers of any magnitude [P] as two near 1 for each [2, P]: how large, and of which sign.

    >>> preprocess(torch.tensor([1.0, -0.1, 0.0]))
    tensor([[ 0.0000, -0.2303, -1.0000],
            [ 1.0000, -1.0000,  0.0000]])
    """
    large = v.abs() >= math.exp(-SCALE)
    magnitude = v.abs().where(large, 1.0).log() / SCALE  # the small ones kept out of the gradient too
    return torch.stack([magnitude.where(large, -1.0), v.sign().where(large, math.exp(SCALE) * v)])


def lstm(cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h and c [H, P] from x [4, P]: the cell with its axes swapped, three times as fast where P is much above H."""
    weight, bias = torch.cat([cell.weight_ih, cell.weight_hh], 1), cell.bias_ih + cell.bias_hh
    gates = weight @ torch.cat([x, h]) + bias.unsqueeze(1)  # [4H, P]
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gate(layer: nn.Linear, h: Tensor, theta: Tensor, before: Tensor) -> Tensor:
    """Gates [P] from h [H, P], the weights [P] and the gates before [P]; the layer reads them in this order."""
    (weight,) = layer.weight.unbind()
    return (weight[:-2] @ h + weight[-2] * theta + weight[-1] * before + layer.bias).sigmoid()
