"""From waves to what published speech networks read, equal to their own feature extractors, but batched and on any device.

A reader of waves has `shortest` and `longest`, the samples that its network needs and reads (None: all of them), and maps

    wave float [B, L] in -1..1, 0 behind each clip's end, length int64 [B] -> the network's keyword arguments

Shape letters: B clips, L samples, F frames, M mel bands.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoders._speech import SAMPLE_RATE, masked_mean
from multifsl.errors import BadFile

WINDOW, HOP = 400, 160  # samples: 25 ms every 10 ms, as Whisper and AST have them


def waves_reader(extractor: Any, name: str, shortest: int) -> "NormalisedWaves | WhisperFrames | AstFrames":
    """The reader that equals a published feature extractor; `shortest` is what a network of waves needs.

    Raises BadFile where there is none.
    """
    if extractor.sampling_rate != SAMPLE_RATE:
        raise BadFile(f"{name} reads audio of {extractor.sampling_rate} Hz; models of {SAMPLE_RATE} Hz are known here")
    kind = type(extractor).__name__
    if kind == "Wav2Vec2FeatureExtractor" and extractor.padding_value == 0:
        return NormalisedWaves(shortest, extractor.do_normalize)
    if kind == "WhisperFeatureExtractor" and (extractor.n_fft, extractor.hop_length) == (WINDOW, HOP):
        return WhisperFrames(torch.from_numpy(extractor.mel_filters).float(), extractor.n_samples)
    if kind == "ASTFeatureExtractor":
        scaled = (extractor.mean, 2 * extractor.std) if extractor.do_normalize else (0.0, 1.0)
        return AstFrames(extractor.num_mel_bins, extractor.max_length, *scaled)
    raise BadFile(
        f"{name} has a {kind} of a kind that is not known here; known: those of wav2vec 2.0 (WavLM, HuBERT, UniSpeech-SAT ...), "
        "Whisper and AST, with their usual settings"
    )


class NormalisedWaves(nn.Module):
    """Each clip with mean 0 and variance 1 over its valid samples, where `normalise` says so; wav2vec 2.0 and its kin."""

    longest = None

    def __init__(self, shortest: int, normalise: bool) -> None:
        super().__init__()
        self.shortest, self.normalise = shortest, normalise

    def forward(self, wave: Tensor, length: Tensor) -> dict[str, Tensor | None]:
        valid = torch.arange(wave.shape[1], device=wave.device) < length[:, None]  # [B, L]
        if self.normalise:
            mask, wave = valid[:, None], wave[:, None]  # [B, 1, L]
            centred = (wave - masked_mean(wave, mask)) * mask
            wave = (centred * (masked_mean(centred.square(), mask) + 1e-7).rsqrt())[:, 0]
        # On an accelerator, to know whether all are full would be to wait for it.
        full = length.device.type == "cpu" and bool((length == wave.shape[1]).all())
        return {"input_values": wave, "attention_mask": None if full else valid.long()}


class WhisperFrames(nn.Module):
    """Log-mel frames of the clip and the silence behind it, no more than 8 below the highest; 30 s, as Whisper always reads."""

    bands: Tensor
    window: Tensor
    shortest = 1

    def __init__(self, bands: Tensor, longest: int) -> None:
        super().__init__()
        self.longest = longest
        self.register_buffer("bands", bands, persistent=False)  # [bins, M]
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, wave: Tensor, length: Tensor) -> dict[str, Tensor | None]:
        wave = F.pad(wave, (0, self.longest - wave.shape[1]))  # cuts, where that is negative
        pieces = F.pad(wave[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")[:, 0].unfold(1, WINDOW, HOP)
        pieces = pieces[:, : self.longest // HOP] * self.window.to(wave.dtype)  # [B, F, 400]
        power = torch.view_as_real(torch.fft.rfft(pieces)).square().sum(-1)  # [B, F, bins]
        mel = (power @ self.bands.to(wave.dtype)).clamp(min=1e-10).log10()  # [B, F, M]
        mel = mel.maximum(mel.amax((1, 2), keepdim=True) - 8)
        return {"input_features": (mel.transpose(1, 2) + 4) / 4}


class AstFrames(nn.Module):
    """Log-mel frames as Kaldi computes them, zeros behind, `frames` in all (10.24 s); moved and scaled."""

    bands: Tensor
    window: Tensor
    shortest = WINDOW

    def __init__(self, n_mels: int, frames: int, mean: float, scale: float) -> None:
        super().__init__()
        from torchaudio.compliance.kaldi import get_mel_banks

        self.frames, self.mean, self.scale = frames, mean, scale
        self.longest = WINDOW + (frames - 1) * HOP
        bands = get_mel_banks(n_mels, 512, float(SAMPLE_RATE), 20.0, 0.0, 100.0, -500.0, 1.0)[0]  # [M, bins]
        self.register_buffer("bands", bands.T.contiguous(), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW, periodic=False), persistent=False)

    def counts(self, length: Tensor) -> Tensor:
        """Frames whose samples are all the clip's."""
        return (1 + torch.div(length - WINDOW, HOP, rounding_mode="floor")).clamp(0, self.frames)

    def forward(self, wave: Tensor, length: Tensor) -> dict[str, Tensor | None]:
        pieces = F.pad(wave, (0, self.longest - wave.shape[1])).unfold(1, WINDOW, HOP)  # [B, F, 400]
        pieces = pieces - pieces.mean(2, keepdim=True)
        before = torch.cat([pieces[..., :1], pieces[..., :-1]], 2)
        pieces = (pieces - 0.97 * before) * self.window.to(wave.dtype)
        power = torch.view_as_real(torch.fft.rfft(pieces, 512)).square().sum(-1)[..., :-1]  # [B, F, 256]
        mel = (power @ self.bands.to(wave.dtype)).clamp(min=torch.finfo(torch.float32).eps).log()
        valid = torch.arange(self.frames, device=wave.device) < self.counts(length)[:, None]  # [B, F]
        return {"input_values": (mel * valid[..., None] - self.mean) / self.scale}
