"""Speakers' embeddings of clips, from the samples to the vectors, by the speaker encoder of Resemblyzer and its published weights.

Ours: what a classifier does, `windows` for each clip, which cuts silences out, and `embed_windows` for all of them. The original
package: its own loop, `preprocess_wav` and `VoiceEncoder.embed_utterance` for each clip.

Two things are not the same on both sides. Each has a voice detection of its own, so the embeddings are close, not equal; on the
same samples, which is compared too, they are. And a clip below 1.6 s is repeated by ours, and filled up with zeros by the package.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Case, Same, Setting, discarding
from multifsl.bank import embed_windows
from multifsl.encoders._speech import SAMPLE_RATE, load_waveform
from multifsl.encoders.ge2e import FRAMES, N_MELS, Ge2e, repeated, window_counts
from multifsl.registry import build

TITLE = "Speaker embedding, ge2e"

Embed = Callable[[], Tensor]  # [B, D]
Clip = tuple[np.ndarray, int]  # int16 [n], 16,000 Hz


def cases(setting: Setting) -> Iterator[Case]:
    note = "nearly all of ours is the network's own matrix products, about as fast as the machine does them"
    yield case(setting, "LibriSpeech, clips of 3 s", "librispeech(chunk_seconds=3.0)", 64, 0.1, note)
    note = "ours repeats so short a clip and averages two windows, the peer fills up one with zeros"
    yield case(setting, "Arabic Speech Commands, clips of 1 s", "arabic_speech_commands", 128, 0.15, note)


def case(setting: Setting, name: str, task: str, count: int, within: float, note: str) -> Case:
    count = setting.pick(count, 2)

    def same() -> list[Same]:
        near = cosine(ours(setting, task, count)(), package_loop(setting, task, count)())
        return [
            Same(
                "lowest cosine, the same samples",
                lowest_on_same_samples(setting.device, clips(task, count)[:8]),
                1.0,
                1e-4,
            ),
            Same("mean cosine, each with its own voice detection", float(near.mean()), 1.0, within),
        ]

    return Case(
        name,
        lambda: discarding(ours(setting, task, count)),
        {"resemblyzer": lambda: discarding(package_loop(setting, task, count))},
        5.0,
        same,
        flops=lambda: flops(setting, task, count),
        inner=count,
        unit="clip",
        note=note,
    )


@cache
def clips(task: str, count: int) -> list[Clip]:
    """Clips from all over the test split."""
    items = build("tasks", task).items("test").items
    rows = np.linspace(0, len(items) - 1, count).round().astype(int).tolist()
    return [(load_waveform(items[row]), SAMPLE_RATE) for row in rows]


@cache
def encoder(device: str) -> Ge2e:
    return Ge2e().to(device)


def ours(setting: Setting, task: str, count: int) -> Embed:
    ge2e, given = encoder(setting.device), clips(task, count)
    return lambda: embed_windows(ge2e, [ge2e.windows(clip) for clip in given])


def package_loop(setting: Setting, task: str, count: int) -> Embed:
    voice, preprocess = package(setting.device)
    given = [wave.astype(np.float32) / 32768 for wave, _ in clips(task, count)]  # as librosa reads them
    return lambda: stacked([voice.embed_utterance(preprocess(wave, SAMPLE_RATE)) for wave in given])


@cache
def package(device: str) -> tuple[Any, Any]:
    """The original package's encoder, and what prepares a clip for it."""
    import librosa  # noqa: F401 (it and webrtcvad are what resemblyzer imports)
    import webrtcvad  # noqa: F401

    with warnings.catch_warnings(action="ignore"):  # of what it imports from scipy
        from resemblyzer import VoiceEncoder, preprocess_wav

    return VoiceEncoder(device, verbose=False), preprocess_wav


def lowest_on_same_samples(device: str, few: list[Clip]) -> float:
    """The lowest cosine where neither side cuts silences out, and both repeat a short clip."""
    from resemblyzer.audio import audio_norm_target_dBFS, normalize_volume

    voice, ge2e, theirs = package(device)[0], encoder(device), []
    for wave, _ in few:
        samples = repeated(wave).astype(np.float32) / 32768
        theirs.append(voice.embed_utterance(normalize_volume(samples, audio_norm_target_dBFS, increase_only=True)))
    return float(cosine(ge2e.embed(ge2e.preprocess(few)), stacked(theirs)).min())


def stacked(each: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(each))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.cpu(), b.cpu())


def flops(setting: Setting, task: str, count: int) -> float:
    """Of the three LSTM layers, whose operations torch does not count; the rest is little."""
    ge2e = encoder(setting.device)
    length = torch.tensor([len(ge2e.windows(clip).pieces[0]) for clip in clips(task, count)])
    width = ge2e.lstm.hidden_size
    each = 2 * 4 * width * (N_MELS + width + 2 * (width + width))  # of a frame
    return float(window_counts(length).sum()) * FRAMES * each
