"""Vinyals et al. 2016, equation 1, and appendix A, equations 3 to 6, one number at a time."""

import math
from typing import NamedTuple

import numpy as np

VARIANTS = [
    "matching",
    "matching(temperature='learned')",
    "matching(fce=True)",
    "matching(fce=True, processing_steps=2, temperature=0.1)",
]


class Cell(NamedTuple):
    """An LSTM's weights: of x [4H, I], of h [4H, R], and the sum of its biases [4H]; input, forget, cell and output gate."""

    of_x: np.ndarray
    of_h: np.ndarray
    bias: np.ndarray


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def dot(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(u) * float(v) for u, v in zip(a, b, strict=True))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores]


def lstm(x: np.ndarray, h: np.ndarray, c: np.ndarray, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    size = len(c)
    new_h, new_c = np.zeros(size), np.zeros(size)
    for j in range(size):
        i, f, g, o = (
            dot(cell.of_x[gate * size + j], x) + dot(cell.of_h[gate * size + j], h) + cell.bias[gate * size + j]
            for gate in range(4)
        )
        new_c[j] = sigmoid(f) * c[j] + sigmoid(i) * math.tanh(g)
        new_h[j] = sigmoid(o) * math.tanh(new_c[j])
    return new_h, new_c


def in_context(support: np.ndarray, forwards: Cell, backwards: Cell) -> np.ndarray:
    """g(x_i) [S, D]: appendix A.2."""
    g = support.copy()
    for cell, order in ((forwards, range(len(support))), (backwards, reversed(range(len(support))))):
        h, c = np.zeros(support.shape[1]), np.zeros(support.shape[1])
        for i in order:
            h, c = lstm(support[i], h, c, cell)
            g[i] = g[i] + h
    return g


def attended(x: np.ndarray, g: np.ndarray, reader: Cell, steps: int) -> np.ndarray:
    """f(x) [D]: appendix A.1; `reader` takes x, and [h, r] in place of h."""
    h, c = x, np.zeros(len(x))  # equation 4 with an LSTM that has said 0 so far
    for _ in range(steps):
        attention = softmax([dot(h, g_i) for g_i in g])  # equation 6
        r = sum(a * g_i for a, g_i in zip(attention, g, strict=True))  # equation 5
        output, c = lstm(x, np.concatenate([h, r]), c, reader)  # equation 3
        h = output + x  # equation 4
    return h


def log_p(f: np.ndarray, g: np.ndarray, y: np.ndarray, n_classes: int, temperature: float = 1.0) -> np.ndarray:
    """log p(y | x) [Q, N] from the embeddings of queries and support: equation 1."""
    out = np.zeros((len(f), n_classes))
    for i, q in enumerate(f):
        cosines = [dot(q, s) / math.sqrt(dot(q, q)) / math.sqrt(dot(s, s)) for s in g]
        p = np.zeros(n_classes)
        for a, label in zip(softmax([c / temperature for c in cosines]), y, strict=True):
            p[label] += a
        out[i] = [math.log(v) for v in p]
    return out


def loss(log_probabilities: np.ndarray, y: np.ndarray) -> float:
    """Mean of -log p(y | x) over the queries."""
    return -sum(float(row[label]) for row, label in zip(log_probabilities, y, strict=True)) / len(y)
