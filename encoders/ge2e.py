"""GE2E: a speaker encoder with published weights, the LSTM of Resemblyzer.

Wan, Wang, Papir, Lopez Moreno: Generalized End-to-End Loss for Speaker Verification. ICASSP 2018.
https://arxiv.org/abs/1710.10467. Weights and front-end: Resemblyzer 0.1.4 (https://github.com/resemble-ai/Resemblyzer, Apache-2.0),
trained on LibriSpeech-other, VoxCeleb1 and VoxCeleb2. They are read from the installed package, which is not imported:

    pip install --no-deps resemblyzer

Input: clips as files, or pairs (waveform, sample_rate); {"wave": int16 [B, L] at 16 kHz, "length": int64 [B]}. A clip below
1.6 s is repeated, whole, until it is longer, and quiet ones are raised to -30 dB of full scale.
Output: [B, 256], of length 1 and without negative numbers: the mean over windows of 1.6 s (160 frames, a new one every 77) of

    ReLU(linear(last state of three LSTM layers over the window's frames)), brought to length 1

with frames of 40 mel bands of power, no logarithm, 25 ms every 10 ms.

Departure: the package cuts long silences out with a voice activity detector of its own. Here a classifier does it, by `windows`.

Shape letters: B clips, L samples, F frames, M mel bands, P windows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.encoders._hub import package_folder
from multifsl.encoders._speech import SAMPLE_RATE, load_waveform, stack_waves
from multifsl.encoders._voice import load_speech
from multifsl.episode import Inputs
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.functional import without_autocast
from multifsl.windows import Windows

WINDOW, HOP, N_MELS = 400, 160, 40  # samples, samples, bands
FRAMES, STRIDE = 160, 77  # of a window, and to the next
COVERAGE = 0.75  # of the last window by the clip; with less it is left out, unless it is the only one
SAMPLES = FRAMES * HOP  # 1.6 s
LOUDNESS = -30.0  # dB of full scale


class Ge2e(Encoder):
    """Resemblyzer's speaker encoder.

    Args:
        published: begin with the published weights; without, they are random, and the package is not needed.

    Raises:
        DataNotFound: the package is not installed. BadFile: its weights are damaged.
    """

    modality = "speech"
    pretrained = True
    bands: Tensor
    window: Tensor

    def __init__(self, *, published: bool = True) -> None:
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.dim = 256
        self.lstm = nn.LSTM(N_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, self.dim)
        with torch.device("cpu"):  # torchaudio looks at the values, which "meta" tensors do not have
            bands = melscale_fbanks(WINDOW // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, "slaney", "slaney")
        self.register_buffer("bands", bands, persistent=False)  # [bins, M]
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.published = self.pretrained = published
        if published:
            weights, own = published_weights(), self.state_dict()
            if any(k not in weights or weights[k].shape != v.shape for k, v in own.items()):
                raise BadFile(
                    "the weights in the package resemblyzer are not those of its speaker encoder; install it anew"
                )
            self.load_state_dict({k: weights[k] for k in own})
            self.eval()

    def load(self, item: Any) -> np.ndarray:
        """A clip as int16 [n], repeated until it lasts 1.6 s or more."""
        return repeated(load_waveform(item))

    def windows(self, item: Any) -> Windows:
        """The clip's speech in one piece: it is cut into windows, and their mean taken, by the network itself."""
        wave, seconds = load_speech(item)
        return Windows([repeated(wave)], seconds)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return stack_waves(loaded)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, dict)
        wave, length = x["wave"], x["length"]
        if torch._C._functorch.is_batchedtensor(wave):
            raise MultifslError("ge2e cannot be vectorised over tasks by torch.vmap; take vectorize=False")
        # cuDNN's LSTM has no gradient in evaluation mode, and no second one at all.
        native = torch.backends.cudnn.flags(enabled=not torch.is_grad_enabled())
        with without_autocast(wave), native:
            frames = self._mel(louder(wave, length))  # [B, F, M]
            windows = frames.unfold(1, FRAMES, STRIDE).transpose(2, 3)  # [B, P, 160, M]
            b, p = windows.shape[:2]
            states = self.lstm(windows.reshape(b * p, FRAMES, N_MELS).to(self.linear.weight.dtype))[1][0][-1]
            each = F.normalize(F.relu(self.linear(states)), dim=1).view(b, p, -1)
            used = torch.arange(p, device=wave.device) < window_counts(length).unsqueeze(1)  # [B, P]
            return F.normalize((each * used.unsqueeze(2)).sum(1), dim=1)

    def _mel(self, wave: Tensor) -> Tensor:
        """Mel frames [B, F, M] of waves [B, L], whose first frame is centred on the first sample."""
        missing = max(0, SAMPLES - wave.shape[1])
        last = STRIDE * HOP  # as much as the last window may reach beyond the end
        pieces = F.pad(wave, (WINDOW // 2, WINDOW // 2 + missing + last)).unfold(1, WINDOW, HOP)  # [B, F, 400]
        power = torch.view_as_real(torch.fft.rfft(pieces * self.window.to(wave.dtype))).square().sum(-1)
        return power @ self.bands.to(wave.dtype)


def repeated(wave: np.ndarray) -> np.ndarray:
    """int16 [n], as often as makes 1.6 s or more."""
    return np.tile(wave, math.ceil(SAMPLES / len(wave)))


def louder(wave: Tensor, length: Tensor) -> Tensor:
    """Waves [B, L] as floats, each raised to -30 dB of full scale, root mean square over its `length`, where it is quieter."""
    wave = wave.float() / 32768 if not wave.is_floating_point() else wave
    wave = wave * (torch.arange(wave.shape[1], device=wave.device) < length.unsqueeze(1))
    rms = (wave.square().sum(1) / length.clamp(min=1)).sqrt().clamp(min=1e-8)
    return wave * (10 ** (LOUDNESS / 20) / rms).clamp(min=1).unsqueeze(1)


def window_counts(length: Tensor) -> Tensor:
    """How many windows a clip of `length` samples has.

    >>> window_counts(torch.tensor([8000, 25600, 40000, 48000]))
    tensor([1, 1, 2, 3])
    """
    frames = torch.div(length, HOP, rounding_mode="floor") + 1  # ceil((length + 1) / HOP)
    count = torch.div((frames - FRAMES + STRIDE).clamp(min=0), STRIDE, rounding_mode="floor") + 1
    covered = (length - (count - 1) * STRIDE * HOP) / SAMPLES
    return torch.where((covered < COVERAGE) & (count > 1), count - 1, count)


def published_weights() -> dict[str, Tensor]:
    """The state dict in the installed package; nothing of the package is run, and only tensors are read."""
    home = package_folder("resemblyzer")
    if home is None:
        raise DataNotFound(
            "ge2e takes its weights from a package that is not installed: pip install --no-deps resemblyzer"
        )
    file = home / "pretrained.pt"
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    except FileNotFoundError:
        raise BadFile(f"the package resemblyzer has no {file.name}; install it anew") from None
    except Exception as error:  # unpickling raises a dozen kinds
        raise BadFile(f"cannot read {file}: {error}") from error
    return dict(found)
