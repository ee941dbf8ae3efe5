"""Raghu et al. 2020, section 4: MAML's sums with an inner loop on the head alone, on the network of the page of MAML.

The meta-gradient is that of the complex step, entry by entry: the imaginary part of L(theta + i h e) / h, L the whole
of inner loop and query loss.
"""

import numpy as np

from tests.reference import maml

VARIANTS = ["anil", "anil(first_order=True, learn_lr='step', steps=2)"]


def adapted(
    w: maml.Weights, x: np.ndarray, y: np.ndarray, lr: float, steps: int, moving: tuple[str, ...] = ("V", "c")
) -> maml.Weights:
    """The weights after the inner loop, of which only some move."""
    for _ in range(steps):
        g = maml.gradient(w, x, y)
        w = w | {k: w[k] - lr * g[k] for k in moving}
    return w


def query_loss(w: maml.Weights, x: np.ndarray, y: np.ndarray) -> np.number:
    """Mean of -log p(y | x), of real or complex weights."""
    rows = maml.logits(w, x)
    return np.mean(np.stack([np.log(np.exp(row).sum()) - row[label] for row, label in zip(rows, y, strict=True)]))


def meta_gradient(
    w: maml.Weights,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    lr: float,
    steps: int,
) -> tuple[float, maml.Weights]:
    found = {k: np.zeros_like(v) for k, v in w.items()}
    for k in w:
        for at in np.ndindex(w[k].shape):
            moved = {name: v.astype(complex) for name, v in w.items()}
            moved[k][at] += 1j * maml.TINY
            found[k][at] = query_loss(adapted(moved, *support, lr, steps), *query).imag / maml.TINY
    return float(query_loss(adapted(w, *support, lr, steps), *query)), found
