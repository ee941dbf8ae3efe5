"""Meta-SGD against its paper as plain sums."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.errors import MultifslError
from multifsl.methods.meta_sgd import MetaSgd
from multifsl.registry import build
from tests.contracts import toys
from tests.methods.test_anil import NAMES, Net, episodes, task
from tests.reference import maml as plain
from tests.reference import meta_sgd as reference

RATES = {"W": "encoder.layer.weight", "b": "encoder.layer.bias", "V": "head.weight", "c": "head.bias"}


def method(options: str = "", way: int = 3) -> MetaSgd:
    """With rates that differ from weight to weight, some of them below 0."""
    torch.manual_seed(3)
    made: MetaSgd = build("methods", f"meta_sgd({options})", encoder=Net(), way=way).double().train()
    assert made.weight_rates is not None
    with torch.no_grad():
        for rate in made.weight_rates.rates:
            rate.copy_(0.6 * torch.rand_like(rate) - 0.1)
    return made


def parameters(made: MetaSgd) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Weights and rates, by the paper's letters."""
    own, rates = dict(made.named_parameters()), made.weight_rates
    assert rates is not None
    alpha = dict(zip(rates.names, rates.rates, strict=True))
    return {k: own[n] for k, n in NAMES.items()}, {k: alpha[n] for k, n in RATES.items()}


def as_numpy(named: dict[str, nn.Parameter]) -> dict[str, np.ndarray]:
    return {k: v.detach().numpy().copy() for k, v in named.items()}


@pytest.mark.parametrize("steps", [1, 3])
def test_loss_logits_and_meta_gradients_equal_the_paper(steps: int) -> None:
    """Weights' and rates' gradients by the complex step, 1e-10."""
    made = method(f"steps={steps}")
    w, alpha = parameters(made)
    x, y, q, qy = task()
    out = made(episodes(1))
    expected, by_w, by_alpha = reference.meta_gradient(as_numpy(w), as_numpy(alpha), (x, y), (q, qy), steps)
    np.testing.assert_allclose(float(out.loss.detach()), expected, rtol=1e-10)
    after = reference.adapted(as_numpy(w), as_numpy(alpha), x, y, steps)
    np.testing.assert_allclose(out.logits[0].detach().numpy(), plain.logits(after, q), rtol=1e-10, atol=1e-12)
    found = torch.autograd.grad(out.loss.sum(), [*w.values(), *alpha.values()])
    for g, h in zip(found, [*by_w.values(), *by_alpha.values()], strict=True):
        np.testing.assert_allclose(g.numpy(), h, rtol=1e-10, atol=1e-12)


def test_a_meta_update_equals_the_paper() -> None:
    """Algorithm 1 with plain gradient descent outside, beta = 0.1, over two tasks: weights and rates move, 1e-10."""
    made = method()
    w, alpha = parameters(made)
    before = as_numpy(w), as_numpy(alpha)
    found = []
    for t in range(2):
        x, y, q, qy = task(t)
        found.append(reference.meta_gradient(*before, (x, y), (q, qy))[1:])
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    made(episodes(2)).loss.mean().backward()
    optimizer.step()
    for i, named in enumerate((w, alpha)):
        for k, value in as_numpy(named).items():
            expected = before[i][k] - 0.1 * (found[0][i][k] + found[1][i][k]) / 2
            np.testing.assert_allclose(value, expected, rtol=1e-10)


def test_with_one_rate_for_all_it_is_maml() -> None:
    """Before training every rate is `lr`, and the first answer is MAML's with one step, to the bit."""
    encoder = toys.encoder("image")
    batch = toys.episodes(encoder, "image")
    outs = []
    for spec in ("meta_sgd(lr=0.25)", "maml(steps=1, lr=0.25)"):
        torch.manual_seed(1)
        outs.append(build("methods", spec, encoder=encoder, way=3).double()(batch))
    assert_close(outs[0].logits, outs[1].logits, rtol=0, atol=0)


def test_there_is_a_rate_for_every_weight_that_is_adapted() -> None:
    encoder = toys.encoder("image")
    made = build("methods", "meta_sgd(trainable='last')", encoder=encoder, way=4)
    shapes = [tuple(rate.shape) for rate in made.weight_rates.rates]
    assert shapes == [(4, encoder.dim), (4,), (8, 8, 3, 3), (8,), (8,), (8,)]
    fewer = made(toys.episodes(encoder, "image", dtype=torch.float32))  # 3 of 4 classes: the rates' first rows
    assert fewer.logits.shape == (2, 6, 3)


@pytest.mark.parametrize("options", ["", "batch_norm='query'"])
def test_vectorised_equals_the_loop(options: str) -> None:
    found = []
    for vectorize in (False, True):
        encoder = toys.encoder("image with batch statistics")
        torch.manual_seed(1)
        spec = f"meta_sgd({options}{', ' * bool(options)}vectorize={vectorize})"
        made = build("methods", spec, encoder=encoder, way=3).double()
        loss = made(toys.episodes(encoder, "image with batch statistics")).loss
        found.append([loss, *torch.autograd.grad(loss.sum(), list(made.parameters()))])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("lr=0", "lr must be a number above 0, not 0"),
        ("batch_norm='per_step'", "no batch_norm 'per_step'; known: 'support', 'query'"),
        ("learn_lr=None", "unexpected keyword argument 'learn_lr'"),
        ("max_way=-2", "max_way must be a whole number from 1, not -2"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"meta_sgd({options})", encoder=Features(3))


def test_more_classes_than_the_head_has() -> None:
    with pytest.raises(MultifslError, match="at most 3 classes apart, not 4: train with --way 4"):
        method(way=3)(episodes(1, way=4))
