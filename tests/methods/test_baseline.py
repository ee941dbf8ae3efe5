"""Baseline against the paper as plain loops, and against torch.optim.SGD."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.functional import cross_entropy_gradient, masked_cross_entropy
from multifsl.methods.baseline import Baseline
from tests.reference import baseline as reference

LABELS, QUERY_LABELS = np.array([0, 1, 2, 0, 0, 2, 1]), np.array([0, 1, 2, 2])
PRESENT = torch.ones(3, dtype=torch.bool)


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(LABELS), 4)), rng.normal(size=(len(QUERY_LABELS), 4))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "lr": 0.3},
        {"steps": 30, "lr": 0.5},
        {"steps": 12, "lr": 1.0, "momentum": 0.0, "dampening": 0.0, "weight_decay": 0.5},
        {"steps": 12, "lr": 0.1, "momentum": 0.5, "dampening": 0.2, "weight_decay": 0.0},
    ],
)
def test_baseline_equals_the_paper(options: dict[str, Any]) -> None:
    """The trained head, logits and loss as sums over plain numbers, 1e-10 in float64."""
    x, q = data()
    method = Baseline(Features(4), **options)
    support, query = (Batch(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, LABELS), (q, QUERY_LABELS)))
    state, out = method.adapt(support, PRESENT), method.solve(Episode(support, query, PRESENT))
    weight, bias = reference.head(x, LABELS, 3, **options)
    np.testing.assert_allclose(state.weight.numpy(), weight, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(state.bias.numpy(), bias, rtol=1e-10, atol=1e-10)
    expected = q @ weight.T + bias
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out.loss.item(), reference.loss(expected, QUERY_LABELS), rtol=1e-10)


def test_the_default_head_is_that_of_torch() -> None:
    """torch.optim.SGD on an nn.Linear, by autograd, with the options that the authors give it; 1e-10 in float64."""
    x, y = torch.from_numpy(data()[0]), torch.from_numpy(LABELS)
    method = Baseline(Features(4))
    layer = nn.Linear(4, 3).double()
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05, momentum=0.9, dampening=0.9, weight_decay=0.001)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(layer(x), y).backward()
        optimizer.step()
    state = method.adapt(Batch(x, y), PRESENT)
    assert_close(state.weight, layer.weight.detach(), rtol=1e-10, atol=1e-12)
    assert_close(state.bias, layer.bias.detach(), rtol=1e-10, atol=1e-12)


def test_the_gradient_written_out_is_that_of_autograd() -> None:
    """Of masked_cross_entropy in its logits, with a padding row, an unknown row and an absent class."""
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits[:, 3] = -torch.inf
    y = torch.tensor([0, 2, -1, 1, -2])
    logits.requires_grad_()
    (expected,) = torch.autograd.grad(masked_cross_entropy(logits, y), logits)
    found = cross_entropy_gradient(logits.detach(), y)
    assert_close(found, expected, rtol=1e-12, atol=1e-14)
    assert (found[[2, 4]] == 0).all() and (found[:, 3] == 0).all()


def test_long_training_reaches_the_optimum() -> None:
    """With weight decay the loss is strictly convex: its gradient, by autograd, is 0 at the head found."""
    x, y = torch.from_numpy(data()[0]), torch.from_numpy(LABELS)
    state = Baseline(Features(4), steps=2000, lr=1.0, weight_decay=0.1).adapt(Batch(x, y), PRESENT)
    weight, bias = state.weight.requires_grad_(), state.bias.requires_grad_()
    loss = F.cross_entropy(F.linear(x, weight, bias), y) + 0.05 * (weight.square().sum() + bias.square().sum())
    for slope in torch.autograd.grad(loss, [weight, bias]):
        assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)


def test_an_answer_can_be_repeated_and_leaves_the_encoder_alone() -> None:
    """Two calls agree to the bit; the support set gets no gradient, the queries get that of a linear head."""
    x, q = (torch.from_numpy(a).requires_grad_() for a in data())
    method = Baseline(Features(4))
    support = Batch(x, torch.from_numpy(LABELS))
    first, second = method.adapt(support, PRESENT), method.adapt(support, PRESENT)
    assert torch.equal(first.weight, second.weight)
    slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
        method.classify(first, q)[:, 1].sum(), [x, q], allow_unused=True
    )
    assert slopes[0] is None and slopes[1] is not None
    assert_close(slopes[1], first.weight[1].expand(4, 4))


@pytest.mark.parametrize("length", [0.5, 5.0, 40.0])
def test_the_defaults_learn_at_the_lengths_that_encoders_give(length: float) -> None:
    """Five classes at five corners, embeddings of that length, five each: all queries right, nothing diverges."""
    rng = np.random.default_rng(0)
    y = np.arange(5).repeat(5)
    draws = [np.eye(16)[y] + rng.normal(size=(25, 16)) * 0.1 for _ in range(2)]
    x, q = (torch.from_numpy(length * d / np.linalg.norm(d, axis=1, keepdims=True)) for d in draws)
    method = Baseline(Features(16))
    logits = method.classify(method.adapt(Batch(x, torch.from_numpy(y)), torch.ones(5, dtype=torch.bool)), q)
    assert torch.isfinite(logits).all() and (logits.argmax(1).numpy() == y).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1, not 0"),
        ({"lr": 0.0}, "lr must be a number above 0, not 0.0"),
        ({"momentum": 1.0}, "momentum must be a number from 0 and below 1, not 1.0"),
        ({"dampening": 1.5}, "dampening must be a number from 0 to 1, not 1.5"),
        ({"weight_decay": -1.0}, "weight_decay must be a number of at least 0, not -1.0"),
    ],
)
def test_bad_options_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        Baseline(Features(4), **options)
