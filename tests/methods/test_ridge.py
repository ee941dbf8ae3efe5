"""Ridge regression against the normal equations, scikit-learn, finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor, nn

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.ridge import Ridge
from multifsl.registry import build
from tests.reference import prototypical
from tests.reference import ridge as reference

Task = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(items: int, dim: int, seed: int = 0) -> Task:
    """x [S, D], y [S] of four classes, queries [7, D] and their labels."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(4), rng.integers(0, 4, items - 4)])
    return rng.normal(size=(items, dim)) + y[:, None] / 2, y, rng.normal(size=(7, dim)), np.arange(7) % 4


def episode(task: Task) -> Episode:
    x, y, q, qy = (torch.from_numpy(leaf) for leaf in task)
    return Episode(Batch(x, y), Batch(q, qy), torch.ones(4, dtype=torch.bool))


class Linear(Encoder):
    """Embeddings by one matrix [D, I], to follow a gradient into the encoder."""

    modality = "features"

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.dim = weight.shape[0]
        self.weight = nn.Parameter(torch.from_numpy(weight))

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return x @ self.weight.T


@pytest.mark.parametrize(
    "items", [5, 11, 30], ids=["more numbers than items", "about as many", "more items than numbers"]
)
@pytest.mark.parametrize("options", [{}, {"ridge": 50.0, "scale": 1.0}, {"ridge": 0.01, "learned": False}])
def test_ridge_equals_the_paper(options: dict[str, Any], items: int) -> None:
    """Logits and loss from the normal equations by Gaussian elimination; both forms of the solution are met."""
    task = draw(items, 10)
    method = Ridge(Features(10), **options).double()
    out = method.solve(episode(task))
    ridge, scale = method.ridge, method.scale
    if method.learned:  # their logarithms began in float32
        ridge, scale = float(method.log_ridge.detach().exp()), float(method.log_scale.detach().exp())
    expected = reference.logits(*task[:3], 4, ridge, scale)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), prototypical.loss(expected, task[3]), rtol=1e-10)
    assert ridge == pytest.approx(options.get("ridge", 1.0), rel=1e-6)
    assert scale == pytest.approx(options.get("scale", 10.0), rel=1e-6)


def test_weights_are_those_of_scikit_learn() -> None:
    x, y, _, _ = task = draw(12, 5)
    method = Ridge(Features(5), ridge=2.0).double()
    support, _, present, _ = episode(task)
    state = method.adapt(support, present)
    theirs = SklearnRidge(alpha=float(method.log_ridge.detach().exp()), fit_intercept=False, tol=1e-12).fit(
        x, np.eye(4)[y]
    )
    np.testing.assert_allclose(state.weight.detach().numpy().T, theirs.coef_, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("items", [6, 12])
def test_one_meta_update_equals_the_reference(items: int) -> None:
    """A step of gradient descent on encoder, lambda and alpha; the reference's gradient by central differences."""
    task = draw(items, 5)
    rng = np.random.default_rng(1)
    method = Ridge(Linear(rng.normal(size=(8, 5)))).double()
    before = {k: p.detach().numpy().copy() for k, p in method.named_parameters()}
    x, y, q, qy = (torch.from_numpy(leaf)[None] for leaf in task)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method(Episode(Batch(x, y), Batch(q, qy), torch.ones(1, 4, dtype=torch.bool))).loss.mean().backward()
    optimizer.step()

    def loss(values: dict[str, np.ndarray]) -> float:
        w = values["encoder.weight"]
        scores = reference.logits(
            task[0] @ w.T,
            task[1],
            task[2] @ w.T,
            4,
            float(np.exp(values["log_ridge"])),
            float(np.exp(values["log_scale"])),
        )
        return prototypical.loss(scores, task[3])

    for name, parameter in method.named_parameters():
        expected = before[name].copy()
        for place in np.ndindex(before[name].shape):
            h = 1e-5
            sides = []
            for sign in (1, -1):
                moved = {k: v.copy() for k, v in before.items()}
                moved[name][place] += sign * h
                sides.append(loss(moved))
            expected[place] -= 0.1 * (sides[0] - sides[1]) / (2 * h)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-7, atol=1e-8, err_msg=name)


def test_embeddings_twice_as_long_want_four_times_the_ridge() -> None:
    """W halves, X' W stays."""
    (x, y), (q, _), present, _ = episode(draw(9, 6))
    assert isinstance(x, Tensor) and isinstance(q, Tensor)
    short, long = Ridge(Features(6), ridge=0.5, learned=False), Ridge(Features(6), ridge=2.0, learned=False)
    torch.testing.assert_close(
        long.classify(long.adapt(Batch(2 * x, y), present), 2 * q), short.classify(short.adapt(Batch(x, y), present), q)
    )


def test_what_is_not_learned_is_no_parameter() -> None:
    assert [n for n, _ in Ridge(Features(2)).named_parameters()] == ["log_ridge", "log_scale"]
    assert list(Ridge(Features(2), learned=False).parameters()) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ridge(ridge=0)", "ridge must be a number above 0, not 0"),
        ("ridge(ridge='learned')", "ridge must be a number above 0, not 'learned'"),
        ("ridge(scale=-1.0)", "scale must be a number above 0, not -1.0"),
        ("ridge(learned=2)", "learned must be True or False, not 2"),
    ],
)
def test_bad_options_say_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", spec, encoder=Features(2))
