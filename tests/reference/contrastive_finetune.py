"""Tunstall et al. 2022, section 3, on a network of one hidden layer, z = tanh(W x + b); gradients written out by hand."""

import math

import numpy as np

from tests.reference.finetune import Weights, hidden

VARIANTS = [
    "contrastive_finetune(steps=2)",
    "contrastive_finetune(trainable='last', head='prototypes', steps=3, pairs=4)",
]


def pair_loss(w: Weights, pairs: list[tuple[np.ndarray, np.ndarray, bool]]) -> float:
    """Mean of (cos - t)^2."""
    total = 0.0
    for a, b, same in pairs:
        p, q = hidden(w, a), hidden(w, b)
        total += (p @ q / math.sqrt((p @ p) * (q @ q)) - float(same)) ** 2
    return total / len(pairs)


def pair_gradient(w: Weights, pairs: list[tuple[np.ndarray, np.ndarray, bool]]) -> Weights:
    found = {"W": np.zeros_like(w["W"]), "b": np.zeros_like(w["b"])}
    for a, b, same in pairs:
        for item, other in ((a, b), (b, a)):  # the cosine by one end, then by the other
            p, q = hidden(w, item), hidden(w, other)
            cosine = p @ q / math.sqrt((p @ p) * (q @ q))
            by_p = q / math.sqrt((p @ p) * (q @ q)) - cosine * p / (p @ p)
            inside = 2 * (cosine - float(same)) * by_p * (1 - p**2) / len(pairs)
            found["W"] += np.outer(inside, item)
            found["b"] += inside
    return found


def draw(w: Weights, x: np.ndarray, y: np.ndarray, draws: np.ndarray) -> list[tuple[int, int]]:
    """Pairs by draws [2, P] in 0..1: the first half of one class; items counted in the order of sum over d of cos(d) z_d."""
    key = [sum(math.cos(d) * z for d, z in enumerate(hidden(w, item))) for item in x]
    order = sorted(range(len(y)), key=lambda i: key[i])
    out = []
    for k in range(draws.shape[1]):
        i = order[math.floor(draws[0, k] * len(y))]
        wanted = k < draws.shape[1] // 2
        fits = [j for j in order if (y[j] == y[i]) == wanted and j != i]
        out.append((i, fits[math.floor(draws[1, k] * len(fits))] if fits else i))
    return out


def tuned(w: Weights, x: np.ndarray, y: np.ndarray, draws: np.ndarray, lr: float) -> Weights:
    """The encoder after a step of Adam for each row of draws [K, 2, P], the rate falling to 0."""
    first = w = {"W": w["W"], "b": w["b"]}
    m = {k: np.zeros_like(v) for k, v in w.items()}
    v = {k: np.zeros_like(u) for k, u in w.items()}
    for t in range(1, len(draws) + 1):
        pairs = draw(first, x, y, draws[t - 1])
        g = pair_gradient(w, [(x[i], x[j], bool(y[i] == y[j])) for i, j in pairs])
        rate = lr * (1 - (t - 1) / len(draws))
        for k in g:
            m[k] = 0.9 * m[k] + 0.1 * g[k]
            v[k] = 0.999 * v[k] + 0.001 * g[k] ** 2
        w = {k: w[k] - rate * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8) for k in w}
    return w


def prototype_logits(w: Weights, x: np.ndarray, y: np.ndarray, queries: np.ndarray, n_classes: int) -> np.ndarray:
    """cos(f(q), mean of f(x) / |f(x)| over the class) / 0.1, [Q, N]."""
    out = np.zeros((len(queries), n_classes))
    for k in range(n_classes):
        mean = np.zeros(len(w["b"]))
        for item, label in zip(x, y, strict=True):
            if label == k:
                z = hidden(w, item)
                mean += z / math.sqrt(z @ z)
        for i, q in enumerate(queries):
            z = hidden(w, q)
            out[i, k] = z @ mean / math.sqrt((z @ z) * (mean @ mean)) / 0.1
    return out
