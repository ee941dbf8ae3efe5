"""Baseline++ against the paper as plain loops, and against torch.optim.SGD."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.baseline_pp import BaselinePp
from tests.reference import baseline_pp as reference

LABELS, QUERY_LABELS = np.array([0, 1, 2, 0, 0, 2, 1]), np.array([0, 1, 2, 2])
PRESENT = torch.ones(3, dtype=torch.bool)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(LABELS), 4)), rng.normal(size=(len(QUERY_LABELS), 4))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "lr": 0.3},
        {"steps": 20, "lr": 0.5},
        {"steps": 12, "lr": 1.0, "scale": 10.0, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.05},
        {"steps": 12, "lr": 0.1, "learned_norms": False, "momentum": 0.5, "dampening": 0.2},
    ],
)
def test_baseline_pp_equals_the_paper(options: dict[str, Any]) -> None:
    """The trained head, logits and loss as sums over plain numbers, 1e-10 in float64."""
    x, q = data()
    method = BaselinePp(Features(4), **options)
    support, query = (Batch(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, LABELS), (q, QUERY_LABELS)))
    state, out = method.adapt(support, PRESENT), method.solve(Episode(support, query, PRESENT))
    w, g = reference.head(x, LABELS, 3, **options)
    np.testing.assert_allclose(
        state.weight.numpy(), [g[k] * reference.unit(w[k]) for k in range(3)], rtol=1e-10, atol=1e-10
    )
    expected = reference.logits(w, g, q, options.get("scale", 2.0))
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out.loss.item(), reference.loss(expected, QUERY_LABELS), rtol=1e-10)


def test_the_default_head_is_that_of_torch() -> None:
    """torch.optim.SGD on an nn.Linear under torch's weight normalisation, by autograd; 1e-10 in float64."""
    x, y = torch.from_numpy(data()[0]), torch.from_numpy(LABELS)
    z = F.normalize(x)
    layer = weight_norm(nn.Linear(4, 3, bias=False).double(), dim=0)
    lengths, directions = layer.parametrizations.weight.original0, layer.parametrizations.weight.original1
    with torch.no_grad():
        lengths.fill_(1.0)
        directions.copy_(torch.stack([z[y == k].mean(0) for k in range(3)]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(2.0 * layer(z), y).backward()
        optimizer.step()
    state = BaselinePp(Features(4)).adapt(Batch(x, y), PRESENT)
    assert_close(state.weight, layer.weight.detach(), rtol=1e-10, atol=1e-12)


def test_the_length_of_an_embedding_says_nothing() -> None:
    """Embeddings of other lengths, the same directions: the same logits."""
    x, q = data()
    rng = np.random.default_rng(1)
    method = BaselinePp(Features(4))
    found = []
    for a, b in ((x, q), (x * rng.uniform(0.1, 9, (len(x), 1)), q * rng.uniform(0.1, 9, (len(q), 1)))):
        state = method.adapt(Batch(torch.from_numpy(a), torch.from_numpy(LABELS)), PRESENT)
        found.append(method.classify(state, torch.from_numpy(b)))
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_without_learned_norms_logits_are_scaled_cosines() -> None:
    """No logit is beyond the scale; with learned norms some are."""
    x, q = (torch.from_numpy(a) for a in data())
    support, queries = Batch(x, torch.from_numpy(LABELS)), torch.cat([x, q])
    highest = []
    for learned in (False, True):
        method = BaselinePp(Features(4), learned_norms=learned, scale=3.0, steps=500)
        highest.append(float(method.classify(method.adapt(support, PRESENT), queries).max()))
    assert highest[0] <= 3.0 < highest[1]


def test_a_class_whose_embeddings_cancel_stays_finite() -> None:
    """The start, the mean of opposite embeddings, is then no direction at all."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    method = BaselinePp(Features(2))
    state = method.adapt(Batch(x, torch.tensor([0, 0, 1, 1])), torch.ones(2, dtype=torch.bool))
    assert torch.isfinite(method.classify(state, x)).all()


def test_an_answer_can_be_repeated_and_the_support_set_gets_no_gradient() -> None:
    x, q = (torch.from_numpy(a).requires_grad_() for a in data())
    method = BaselinePp(Features(4))
    support = Batch(x, torch.from_numpy(LABELS))
    first, second = method.adapt(support, PRESENT), method.adapt(support, PRESENT)
    assert torch.equal(first.weight, second.weight)
    slopes = torch.autograd.grad(method.classify(first, q)[:, 1].sum(), [x, q], allow_unused=True)
    assert slopes[0] is None and slopes[1] is not None and float(slopes[1].abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "scale must be a number above 0, not 0.0"),
        ({"learned_norms": 1}, "learned_norms must be True or False, not 1"),
        ({"steps": 2.5}, "steps must be a whole number from 1, not 2.5"),
        ({"lr": -1.0}, "lr must be a number above 0, not -1.0"),
        ({"momentum": -0.1}, "momentum must be a number from 0 and below 1, not -0.1"),
        ({"dampening": -1.0}, "dampening must be a number from 0 to 1, not -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be a number of at least 0, not -1.0"),
    ],
)
def test_bad_options_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        BaselinePp(Features(4), **options)
