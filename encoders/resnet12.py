"""ResNet-12: the residual network of the few-shot papers, with DropBlock.

Input: images of any size and mode; resized to `image_size` (shorter side, then a centre crop), uint8 [B, C, H, W].
Output: the mean of the last feature map over its places, 640 numbers, or, with `pool=False`, the map itself, flattened:
640 * (image_size // 16)^2 (16,000 for 84 x 84).
Source: Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization. CVPR 2019
(https://arxiv.org/abs/1904.03758), whose variant has 64, 160, 320 and 640 channels; DropBlock: Ghiasi, Lin, Le, NeurIPS 2018
(https://arxiv.org/abs/1810.12890). Weights: none, it is trained.

    block: three 3 x 3 convolutions, each with batch normalisation, the first two with leaky ReLU (0.1); plus a 1 x 1
    convolution with batch normalisation of the input; leaky ReLU; 2 x 2 max-pooling; then, in training, dropout in the first
    two blocks, and DropBlock in the last two, whose share grows to `drop_rate` over the first 40,000 batches

Departures: their embedding is the flattened map (`pool=False`); most papers since take the mean. Where the map is smaller than
`block_size`, blocks are as large as the map.

Shape letters: B images, C channels, H and W height and width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._image import check_halved_four_times, image_channels, load_square, stack_images
from multifsl.episode import Inputs
from multifsl.options import check_below_one, check_counts, check_flags

WIDTHS = (64, 160, 320, 640)
RAMP = 40_000  # batches until blocks are dropped at the full rate


class ResNet12(Encoder):
    """Four residual blocks of three convolutions.

    Args:
        pool: take the mean of the last feature map, else all of it.
        drop_rate: the share of activations that training drops, from 0 and below 1. block_size: side of what DropBlock drops; 5
            is for images of 84 pixels, 2 for 32.
        channels: 1 (grey) or 3 (colour); None takes the task's, else 3.
        image_size: pixels, at least 16.

    >>> ResNet12(image_size=32)(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape
    torch.Size([2, 640])
    """

    modality = "image"
    batches: Tensor

    def __init__(
        self,
        *,
        pool: bool = True,
        drop_rate: float = 0.1,
        block_size: int = 5,
        channels: int | None = None,
        image_size: int = 84,
    ) -> None:
        super().__init__()
        channels = image_channels(channels, "resnet12")
        check_halved_four_times(image_size, "resnet12")
        check_flags(pool=pool)
        check_below_one(drop_rate=drop_rate)
        check_counts(block_size=block_size)
        self.pool, self.drop_rate, self.block_size = pool, drop_rate, block_size
        self.channels, self.image_size = channels, image_size
        self.dim = WIDTHS[-1] * (1 if pool else (image_size // 16) ** 2)
        self.blocks = nn.ModuleList(
            ResidualBlock(inputs, outputs) for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False)
        )
        self.register_buffer("batches", torch.tensor(0.0))  # that training has seen
        self.to(memory_format=torch.channels_last)

    def load(self, item: Any) -> np.ndarray:
        """An image as uint8 [H, W, C]."""
        return load_square(item, self.image_size, self.channels)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_images(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        h = x.to(next(self.parameters()).dtype) / 255
        if torch._C._functorch.peek_interpreter_stack() is None:  # vmap cannot ask for a memory format
            h = h.contiguous(memory_format=torch.channels_last)
        for i, block in enumerate(self.blocks):
            h = block(h)
            if self.training and self.drop_rate:
                h = F.dropout(h, self.drop_rate) if i < 2 else self._drop_blocks(h)
        if self.training:
            with torch.no_grad():
                self.batches.add_(1)
        return h.mean((2, 3)) if self.pool else h.flatten(1)

    def _drop_blocks(self, x: Tensor) -> Tensor:
        return drop_blocks(x, self.drop_rate * (self.batches / RAMP).clamp(max=1), self.block_size)


class ResidualBlock(nn.Module):
    """[B, C, H, W] -> [B, outputs, H // 2, W // 2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = (inputs, outputs, outputs)
        self.convs = nn.ModuleList(nn.Conv2d(w, outputs, 3, padding=1, bias=False) for w in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in widths)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(outputs)
        for conv in (*self.convs, self.shortcut):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = norm(conv(h))
            h = F.leaky_relu(h, 0.1) if i < 2 else h
        h = h + self.shortcut_norm(self.shortcut(x))
        return F.leaky_relu(F.max_pool2d(h, 2), 0.1)  # they commute exactly


def drop_blocks(x: Tensor, rate: Tensor, size: int) -> Tensor:
    """x [B, C, H, W] with squares of size x size set to 0, so that about `rate` (a scalar) of it is, and the rest scaled up.

    Ghiasi et al., Algorithm 1, with a mask for each channel. Nothing waits for an accelerator.

    >>> drop_blocks(torch.ones(1, 1, 2, 2), torch.tensor(0.0), 2)
    tensor([[[[1., 1.],
              [1., 1.]]]])
    """
    h, w = x.shape[2:]
    size = min(size, h, w)
    places = (h - size + 1) * (w - size + 1)
    share = rate / size**2 * (h * w) / places  # of the places, one of which drops a whole square: equation 1
    corners = (torch.rand_like(x[:, :, : h - size + 1, : w - size + 1]) < share).to(x.dtype)
    dropped = F.max_pool2d(F.pad(corners, (size - 1,) * 4), size, stride=1)
    kept = 1 - dropped
    return x * kept * (kept.numel() / kept.sum().clamp(min=1))
