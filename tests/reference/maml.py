"""Finn et al. 2017, Algorithm 2, on a network of one hidden layer; with the options of MAML++.

    z = tanh(W x + b),  logits = V z + c

Gradients are written out by hand. Second derivatives are those of the complex step: H v is the imaginary part of
grad(theta + i h v) / h, which loses no digit, as no difference is taken.
"""

import math

import numpy as np

VARIANTS = [
    "maml",
    "maml(first_order=True, steps=3)",
    "maml(batch_norm='query', learn_lr='step', steps=2)",
    "maml(batch_norm='per_step', steps=2, lr=0.02)",
    "maml(trainable='last', vectorize=True, steps=2)",
]
STEPS = 100

Weights = dict[str, np.ndarray]  # W [H, D], b [H], V [N, H], c [N]
Rates = float | list[dict[str, float]] | Weights  # one; or one for each step and tensor; or one for each weight
TINY = 1e-30


def logits(w: Weights, x: np.ndarray) -> np.ndarray:
    """[B, N]."""
    rows = []
    for item in x:
        z = np.tanh(w["W"] @ item + w["b"])
        rows.append(w["V"] @ z + w["c"])
    return np.stack(rows)


def loss(w: Weights, x: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log p(y | x)."""
    total = 0.0
    for row, label in zip(logits(w, x), y, strict=True):
        total -= row[label] - math.log(sum(math.exp(v) for v in row))
    return total / len(y)


def gradient(w: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    """Of the loss, by the chain rule, item by item."""
    found = {k: np.zeros_like(v) for k, v in w.items()}
    for item, label in zip(x, y, strict=True):
        z = np.tanh(w["W"] @ item + w["b"])
        scores = w["V"] @ z + w["c"]
        p = np.exp(scores) / np.exp(scores).sum()
        p[label] -= 1  # d loss / d scores
        inside = (w["V"].T @ p) * (1 - z**2)
        found["V"] += np.outer(p, z) / len(y)
        found["c"] += p / len(y)
        found["W"] += np.outer(inside, item) / len(y)
        found["b"] += inside / len(y)
    return found


def hessian_times(w: Weights, v: Weights, x: np.ndarray, y: np.ndarray) -> Weights:
    moved = gradient({k: w[k] + 1j * TINY * v[k] for k in w}, x, y)
    return {k: g.imag / TINY for k, g in moved.items()}


def rate(lr: Rates, step: int, name: str) -> float | np.ndarray:
    if isinstance(lr, list):
        return lr[min(step, len(lr) - 1)][name]
    return lr[name] if isinstance(lr, dict) else lr


def inner_loop(w: Weights, x: np.ndarray, y: np.ndarray, lr: Rates, steps: int) -> list[Weights]:
    """Equation 1: the weights after 0, 1, ... steps."""
    path = [w]
    for step in range(steps):
        g = gradient(path[-1], x, y)
        path.append({k: path[-1][k] - rate(lr, step, k) * g[k] for k in w})
    return path


def meta_gradient(
    w: Weights,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    lr: Rates,
    steps: int,
    *,
    first_order: bool = False,
    shares: list[float] | None = None,
) -> tuple[float, Weights]:
    """The query loss after the inner loop, and its gradient; shares: of the losses after step 1, 2, ... (MAML++, equation 4)."""
    shares = [0.0] * (steps - 1) + [1.0] if shares is None else shares
    path = inner_loop(w, *support, lr, steps)
    total = sum(share * loss(at, *query) for share, at in zip(shares, path[1:], strict=True))
    back = {k: np.zeros_like(v) for k, v in w.items()}  # d total / d path[step], from the last step to the first
    for step in range(steps, 0, -1):
        g = gradient(path[step], *query)
        back = {k: back[k] + shares[step - 1] * g[k] for k in w}
        if not first_order:  # (I - H diag(lr)) back
            weighed = {k: rate(lr, step - 1, k) * back[k] for k in w}
            h = hessian_times(path[step - 1], weighed, *support)
            back = {k: back[k] - h[k] for k in w}
    return total, back


class Adam:
    """The outer optimiser; Kingma and Ba 2015, Algorithm 1."""

    def __init__(self, lr: float) -> None:
        self.lr, self.steps = lr, 0
        self.m: Weights = {}
        self.v: Weights = {}

    def step(self, w: Weights, g: Weights) -> Weights:
        self.steps += 1
        out = {}
        for k in w:
            self.m[k] = 0.9 * self.m.get(k, 0.0) + 0.1 * g[k]
            self.v[k] = 0.999 * self.v.get(k, 0.0) + 0.001 * g[k] ** 2
            m, v = self.m[k] / (1 - 0.9**self.steps), self.v[k] / (1 - 0.999**self.steps)
            out[k] = w[k] - self.lr * m / (np.sqrt(v) + 1e-8)
        return out
