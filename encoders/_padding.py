"""Running published speech networks so that padding changes no embedding.

Shape letters: B clips, L samples, C channels, F frames, D embedding width.
"""

from collections.abc import Callable, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from multifsl.encoders._speech import masked_mean
from multifsl.episode import Inputs, map_inputs, trim

valid_frames: ContextVar[Tensor | None] = ContextVar("valid_frames", default=None)
"""How many frames of each clip [B] a `MaskedGroupNorm` counts; None: all of them."""


class MaskedGroupNorm(nn.GroupNorm):
    """nn.GroupNorm of one channel a group over the valid frames of [B, C, F] alone; the others come out as any number.

    wav2vec 2.0's kin have one behind their first convolution. A network that is called as a whole hands it no mask, so
    `valid_frames` does.

    >>> norm, token = MaskedGroupNorm(1, 1), valid_frames.set(torch.tensor([2]))
    >>> norm(torch.tensor([[[1.0, 3.0, 50.0]]]))[0, 0, :2].detach().round(decimals=3)
    tensor([-1.,  1.])
    >>> valid_frames.reset(token)
    """

    def forward(self, x: Tensor) -> Tensor:
        count = valid_frames.get()
        if count is None or self.num_groups != self.num_channels:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mask = (torch.arange(x.shape[2], device=x.device) < count[:, None])[:, None]  # [B, 1, F]
        mean = masked_mean(wide, mask)
        gain = (masked_mean((wide - mean).square(), mask) + self.eps).rsqrt() * self.weight[:, None]  # [B, C, 1]
        return (wide * gain + (self.bias[:, None] - mean * gain)).to(x.dtype)


def by_length(run: Callable[[Inputs], Tensor], x: Inputs) -> Tensor:
    """run(x) [B, D], on rows of equal length together, without padding. On an accelerator it waits for the lengths.

    >>> x = {"wave": torch.tensor([[1.0, 0.0], [2.0, 3.0], [4.0, 0.0]]), "length": torch.tensor([1, 2, 1])}
    >>> by_length(lambda rows: rows["wave"].mean(1, keepdim=True), x).flatten()
    tensor([1.0000, 2.5000, 4.0000])
    """
    assert isinstance(x, dict)
    if len(x["length"]) == 0:
        return run(x)
    parts, order = [], []
    for length in x["length"].unique().tolist():
        rows = (x["length"] == length).nonzero()[:, 0]
        parts.append(run(trim(map_inputs(lambda leaf, rows=rows: leaf[rows], x), length)))  # type: ignore[misc]
        order.append(rows)
    return torch.cat(parts)[torch.argsort(torch.cat(order))]


def conv_frames(length: Tensor, kernels: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Frames that convolutions without padding make of so many samples.

    >>> conv_frames(torch.tensor([16000]), [10, 3], [5, 2])
    tensor([1599])
    """
    for kernel, stride in zip(kernels, strides, strict=True):
        length = torch.div(length - kernel, stride, rounding_mode="floor") + 1
    return length


def conv_samples(frames: int, kernels: Sequence[int], strides: Sequence[int]) -> int:
    """The fewest samples that such convolutions make so many frames of.

    >>> conv_samples(1599, [10, 3], [5, 2])
    16000
    """
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        frames = (frames - 1) * stride + kernel
    return frames
