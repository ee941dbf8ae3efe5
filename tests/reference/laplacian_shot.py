"""Ziko et al. 2020: Laplacian-regularised nearest prototypes, one query at a time."""

import math
from typing import Any

import numpy as np

VARIANTS = ["laplacian_shot", "laplacian_shot(rectify=False, neighbours=1, transform='l2n')"]


def softmax(scores: list[float]) -> list[float]:
    exps = [math.exp(s - max(scores)) for s in scores]
    return [e / sum(exps) for e in exps]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def neighbours(queries: np.ndarray, k: int) -> list[set[int]]:
    """Of each query, the places of the k nearest others."""
    found = []
    for q in range(len(queries)):
        others = [(float(((queries[q] - queries[p]) ** 2).sum()), p) for p in range(len(queries)) if p != q]
        found.append({p for _, p in sorted(others)[:k]})
    return found


def rectify(support: np.ndarray, y: np.ndarray, queries: np.ndarray, means: list[np.ndarray]) -> list[np.ndarray]:
    totals: list[list[Any]] = [[] for _ in means]
    for x, label in [*zip(support, y, strict=True), *((q, None) for q in queries)]:
        weights = softmax([10 * cosine(x, m) for m in means])
        c = int(np.argmax(weights)) if label is None else int(label)
        totals[c].append(weights[c] * x)
    return [sum(items) / len(items) for items in totals]


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    smoothness: float = 0.7,
    k: int = 3,
    steps: int = 20,
    rectified: bool = True,
    transform: str = "cl2n",
    base_mean: np.ndarray | None = None,
) -> np.ndarray:
    """-a_q + lambda b_q [Q, N] of the last round, whose softmax is the answer; the classes all have support items."""

    def feature(x: np.ndarray) -> np.ndarray:
        if transform == "cl2n" and base_mean is not None:
            x = x - base_mean
        return x if transform == "un" else x / np.linalg.norm(x)

    support, queries = np.stack([feature(s) for s in support]), np.stack([feature(q) for q in queries])
    means = [np.mean([s for s, label in zip(support, y, strict=True) if label == n], axis=0) for n in range(n_classes)]
    if rectified:
        queries = queries + (sum(support) / len(support) - sum(queries) / len(queries))
        means = rectify(support, y, queries, means)
    a = np.array([[float(((q - m) ** 2).sum()) for m in means] for q in queries])
    near = neighbours(queries, k)
    scores = -a
    for _ in range(steps):
        answers = np.array([softmax(list(row)) for row in scores])
        scores = np.array([-a[q] + smoothness * sum(answers[p] for p in near[q]) for q in range(len(queries))])
    return scores
