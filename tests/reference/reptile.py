"""Nichol et al. 2018, Algorithms 1 and 2, and Adam of Kingma and Ba 2015, one number at a time.

The net is a tanh layer under a softmax layer, or a softmax layer alone: weights by name, "encoder.layer.weight" [D, I],
"encoder.layer.bias" [D], "head.weight" [N, D] and "head.bias" [N].
"""

import math

import numpy as np

VARIANTS = [
    "reptile(steps=2, test_steps=5, lr=0.01)",
    "reptile(steps=2, test_steps=20, lr=0.1, optimizer='sgd', batch_size=None, batch_norm='query')",
    "reptile(steps=2, test_steps=5, lr=0.01, batch_size=4, carry=False, trainable='last', vectorize=True)",
]
STEPS = 100

Net = dict[str, np.ndarray]


def features(net: Net, x: np.ndarray) -> np.ndarray:
    """One item through the tanh layer, where there is one."""
    if "encoder.layer.weight" not in net:
        return x
    weight, bias = net["encoder.layer.weight"], net["encoder.layer.bias"]
    return np.array([math.tanh(sum(weight[j, i] * x[i] for i in range(len(x))) + bias[j]) for j in range(len(bias))])


def logits(net: Net, xs: np.ndarray) -> np.ndarray:
    weight, bias = net["head.weight"], net["head.bias"]
    out = np.zeros((len(xs), len(bias)))
    for q, x in enumerate(xs):
        z = features(net, x)
        for n in range(len(bias)):
            out[q, n] = sum(weight[n, j] * z[j] for j in range(len(z))) + bias[n]
    return out


def gradient(net: Net, xs: np.ndarray, ys: np.ndarray) -> Net:
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


def deal(ys: np.ndarray, batch_size: int | None, steps: int) -> list[list[int]]:
    """Rows of each minibatch: the first item of each class, then the second of each, and so on, round and round."""
    stacks: dict[int, list[int]] = {}
    for i, y in enumerate(ys):
        stacks.setdefault(int(y), []).append(i)
    deck: list[int] = []
    for turn in range(len(ys)):
        deck += sorted(stack[turn] for stack in stacks.values() if turn < len(stack))
    size = len(deck) if batch_size is None else min(batch_size, len(deck))
    return [[deck[(step * size + j) % len(deck)] for j in range(size)] for step in range(steps)]


def adapt(
    net: Net,
    xs: np.ndarray,
    ys: np.ndarray,
    *,
    steps: int,
    lr: float,
    batch_size: int | None,
    optimizer: str,
    second: Net | None = None,
    done: int = 0,
) -> tuple[Net, Net]:
    """The weights after the inner steps, and Adam's second moments, which may come in with the steps already done."""
    net = {k: v.copy() for k, v in net.items()}
    second = (
        {k: np.zeros_like(v) for k, v in net.items()} if second is None else {k: v.copy() for k, v in second.items()}
    )
    for step, rows in enumerate(deal(ys, batch_size, steps), done + 1):
        found = gradient(net, xs[rows], ys[rows])
        for k, w in net.items():
            for at in np.ndindex(w.shape):
                g = found[k][at]
                if optimizer == "adam":
                    second[k][at] = 0.999 * second[k][at] + 0.001 * g * g
                    g = g / (math.sqrt(second[k][at] / (1 - 0.999**step)) + 1e-8)
                w[at] -= lr * g
    return net, second


def half_squared_distance(a: Net, b: Net) -> float:
    return 0.5 * sum((float(p) - float(q)) ** 2 for k in a for p, q in zip(a[k].flat, b[k].flat, strict=True))
