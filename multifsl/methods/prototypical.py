"""Prototypical networks.

Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017. https://arxiv.org/abs/1703.05175

    c_k = mean of f(x_i) over the support items of class k                          (equation 1)
    p(y = k | x) = softmax over k of -d(f(x), c_k)                                  (equation 2)
    loss = mean of -log p(y | x) over the queries

with d the squared Euclidean distance. The paper trains with more ways than it tests with.

Departures: none with `distance="euclidean"`. `distance="cosine"` takes the mean of length-1 embeddings and
softmax(cos / temperature), which suits frozen encoders, whose embeddings differ in length for no reason of class.
"""

from typing import Literal, NamedTuple

from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import ClassSums, full_precision, mask_absent, without_autocast
from multifsl.method import EmbeddingMethod
from multifsl.options import check_choice


class Prototypes(NamedTuple):
    """Class means ready for queries. means: [N, D], of length 1 (cosine), or moved by centre [1, D], with their squared
    lengths [N]; present: bool [N]."""

    means: Tensor
    centre: Tensor | None
    squares: Tensor | None
    present: Tensor


class Prototypical(EmbeddingMethod):
    """Nearest class mean.

    Args:
        distance: "euclidean" (squared, as in the paper) or "cosine".
        temperature: what distances and cosines are divided by, a number above 0, or "learned", trained from 1 (euclidean)
            or 0.1 (cosine). By default 1 for euclidean and "learned" for cosine.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> method = Prototypical(Features(2))
    >>> support = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]]))
    tensor([[ -0., -41.]])
    """

    family = "metric"
    class_by_class = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        distance: Literal["euclidean", "cosine"] = "euclidean",
        temperature: float | Literal["learned"] | None = None,
    ) -> None:
        super().__init__(encoder)
        check_choice("distance", distance, ("euclidean", "cosine"))
        if temperature is None:
            temperature = 1.0 if distance == "euclidean" else "learned"
        self.distance = distance
        self.number_or_learned("temperature", temperature, 1.0 if distance == "euclidean" else 0.1)

    def adapt(self, support: Batch, present: Tensor) -> ClassSums:
        return ClassSums.of(self._embedding(support.x), support.y, present)

    def prepared(self, state: ClassSums) -> "Prototypes":
        means = state.means()  # [N, D]
        if self.distance == "cosine":
            return Prototypes(nn.functional.normalize(means, dim=1), None, None, state.present)
        centre = means.mean(
            0, keepdim=True
        )  # [1, D]; moved by it, distances stay, and terms that would cancel get small
        means = means - centre
        return Prototypes(means, centre, means.square().sum(1), state.present)

    def classify(self, state: "ClassSums | Prototypes", x: Inputs) -> Tensor:
        means, centre, squares, present = state if isinstance(state, Prototypes) else self.prepared(state)
        x = self._embedding(x)
        with without_autocast(x):
            if centre is None or squares is None:
                scores = nn.functional.normalize(x, dim=1) @ means.T  # [Q, N]
            else:
                x = x - centre
                scores = -(x.square().sum(1, keepdim=True) - 2 * (x @ means.T) + squares).clamp(min=0)
        return mask_absent(scores / self.number("temperature"), present)

    def update(self, state: ClassSums, support: Batch, present: Tensor) -> ClassSums:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: ClassSums, label: int) -> ClassSums:
        return state.without(label)

    def _embedding(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return nn.functional.normalize(full_precision(x), dim=-1) if self.distance == "cosine" else full_precision(x)
