"""Fine-tuning: a trained encoder and a new head, trained further on the support set by Adam.

The oldest answer to a new task (Donahue et al.: DeCAF. ICML 2014, https://arxiv.org/abs/1310.1531), and a strong one:
Dhillon et al.: A Baseline for Few-Shot Image Classification. ICLR 2020. https://arxiv.org/abs/1909.02729

    v_n = (mean of f(x_i) / |f(x_i)| over the support items of class n), at length 1    (their "support-based initialization")
    logits_n = w_n . f(x) / |f(x)| + b_n,   beginning at w_n = v_n / 0.1, b_n = 0
    (w, b, and what is `trainable` of f) <- `steps` steps of Adam on the mean cross-entropy of the whole support set

so that with no step at all it is a nearest class mean by cosine, and further steps move on from there. (On banking77 with a
pretrained MiniLM, a linear head that begins at 0 was behind after 10 steps and after 20.)

`early_stop` chooses the number of steps, 0..steps, anew for each task: the items of every class are dealt out into as many
folds as the class has items, at most 5; each fold is left out once, and the number of steps that leaves the least
cross-entropy on what was left out is the one that the whole support set gets. Classes of one item are never left out;
where there is no other, as in one-shot tasks, `steps` are taken. Which fold an item falls into hangs on its embedding
alone, so that the order of the support set does not matter.

Departures (from Dhillon et al.): embeddings and not logits of the trained classifier feed the head; embeddings are not
passed through a ReLU; the temperature of 0.1 is ours, as is `early_stop`. Batch normalisation keeps the statistics that
it was trained with, and dropout is off: the same support set gives the same answer.

Shape letters: S support items, N ways, D embedding width.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from multifsl.adaptation import TransferAdaptation, Weights, gradients
from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Inputs
from multifsl.functional import adam_step, class_sums, full_precision, without_autocast
from multifsl.options import check_choice, check_counts, check_flags, check_positive

TEMPERATURE = 0.1  # of the cosines that the head begins with
MOST_FOLDS = 5


class Finetune(TransferAdaptation):
    """Adam on the support set.

    Args:
        trainable: what is trained beside the head, "all", "last", "head" or a regular expression; see AdaptationMethod.
        steps: of Adam, each on the whole support set; with `early_stop`, the most.
        lr: learning rate of the encoder's weights. head_lr: of the head's.
        head: "cosine", as above; or "linear", on raw embeddings and beginning at 0.
        early_stop: choose the number of steps by leaving items out. Takes up to 8 times as long.
        vectorize: see AdaptationMethod.

    >>> from multifsl.encoder import Features
    >>> method = Finetune(Features(2))
    >>> support = Batch(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).argmax(1)
    tensor([0])
    """

    family = "transfer"

    def __init__(
        self,
        encoder: Encoder,
        *,
        trainable: str = "all",
        steps: int = 5,
        lr: float = 5e-5,
        head_lr: float = 1e-2,
        head: Literal["cosine", "linear"] = "cosine",
        early_stop: bool = False,
        vectorize: bool = False,
    ) -> None:
        check_choice("head", head, ("cosine", "linear"))
        check_flags(early_stop=early_stop)
        check_counts(steps=steps)
        check_positive(lr=lr)
        check_positive(head_lr=head_lr)
        super().__init__(encoder, trainable=trainable, vectorize=vectorize)
        self.steps, self.lr, self.head_lr, self.early_stop = steps, lr, head_lr, early_stop
        self.head = head

    def start(self, support: Batch, present: Tensor) -> Weights:
        """The weights before the first step."""
        with torch.no_grad():
            weights = {k: v.detach() for k, v in self.initial(present.shape[0]).items()}
            z = self.embeddings(weights, support.x)  # [S, D]
            weights["head.bias"] = z.new_zeros(present.shape[0])
            weights["head.weight"] = z.new_zeros(present.shape[0], z.shape[1])
            if self.head == "cosine":
                sums, _ = class_sums(F.normalize(z, dim=1), support.y, present.shape[0])
                weights["head.weight"] = F.normalize(sums, dim=1) / TEMPERATURE
        return weights

    def descend(self, support: Batch, present: Tensor) -> Iterator[Weights]:
        """The weights after 0, 1, ... steps."""
        weights, moments = self.start(support, present), None
        rates = {k: self.head_lr if k.startswith("head.") else self.lr for k in weights}
        yield weights
        for _ in range(self.steps):
            found, _ = gradients(lambda w: self.loss(w, support, present), weights)
            weights, moments = adam_step(weights, found, moments, lr=rates)
            yield weights

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        path = enumerate(self.descend(support, present))
        _, weights = next(path)
        stop = self.best_stop(support, present) if self.early_stop else None
        for step, after in path:
            weights = after if stop is None else {k: w.where(step <= stop, weights[k]) for k, w in after.items()}
        return weights

    def best_stop(self, support: Batch, present: Tensor) -> Tensor:
        """The number of steps, 0..steps, that serves items best that were left out; `steps` where none can be."""
        x, y = support
        with torch.no_grad():
            z = self.embeddings(self.initial(present.shape[0]), x)
        folds = most_folds(y, present.shape[0])
        fold = deal(z, y, folds)
        losses = [z.new_zeros(())] * (self.steps + 1)
        for left_out in range(folds):
            kept, tested = y.where(fold != left_out, PADDING), y.where(fold == left_out, PADDING)
            for step, weights in enumerate(self.descend(Batch(x, kept), present)):
                with torch.no_grad():  # the mean's number of items makes it a sum
                    losses[step] = losses[step] + self.loss(weights, Batch(x, tested), present) * (tested >= 0).sum()
        return torch.stack(losses).argmin().where((fold >= 0).any(), self.steps)

    def logits(self, weights: Weights, x: Inputs, *, layers: Weights | None = None) -> Tensor:
        z = self.embeddings(weights, x, layers=layers)
        with without_autocast(z):
            z = F.normalize(z, dim=1) if self.head == "cosine" else z
            return F.linear(z, weights["head.weight"], weights["head.bias"])


def most_folds(y: Tensor, n_ways: int) -> int:
    """As many folds as the largest class has items, at most MOST_FOLDS; 0 where all have one.

    Where the values of y cannot be looked at (under vmap, on "meta") as many as there could be, some of them empty.
    """
    if y.is_meta or torch._C._functorch.peek_interpreter_stack() is not None:
        return min(MOST_FOLDS, y.shape[0])
    largest = int(class_sums(torch.ones_like(y, dtype=torch.float32).unsqueeze(1), y, n_ways)[1].max())
    return min(MOST_FOLDS, largest) if largest > 1 else 0


def deal(z: Tensor, y: Tensor, folds: int) -> Tensor:
    """The fold of each item, [S], every class dealt out evenly; -1 for padding and for the only item of a class.

    >>> deal(torch.tensor([[0.0], [3.0], [1.0], [2.0]]), torch.tensor([0, 0, 0, 1]), 3)
    tensor([ 0,  2,  1, -1])
    """
    key = content_key(z)
    same = (y.unsqueeze(1) == y) & (y >= 0)  # [S, S]
    place = (same & (key.unsqueeze(1) > key)).sum(1)
    return (place % max(folds, 1)).where((same.sum(1) > 1) & (y >= 0), -1)


def content_key(z: Tensor) -> Tensor:
    """A number for each embedding [S, D], to sort items by what they are and not by where they stand.

    >>> content_key(torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    tensor([2., 1.])
    """
    z = full_precision(z)
    return z @ torch.arange(z.shape[1], device=z.device, dtype=z.dtype).cos()  # a direction in which two hardly tie
