"""What the speech encoders share: reading audio, log-mel frames, and layers that padding frames do not touch.

Shape letters: B clips, L samples, F frames, M mel bands, C channels. Frame batches are [B, C, F] with the channels next
to each other in memory (channels-last), which on a CPU makes the convolutions and norms here about twice as fast.
A frame mask is bool [B, 1, F], True where a frame is valid, or None where all are.
"""

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.archive import Member
from multifsl.errors import BadFile, BadItem, MultifslError
from multifsl.functional import without_autocast

SAMPLE_RATE = 16_000  # Hz, of everything after `load_waveform`
WINDOW, HOP, N_FFT = 400, 160, 512  # samples: 25 ms every 10 ms
LOW, HIGH = 20.0, 7600.0  # Hz, the edges of the mel bands
FLOOR = 1e-7  # of a mel band's power: about that of the rounding to 16 bits
SHORTEST = 0.1  # seconds
SILENCE = 1e-4  # peak, -80 dB of full scale
RATES = (4_000, 384_000)  # Hz
LOUDEST = 8.0  # floats beyond full scale are clipped up to here; beyond, they were not meant as floats in -1..1


# ---- reading audio ----


def load_waveform(item: Any) -> np.ndarray:
    """One clip as int16 [n], 16 kHz, mono.

    item: a path, a `Member` of an archive, or a pair (waveform, sample_rate) whose waveform is [n], [channels, n] or
        [n, channels], integers over their type's range or floats in -1..1; the smaller axis is the channels.

    Raises:
        BadItem: the clip is missing, not audio, truncated, too short, silent, not finite or of no sensible sample rate.

    >>> load_waveform((np.sin(np.arange(8000)), 8000)).shape
    (16000,)
    """
    if isinstance(item, str | Path | Member):
        name = str(item)
        samples, hertz = _read(item, name)  # [n, channels]
    elif isinstance(item, tuple | list) and len(item) == 2:
        samples, hertz, name = _unpack(item[0], item[1])
    else:
        raise BadItem(
            f"a clip is a path, a member of an archive or a pair (waveform, sample_rate), not {type(item).__name__}"
        )
    if not RATES[0] <= hertz <= RATES[1]:
        raise BadItem(f"{name}: a sample rate of {hertz:g} Hz; allowed are {RATES[0]} to {RATES[1]} Hz")
    if samples.size == 0:
        raise BadItem(f"{name}: no samples")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise BadItem(f"{name}: {bad} of {samples.size} samples are NaN or infinite")
    seconds = len(samples) / hertz
    if seconds < SHORTEST:
        raise BadItem(f"{name}: {seconds:.3f} s of audio; a clip must last at least {SHORTEST} s")
    mono = samples.mean(1)  # [n]
    peak = float(np.abs(mono).max())
    if peak < SILENCE:
        level = f"peak at {20 * math.log10(peak):.0f} dB of full scale" if peak > 0 else "every sample is 0"
        raise BadItem(f"{name}: silent ({level}); the peak must reach {20 * math.log10(SILENCE):.0f} dB")
    if peak > LOUDEST:
        raise BadItem(f"{name}: a peak of {peak:g}; samples given as floats must lie in -1..1 (or give them as int16)")
    if hertz != SAMPLE_RATE:
        mono = _resample(mono, hertz)
    samples = np.clip(np.rint(mono * 32768), -32768, 32767)
    return np.asarray(samples, dtype=np.int16)


