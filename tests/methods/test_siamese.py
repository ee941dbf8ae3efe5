"""Siamese networks against their papers as plain loops over pairs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.functional import contrastive_loss, euclidean_distances
from multifsl.methods.siamese import Siamese
from multifsl.registry import build
from tests.reference import siamese as reference

LABELS = np.array([0, 1, 2, 3] * 2 + [0, 0, 3])
QUERIES = np.array([0, 1, 2, 3, 0, -2, 2])  # one of no class


def items(count: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def episode(x: np.ndarray, y: np.ndarray, q: np.ndarray, qy: np.ndarray, n_classes: int = 4) -> Episode:
    support, query = Batch(torch.from_numpy(x), torch.from_numpy(y)), Batch(torch.from_numpy(q), torch.from_numpy(qy))
    return Episode(support, query, torch.ones(n_classes, dtype=torch.bool))


def method(options: dict[str, Any], dim: int = 6) -> Siamese:
    """With alpha of both signs."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    made: Siamese = build("methods", f"siamese({inside})", encoder=Features(dim)).double()
    if made.loss == "koch":
        with torch.no_grad():
            made.alpha.copy_(torch.linspace(-0.7, 0.4, dim))
            made.bias.fill_(0.3)
    return made


def learned(made: Siamese) -> dict[str, Any]:
    if made.loss != "koch":
        return {}
    return {"alpha": made.alpha.detach().numpy(), "bias": float(made.bias.detach())}


@pytest.mark.parametrize("score", ["mean", "max"])
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("loss", "margin"), [("squared", 1.0), ("squared", 2.5), ("plain", 1.3), ("koch", 1.0)])
def test_siamese_equals_the_papers(loss: str, margin: float, normalise: bool, balanced: bool, score: str) -> None:
    """Loss and logits as sums over plain numbers, 1e-10 in float64."""
    made = method({"loss": loss, "margin": margin, "normalise": normalise, "balanced": balanced, "score": score})
    x, q = items(11), items(7, seed=1)
    out = made.solve(episode(x, LABELS, q, QUERIES))
    common: dict[str, Any] = {"loss": loss, "normalise": normalise, **learned(made)}
    expected = reference.loss(
        np.concatenate([x, q]), np.concatenate([LABELS, QUERIES]), margin=margin, balanced=balanced, **common
    )
    np.testing.assert_allclose(float(out.loss.detach()), expected, rtol=1e-10)
    logits = reference.logits(x, LABELS, q, 4, score=score, **common)
    np.testing.assert_allclose(out.logits.detach().numpy(), logits, rtol=1e-10, atol=1e-10)
    state = made.adapt(Batch(torch.from_numpy(x), torch.from_numpy(LABELS)), torch.ones(4, dtype=torch.bool))
    assert_close(made.classify(state, torch.from_numpy(q)), out.logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["squared", "plain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_contrastive_loss_of_angles_on_a_circle(form: str, dtype: torch.dtype) -> None:
    """Points given as angles; their distances are 2 sin(angle / 2), their pairs listed by hand."""
    angles = torch.tensor([0.0, 40.0, 60.0, 180.0], dtype=torch.float64).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], 1).to(dtype)
    pairs = [(0, 1, True), (0, 2, False), (0, 3, True), (1, 2, False), (2, 3, False), (3, 3, True), (1, 1, False)]
    distances = euclidean_distances(points, points)
    got = contrastive_loss(
        torch.stack([distances[i, j] for i, j, _ in pairs]),
        torch.tensor([same for *_, same in pairs]),
        margin=1.5,
        form=form,  # type: ignore[arg-type]
    )
    for (i, j, same), value in zip(pairs, got.tolist(), strict=True):
        d = 2 * np.sin(abs(float(angles[i] - angles[j])) / 2)
        cost = d if same else max(0.0, 1.5 - d)
        assert value == pytest.approx(
            cost**2 if form == "squared" else cost, abs={torch.bfloat16: 0.03, torch.float32: 3e-3}.get(dtype, 1e-7)
        )


