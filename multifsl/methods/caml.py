"""Context-aware meta-learning: one transformer reads a query and the labelled support items, and says the query's class.

Fifty, Duan, Junkins, Amid, Leskovec, Re, Thrun: Context-Aware Meta-Learning. ICLR 2024. https://arxiv.org/abs/2310.10971

    sequence = [f(x), u], and [f(x_i), s e_y_i] for each support item i             (section 3, figure 2)
    logits = linear(the query's place in transformer(sequence))                     (section 3)
    loss = -log softmax(logits)[y]

with e_1 ... e_C fixed codes of the labels, of length 1 and at a cosine of -1 / (C - 1) to each other, as far apart as C of them can
be (ELMES, definition 1); u a learned vector that says "unknown", from 0; s a learned scale, from 1. The transformer has layer
normalisation before attention and before the perceptron, and no positions: the support set is a set. Support items attend to the
query, so each query has a sequence of its own. Nothing is adapted: how to learn from examples is in the weights.

Departures. The paper trains once, on several large data sets of images, over a frozen CLIP encoder, and tests on others; here the
transformer is trained on the run's classes, and the encoder with it, unless the run freezes it. The paper's transformer is as
wide as f(x) and code together, with 24 layers and 16 heads; here a linear layer leads to `width`, and the defaults are small.
Codes are turned by a random rotation of fixed seed, as the authors' are.

Shape letters: S support items, Q queries, L = S + 1 places of a sequence, N ways, C `max_way`, D embedding width, E code width,
W `width`, H heads.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.functional import Examples, full_precision, mask_absent, without_autocast
from multifsl.method import EmbeddingMethod, Output
from multifsl.options import check_below_one, check_counts

MLP_RATIO = 4  # hidden units of a perceptron for each of its inputs, as in the paper
EPS = 1e-6


class Caml(EmbeddingMethod):
    """A transformer over the support set and one query.

    Args:
        layers, heads, width: of the transformer; `width` must be a multiple of `heads`. dropout: after attention and perceptron, in
            training, from 0 and below 1.
        code_width: numbers of a label's code, at least `max_way`.
        max_way: codes and outputs; 5 where neither this nor a run says otherwise.

    >>> from multifsl.encoder import Features
    >>> method = Caml(Features(2), max_way=3, width=16)
    >>> support = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).shape
    torch.Size([1, 2])
    """

    family = "memory"

    def __init__(
        self,
        encoder: Encoder,
        *,
        layers: int = 2,
        heads: int = 4,
        width: int = 64,
        dropout: float = 0.0,
        code_width: int = 64,
        max_way: int | None = None,
    ) -> None:
        super().__init__(encoder)
        max_way = 5 if max_way is None else max_way
        check_counts(layers=layers, heads=heads, width=width, code_width=code_width)
        check_counts(least=2, max_way=max_way)  # one code has no other to be apart from
        if width % heads:
            raise MultifslError(f"width must be a multiple of the {heads} heads, not {width}")
        if code_width < max_way:
            raise MultifslError(f"codes of {max_way} labels need a code_width of at least {max_way}, not {code_width}")
        check_below_one(dropout=dropout)
        self.layers, self.heads, self.width, self.dropout = layers, heads, width, dropout
        self.code_width, self.max_way = code_width, max_way
        self.codes: Tensor
        self.register_buffer("codes", label_codes(max_way, code_width), persistent=False)
        self.code_scale = nn.Parameter(torch.ones(()))
        self.unknown = nn.Parameter(torch.zeros(code_width))
        self.input = nn.Linear(encoder.dim + code_width, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.output = nn.Linear(width, max_way, bias=False)

    def adapt(self, support: Batch, present: Tensor) -> Examples:
        assert isinstance(support.x, Tensor) and self.max_way is not None
        self.check_ways(present.shape[0])
        x = full_precision(support.x).where((support.y >= 0).unsqueeze(1), 0.0)  # padding may hold NaN
        return Examples(x, support.y, present)

    def classify(self, state: Examples, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        n_queries = x.shape[0]
        with without_autocast(x):
            codes = self.code_scale * self.codes[state.y.clamp(min=0)]  # [S, E]
            support = self.input(torch.cat([state.x, codes], 1))  # [S, W]
            query = self.input(torch.cat([full_precision(x), self.unknown.expand(n_queries, -1)], 1))  # [Q, W]
            sequence = torch.cat([query.unsqueeze(1), support.expand(n_queries, -1, -1)], 1)  # [Q, L, W]
            seen = torch.cat([torch.ones_like(state.y[:1]), state.y]) >= 0  # [L]
            for i, block in enumerate(self.blocks):
                sequence = block(sequence, seen, wanted=1 if i == self.layers - 1 else sequence.shape[1])
            logits: Tensor = self.output(_normalised(sequence[:, 0], self.norm))
            return mask_absent(logits[:, : state.present.shape[0]], state.present)

    def solve(self, episode: Episode) -> Output:
        x, y = episode.query
        assert isinstance(x, Tensor)
        x = x.where((y != PADDING).unsqueeze(1), 0.0)  # NaN there would enter the gradients of the weights
        return super().solve(episode._replace(query=Batch(x, y)))

    def update(self, state: Examples, support: Batch, present: Tensor) -> Examples:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: Examples, label: int) -> Examples:
        return state.without(label)


class _Block(nn.Module):
    """Attention and a perceptron, each on normalised inputs and added to them."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.mlp_norm = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        self.q, self.kv, self.joined = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, MLP_RATIO * width), nn.Linear(MLP_RATIO * width, width)
        for layer in (self.q, self.kv, self.joined, self.wide, self.narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, seen: Tensor, *, wanted: int) -> Tensor:
        """The first `wanted` places [Q, wanted, W] from x [Q, L, W]; places that are not seen [L] are attended to by none."""
        normal = _normalised(x, self.norm)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [Q, H, places, W / H]
            for part in (self.q(normal[:, :wanted]), *self.kv(normal).chunk(2, 2))
        )
        scores = (q @ k.mT) * q.shape[-1] ** -0.5  # [Q, H, wanted, L]
        attended = scores.where(seen, float("-inf")).softmax(-1) @ v
        x = x[:, :wanted] + self._dropped(self.joined(attended.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.wide(_normalised(x, self.mlp_norm)))
        return x + self._dropped(self.narrow(self._dropped(hidden)))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def label_codes(n: int, width: int) -> Tensor:
    """n vectors [n, width] of length 1 whose cosines are all -1 / (n - 1), in a fixed rotation; width at least n.

    >>> codes = label_codes(3, 8)
    >>> (codes @ codes.T).round(decimals=4)
    tensor([[ 1.0000, -0.5000, -0.5000],
            [-0.5000,  1.0000, -0.5000],
            [-0.5000, -0.5000,  1.0000]])
    """
    simplex = np.sqrt(n / (n - 1)) * (np.eye(n) - 1 / n)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(width, n)))
    return torch.tensor(simplex @ rotation.T, dtype=torch.float32)


def _normalised(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Layer normalisation with its gain outside: under vmap, second derivatives of the fused one are wrong."""
    return F.layer_norm(x, norm.normalized_shape, eps=norm.eps) * norm.weight + norm.bias
