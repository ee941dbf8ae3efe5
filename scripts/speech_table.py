"""How well speakers are told with their clips taken whole and by `Encoder.windows`: the table of docs/recognition.md.

    MULTIFSL_DATA=... python scripts/speech_table.py [ENCODER ...]    # ge2e and model:speakers-prototypical; minutes each

The equal error rate is over all pairs of clips, by cosine; the accuracy, with half its 95 % interval, over 1,000 episodes of 5
speakers with 3 queries each, by cosine to the mean of the directions. Arabic Speech Commands: 12 clips of each of 30 speakers;
every second one, where 2 s are put before and behind; four of a speaker joined. LibriSpeech: the halves of utterances from 6 s.
"""

import sys
from collections.abc import Iterator

import numpy as np
import torch.nn.functional as F
from sklearn.metrics import roc_curve

from multifsl.defaults import open_encoder
from multifsl.encoder import Encoder
from multifsl.encoders._speech import SAMPLE_RATE, load_waveform
from multifsl.registry import build
from multifsl.tasks._folders import clips
from multifsl.windows import Windows, mean_of_windows

Clips = tuple[list[np.ndarray], np.ndarray]  # int16 [n] at 16 kHz, and whose they are


def arabic(each: int = 12) -> Clips:
    items, rng = build("tasks", "arabic_speech_commands").items("all"), np.random.default_rng(0)
    rows = sorted(
        int(i) for c in range(len(items.class_names)) for i in rng.permutation(np.flatnonzero(items.labels == c))[:each]
    )
    return [load_waveform(items.items[i]) for i in rows], items.labels[rows]


def halves(shortest: float = 6.0) -> Clips:
    waves, labels = [], []
    for label, (_, files) in enumerate(
        sorted(clips(build("tasks", "librispeech").folder("speakers_librispeech")).items())
    ):
        for wave in map(load_waveform, files):
            if len(wave) >= shortest * SAMPLE_RATE:
                waves += [wave[: len(wave) // 2], wave[len(wave) // 2 :]]
                labels += [label, label]
    return waves, np.array(labels)


def joined(waves: list[np.ndarray], labels: np.ndarray, many: int = 4) -> Clips:
    rng, out, whose = np.random.default_rng(0), [], []
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == c))
        for start in range(0, len(rows) - many + 1, many):
            out.append(np.concatenate([waves[i] for i in rows[start : start + many]]))
            whose.append(c)
    return out, np.array(whose)


def between(waves: list[np.ndarray], noise: float, seconds: float = 2.0) -> list[np.ndarray]:
    """Clips between silences: white noise of that deviation, of 32,768."""
    rng, n = np.random.default_rng(0), int(seconds * SAMPLE_RATE)

    def silence() -> np.ndarray:
        return np.rint(rng.normal(size=n) * noise).astype(np.int16)

    return [np.concatenate([silence(), wave, silence()]) for wave in waves]


def embeddings(encoder: Encoder, waves: list[np.ndarray], by_windows: bool) -> np.ndarray:
    """Directions [n, D]. A clip in which no speech is found would be an error; there is none here."""
    items = [(wave, SAMPLE_RATE) for wave in waves]
    found = [encoder.windows(item) if by_windows else Windows([encoder.load(item)]) for item in items]
    z = encoder.embed(encoder.collate([piece for windows in found for piece in windows.pieces]))
    return F.normalize(mean_of_windows(z, [len(windows.pieces) for windows in found]), dim=1).numpy()


def equal_error(z: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    i, j = np.triu_indices(len(labels), 1)
    accepted, found, _ = roc_curve(labels[i] == labels[j], (z @ z.T)[i, j])
    at = np.abs(accepted - (1 - found)).argmin()
    return 50 * float(accepted[at] + 1 - found[at])


def accuracy(z: np.ndarray, labels: np.ndarray, shot: int, way: int = 5, query: int = 3) -> str:
    rng, results = np.random.default_rng(1), []
    rows = {c: np.flatnonzero(labels == c) for c in np.unique(labels) if (labels == c).sum() > shot}
    for _ in range(1000):
        means, queries, truth = [], [], []
        for place, c in enumerate(rng.choice(list(rows), way, replace=False)):
            chosen = rng.permutation(rows[c])[: shot + query]
            mean = z[chosen[:shot]].mean(0)
            means.append(mean / np.linalg.norm(mean))
            queries.append(z[chosen[shot:]])
            truth += [place] * (len(chosen) - shot)
        results.append(((np.concatenate(queries) @ np.stack(means).T).argmax(1) == np.array(truth)).mean())
    return f"{100 * np.mean(results):.2f} ± {196 * np.std(results) / len(results) ** 0.5:.2f}"


def cases() -> Iterator[tuple[str, Clips, tuple[int, ...]]]:
    """What the clips are, the clips, and at which shots."""
    waves, labels = arabic()
    some, whose = waves[::2], labels[::2]
    yield "clips of 1 s", (waves, labels), (1, 5)
    yield "every second one", (some, whose), (1, 5)
    yield "  between 2 s of zeros", (between(some, 0), whose), (1, 5)
    yield "  between 2 s of noise, -70 dB", (between(some, 10), whose), (1, 5)
    yield "four clips joined", joined(waves, labels), (1,)
    yield "LibriSpeech, 3 to 4.5 s", halves(), (1,)


def main() -> None:
    for spec in sys.argv[1:] or ["ge2e", "model:speakers-prototypical"]:
        encoder = open_encoder(spec)
        print(f"\n{spec}")
        for name, (waves, labels), shots in cases():
            for by_windows in (False, True):
                z = embeddings(encoder, waves, by_windows)
                found = ", ".join(f"{shot}-shot {accuracy(z, labels, shot)}" for shot in shots)
                print(
                    f"{name:32} {'windows' if by_windows else 'whole':8} EER {equal_error(z, labels):5.2f}  {found}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
