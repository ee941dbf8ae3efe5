"""Ye et al. 2020, section 3.3 and equation 7, one number at a time."""

import math

import numpy as np

STEPS = 120
VARIANTS = [
    "feat(dropout=0.0)",
    "feat(dropout=0.0, heads=2, balance=0.0, temperature=8.0)",
    "feat(dropout=0.0, distance='cosine', balance=1.0)",
]

Weights = dict[str, np.ndarray]  # query, key, value, out [D, D]; out_bias, gain, bias [D]


def product(matrix: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.array([sum(float(a) * float(b) for a, b in zip(row, v, strict=True)) for row in matrix])


def transformed(items: list[np.ndarray], weights: Weights, heads: int = 1) -> list[np.ndarray]:
    """The set-to-set function: every item attends to all items of the set, itself among them."""
    width = len(items[0])
    part = width // heads
    out = []
    for item in items:
        attended = np.zeros(width)
        for h in range(heads):
            at = slice(h * part, (h + 1) * part)
            q = product(weights["query"][at], item)
            scores = [float(q @ product(weights["key"][at], other)) / math.sqrt(part) for other in items]
            total = sum(math.exp(s) for s in scores)
            for s, other in zip(scores, items, strict=True):
                attended[at] += math.exp(s) / total * product(weights["value"][at], other)
        v = item + product(weights["out"], attended) + weights["out_bias"]
        mean = sum(v) / width
        variance = sum((a - mean) ** 2 for a in v) / width
        out.append((v - mean) / math.sqrt(variance + 1e-5) * weights["gain"] + weights["bias"])
    return out


def likeness(a: np.ndarray, b: np.ndarray, distance: str) -> float:
    if distance == "euclidean":
        return -sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))
    return float(a @ b) / math.sqrt(float(a @ a)) / math.sqrt(float(b @ b))


def logits(
    support: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    weights: Weights,
    distance: str = "euclidean",
    temperature: float = 64.0,
    heads: int = 1,
) -> np.ndarray:
    prototypes = []
    for k in range(n_classes):
        own = [s for s, label in zip(support, y, strict=True) if label == k]
        prototypes.append(sum(own) / len(own))
    adapted = transformed(prototypes, weights, heads)
    return np.array([[likeness(q, c, distance) / temperature for c in adapted] for q in queries])


def contrast(
    x: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    weights: Weights,
    distance: str = "euclidean",
    temperature: float = 64.0,
    heads: int = 1,
) -> float:
    """Cross-entropy of every item, support and query, against the centres of the classes' transformed items."""
    centres = []
    for k in range(n_classes):
        own = transformed([v for v, label in zip(x, y, strict=True) if label == k], weights, heads)
        centres.append(np.mean(own, axis=0))
    return loss(np.array([[likeness(v, c, distance) / temperature for c in centres] for v in x]), y)


def loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log softmax(scores)[y] over the rows."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        total -= row[label] - (row.max() + math.log(sum(math.exp(v - row.max()) for v in row)))
    return total / len(y)
