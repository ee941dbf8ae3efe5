"""The multinomial logistic regression of Tian et al. 2020 in its own weights, by Newton's method with the whole Hessian."""

import math

import numpy as np

VARIANTS = ["logistic", "logistic(c=10.0, balanced=False, normalise=False, scale=2.0)"]


def unit(v: np.ndarray) -> np.ndarray:
    norm = math.sqrt(sum(float(a) ** 2 for a in v))
    return v / norm if norm > 0 else v


def probabilities(row: np.ndarray) -> np.ndarray:
    e = [math.exp(v - max(row)) for v in row]
    return np.array(e) / sum(e)


def cost(theta: np.ndarray, x: np.ndarray, y: np.ndarray, cs: list[float]) -> float:
    """Sum of -c_i log p(y_i) + ||W||^2 / 2; theta [N, D + 1], the bias last; x with a 1 appended."""
    total = 0.5 * float((theta[:, :-1] ** 2).sum())
    for xi, label, c in zip(x, y, cs, strict=True):
        row = theta @ xi
        total += c * (max(row) + math.log(sum(math.exp(v - max(row)) for v in row)) - row[label])
    return total


def regression(x: np.ndarray, y: np.ndarray, n_classes: int, c: float = 1.0, balanced: bool = True) -> np.ndarray:
    """[N, D + 1]: the minimum, the biases adding up to 0."""
    cs = [c * (len(y) / (n_classes * list(y).count(label)) if balanced else 1.0) for label in y]
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    dim = x.shape[1]
    theta = np.zeros((n_classes, dim))
    for _ in range(100):
        gradient, hessian = np.zeros((n_classes, dim)), np.zeros((n_classes, dim, n_classes, dim))
        for k in range(n_classes):
            for d in range(dim - 1):  # the bias is free
                gradient[k, d] += theta[k, d]
                hessian[k, d, k, d] += 1.0
        for xi, label, c in zip(x, y, cs, strict=True):
            p = probabilities(theta @ xi)
            for k in range(n_classes):
                gradient[k] += c * (p[k] - (label == k)) * xi
                for m in range(n_classes):
                    hessian[k, :, m, :] += c * (p[k] * (k == m) - p[k] * p[m]) * np.outer(xi, xi)
        flat = hessian.reshape(n_classes * dim, -1)
        step = np.linalg.lstsq(flat, gradient.reshape(-1), rcond=1e-13)[0].reshape(n_classes, dim)
        length = 1.0
        while length > 1e-6 and cost(theta - length * step, x, y, cs) > cost(theta, x, y, cs) * (1 + 1e-12):
            length /= 2
        theta = theta - length * step
        if abs(step).max() < 1e-14:
            break
    theta[:, -1] -= theta[:, -1].mean()
    return theta


def logits(
    x: np.ndarray,
    y: np.ndarray,
    queries: np.ndarray,
    n_classes: int,
    c: float = 1.0,
    balanced: bool = True,
    normalise: bool = True,
    scale: float = 1.0,
) -> np.ndarray:
    if normalise:
        x, queries = np.stack([unit(v) for v in x]), np.stack([unit(v) for v in queries])
    theta = regression(x, y, n_classes, c, balanced)
    return scale * np.array([[row[:-1] @ q + row[-1] for row in theta] for q in queries])
