"""Wang et al. 2019, section 3.2: transform, class means, distances, one number at a time."""

import math

import numpy as np

VARIANTS = ["simpleshot", "simpleshot(transform='l2n', temperature=0.1)", "simpleshot(transform='un')"]


def transformed(v: np.ndarray, mean: np.ndarray, transform: str) -> list[float]:
    out = [float(a) for a in v]
    if transform == "cl2n":
        out = [a - float(m) for a, m in zip(out, mean, strict=True)]
    if transform in ("cl2n", "l2n"):
        norm = math.sqrt(sum(a * a for a in out))
        out = [a / norm for a in out]
    return out


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    base: np.ndarray,
    transform: str = "cl2n",
    temperature: float = 1.0,
) -> np.ndarray:
    """-||z - c_k||^2 / temperature [Q, N]; base: embeddings of the train classes."""
    mean = np.array([sum(float(row[d]) for row in base) / len(base) for d in range(base.shape[1])])
    out = np.zeros((len(queries), n_classes))
    for k in range(n_classes):
        own = [transformed(s, mean, transform) for s, label in zip(support, y, strict=True) if label == k]
        centroid = [sum(column) / len(own) for column in zip(*own, strict=True)]
        for i, q in enumerate(queries):
            z = transformed(q, mean, transform)
            out[i, k] = -sum((a - b) ** 2 for a, b in zip(z, centroid, strict=True)) / temperature
    return out


def loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log softmax(scores)[y] over the queries."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        total += math.log(sum(math.exp(v) for v in row)) - row[label]
    return total / len(y)
