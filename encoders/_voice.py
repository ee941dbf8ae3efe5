"""Where a clip holds speech, and what of it a speaker's embedding is made of.

Speech is found by energy: a frame of 25 ms, one every 10 ms, is speech where its power between 200 and 4000 Hz stands 7 dB over the
clip's own noise and no more than 35 dB under its loudest tenth of a second. Gaps up to 0.1 s are bridged; what is shorter than
0.07 s is a click. What is loud and changes, but is no speech, such as music, is not told apart.

Half a second of what was between stays where a pause was longer, a quarter at the ends: cut closer, recognition was worse. For the
same reason a clip up to 1.6 s is not cut at all (docs/recognition.md has the figures).

Shape letters: F frames, n samples.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multifsl.archive import Member
from multifsl.encoders._speech import HOP, N_FFT, SAMPLE_RATE, WINDOW, load_waveform
from multifsl.errors import BadItem

LOW, HIGH = 200, 4000  # Hz: above hum, and below where white noise has most of its power and voices little
ABOVE, RANGE = 7.0, 35.0  # dB
AUDIBLE = 60.0  # dB under the loudest; frames below are digital silence, and tell nothing of the noise
QUIETEST = 0.1  # of the audible frames are taken for noise
GAP, LEAST = 10, 6  # frames
AROUND = 4_000  # samples kept before and after speech
WHOLE = 25_600  # samples; no longer clip is cut
SHORT = 4_000  # samples; in fewer, the loudest tenth of a second has hardly anything to stand over
DITHER = 3  # of 32,768; a beginning and an end that are no louder are digital silence
FULL, CLIPPED = 32_700, 0.005  # of 32,768, and the share of samples from there on


class ClippedSpeechWarning(UserWarning):
    """A recording was too loud for its microphone or its file."""


def load_speech(item: Any) -> tuple[np.ndarray, float]:
    """A clip without its long silences, int16 [n] at 16 kHz, and how many seconds of speech are in it.

    Raises BadItem where `load_waveform` does, and where no speech is found. Warns of a clipped recording.

    >>> noise, tone = np.random.default_rng(0).normal(size=80000) / 1000, np.sin(np.arange(80000) / 5) / 10
    >>> wave, seconds = load_speech((noise + tone * (np.arange(80000) // 16000 == 2), 16000))
    >>> round(len(wave) / 16000, 1), round(seconds, 1)
    (1.5, 1.0)
    """
    wave = load_waveform(item)
    name = str(item) if isinstance(item, str | Path | Member) else f"a clip of {len(wave) / SAMPLE_RATE:.1f} s"
    full = float((np.abs(wave.astype(np.int32)) >= FULL).mean())
    if full > CLIPPED:
        warnings.warn(
            ClippedSpeechWarning(
                f"{name}: clipped: {full:.1%} of its samples are at full scale, and what was louder is lost; "
                "record it anew with less gain"
            ),
            stacklevel=3,
        )
    inner = without_silent_ends(wave)
    spans, contrast = speech_spans(inner)
    if not spans and len(wave) < SHORT:
        raise BadItem(
            f"{name}: too short: {len(wave) / SAMPLE_RATE:.2f} s, in which no speech was found; give a second or more of it"
        )
    if not spans:
        raise BadItem(
            f"{name}: no speech found in {len(wave) / SAMPLE_RATE:.1f} s: the loudest tenth of a second stands {contrast:.0f} dB "
            f"over the quiet parts; speech stands {ABOVE:g} dB or more over them, for at least 0.07 s at a time. Is it silence, "
            "steady noise, a tone? Record it anew, nearer to the microphone"
        )
    seconds = sum(b - a for a, b in spans) / SAMPLE_RATE
    if len(wave) <= WHOLE:
        return wave, seconds
    if len(inner) > WHOLE:
        around = joined([(max(0, a - AROUND), min(len(inner), b + AROUND)) for a, b in spans], 0)
        inner = np.concatenate([inner[a:b] for a, b in around])
    return inner, seconds


def cut(wave: np.ndarray, length: int) -> list[np.ndarray]:
    """A clip [n] as pieces of `length` samples, each half over the one before, the last one up to the end; a shorter one whole.

    >>> [len(piece) for piece in cut(np.zeros(100), 40)], len(cut(np.zeros(30), 40))
    ([40, 40, 40, 40], 1)
    """
    if len(wave) <= length:
        return [wave]
    starts = [*range(0, len(wave) - length, length // 2), len(wave) - length]
    return [wave[start : start + length] for start in starts]


def without_silent_ends(wave: np.ndarray) -> np.ndarray:
    """int16 [n] from the first sample to the last that is more than the rounding to 16 bits.

    >>> without_silent_ends(np.array([0, 1, -900, 0, 900, -1], dtype=np.int16)).tolist()
    [-900, 0, 900]
    """
    loud = np.flatnonzero(np.abs(wave.astype(np.int32)) > DITHER)
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]


def speech_spans(wave: np.ndarray) -> tuple[list[tuple[int, int]], float]:
    """The samples from and to which int16 [n] at 16 kHz holds speech; and by how many dB its loudest parts stand over its noise.

    >>> speech_spans((np.sin(np.arange(16000) / 5) * 3000).astype(np.int16))[0]
    []
    """
    if len(wave) < WINDOW:
        return [], 0.0
    frames = torch.from_numpy(wave).float().unfold(0, WINDOW, HOP) * torch.hann_window(WINDOW)  # [F, 400]
    bins = torch.fft.rfft(frames, N_FFT)[:, LOW * N_FFT // SAMPLE_RATE : HIGH * N_FFT // SAMPLE_RATE]
    level = 10 * torch.view_as_real(bins).square().sum((1, 2)).clamp(min=1e-3).log10()  # [F], dB
    loudest = float(level.topk(min(GAP, len(level))).values[-1])
    noise = float(level[level >= loudest - AUDIBLE].quantile(QUIETEST))
    if loudest < noise + ABOVE:
        return [], loudest - noise
    speech = (level > max(noise + ABOVE, loudest - RANGE)).numpy()
    edges = np.flatnonzero(np.diff(speech.astype(np.int8), prepend=0, append=0)).tolist()
    runs = joined(list(zip(edges[::2], edges[1::2], strict=True)), GAP)
    return [(a * HOP, (b - 1) * HOP + WINDOW) for a, b in runs if b - a >= LEAST], loudest - noise


def joined(spans: list[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Spans in order, those no further apart than `gap` as one.

    >>> joined([(0, 2), (3, 5), (9, 10)], 1)
    [(0, 5), (9, 10)]
    """
    out: list[tuple[int, int]] = []
    for a, b in spans:
        if out and a - out[-1][1] <= gap:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out
