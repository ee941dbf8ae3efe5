"""ResNet-34 over log-mel frames: a speaker encoder.

Zeinali, Wang, Silnova, Matejka, Plchot: BUT System Description to VoxCeleb Speaker Recognition Challenge 2019.
https://arxiv.org/abs/1910.12592. The residual network is that of He, Zhang, Ren, Sun: Deep Residual Learning for Image
Recognition. CVPR 2016 (https://arxiv.org/abs/1512.03385).

    3 x 3 convolution; 3, 4, 6, 3 residual blocks of two 3 x 3 convolutions, with 1, 2, 4, 8 times `channels`, the last three
    stages halving bands and frames; mean and standard deviation of each band and channel over time; a linear layer

Input: clips as files, or pairs (waveform, sample_rate); {"wave": int16 [B, L] at 16 kHz, "length": int64 [B]}.
Output: [B, dim]. Weights: none, it is trained.

Departure: `blocks` may be fewer. No margin loss here: how the embedding is trained is the method's business.

Shape letters: B clips, L samples, M mel bands, F frames, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._speech import (
    LogMel,
    MaskedBatchNorm2d,
    even_weights,
    halved,
    load_waveform,
    stack_waves,
    statistics,
)
from multifsl.episode import Inputs
from multifsl.errors import MultifslError
from multifsl.options import check_counts


class ResNetMel(Encoder):
    """ResNet-34, or a smaller one, over a log-mel spectrogram. Padding changes nothing, in training neither.

    Args:
        channels: of the first stage; 32 as published. dim: width of the embedding. n_mels: log-mel bands.
        blocks: of the four stages; (2, 2, 2, 2) is ResNet-18.

    >>> encoder = ResNetMel(channels=4, dim=16, blocks=(1, 1, 1, 1)).eval()
    >>> encoder(encoder.preprocess([(np.sin(np.arange(n)), 16000) for n in (8000, 16000)])).shape
    torch.Size([2, 16])
    """

    modality = "speech"

    def __init__(
        self, channels: int = 32, dim: int = 256, *, n_mels: int = 80, blocks: Sequence[int] = (3, 4, 6, 3)
    ) -> None:
        super().__init__()
        check_counts(channels=channels, dim=dim)
        if isinstance(blocks, int | str) or len(blocks) != 4 or any(not isinstance(n, int) or n < 1 for n in blocks):
            raise MultifslError(f"blocks must be four whole numbers from 1, such as (3, 4, 6, 3), not {blocks!r}")
        self.channels, self.dim, self.n_mels, self.blocks = channels, dim, n_mels, tuple(blocks)
        self.frontend = LogMel(n_mels)
        self.conv = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.norm = MaskedBatchNorm2d(channels)
        widths = [channels * 2**stage for stage in range(4)]
        self.stages = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for i in range(count):
                before = widths[max(0, stage - 1)] if i == 0 else width
                self.stages.append(BasicBlock(before, width, stride=2 if stage and i == 0 else 1))
        self.out = nn.Linear(2 * widths[-1] * -(-n_mels // 8), dim)

    def load(self, item: Any) -> np.ndarray:
        return load_waveform(item)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_waves(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        frames, mask = self.frontend(x)  # [B, M, F], [B, 1, F]
        h = frames.unsqueeze(1).to(self.conv.weight.dtype)  # [B, 1, M, F]
        h = F.relu(self.norm(self.conv(h), mask))
        for block in self.stages:
            h, mask = block(h, mask)
        h = h.flatten(1, 2)  # [B, C * M / 8, F / 8]
        dtype = torch.promote_types(h.dtype, torch.float32)
        pooled = torch.cat(statistics(h.to(dtype), even_weights(mask, dtype)), 1)
        z: Tensor = self.out(pooled.to(self.out.weight.dtype))
        return z.to(dtype)


class BasicBlock(nn.Module):
    """ReLU(norm(conv(ReLU(norm(conv(x))))) + shortcut): [B, C, M, F] and its mask -> the same, after the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = MaskedBatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = MaskedBatchNorm2d(outputs)
        self.shortcut = None if stride == 1 and inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.shortcut_norm = None if self.shortcut is None else MaskedBatchNorm2d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        after = halved(mask) if self.stride == 2 else mask
        h = F.relu(self.norm1(self.conv1(x), after))
        h = self.norm2(self.conv2(h), after)
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut_norm(self.shortcut(x), after)
        return F.relu(h + x), after
