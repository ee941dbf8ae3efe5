"""How cost grows with ways, shots, classes and the length of a clip."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import multifsl
from benchmarks.harness import Curve, Setting, best, taken
from multifsl import FewShotClassifier
from multifsl.bank import Bank
from multifsl.encoder import Features
from multifsl.evaluation import episode_accuracies
from multifsl.registry import build
from multifsl.task import Items

TITLE = "How cost grows: ways, shots, classes, clips"
WIDTH = 64  # of the embeddings
ASKED = 64  # queries of a `predict`
RATE = 16_000  # Hz
VOICE = Path(multifsl.__file__).parent / "demo_data" / "voices" / "synthetic_01"


def curves(setting: Setting) -> Sequence[Curve]:
    ways = setting.pick((5, 10, 20, 50, 100, 200, 500, 1000), (5, 10))
    shots = setting.pick((1, 10, 100, 1000, 10_000), (1, 10))
    classes = setting.pick((100, 1000, 10_000, 100_000, 1_000_000), (100, 200))
    clips = setting.pick((1, 3, 10, 30, 100, 300), (1, 3))
    at = setting.device
    return [
        Curve("Evaluation, an episode", "ways", ways, partial(evaluation, at), 2, note=EPISODE),
        Curve("Fit and predict, by ways", "ways", ways, partial(fit_predict, at), 1, note=LEARNED),
        Curve("Fit and probabilities, by shots", "shots", shots, partial(probabilities, at), 1, note=SHOTS),
        Curve("Classes: fit", "classes", classes, partial(enrolled, at), 1, note="One example of each class."),
        Curve("Classes: one query", "classes", classes, partial(query, at), 1, note=QUERY),
        Curve("Classes: memory of fit", "classes", classes, partial(apart, memory_of_fit, setting), 1, "MiB"),
        Curve("Voice: embedding a clip", "seconds of speech", clips, partial(voice, at), 1, note=CLIP),
        Curve("Voice: memory", "seconds of speech", clips, partial(apart, memory_of_voice, setting), 1, "MiB"),
    ]


EPISODE = "Five queries a class; while they are few, drawing the episode takes the time, which grows as the ways."
LEARNED = f"Five examples of each class, {ASKED} queries, {WIDTH} numbers each."
SHOTS = f"Five classes; the first call of `predict_proba`, {ASKED} queries, which learns how sure to be."
QUERY = "A model that has answered before: a product of the query and all class means."
CLIP = "Read, speech found, and embedded by `ge2e`, as `fit` does it."


def drawn(classes: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [classes * each, WIDTH] around a centre for each class, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    centres = rng.standard_normal((classes, WIDTH), dtype=np.float32)
    return centres[labels] + 0.3 * rng.standard_normal((len(labels), WIDTH), dtype=np.float32), labels


# ---- the points: seconds or MiB at one size ----


def evaluation(device: str, ways: int) -> float:
    z, labels = drawn(ways, 6)
    bank = Bank(torch.from_numpy(z).to(device), Items(list(z), labels, [str(c) for c in range(ways)]))
    method = build("methods", "prototypical", encoder=Features(WIDTH)).to(device)
    episodes = max(4, 1600 // ways)
    return best(lambda: episode_accuracies(method, bank, way=ways, query=5, episodes=episodes), device) / episodes


def fit_predict(device: str, ways: int) -> float:
    X, y = drawn(ways, 5)
    return best(lambda: FewShotClassifier(device=device).fit(X, y).predict(X[:ASKED]), device)


def probabilities(device: str, shots: int) -> float:
    X, y = drawn(5, shots)
    return best(lambda: FewShotClassifier(device=device).fit(X, y).predict_proba(X[:ASKED]), device)


def enrolled(device: str, classes: int) -> float:
    X, y = drawn(classes, 1)
    return best(lambda: FewShotClassifier(device=device).fit(X, y), device, rounds=3)


def query(device: str, classes: int) -> float:
    X, y = drawn(classes, 1)
    model = FewShotClassifier(device=device).fit(X, y)
    return best(lambda: model.predict(X[-1:]), device)


def memory_of_fit(device: str, classes: int) -> float:
    X, y = drawn(classes, 1)
    model = FewShotClassifier(device=device).fit(
        X[:100], y[:100]
    )  # what is loaded for the first time is no cost of classes
    return taken(lambda: model.fit(X, y), device)


def voice(device: str, seconds: int) -> float:
    return best(spoken(device, seconds), device, rounds=3)


def memory_of_voice(device: str, seconds: int) -> float:
    spoken(device, 1)()
    return taken(spoken(device, seconds), device)


def spoken(device: str, seconds: int) -> Callable[[], object]:
    """What embeds a clip of so many seconds, as a classifier does: the clips of one voice that come with the package, in turn."""
    from multifsl.bank import embed_windows
    from multifsl.encoders._speech import load_waveform

    encoder = build("encoders", "ge2e").to(device)
    once = np.concatenate([load_waveform(path) for path in sorted(VOICE.glob("*.ogg"))])
    wave = np.resize(once, seconds * RATE)
    return lambda: embed_windows(encoder, [encoder.windows((wave, RATE))])


def apart(point: Callable[[str, int], float], setting: Setting, x: int) -> float:
    """A point that is measured in a process of its own, whose memory nothing else has filled."""
    if setting.quick:
        return point(setting.device, x)
    asked = f"from benchmarks.cases import growth; print(growth.{point.__name__}({setting.device!r}, {x}))"
    return float(subprocess.run([sys.executable, "-c", asked], check=True, stdout=subprocess.PIPE, text=True).stdout)
