"""Hadsell et al. 2006, equation 4, and Koch et al. 2015, section 3, one pair at a time."""

import math

import numpy as np

VARIANTS = [
    "siamese",
    "siamese(loss='plain', score='max', balanced=False)",
    "siamese(loss='koch', score='max')",
    "siamese(normalise=False, margin=3.0)",
]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return math.sqrt(sum((float(u) - float(v)) ** 2 for u, v in zip(a, b, strict=True)))


def log_odds(a: np.ndarray, b: np.ndarray, alpha: np.ndarray, bias: float) -> float:
    """Of one class, by Koch: sum_j alpha_j |a_j - b_j| + b."""
    return bias + sum(float(w) * abs(float(u) - float(v)) for u, v, w in zip(a, b, alpha, strict=True))


def unit(v: np.ndarray) -> np.ndarray:
    norm = math.sqrt(sum(float(a) ** 2 for a in v))
    return v / norm if norm > 0 else v


def loss(
    items: np.ndarray,
    y: np.ndarray,
    loss: str = "squared",
    margin: float = 1.0,
    balanced: bool = True,
    normalise: bool = True,
    alpha: np.ndarray | None = None,
    bias: float = 0.0,
) -> float:
    """Mean over all pairs of items whose label is known; or the mean of the means over pairs of one class and over others."""
    if normalise:
        items = np.stack([unit(v) for v in items])
    own: list[float] = []
    other: list[float] = []
    for i in range(len(items)):
        for j in range(i):
            if y[i] < 0 or y[j] < 0:
                continue
            same = y[i] == y[j]
            if loss == "koch":
                assert alpha is not None
                p = 1 / (1 + math.exp(-log_odds(items[i], items[j], alpha, bias)))
                cost = -math.log(p) if same else -math.log(1 - p)
            else:
                d = distance(items[i], items[j])
                cost = d if same else max(0.0, margin - d)
                cost = cost**2 if loss == "squared" else cost
            (own if same else other).append(cost)
    if not balanced:
        return sum(own + other) / max(1, len(own + other))
    means = [sum(kind) / len(kind) for kind in (own, other) if kind]
    return sum(means) / max(1, len(means))


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    loss: str = "squared",
    score: str = "mean",
    normalise: bool = True,
    alpha: np.ndarray | None = None,
    bias: float = 0.0,
) -> np.ndarray:
    """Mean or best pair score by class [Q, N]: -d^2, -d, or log-odds."""
    if normalise:
        support, queries = np.stack([unit(v) for v in support]), np.stack([unit(v) for v in queries])
    out = np.zeros((len(queries), n_classes))
    for i, q in enumerate(queries):
        for k in range(n_classes):
            scores = []
            for s, label in zip(support, y, strict=True):
                if label == k:
                    if loss == "koch":
                        assert alpha is not None
                        scores.append(log_odds(q, s, alpha, bias))
                    else:
                        scores.append(-(distance(q, s) ** (2 if loss == "squared" else 1)))
            out[i, k] = max(scores) if score == "max" else sum(scores) / len(scores)
    return out
