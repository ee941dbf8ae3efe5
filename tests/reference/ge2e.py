"""Clips that both the tests of `ge2e` and `scripts/ge2e_reference.py` make, from their formulas alone."""

import numpy as np

SAMPLE_RATE = 16_000


def clips() -> dict[str, np.ndarray]:
    """Name -> float64 [n] in -1..1: harmonics of a gliding pitch with syllables, some noise, and a step in loudness."""
    made = {}
    for name, seconds, pitch, loudness in (
        ("short", 0.7, 210.0, 0.3),
        ("one window", 1.6, 120.0, 0.3),
        ("quiet", 2.2, 150.0, 0.004),
        ("long", 3.37, 95.0, 0.5),
        ("last window left out", 2.75, 180.0, 0.2),
    ):
        t = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.9 * t))) / SAMPLE_RATE
        voice = sum(np.sin(k * phase) / k for k in range(1, 12))
        syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * t)
        noise = np.sin(1e4 * np.sin(12345.678 * np.arange(len(t))))  # no generator whose stream may change
        made[name] = loudness * (voice * syllables + 0.05 * noise) / 3
    return made
