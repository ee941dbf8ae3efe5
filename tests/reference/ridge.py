"""Bertinetto et al. 2019, section 3.2, one number at a time: the normal equations, by Gaussian elimination."""

import numpy as np

VARIANTS = ["ridge", "ridge(ridge=5.0, scale=3.0, learned=False)"]


def eliminate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x of a x = b, with row pivots."""
    n = len(a)
    rows = [[float(v) for v in a[i]] + [float(v) for v in b[i]] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [u - factor * v for u, v in zip(rows[r], rows[i], strict=True)]
    return np.array([[v / rows[i][i] for v in rows[i][n:]] for i in range(n)])


def weights(x: np.ndarray, y: np.ndarray, n_classes: int, ridge: float) -> np.ndarray:
    """(X^T X + ridge I)^-1 X^T Y, [D, N]."""
    dim = x.shape[1]
    gram, target = np.zeros((dim, dim)), np.zeros((dim, n_classes))
    for xi, label in zip(x, y, strict=True):
        for d in range(dim):
            target[d, label] += xi[d]
            for e in range(dim):
                gram[d, e] += xi[d] * xi[e]
    for d in range(dim):
        gram[d, d] += ridge
    return eliminate(gram, target)


def logits(
    x: np.ndarray, y: np.ndarray, queries: np.ndarray, n_classes: int, ridge: float = 1.0, scale: float = 10.0
) -> np.ndarray:
    """scale * X' W, [Q, N]."""
    w = weights(x, y, n_classes, ridge)
    out = np.zeros((len(queries), n_classes))
    for i, q in enumerate(queries):
        for k in range(n_classes):
            out[i, k] = scale * sum(q[d] * w[d, k] for d in range(len(q)))
    return out
