"""Dhillon et al. 2020, section 3.2, on a network of one hidden layer; Adam of Kingma and Ba 2015, Algorithm 1.

    z = tanh(W x + b),  u = z / |z|,  logits = V u + c   ("linear": V z + c)

Gradients are written out by hand.
"""

import math

import numpy as np

VARIANTS = ["finetune(steps=3, lr=1e-3)", "finetune(trainable='last', head='linear', early_stop=True, steps=2)"]

Weights = dict[str, np.ndarray]  # W [H, D], b [H], V [N, H], c [N]


def hidden(w: Weights, item: np.ndarray) -> np.ndarray:
    return np.tanh(w["W"] @ item + w["b"])


def features(w: Weights, item: np.ndarray, head: str) -> np.ndarray:
    z = hidden(w, item)
    return z / math.sqrt(z @ z) if head == "cosine" else z


def logits(w: Weights, x: np.ndarray, head: str = "cosine") -> np.ndarray:
    """[B, N]."""
    return np.stack([w["V"] @ features(w, item, head) + w["c"] for item in x])


def loss(w: Weights, x: np.ndarray, y: np.ndarray, head: str = "cosine") -> float:
    """Mean of -log p(y | x)."""
    total = 0.0
    for row, label in zip(logits(w, x, head), y, strict=True):
        total -= row[label] - (row.max() + math.log(sum(math.exp(v - row.max()) for v in row)))
    return total / len(y)


def gradient(w: Weights, x: np.ndarray, y: np.ndarray, head: str = "cosine") -> Weights:
    found = {k: np.zeros_like(v) for k, v in w.items()}
    for item, label in zip(x, y, strict=True):
        z, u = hidden(w, item), features(w, item, head)
        scores = w["V"] @ u + w["c"]
        p = np.exp(scores - scores.max())
        p /= p.sum()
        p[label] -= 1
        back = w["V"].T @ p
        if head == "cosine":  # d u / d z = (I - u u^T) / |z|
            back = (back - u * (u @ back)) / math.sqrt(z @ z)
        inside = back * (1 - z**2)
        found["V"] += np.outer(p, u) / len(y)
        found["c"] += p / len(y)
        found["W"] += np.outer(inside, item) / len(y)
        found["b"] += inside / len(y)
    return found


def start(w: Weights, x: np.ndarray, y: np.ndarray, n_classes: int, head: str = "cosine") -> Weights:
    """The encoder's W and b under a new head."""
    rows = np.zeros((n_classes, len(w["b"])))
    for k in range(n_classes if head == "cosine" else 0):
        for item, label in zip(x, y, strict=True):
            if label == k:
                rows[k] += features(w, item, head)
        rows[k] /= math.sqrt(rows[k] @ rows[k]) * 0.1
    return {"W": w["W"], "b": w["b"], "V": rows, "c": np.zeros(n_classes)}


def descend(
    w: Weights, x: np.ndarray, y: np.ndarray, steps: int, rates: dict[str, float], head: str = "cosine"
) -> list[Weights]:
    """The weights after 0, 1, ... steps of Adam; a weight without a rate stays."""
    path = [w]
    m = {k: np.zeros_like(v) for k, v in w.items()}
    v = {k: np.zeros_like(u) for k, u in w.items()}
    for t in range(1, steps + 1):
        g = gradient(path[-1], x, y, head)
        after = dict(path[-1])
        for k, rate in rates.items():
            m[k] = 0.9 * m[k] + 0.1 * g[k]
            v[k] = 0.999 * v[k] + 0.001 * g[k] ** 2
            after[k] = after[k] - rate * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
        path.append(after)
    return path


def folds(w: Weights, x: np.ndarray, y: np.ndarray) -> list[list[int]]:
    """Which items are left out together: the first of each class, the second, ..., by sum over d of cos(d) z_d."""
    key = [sum(math.cos(d) * z for d, z in enumerate(hidden(w, item))) for item in x]
    most = min(5, max(list(y).count(k) for k in y))
    out: list[list[int]] = [[] for _ in range(most)]
    for k in sorted(set(y)):
        own = sorted((i for i in range(len(y)) if y[i] == k), key=lambda i: key[i])
        for place, i in enumerate(own):
            if len(own) > 1:
                out[place % most].append(i)
    return out


def best_stop(
    w: Weights,
    x: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    steps: int,
    rates: dict[str, float],
    head: str = "cosine",
) -> int:
    """The number of steps with the least loss on what was left out."""
    total = np.zeros(steps + 1)
    left_out_at_all = 0
    for out in folds(w, x, y):
        kept = [i for i in range(len(y)) if i not in out]
        if not out:
            continue
        left_out_at_all += len(out)
        path = descend(start(w, x[kept], y[kept], n_classes, head), x[kept], y[kept], steps, rates, head)
        total += [len(out) * loss(at, x[out], y[out], head) for at in path]
    return int(total.argmin()) if left_out_at_all else steps
