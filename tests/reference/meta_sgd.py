"""Li et al. 2017, equations 2 and 3, Algorithm 1, on the network of the page of MAML.

Both meta-gradients, of the weights and of their rates, are those of the complex step, entry by entry: the imaginary part of
L(theta + i h e) / h, L the whole of inner step and query loss.
"""

import numpy as np

from tests.reference import anil, maml

VARIANTS = ["meta_sgd", "meta_sgd(batch_norm='query', first_order=True, trainable='last')"]


def adapted(w: maml.Weights, alpha: maml.Weights, x: np.ndarray, y: np.ndarray, steps: int = 1) -> maml.Weights:
    """Equation 2: theta' = theta - alpha o grad L(theta)."""
    for _ in range(steps):
        g = maml.gradient(w, x, y)
        w = {k: w[k] - alpha[k] * g[k] for k in w}
    return w


def meta_gradient(
    w: maml.Weights,
    alpha: maml.Weights,
    support: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray],
    steps: int = 1,
) -> tuple[float, maml.Weights, maml.Weights]:
    """The query loss after the inner step, and its gradients by theta and alpha."""
    both = {("w", k): v for k, v in w.items()} | {("alpha", k): v for k, v in alpha.items()}
    found = {k: np.zeros_like(v) for k, v in both.items()}
    for k in both:
        for at in np.ndindex(both[k].shape):
            moved = {name: v.astype(complex) for name, v in both.items()}
            moved[k][at] += 1j * maml.TINY
            after = adapted({n: moved["w", n] for n in w}, {n: moved["alpha", n] for n in w}, *support, steps)
            found[k][at] = anil.query_loss(after, *query).imag / maml.TINY
    value = float(anil.query_loss(adapted(w, alpha, *support, steps), *query))
    return value, {n: found["w", n] for n in w}, {n: found["alpha", n] for n in w}
