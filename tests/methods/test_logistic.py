"""Logistic regression against Newton's method written out, scikit-learn, finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.logistic import EASY, Logistic
from multifsl.registry import build
from tests.reference import logistic as reference
from tests.reference import prototypical

Task = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(items: int, dim: int, way: int = 4, length: float = 1.0, seed: int = 0) -> Task:
    """x [S, D], y [S] of unequally many items a class, queries [7, D] and their labels."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(way), rng.integers(0, way, items - way)])
    x = (rng.normal(size=(items, dim)) + rng.normal(size=(way, dim))[y]) * length
    return x, y, rng.normal(size=(7, dim)) * length, np.arange(7) % way


def episode(task: Task, way: int = 4) -> Episode:
    x, y, q, qy = (torch.from_numpy(leaf) for leaf in task)
    return Episode(Batch(x, y), Batch(q, qy), torch.ones(way, dtype=torch.bool))


@pytest.mark.parametrize("items", [5, 14], ids=["more numbers than items", "more items than numbers"])
@pytest.mark.parametrize(
    "options",
    [{"scale": 1.0}, {"c": 30.0, "scale": 1.0}, {"normalise": False, "scale": 1.0}, {"c": 0.01, "scale": 4.0}],
)
def test_logistic_equals_the_regression_written_out(options: dict[str, Any], items: int) -> None:
    """Logits and loss of the minimum in the weights themselves; ours is found in the span of the items."""
    task = draw(items, 6)
    method = Logistic(Features(6), **options).double()
    out = method.solve(episode(task))
    expected = reference.logits(
        *task[:3],
        4,
        **{**options, "scale": float(torch.as_tensor(method.number("scale"), dtype=torch.float64).detach())},
    )
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(float(out.loss), prototypical.loss(expected, task[3]), rtol=1e-10)


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize(("balanced", "weight"), [(True, "balanced"), (False, None)])
def test_weights_and_probabilities_are_those_of_scikit_learn(c: float, dim: int, balanced: bool, weight: Any) -> None:
    x, y, q, _ = task = draw(20, dim)
    method = Logistic(Features(dim), c=c, balanced=balanced, normalise=False, scale=1.0).double()
    (support, (queries, _), present, _) = episode(task)
    state = method.adapt(support, present)
    theirs = LogisticRegression(C=c, class_weight=weight, tol=1e-12, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(state.weight.numpy().T, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(state.bias.numpy(), theirs.intercept_, atol=1e-4)
    np.testing.assert_allclose(method.classify(state, queries).softmax(1).numpy(), theirs.predict_proba(q), atol=3e-5)


@pytest.mark.parametrize(("c", "length"), [(1e-3, 0.01), (1.0, 1.0), (100.0, 10.0), (1.0, 100.0)])
@pytest.mark.parametrize("items", [5, 60])
def test_fifteen_steps_are_enough(c: float, length: float, items: int) -> None:
    """The minimum's own equations hold: W = c X^T (Y - P), and the errors of each class add up to 0."""
    x, y, _, _ = task = draw(items, 20, way=5, length=length)
    method = Logistic(Features(20), c=c, balanced=False, normalise=False).double()
    support, _, present, _ = episode(task, 5)
    state = method.adapt(support, present)
    errors = np.eye(5)[y] - (torch.from_numpy(x) @ state.weight + state.bias).softmax(1).numpy()
    np.testing.assert_allclose(state.weight.numpy(), c * x.T @ errors, rtol=1e-7, atol=1e-9 * c * length)
    np.testing.assert_allclose(errors.sum(0), 0, atol=1e-9)


def test_full_newton_steps_can_lead_astray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five items of four classes in three numbers: without halving its steps, the search ends far from the minimum."""
    y = np.array([0, 1, 2, 3, 3])
    x = np.random.default_rng(14).standard_t(1.5, size=(5, 3)) * 25
    support, _, present, _ = episode((x, y, x[:1], y[:1]))

    def miss() -> float:
        state = Logistic(Features(3), c=5.0, balanced=False, normalise=False).double().adapt(support, present)
        errors = np.eye(4)[y] - (torch.from_numpy(x) @ state.weight + state.bias).softmax(1).numpy()
        return float(abs(state.weight.numpy() - 5.0 * x.T @ errors).max())

    assert miss() < 1e-9
    monkeypatch.setattr("multifsl.methods.logistic.STEP_LENGTHS", 1)
    assert miss() > 1


@pytest.mark.parametrize("options", [{}, {"c": 20.0, "normalise": False}])
def test_the_gradient_is_that_of_the_minimum(options: dict[str, Any]) -> None:
    """In every number of support items and queries: central differences of the reference's loss, which is solved anew."""
    task = draw(7, 4, way=3)
    method = Logistic(Features(4), **options, scale=3.0).double()
    (sx, sy), (qx, qy), present, _ = episode(task, 3)
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    sx.requires_grad_(), qx.requires_grad_()
    found = torch.autograd.grad(method.solve(Episode(Batch(sx, sy), Batch(qx, qy), present)).loss, [sx, qx])
    scale, h = float(torch.as_tensor(method.number("scale"), dtype=torch.float64).detach()), 1e-5
    for which, gradient in zip((0, 2), found, strict=True):
        for place in np.ndindex(task[which].shape):
            sides = []
            for sign in (1, -1):
                moved = [leaf.copy() for leaf in task]
                moved[which][place] += sign * h
                scores = reference.logits(moved[0], moved[1], moved[2], 3, **options, scale=scale)
                sides.append(prototypical.loss(scores, moved[3]))
            assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-6, abs=1e-8)


def test_the_gradient_does_not_hang_on_the_number_of_steps() -> None:
    """Ten steps or thirty: one minimum, one gradient."""
    found = []
    for iterations in (10, 30):
        (sx, sy), query, present, _ = episode(draw(10, 6))
        assert isinstance(sx, Tensor)
        sx.requires_grad_()
        method = Logistic(Features(6), iterations=iterations).double()
        found.append(torch.autograd.grad(method.solve(Episode(Batch(sx, sy), query, present)).loss, sx)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-14)


def test_one_class_alone_is_certain() -> None:
    """No error is left to learn from: weights and bias 0, and no NaN in the gradient."""
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    method = Logistic(Features(4)).double()
    support, present = Batch(x, torch.zeros(3, dtype=torch.int64)), torch.tensor([True, False])
    out = method.solve(Episode(support, Batch(x, torch.zeros(3, dtype=torch.int64)), present))
    assert out.logits[:, 0].abs().max() < 1e-12 and float(out.loss.detach()) == 0
    assert torch.isfinite(torch.autograd.grad(out.loss, x)[0]).all()


def test_float32_agrees_with_float64() -> None:
    """The solver works in float64 either way; what is left is the rounding of the embeddings' products."""
    (sx, sy), (qx, _), present, _ = episode(draw(25, 64, way=5), 5)
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    exact, rounded = Logistic(Features(64), c=100.0).double(), Logistic(Features(64), c=100.0)
    single = rounded.classify(rounded.adapt(Batch(sx.float(), sy), present), qx.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), exact.classify(exact.adapt(Batch(sx, sy), present), qx), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("logistic(c=0)", "c must be a number above 0, not 0"),
        ("logistic(c='learned')", "c must be a number above 0, not 'learned'"),
        ("logistic(normalise=1)", "normalise must be True or False, not 1"),
        ("logistic(scale=0.0)", "scale must be a number above 0 or 'learned', not 0.0"),
        ("logistic(iterations=0)", "iterations must be a whole number from 1, not 0"),
        ("logistic(iterations=2.5)", "iterations must be a whole number from 1, not 2.5"),
    ],
)
def test_bad_options_say_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", spec, encoder=Features(2))


