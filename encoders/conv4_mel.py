"""Conv4 over log-mel frames: the few-shot papers' network of images, for sounds.

Input: clips as files, or pairs (waveform, sample_rate); {"wave": int16 [B, L] at 16 kHz, "length": int64 [B]}.
Output: the mean of the last feature map over time, its mel bands side by side: width * ceil(n_mels / 16) numbers.
Source: the four blocks of Vinyals et al. 2016 (https://arxiv.org/abs/1606.04080) and Snell et al. 2017
(https://arxiv.org/abs/1703.05175): 3 x 3 convolution (padding 1), batch normalisation, ReLU, 2 x 2 max-pooling. On log-mel
spectrograms: Heggan, Budgett, Hospedales, Yaghoobi: MetaAudio. ICANN 2022 (https://arxiv.org/abs/2204.02121).
Weights: none, it is trained.

Departures: clips have any length, so the last map is averaged over time, and its bands are kept. A block of an odd number of
frames or bands pools its last one alone. No biases before the batch normalisation, which would cancel them.

Shape letters: B clips, L samples, M mel bands, F frames, C channels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._speech import LogMel, MaskedBatchNorm2d, halved, load_waveform, masked_mean, stack_waves
from multifsl.episode import Inputs
from multifsl.options import check_counts


class Conv4Mel(Encoder):
    """Four convolutional blocks over a log-mel spectrogram. Padding changes nothing, in training neither.

    Args:
        width: channels of every block. n_mels: log-mel bands.

    >>> encoder = Conv4Mel(width=8).eval()
    >>> encoder(encoder.preprocess([(np.sin(np.arange(n)), 16000) for n in (8000, 16000)])).shape
    torch.Size([2, 40])
    """

    modality = "speech"

    def __init__(self, *, width: int = 64, n_mels: int = 80) -> None:
        super().__init__()
        check_counts(width=width)
        self.width, self.n_mels = width, n_mels
        self.dim = width * -(-n_mels // 16)
        self.frontend = LogMel(n_mels)
        self.convs = nn.ModuleList(nn.Conv2d(1 if i == 0 else width, width, 3, padding=1, bias=False) for i in range(4))
        self.norms = nn.ModuleList(MaskedBatchNorm2d(width) for _ in range(4))

    def load(self, item: Any) -> np.ndarray:
        return load_waveform(item)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_waves(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        frames, mask = self.frontend(x)  # [B, M, F], [B, 1, F]
        h = frames.unsqueeze(1).to(self.convs[0].weight.dtype)  # [B, 1, M, F]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.relu(F.max_pool2d(norm(conv(h), mask), 2, ceil_mode=True))  # frames that are not valid stay 0
            mask = halved(mask)
        h = h.flatten(1, 2)  # [B, C * M / 16, F / 16]
        return masked_mean(h.to(torch.promote_types(h.dtype, torch.float32)), mask)[:, :, 0]
