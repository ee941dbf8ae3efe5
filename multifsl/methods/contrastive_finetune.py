"""Contrastive fine-tuning (SetFit): the encoder learns from pairs of support items, then a plain head from its embeddings.

Tunstall, Reimers, Jo, Bates, Korat, Wasserblat, Pereg: Efficient Few-Shot Learning Without Prompts. 2022.
https://arxiv.org/abs/2209.11055, section 3

    pairs (i, j) of support items, as many of one class (t = 1) as of two classes (t = 0)
    phi <- `steps` steps of Adam on the mean of (cos(f_phi(x_i), f_phi(x_j)) - t)^2 over `pairs` of them
    a logistic regression on f_phi(x_i) / |f_phi(x_i)|, of the whole support set

A support set of n items has of the order of n^2 pairs to learn from, where a head has n labels; they are drawn, with
replacement, `pairs` a step, so that the cost does not grow with n^2. In one-shot tasks there are no two items of one
class: an item is its own partner, which teaches nothing, and what is learned is to tell the classes apart.

Departures: for any encoder, not for texts alone. The paper takes 2 * 20 * n pairs in batches of 16, once, 2 * 20 * n / 16 steps;
here their number is an option. The learning rate falls from `lr` to 0 along a line as in the authors' code, without the
warm-up. Batch normalisation keeps the statistics that it was trained with, and dropout is off. The draws are those of
`seed` in every task, and which item they fall on hangs on the items' embeddings, not on their order.

Shape letters: S support items, P pairs of a step, N ways, D embedding width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multifsl.adaptation import TransferAdaptation, Weights, gradients
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Inputs, map_inputs, size
from multifsl.functional import adam_step, class_sums, without_autocast
from multifsl.methods.finetune import TEMPERATURE, content_key
from multifsl.methods.logistic import Logistic
from multifsl.options import check_choice, check_counts, check_positive


class ContrastiveFinetune(TransferAdaptation):
    """Pairs of support items pulled together and pushed apart, under a logistic regression.

    Args:
        trainable: what is trained of the encoder, "all", "last", "head" (nothing: the head alone) or a regular expression;
            see AdaptationMethod.
        steps: of Adam. pairs: of each step, half of them of one class. lr: where the learning rate begins.
        head: "logistic", the regression of `logistic(scale=1.0)`, cautious with few examples; or "prototypes", the nearest class
            mean by cosine.
        seed: of the draws of pairs.
        vectorize: see AdaptationMethod.

    >>> method = ContrastiveFinetune(Features(2))
    >>> support = Batch(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).softmax(1)
    tensor([[0.6626, 0.3374]])
    """

    family = "transfer"
    draws: Tensor

    def __init__(
        self,
        encoder: Encoder,
        *,
        trainable: str = "all",
        steps: int = 20,
        pairs: int = 16,
        lr: float = 2e-5,
        head: Literal["logistic", "prototypes"] = "logistic",
        seed: int = 0,
        vectorize: bool = False,
    ) -> None:
        check_choice("head", head, ("logistic", "prototypes"))
        check_counts(steps=steps)
        check_counts(least=2, pairs=pairs)
        check_counts(least=0, seed=seed)
        check_positive(lr=lr)
        super().__init__(encoder, trainable=trainable, vectorize=vectorize)
        self.steps, self.pairs, self.lr, self.seed = steps, pairs, lr, seed
        self.head = head
        self.regression = Logistic(Features(encoder.dim), scale=1.0)
        draws = torch.rand(steps, 2, pairs, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("draws", draws, persistent=False)

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        x, y = support
        weights = {k: v.detach() for k, v in self.initial(present.shape[0]).items() if k.startswith("encoder.")}
        moments = None
        if weights:
            with torch.no_grad():
                order = content_key(self.embeddings(weights, x)).argsort()
            for step in range(self.steps):
                i, j = (order[end] for end in draw_pairs(y[order], self.draws[step]))

                def loss(weights: Weights, i: Tensor = i, j: Tensor = j) -> Tensor:
                    return self.pair_loss(weights, x, i, j, y[i] == y[j])

                found, _ = gradients(loss, weights)
                weights, moments = adam_step(weights, found, moments, lr=self.lr * (1 - step / self.steps))
        with torch.no_grad():
            return weights | self.learned_head(self.embeddings(weights, x), y, present)

    def pair_loss(self, weights: Weights, x: Inputs, i: Tensor, j: Tensor, same: Tensor) -> Tensor:
        """Mean of (cos - t)^2 over pairs i, j [P]; every item is encoded once, where that is less than every pair."""
        if size(x) > 2 * len(i):
            rows = torch.cat([i, j])
            a, b = self.embeddings(weights, map_inputs(lambda leaf: leaf[rows], x)).chunk(2)
        else:
            z = self.embeddings(weights, x)
            a, b = z[i], z[j]
        return (F.cosine_similarity(a, b, dim=1) - same.to(a.dtype)).square().mean()

    def learned_head(self, z: Tensor, y: Tensor, present: Tensor) -> Weights:
        """Rows and biases for embeddings of length 1."""
        if self.head == "logistic":
            state = self.regression.adapt(Batch(z, y), present)
            return {"head.weight": state.weight.T, "head.bias": state.bias}
        sums, _ = class_sums(F.normalize(z, dim=1), y, present.shape[0])
        return {"head.weight": F.normalize(sums, dim=1) / TEMPERATURE, "head.bias": z.new_zeros(present.shape[0])}

    def logits(self, weights: Weights, x: Inputs, *, layers: Weights | None = None) -> Tensor:
        z = self.embeddings(weights, x, layers=layers)
        with without_autocast(z):
            return F.linear(F.normalize(z, dim=1), weights["head.weight"], weights["head.bias"])


def draw_pairs(y: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs i, j [P] of items with labels y [S], the first half of one class each, the others of two; draws: [2, P], in 0..1.

    Every item is as likely to be i, and every one that fits to be j; where none fits, j is i. Rows with y < 0 are not drawn.

    >>> draw_pairs(torch.tensor([0, 0, 1, 1]), torch.tensor([[0.0, 0.8, 0.0, 0.8], [0.5, 0.5, 0.4, 0.6]]))
    (tensor([0, 3, 0, 3]), tensor([1, 2, 2, 1]))
    """
    valid = y >= 0
    i = pick(valid.expand(draws.shape[1], -1), draws[0])
    same = y[i].unsqueeze(1) == y  # [P, S]
    itself = i.unsqueeze(1) == torch.arange(y.shape[0], device=y.device)
    one_class = (torch.arange(draws.shape[1], device=y.device) < draws.shape[1] // 2).unsqueeze(1)
    fits = valid & torch.where(one_class, same & ~itself, ~same)
    return i, pick(fits, draws[1]).where(fits.any(1), i)


def pick(fits: Tensor, draws: Tensor) -> Tensor:
    """One of the columns that fit [P, S] in each row, by draws [P] in 0..1.

    >>> pick(torch.tensor([[True, False, True]] * 2), torch.tensor([0.4, 0.6]))
    tensor([0, 2])
    """
    count = fits.sum(1)
    nth = (draws * count).floor().clamp(max=count - 1)  # a draw of 0.99999999 may be rounded up
    return (fits.cumsum(1) <= nth.unsqueeze(1)).sum(1).clamp(max=fits.shape[1] - 1)
