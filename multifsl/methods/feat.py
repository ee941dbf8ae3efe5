"""FEAT: class means that look at one another before they are compared.

Ye, Hu, Zhan, Sha: Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions. CVPR 2020.
https://arxiv.org/abs/1812.03664

    c_k = mean of f(x_i) over the support items of class k
    {psi_k} = T({c_k}): softmax(W_Q c . W_K c' / sqrt(d)) of W_V c', one layer of self-attention; then
        psi = LayerNorm(c + Dropout(W_FC attended))                                 (section 3.3)
    p(y = k | x) = softmax over k of -||f(x) - psi_k||^2 / temperature              (equation 4)
    loss = cross-entropy of the queries + balance * cross-entropy of the contrast   (equation 7)

The contrast, in training alone: T is applied to all embeddings of one class, support and query, and their mean is the class's
centre; every item should be nearest to the centre of its own class.

Departures. Equation 7 compares a query's adapted embedding with the centres; the authors' code, which gave the figures, compares
every item's embedding as it was before T, and so do we. Weights of attention are not dropped (their code: 10 %). With several
heads each sees D / heads numbers, as in Vaswani et al. 2017; in their code each sees D. They start from an encoder trained as
a classifier, and train T ten times faster than it; here both train together, at one rate. `distance="cosine"` takes both sides to
length 1.

Shape letters: S support items, Q queries, B items of a set, N ways, D embedding width, H heads.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.functional import (
    ClassSums,
    class_sums,
    cosine_similarities,
    full_precision,
    mask_absent,
    masked_cross_entropy,
    squared_distances,
    without_autocast,
)
from multifsl.method import EmbeddingMethod, Output
from multifsl.options import check_below_one, check_choice, check_counts, check_not_negative, check_positive


class FeatState(NamedTuple):
    """support: the class means' sums; adapted: [N, D], the psi_k."""

    support: ClassSums
    adapted: Tensor


class Feat(EmbeddingMethod):
    """Nearest class mean, after self-attention over the class means.

    Args:
        distance: "euclidean" (squared, as in the paper) or "cosine".
        temperature: what distances and cosines are divided by, above 0. None: 0.1 for cosines; for distances 64 (as the authors,
            mostly, for widths of 64 and 640), or the encoder's width where that is less.
        heads: of the attention; must divide the encoder's width.
        dropout: share of the attention's output that is dropped in training; from 0 to below 1.
        balance: weight of the contrast in training, 0 or more; the authors tuned it from 0.01 to 1, mostly to 0.1.
        contrast_temperature: what the contrast's distances are divided by, above 0; None: as `temperature`.

    >>> from multifsl.encoder import Features
    >>> method = Feat(Features(4)).eval()
    >>> support = Batch(torch.eye(4)[:3], torch.tensor([0, 1, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.eye(4)).shape
    torch.Size([4, 2])
    """

    family = "metric"

    def __init__(
        self,
        encoder: Encoder,
        *,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        temperature: float | None = None,
        heads: int = 1,
        dropout: float = 0.5,
        balance: float = 0.1,
        contrast_temperature: float | None = None,
    ) -> None:
        super().__init__(encoder)
        check_choice("distance", distance, ("euclidean", "cosine"))
        if temperature is None:
            temperature = float(min(64, encoder.dim)) if distance == "euclidean" else 0.1
        contrast_temperature = temperature if contrast_temperature is None else contrast_temperature
        check_positive(temperature=temperature, contrast_temperature=contrast_temperature)
        check_counts(heads=heads)
        if encoder.dim % heads:
            raise MultifslError(
                f"heads must divide the encoder's width, {encoder.dim}, without rest; {heads!r} does not"
            )
        check_below_one(dropout=dropout)
        check_not_negative(balance=balance)
        self.distance, self.temperature, self.heads, self.dropout = distance, temperature, heads, dropout
        self.balance, self.contrast_temperature = balance, contrast_temperature
        self.query, self.key, self.value = (nn.Linear(encoder.dim, encoder.dim, bias=False) for _ in range(3))
        self.out = nn.Linear(encoder.dim, encoder.dim)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_normal_(layer.weight)
        self.gain, self.bias = nn.Parameter(torch.ones(encoder.dim)), nn.Parameter(torch.zeros(encoder.dim))

    def adapt(self, support: Batch, present: Tensor) -> FeatState:
        assert isinstance(support.x, Tensor)
        return self._state(ClassSums.of(support.x, support.y, present))

    def classify(self, state: FeatState, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return mask_absent(self._likeness(x, state.adapted) / self.temperature, state.support.present)

    def solve(self, episode: Episode) -> Output:
        (sx, sy), (qx, qy), present, _ = episode
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        logits = self.classify(self.adapt(episode.support, present), qx)
        loss = masked_cross_entropy(logits, qy)
        if self.training and self.balance > 0:
            z = full_precision(torch.cat([sx, qx]))
            loss = loss + self.balance * self._contrast(z, torch.cat([sy, qy]), present)
        return Output(loss, logits)

    def update(self, state: FeatState, support: Batch, present: Tensor) -> FeatState:
        assert isinstance(support.x, Tensor)
        return self._state(state.support.and_more(ClassSums.of(support.x, support.y, present)))

    def remove(self, state: FeatState, label: int) -> FeatState:
        return self._state(state.support.without(label))

    def _state(self, support: ClassSums) -> FeatState:
        # An absent class looks at itself too, so that its softmax is not over nothing; nobody else looks at it.
        present = support.present
        seen = present | torch.eye(present.shape[0], dtype=torch.bool, device=present.device)  # [N, N]
        return FeatState(support, self._attend(support.means(), seen))

    def _attend(self, z: Tensor, seen: Tensor) -> Tensor:
        """T of a set z [B, D]; item i looks at j where seen [B, B] is True at (i, j)."""
        with without_autocast(z):
            q, k, v = (
                layer(z).unflatten(1, (self.heads, -1)).transpose(0, 1) for layer in (self.query, self.key, self.value)
            )
            scores = (q @ k.mT / math.sqrt(q.shape[2])).where(seen, -math.inf)  # [H, B, B]
            attended = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)  # [B, D]
            changed = z + F.dropout(self.out(attended), self.dropout, self.training)
            return F.layer_norm(changed, z.shape[1:]) * self.gain + self.bias

    def _contrast(self, z: Tensor, y: Tensor, present: Tensor) -> Tensor:
        """Cross-entropy of all items z [B, D] against the centres of their classes' adapted items."""
        sums, counts = class_sums(self._attend(z, y.unsqueeze(1) == y), y, present.shape[0])
        logits = self._likeness(z, sums / counts.clamp(min=1).unsqueeze(1)) / self.contrast_temperature
        return masked_cross_entropy(mask_absent(logits, present), y)

    def _likeness(self, x: Tensor, classes: Tensor) -> Tensor:
        return -squared_distances(x, classes) if self.distance == "euclidean" else cosine_similarities(x, classes)
