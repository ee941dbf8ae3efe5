"""Fifty et al. 2024: the codes of definition 1, and the transformer over query and support set, one number at a time."""

import math
from dataclasses import dataclass

import numpy as np

# Small ones: the contracts train at a learning rate of 0.01, at which wider transformers without a warm-up do not learn; that the
# default one does at 0.001, which is what `train` takes, is in tests/methods/test_caml.py. `max_way` is above the ways of the
# contracts, so that classes can be added.
VARIANTS = [
    "caml(layers=1, heads=4, width=16, code_width=8, max_way=5)",
    "caml(layers=2, heads=2, width=8, code_width=8, max_way=6)",
]


@dataclass
class Layer:
    """A linear layer or, with weight [W], a normalisation's gain; bias 0 where there is none."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: list[float]) -> list[float]:
        return [
            sum(float(w) * v for w, v in zip(row, x, strict=True)) + float(b)
            for row, b in zip(self.weight, self.bias, strict=True)
        ]

    def normalise(self, x: list[float]) -> list[float]:
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + 1e-6)
        return [(v - mean) / deviation * float(g) + float(b) for v, g, b in zip(x, self.weight, self.bias, strict=True)]


@dataclass
class Block:
    """A layer of the transformer."""

    norm: Layer
    mlp_norm: Layer
    q: Layer
    k: Layer
    v: Layer
    joined: Layer
    wide: Layer
    narrow: Layer


@dataclass
class Weights:
    """All that is learned, and the codes."""

    codes: np.ndarray
    code_scale: float
    unknown: np.ndarray
    input: Layer
    blocks: list[Block]
    norm: Layer
    output: Layer


def gelu(v: float) -> float:
    return v * 0.5 * (1 + math.erf(v / math.sqrt(2)))


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores]


def plus(a: list[float], b: list[float]) -> list[float]:
    return [u + v for u, v in zip(a, b, strict=True)]


def attention(x: list[list[float]], block: Block, heads: int) -> list[list[float]]:
    """Every place attends to every place."""
    q, k, v = ([layer(place) for place in x] for layer in (block.q, block.k, block.v))
    size = len(x[0]) // heads
    out = []
    for place in range(len(x)):
        joined: list[float] = []
        for head in range(heads):
            own = range(head * size, (head + 1) * size)
            shares = softmax([sum(q[place][d] * k[other][d] for d in own) / math.sqrt(size) for other in range(len(x))])
            joined += [sum(share * v[other][d] for other, share in enumerate(shares)) for d in own]
        out.append(block.joined(joined))
    return out


def transformer(x: list[list[float]], w: Weights, heads: int) -> list[list[float]]:
    """Normalised before each part, and after the last layer."""
    for block in w.blocks:
        attended = attention([block.norm.normalise(place) for place in x], block, heads)
        x = [plus(place, a) for place, a in zip(x, attended, strict=True)]
        x = [plus(place, block.narrow([gelu(u) for u in block.wide(block.mlp_norm.normalise(place))])) for place in x]
    return [w.norm.normalise(place) for place in x]


def logits(support: np.ndarray, y: np.ndarray, queries: np.ndarray, w: Weights, heads: int) -> np.ndarray:
    """[Q, C]: a sequence of its own for each query."""
    labelled = [
        w.input([*map(float, x), *(w.code_scale * w.codes[label]).tolist()])
        for x, label in zip(support, y, strict=True)
    ]
    answers = []
    for query in queries:
        asked = w.input([*map(float, query), *w.unknown.tolist()])
        answers.append(w.output(transformer([asked, *labelled], w, heads)[0]))
    return np.array(answers)


def loss(scores: np.ndarray, y: np.ndarray, n_classes: int) -> float:
    """Mean of -log p(y | x) among the first n_classes."""
    chances = [softmax([float(v) for v in row[:n_classes]])[label] for row, label in zip(scores, y, strict=True)]
    return -sum(math.log(p) for p in chances) / len(y)
