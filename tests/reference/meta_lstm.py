"""Ravi and Larochelle 2017, sections 3.2 and 3.3 and Appendix A, one number at a time.

The learner is a tanh layer under a softmax layer, or a softmax layer alone: weights by name, "encoder.layer.weight" [D, I],
"encoder.layer.bias" [D], "head.weight" [N, D] and "head.bias" [N]. The meta-learner's are named as in the module's state.
"""

import math

import numpy as np

VARIANTS = ["meta_lstm(steps=2)", "meta_lstm(steps=2, lr=0.1, second_order=True, trainable='last')"]
STEPS = 150

Arrays = dict[str, np.ndarray]
Inputs = list[tuple[Arrays, float]]  # the gradient and the loss of each step


def features(net: Arrays, x: np.ndarray) -> np.ndarray:
    """One item through the tanh layer, where there is one."""
    if "encoder.layer.weight" not in net:
        return x
    weight, bias = net["encoder.layer.weight"], net["encoder.layer.bias"]
    return np.array([math.tanh(sum(weight[j, i] * x[i] for i in range(len(x))) + bias[j]) for j in range(len(bias))])


def logits(net: Arrays, xs: np.ndarray) -> np.ndarray:
    weight, bias = net["head.weight"], net["head.bias"]
    out = np.zeros((len(xs), len(bias)))
    for q, x in enumerate(xs):
        z = features(net, x)
        for n in range(len(bias)):
            out[q, n] = sum(weight[n, j] * z[j] for j in range(len(z))) + bias[n]
    return out


def loss(net: Arrays, xs: np.ndarray, ys: np.ndarray) -> float:
    """Mean cross-entropy."""
    total = 0.0
    for scores, y in zip(logits(net, xs), ys, strict=True):
        total += math.log(sum(math.exp(s - max(scores)) for s in scores)) + max(scores) - scores[y]
    return total / len(xs)


def gradient(net: Arrays, xs: np.ndarray, ys: np.ndarray) -> Arrays:
    """Of the mean cross-entropy, by the chain rule."""
    found = {k: np.zeros_like(v) for k, v in net.items()}
    for x, y, scores in zip(xs, ys, logits(net, xs), strict=True):
        z = features(net, x)
        exp = [math.exp(s - max(scores)) for s in scores]
        back = [(e / sum(exp) - (n == y)) / len(xs) for n, e in enumerate(exp)]
        for n, b in enumerate(back):
            found["head.bias"][n] += b
            for j in range(len(z)):
                found["head.weight"][n, j] += b * z[j]
        if "encoder.layer.weight" in net:
            for j in range(len(z)):
                into = sum(b * net["head.weight"][n, j] for n, b in enumerate(back)) * (1 - z[j] ** 2)
                found["encoder.layer.bias"][j] += into
                for i in range(len(x)):
                    found["encoder.layer.weight"][j, i] += into * x[i]
    return found


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def preprocess(v: float) -> tuple[float, float]:
    if abs(v) >= math.exp(-10):
        return math.log(abs(v)) / 10, math.copysign(1.0, v)
    return -1.0, math.exp(10) * v


def lstm(meta: Arrays, x: list[float], h: list[float], c: list[float]) -> tuple[list[float], list[float]]:
    """One step for one weight; rows of the LSTM's weights: input gates, forget gates, cells, output gates."""
    size = len(h)

    def row(r: int) -> float:
        total = float(meta["lstm.bias_ih"][r] + meta["lstm.bias_hh"][r])
        total += sum(meta["lstm.weight_ih"][r, j] * x[j] for j in range(len(x)))
        return total + sum(meta["lstm.weight_hh"][r, j] * h[j] for j in range(size))

    new_h, new_c = [], []
    for u in range(size):
        cell = sigmoid(row(size + u)) * c[u] + sigmoid(row(u)) * math.tanh(row(2 * size + u))
        new_c.append(cell)
        new_h.append(sigmoid(row(3 * size + u)) * math.tanh(cell))
    return new_h, new_c


def gate(meta: Arrays, name: str, h: list[float], theta: float, before: float) -> float:
    weight = meta[f"{name}.weight"][0]
    total = sum(w * v for w, v in zip(weight, [*h, theta, before], strict=True))
    return sigmoid(total + meta[f"{name}.bias"][0])


def adapt(
    net: Arrays, meta: Arrays, xs: np.ndarray, ys: np.ndarray, steps: int, given: Inputs | None = None
) -> tuple[Arrays, Inputs]:
    """The weights after the updates, and the gradients and losses that came in: those given, or the true ones."""
    net = {k: v.copy() for k, v in net.items()}
    size = meta["lstm.weight_hh"].shape[1]
    places = [(k, at) for k, v in net.items() for at in np.ndindex(v.shape)]
    h = {p: [0.0] * size for p in places}
    c = {p: [0.0] * size for p in places}
    i, f = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    inputs = []
    for t in range(steps):
        g, value = (gradient(net, xs, ys), loss(net, xs, ys)) if given is None else given[t]
        inputs.append((g, value))
        for k, at in places:
            p, theta = (k, at), float(net[k][at])
            h[p], c[p] = lstm(meta, [*preprocess(value), *preprocess(float(g[k][at]))], h[p], c[p])
            i[p], f[p] = gate(meta, "input_gate", h[p], theta, i[p]), gate(meta, "forget_gate", h[p], theta, f[p])
            net[k][at] = f[p] * theta - i[p] * g[k][at]
    return net, inputs
