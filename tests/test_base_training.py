"""Base training against plain loops."""

import math

import numpy as np
import pytest
import torch

from multifsl.base_training import BaseClassifier, base_batch
from multifsl.encoder import Features
from multifsl.registry import build


def reference(z: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, scale: float) -> np.ndarray:
    """Logits of a linear head, or, without a bias, of scaled cosines, one number at a time."""
    out = np.zeros((len(z), len(weight)))
    for i, v in enumerate(z):
        for k, w in enumerate(weight):
            dot = sum(a * b for a, b in zip(v, w, strict=True))
            lengths = math.sqrt(sum(a * a for a in v)) * math.sqrt(sum(b * b for b in w))
            out[i, k] = dot + bias[k] if bias is not None else scale * dot / lengths
    return out


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_logits_loss_and_a_step_equal_the_paper(head: str) -> None:
    """Mean cross-entropy over all train classes; the gradient of every weight of the head by numerical differences."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    method = build("methods", "simpleshot", encoder=Features(4))
    model = BaseClassifier(method, 7, head).double()  # type: ignore[arg-type]
    x, y = rng.normal(size=(2, 5, 4)), rng.integers(0, 7, (2, 5))
    batch = base_batch(torch.from_numpy(x), torch.from_numpy(y), 7)
    own = {k: v for k, v in model.named_parameters() if not k.startswith("method.")}

    def expected() -> tuple[np.ndarray, np.ndarray]:
        v = {k: p.detach().numpy() for k, p in own.items()}
        logits = [reference(z, v["head.weight"], v.get("head.bias"), float(v.get("scale", 1.0))) for z in x]
        losses = [
            [math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(rows, labels, strict=True)]
            for rows, labels in zip(logits, y, strict=True)
        ]
        return np.array(logits), np.array(losses).mean(1)

    out = model(batch)
    logits, loss = expected()
    np.testing.assert_allclose(out.logits.detach().numpy(), logits, rtol=1e-10)
    np.testing.assert_allclose(out.loss.detach().numpy(), loss, rtol=1e-10)
    for p, found in zip(own.values(), torch.autograd.grad(out.loss.mean(), list(own.values())), strict=True):
        values = p.detach().numpy()
        for place in np.ndindex(p.shape):
            here, ends = values[place].copy(), []
            for nudge in (1e-6, -1e-6):
                values[place] = here + nudge
                ends.append(expected()[1].mean())
            values[place] = here
            assert float(found[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-9)
