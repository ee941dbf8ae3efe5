"""Prototypical networks against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.registry import build
from tests.reference import prototypical as reference


@pytest.mark.parametrize("options", [{}, {"distance": "cosine", "temperature": 0.3}, {"temperature": 7.0}])
def test_prototypical_equals_the_paper(options: dict[str, Any]) -> None:
    """Logits and loss as sums over plain numbers, 1e-10 in float64."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"prototypical({inside})", encoder=Features(6)).double()
    rng = np.random.default_rng(0)
    x, y, q, qy = (
        rng.normal(size=(11, 6)),
        np.array([0, 1, 2, 3] * 2 + [0, 0, 3]),
        rng.normal(size=(7, 6)),
        np.array([0, 1, 2, 3, 0, 1, 2]),
    )
    out = method.solve(
        Episode(
            Batch(torch.from_numpy(x), torch.from_numpy(y)),
            Batch(torch.from_numpy(q), torch.from_numpy(qy)),
            torch.ones(4, dtype=torch.bool),
        )
    )
    expected = reference.logits(x, y, q, 4, **options)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=1e-6 if options else 1e-10, atol=1e-10)
    np.testing.assert_allclose(float(out.loss), reference.loss(expected, qy), rtol=1e-6 if options else 1e-10)
