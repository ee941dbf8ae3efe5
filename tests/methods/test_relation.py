"""Relation networks against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.relation import Relation
from multifsl.registry import build
from tests.reference import relation as reference

LABELS = np.array([0, 1, 2, 3] * 2 + [0, 0, 3])
QUERIES = np.array([0, 1, 2, 3, 0, 1, 2])


def items(count: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def method(options: str, dim: int = 5) -> Relation:
    torch.manual_seed(0)
    made: Relation = build("methods", f"relation({options})", encoder=Features(dim)).double()
    return made


def batch(x: np.ndarray, y: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def layers(made: Relation) -> list[reference.Layer]:
    return [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (made.first, made.second, made.last)
    ]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_relation_equals_the_paper(pool: str, loss: str) -> None:
    """Logits and loss as sums over plain numbers, 1e-10 in float64."""
    made = method(f"pool={pool!r}, loss={loss!r}, hidden=7")
    x, q = items(11), items(7, seed=1)
    out = made.solve(Episode(batch(x, LABELS), batch(q, QUERIES), torch.ones(4, dtype=torch.bool)))
    expected = reference.logits(x, LABELS, q, 4, layers(made), pool)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), reference.loss(expected, QUERIES, loss), rtol=1e-10)
    assert (out.logits.argmax(1) == out.logits.sigmoid().argmax(1)).all()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_one_step_of_training(loss: str) -> None:
    """An SGD step of a linear encoder and every layer, against numerical differences of the loops."""
    made = method(f"loss={loss!r}, hidden=8", dim=2)
    linear = torch.nn.Linear(3, 2, bias=False).double()
    x, q, y, qy = items(4, 3), items(3, 3, seed=1), np.array([0, 1, 0, 1]), np.array([0, 1, 1])
    parameters = [linear.weight, *made.parameters()]

    def expected() -> float:
        weight = linear.weight.detach().numpy()
        return reference.loss(reference.logits(x @ weight.T, y, q @ weight.T, 2, layers(made)), qy, loss)

    found = made.solve(
        Episode(
            Batch(linear(torch.from_numpy(x)), torch.from_numpy(y)),
            Batch(linear(torch.from_numpy(q)), torch.from_numpy(qy)),
            torch.ones(2, dtype=torch.bool),
        )
    ).loss
    slopes = []
    for p in parameters:
        slope = np.zeros(p.shape)
        values = p.detach().numpy()  # shares memory with the parameter
        for place in np.ndindex(slope.shape):
            here, ends = values[place], []
            for nudge in (1e-6, -1e-6):
                values[place] = here + nudge
                ends.append(expected())
            values[place] = here
            slope[place] = (ends[0] - ends[1]) / 2e-6
        slopes.append(slope)
    before = [p.detach().numpy().copy() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    found.backward()
    optimizer.step()
    for p, was, slope in zip(parameters, before, slopes, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), was - 0.5 * slope, atol=1e-8)
    assert min(np.abs(slope).max() for slope in slopes[:-1]) > 1e-4
    if loss == "cross_entropy":  # which does not see what is added to all classes
        np.testing.assert_allclose(slopes[-1], 0.0, atol=1e-8)
    else:
        assert np.abs(slopes[-1]).max() > 1e-4


def test_only_present_classes_and_known_queries_are_in_the_mean() -> None:
    """Squared errors of a task within a wider one, with an unknown and a padding query that holds NaN."""
    made = method("")
    x, q = items(11), items(7, seed=1)
    plain = made.solve(Episode(batch(x, LABELS), batch(q, QUERIES), torch.ones(4, dtype=torch.bool)))
    more = np.concatenate([q, items(1, seed=2), np.full((1, 5), np.nan)])
    present = torch.tensor([True] * 4 + [False] * 2)
    wide = made.solve(Episode(batch(x, LABELS), batch(more, np.array([*QUERIES, -2, -1])), present))
    assert_close(wide.loss, plain.loss, rtol=1e-12, atol=1e-12)
    grads = torch.autograd.grad(wide.loss, list(made.parameters()))
    for a, b in zip(grads, torch.autograd.grad(plain.loss, list(made.parameters())), strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_mean_does_not_grow_with_the_shots_and_the_sum_does() -> None:
    x, q, y = torch.from_numpy(items(2)), torch.from_numpy(items(3, seed=1)), torch.tensor([0, 1])
    present = torch.ones(2, dtype=torch.bool)
    for pool, same in (("mean", True), ("sum", False)):
        made = method(f"pool={pool!r}")
        once, twice = (
            made.classify(made.adapt(Batch(x.repeat(n, 1), y.repeat(n)), present), q).detach() for n in (1, 2)
        )
        assert torch.allclose(once, twice, atol=1e-12) == same


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("loss='hinge'", "no loss 'hinge'; known: 'mse', 'cross_entropy'"),
        ("hidden=0", "hidden must be a whole number from 1, not 0"),
        ("pool='max'", "no pool 'max'; known: 'sum', 'mean'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"relation({options})", encoder=Features(2))


@pytest.mark.slow
def test_relation_scores_equal_easyfsl() -> None:
    """easyfsl's RelationNetworks, on 1 x 1 feature maps and with our perceptron as its relation module."""
    methods: Any = pytest.importorskip("easyfsl.methods")
    made = method("pool='mean'")  # which easyfsl takes where the paper takes the sum
    module = torch.nn.Sequential(
        torch.nn.Flatten(), made.first, torch.nn.ReLU(), made.second, torch.nn.ReLU(), made.last, torch.nn.Sigmoid()
    )
    theirs = methods.RelationNetworks(backbone=torch.nn.Identity(), feature_dimension=5, relation_module=module)
    x, q = torch.from_numpy(items(11)), torch.from_numpy(items(7, seed=1))
    with torch.no_grad():
        theirs.process_support_set(x[:, :, None, None], torch.from_numpy(LABELS))
        expected = theirs(q[:, :, None, None])
        state = made.adapt(Batch(x, torch.from_numpy(LABELS)), torch.ones(4, dtype=torch.bool))
        assert_close(made.classify(state, q).sigmoid(), expected, rtol=1e-10, atol=1e-10)
