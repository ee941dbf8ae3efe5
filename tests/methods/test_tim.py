"""Transductive information maximisation against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.functional import masked_cross_entropy
from multifsl.registry import build
from tests.reference import tim as reference

PRESENT = torch.ones(4, dtype=torch.bool)
NAMES = {"support_weight": "weight", "entropy_weight": "alpha"}  # of options, on the reference page


def task(seed: int = 0, queries: int = 16, uneven: bool = False) -> tuple[torch.Tensor, ...]:
    """Support x [8, 6] and y, queries x and y: four classes, noisy; uneven: most queries are of class 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 6))
    y, qy = np.arange(4).repeat(2), np.arange(queries) % 4
    if uneven:
        qy = np.where(np.arange(queries) < queries * 3 // 4, 0, qy)
    x, q = centres[y] + rng.normal(size=(8, 6)) * 0.7, centres[qy] + rng.normal(size=(queries, 6)) * 0.7
    return tuple(torch.from_numpy(a) for a in (x, y, q, qy))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"solver": "adm", "steps": 150},
        {"solver": "adm", "steps": 5, "scale": 5.0, "support_weight": 1.0, "entropy_weight": 0.0},
        {"solver": "gd", "steps": 6, "lr": 0.02},
        {"solver": "gd", "steps": 4, "lr": 0.1, "scale": 5.0, "support_weight": 2.0, "entropy_weight": 0.7},
    ],
)
def test_tim_equals_the_paper(options: dict[str, Any], uneven: bool) -> None:
    """Logits and loss as loops over numbers; the gradient of gd by steps into the complex plane. 1e-10 in float64."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"tim({inside})", encoder=Features(6)).double()
    x, y, q, qy = task(uneven=uneven)
    out = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    theirs = {NAMES.get(k, k): v for k, v in options.items()}
    expected = torch.from_numpy(reference.logits(x.numpy(), y.numpy(), q.numpy(), 4, **theirs))
    assert_close(out.logits, expected, rtol=1e-10, atol=1e-10)
    assert_close(out.loss, masked_cross_entropy(expected, qy), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", [{"solver": "adm", "steps": 20}, {"solver": "gd", "steps": 4, "lr": 0.05}])
def test_fewer_queries_than_classes_are_not_to_be_spread(options: dict[str, Any]) -> None:
    """Against the loops without H(Y); three queries of one class stay together."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"tim({inside})", encoder=Features(6)).double()
    x, y, q, _ = task()
    q = x[:1] + 0.1 * q[:3]
    logits = method.classify(method.adapt(Batch(x, y), PRESENT), q)
    theirs = {NAMES.get(k, k): v for k, v in options.items()}
    expected = torch.from_numpy(reference.logits(x.numpy(), y.numpy(), q.numpy(), 4, **theirs))
    assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    assert logits.argmax(1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("spec", ["tim", "tim(solver='gd', lr=0.001)"])
def test_the_objective_falls(spec: str) -> None:
    """From the class means to the weights found: lambda CE - H(Y) + alpha H(Y | X), as the reference computes it."""
    method = build("methods", spec, encoder=Features(6)).double()
    x, y, q, _ = task()
    state, real = method.adapt(Batch(x, y), PRESENT), torch.ones(16, dtype=torch.bool)
    zs, zq = reference.unit(x.numpy()), reference.unit(q.numpy())
    start = reference.prototypes(zs, y.numpy(), 4)
    solve = method._adm if method.solver == "adm" else method._gd
    found = solve(torch.from_numpy(start), state, torch.from_numpy(zq), real).numpy()
    before, after = (reference.objective(w, zs, y.numpy(), zq, 15.0, 0.1, 0.1).real for w in (start, found))
    assert after < before - 0.01


def test_gd_comes_to_rest_where_the_gradient_is_zero() -> None:
    method = build("methods", "tim(solver='gd', steps=3000, lr=0.003)", encoder=Features(6)).double()
    x, y, q, _ = task()
    zs, zq = reference.unit(x.numpy()), reference.unit(q.numpy())
    start = reference.prototypes(zs, y.numpy(), 4)
    state, real = method.adapt(Batch(x, y), PRESENT), torch.ones(16, dtype=torch.bool)
    found = method._gd(torch.from_numpy(start), state, torch.from_numpy(zq), real).numpy()
    slopes = [np.abs(reference.gradient(w, zs, y.numpy(), zq, 15.0, 0.1, 0.1)).max() for w in (start, found)]
    assert slopes[1] < 0.01 * slopes[0]


@pytest.mark.parametrize("spec", ["tim", "tim(solver='gd', lr=0.001)"])
def test_queries_influence_each_other_and_their_order_does_not_matter(spec: str) -> None:
    method = build("methods", spec, encoder=Features(6)).double()
    x, y, q, _ = task()
    state = method.adapt(Batch(x, y), PRESENT)
    together, few = method.classify(state, q), method.classify(state, q[:8])
    assert (together[:8] - few).abs().max() > 0.01
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert_close(method.classify(state, q[order]), together[order], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spec", ["tim", "tim(solver='gd', steps=20, lr=0.01)"])
def test_padding_queries_are_inert_whatever_they_hold(spec: str) -> None:
    """Rows of NaN between the queries leave the others' logits as they were, and a finite gradient, 0 for themselves."""
    method = build("methods", spec, encoder=Features(6)).double()
    x, y, q, qy = task()
    holes = torch.full((3, 6), float("nan"), dtype=torch.float64)
    padded = torch.cat([holes[:1], q, holes[1:]]).requires_grad_()
    nothing = torch.full((3,), -1)
    out = method.solve(Episode(Batch(x, y), Batch(padded, torch.cat([nothing[:1], qy, nothing[1:]])), PRESENT))
    plain = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    assert_close(out.logits[1:17], plain.logits, rtol=1e-8, atol=1e-8)
    assert_close(out.loss, plain.loss, rtol=1e-8, atol=1e-8)
    assert torch.isfinite(out.logits).all()
    (gradient,) = torch.autograd.grad(out.loss, padded)
    assert torch.isfinite(gradient).all() and (gradient[0] == 0).all() and (gradient[17:] == 0).all()


@pytest.mark.parametrize("spec", ["tim", "tim(solver='gd')"])
def test_one_query_alone_keeps_its_class(spec: str) -> None:
    method = build("methods", spec, encoder=Features(4)).double()
    eye = torch.eye(4, dtype=torch.float64)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    answers = torch.cat([method.classify(state, eye[k : k + 1] + 0.1) for k in range(4)])
    assert answers.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("spec", ["tim", "tim(solver='gd')"])
def test_far_off_scales_stay_finite(spec: str) -> None:
    """A tau at which p is 0 in float32 for most classes, and queries of one class only."""
    method = build(
        "methods",
        spec.replace("tim(", "tim(scale=2000.0, ") if "(" in spec else "tim(scale=2000.0)",
        encoder=Features(4),
    )
    eye = torch.eye(4)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    answers = method.classify(state, eye[:1].expand(6, -1))
    assert torch.isfinite(answers).all()


def test_the_steps_are_the_papers() -> None:
    steps = [build("methods", spec, encoder=Features(4)).steps for spec in ("tim", "tim(solver='gd')", "tim(steps=7)")]
    assert steps == [150, 1000, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("solver='lbfgs'", "no solver 'lbfgs'; known: 'adm', 'gd'"),
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("lr=0", "lr must be a number above 0, not 0"),
        ("scale=-1", "scale must be a number above 0, not -1"),
        ("support_weight=0.0", "support_weight must be a number above 0, not 0.0"),
        ("entropy_weight=-0.1", "entropy_weight must be a number of at least 0, not -0.1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"tim({options})", encoder=Features(6))


@pytest.mark.slow
def test_tim_agrees_with_easyfsl() -> None:
    """easyfsl compares by cosine, not by distance, so that only the classes can be compared: at most 1 in 20 differs."""
    easyfsl = pytest.importorskip("easyfsl.methods")
    method = build("methods", "tim(solver='gd', steps=200, lr=0.001)", encoder=Features(6)).double()
    same = []
    for seed in range(10):
        x, y, q, _ = task(seed, queries=40)
        theirs = easyfsl.TIM(
            feature_normalization=2.0,
            fine_tuning_steps=200,
            fine_tuning_lr=0.001,
            cross_entropy_weight=0.1,
            temperature=15.0,
        )
        theirs.process_support_set(x, y)
        same.append(method.classify(method.adapt(Batch(x, y), PRESENT), q).argmax(1) == theirs(q).argmax(1))
    assert torch.cat(same).double().mean() >= 0.95
