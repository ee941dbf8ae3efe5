"""Bias-diminished cosine prototypes against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.functional import Examples, masked_cross_entropy, moved_to_support
from multifsl.registry import build
from tests.reference import bd_cspn as reference

PRESENT = torch.ones(4, dtype=torch.bool)


def task(seed: int = 0, queries: int = 24, uneven: bool = False) -> tuple[torch.Tensor, ...]:
    """Support x [8, 6] and y, queries x and y: four classes, noisy; uneven: most queries are of class 0."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, 6))
    y, qy = np.arange(4).repeat(2), np.arange(queries) % 4
    if uneven:
        qy = np.where(np.arange(queries) < queries * 3 // 4, 0, qy)
    x, q = centres[y] + rng.normal(size=(8, 6)) * 0.7, 0.5 + centres[qy] + rng.normal(size=(queries, 6)) * 0.7
    return tuple(torch.from_numpy(a) for a in (x, y, q, qy))


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"top": 2}, {"top": 1, "scale": 3.0}, {"top": None}, {"shift": False}, {"top": None, "shift": False}],
)
def test_bd_cspn_equals_the_paper(options: dict[str, Any], uneven: bool) -> None:
    """Logits and loss as loops over items, 1e-10 in float64."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"bd_cspn({inside})", encoder=Features(6)).double()
    x, y, q, qy = task(uneven=uneven)
    out = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    expected = torch.from_numpy(reference.logits(x.numpy(), y.numpy(), q.numpy(), 4, **options))
    assert_close(out.logits, expected, rtol=1e-10, atol=1e-10)
    assert_close(out.loss, masked_cross_entropy(expected, qy), rtol=1e-10, atol=1e-10)


def test_queries_influence_each_other_and_their_order_does_not_matter() -> None:
    method = build("methods", "bd_cspn(top=2)", encoder=Features(6)).double()
    x, y, q, _ = task()
    state = method.adapt(Batch(x, y), PRESENT)
    together, few = method.classify(state, q), method.classify(state, q[:12])
    assert (together[:12] - few).abs().max() > 0.01
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert_close(method.classify(state, q[order]), together[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("top", [2, None])
def test_padding_queries_are_inert_whatever_they_hold(top: int | None) -> None:
    """Rows of NaN between the queries leave the others' logits as they were, and a finite gradient, 0 for themselves."""
    method = build("methods", f"bd_cspn(top={top})", encoder=Features(6)).double()
    x, y, q, qy = task()
    holes = torch.full((3, 6), float("nan"), dtype=torch.float64)
    padded = torch.cat([holes[:1], q, holes[1:]]).requires_grad_()
    nothing = torch.full((3,), -1)
    out = method.solve(Episode(Batch(x, y), Batch(padded, torch.cat([nothing[:1], qy, nothing[1:]])), PRESENT))
    plain = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    assert_close(out.logits[1:25], plain.logits, rtol=1e-10, atol=1e-10)
    assert_close(out.loss, plain.loss, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(out.logits).all()
    (gradient,) = torch.autograd.grad(out.loss, padded)
    assert torch.isfinite(gradient).all() and (gradient[0] == 0).all() and (gradient[25:] == 0).all()


def test_fewer_queries_than_classes_stay_where_they_are() -> None:
    """One query that is moved would be the mean of the support set, whatever it is; here it keeps its own class."""
    method = build("methods", "bd_cspn", encoder=Features(4)).double()
    eye = torch.eye(4, dtype=torch.float64)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    answers = torch.cat([method.classify(state, eye[k : k + 1] + 0.1) for k in range(4)])
    assert answers.argmax(1).tolist() == [0, 1, 2, 3]
    unmoved = build("methods", "bd_cspn(shift=False)", encoder=Features(4)).double()
    assert_close(method.classify(state, eye[:3] + 0.1), unmoved.classify(state, eye[:3] + 0.1))
    assert (method.classify(state, eye + 0.1) - unmoved.classify(state, eye + 0.1)).abs().max() > 1e-3


def test_queries_of_one_class_only() -> None:
    """Classes that no query is like keep the prototype of their support items."""
    method = build("methods", "bd_cspn(shift=False)", encoder=Features(4)).double()
    eye = torch.eye(4, dtype=torch.float64)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    queries = eye[:1] + 0.05 * torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    answers = method.classify(state, queries)
    assert (answers.argmax(1) == 0).all()
    assert_close(answers[:, 1:], 10 * torch.nn.functional.normalize(queries, dim=1)[:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("scale=0", "scale must be a number above 0, not 0"),
        ("scale='x'", "scale must be a number above 0, not 'x'"),
        ("top=0", "top must be a whole number from 1, not 0"),
        ("shift=1", "shift must be True or False, not 1"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"bd_cspn({options})", encoder=Features(6))


@pytest.mark.slow
def test_bd_cspn_equals_easyfsl() -> None:
    """easyfsl takes no scale and no Z: it is scale=1 and top=None on embeddings of length 1, and its logits are cosines.

    It moves the queries for the prototypes, but compares them from where they were; so they are moved here by hand.
    """
    easyfsl = pytest.importorskip("easyfsl.methods")
    method = build("methods", "bd_cspn(scale=1.0, top=None)", encoder=Features(6)).double()
    x, y, q, _ = task()
    theirs = easyfsl.BDCSPN(feature_normalization=2.0)
    theirs.process_support_set(x, y)
    theirs.rectify_prototypes(theirs.compute_features(q))
    state = method.adapt(Batch(x, y), PRESENT)
    moved = moved_to_support(theirs.compute_features(q), torch.ones(24, dtype=torch.bool), state)
    expected = theirs.cosine_distance_to_prototypes(moved)
    assert_close(method.classify(state, q), expected, rtol=1e-10, atol=1e-10)


def test_uneven_examples_do_not_pull_the_queries_to_the_largest_class() -> None:
    """Queries, as many of each class, are moved onto the mean of the class means: here, where they already are."""
    x = torch.tensor([[4.0, 0.0]] * 9 + [[0.0, 4.0]], dtype=torch.float64)
    support = Examples(x, torch.tensor([0] * 9 + [1]), torch.ones(2, dtype=torch.bool))
    queries = torch.tensor([[4.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    assert_close(moved_to_support(queries, torch.ones(2, dtype=torch.bool), support), queries)
