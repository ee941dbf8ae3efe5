"""FEAT against the paper as plain loops, and against easyfsl."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.feat import Feat
from multifsl.registry import build
from tests.reference import feat as reference

LABELS, QUERY_LABELS = np.array([0, 1, 2, 0, 0, 2]), np.array([0, 1, 2, 2])


def made(spec: str, dim: int = 4) -> Feat:
    """A method whose every weight is random, gain and bias too."""
    method = build("methods", spec, encoder=Features(dim)).double()
    assert isinstance(method, Feat)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / dim**0.5)
    return method


def weights_of(method: Feat) -> reference.Weights:
    """Copies, under the reference's names."""
    named = {"out_bias": method.out.bias, "gain": method.gain, "bias": method.bias}
    named |= {k: getattr(method, k).weight for k in ("query", "key", "value", "out")}
    return {k: p.detach().numpy().copy() for k, p in named.items()}


def data(dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(LABELS), dim)), rng.normal(size=(len(QUERY_LABELS), dim))


def episode(x: np.ndarray, q: np.ndarray) -> Episode:
    support = Batch(torch.from_numpy(x), torch.from_numpy(LABELS))
    return Episode(support, Batch(torch.from_numpy(q), torch.from_numpy(QUERY_LABELS)), torch.ones(3, dtype=torch.bool))


CASES: list[tuple[str, dict[str, Any]]] = [
    ("feat(temperature=64.0)", {}),
    ("feat(temperature=5.0, heads=2)", {"temperature": 5.0, "heads": 2}),
    ("feat(distance='cosine')", {"distance": "cosine", "temperature": 0.1}),
]


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_logits_and_loss_equal_the_paper(spec: str, options: dict[str, Any]) -> None:
    """Plain sums over numbers, 1e-10 in float64; in evaluation mode the loss is the queries' alone."""
    method, (x, q) = made(spec).eval(), data()
    out = method.solve(episode(x, q))
    expected = reference.logits(x, LABELS, q, 3, weights_of(method), **options)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out.loss.item(), reference.loss(expected, QUERY_LABELS), rtol=1e-10)


def total_loss(x: np.ndarray, q: np.ndarray, weights: reference.Weights, balance: float, **options: Any) -> float:
    """Equation 7, with a temperature of 3 in the contrast."""
    own = reference.loss(reference.logits(x, LABELS, q, 3, weights, **options), QUERY_LABELS)
    both, y = np.concatenate([x, q]), np.concatenate([LABELS, QUERY_LABELS])
    return own + balance * reference.contrast(both, y, 3, weights, **{**options, "temperature": 3.0})


@pytest.mark.parametrize(("spec", "options"), CASES)
def test_a_training_step_equals_the_paper(spec: str, options: dict[str, Any]) -> None:
    """The loss with its contrast, and one step of plain gradient descent along central differences of the reference."""
    method, (x, q) = made(spec[:-1] + ", dropout=0.0, balance=0.7, contrast_temperature=3.0)").train(), data()
    weights = weights_of(method)
    loss = method.solve(episode(x, q)).loss
    np.testing.assert_allclose(loss.item(), total_loss(x, q, weights, 0.7, **options), rtol=1e-10)

    lr, h = 0.5, 1e-5
    expected = {}
    for name, value in weights.items():
        slope = np.zeros_like(value)
        for at in np.ndindex(value.shape):
            ends = []
            for shift in (h, -h):
                moved = value.copy()
                moved[at] += shift
                ends.append(total_loss(x, q, {**weights, name: moved}, 0.7, **options))
            slope[at] = (ends[0] - ends[1]) / (2 * h)
        expected[name] = value - lr * slope
    optimizer = torch.optim.SGD(method.parameters(), lr=lr)
    loss.backward()
    optimizer.step()
    stepped = weights_of(method)
    for name, value in expected.items():
        np.testing.assert_allclose(stepped[name], value, rtol=1e-7, atol=1e-8, err_msg=name)
        assert np.abs(stepped[name] - weights[name]).max() > 1e-4, name


def test_gradients_of_the_embeddings_are_those_of_finite_differences() -> None:
    """torch.autograd.gradcheck of the loss with its contrast, and one absent class."""
    method = made("feat(dropout=0.0, balance=0.7, heads=2, temperature=5.0)").train()
    present = torch.tensor([True, True, True, False])

    def loss(x: Tensor, q: Tensor) -> Tensor:
        query = Batch(q, torch.from_numpy(QUERY_LABELS))
        return method.solve(Episode(Batch(x, torch.from_numpy(LABELS)), query, present)).loss

    x, q = (torch.from_numpy(a).requires_grad_() for a in data())
    assert torch.autograd.gradcheck(loss, (x, q))