@pytest.mark.parametrize("form", ["squared", "plain"])
def test_gradients_of_the_contrastive_loss(form: str) -> None:
    """Finite differences, and 0 instead of NaN for two items that are one."""
    a = torch.from_numpy(items(4)).requires_grad_()
    same = torch.tensor([[True, False, False, True]]).expand(3, -1)

    def loss(a: torch.Tensor) -> torch.Tensor:
        return contrastive_loss(euclidean_distances(a[:3], a.roll(1, 1)), same, margin=4.0, form=form)  # type: ignore[arg-type]

    assert float(loss(a).detach().min()) > 0
    assert torch.autograd.gradcheck(loss, (a,))
    twins = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    found = contrastive_loss(euclidean_distances(twins[:1], twins[1:]), torch.tensor([[False]]), form=form)  # type: ignore[arg-type]
    assert float(found.detach()) == 1.0
    assert_close(torch.autograd.grad(found.sum(), twins)[0], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("loss", ["squared", "plain", "koch"])
def test_one_step_of_training(loss: str) -> None:
    """An SGD step of a linear encoder, alpha and b, against numerical differences of the loops over pairs."""
    made = method({"loss": loss}, dim=3)
    linear = torch.nn.Linear(4, 3, bias=False).double()
    x, q, qy = items(6, 4), items(4, 4, seed=1), np.array([0, 1, 2, 0])
    y = np.array([0, 0, 1, 1, 2, 2])
    weights = [p.detach().numpy().copy() for p in (linear.weight, *made.parameters())]

    def expected(weight: np.ndarray, alpha: np.ndarray | None = None, bias: Any = 0.0) -> float:
        z = np.concatenate([x, q]) @ weight.T
        return reference.loss(
            z, np.concatenate([y, qy]), loss=loss, normalise=loss != "koch", alpha=alpha, bias=float(bias)
        )

    optimizer = torch.optim.SGD([*linear.parameters(), *made.parameters()], lr=0.5)
    support, query, present, _ = episode(x, y, q, qy, 3)
    made.solve(Episode(Batch(linear(support.x), support.y), Batch(linear(query.x), query.y), present)).loss.backward()
    optimizer.step()
    for n, after in enumerate((linear.weight, *made.parameters())):
        stepped = weights[n].copy()
        for place in np.ndindex(stepped.shape):
            ends = []
            for nudge in (1e-6, -1e-6):
                moved = [w.copy() for w in weights]
                moved[n][place] += nudge
                ends.append(expected(*moved))
            stepped[place] -= 0.5 * (ends[0] - ends[1]) / 2e-6
        assert np.abs(stepped - weights[n]).max() > 1e-3
        np.testing.assert_allclose(after.detach().numpy(), stepped, atol=1e-8)


def test_balanced_pairs_of_one_kind_only() -> None:
    """Where every pair is of two classes, or none is there, the loss is that kind's mean, or 0; both have gradients."""
    made = method({"normalise": False, "margin": 9.0})
    x = torch.from_numpy(items(3)).requires_grad_()
    nothing = Batch(x[:0], torch.zeros(0, dtype=torch.int64))
    present = torch.ones(3, dtype=torch.bool)
    others = made.solve(Episode(Batch(x, torch.tensor([0, 1, 2])), nothing, present)).loss
    expected = reference.loss(x.detach().numpy(), np.array([0, 1, 2]), margin=9.0, normalise=False)
    np.testing.assert_allclose(float(others.detach()), expected, rtol=1e-10)
    none = made.solve(Episode(Batch(x[:1], torch.tensor([0])), nothing, present)).loss
    assert float(none.detach()) == 0.0
    assert all(torch.isfinite(torch.autograd.grad(loss, x)[0]).all() for loss in (others, none))


@pytest.mark.parametrize("loss", ["squared", "plain", "koch"])
def test_padding_that_holds_nan_leaves_the_gradients_alone(loss: str) -> None:
    made = method({"loss": loss})
    x, q, nan = items(11), items(7, seed=1), np.full((1, 6), np.nan)
    found = []
    for pad in (False, True):
        support = torch.from_numpy(np.concatenate([x, nan][: 1 + pad])).requires_grad_()
        query = torch.from_numpy(np.concatenate([q, nan][: 1 + pad]))
        y, qy = torch.tensor([*LABELS, -1][: 11 + pad]), torch.tensor([*QUERIES, -1][: 7 + pad])
        out = made.solve(Episode(Batch(support, y), Batch(query, qy), torch.ones(4, dtype=torch.bool)))
        slopes = torch.autograd.grad(out.loss, [support, *made.parameters()])
        found.append([out.loss, slopes[0][:11], *slopes[1:]])
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("score", ["mean", "max"])
def test_a_class_without_support_is_never_the_answer(score: str) -> None:
    made = method({"score": score})
    x, y = torch.from_numpy(items(3)), torch.tensor([0, 0, 2])
    logits = made.classify(made.adapt(Batch(x, y), torch.ones(3, dtype=torch.bool)), x)
    assert (logits[:, 1] == float("-inf")).all() and torch.isfinite(logits[:, [0, 2]]).all()


def test_koch_prefers_the_closer_pair_before_training() -> None:
    made = build("methods", "siamese(loss='koch')", encoder=Features(2))
    state = made.adapt(Batch(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([0, 1])), torch.tensor([True, True]))
    # b - 4 / D * sum |a - b|: 2 - 2 * 1 and 2 - 2 * 4
    assert_close(made.classify(state, torch.tensor([[0.0, 0.0]])), torch.tensor([[0.0, -6.0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("loss='triplet'", "no loss 'triplet'; known: 'squared', 'plain', 'koch'"),
        ("margin=0", "margin must be a number above 0, not 0"),
        ("score='min'", "no score 'min'; known: 'mean', 'max'"),
        ("balanced='no'", "balanced must be True or False, not 'no'"),
        ("normalise=1", "normalise must be True or False, not 1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"siamese({options})", encoder=Features(2))


def test_bad_use_of_the_contrastive_loss() -> None:
    pair = torch.tensor([0.5]), torch.tensor([True])
    with pytest.raises(MultifslError, match="no form 'cubic'"):
        contrastive_loss(*pair, form="cubic")  # type: ignore[arg-type]
    with pytest.raises(MultifslError, match="margin must be a number above 0, not -1"):
        contrastive_loss(*pair, margin=-1)
