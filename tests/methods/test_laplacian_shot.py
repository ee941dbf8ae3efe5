"""LaplacianShot against the paper as plain loops."""

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
from tests.reference import laplacian_shot as reference

PRESENT = torch.ones(4, dtype=torch.bool)
NAMES = {"neighbours": "k", "rectify": "rectified"}  # of options, on the reference page


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
    [
        {},
        {"rectify": False, "smoothness": 2.0},
        {"neighbours": 1, "steps": 3},
        {"transform": "un"},
        {"transform": "l2n", "rectify": False, "neighbours": 30},
    ],
)
def test_laplacian_shot_equals_the_paper(options: dict[str, Any], uneven: bool) -> None:
    """Logits and loss as loops over queries, with a mean of the train classes that is not 0, 1e-10 in float64."""
    inside = ", ".join(f"{k}={v!r}" for k, v in options.items())
    method = build("methods", f"laplacian_shot({inside})", encoder=Features(6)).double()
    base = torch.from_numpy(np.random.default_rng(1).normal(size=(50, 6)) + 0.3)
    method.learn_base(base)
    x, y, q, qy = task(uneven=uneven)
    out = method.solve(Episode(Batch(x, y), Batch(q, qy), PRESENT))
    theirs = {NAMES.get(k, k): v for k, v in options.items()} | {"base_mean": base.numpy().mean(0)}
    expected = torch.from_numpy(reference.logits(x.numpy(), y.numpy(), q.numpy(), 4, **theirs))
    assert_close(out.logits, expected, rtol=1e-10, atol=1e-10)
    assert_close(out.loss, masked_cross_entropy(expected, qy), rtol=1e-10, atol=1e-10)


def test_without_smoothness_it_is_the_nearest_class_mean() -> None:
    """lambda = 0 leaves the unary term: prototypical networks, which are another file."""
    plain = build("methods", "prototypical", encoder=Features(6)).double()
    method = build(
        "methods", "laplacian_shot(smoothness=0.0, rectify=False, transform='un')", encoder=Features(6)
    ).double()
    x, y, q, _ = task()
    answers = method.classify(method.adapt(Batch(x, y), PRESENT), q)
    assert_close(answers, plain.classify(plain.adapt(Batch(x, y), PRESENT), q), rtol=1e-12, atol=1e-12)


def test_rounds_come_to_rest_where_the_paper_says() -> None:
    """At the minimum y = softmax(-a + lambda W y): more rounds change nothing."""
    x, y, q, _ = task()
    few, many = (
        build("methods", f"laplacian_shot(steps={steps})", encoder=Features(6)).double() for steps in (200, 201)
    )
    state = few.adapt(Batch(x, y), PRESENT)
    assert_close(few.classify(state, q), many.classify(state, q), rtol=1e-10, atol=1e-10)


def test_an_outlier_follows_its_neighbours() -> None:
    """A query nearer to the wrong class, whose two neighbours are of the right one, goes with them."""
    method = build(
        "methods", "laplacian_shot(transform='un', rectify=False, neighbours=2)", encoder=Features(1)
    ).double()
    state = method.adapt(Batch(torch.tensor([[0.0], [2.0]]).double(), torch.arange(2)), PRESENT[:2])
    queries = torch.tensor([[0.95], [1.3], [1.4]]).double()
    assert method.classify(state, queries).argmax(1).tolist() == [1, 1, 1]
    assert method.classify(state, queries[:1]).argmax(1).tolist() == [0]  # alone


def test_queries_influence_each_other_and_their_order_does_not_matter() -> None:
    method = build("methods", "laplacian_shot", encoder=Features(6)).double()
    x, y, q, _ = task()
    state = method.adapt(Batch(x, y), PRESENT)
    together, few = method.classify(state, q), method.classify(state, q[:12])
    assert (together[:12] - few).abs().max() > 0.01
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert_close(method.classify(state, q[order]), together[order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", ["", "rectify=False, neighbours=23"])
def test_padding_queries_are_inert_whatever_they_hold(options: str) -> None:
    """Rows of NaN between the queries leave the others' logits as they were, and a finite gradient, 0 for themselves.

    With 23 neighbours, each query has all 23 others, and room in the list for padding if it were taken.
    """
    method = build("methods", f"laplacian_shot({options})", encoder=Features(6)).double()
    method.learn_base(torch.ones(2, 6))
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
    method = build("methods", "laplacian_shot", encoder=Features(4)).double()
    eye = torch.eye(4, dtype=torch.float64)
    state = method.adapt(Batch(eye, torch.arange(4)), PRESENT)
    answers = torch.cat([method.classify(state, eye[k : k + 1] + 0.1) for k in range(4)])
    assert answers.argmax(1).tolist() == [0, 1, 2, 3]


def test_the_mean_of_the_train_classes_is_kept_with_the_method() -> None:
    method = build("methods", "laplacian_shot", encoder=Features(3))
    assert method.wants_base and not method.saw_base and method.centring.mean.tolist() == [0, 0, 0]
    method.learn_base(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]))
    assert method.saw_base and method.state_dict()["centring.mean"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("smoothness=-1", "smoothness must be a number of at least 0, not -1"),
        ("neighbours=0", "neighbours must be a whole number from 1, not 0"),
        ("steps=2.0", "steps must be a whole number from 1, not 2.0"),
        ("rectify='no'", "rectify must be True or False, not 'no'"),
        ("transform='l1'", "no transform 'l1'; known: 'cl2n', 'l2n', 'un'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"laplacian_shot({options})", encoder=Features(6))


@pytest.mark.slow
def test_laplacian_shot_equals_easyfsl() -> None:
    """Two rounds, which easyfsl never cuts short, on class means: it rectifies as BD-CSPN does, without moving the queries.

    easyfsl counts a query as its own first neighbour, so that its knn=4 are 3 others; it answers in probabilities.
    """
    easyfsl = pytest.importorskip("easyfsl.methods")

    class OnClassMeans(easyfsl.LaplacianShot):  # type: ignore[name-defined]
        def rectify_prototypes(self, query_features: torch.Tensor) -> None:
            pass

    method = build("methods", "laplacian_shot(steps=2, rectify=False, transform='l2n')", encoder=Features(6))
    x, y, q, _ = (t.float() if t.is_floating_point() else t for t in task())
    theirs = OnClassMeans(feature_normalization=2.0, inference_steps=2, knn=4, lambda_regularization=0.7)
    theirs.process_support_set(x, y)
    ours = method.classify(method.adapt(Batch(x, y), PRESENT), q).softmax(1)
    assert_close(ours, theirs(q), rtol=1e-5, atol=1e-5)
