"""ANIL against its paper as plain sums."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.anil import Anil
from multifsl.methods.maml import Maml
from multifsl.registry import build
from tests.contracts import toys
from tests.reference import anil as reference
from tests.reference import maml as plain

NAMES = {"W": "encoder.layer.weight", "b": "encoder.layer.bias", "V": "linear.weight", "c": "linear.bias"}


class Net(Encoder):
    """z = tanh(W x + b)."""

    modality = "features"

    def __init__(self) -> None:
        super().__init__()
        self.dim = 4
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return torch.tanh(self.layer(x))


def method(options: str = "", way: int = 3) -> Anil:
    torch.manual_seed(3)
    made: Anil = build("methods", f"anil({options})", encoder=Net(), way=way).double().train()
    return made


def as_numpy(made: Anil) -> dict[str, np.ndarray]:
    own = dict(made.named_parameters())
    return {k: own[name].detach().numpy().copy() for k, name in NAMES.items()}


def task(seed: int = 0, way: int = 3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y, qy = np.repeat(np.arange(way), 3), np.repeat(np.arange(way), 4)
    return rng.normal(size=(len(y), 3)) + y[:, None], y, rng.normal(size=(len(qy), 3)) + qy[:, None], qy


def episodes(tasks: int = 2, seed: int = 0, way: int = 3) -> Episode:
    x, y, q, qy = (
        torch.from_numpy(np.stack(leaf)) for leaf in zip(*(task(seed + t, way) for t in range(tasks)), strict=True)
    )
    return Episode(Batch(x, y), Batch(q, qy), torch.ones(tasks, way, dtype=torch.bool), False)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("steps", [1, 4])
def test_loss_logits_and_meta_gradient_equal_the_paper(steps: int, tasks: int) -> None:
    """Sums over plain numbers and the complex step; plain and under vmap; 1e-10."""
    made = method(f"steps={steps}, lr=0.4")
    w = as_numpy(made)
    out = made(episodes(tasks))
    named = dict(made.named_parameters())
    each = torch.autograd.grad(out.loss.sum(), [named[n] for n in NAMES.values()])
    found = dict(zip(NAMES, each, strict=True))
    total = {k: np.zeros_like(v) for k, v in w.items()}
    for t in range(tasks):
        x, y, q, qy = task(t)
        expected, g = reference.meta_gradient(w, (x, y), (q, qy), 0.4, steps)
        total = {k: total[k] + g[k] for k in w}
        np.testing.assert_allclose(float(out.loss[t].detach()), expected, rtol=1e-10)
        logits = plain.logits(reference.adapted(w, x, y, 0.4, steps), q)
        np.testing.assert_allclose(out.logits[t].detach().numpy(), logits, rtol=1e-10, atol=1e-12)
    for k in w:
        np.testing.assert_allclose(found[k].numpy(), total[k], rtol=1e-10, atol=1e-12)


def test_meta_updates_equal_the_paper() -> None:
    """Two steps of Adam on the mean over two tasks, encoder and head, 1e-10."""
    made = method("steps=2, lr=0.3")
    w, outer = as_numpy(made), plain.Adam(0.01)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for step in range(2):
        found = []
        for t in range(2):
            x, y, q, qy = task(10 * step + t)
            found.append(reference.meta_gradient(w, (x, y), (q, qy), 0.3, 2)[1])
        w = outer.step(w, {k: (found[0][k] + found[1][k]) / 2 for k in w})
        optimizer.zero_grad()
        made(episodes(2, seed=10 * step)).loss.mean().backward()
        optimizer.step()
    for k, value in as_numpy(made).items():
        np.testing.assert_allclose(value, w[k], rtol=1e-10)


def test_first_order_takes_the_jacobian_for_the_identity() -> None:
    """For the head: the gradient at the adapted weights. By the query loss alone, the encoder's holds no inner loop."""
    made = method("steps=2, lr=0.4, first_order=True")
    x, y, q, qy = task()
    after = reference.adapted(as_numpy(made), x, y, 0.4, 2)
    expected = plain.gradient(after, q, qy)
    named = dict(made.named_parameters())
    found = torch.autograd.grad(made(episodes(1)).loss.sum(), [named[n] for n in NAMES.values()])
    for k, g in zip(NAMES, found, strict=True):
        np.testing.assert_allclose(g.numpy(), expected[k], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", ["steps=3", "steps=2, test_steps=4, head='shared'", "learn_lr='weight', steps=1"])
def test_it_is_maml_with_a_head_alone(options: str) -> None:
    """In training and at evaluation, the same to the bit; and the encoder runs once."""
    encoder = toys.encoder("image")
    batch = toys.episodes(encoder, "image")
    made: list[Any] = []
    for spec in (f"anil({options})", f"maml({options}, trainable='head')"):
        torch.manual_seed(1)
        made.append(build("methods", spec, encoder=encoder, way=3).double())
    assert isinstance(made[0], Maml) and made[0].takes_embeddings
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    for training in (True, False):
        a, b = (m.train(training)(batch) for m in made)
        assert_close(a.logits, b.logits, rtol=0, atol=0)
    assert len(calls) == 4


def test_an_encoder_that_is_not_adapted_leaves_no_trace_in_the_state() -> None:
    made = method("steps=2").eval()
    state = made.adapt(Batch(torch.randn(6, 4).double(), torch.arange(6) % 3), torch.ones(3, dtype=torch.bool))
    assert sorted(state.weights) == ["head.bias", "head.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("lr=-1", "lr must be a number above 0, not -1"),
        ("head='both'", "no head 'both'; known: 'fixed', 'shared'"),
        ("trainable='all'", "unexpected keyword argument 'trainable'"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"anil({options})", encoder=Features(3))


def test_more_classes_than_the_head_has() -> None:
    with pytest.raises(MultifslError, match="at most 3 classes apart, not 4: train with --way 4"):
        method(way=3)(episodes(1, way=4))
