"""Prototypical networks against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.method import Method
from multifsl.registry import build
from tests.reference import prototypical as reference

LABELS = np.array([0, 1, 2, 3] * 2 + [0, 0, 3])
QUERIES = np.array([0, 1, 2, 3, 0, 1, 2])
PRESENT = torch.ones(4, dtype=torch.bool)


def draw(dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(11, dim)), rng.normal(size=(7, dim))


def episode(x: torch.Tensor, q: torch.Tensor) -> Episode:
    return Episode(Batch(x, torch.from_numpy(LABELS)), Batch(q, torch.from_numpy(QUERIES)), PRESENT)


def made(**options: Any) -> Method:
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method: Method = build("methods", f"prototypical({inside})", encoder=Features(6)).double()
    return method


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 7.0}, {"distance": "cosine", "temperature": 0.3}, {"distance": "cosine"}]
)
def test_prototypical_equals_the_paper(options: dict[str, Any]) -> None:
    """Logits and loss as sums over plain numbers, 1e-10 in float64."""
    method, (x, q) = made(**options), draw()
    out = method.solve(episode(torch.from_numpy(x), torch.from_numpy(q)))
    temperature = float(torch.as_tensor(method.number("temperature"), dtype=torch.float64).detach())
    expected = reference.logits(x, LABELS, q, 4, **{**options, "temperature": temperature})
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), reference.loss(expected, QUERIES), rtol=1e-10)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_one_step_of_training(distance: str) -> None:
    """An SGD step of a linear encoder and of a learned temperature, against numerical differences of the loops."""
    torch.manual_seed(0)
    method, linear = made(distance=distance, temperature="learned"), torch.nn.Linear(5, 6, bias=False).double()
    x, q = draw(5)
    parameters = [linear.weight, *method.parameters()]

    def expected() -> float:
        weight, temperature = linear.weight.detach().numpy(), float(method.number("temperature").detach())
        scores = reference.logits(x @ weight.T, LABELS, q @ weight.T, 4, distance, temperature)
        return reference.loss(scores, QUERIES)

    loss = method.solve(episode(linear(torch.from_numpy(x)), linear(torch.from_numpy(q)))).loss
    for p, found in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        values, slope = p.detach().numpy(), np.zeros(p.shape)  # shares memory with the parameter
        for place in np.ndindex(slope.shape):
            here, ends = values[place].copy(), []
            for nudge in (1e-5, -1e-5):
                values[place] = here + nudge
                ends.append(expected())
            values[place] = here
            slope[place] = (ends[0] - ends[1]) / 2e-5
        assert np.abs(slope).max() > 1e-3
        np.testing.assert_allclose((p - 0.5 * found).detach().numpy(), values - 0.5 * slope, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l1"}, "no distance 'l1'; known: 'euclidean', 'cosine'"),
        ({"temperature": 0}, "temperature must be a number above 0 or 'learned', not 0"),
        ({"temperature": True}, "temperature must be a number above 0 or 'learned', not True"),
        ({"temperature": float("inf")}, "temperature must be a number above 0 or 'learned', not inf"),
    ],
)
def test_bad_options_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", "prototypical", encoder=Features(6)).__class__(Features(6), **options)


@pytest.mark.slow
def test_it_equals_easyfsl() -> None:
    easyfsl = pytest.importorskip("easyfsl.methods")
    theirs = easyfsl.PrototypicalNetworks(torch.nn.Flatten())
    x, q = (torch.from_numpy(a) for a in draw())
    theirs.process_support_set(x, torch.from_numpy(LABELS))
    method = made()
    ours = method.classify(method.adapt(Batch(x, torch.from_numpy(LABELS)), PRESENT), q)
    assert (
        ours.softmax(1) - (-(theirs(q) ** 2)).softmax(1)
    ).abs().max() < 1e-10  # theirs: the distance, not its square
