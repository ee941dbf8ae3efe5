"""The multi-class support vector machine against its dual solved item by item, scipy, liblinear, finite differences."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.svm import LinearSVC
from torch import Tensor, nn

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.svm_head import SvmHead
from multifsl.registry import build
from tests.reference import prototypical
from tests.reference import svm_head as reference

Task = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def draw(way: int, shot: int, dim: int, length: float = 1.0, seed: int = 0) -> Task:
    """x [S, D] that overlap, y [S], queries [2 N, D] and their labels."""
    rng = np.random.default_rng(seed)
    centres, y, qy = rng.normal(size=(way, dim)), np.repeat(np.arange(way), shot), np.repeat(np.arange(way), 2)
    x, q = (centres[label] + 1.5 * rng.normal(size=(len(label), dim)) for label in (y, qy))
    return x * length, y, q * length, qy


def episode(task: Task, way: int) -> Episode:
    x, y, q, qy = (torch.from_numpy(leaf) for leaf in task)
    return Episode(Batch(x, y), Batch(q, qy), torch.ones(way, dtype=torch.bool))


def solved(task: Task, way: int, **options: Any) -> np.ndarray:
    """Our a [S, N], from the weights X^T a, where X has full rank in its rows."""
    method = SvmHead(Features(task[0].shape[1]), **options).double()
    support, _, present, _ = episode(task, way)
    weight = method.adapt(support, present).weight.detach().numpy()
    return np.linalg.lstsq(task[0].T, weight, rcond=None)[0]


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


@pytest.mark.parametrize(("way", "shot"), [(2, 3), (5, 1), (5, 5), (3, 10)])
@pytest.mark.parametrize("options", [{}, {"c": 1.0, "smoothing": 0.3}, {"c": 5.0, "smoothing": 0.1, "scale": 2.0}])
def test_svm_head_equals_the_paper(options: dict[str, Any], way: int, shot: int) -> None:
    """Logits and loss of the dual solved one item at a time, which shares no step with an interior-point method."""
    task = draw(way, shot, 8)
    out = SvmHead(Features(8), **options).double().solve(episode(task, way))
    expected = reference.logits(*task[:3], way, **options)
    np.testing.assert_allclose(
        out.logits.detach().numpy(), expected, rtol=1e-6 if "scale" in options else 1e-10, atol=1e-10
    )
    np.testing.assert_allclose(float(out.loss.detach()), prototypical.loss(expected, task[3]), rtol=1e-6)


@pytest.mark.parametrize(("way", "shot"), [(3, 2), (5, 1)])
def test_the_dual_is_that_of_the_paper_by_scipy(way: int, shot: int) -> None:
    """SLSQP on the dual as the paper writes it, knowing neither its structure nor its solution."""
    x, y, _, _ = task = draw(way, shot, 20)
    n, kernel, target, c = len(y), x @ x.T, np.eye(way)[y], 0.5

    def cost(a: np.ndarray) -> tuple[float, np.ndarray]:
        a = a.reshape(n, way)
        gradient = kernel @ a + a - target
        return float(0.5 * (a * (kernel @ a + a)).sum() - (a * target).sum()), gradient.reshape(-1)

    found = minimize(
        cost,
        np.zeros(n * way),
        jac=True,
        method="SLSQP",
        bounds=[(None, c * t) for t in target.reshape(-1)],
        constraints={
            "type": "eq",
            "fun": lambda a: a.reshape(n, way).sum(1),
            "jac": lambda a: np.kron(np.eye(n), np.ones(way)),
        },
        options={"ftol": 1e-14, "maxiter": 1000},
    )
    np.testing.assert_allclose(solved(task, way, c=c), found.x.reshape(n, way), atol=1e-5)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_without_smoothing_it_is_the_machine_of_crammer_and_singer(c: float) -> None:
    """liblinear's own solver of the unsmoothed machine: the same weights."""
    x, y, _, _ = task = draw(5, 5, 12)
    method = SvmHead(Features(12), c=c, smoothing=1e-8).double()
    support, _, present, _ = episode(task, 5)
    theirs = LinearSVC(C=c, multi_class="crammer_singer", fit_intercept=False, tol=1e-9, max_iter=1_000_000).fit(x, y)
    ours = method.adapt(support, present).weight.detach().numpy().T
    np.testing.assert_allclose(ours, theirs.coef_, atol=1e-6)


