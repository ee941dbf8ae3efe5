"""Hu et al. 2021: power transform and Sinkhorn's optimal transport, one number at a time."""

import math

import numpy as np

VARIANTS = ["pt_map", "pt_map(centre=False, power=1.0)"]


def transform(x: np.ndarray, power: float) -> np.ndarray:
    """Equation 1; a negative number keeps its sign."""
    out = np.array([[math.copysign((abs(v) + 1e-6) ** power, v) for v in row] for row in x])
    return np.stack([row / np.linalg.norm(row) for row in out])


def sinkhorn(cost: np.ndarray, scale: float, columns: float, iterations: int) -> np.ndarray:
    """The plan [Q, N]: exp(-lambda cost), rows scaled to sum to 1 and columns to `columns`, in turn."""
    plan = np.exp(-scale * cost)
    for _ in range(iterations):
        for i in range(len(plan)):
            plan[i] = plan[i] / sum(plan[i])
        for j in range(plan.shape[1]):
            plan[:, j] = plan[:, j] * columns / sum(plan[:, j])
    return plan


def plan(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    power: float = 0.5,
    scale: float = 10.0,
    rate: float = 0.2,
    steps: int = 20,
    centre: bool = True,
    iterations: int = 500,
) -> np.ndarray:
    """M [Q, N] at the last centres, which is the answer; the classes all have support items."""
    support, queries = transform(support, power), transform(queries, power)
    if centre:
        support, queries = support - sum(support) / len(support), queries - sum(queries) / len(queries)
        support = np.stack([v / np.linalg.norm(v) for v in support])
        queries = np.stack([v / np.linalg.norm(v) for v in queries])
    centres = np.stack(
        [np.mean([s for s, k in zip(support, y, strict=True) if k == j], axis=0) for j in range(n_classes)]
    )

    def transport() -> np.ndarray:
        cost = np.array([[float(((q - c) ** 2).sum()) for c in centres] for q in queries])
        return sinkhorn(cost, scale, len(queries) / n_classes, iterations)

    for _ in range(steps):
        m, new = transport(), np.zeros_like(centres)
        for j in range(n_classes):
            own = [s for s, k in zip(support, y, strict=True) if k == j]
            total = sum(own) + sum(m[i, j] * queries[i] for i in range(len(queries)))
            new[j] = total / (len(own) + sum(m[:, j]))
        centres = centres + rate * (new - centres)
    return transport()
