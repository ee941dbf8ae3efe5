"""ECAPA-TDNN, a speaker encoder.

Brecht Desplanques, Jenthe Thienpondt, Kris Demuynck. ECAPA-TDNN: Emphasized Channel Attention, Propagation and
Aggregation in TDNN Based Speaker Verification. Interspeech 2020. https://arxiv.org/abs/2005.07143

Log-mel frames pass a convolution and three SE-Res2Blocks, each of which looks further (dilation 2, 3, 4), splits its
channels into 8 groups that feed one another, and rescales its channels by what the whole clip has in them. A block's
input is the sum of all that came before. The three outputs, concatenated, are pooled into a mean and a standard
deviation in which each channel has its own attention over time, e_t = V tanh(W [h_t; mean h; std h] + b); these become
the embedding.

Where we depart from the paper: 80 log-mel bands instead of 80 MFCCs (as later work does); the aggregation has
3 * `channels` channels, which is the paper's 1536 for its 512 but 3072 for its 1024; parameters that cannot change what
is learned are left out (the bias before the softmax over time and the one before the last BatchNorm, which cancel them,
and the gain and bias of the BatchNorm before the last linear map); f in the attention, which the paper leaves open, is
tanh. No margin loss here: how the embedding is trained is the method's business.

Input: clips as files, or pairs (waveform, sample_rate); {"wave": int16 [B, L] at 16 kHz, "length": int64 [B]}.
Output: [B, dim]. Weights: none, it is trained.

Shape letters: B clips, L samples, F frames, C channels, D embedding width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._speech import (
    Conv1d,
    LogMel,
    MaskedBatchNorm1d,
    conv,
    even_weights,
    load_waveform,
    masked_mean,
    stack_waves,
    statistics,
)
from multifsl.episode import Inputs
from multifsl.errors import MultifslError

SCALE = 8  # groups of channels in a Res2 convolution
BOTTLENECK = 128  # of the squeeze-excitation and of the attention


class Ecapa(Encoder):
    """ECAPA-TDNN over log-mel frames: clips of any length from 0.1 s -> [B, dim].

    Padding changes nothing, neither an embedding nor, in training, a BatchNorm statistic. Batches without padding run
    fastest; see `LogMel.mask`.

    Args:
        channels: C, a multiple of 8. 512 is the paper's smaller model, with 6.2 million parameters.
        dim: width of the embedding. n_mels: log-mel bands.

    >>> encoder = Ecapa(channels=16, dim=32).eval()
    >>> x = encoder.preprocess([(np.sin(np.arange(n)), 16000) for n in (8000, 16000)])
    >>> x["wave"].shape, encoder(x).shape
    (torch.Size([2, 16000]), torch.Size([2, 32]))
    """

    modality = "speech"

    def __init__(self, channels: int = 512, dim: int = 192, *, n_mels: int = 80) -> None:
        super().__init__()
        if channels < SCALE or channels % SCALE:
            raise MultifslError(f"channels must be a multiple of {SCALE}, not {channels}")
        if dim < 1:
            raise MultifslError(f"dim must be at least 1, not {dim}")
        self.channels, self.dim, self.n_mels = channels, dim, n_mels
        wide = 3 * channels
        self.frontend = LogMel(n_mels)
        self.first = ConvReluNorm(n_mels, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, dilation) for dilation in (2, 3, 4))
        self.aggregate = Conv1d(wide, wide)
        self.pool = AttentivePooling(wide)
        self.pooled_norm = MaskedBatchNorm1d(2 * wide, affine=False)
        self.out = nn.Linear(2 * wide, dim, bias=False)
        self.out_norm = MaskedBatchNorm1d(dim)

    def load(self, item: Any) -> np.ndarray:
        return load_waveform(item)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_waves(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        frames, mask = self.frontend(x)  # [B, M, F], [B, 1, F]
        h = self.first(frames.to(self.first.conv.weight.dtype), mask)  # [B, C, F]
        total, outputs = h, []
        for block in self.blocks:
            h = block(total, mask)
            total = total + h
            outputs.append(h)
        h = F.relu(self.aggregate(torch.cat(outputs, 1)))  # [B, 3C, F]
        rows = None if mask is None else mask.any(2)  # [B, 1]: clips that are there
        z = self.pooled_norm(self.pool(h, mask), rows)  # [B, 6C]
        z = self.out(z.to(self.out.weight.dtype)).to(z.dtype)  # back to float32 where autocast or the weights are bf16
        embeddings: Tensor = self.out_norm(z, rows)  # [B, D]
        return embeddings


class ConvReluNorm(nn.Module):
    """The paper's unit. Its input must be 0 in padding frames, as its output is."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv = Conv1d(inputs, outputs, kernel, dilation=dilation)
        self.norm = MaskedBatchNorm1d(outputs)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self.norm(F.relu(self.conv(x)), mask)
        return out


class SERes2Block(nn.Module):
    """x -> x + SE(dense(res2(dense(x)))), [B, C, F]."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.before = ConvReluNorm(channels, channels)
        self.res2 = nn.ModuleList(
            ConvReluNorm(channels // SCALE, channels // SCALE, 3, dilation) for _ in range(SCALE - 1)
        )
        self.after = ConvReluNorm(channels, channels)
        self.squeeze = SqueezeExcite(channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first, *groups = self.before(x, mask).chunk(SCALE, 1)  # 8 of [B, C / 8, F]
        outputs = [first]
        for unit, group in zip(self.res2, groups, strict=True):
            outputs.append(unit(group if len(outputs) == 1 else group + outputs[-1], mask))
        out: Tensor = x + self.squeeze(self.after(torch.cat(outputs, 1), mask), mask)
        return out


class SqueezeExcite(nn.Module):
    """Each channel times a factor in 0..1, computed from the clip's mean over valid frames: [B, C, F] -> [B, C, F]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, BOTTLENECK)
        self.up = nn.Linear(BOTTLENECK, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        mean = masked_mean(x, mask)[:, :, 0]  # [B, C]
        factor = torch.sigmoid(self.up(F.relu(self.down(mean))))
        return x * factor[:, :, None]


class AttentivePooling(nn.Module):
    """Channel- and context-dependent attentive statistics over valid frames: [B, C, F] -> means, deviations [B, 2C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = Conv1d(3 * channels, BOTTLENECK)
        self.score = Conv1d(BOTTLENECK, channels, bias=False)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(h.dtype, torch.float32)
        context = torch.cat(statistics(h, even_weights(mask, dtype)), 1).to(h.dtype)  # [B, 2C]
        # W [h_t; context] in two parts, since the context is the same for all frames of a clip
        frame_weight, context_weight = self.hidden.weight[:, : h.shape[1]], self.hidden.weight[:, h.shape[1] :]
        shift = F.linear(context, context_weight[:, :, 0], self.hidden.bias)[:, :, None]
        scores = self.score(torch.tanh(conv(h, frame_weight) + shift)).to(dtype)  # [B, C, F]
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(dtype).min)  # not -inf: a row may have no frame
        weights = scores.transpose(1, 2).softmax(1).transpose(1, 2)  # transposed: softmax would copy channels-last
        return torch.cat(statistics(h, weights), 1)
