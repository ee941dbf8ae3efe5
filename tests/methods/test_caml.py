"""Context-aware meta-learning against the paper as plain loops."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.caml import Caml, label_codes
from multifsl.registry import build
from tests.contracts import toys
from tests.reference import caml as reference

DIM = 3
LABELS = np.array([0, 2, 1, 1, 0, 2, 0])
QUERY_LABELS = np.array([1, 0, 2, 1])


def items(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def method(options: str = "", dim: int = DIM) -> Caml:
    """A small transformer whose gains, biases, scale and unknown label are not those that it begins with."""
    torch.manual_seed(0)
    small = "layers=2, heads=2, width=4, code_width=5, max_way=4"
    made: Caml = build("methods", f"caml({small}{options})", encoder=Features(dim)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p), alpha=0.4)
    return made


def episode(x: np.ndarray, q: np.ndarray) -> Episode:
    return Episode(
        Batch(torch.from_numpy(x), torch.from_numpy(LABELS)),
        Batch(torch.from_numpy(q), torch.from_numpy(QUERY_LABELS)),
        torch.ones(3, dtype=torch.bool),
    )


def weights(made: Caml) -> reference.Weights:
    values = {name: p.detach().numpy() for name, p in made.named_parameters()}

    def layer(name: str, part: slice = slice(None)) -> reference.Layer:
        weight = values[f"{name}.weight"]
        return reference.Layer(weight[part], values.get(f"{name}.bias", np.zeros(len(weight)))[part])

    names = ("norm", "mlp_norm", "q", "joined", "wide", "narrow")
    blocks = []
    for i in range(made.layers):
        parts = {name: layer(f"blocks.{i}.{name}") for name in names}
        k, v = (layer(f"blocks.{i}.kv", half) for half in (slice(made.width), slice(made.width, None)))
        blocks.append(reference.Block(**parts, k=k, v=v))
    return reference.Weights(
        made.codes.numpy(), float(values["code_scale"]), values["unknown"], layer("input"), blocks, layer("norm"), layer("output")
    )  # fmt: skip


@pytest.mark.parametrize("n", [2, 5, 20])
def test_codes_are_as_far_apart_as_can_be(n: int) -> None:
    """Definition 1: length 1, and every cosine -1 / (n - 1), which no n vectors can all be below, as their sum is then 0."""
    codes = label_codes(n, 32).double()
    expected = torch.full((n, n), -1 / (n - 1), dtype=torch.float64).fill_diagonal_(1.0)
    assert_close(codes @ codes.T, expected, rtol=0, atol=1e-6)
    assert_close(codes.sum(0), torch.zeros(32, dtype=torch.float64), rtol=0, atol=1e-6)
    assert_close(label_codes(n, 32), label_codes(n, 32), rtol=0, atol=0)


def test_answers_equal_the_paper() -> None:
    """Logits and loss as sums over plain numbers, 1e-10 in float64."""
    made = method().eval()
    x, q = items(7), items(4, seed=1)
    out = made.solve(episode(x, q))
    expected = reference.logits(x, LABELS, q, weights(made), heads=2)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected[:, :3], rtol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), reference.loss(expected, QUERY_LABELS, 3), rtol=1e-10)


def test_one_step_of_training() -> None:
    """An SGD step of a linear encoder and of every weight, against numerical differences of the loops."""
    made = method(dim=2).train()
    linear = torch.nn.Linear(3, 2, bias=False).double()
    x, q = items(7), items(4, seed=1)
    parameters = [linear.weight, *made.parameters()]

    def expected() -> float:
        encoder = linear.weight.detach().numpy().T
        return reference.loss(reference.logits(x @ encoder, LABELS, q @ encoder, weights(made), 2), QUERY_LABELS, 3)

    (sx, sy), (qx, qy), present, _ = episode(x, q)
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    loss = made.solve(Episode(Batch(linear(sx), sy), Batch(linear(qx), qy), present)).loss
    slopes = []
    rng = np.random.default_rng(0)
    for p in parameters:
        values = p.detach().numpy()  # shares memory with the parameter
        places = list(np.ndindex(values.shape))
        for place in (places[i] for i in rng.permutation(len(places))[:3]):  # the loops are slow: three numbers of each
            here, ends = values[place], []
            for nudge in (1e-5, -1e-5):
                values[place] = here + nudge
                ends.append(expected())
            values[place] = here
            slopes.append((p, place, here, (ends[0] - ends[1]) / 2e-5))
    assert max(abs(slope) for *_, slope in slopes) > 1e-2
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    loss.backward()
    optimizer.step()
    for p, place, was, slope in slopes:
        np.testing.assert_allclose(p.detach().numpy()[place], was - 0.5 * slope, atol=1e-7)


def test_second_derivatives_through_vmap() -> None:
    """The fused layer normalisation's are wrong there where its gain is differentiated; these equal those of a plain loop."""
    made = method()
    x, q = torch.from_numpy(items(14)).view(2, 7, DIM), torch.from_numpy(items(8, seed=1)).view(2, 4, DIM)
    y, qy, present = torch.from_numpy(LABELS), torch.from_numpy(QUERY_LABELS), torch.ones(3, dtype=torch.bool)
    gains = {name: p.detach() for name, p in made.named_parameters() if "norm.weight" in name}
    assert len(gains) == 5

    def loss(gains: dict[str, torch.Tensor], x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        leaves = (Batch(x, y), Batch(q, qy), present)
        out: torch.Tensor = torch.func.functional_call(
            _Loss(made), {f"method.{k}": v for k, v in gains.items()}, leaves
        )
        return out

    def after_a_step(gains: dict[str, torch.Tensor], x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        slopes = torch.func.grad(loss)(gains, x, q)
        return loss({k: v - 0.3 * slopes[k] for k, v in gains.items()}, x, q)

    together = torch.func.grad(lambda g: torch.vmap(after_a_step, (None, 0, 0))(g, x, q).sum())(gains)
    single = [torch.func.grad(after_a_step)(gains, x[t], q[t]) for t in range(2)]
    assert_close(together, {k: single[0][k] + single[1][k] for k in gains}, rtol=1e-9, atol=1e-11)


class _Loss(torch.nn.Module):
    def __init__(self, method: Caml) -> None:
        super().__init__()
        self.method = method

    def forward(self, support: Batch, query: Batch, present: torch.Tensor) -> torch.Tensor:
        return self.method.solve(Episode(support, query, present)).loss


def test_padding_that_holds_nan_leaves_the_weights_alone() -> None:
    """In support and query; the contracts look at the support set's and the losses."""
    made = method().train()
    (sx, sy), (qx, qy), present, _ = episode(items(7), items(4, seed=1))
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    nan, none = torch.full((2, DIM), float("nan"), dtype=torch.float64), torch.full((2,), -1)
    padded = Episode(
        Batch(torch.cat([nan, sx]), torch.cat([none, sy])), Batch(torch.cat([qx, nan]), torch.cat([qy, none])), present
    )
    a, b = made.solve(padded), made.solve(episode(items(7), items(4, seed=1)))
    assert_close((a.loss, a.logits[:4]), (b.loss, b.logits), rtol=1e-12, atol=1e-12)
    ours, theirs = (torch.autograd.grad(out.loss, list(made.parameters())) for out in (a, b))
    assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_dropout_is_for_training() -> None:
    """Each task drops other numbers, also where tasks are vectorised; in evaluation nothing is dropped."""
    made, whole = method(", dropout=0.5"), method()
    (sx, sy), (qx, qy), present, _ = episode(items(7), items(4, seed=1))
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    twice = Episode(
        Batch(sx.repeat(2, 1, 1), sy.repeat(2, 1)), Batch(qx.repeat(2, 1, 1), qy.repeat(2, 1)), present.repeat(2, 1)
    )
    torch.manual_seed(0)
    dropped = made.train()(twice)
    assert float((dropped.logits[0] - dropped.logits[1]).detach().abs().max()) > 1e-3
    assert_close(made.eval()(twice), whole(twice), rtol=0, atol=0)


def test_the_default_one_learns_at_the_default_rate() -> None:
    """0.95 from a chance of 0.2 within 60 steps at 0.001, what `train` takes; the contracts' 0.01 is for smaller ones."""
    torch.manual_seed(1)
    made: Caml = build("methods", "caml", encoder=toys.encoder("image"), way=5).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.001)
    for step in range(60):
        loss = made(toys.episodes(made.encoder, "image", way=5, dtype=torch.float32, seed=10 * step)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test = toys.episodes(made.encoder.eval(), "image", tasks=10, way=5, dtype=torch.float32, seed=10_000)
    with torch.no_grad():
        right = (made.eval()(test).logits.argmax(-1) == test.query.y).double().mean()
    assert right >= 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("layers=0", "layers must be a whole number from 1, not 0"),
        ("heads=1.5", "heads must be a whole number from 1, not 1.5"),
        ("width=0", "width must be a whole number from 1, not 0"),
        ("width=30", "width must be a multiple of the 4 heads, not 30"),
        ("code_width=0", "code_width must be a whole number from 1, not 0"),
        ("code_width=4", "codes of 5 labels need a code_width of at least 5, not 4"),
        ("max_way=1", "max_way must be a whole number from 2, not 1"),
        ("dropout=1", "dropout must be a number from 0 and below 1, not 1"),
    ],
)
def test_options_that_cannot_be(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"caml({options})", encoder=Features(DIM))


def test_more_classes_than_codes() -> None:
    made = method()
    x, y = torch.from_numpy(items(7)), torch.from_numpy(LABELS)
    with pytest.raises(MultifslError, match="at most 4 classes apart, not 5: train with --way 5"):
        made.adapt(Batch(x, y), torch.ones(5, dtype=torch.bool))
    with pytest.raises(MultifslError, match="at most 4 classes apart, not 5"):
        made.update(
            made.adapt(Batch(x, y), torch.ones(3, dtype=torch.bool)), Batch(x, y + 2), torch.ones(5, dtype=torch.bool)
        )
    assert build("methods", "caml", encoder=Features(DIM)).max_way == 5
    assert build("methods", "caml", encoder=Features(DIM), way=7).max_way == 7
