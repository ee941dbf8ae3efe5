"""Snell et al. 2017, equations 1 and 2, Algorithm 1, one number at a time."""

import math

import numpy as np

VARIANTS = ["prototypical", "prototypical(distance='cosine')"]


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    distance: str = "euclidean",
    temperature: float = 1.0,
) -> np.ndarray:
    """-d(query, prototype) / temperature [Q, N]."""

    def unit(v: np.ndarray) -> np.ndarray:
        norm = math.sqrt(sum(float(a) ** 2 for a in v))
        return v / norm if norm > 0 else v

    if distance == "cosine":
        support, queries = np.stack([unit(s) for s in support]), np.stack([unit(q) for q in queries])
    prototypes = []
    for k in range(n_classes):
        own = [s for s, label in zip(support, y, strict=True) if label == k]
        prototypes.append(sum(own) / len(own))
    out = np.zeros((len(queries), n_classes))
    for i, q in enumerate(queries):
        for k, c in enumerate(prototypes):
            if distance == "euclidean":
                out[i, k] = -sum((float(a) - float(b)) ** 2 for a, b in zip(q, c, strict=True))
            else:
                out[i, k] = sum(float(a) * float(b) for a, b in zip(unit(q), unit(c), strict=True))
    return out / temperature


def loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log p(y | x) over the queries."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        total -= row[label] - (row.max() + math.log(sum(math.exp(v - row.max()) for v in row)))
    return total / len(y)