def test_nobody_looks_at_an_absent_class() -> None:
    """The adapted means of the classes that take part are the same whether there are others or not."""
    method, (x, _) = made("feat").eval(), data()
    support = Batch(torch.from_numpy(x), torch.from_numpy(LABELS))
    alone = method.adapt(support, torch.ones(3, dtype=torch.bool)).adapted
    beside = method.adapt(support, torch.tensor([True, True, True, False, False])).adapted
    assert_close(beside[:3], alone, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(beside).all()


def test_classes_do_look_at_one_another() -> None:
    """Moving the items of one class moves the adapted mean of the others."""
    method, (x, _) = made("feat").eval(), data()
    present = torch.ones(3, dtype=torch.bool)
    before = method.adapt(Batch(torch.from_numpy(x), torch.from_numpy(LABELS)), present).adapted
    x[LABELS == 2] += 1.0
    after = method.adapt(Batch(torch.from_numpy(x), torch.from_numpy(LABELS)), present).adapted
    assert float((after[:2] - before[:2]).detach().abs().min()) > 1e-3


def test_the_contrast_and_dropout_are_of_training_alone() -> None:
    method, (x, q) = made("feat(balance=1.0, temperature=5.0)"), data()
    exact = method.eval().solve(episode(x, q))
    assert_close(method.solve(episode(x, q)).loss, exact.loss, rtol=0, atol=0)
    torch.manual_seed(0)
    method.train()
    first, second = method.solve(episode(x, q)), method.solve(episode(x, q))
    assert not torch.equal(first.logits, second.logits)  # another half of the attention's output is dropped each time
    method.dropout = 0.0
    trained = method.solve(episode(x, q))
    assert_close(trained.logits, exact.logits, rtol=0, atol=0)
    assert trained.loss.item() > exact.loss.item()


def test_an_unknown_query_does_not_enter_the_contrast() -> None:
    """A query of no class, y = -2, changes neither the loss nor the gradient."""
    (x, q), losses, slopes = data(), [], []
    for extra in (False, True):
        method = made("feat(dropout=0.0, balance=1.0)").train()
        (sx, sy), (qx, qy), present, _ = episode(x, q)
        assert isinstance(qx, Tensor)
        query = Batch(torch.cat([qx, qx[:1] * 9]), torch.cat([qy, torch.tensor([-2])])) if extra else Batch(qx, qy)
        loss = method.solve(Episode(Batch(sx, sy), query, present)).loss
        losses.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, list(method.parameters())))
    assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)
    assert_close(slopes[1], slopes[0], rtol=1e-9, atol=1e-12)


def test_the_default_temperature_follows_small_widths() -> None:
    found = [Feat(Features(d)).temperature for d in (8, 64, 640)]
    assert found == [8.0, 64.0, 64.0] and Feat(Features(8), distance="cosine").temperature == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "l1"}, "no distance 'l1'; known: 'euclidean', 'cosine'"),
        ({"temperature": 0.0}, "temperature must be a number above 0, not 0.0"),
        ({"contrast_temperature": -1.0}, "contrast_temperature must be a number above 0, not -1.0"),
        ({"heads": 3}, "heads must divide the encoder's width, 4, without rest; 3 does not"),
        ({"heads": 0}, "heads must be a whole number from 1, not 0"),
        ({"dropout": 1.0}, "dropout must be a number from 0 and below 1, not 1.0"),
        ({"balance": -0.1}, "balance must be a number of at least 0, not -0.1"),
    ],
)
def test_bad_options_say_so(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        Feat(Features(4), **options)


@pytest.mark.slow
def test_feat_equals_easyfsl() -> None:
    """Its FEAT with its attention module, on the same weights: its scores are plain distances, ours squared / temperature."""
    methods, modules = pytest.importorskip("easyfsl.methods"), pytest.importorskip("easyfsl.modules")
    ours, (x, q) = made("feat(temperature=2.0)", dim=6).eval(), data(6)
    attention = modules.MultiHeadAttention(1, 6, 6, 6).double()
    named = {"w_qs": ours.query, "w_ks": ours.key, "w_vs": ours.value, "fc": ours.out}
    copied = {f"{theirs}.{k}": v for theirs, layer in named.items() for k, v in layer.state_dict().items()}
    attention.load_state_dict({**copied, "layer_norm.weight": ours.gain, "layer_norm.bias": ours.bias})
    theirs = methods.FEAT(torch.nn.Identity(), attention_module=attention).eval()
    theirs.process_support_set(torch.from_numpy(x), torch.from_numpy(LABELS))
    out = ours.solve(episode(x, q)).logits
    assert_close(out, -theirs(torch.from_numpy(q)).square() / 2.0, rtol=1e-9, atol=1e-9)