@pytest.mark.parametrize(("length", "iterations"), [(0.1, 20), (1.0, 20), (25.0, 20), (100.0, 40)])
@pytest.mark.parametrize(("way", "shot"), [(5, 1), (5, 10), (20, 5)])
def test_the_steps_meet_the_conditions_of_the_optimum(way: int, shot: int, length: float, iterations: int) -> None:
    """Karush, Kuhn, Tucker: a within its bounds; an item's slopes equal where a may grow, and no lower where it may not.

    Embeddings of lengths from about 2 to 2000; those of 2000 take more steps than the default's.
    """
    x, y, _, _ = task = draw(way, shot, 128, length)
    a, c = solved(task, way, iterations=iterations), 0.1
    target = np.eye(way)[y]
    slope = target - x @ (x.T @ a) - a
    free = a < c * target - 1e-9
    assert (a <= c * target + 1e-9).all()
    np.testing.assert_allclose(a.sum(1), 0, atol=1e-10)
    lowest_free = np.where(free, slope, np.inf).min(1)  # each item has one: all at their bounds do not add up to 0
    np.testing.assert_allclose(
        np.where(free, slope, lowest_free[:, None]), np.broadcast_to(lowest_free[:, None], a.shape), atol=1e-7
    )
    assert (np.where(free, np.inf, slope) >= lowest_free[:, None] - 1e-7).all()


@pytest.mark.parametrize("options", [{"c": 0.1, "smoothing": 1.0}, {"c": 2.0, "smoothing": 0.1}])
def test_one_meta_update_equals_the_reference(options: dict[str, float]) -> None:
    """A step of gradient descent on encoder and scale; the reference's gradient by central differences, solved anew each time."""
    task = draw(3, 3, 5)
    method = SvmHead(Linear(np.random.default_rng(1).normal(size=(6, 5))), **options).double()  # type: ignore[arg-type]
    before = {k: p.detach().numpy().copy() for k, p in method.named_parameters()}
    a = reference.dual(task[0] @ before["encoder.weight"].T, task[1], 3, **options)
    bounds = options["c"] * np.eye(3)[task[1]]
    assert (a < bounds - 1e-6).any() and (a > bounds - 1e-12).any()  # some constraints hold with equality, some do not
    x, y, q, qy = (torch.from_numpy(leaf)[None] for leaf in task)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    method(Episode(Batch(x, y), Batch(q, qy), torch.ones(1, 3, dtype=torch.bool))).loss.mean().backward()
    optimizer.step()

    def loss(values: dict[str, np.ndarray]) -> float:
        w = values["encoder.weight"]
        scale = float(np.exp(values["log_scale"]))
        return prototypical.loss(
            reference.logits(task[0] @ w.T, task[1], task[2] @ w.T, 3, scale=scale, **options), task[3]
        )

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


def test_items_far_from_the_margin_change_nothing() -> None:
    """A support vector machine: what is well on its own side has weight 0, and may be left out."""
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [9.0, 1.0]])
    method = SvmHead(Features(2), c=10.0, smoothing=1e-6, iterations=25).double()
    present, y = torch.ones(2, dtype=torch.bool), torch.tensor([0, 1, 0])
    with_it = method.adapt(Batch(torch.from_numpy(x), y), present).weight
    torch.testing.assert_close(with_it, method.adapt(Batch(torch.from_numpy(x[:2]), y[:2]), present).weight)
    torch.testing.assert_close(with_it[:, 0].detach(), torch.tensor([0.5, 0.0], dtype=torch.float64), rtol=0, atol=1e-6)


