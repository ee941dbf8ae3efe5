"""The dual of Crammer and Singer 2001 as Lee et al. 2019 write it, by its authors' way: one item's weights at a time, exactly."""

import numpy as np

VARIANTS = ["svm_head", "svm_head(c=10.0, smoothing=0.01, scale=3.0, iterations=25)"]


def simplex(v: np.ndarray, total: float) -> np.ndarray:
    """The nearest point to v with entries of 0 and more that add up to `total`."""
    best = v
    ordered = sorted(v, reverse=True)
    for count in range(1, len(v) + 1):
        shift = (sum(ordered[:count]) - total) / count
        if ordered[count - 1] - shift > 0:
            best = np.array([max(a - shift, 0.0) for a in v])
    return best


def dual(x: np.ndarray, y: np.ndarray, n_classes: int, c: float = 0.1, smoothing: float = 1.0) -> np.ndarray:
    """a [S, N]. For one item, with the others held, the cost is size / 2 * ||a_i - aim||^2, over a simplex in c e_(y_i) - a_i."""
    a = np.zeros((len(x), n_classes))
    w = np.zeros((n_classes, x.shape[1]))
    for _ in range(200_000):
        moved = 0.0
        for i, (xi, label) in enumerate(zip(x, y, strict=True)):
            size = float(xi @ xi) + smoothing
            corner, wanted = np.zeros(n_classes), np.zeros(n_classes)
            corner[label], wanted[label] = c, 1.0
            aim = a[i] + (wanted - w @ xi - smoothing * a[i]) / size
            new = corner - simplex(corner - aim, c)
            w += np.outer(new - a[i], xi)
            moved = max(moved, abs(new - a[i]).max())
            a[i] = new
        if moved < 1e-15 * c:
            break
    return a


def logits(
    x: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    c: float = 0.1,
    smoothing: float = 1.0,
    scale: float = 1.0,
) -> np.ndarray:
    """scale * sum over i of a_ik x_i . q, [Q, N]."""
    a = dual(x, y, n_classes, c, smoothing)
    out = np.zeros((len(queries), n_classes))
    for j, q in enumerate(queries):
        for k in range(n_classes):
            out[j, k] = scale * sum(a[i, k] * float(x[i] @ q) for i in range(len(x)))
    return out
