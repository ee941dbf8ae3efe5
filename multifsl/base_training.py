"""Base training: an encoder as a plain classifier of all train classes.

What the methods of transfer learning start from (Chen et al., A Closer Look at Few-shot Classification, ICLR 2019,
https://arxiv.org/abs/1904.04232, section 3.1): encoder and one linear head over all train ("base") classes, trained
with cross-entropy. When training is over, the head is thrown away.

A batch is an episode whose support and query items are taken together, each labelled with its class among ALL train
classes. So a batch has few classes with some items each, where the paper draws items independently; a batch with batch
statistics is still one task's.

Shape letters: T tasks, B items of a task, C train classes, D embedding width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.episode import Batch, Episode, Inputs, map_inputs
from multifsl.functional import full_precision, masked_cross_entropy
from multifsl.method import Method, Output, encode


class BaseClassifier(nn.Module):
    """A method's encoder under a head over all train classes, trained in the method's stead.

    Args:
        method: whose encoder is trained. n_classes: C.
        head: "linear", or "cosine", a scaled cosine to one learned vector a class (Baseline++, section 3.2).

    >>> from multifsl.registry import build
    >>> method = build("methods", "prototypical", encoder=build("encoders", "conv4(channels=1)"))
    >>> x, y = torch.zeros(1, 6, 1, 28, 28, dtype=torch.uint8), torch.tensor([[3, 3, 3, 9, 9, 9]])
    >>> BaseClassifier(method, 10)(base_batch(x, y, 10)).logits.shape
    torch.Size([1, 6, 10])
    """

    def __init__(self, method: Method, n_classes: int, head: Literal["linear", "cosine"] = "linear") -> None:
        super().__init__()
        self.method, self.kind = method, head
        self.head = nn.Linear(method.encoder.dim, n_classes, bias=head == "linear")
        self.scale = nn.Parameter(torch.tensor(10.0)) if head == "cosine" else None

    def forward(self, episodes: Episode) -> Output:
        """Loss [T] and logits [T, B, C] of a `base_batch`."""
        _, (z, y), _, _ = encode(self.method.encoder, episodes)
        assert isinstance(z, Tensor)
        z, weight = full_precision(z), full_precision(self.head.weight)
        if self.scale is None:
            logits = F.linear(z, weight, self.head.bias)
        else:
            logits = self.scale * F.linear(F.normalize(z, dim=-1), F.normalize(weight, dim=-1))
        loss = torch.stack([masked_cross_entropy(*pair) for pair in zip(logits, y, strict=True)])
        return Output(loss, logits)


def base_batch(x: Inputs, y: Tensor, n_classes: int) -> Episode:
    """Items x [T, B, *] with their classes y [T, B] among all train classes, as an episode without a support set."""
    empty = map_inputs(lambda leaf: leaf[:, :0], x)
    present = torch.ones(y.shape[0], n_classes, dtype=torch.bool, device=y.device)
    return Episode(Batch(empty, y[:, :0]), Batch(x, y), present, False)
