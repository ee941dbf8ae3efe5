"""Images that both the tests of `efficientnet_lite0` and `scripts/efficientnet_lite0_reference.py` make, from formulas."""

import numpy as np


def images() -> np.ndarray:
    """uint8 [2, 3, 224, 224]: stripes of several widths and directions, and a bright disc on a slope."""
    y, x = np.mgrid[0:224, 0:224] / 224
    stripes = [np.sin(2 * np.pi * f * (x * c + y * s)) for f, c, s in ((3, 1, 0), (9, 0.6, 0.8), (21, -0.8, 0.6))]
    disc = [(np.hypot(x - 0.4, y - 0.55) < 0.25) * weight + x * y - 0.5 for weight in (1.2, 0.7, 0.1)]
    return np.rint(np.clip(np.stack([stripes, disc]) * 100 + 128, 0, 255)).astype(np.uint8)
