"""Matching networks: attention over the support items, by cosine.

Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning. NeurIPS 2016.
https://arxiv.org/abs/1606.04080

    p(y | x) = sum over the support items i of a(x, x_i) y_i                        (equation 1)
    a(x, x_i) = softmax over i of the cosine c(f(x), g(x_i))                        (section 2.1.1)
    loss = mean of -log p(y | x) over the queries                                   (equation 2)

Without `fce`, f and g are the encoder. With it, both see the support set ("full context embeddings"), and f' = g' is the encoder:

    g(x_i) = h_i forwards + h_i backwards + g'(x_i), the h of an LSTM over the support set each way    (appendix A.2)
    h^_k, c_k = LSTM(f'(x), [h_k-1, r_k-1], c_k-1)                                  (equation 3)
    h_k = h^_k + f'(x), and f(x) = h_K                                              (equation 4)
    r_k-1 = sum over i of g(x_i) * softmax over i of (h_k-1 . g(x_i))               (equations 5 and 6)

Logits are log p. They depend on the order of the support items with `fce`, and not without.

Departures: none by default, but the paper does not give K, nor the start of f: here h^_0 and c_0 are 0, so that h_0 = f'(x).
Cosines lie within -1 and 1, so p is never far from even: five ways leave a query at most 0.65 of certainty. `temperature` divides
the cosines, and changes no 1-shot answer.

Shape letters: S support items, Q queries, N ways, D embedding width.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs
from multifsl.functional import (
    cosine_similarities,
    full_precision,
    lstm_cell,
    mask_absent,
    without_autocast,
    without_class,
)
from multifsl.method import EmbeddingMethod, Output
from multifsl.options import check_counts, check_flags


class MatchingState(NamedTuple):
    """x: [S, D], support embeddings; g: [S, D], the same in their context; y: [S]; present: bool [N]."""

    x: Tensor
    g: Tensor
    y: Tensor
    present: Tensor


class Matching(EmbeddingMethod):
    """Attention over the support items, by cosine.

    Args:
        fce: whether embeddings see the whole support set, through LSTMs as wide as the embeddings: 28 D^2 weights.
        processing_steps: K, how often a query reads the support set, at least 1; used with `fce` only.
        temperature: what cosines are divided by, a number above 0, or "learned", trained from 0.1.

    >>> from multifsl.encoder import Features
    >>> method = Matching(Features(2))
    >>> support = Batch(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[3.0, 0.0]])).exp()
    tensor([[0.8446, 0.1554]])
    """

    family = "metric"

    def __init__(
        self,
        encoder: Encoder,
        *,
        fce: bool = False,
        processing_steps: int = 5,
        temperature: float | Literal["learned"] = 1.0,
    ) -> None:
        super().__init__(encoder)
        check_flags(fce=fce)
        check_counts(processing_steps=processing_steps)
        self.fce, self.processing_steps = fce, processing_steps
        self.sequential = fce
        self.number_or_learned("temperature", temperature, 0.1)
        if fce:  # the cells hold weights; what they do is done by `lstm_cell`, which can be vectorised
            dim = encoder.dim
            self.forwards, self.backwards = nn.LSTMCell(dim, dim), nn.LSTMCell(dim, dim)
            self.reader = nn.LSTMCell(2 * dim, dim)  # of [f', r] and h: the same sum as of f' and [h, r]

    def adapt(self, support: Batch, present: Tensor) -> MatchingState:
        assert isinstance(support.x, Tensor)
        valid = support.y >= 0
        x = full_precision(support.x).where(valid.unsqueeze(1), 0.0)  # padding may hold NaN
        return MatchingState(x, self._in_context(x, valid) if self.fce else x, support.y, present)

    def classify(self, state: MatchingState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        f, valid = full_precision(x), state.y >= 0
        if self.fce:
            f = self._read(f, state.g, valid)
        cosines = cosine_similarities(f, state.g) / self.number("temperature")  # [Q, S]
        log_attention = cosines.where(valid, -math.inf).log_softmax(1)
        return mask_absent(_log_class_sums(log_attention, state.y, state.present.shape[0]), state.present)

    def solve(self, episode: Episode) -> Output:
        x, y = episode.query
        assert isinstance(x, Tensor)
        x = x.where((y != PADDING).unsqueeze(1), 0.0)  # NaN there would enter the gradients of the weights
        return super().solve(episode._replace(query=Batch(x, y)))

    def update(self, state: MatchingState, support: Batch, present: Tensor) -> MatchingState:
        more = self.adapt(support, present)
        return self.adapt(Batch(torch.cat([state.x, more.x]), torch.cat([state.y, more.y])), present)

    def remove(self, state: MatchingState, label: int) -> MatchingState:
        kept, y, present = without_class(state.y, state.present, label)
        return self.adapt(Batch(state.x[kept], y), present)

    def _in_context(self, x: Tensor, valid: Tensor) -> Tensor:
        """g [S, D] of the support embeddings x [S, D]; rows that are not valid are passed over."""
        n = x.shape[0]
        g = x
        for cell, order in ((self.forwards, range(n)), (self.backwards, range(n - 1, -1, -1))):
            h = c = torch.zeros_like(x[:1])  # [1, D]
            outputs = [h] * n
            for i in order:
                next_h, next_c = _step(cell, x[i : i + 1], h, c)
                h, c = next_h.where(valid[i], h), next_c.where(valid[i], c)
                outputs[i] = h
            g = g + torch.cat(outputs)
        return g

    def _read(self, x: Tensor, g: Tensor, valid: Tensor) -> Tensor:
        """f [Q, D] of the query embeddings x [Q, D], which read g [S, D]."""
        h, c = x, torch.zeros_like(x)
        with without_autocast(x):
            for _ in range(self.processing_steps):
                attention = (h @ g.T).where(valid, -math.inf).softmax(1)  # [Q, S]
                output, c = _step(self.reader, torch.cat([x, attention @ g], 1), h, c)
                h = output + x
        return h


def _step(cell: nn.LSTMCell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return lstm_cell(x, h, c, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)


def _log_class_sums(log_p: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """log of the sums [Q, N] of exp(log_p) [Q, S] by label y [S]; -inf for a class of which there is none."""
    valid, label = y >= 0, y.clamp(min=0)
    columns = label.expand(log_p.shape[0], -1)
    lowest = log_p.new_full((log_p.shape[0], n_classes), -math.inf)
    highest = lowest.scatter_reduce(1, columns, log_p.detach(), "amax")  # taken out, lest a small class come to log 0
    found = highest > -math.inf
    highest = highest.where(found, 0.0)
    shares = (log_p - highest.gather(1, columns)).exp().where(valid, 0.0)
    sums = torch.zeros_like(lowest).index_add(1, label, shares)
    return (sums.where(found, 1.0).log() + highest).where(found, -math.inf)
