"""Matching networks against the paper as plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.functional import lstm_cell
from multifsl.methods.matching import Matching
from multifsl.registry import build
from tests.reference import matching as reference

LABELS = np.array([0, 1, 2, 3] * 2 + [0, 0, 3])
QUERIES = np.array([0, 1, 2, 3, 0, 1, 2])
DIM = 5


def items(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def method(options: str, dim: int = DIM) -> Matching:
    torch.manual_seed(0)
    made: Matching = build("methods", f"matching({options})", encoder=Features(dim)).double()
    return made


def batch(x: np.ndarray, y: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def cell(module: torch.nn.LSTMCell, dim: int, *, read: int = 0) -> reference.Cell:
    """A cell's weights; the last `read` columns of its input's go to the end of h's, where the paper has them."""
    of_x, of_h, bias_x, bias_h = (p.detach().numpy() for p in module.parameters())
    return reference.Cell(of_x[:, :dim], np.concatenate([of_h, of_x[:, dim:]], 1)[:, : dim + read], bias_x + bias_h)


def expected_log_p(
    made: Matching, x: np.ndarray, y: np.ndarray, q: np.ndarray, n_classes: int, temperature: float
) -> np.ndarray:
    if not made.fce:
        return reference.log_p(q, x, y, n_classes, temperature)
    dim = x.shape[1]
    g = reference.in_context(x, cell(made.forwards, dim), cell(made.backwards, dim))
    f = np.stack([reference.attended(v, g, cell(made.reader, dim, read=dim), made.processing_steps) for v in q])
    return reference.log_p(f, g, y, n_classes, temperature)