def _read(item: str | Path | Member, name: str) -> tuple[np.ndarray, float]:
    """A file's samples as float32 [n, channels], and its rate."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise MultifslError(f"reading audio files needs soundfile ({error}): pip install soundfile") from error
    source: str | BinaryIO
    try:
        if isinstance(item, Member):
            data = item.read_bytes()
            size, missing, source = len(data), _truncation(io.BytesIO(data), len(data)), io.BytesIO(data)
        else:
            path = Path(item)
            with path.open("rb") as handle:
                size = path.stat().st_size
                missing = _truncation(handle, size)
            source = str(path)
    except FileNotFoundError as error:
        raise BadItem(f"{name}: there is no such file") from error
    except (OSError, BadFile) as error:
        raise BadItem(f"{name}: cannot be read: {error}") from error
    if size == 0:
        raise BadItem(f"{name}: the file is empty")
    if missing:
        raise BadItem(f"{name}: truncated: {missing}")
    try:
        with soundfile.SoundFile(source) as sound:
            promised, rate = sound.frames, sound.samplerate
            samples = sound.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a file named .raw
        raise BadItem(
            f"{name}: not audio that soundfile can read ({error}); it reads WAV, FLAC, OGG, Opus, MP3, AIFF and AU, "
            "not M4A, AAC, WMA or video"
        ) from error
    if len(samples) < promised:
        raise BadItem(f"{name}: truncated: {len(samples)} of {promised} frames could be decoded")
    return samples, rate


def _truncation(handle: BinaryIO, size: int) -> str:
    """What a file lacks of what its header promises, where libsndfile reads what is left and says nothing; else ""."""
    head = handle.read(12)
    missing = 0
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        missing = _missing_of_wav(handle, size, head)
    elif head[:4] == b"FORM" and head[8:11] == b"AIF":
        missing = 8 + int.from_bytes(head[4:8], "big") - size
    elif head[:4] == b"OggS":
        handle.seek(max(0, size - 65_307))  # the longest page
        tail = handle.read()
        page = tail[tail.rfind(b"OggS") :]
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        whole = len(page) > 26 and len(page) >= 27 + page[26] + sum(segments)
        return "" if whole and page[5] & 4 else "its last page does not end the stream"
    return f"{missing} bytes of the audio that its header promises are missing" if missing > 0 else ""


def _missing_of_wav(handle: BinaryIO, size: int, head: bytes) -> int:
    start = 12
    while start + 8 <= size:
        handle.seek(start)
        kind, length = handle.read(4), int.from_bytes(handle.read(4), "little")
        if kind == b"data":
            # programs that write into a pipe cannot know the length, and put the largest one there
            return 0 if length >= 0x7FFFF000 else start + 8 + length - size
        start += 8 + length + length % 2
    return 8 + int.from_bytes(head[4:8], "little") - size


def _unpack(waveform: Any, rate: Any) -> tuple[np.ndarray, float, str]:
    """A (waveform, sample_rate) pair as floats [n, channels], the rate, and a name for it."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu()
        waveform = (waveform.float() if waveform.is_floating_point() else waveform).numpy()
    samples = np.asarray(waveform)
    name = f"a waveform of shape {samples.shape} and type {samples.dtype}"
    if np.ndim(rate) != 0 or samples.ndim == 0:
        raise BadItem(f"{name}: a pair must be (waveform, sample_rate), in this order")
    try:
        hertz = float(rate)
    except (TypeError, ValueError) as error:
        raise BadItem(f"{name}: its sample rate must be a number of hertz, not {rate!r}") from error
    if samples.ndim > 2:
        raise BadItem(f"{name}: a waveform is [n], [channels, n] or [n, channels]")
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] <= samples.shape[1]:
        samples = samples.T
    kind, width = samples.dtype.kind, samples.dtype.itemsize
    if kind == "u" and width == 1:
        return (samples.astype(np.float32) - 128) / 128, hertz, name
    if kind == "i" and width == 8:  # what numpy makes of a list of ints: taken as 16-bit samples
        if np.abs(samples).max(initial=0) > 32768:
            raise BadItem(f"{name}: int64 samples must lie in -32768..32767; else give int32 or floats in -1..1")
        return (samples / 32768).astype(np.float32), hertz, name
    if kind == "i":
        return (samples / 2 ** (8 * width - 1)).astype(np.float32), hertz, name
    if kind == "f":
        return samples.astype(np.float32), hertz, name
    raise BadItem(f"{name}: samples must be floats in -1..1, or uint8, int8, int16, int32 or int64")


def _resample(mono: np.ndarray, rate: float) -> np.ndarray:
    """Float [n] at `rate` -> [m] at 16 kHz, windowed sinc."""
    from torchaudio.functional import resample

    # The filter bank grows with the terms of the ratio: odd rates are moved by less than 2e-6, which nobody hears.
    # All usual rates are exact.
    ratio = Fraction(rate / SAMPLE_RATE).limit_denominator(640)
    out = resample(torch.from_numpy(np.ascontiguousarray(mono)), ratio.numerator, ratio.denominator)
    return np.asarray(out.numpy())


