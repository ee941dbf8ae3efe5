"""Sung et al. 2018, equations 1 and 2, one pair of query and class at a time."""

import math

import numpy as np

STEPS = 120  # of the separable toy: the squared error of a sigmoid starts slowly
VARIANTS = [
    "relation",
    "relation(pool='mean', loss='cross_entropy', hidden=48)",
    "relation(loss='cross_entropy')",
]

Layer = tuple[np.ndarray, np.ndarray]  # weight [out, in], bias [out]


def logits(
    support: np.ndarray, y: np.ndarray, queries: np.ndarray, n_classes: int, layers: list[Layer], pool: str = "sum"
) -> np.ndarray:
    """The perceptron's last number before its sigmoid, for each query and class [Q, N]."""
    out = np.zeros((len(queries), n_classes))
    for k in range(n_classes):
        own = [s for s, label in zip(support, y, strict=True) if label == k]
        c = sum(own) / (len(own) if pool == "mean" else 1)
        for i, q in enumerate(queries):
            v = np.array([*c, *q])
            for n, (weight, bias) in enumerate(layers):
                v = np.array([sum(float(w) * float(u) for w, u in zip(row, v, strict=True)) for row in weight]) + bias
                if n < len(layers) - 1:
                    v = np.array([max(0.0, float(u)) for u in v])
            out[i, k] = v[0]
    return out


def loss(scores: np.ndarray, y: np.ndarray, loss: str = "mse") -> float:
    """Mean of (r - 1 or 0)^2 over queries and classes; or of -log softmax over the queries."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        if loss == "mse":
            for k, score in enumerate(row):
                r = 1 / (1 + math.exp(-score))
                total += (r - (1.0 if k == label else 0.0)) ** 2 / len(row)
        else:
            total -= row[label] - row.max() - math.log(sum(math.exp(v - row.max()) for v in row))
    return total / len(y)
