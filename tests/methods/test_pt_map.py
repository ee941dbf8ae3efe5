"""PT-MAP against the paper as plain loops."""

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
from tests.reference import pt_map as reference

PRESENT = torch.ones(4, dtype=torch.bool)


def task(seed: int = 0, queries: int = 16, uneven: bool = False, signed: bool = False) -> tuple[torch.Tensor, ...]:
    """Support x [8, 6] and y, queries x and y: four classes, noisy, of 0 and more unless signed; uneven: most are of class 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 6))
    y, qy = np.arange(4).repeat(2), np.arange(queries) % 4
    if uneven:
        qy = np.where(np.arange(queries) < queries * 3 // 4, 0, qy)
    x, q = centres[y] + rng.normal(size=(8, 6)) * 0.7, centres[qy] + rng.normal(size=(queries, 6)) * 0.7
    if not signed:
        x, q = np.maximum(x, 0.0), np.maximum(q, 0.0)
    return tuple(torch.from_numpy(a) for a in (x, y, q, qy))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"centre": False},
        {"centre": False, "power": 1.0, "scale": 3.0, "rate": 0.4, "steps": 5},
        {"centre": False, "rate": 1.0, "steps": 3},
        {"scale": 3.0, "steps": 6},
    ],
)
def test_pt_map_equals_the_paper(options: dict[str, Any], uneven: bool) -> None:
    """The plan and the loss as loops over numbers, Sinkhorn's iterations run out, 1e-10 in float64."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"pt_map({inside}, sinkhorn_steps=400)", encoder=Features(6)).double()
    x, y, q, qy = task(uneven=uneven, signed="power" in options)
    out = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    plan = torch.from_numpy(reference.plan(x.numpy(), y.numpy(), q.numpy(), 4, iterations=400, **options))
    assert_close(out.logits.softmax(1), plan, rtol=1e-10, atol=1e-10)
    assert_close(out.loss, masked_cross_entropy(plan.log(), qy), rtol=1e-10, atol=1e-10)


def test_the_classes_are_balanced_whether_they_are_or_not() -> None:
    """Each class gets |Q| / N of the queries, and each query one class: the two constraints of the transport."""
    method = build("methods", "pt_map(sinkhorn_steps=300, scale=4.0)", encoder=Features(6)).double()
    x, y, q, _ = task(uneven=True)
    plan = method.classify(method.adapt(Batch(x, y), PRESENT), q).softmax(1)
    assert_close(plan.sum(0), torch.full((4,), 4.0).double(), rtol=1e-8, atol=1e-8)
    assert_close(plan.sum(1), torch.ones(16).double())


def test_the_default_iterations_are_enough() -> None:
    """Of the plan after 1000 iterations a round they miss no number by more than 0.01, where the classes are balanced."""
    x, y, q, _ = task()
    few, many = (
        build("methods", spec, encoder=Features(6)).double() for spec in ("pt_map", "pt_map(sinkhorn_steps=1000)")
    )
    state = few.adapt(Batch(x, y), PRESENT)
    assert_close(few.classify(state, q).softmax(1), many.classify(state, q).softmax(1), rtol=0, atol=0.01)


def test_the_power_keeps_the_sign_of_a_negative_number() -> None:
    """(|v| + 1e-6)^beta with the sign of v, then of length 1; 0 counts as positive, as in equation 1."""
    method = build("methods", "pt_map", encoder=Features(3)).double()
    state = method.adapt(Batch(torch.tensor([[4.0, -9.0, 0.0]]).double(), torch.tensor([0])), PRESENT[:1])
    expected = np.array([[(4 + 1e-6) ** 0.5, -((9 + 1e-6) ** 0.5), 1e-3]])
    assert_close(state.x, torch.from_numpy(expected / np.linalg.norm(expected)), rtol=1e-12, atol=1e-12)


def test_queries_influence_each_other_and_their_order_does_not_matter() -> None:
    method = build("methods", "pt_map", encoder=Features(6)).double()
    x, y, q, _ = task()
    state = method.adapt(Batch(x, y), PRESENT)
    together, few = method.classify(state, q), method.classify(state, q[:8])
    assert (together[:8].softmax(1) - few.softmax(1)).abs().max() > 0.01
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert_close(method.classify(state, q[order]), together[order], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("centre", [False, True])
def test_padding_queries_are_inert_whatever_they_hold(centre: bool) -> None:
    """Rows of NaN between the queries leave the others' logits as they were, and a finite gradient, 0 for themselves."""
    method = build("methods", f"pt_map(centre={centre})", encoder=Features(6)).double()
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


@pytest.mark.parametrize("centre", [False, True])
def test_fewer_queries_than_classes_are_not_balanced(centre: bool) -> None:
    """One balanced query would be of all classes alike; here it keeps its own."""
    method = build("methods", f"pt_map(centre={centre})", encoder=Features(4)).double()
    eye = torch.eye(4, dtype=torch.float64)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    answers = torch.cat([method.classify(state, eye[k : k + 1] + 0.1) for k in range(4)])
    assert answers.argmax(1).tolist() == [0, 1, 2, 3]
    assert (answers.softmax(1).amax(1) > 0.9).all()


def test_a_hard_transport_stays_finite() -> None:
    """exp(-lambda M) alone would be 0 in float32 for whole columns."""
    method = build("methods", "pt_map(scale=500.0, centre=False)", encoder=Features(4))
    eye = torch.eye(4)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    plan = method.classify(state, eye[:1].expand(8, -1)).softmax(1)
    assert_close(plan, torch.full((8, 4), 0.25), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("power=0", "power must be a number above 0, not 0"),
        ("scale=None", "scale must be a number above 0, not None"),
        ("rate=1.5", "rate must be a number above 0 and at most 1, not 1.5"),
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("sinkhorn_steps=0", "sinkhorn_steps must be a whole number from 1, not 0"),
        ("centre=0", "centre must be True or False, not 0"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"pt_map({options})", encoder=Features(6))


@pytest.mark.slow
def test_pt_map_equals_easyfsl() -> None:
    """easyfsl does not bring the powers to length 1, nor centres them, and stops Sinkhorn below 1e-6 of change.

    It answers with the plan.
    """
    easyfsl = pytest.importorskip("easyfsl.methods")

    class OfLengthOne(easyfsl.PTMAP):  # type: ignore[name-defined]
        def compute_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(super().compute_features(images), dim=1)

    method = build("methods", "pt_map(steps=10, sinkhorn_steps=1000, centre=False)", encoder=Features(6)).double()
    x, y, q, _ = task()
    theirs = OfLengthOne()
    theirs.process_support_set(x, y)
    ours = method.classify(method.adapt(Batch(x, y), PRESENT), q).softmax(1)
    assert_close(ours, theirs(q), rtol=0, atol=1e-4)