def stack_waves(loaded: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Clips int16 [n] as one batch, {"wave": int16 [B, L], padded with zeros, "length": int64 [B]}."""
    length = torch.tensor([len(wave) for wave in loaded], dtype=torch.int64)
    waves = np.zeros((len(loaded), int(length.max()) if len(loaded) else 0), dtype=np.int16)
    for row, wave in zip(waves, loaded, strict=True):
        row[: len(wave)] = wave
    return {"wave": torch.from_numpy(waves), "length": length}


# ---- log-mel frames ----


class LogMel(nn.Module):
    """Waves -> log-mel frames, each clip's mean (and with `var` its variance) over its valid frames removed.

    {"wave": int16, or float in -1..1, [B, L], "length": int64 [B]} -> (frames [B, M, F], mask [B, 1, F] or None).
    A frame is valid where all of its 512 samples are, so a clip has 1 + (length - 512) // 160 of them. A shorter clip
    has one, with zeros after its end; a clip of length 0, which stands for a row that is not there, has none. The other
    frames are 0. Without "length" all samples are valid. float32 even under autocast (float64 after `.double()`).

    >>> frames, mask = LogMel()({"wave": torch.zeros(2, 16000), "length": torch.tensor([16000, 8000])})
    >>> frames.shape, mask.sum(2).flatten().tolist()
    (torch.Size([2, 80, 97]), [97, 47])
    """

    window: Tensor
    bands: Tensor

    def __init__(self, n_mels: int = 80, *, var: bool = False) -> None:
        super().__init__()
        if not 1 <= n_mels <= 100:
            # beyond, the lowest bands are narrower than the 31.25 Hz between two bins, and some see no bin at all
            raise MultifslError(f"n_mels must be 1 to 100, not {n_mels}")
        from torchaudio.functional import melscale_fbanks

        self.n_mels, self.var = n_mels, var
        with torch.device("cpu"):  # torchaudio looks at the values, which "meta" tensors do not have
            bands = melscale_fbanks(N_FFT // 2 + 1, LOW, HIGH, n_mels, SAMPLE_RATE)  # [bins, M]
            edge = (N_FFT - WINDOW) // 2
            window = F.pad(torch.hann_window(WINDOW), (edge, edge))
        home = torch.get_default_device()
        self.register_buffer("window", window.to(home), persistent=False)
        self.register_buffer("bands", bands.to(home), persistent=False)

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        wave, length = x["wave"], x.get("length")
        if wave.shape[1] < N_FFT:
            wave = F.pad(wave, (0, N_FFT - wave.shape[1]))
        dtype = torch.promote_types(self.window.dtype, torch.float32)
        scale = 1.0 if wave.is_floating_point() else 1 / 32768
        with without_autocast(wave):
            # As fast as torch.stft, and it has a vmap rule.
            pieces = wave.to(dtype).unfold(1, N_FFT, HOP) * (self.window.to(dtype) * scale)  # [B, F, 512]
            power = torch.view_as_real(torch.fft.rfft(pieces)).square().sum(-1)  # [B, F, bins]
            mel = (power @ self.bands.to(dtype)).clamp(min=FLOOR).log().transpose(1, 2)  # [B, M, F]
            mask = self.mask(length, mel.shape[2])
            mel = mel - masked_mean(mel, mask)
            if mask is not None:
                mel = mel * mask
            if self.var:
                mel = mel * (masked_mean(mel.square(), mask) + 1e-5).rsqrt()
        return mel, mask

    @staticmethod
    def counts(length: Tensor) -> Tensor:
        """Valid frames of clips of `length` samples.

        >>> LogMel.counts(torch.tensor([16000, 700, 100, 0]))
        tensor([97,  2,  1,  0])
        """
        count = 1 + torch.div(length - N_FFT, HOP, rounding_mode="floor")
        return torch.where(length > 0, count.clamp(min=1), 0)

    @classmethod
    def mask(cls, length: Tensor | None, frames: int) -> Tensor | None:
        """bool [B, 1, F]; None where all frames are known to be valid, which is the fast path of all that follows.

        To know it, the lengths must be read. That is free where they lie in the CPU's memory; on an accelerator it
        would be a host sync, so there only a batch without "length" takes the fast path. Under vmap nothing is read.
        """
        if length is None:
            return None
        count = cls.counts(length)
        readable = count.device.type == "cpu" and not torch._C._functorch.is_functorch_wrapped_tensor(count)
        if readable and bool((count >= frames).all()):
            return None
        return (torch.arange(frames, device=length.device) < count[:, None])[:, None]


# ---- layers that padding frames do not touch ----


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over valid frames, [B, C, F] -> [B, C, 1]. A clip with none has mean 0.

    >>> masked_mean(torch.tensor([[[1.0, 3.0, 8.0]]]), torch.tensor([[[True, True, False]]]))
    tensor([[[2.]]])
    """
    if mask is None:
        return x.mean(2, keepdim=True)
    return (x * mask).sum(2, keepdim=True) / mask.sum(2, keepdim=True).clamp(min=1)


class Conv1d(nn.Conv1d):
    """nn.Conv1d of stride 1, padded to as many frames as came in, computed as a channels-last conv2d.

    >>> Conv1d(4, 8, 3, dilation=2)(torch.zeros(2, 4, 10)).shape
    torch.Size([2, 8, 10])
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, *, dilation: int = 1, bias: bool = True) -> None:
        assert kernel % 2 == 1
        super().__init__(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return conv(x, self.weight, self.bias, int(self.padding[0]), self.dilation[0])


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0, dilation: int = 1) -> Tensor:
    """F.conv1d of stride 1 in channels-last memory: [B, C, F] -> [B, C', F']."""
    x = x.transpose(1, 2).contiguous().transpose(1, 2)  # a copy only where it is not yet channels-last
    return F.conv2d(x[:, :, None], weight[:, :, None], bias, 1, (0, padding), (1, dilation))[:, :, 0]


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """nn.BatchNorm1d over valid frames alone: [B, C, F] with mask [B, 1, F], or [B, C] with mask [B, 1].

    What is not valid counts in no statistic and comes out as 0. Gain and bias are applied outside the fused op: inside,
    vmap over a second-order step gives wrong gradients (torch 2.14); `gain_outside` says so to `multifsl.norms`.

    >>> norm = MaskedBatchNorm1d(1)
    >>> norm(torch.tensor([[[1.0, 3.0, 50.0]]]), torch.tensor([[[True, True, False]]])).detach().round(decimals=3)
    tensor([[[-1.,  1.,  0.]]])
    """

    gain_outside = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert x.ndim in (2, 3) and (mask is None or mask.ndim == x.ndim)
        shape = (1, -1) if x.ndim == 2 else (1, -1, 1)
        gain = x.new_ones(()) if self.weight is None else self.weight.view(shape)
        bias = x.new_zeros(()) if self.bias is None else self.bias.view(shape)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            gain = gain * (self.running_var.view(shape) + self.eps).rsqrt()
            bias = bias - self.running_mean.view(shape) * gain
            out = x * gain.to(x.dtype) + bias.to(x.dtype)
            return out if mask is None else out * mask
        if mask is None:
            four = x if x.ndim == 2 else x[:, :, None]  # [B, C, 1, F]: the kernel for channels-last memory
            # The op keeps the buffers for its backward pass: ours, which the next masked batch changes, would not do.
            mean, var = (None if r is None else x.new_zeros(r.shape, dtype=r.dtype) for r in self._running())
            out = F.batch_norm(four, mean, var, None, None, True, 1.0, self.eps)
            self._note(mean, var)
            return out.view_as(x) * gain.to(x.dtype) + bias.to(x.dtype)
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        return self._normalize_valid(precise, mask, gain, bias).to(x.dtype)

    def _running(self) -> tuple[Tensor | None, Tensor | None]:
        return self.running_mean, self.running_var

    @torch.no_grad()
    def _note(self, mean: Tensor | None, var: Tensor | None) -> None:
        """Move the running statistics by those of a batch, [C], and count it, where that is kept."""
        if self.num_batches_tracked is None or self.running_mean is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, now in zip(self._running(), (mean, var), strict=True):
            if running is not None and now is not None:
                running.mul_(1 - momentum).add_(now.to(running.dtype), alpha=momentum)  # lerp_ lacks a vmap rule

    def _normalize_valid(self, x: Tensor, mask: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        over = (0, 2) if x.ndim == 3 else (0,)
        count = mask.sum().clamp(min=1)
        mean = (x * mask).sum(over, keepdim=True) / count
        centred = (x - mean) * mask
        var = centred.square().sum(over, keepdim=True) / count
        self._note(mean.detach().flatten(), (var.detach() * count / (count - 1).clamp(min=1)).flatten())
        return centred * ((var + self.eps).rsqrt() * gain) + bias * mask


class MaskedBatchNorm2d(MaskedBatchNorm1d):
    """The same for maps [B, C, M, F], by valid frames: mask [B, 1, F].

    >>> norm = MaskedBatchNorm2d(1)
    >>> norm(torch.tensor([[[[1.0, 3.0, 50.0]]]]), torch.tensor([[[True, True, False]]])).detach().round(decimals=3)
    tensor([[[[-1.,  1.,  0.]]]])
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = None if mask is None else mask.unsqueeze(2).expand(-1, -1, x.shape[2], -1).flatten(2)  # [B, 1, M * F]
        normed: Tensor = super().forward(x.flatten(2), flat).unflatten(2, x.shape[2:])
        return normed


def halved(mask: Tensor | None) -> Tensor | None:
    """The mask after a stride of 2: a frame stays valid where the first of its two was.

    >>> halved(torch.tensor([[[True, True, True, False, False]]]))
    tensor([[[ True,  True, False]]])
    """
    return None if mask is None else mask[:, :, ::2]


def even_weights(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The same weight for each valid frame, of sum 1, [B, 1, F]."""
    return None if mask is None else mask.to(dtype) / mask.sum(2, keepdim=True).clamp(min=1)


def statistics(h: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over frames, both [B, C].

    weights: [B, C or 1, F] of sum 1; None is even ones. The deviation is taken around the mean: the root would
    blow up the rounding errors of E[h^2] - E[h]^2.
    """
    if weights is None:
        mean = h.mean(2, keepdim=True)
        var = (h - mean).square().mean(2)
    else:
        mean = (h * weights).sum(2, keepdim=True)
        var = ((h - mean).square() * weights).sum(2)
    return mean[:, :, 0], (var + 1e-5).sqrt()
