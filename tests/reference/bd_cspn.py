"""Liu et al. 2020: cosine prototypes rectified by pseudo-labelled queries, one item at a time."""

import math

import numpy as np

VARIANTS = ["bd_cspn", "bd_cspn(top=None, shift=False)"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / (math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)))


def probabilities(x: np.ndarray, prototypes: list[np.ndarray], scale: float) -> list[float]:
    exps = [math.exp(scale * cosine(x, p)) for p in prototypes]
    return [e / sum(exps) for e in exps]


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    scale: float = 10.0,
    top: int | None = 8,
    shift: bool = True,
) -> np.ndarray:
    """scale * cos(query, rectified prototype) [Q, N]; the classes all have support items."""
    support = np.stack([s / np.linalg.norm(s) for s in support])
    queries = np.stack([q / np.linalg.norm(q) for q in queries])
    basic = [np.mean([s for s, k in zip(support, y, strict=True) if k == n], axis=0) for n in range(n_classes)]
    if shift:
        xi = sum(support) / len(support) - sum(queries) / len(queries)
        queries = np.stack([q + xi for q in queries])
    rectified = []
    for n in range(n_classes):
        sure = []
        for q in queries:
            p = probabilities(q, basic, scale)
            if max(p) == p[n]:
                sure.append((p[n], q))
        sure.sort(key=lambda pair: -pair[0])
        members = [s for s, k in zip(support, y, strict=True) if k == n] + [q for _, q in sure[:top]]
        weights = [math.exp(scale * cosine(x, basic[n])) for x in members]
        rectified.append(sum(w * x for w, x in zip(weights, members, strict=True)) / sum(weights))
    return np.array([[scale * cosine(q, p) for p in rectified] for q in queries])