@pytest.mark.parametrize(
    ("options", "temperature"),
    [
        ("", 1.0),
        ("temperature=0.25", 0.25),
        ("temperature='learned'", 0.1),
        ("fce=True", 1.0),
        ("fce=True, processing_steps=1", 1.0),
        ("fce=True, processing_steps=3, temperature=2", 2.0),
    ],
)
def test_matching_equals_the_paper(options: str, temperature: float) -> None:
    """log p and loss as sums over plain numbers; 1e-10 in float64, 1e-6 where a temperature is rounded to float32."""
    made = method(options)
    x, q = items(11), items(7, seed=1)
    out = made.solve(Episode(batch(x, LABELS), batch(q, QUERIES), torch.ones(4, dtype=torch.bool)))
    expected = expected_log_p(made, x, LABELS, q, 4, temperature)
    tolerance = 1e-10 if temperature == 1 else 1e-6
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=tolerance, atol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), reference.loss(expected, QUERIES), rtol=tolerance)
    assert_close(out.logits.exp().sum(1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("options", ["", "fce=True, processing_steps=2"])
def test_one_step_of_training(options: str) -> None:
    """An SGD step of a linear encoder and every LSTM weight, against numerical differences of the loops."""
    made = method(options, dim=2)
    linear = torch.nn.Linear(3, 2, bias=False).double()
    x, q, y, qy = items(4, 3), items(3, 3, seed=1), np.array([0, 1, 0, 1]), np.array([0, 1, 1])
    parameters = [linear.weight, *made.parameters()]

    def expected() -> float:
        weight = linear.weight.detach().numpy()
        return reference.loss(expected_log_p(made, x @ weight.T, y, q @ weight.T, 2, 1.0), qy)

    loss = made.solve(
        Episode(
            Batch(linear(torch.from_numpy(x)), torch.from_numpy(y)),
            Batch(linear(torch.from_numpy(q)), torch.from_numpy(qy)),
            torch.ones(2, dtype=torch.bool),
        )
    ).loss
    slopes = []
    for p in parameters:
        slope = np.zeros(p.shape)
        values = p.detach().numpy()  # shares memory with the parameter
        for place in np.ndindex(slope.shape):
            here, ends = values[place], []
            for nudge in (1e-5, -1e-5):
                values[place] = here + nudge
                ends.append(expected())
            values[place] = here
            slope[place] = (ends[0] - ends[1]) / 2e-5
        slopes.append(slope)
    before = [p.detach().numpy().copy() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    loss.backward()
    optimizer.step()
    for p, was, slope in zip(parameters, before, slopes, strict=True):
        assert np.abs(slope).max() > 1e-5
        np.testing.assert_allclose(p.detach().numpy(), was - 0.5 * slope, atol=1e-8)


def test_the_lstm_cell_is_pytorchs() -> None:
    """Outputs and gradients of nn.LSTMCell, several steps on; and under vmap, which that has no rule for."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTMCell(3, 4).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    weights = tuple(theirs.parameters())
    ours_h = ours_c = their_h = their_c = torch.zeros(2, 4, dtype=torch.float64)
    for step in x:
        ours_h, ours_c = lstm_cell(step, ours_h, ours_c, *weights)
        their_h, their_c = theirs(step, (their_h, their_c))
    assert_close((ours_h, ours_c), (their_h, their_c), rtol=1e-14, atol=1e-14)
    ours = torch.autograd.grad((ours_h * ours_c).sum(), weights)
    assert_close(ours, torch.autograd.grad((their_h * their_c).sum(), weights), rtol=1e-12, atol=1e-13)
    h, c = torch.randn(2, 5, 2, 4, dtype=torch.float64)
    together = torch.vmap(lambda x, h, c: lstm_cell(x, h, c, *weights))(x, h, c)
    assert_close(together[0], torch.stack([theirs(*each)[0] for each in zip(x, zip(h, c, strict=True), strict=True)]))


def test_padding_between_support_items_is_passed_over_by_both_directions() -> None:
    made = method("fce=True")
    x, q = torch.from_numpy(items(4)), torch.from_numpy(items(3, seed=1))
    nan = torch.full((1, DIM), float("nan"), dtype=torch.float64)
    holey = Batch(torch.cat([nan, x[:2], nan, x[2:], nan]), torch.tensor([-1, 0, 1, -1, 1, 0, -1]))
    present = torch.ones(2, dtype=torch.bool)
    whole = made.adapt(Batch(x, torch.tensor([0, 1, 1, 0])), present)
    state = made.adapt(holey, present)
    assert_close(state.g[[1, 2, 4, 5]], whole.g, rtol=1e-13, atol=1e-13)
    assert_close(made.classify(state, q), made.classify(whole, q), rtol=1e-13, atol=1e-13)


def test_padding_queries_that_hold_nan_leave_the_weights_alone() -> None:
    made = method("fce=True, processing_steps=2, temperature='learned'")
    x, q = items(11), items(7, seed=1)
    nan = np.full((1, DIM), np.nan)
    losses = [
        made.solve(Episode(batch(x, LABELS), query, torch.ones(4, dtype=torch.bool))).loss
        for query in (batch(q, QUERIES), batch(np.concatenate([nan, q]), np.array([-1, *QUERIES])))
    ]
    assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    plain, padded = (torch.autograd.grad(loss, list(made.parameters())) for loss in losses)
    assert_close(padded, plain, rtol=1e-10, atol=1e-12)


def test_only_full_context_embeddings_depend_on_the_order() -> None:
    x, q, y = torch.from_numpy(items(4)), torch.from_numpy(items(3, seed=1)), torch.tensor([0, 1, 1, 0])
    present = torch.ones(2, dtype=torch.bool)
    for fce in (False, True):
        made = method(f"fce={fce}")
        assert made.sequential == fce
        there, back = (made.classify(made.adapt(Batch(x[o], y[o]), present), q) for o in ([0, 1, 2, 3], [3, 2, 1, 0]))
        assert torch.allclose(there, back, atol=1e-12) != fce


def test_probabilities_too_small_for_float32_keep_their_logarithms() -> None:
    """exp(-2 / 0.005) is 0 in float32; log p, and the gradient of a wrong answer, are not lost."""
    made = build("methods", "matching(temperature=0.005)", encoder=Features(2))
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    state = made.adapt(Batch(x, torch.tensor([0, 1])), torch.ones(2, dtype=torch.bool))
    query = torch.tensor([[1.0, 1e-3]], requires_grad=True)
    logits = made.classify(state, query)
    assert_close(logits, torch.tensor([[0.0, -400.0]]), rtol=1e-4, atol=1e-4)
    assert float(torch.autograd.grad(-logits[0, 1], query)[0].abs().max()) > 0.1


def test_a_class_without_support_is_never_the_answer() -> None:
    made = method("")
    x = torch.from_numpy(items(3)).requires_grad_()
    logits = made.classify(made.adapt(Batch(x, torch.tensor([0, 0, 2])), torch.ones(3, dtype=torch.bool)), x)
    assert (logits[:, 1] == float("-inf")).all() and torch.isfinite(logits[:, [0, 2]]).all()
    assert torch.isfinite(torch.autograd.grad(logits[:, 0].sum(), x)[0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("fce='yes'", "fce must be True or False, not 'yes'"),
        ("processing_steps=0", "processing_steps must be a whole number from 1, not 0"),
        ("processing_steps=1.5", "processing_steps must be a whole number from 1, not 1.5"),
        ("temperature=0", "temperature must be a number above 0 or 'learned', not 0"),
        ("temperature='cold'", "temperature must be a number above 0 or 'learned', not 'cold'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"matching({options})", encoder=Features(2))


@pytest.mark.slow
def test_full_context_embeddings_equal_easyfsl() -> None:
    """Both embeddings of easyfsl's MatchingNetworks (as many steps as support items), on the same weights and tensors.

    Its answers are not comparable: it takes no cosine but a product with queries of their own length.
    """
    methods: Any = pytest.importorskip("easyfsl.methods")
    made = method(f"fce=True, processing_steps={len(LABELS)}")
    theirs = methods.MatchingNetworks(backbone=torch.nn.Identity(), feature_dimension=DIM).double()
    with torch.no_grad():
        lstm = theirs.support_features_encoder
        for suffix, own in (("l0", made.forwards), ("l0_reverse", made.backwards)):
            for name, p in own.named_parameters():
                getattr(lstm, f"{name}_{suffix}").copy_(p)
        theirs.query_features_encoding_cell.load_state_dict(made.reader.state_dict())
        x, q = torch.from_numpy(items(len(LABELS))), torch.from_numpy(items(7, seed=1))
        theirs.process_support_set(x, torch.from_numpy(LABELS))
        state = made.adapt(Batch(x, torch.from_numpy(LABELS)), torch.ones(4, dtype=torch.bool))
        assert_close(state.g, theirs.contextualized_support_features, rtol=1e-10, atol=1e-10)
        read = made._read(q, state.g, state.y >= 0)
        assert_close(read, theirs.encode_query_features(q), rtol=1e-10, atol=1e-10)
