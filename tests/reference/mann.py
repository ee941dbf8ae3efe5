"""Santoro et al. 2016, equations 2 to 8 and the loss of section 2, one number at a time."""

import math
from dataclasses import dataclass

import numpy as np

# The contracts compare runs with one another in training too, so items come in the order given. In it a class's items follow each
# other, and whole sequences teach nothing but to repeat the last label: that setting, and the memory that one step leaves to the
# next, are in tests/methods/test_mann.py.
VARIANTS = ["mann(order='given')", "mann(order='given', temperature='learned', heads=1, slots=8, slot_width=12)"]


@dataclass
class Weights:
    """LSTM of [x, y, r] [4H, I], of h [4H, H], biases [4H]; interface [R * (W + 1), H], a key and a gate a head; output [C, *].

    Gates in the order input, forget, cell, output.
    """

    of_input: np.ndarray
    of_h: np.ndarray
    bias_input: np.ndarray
    bias_h: np.ndarray
    interface: np.ndarray
    interface_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray


@dataclass
class State:
    """What is carried from one item to the next."""

    h: list[float]
    c: list[float]
    memory: list[list[float]]
    usage: list[float]
    read_weights: list[list[float]]
    read: list[float]
    label: list[float]


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def dot(a: list[float], b: list[float]) -> float:
    return sum(u * v for u, v in zip(a, b, strict=True))


def affine(weight: np.ndarray, bias: np.ndarray, x: list[float]) -> list[float]:
    return [dot(row.tolist(), x) + float(b) for row, b in zip(weight, bias, strict=True)]


def cosine(a: list[float], b: list[float]) -> float:
    """Equation 2; 0 for an empty slot."""
    lengths = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
    return dot(a, b) / lengths if lengths > 0 else 0.0


def softmax(scores: list[float]) -> list[float]:
    top = max(scores)
    total = sum(math.exp(s - top) for s in scores)
    return [math.exp(s - top) / total for s in scores]


def start(units: int, slots: int, slot_width: int, heads: int, n_labels: int) -> State:
    return State(
        [0.0] * units,
        [0.0] * units,
        [[0.0] * slot_width for _ in range(slots)],
        [0.0] * slots,
        [[0.0] * slots for _ in range(heads)],
        [0.0] * (heads * slot_width),
        [0.0] * n_labels,
    )


def step(state: State, x: np.ndarray, w: Weights, *, gamma: float, temperature: float) -> tuple[State, list[float]]:
    """The state after an item, its label not yet shown, and the logits of all labels."""
    units, heads = len(state.h), len(state.read_weights)
    slots, width = len(state.memory), len(state.memory[0])
    of_input = affine(w.of_input, w.bias_input, [*map(float, x), *state.label, *state.read])
    of_h = affine(w.of_h, w.bias_h, state.h)
    gates = [a + b for a, b in zip(of_input, of_h, strict=True)]
    h, c = [], []
    for j in range(units):
        i, f, g, o = (gates[part * units + j] for part in range(4))
        c.append(sigmoid(f) * state.c[j] + sigmoid(i) * math.tanh(g))
        h.append(sigmoid(o) * math.tanh(c[j]))
    interface = affine(w.interface, w.interface_bias, h)
    keys = [interface[r * (width + 1) : r * (width + 1) + width] for r in range(heads)]
    alphas = [interface[r * (width + 1) + width] for r in range(heads)]

    by_usage = sorted(range(slots), key=lambda i: (state.usage[i], i))
    least_used = [1.0 if i in by_usage[:heads] else 0.0 for i in range(slots)]  # equation 6, of ties the first
    write_weights = [
        [sigmoid(alphas[r]) * state.read_weights[r][i] + (1 - sigmoid(alphas[r])) * least_used[i] for i in range(slots)]
        for r in range(heads)
    ]  # equation 7
    memory = [list(slot) for slot in state.memory]
    memory[by_usage[0]] = [0.0] * width
    for i in range(slots):  # equation 8
        for r in range(heads):
            for d in range(width):
                memory[i][d] += write_weights[r][i] * keys[r][d]
    read_weights = [softmax([cosine(keys[r], slot) / temperature for slot in memory]) for r in range(heads)]
    read = [sum(read_weights[r][i] * memory[i][d] for i in range(slots)) for r in range(heads) for d in range(width)]
    usage = [
        gamma * state.usage[i] + sum(read_weights[r][i] + write_weights[r][i] for r in range(heads))
        for i in range(slots)
    ]  # equation 5
    logits = affine(w.output, w.output_bias, h + read)
    return State(h, c, memory, usage, read_weights, read, state.label), logits


def sequence(
    state: State, items: np.ndarray, labels: np.ndarray, w: Weights, *, gamma: float = 0.99, temperature: float = 1.0
) -> tuple[State, np.ndarray]:
    """The last state, and the logits [L, C] of each item; its label is shown with the next."""
    answers = []
    for x, label in zip(items, labels, strict=True):
        state, logits = step(state, x, w, gamma=gamma, temperature=temperature)
        state.label = [1.0 if k == label else 0.0 for k in range(len(state.label))]
        answers.append(logits)
    return state, np.array(answers)


def loss(logits: np.ndarray, labels: np.ndarray, n_classes: int) -> float:
    """The sum over items of -log p(label) among the first n_classes."""
    return -sum(
        math.log(softmax([float(v) for v in row[:n_classes]])[label]) for row, label in zip(logits, labels, strict=True)
    )


def accuracy_by_instance(answers: list[np.ndarray], labels: list[np.ndarray], instances: int) -> list[float]:
    """Of sequences of answers and labels: the share of right ones when a class is seen for the 1st, 2nd, ... time."""
    right: list[list[bool]] = [[] for _ in range(instances)]
    for said, true in zip(answers, labels, strict=True):
        seen: dict[int, int] = {}
        for a, b in zip(said, true, strict=True):
            if seen.get(b, 0) < instances:
                right[seen.get(b, 0)].append(bool(a == b))
            seen[b] = seen.get(b, 0) + 1
    return [sum(r) / len(r) if r else math.nan for r in right]