@pytest.mark.parametrize("shots", [(5, 5), (20, 1)])
def test_two_classes_are_scikit_learns_at_twice_the_c(shots: tuple[int, int]) -> None:
    """It fits one row of weights where here are two, of which only the difference counts."""
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], shots)
    x = rng.normal(size=(len(y), 6)) + y[:, None] * 0.5
    method = Logistic(Features(6), normalise=False, balanced=False, scale=1.0).double()
    state = method.adapt(Batch(torch.from_numpy(x), torch.from_numpy(y)), torch.ones(2, dtype=torch.bool))
    ours = method.classify(state, torch.from_numpy(x)).softmax(1).numpy()
    theirs = LogisticRegression(C=2.0, tol=1e-12, max_iter=10_000).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_class_of_one_example_among_classes_of_five_is_found() -> None:
    """By default; with scikit-learn's plain weights even its own example goes to a larger class."""
    torch.manual_seed(0)
    y = torch.tensor([0] * 5 + [1] * 5 + [2] * 5 + [3])
    x = torch.eye(8)[y] + 0.3 * torch.randn(16, 8)
    for balanced in (True, False):
        method = Logistic(Features(8), balanced=balanced)
        answer = method.classify(method.adapt(Batch(x, y), torch.ones(4, dtype=torch.bool)), x[-1:]).argmax()
        assert (int(answer) == 3) == balanced


@pytest.mark.parametrize(("way", "shots", "c"), [(2, 60, 1.0), (5, 22, 1.0), (20, 4, 1.0), (5, 4, 4.0), (2, 1, 40.0)])
def test_five_steps_are_enough_where_they_are_taken(way: int, shots: int, c: float) -> None:
    """Of tight classes, whose kernel is near singular, with one class of many examples against one example of each other."""
    rng = np.random.default_rng(way)
    y = np.concatenate([np.zeros(way * shots, dtype=np.int64), np.arange(1, way)])
    x = torch.from_numpy(rng.normal(size=(way, 16))[y] + 0.05 * rng.normal(size=(len(y), 16)))
    support, present = Batch(x, torch.from_numpy(y)), torch.ones(way, dtype=torch.bool)
    assert c * len(y) <= EASY
    few, many = (Logistic(Features(16), c=c, iterations=n).double().adapt(support, present) for n in (None, 30))
    torch.testing.assert_close(few.weight, many.weight, rtol=0, atol=1e-6 * float(many.weight.abs().max()))
