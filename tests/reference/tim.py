"""Boudiaf et al. 2020: transductive information maximisation, one number at a time."""

import numpy as np

# 150 rounds of adm, as in the paper, can hinge on the last digit where an untrained encoder hardly tells its items apart.
VARIANTS = ["tim(steps=40)", "tim(solver='gd', steps=40, lr=0.01)"]


def unit(x: np.ndarray) -> np.ndarray:
    return np.stack([v / np.linalg.norm(v) for v in x])


def posteriors(z: np.ndarray, w: np.ndarray, scale: float) -> np.ndarray:
    """p(k | z) [B, N]; w may be complex."""
    out = np.zeros((len(z), len(w)), dtype=w.dtype)
    for i, v in enumerate(z):
        exps = [np.exp(-scale / 2 * ((v - c) ** 2).sum()) for c in w]
        out[i] = np.array(exps) / sum(exps)
    return out


def objective(
    w: np.ndarray, zs: np.ndarray, y: np.ndarray, zq: np.ndarray, scale: float, weight: float, alpha: float
) -> complex:
    """lambda CE - H(Y) + alpha H(Y | X)."""
    ps, pq = posteriors(zs, w, scale), posteriors(zq, w, scale)
    ce = -sum(np.log(ps[i, k]) for i, k in enumerate(y)) / len(zs)
    marginal = sum(pq) / len(zq)
    h_y = -sum(m * np.log(m) for m in marginal) if len(zq) >= len(w) else 0.0  # a departure
    h_y_x = -sum(p * np.log(p) for row in pq for p in row) / len(zq)
    return complex(weight * ce - h_y + alpha * h_y_x)


def gradient(w: np.ndarray, *task: object) -> np.ndarray:
    """By steps into the complex plane: exact, with no derivative written out."""
    out = np.zeros_like(w)
    for place in np.ndindex(w.shape):
        moved = w.astype(complex)
        moved[place] += 1e-30j
        out[place] = objective(moved, *task).imag / 1e-30  # type: ignore[arg-type]
    return out


def prototypes(zs: np.ndarray, y: np.ndarray, n_classes: int) -> np.ndarray:
    return np.stack([np.mean([z for z, k in zip(zs, y, strict=True) if k == n], axis=0) for n in range(n_classes)])


def gd(
    zs: np.ndarray,
    y: np.ndarray,
    zq: np.ndarray,
    w: np.ndarray,
    steps: int,
    lr: float,
    scale: float,
    weight: float,
    alpha: float,
) -> np.ndarray:
    """Adam."""
    first, second = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        g = gradient(w, zs, y, zq, scale, weight, alpha)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        w = w - lr * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return w


def adm(
    zs: np.ndarray, y: np.ndarray, zq: np.ndarray, w: np.ndarray, steps: int, scale: float, weight: float, alpha: float
) -> np.ndarray:
    """Proposition 1, q and w in turn."""
    for _ in range(steps):
        ps, pq = posteriors(zs, w, scale), posteriors(zq, w, scale)
        q = np.zeros_like(pq)
        for k in range(len(w)):
            total = sum(pq[i, k] ** (1 + alpha) for i in range(len(zq))) if len(zq) >= len(w) else 1.0  # as there
            for i in range(len(zq)):
                q[i, k] = pq[i, k] ** (1 + alpha) / total**0.5
        q = q / q.sum(1, keepdims=True)
        c, new = weight / (1 + alpha), np.zeros_like(w)
        for k in range(len(w)):
            label = [1.0 if n == k else 0.0 for n in y]
            above = c * sum(label[i] * zs[i] + ps[i, k] * (w[k] - zs[i]) for i in range(len(zs))) / len(zs)
            above = above + sum(q[i, k] * zq[i] + pq[i, k] * (w[k] - zq[i]) for i in range(len(zq))) / len(zq)
            below = c * sum(label) / len(zs) + sum(q[i, k] for i in range(len(zq))) / len(zq)
            new[k] = above / below
        w = new
    return w


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    solver: str = "adm",
    steps: int = 150,
    lr: float = 1e-4,
    scale: float = 15.0,
    weight: float = 0.1,
    alpha: float = 0.1,
) -> np.ndarray:
    """-tau / 2 ||z - w||^2 [Q, N]."""
    zs, zq = unit(support), unit(queries)
    w = prototypes(zs, y, n_classes)
    weights = (scale, weight, alpha)
    w = gd(zs, y, zq, w, steps, lr, *weights) if solver == "gd" else adm(zs, y, zq, w, steps, *weights)
    return np.array([[-scale / 2 * float(((z - c) ** 2).sum()) for c in w] for z in zq])
