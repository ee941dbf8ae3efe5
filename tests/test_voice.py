"""Speech in clips. Oracles: where synthetic syllables were put; invariance to silence and to noise; means as plain loops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from multifsl.classifier import FewShotClassifier
from multifsl.encoders._speech import load_waveform
from multifsl.encoders._voice import ClippedSpeechWarning, cut, load_speech, speech_spans
from multifsl.encoders.audio import Audio
from multifsl.encoders.ecapa import Ecapa
from multifsl.encoders.ge2e import Ge2e
from multifsl.errors import BadItem
from multifsl.tasks.arabic_speech_commands import ArabicSpeechCommands
from multifsl.tasks.speech_commands import SpeechCommands
from multifsl.windows import LittleSpeechWarning, mean_of_windows, warn_of_little_speech
from tests.needs import needs_data
from tests.tiny_audio import saved

RATE = 16_000
SPOKEN = [(1.0, 1.4), (1.9, 2.6), (4.0, 4.5)]  # seconds


def talk(seconds: float = 6.0, spoken: Any = SPOKEN, noise: float = 1e-3) -> np.ndarray:
    """Buzzing syllables, 30 dB and more over steady noise; floats [n]."""
    t = np.arange(int(seconds * RATE)) / RATE
    buzz = sum(np.sin(2 * np.pi * 140 * k * t) / k for k in range(1, 20))
    on = np.any([(t >= a) & (t < b) for a, b in spoken], axis=0)
    return 0.1 * buzz * on + np.random.default_rng(0).normal(size=len(t)) * noise


def whole(wave: np.ndarray) -> np.ndarray:
    return load_waveform((wave, RATE))


def padded(wave: np.ndarray, seconds: float = 2.0) -> np.ndarray:
    return np.pad(wave, int(seconds * RATE))


def with_noise(wave: np.ndarray, decibels: float) -> np.ndarray:
    """White noise added, so far under the clip's mean power."""
    noise = np.random.default_rng(1).normal(size=len(wave)) * np.sqrt(np.square(wave).mean())
    return wave + noise * 10 ** (-decibels / 20)


@pytest.mark.parametrize("decibels", [60, 20, 10])
def test_speech_is_found_where_it_was_put(decibels: float) -> None:
    spans, _ = speech_spans(whole(with_noise(talk(), decibels)))
    found = [(a / RATE, b / RATE) for a, b in spans]
    assert np.abs(np.array(found) - np.array(SPOKEN)).max() < 0.05


def test_silences_are_cut_to_half_a_second() -> None:
    """A quarter of a second stays at both sides of what is said, so the pause of 0.5 s stays whole, that of 1.4 s does not."""
    wave, seconds = load_speech((talk(), RATE))
    assert seconds == pytest.approx(0.4 + 0.7 + 0.5, abs=0.15)
    assert len(wave) / RATE == pytest.approx((2.6 - 1.0 + 0.5) + (0.5 + 0.5), abs=0.15)


def test_digital_silence_around_changes_nothing() -> None:
    wave, seconds = load_speech((talk(), RATE))
    again, more = load_speech((padded(talk()), RATE))
    assert more == pytest.approx(seconds, abs=0.1) and np.array_equal(again, wave)
    short = talk(1.5, [(0.4, 0.9)])
    inside, _ = load_speech((padded(short), RATE))
    assert abs(len(inside) - len(short)) < 10 and np.array_equal(load_speech((short, RATE))[0], whole(short))