def test_many_steps_do_no_harm() -> None:
    """Far beyond convergence, where all products are 0 but for rounding."""
    task = draw(5, 2, 16, 0.1)
    np.testing.assert_allclose(solved(task, 5, iterations=300), solved(task, 5), atol=1e-10)


def test_one_class_alone_has_nothing_to_learn() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    method = SvmHead(Features(4)).double()
    support, present = Batch(x, torch.zeros(3, dtype=torch.int64)), torch.tensor([True, False])
    out = method.solve(Episode(support, Batch(x, torch.zeros(3, dtype=torch.int64)), present))
    assert out.logits[:, 0].abs().max() < 1e-10 and float(out.loss.detach()) == 0
    assert torch.isfinite(torch.autograd.grad(out.loss, x)[0]).all()


def test_float32_agrees_with_float64() -> None:
    """The solver works in float64 either way; what is left is the rounding of the embeddings' products."""
    (sx, sy), (qx, _), present, _ = episode(draw(5, 5, 64, 3.0), 5)
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    exact, rounded = SvmHead(Features(64)).double(), SvmHead(Features(64))
    single = rounded.classify(rounded.adapt(Batch(sx.float(), sy), present), qx.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), exact.classify(exact.adapt(Batch(sx, sy), present), qx), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("svm_head(c=0)", "c must be a number above 0, not 0"),
        ("svm_head(smoothing=0.0)", "smoothing must be a number above 0, not 0.0"),
        ("svm_head(scale='fixed')", "scale must be a number above 0 or 'learned', not 'fixed'"),
        ("svm_head(iterations=0)", "iterations must be a whole number from 1, not 0"),
    ],
)
def test_bad_options_say_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", spec, encoder=Features(2))


@pytest.mark.parametrize(("length", "options"), [(10.0, "smoothing=1e-6"), (300.0, "smoothing=0.01"), (3000.0, "")])
def test_items_that_hardly_differ_are_told_apart_in_float32(length: float, options: str) -> None:
    """Differences of 1e-4 are lost where products are taken in float32; against float64, on the same numbers."""
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(1, 64) + 1e-4 * torch.randn(25, 64)) * length
    y, found = torch.arange(5).repeat(5), []
    for dtype in (torch.float32, torch.float64):
        method = build("methods", f"svm_head(iterations=60, scale=1.0, {options})", encoder=Features(64)).to(dtype)
        state = method.adapt(Batch(x.to(dtype), y), torch.ones(5, dtype=torch.bool))
        found.append(method.classify(state, x.to(dtype)).double())
    assert float((found[0] - found[1]).abs().max()) < 5e-3 * float(found[1].abs().max())


@pytest.mark.parametrize(("length", "c"), [(10.0, 10.0), (500.0, 10.0), (3000.0, 0.1)])
def test_the_default_number_of_steps_is_enough(length: float, c: float) -> None:
    """Up to the lengths that the page names: the answers of 20 steps are those of 200."""
    for spread in (0.3, 1.0, 3.0):
        torch.manual_seed(0)
        y = torch.arange(5).repeat(5)
        centres = spread * torch.randn(5, 64, dtype=torch.float64) + torch.randn(1, 64, dtype=torch.float64)
        x = torch.nn.functional.normalize(centres[y] + 0.5 * spread * torch.randn(25, 64, dtype=torch.float64)) * length
        found = []
        for iterations in (20, 200):
            spec = f"svm_head(c={c}, scale=1.0, iterations={iterations})"
            method = build("methods", spec, encoder=Features(64)).double()
            found.append(method.classify(method.adapt(Batch(x, y), torch.ones(5, dtype=torch.bool)), x))
        assert float((found[0] - found[1]).abs().max()) < 1e-3 * float(found[1].abs().max())
