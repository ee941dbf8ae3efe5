"""SimpleShot against the paper as plain loops, and against easyfsl."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.simpleshot import Simpleshot
from tests.reference import simpleshot as reference

LABELS, QUERY_LABELS = np.array([0, 1, 2, 0, 0, 2, 2]), np.array([0, 1, 2, 2])
PRESENT = torch.ones(3, dtype=torch.bool)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support and query embeddings, and those of the train classes, all far from the origin."""
    rng = np.random.default_rng(0)
    x, q, base = (rng.normal(size=(n, 5)) + 2.0 for n in (len(LABELS), len(QUERY_LABELS), 30))
    return x, q, base


def made(base: np.ndarray | None, **options: Any) -> Simpleshot:
    method = Simpleshot(Features(5), **options).double()
    if base is not None:
        method.learn_base(torch.from_numpy(base))
    return method


@pytest.mark.parametrize(
    "options", [{}, {"transform": "l2n"}, {"transform": "un"}, {"transform": "cl2n", "temperature": 0.2}]
)
def test_simpleshot_equals_the_paper(options: dict[str, Any]) -> None:
    """Logits and loss as sums over plain numbers, 1e-10 in float64."""
    x, q, base = data()
    support, query = (Batch(torch.from_numpy(a), torch.from_numpy(b)) for a, b in ((x, LABELS), (q, QUERY_LABELS)))
    out = made(base, **options).solve(Episode(support, query, PRESENT))
    expected = reference.logits(x, LABELS, q, 3, base, **options)
    np.testing.assert_allclose(out.logits.numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out.loss.item(), reference.loss(expected, QUERY_LABELS), rtol=1e-10)


def test_the_base_mean_counts_for_cl2n_alone() -> None:
    """Before learn_base CL2N is L2N; after it CL2N is another, and L2N and UN are what they were."""
    x, q, base = data()
    support, queries = Batch(torch.from_numpy(x), torch.from_numpy(LABELS)), torch.from_numpy(q)

    def logits(method: Simpleshot) -> torch.Tensor:
        return method.classify(method.adapt(support, PRESENT), queries)

    plain = {t: logits(made(None, transform=t)) for t in ("cl2n", "l2n", "un")}
    centred = {t: logits(made(base, transform=t)) for t in ("cl2n", "l2n", "un")}
    assert torch.equal(plain["cl2n"], plain["l2n"])
    assert torch.equal(plain["l2n"], centred["l2n"]) and torch.equal(plain["un"], centred["un"])
    assert float((centred["cl2n"] - plain["cl2n"]).abs().max()) > 0.1


def test_cl2n_does_not_see_a_shift_of_all_embeddings() -> None:
    """Moving all embeddings, the base classes' too, by one vector moves no logit."""
    x, q, base = data()
    found = []
    for shift in (0.0, np.array([3.0, -1.0, 0.0, 7.0, 2.0])):
        method = made(base + shift)
        support = Batch(torch.from_numpy(x + shift), torch.from_numpy(LABELS))
        found.append(method.classify(method.adapt(support, PRESENT), torch.from_numpy(q + shift)))
    assert_close(found[1], found[0], rtol=1e-10, atol=1e-10)


def test_the_base_mean_is_saved_with_the_method_and_learned_anew() -> None:
    _, _, base = data()
    method, other = made(base), made(None)
    other.load_state_dict(method.state_dict())
    assert_close(other.centring.mean, torch.from_numpy(base.mean(0)), rtol=1e-12, atol=1e-12)
    other.learn_base(torch.ones(2, 5, dtype=torch.float64))
    assert_close(other.centring.mean, torch.ones(5, dtype=torch.float64))  # not added to the old one


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_learn_base_takes_what_inference_gives(mode: type) -> None:
    """Embeddings made under inference mode, in bfloat16, leave a plain float32 mean behind."""
    method = Simpleshot(Features(2))
    with mode():
        z = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
        method.learn_base(z)
    method.learn_base(z)
    assert torch.equal(method.centring.mean, torch.tensor([2.0, 3.0])) and not method.centring.mean.is_inference()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "cl3n"}, "no transform 'cl3n'; known: 'cl2n', 'l2n', 'un'"),
        ({"temperature": 0}, "temperature must be a number above 0, not 0"),
        ({"temperature": "learned"}, "temperature must be a number above 0, not 'learned'"),
    ],
)
def test_bad_options_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        Simpleshot(Features(5), **options)


@pytest.mark.parametrize("shape", [(3, 4), (0, 5), (5,)])
def test_base_embeddings_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MultifslError, match=r"must be \[B, 5\] with B of 1 or more, not \["):
        Simpleshot(Features(5)).learn_base(torch.zeros(shape))


@pytest.mark.slow
def test_simpleshot_equals_easyfsl() -> None:
    """Its prototypes on centred, normalised features: plain distances, of which ours are the squares.

    Its own SimpleShot compares by cosine, which is (||z||^2 + ||c||^2 - distance^2) / (2 ||z|| ||c||) with ||z|| = 1.
    """
    methods = pytest.importorskip("easyfsl.methods")
    x, q, base = data()
    ours = made(base)
    state = ours.adapt(Batch(torch.from_numpy(x), torch.from_numpy(LABELS)), PRESENT)
    logits = ours.classify(state, torch.from_numpy(q))
    options = {"feature_centering": torch.from_numpy(base.mean(0)), "feature_normalization": 2}
    theirs = [cls(torch.nn.Identity(), **options) for cls in (methods.PrototypicalNetworks, methods.SimpleShot)]
    for method in theirs:
        method.process_support_set(torch.from_numpy(x), torch.from_numpy(LABELS))
    distances, cosines = (method(torch.from_numpy(q)) for method in theirs)
    assert_close(logits, -distances.square(), rtol=1e-9, atol=1e-9)
    lengths = theirs[1].prototypes.norm(dim=1)
    assert_close((1 + lengths.square() + logits) / (2 * lengths), cosines, rtol=1e-9, atol=1e-9)
