"""Chen et al. 2019, section 3.1: a linear head by gradient descent with momentum, one number at a time.

The rule of descent is that of the authors' code: velocity v = g in the first step, then momentum * v + (1 - dampening) * g.
"""

import math

import numpy as np

VARIANTS = ["baseline", "baseline(steps=20, lr=0.2, momentum=0.0, dampening=0.0, weight_decay=0.0)"]


def head(
    x: np.ndarray,
    y: np.ndarray,
    n_classes: int,
    steps: int,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.9,
    weight_decay: float = 0.001,
) -> tuple[np.ndarray, np.ndarray]:
    """weight [N, D] and bias [N] after so many steps over all of x, from 0."""
    n, width = x.shape
    theta = np.zeros((n_classes, width + 1))  # the bias is the last column, for an input that is always 1
    velocity = np.zeros_like(theta)
    for step in range(steps):
        gradient = np.zeros_like(theta)
        for item, label in zip(x, y, strict=True):
            inputs = [*(float(a) for a in item), 1.0]
            scores = [sum(w * a for w, a in zip(theta[k], inputs, strict=True)) for k in range(n_classes)]
            total = sum(math.exp(s) for s in scores)
            for k in range(n_classes):
                slope = math.exp(scores[k]) / total - (1.0 if k == label else 0.0)
                for d in range(width + 1):
                    gradient[k, d] += slope * inputs[d] / n
        for k in range(n_classes):
            for d in range(width + 1):
                g = gradient[k, d] + weight_decay * theta[k, d]
                velocity[k, d] = g if step == 0 else momentum * velocity[k, d] + (1 - dampening) * g
                theta[k, d] -= lr * velocity[k, d]
    return theta[:, :-1], theta[:, -1]


def loss(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log softmax(scores)[y] over the items."""
    total = 0.0
    for row, label in zip(scores, y, strict=True):
        total += math.log(sum(math.exp(v) for v in row)) - row[label]
    return total / len(y)
