"""Chen et al. 2019, section 3.2: a cosine head by gradient descent with momentum, one number at a time.

The rule of descent, and the learned length g of each class, are those of the authors' code.
"""

import math

import numpy as np

VARIANTS = ["baseline_pp", "baseline_pp(scale=10.0, learned_norms=False, steps=20, lr=0.1)"]


def unit(v: np.ndarray) -> np.ndarray:
    return v / math.sqrt(sum(float(a) ** 2 for a in v))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    product = sum(float(p) * float(q) for p, q in zip(a, b, strict=True))
    return product / math.sqrt(sum(float(p) ** 2 for p in a)) / math.sqrt(sum(float(q) ** 2 for q in b))


def head(
    x: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    steps: int,
    lr: float,
    scale: float = 2.0,
    learned_norms: bool = True,
    momentum: float = 0.9,
    dampening: float = 0.9,
    weight_decay: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """w [N, D] and g [N] after so many steps over all of x, from the means of normalised embeddings and from 1."""
    n, width = x.shape
    w = np.array(
        [sum(unit(s) for s, label in zip(x, y, strict=True) if label == k) / (y == k).sum() for k in range(n_classes)]
    )
    g = np.ones(n_classes)
    velocity_w, velocity_g = np.zeros_like(w), np.zeros_like(g)
    for step in range(steps):
        slope_w, slope_g = np.zeros_like(w), np.zeros_like(g)
        for item, label in zip(x, y, strict=True):
            cosines = [cosine(item, w[k]) for k in range(n_classes)]
            total = sum(math.exp(scale * g[k] * cosines[k]) for k in range(n_classes))
            for k in range(n_classes):
                error = math.exp(scale * g[k] * cosines[k]) / total - (1.0 if k == label else 0.0)
                slope_g[k] += error * scale * cosines[k] / n
                long_w, long_x = math.sqrt(sum(w[k] ** 2)), math.sqrt(sum(item**2))
                for d in range(width):  # quotient rule: d cos / d w_d = x_d / (|x| |w|) - cos w_d / |w|^2
                    along = item[d] / (long_x * long_w) - cosines[k] * w[k, d] / long_w**2
                    slope_w[k, d] += error * scale * g[k] * along / n
        slope_w += weight_decay * w
        slope_g += weight_decay * g
        velocity_w = slope_w if step == 0 else momentum * velocity_w + (1 - dampening) * slope_w
        velocity_g = slope_g if step == 0 else momentum * velocity_g + (1 - dampening) * slope_g
        w = w - lr * velocity_w
        if learned_norms:
            g = g - lr * velocity_g
    return w, g


def logits(w: np.ndarray, g: np.ndarray, queries: np.ndarray, scale: float = 2.0) -> np.ndarray:
    """scale * g_k * cos(query, w_k) [Q, N]."""
    return np.array([[scale * g[k] * cosine(q, w[k]) for k in range(len(w))] for q in queries])


def loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log softmax(scores)[y] over the items."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        total += math.log(sum(math.exp(v) for v in row)) - row[label]
    return total / len(y)