def steady(kind: str) -> np.ndarray:
    rng, t = np.random.default_rng(2), np.arange(2 * RATE) / RATE
    shaped = np.fft.rfft(rng.normal(size=len(t))) / np.sqrt(np.arange(len(t) // 2 + 1) + 1)
    return {
        "white noise": rng.normal(size=len(t)) * 0.05,
        "pink noise": np.fft.irfft(shaped) / 20,
        "a tone": np.sin(2 * np.pi * 440 * t) * 0.3,
        "a tone between silences": padded(np.sin(2 * np.pi * 440 * t) * 0.3),
        "noise between silences": padded(rng.normal(size=len(t)) * 0.05),
        "a click": rng.normal(size=len(t)) * 1e-3 + (np.abs(t - 1) < 0.01) * 0.5,
        "hum": np.sin(2 * np.pi * 50 * t) * 0.03 * (t > 1) + rng.normal(size=len(t)) * 1e-3,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["white noise", "pink noise", "a tone", "a tone between silences", "noise between silences", "a click", "hum"],
)
def test_what_holds_no_speech_is_told(kind: str) -> None:
    wave = steady(kind)
    with pytest.raises(BadItem, match=rf"no speech found in {len(wave) / RATE:.1f} s.* dB over .* Record it anew"):
        load_speech((wave, RATE))


@pytest.mark.parametrize("seconds", [0.1, 0.2])
def test_a_clip_too_short_to_tell_is_told_as_such(seconds: float) -> None:
    with pytest.raises(BadItem, match=rf"a clip of .*: too short: {seconds:.2f} s, in which no speech was found"):
        load_speech((talk(seconds, [(0.0, 1.0)]), RATE))


def test_silence_is_told_as_such() -> None:
    with pytest.raises(BadItem, match="silent"):
        load_speech((np.zeros(RATE), RATE))
    with pytest.raises(BadItem, match="no speech found"):  # of a few samples, which is less than one frame
        load_speech((np.pad([500, -500], RATE).astype(np.int16), RATE))


def test_a_clipped_recording_is_named(tmp_path: Path) -> None:
    for name, gain in (("good", 2.0), ("loud", 20.0)):
        soundfile.write(tmp_path / f"{name}.wav", np.clip(talk() * gain, -1, 1), RATE)
    load_speech(tmp_path / "good.wav")  # a warning would be an error here
    with pytest.warns(ClippedSpeechWarning, match=r"loud\.wav: clipped: \d+\.\d% of its samples"):
        load_speech(tmp_path / "loud.wav")


@pytest.mark.parametrize("length", [1, 39, 40, 41, 60, 100, 101])
def test_pieces_cover_a_clip(length: int) -> None:
    """Every sample is in one; all are as long as asked, no further apart than half of that."""
    pieces = cut(np.arange(length), 40)
    assert {int(i) for piece in pieces for i in piece} == set(range(length))
    assert len({len(piece) for piece in pieces}) == 1 and all(np.diff([piece[0] for piece in pieces]) <= 20)


def test_the_mean_of_windows_is_a_loop() -> None:
    z, counts = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), [2, 1, 3, 1]
    rows, start = [], 0
    for count in counts:
        part = z[start : start + count].numpy()
        length = np.linalg.norm(part, axis=1)
        mean = (part / length[:, None]).mean(0)
        rows.append(mean / np.linalg.norm(mean) * length.mean())
        start += count
    out = mean_of_windows(z, counts)
    torch.testing.assert_close(out, torch.tensor(np.array(rows)))
    assert torch.equal(out[[1, 3]], z[[2, 6]]) and mean_of_windows(z, [1] * 7) is z


def test_little_speech_is_told_by_class() -> None:
    with pytest.warns(LittleSpeechWarning, match=r"'ann' \(0\.9 s\); a voice") as said:
        warn_of_little_speech([0.4, 0.5, 0.6, 0.6, None], ["ann", "ann", "bo", "bo", "cy"])
    assert len(said) == 1 and said[0].filename == __file__
    with pytest.warns(LittleSpeechWarning, match="'c4' .* and 3 more"):
        warn_of_little_speech([0.5] * 8, [f"c{i}" for i in range(8)])
    warn_of_little_speech([0.5, 0.5], [3, 3])  # a second is enough


def test_ge2e_hears_the_speech_of_long_clips_and_short_clips_whole() -> None:
    encoder = Ge2e(published=False)
    long, short = (talk(), RATE), (talk(1.5, [(0.4, 0.9)]), RATE)
    pieces, seconds = encoder.windows(long)
    spoken, found = load_speech(long)
    assert seconds == found and len(pieces) == 1 and np.array_equal(pieces[0], spoken)
    assert np.array_equal(encoder.windows(short).pieces[0], encoder.load(short))
    assert encoder.embed(encoder.collate(pieces)).shape == (1, 256)


def test_a_speaker_network_gets_pieces_of_three_seconds() -> None:
    """A clip of nine seconds of syllables, as five pieces; a sound network, and one that is trained on anything, get it whole."""
    clip = (talk(9.0, [(k + 0.1, k + 0.8) for k in range(9)]), RATE)
    spoken, _ = load_speech(clip)
    speaker = Audio(str(saved("WavLMForXVector")))
    pieces = speaker.windows(clip).pieces
    assert len(pieces) == len(cut(spoken, 3 * RATE)) == 5 and {len(p) for p in pieces} == {3 * RATE}
    assert np.array_equal(pieces[0], spoken[: 3 * RATE]) and np.array_equal(pieces[-1], spoken[-3 * RATE :])
    for encoder in (Audio(str(saved("HubertModel"))), Ecapa(channels=8, dim=8)):
        tone = (steady("a tone"), RATE)
        (piece,), seconds = encoder.windows(tone)
        assert seconds is None and np.array_equal(piece, encoder.load(tone))


def test_a_classifier_hears_speech_alone() -> None:
    """Silence around changes no answer; an item's embedding is the mean of its windows'; little speech and none are told."""
    encoder = Audio(str(saved("WavLMForXVector")))
    clips = [(talk(9.0, [(k + 0.1, k + 0.8) for k in range(9)]), RATE), (talk(), RATE), (talk()[::-1], RATE)]
    model = FewShotClassifier(encoder).fit(clips, ["ann", "bo", "cy"])
    pieces = encoder.windows(clips[0]).pieces
    each = torch.nn.functional.normalize(encoder.embed(encoder.collate(pieces)), dim=1)
    assert isinstance(model.support_, torch.Tensor)
    ours = torch.nn.functional.normalize(model.support_[0], dim=0)
    torch.testing.assert_close(ours, torch.nn.functional.normalize(each.mean(0), dim=0))
    around = [(padded(wave), RATE) for wave, _ in clips]
    np.testing.assert_allclose(model.decision_function(around), model.decision_function(clips), atol=1e-4)
    with pytest.warns(LittleSpeechWarning, match="'dee'") as said:
        model.enroll("dee", [(talk(1.5, [(0.4, 0.9)]), RATE)])
    assert said[0].filename == __file__
    model.predict([(talk(1.5, [(0.4, 0.9)]), RATE)])  # a question may be short
    with pytest.raises(BadItem, match="no speech found"):
        model.predict([(steady("a tone"), RATE)])


@pytest.mark.filterwarnings("ignore::multifsl.encoders._voice.ClippedSpeechWarning")
@pytest.mark.parametrize(
    ("folder", "task"), [("speakers_arabic", ArabicSpeechCommands), ("speakers_speech_commands", SpeechCommands)]
)
def test_real_clips(folder: str, task: Any) -> None:
    """30 clips of a second: speech in nearly all, as much of it between silences, and most of it found under noise."""
    needs_data(folder)
    items = task().items("val").items
    waves = [load_waveform(items[i]) for i in range(0, len(items), max(1, len(items) // 30))]

    def seconds(wave: np.ndarray) -> float:
        try:
            return load_speech((wave, RATE))[1]
        except BadItem:
            return 0.0

    found = np.array([seconds(wave) for wave in waves])
    assert (found > 0).mean() > 0.95 and 0.4 < found.mean() < 0.8
    assert np.abs([seconds(padded(wave)) - s for wave, s in zip(waves, found, strict=True)]).max() <= 0.1
    for decibels, share in ((20, 0.7), (10, 0.5)):
        noisy = [seconds(with_noise(wave / 32768, decibels)) for wave in waves]
        assert share < np.mean(noisy) / found.mean() < 1.05
