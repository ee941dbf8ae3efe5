"""MAML against its papers: as plain sums, as plain autograd, and by finite differences."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import multifsl.adaptation
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.maml import Maml
from multifsl.registry import build
from tests.contracts import toys
from tests.reference import maml as reference

# ---- networks and episodes ----


class Net(Encoder):
    """z = tanh(norm(W x + b)); norm: a layer of 4 channels."""

    modality = "features"

    def __init__(self, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.dim = 4
        self.layer = nn.Linear(3, 4)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Inputs) -> Tensor:
        return torch.tanh(self.norm(self.layer(x)))


class Attention(Net):
    """Three tokens, each one number of x at one place, look at each other, after a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 4)
        self.norm = nn.LayerNorm(4)
        self.places = nn.Parameter(torch.randn(3, 4))
        self.looks = nn.Linear(4, 12)

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        z = self.norm(self.layer(x.unsqueeze(2)) + self.places)  # [B, 3, 4]
        q, k, v = self.looks(z).unflatten(2, (3, 1, 4)).permute(2, 0, 3, 1, 4)  # each [B, 1, 3, 4]
        return F.scaled_dot_product_attention(q, k, v).mean((1, 2))


def method(options: str = "", encoder: Encoder | None = None, way: int = 3) -> Maml:
    """In training mode and float64, with weights that are nowhere 0 or 1."""
    torch.manual_seed(3)
    made: Maml = build("methods", f"maml({options})", encoder=Net() if encoder is None else encoder, way=way)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made.double().train()


def task(seed: int = 0, way: int = 3, shot: int = 3, query: int = 4) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    y, qy = np.repeat(np.arange(way), shot), np.repeat(np.arange(way), query)
    return rng.normal(size=(len(y), 3)) + y[:, None], y, rng.normal(size=(len(qy), 3)) + qy[:, None], qy


def episodes(tasks: int = 2, seed: int = 0, **shape: int) -> Episode:
    x, y, q, qy = (
        torch.from_numpy(np.stack(leaf)) for leaf in zip(*(task(seed + t, **shape) for t in range(tasks)), strict=True)
    )
    return Episode(Batch(x, y), Batch(q, qy), torch.ones(tasks, int(y.max()) + 1, dtype=torch.bool), False)


def gradient(made: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = {k: p for k, p in made.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def directional(made: Maml, batch: Episode, step: float = 1e-8) -> tuple[float, float]:
    """The derivative of the loss along one direction: of its gradient, and by central differences."""
    found = gradient(made, made(batch).loss.sum())
    torch.manual_seed(7)
    direction = {k: torch.randn_like(g) for k, g in found.items()}
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(made)
        with torch.no_grad():
            for k, p in moved.named_parameters():
                if k in direction:
                    p.add_(sign * step * direction[k])
        values.append(float(moved(batch).loss.detach().sum()))
    analytic = sum(float((found[k] * direction[k]).sum()) for k in found)
    return analytic, (values[0] - values[1]) / (2 * step)


# ---- the paper's sums ----

NAMES = {"W": "encoder.layer.weight", "b": "encoder.layer.bias", "V": "linear.weight", "c": "linear.bias"}


def as_numpy(made: Maml) -> reference.Weights:
    own = dict(made.named_parameters())
    return {k: own[name].detach().numpy().copy() for k, name in NAMES.items()}


@pytest.mark.parametrize("steps", [1, 3])
def test_logits_and_loss_equal_the_paper(steps: int) -> None:
    """Equation 1 as loops over numbers, at evaluation and in training, 1e-10."""
    made = method(f"steps={steps}, lr=0.4")
    x, y, q, qy = task()
    path = reference.inner_loop(as_numpy(made), x, y, 0.4, steps)
    for mode in (True, False):
        out = made.train(mode)(episodes(1))
        np.testing.assert_allclose(out.logits[0].detach().numpy(), reference.logits(path[-1], q), rtol=1e-10)
        np.testing.assert_allclose(float(out.loss.detach()), reference.loss(path[-1], q, qy), rtol=1e-10)


def rates_of(made: Maml) -> reference.Rates:
    """The rates in the reference's words, each moved apart from the others first."""
    short = {"encoder.layer.weight": "W", "encoder.layer.bias": "b", "head.weight": "V", "head.bias": "c"}
    with torch.no_grad():
        if made.step_rates is not None:
            made.step_rates.rates.copy_(0.1 + 0.4 * torch.rand_like(made.step_rates.rates))
            rows = made.step_rates.rates.tolist()
            return [{short[k]: v for k, v in zip(made.step_rates.names, row, strict=True)} for row in rows]
        if made.weight_rates is not None:
            for rate in made.weight_rates.rates:
                rate.copy_(0.6 * torch.rand_like(rate) - 0.1)
            given = zip(made.weight_rates.names, made.weight_rates.rates, strict=True)
            return {short[k]: v.detach().numpy().copy() for k, v in given}
    return made.lr


@pytest.mark.parametrize(
    "options", ["", "first_order=True", "learn_lr='step'", "learn_lr='weight'", "multi_step_loss=4"]
)
def test_the_meta_gradient_equals_the_paper(options: str) -> None:
    """Backwards through the inner steps by hand, second derivatives by the complex step, 1e-10."""
    made = method(f"steps=3, lr=0.4, {options}")
    lr = rates_of(made)
    shares = None
    if made.clock is not None:
        made.begin_step(1)  # of 4: the even shares of 1/3 have lost a quarter
        shares = [0.25, 0.25, 0.5]
    x, y, q, qy = task()
    first_order = "first_order" in options
    expected, g = reference.meta_gradient(
        as_numpy(made), (x, y), (q, qy), lr, 3, first_order=first_order, shares=shares
    )
    loss = made(episodes(1)).loss.sum()
    np.testing.assert_allclose(float(loss.detach()), expected, rtol=1e-10)
    found = gradient(made, loss)
    for k, name in NAMES.items():
        np.testing.assert_allclose(found[name].numpy(), g[k], rtol=1e-10, atol=1e-12)


def test_meta_updates_equal_the_paper() -> None:
    """Algorithm 2: two steps of Adam on the mean over two tasks, 1e-10."""
    made = method("steps=2, lr=0.3")
    w, outer = as_numpy(made), reference.Adam(0.01)
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


# ---- plain autograd ----


def plain_conv4(w: dict[str, Tensor], x: Tensor, norm: str, statistics: dict[str, Tensor] | None = None) -> Tensor:
    """Logits of Conv4 and a linear head, every layer from its definition; statistics: of batch norm, by name."""
    z = x.double() / 255
    for i in range(4):
        gain, bias = w[f"encoder.norms.{i}.weight"], w[f"encoder.norms.{i}.bias"]
        z = F.conv2d(z, w[f"encoder.convs.{i}.weight"], w[f"encoder.convs.{i}.bias"], padding=1)
        groups = z.unflatten(1, (8, -1)) if norm == "group" else z.unsqueeze(1)  # [B, G, C / G, H, W]
        over = (2, 3, 4) if norm == "group" else (0, 3, 4)
        mean, variance = groups.mean(over, keepdim=True), groups.var(over, unbiased=False, keepdim=True)
        if statistics is not None:
            shape = (1, 1, -1, 1, 1)
            mean = statistics[f"norms.{i}.running_mean"].view(shape)
            variance = statistics[f"norms.{i}.running_var"].view(shape)
        z = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2) * gain[:, None, None] + bias[:, None, None]
        z = F.relu(F.max_pool2d(z, 2))
    return z.flatten(1) @ w["head.weight"].T + w["head.bias"]


def image_episodes(modality: str) -> tuple[Encoder, Episode]:
    encoder = toys.encoder(modality)
    return encoder, toys.episodes(encoder, modality, query=3)


def plain_loss(
    made: Maml,
    start: dict[str, Tensor],
    batch: Episode,
    t: int,
    *,
    norm: str,
    rate: Callable[[int, str], Any],
    shares: list[float],
    create_graph: bool,
) -> Tensor:
    (sx, sy), (qx, qy), _, _ = batch
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    w, total = dict(start), torch.zeros((), dtype=torch.float64)
    for step, share in enumerate(shares):
        inner = F.cross_entropy(plain_conv4(w, sx[t], norm), sy[t])
        adapted = [k for k in w if k.startswith("head.") or k.removeprefix("encoder.") in made.adapted]
        g = torch.autograd.grad(inner, [w[k] for k in adapted], create_graph=create_graph)
        w |= {k: w[k] - rate(step, k) * v for k, v in zip(adapted, g, strict=True)}
        if share:
            total = total + share * F.cross_entropy(plain_conv4(w, qx[t], norm), qy[t])
    return total


@pytest.mark.parametrize(
    "options",
    [
        "",
        "first_order=True",
        "learn_lr='step'",
        "learn_lr='weight'",
        "multi_step_loss=10",
        "trainable='last'",
        "trainable='norms'",
    ],
)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_the_meta_gradient_equals_plain_autograd(norm: str, options: str) -> None:
    """Conv4 of plain functions and create_graph=True, over two tasks, 1e-9."""
    encoder, batch = image_episodes("image" if norm == "group" else "image with batch statistics")
    made = method(f"steps=3, {options}", encoder)
    rates_of_conv4 = None
    with torch.no_grad():
        for p in [*made.step_rates.parameters()] if made.step_rates else []:
            p.mul_(0.5 + torch.rand_like(p))
        for p in [*made.weight_rates.parameters()] if made.weight_rates else []:
            p.mul_(0.5 + torch.rand_like(p))
    if made.weight_rates is not None:
        rates_of_conv4 = dict(zip(made.weight_rates.names, made.weight_rates.rates, strict=True))

    def rate(step: int, name: str) -> Any:
        if made.step_rates is not None:
            return made.step_rates.rates[step, made.step_rates.names.index(name)]
        return made.lr if rates_of_conv4 is None else rates_of_conv4[name]

    start: dict[str, Tensor] = {
        k.replace("linear.", "head."): p for k, p in made.named_parameters() if "rates" not in k
    }
    shares = [1 / 3] * 3 if made.multi_step_loss else [0.0, 0.0, 1.0]
    plain = sum(
        plain_loss(made, start, batch, t, norm=norm, rate=rate, shares=shares, create_graph=not made.first_order)
        for t in range(2)
    )
    assert isinstance(plain, Tensor)
    out = made(batch)
    assert_close(out.loss.sum(), plain, rtol=1e-10, atol=0)
    expected = gradient(made, plain)
    for k, g in gradient(made, out.loss.sum()).items():
        assert_close(g, expected[k], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", ["steps=2", "steps=2, batch_norm='per_step'", "steps=2, head='shared'"])
@pytest.mark.parametrize("modality", ["image", "image with batch statistics"])
def test_the_meta_gradient_equals_finite_differences(modality: str, options: str) -> None:
    encoder, batch = image_episodes(modality)
    analytic, differences = directional(method(options, encoder), batch)
    assert analytic == pytest.approx(differences, rel=1e-6, abs=1e-8)


@pytest.mark.slow
def test_the_meta_gradient_equals_that_of_higher() -> None:
    higher = pytest.importorskip("higher")
    encoder, batch = image_episodes("image")
    made = method("steps=3, lr=0.2", encoder)
    net = nn.Sequential(copy.deepcopy(encoder), copy.deepcopy(made.linear))
    (sx, sy), (qx, qy), _, _ = batch
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    total: Any = 0.0
    for t in range(2):
        with higher.innerloop_ctx(net, torch.optim.SGD(net.parameters(), lr=0.2), copy_initial_weights=False) as (
            inner,
            optimizer,
        ):
            for _ in range(3):
                optimizer.step(F.cross_entropy(inner(sx[t]), sy[t]))
            total = total + F.cross_entropy(inner(qx[t]), qy[t])
    expected = torch.autograd.grad(total, list(net.parameters()))
    for g, h in zip(gradient(made, made(batch).loss.sum()).values(), expected, strict=True):
        assert_close(g, h, rtol=1e-9, atol=1e-11)


# ---- the options of MAML++ ----


def test_the_losses_of_all_steps_fade_into_the_last_one() -> None:
    """Shares by hand: even at first; after M training steps nothing but the last; in whatever many calls a step comes."""
    made = method("steps=4, multi_step_loss=2")
    x, y, q, qy = task()
    path = reference.inner_loop(as_numpy(made), x, y, made.lr, 4)
    losses = [reference.loss(w, q, qy) for w in path[1:]]
    expected = [np.mean(losses), np.dot([1 / 8, 1 / 8, 1 / 8, 5 / 8], losses), losses[-1], losses[-1]]
    for step in range(4):
        made.begin_step(step)
        again = method("steps=4, multi_step_loss=2")
        again.load_state_dict(made.state_dict())
        for copied in (again, made, made):
            np.testing.assert_allclose(float(copied(episodes(1)).loss.detach()), expected[step], rtol=1e-10)
    assert int(made.state_dict()["clock.count"]) == 3  # under this name in the files of all versions


def test_second_order_sets_in_at_the_step_that_was_asked_for() -> None:
    made, first, second = (method(f"steps=2, {o}") for o in ("first_order_until=2", "first_order=True", ""))
    batch = episodes(2)
    low, high = (gradient(m, m(batch).loss.sum()) for m in (first, second))
    assert float((low["encoder.layer.weight"] - high["encoder.layer.weight"]).abs().max()) > 1e-3
    for step, expected in enumerate((low, low, high, high)):
        made.begin_step(step)
        for k, g in gradient(made, made(batch).loss.sum()).items():
            assert_close(g, expected[k], rtol=1e-12, atol=1e-14)


def test_every_step_has_batch_statistics_of_its_own() -> None:
    """Step k's are those of the passes under the weights after k inner steps, 0.1 of them after one task; at evaluation
    each pass is normalised by its step's, the queries' by the last, and no item counts for another."""
    encoder, batch = image_episodes("image with batch statistics")
    made = method("steps=2, batch_norm='per_step'", encoder)
    (sx, sy), (qx, _), present, _ = batch
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor) and made.step_norms is not None
    twin = copy.deepcopy(made)
    with twin.adapting(sx):
        path = [
            twin.initial(3),
            *twin.trajectory(Batch(sx[0], sy[0]), present[0], 2),
        ]
    made(toys.one(batch, 0))
    for step, (weights, x) in enumerate(zip(path, (sx, sx, qx), strict=True)):
        z = F.conv2d(x[0].double() / 255, weights["encoder.convs.0.weight"], weights["encoder.convs.0.bias"], padding=1)
        noted = made.step_norms(step)
        assert_close(noted["norms.0.running_mean"], 0.1 * z.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
        assert_close(noted["norms.0.running_var"], 0.9 + 0.1 * z.var((0, 2, 3)), rtol=1e-9, atol=1e-12)
    assert not any(name.startswith("norms.") for name in made.adapted)
    made(batch)
    made.eval()
    w = {k: v.detach().requires_grad_() for k, v in made.initial(3).items()}
    for step in range(2):
        layers = {k: v.detach() for k, v in made.step_norms(step).items()}
        full = w | {f"encoder.{k}": v for k, v in layers.items()}
        g = torch.autograd.grad(F.cross_entropy(plain_conv4(full, sx[0], "batch", layers), sy[0]), list(w.values()))
        w = {k: v - made.lr * h for (k, v), h in zip(w.items(), g, strict=True)}
    layers = made.step_norms(2)
    expected = plain_conv4(w | {f"encoder.{k}": v for k, v in layers.items()}, qx[0], "batch", layers)
    state = made.adapt(Batch(sx[0], sy[0]), present[0])
    assert_close(made.classify(state, qx[0]), expected, rtol=1e-9, atol=1e-9)
    assert_close(made.classify(state, qx[0, :1]), expected[:1], rtol=1e-9, atol=1e-9)


# ---- numbers of steps and of classes, and which weights ----


@pytest.mark.parametrize("options", ["", "learn_lr='step', ", "learn_lr='weight', "])
def test_more_steps_at_evaluation(options: str) -> None:
    """Equation 1 with 5 steps, trained with 2; a learned rate of a step beyond those trained is the last one's."""
    made = method(f"steps=2, {options}test_steps=5")
    lr = rates_of(made)
    x, y, q, _ = task()
    path = reference.inner_loop(as_numpy(made), x, y, lr, 5)
    for mode, steps in ((True, 2), (False, 5)):
        found = made.train(mode)(episodes(1)).logits[0].detach().numpy()
        np.testing.assert_allclose(found, reference.logits(path[steps], q), rtol=1e-10)


def test_fewer_classes_than_the_head_has_take_its_first_rows() -> None:
    """Oracle: the paper's sums with the first two rows alone. Of more classes than rows, an error."""
    made = method("steps=2, lr=0.4", way=5)
    w = as_numpy(made)
    w |= {"V": w["V"][:2], "c": w["c"][:2]}
    x, y, q, _ = task(way=2)
    found = made(episodes(1, way=2)).logits[0].detach().numpy()
    np.testing.assert_allclose(found, reference.logits(reference.inner_loop(w, x, y, 0.4, 2)[-1], q), rtol=1e-10)
    with pytest.raises(MultifslError, match="at most 5 classes apart, not 6: train with --way 6"):
        made(episodes(1, way=6))
    assert build("methods", "maml", encoder=Net()).max_way == 5


def test_a_shared_head_takes_any_number_of_classes_in_any_order() -> None:
    """Oracle: the paper's sums from a head whose rows are all the one that was learned; and renaming renames columns."""
    made = method("steps=2, lr=0.4, head='shared'")
    assert made.max_way is None and made.linear.weight.shape == (1, 4)
    for way in (2, 6):
        w = as_numpy(made)
        w |= {"V": np.repeat(w["V"], way, 0), "c": np.repeat(w["c"], way)}
        x, y, q, _ = task(way=way)
        batch = episodes(1, way=way)
        found = made(batch).logits[0]
        expected = reference.logits(reference.inner_loop(w, x, y, 0.4, 2)[-1], q)
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-9)
        new = torch.randperm(way, generator=torch.Generator().manual_seed(1))
        renamed = made(Episode(Batch(batch.support.x, new[batch.support.y]), *batch[1:]))
        assert_close(renamed.logits[0][:, new], found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ("all", [f"{part}.{i}.{kind}" for part in ("convs", "norms") for i in range(4) for kind in ("weight", "bias")]),
        ("last", ["convs.3.weight", "convs.3.bias", "norms.3.weight", "norms.3.bias"]),
        (r"^norms.*bias", [f"norms.{i}.bias" for i in range(4)]),
    ],
)
def test_what_is_trainable_moves_and_the_rest_stays(trainable: str, expected: list[str]) -> None:
    """And all that stays in the inner loop is learned in the outer one."""
    encoder, batch = image_episodes("image")
    made = method(f"steps=1, trainable={trainable!r}", encoder)
    (sx, sy), _, present, _ = batch
    assert isinstance(sx, Tensor)
    start, end = made.initial(3), made.adapt(Batch(sx[0], sy[0]), present[0]).weights
    assert sorted(end) == sorted([*(f"encoder.{name}" for name in expected), "head.weight", "head.bias"])
    assert all(not torch.equal(end[k], start[k]) for k in end)
    assert all(float(g.abs().max()) > 0 for g in gradient(made, made(batch).loss.sum()).values())


def test_with_the_head_alone_the_encoder_runs_once() -> None:
    """Oracle: the same method on the embeddings, made beforehand."""
    encoder, batch = image_episodes("image")
    made = method("steps=2, trainable='head'", encoder)
    assert made.takes_embeddings
    calls: list[int] = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    out = made(batch)
    assert len(calls) == 1
    ready = method("steps=2", Features(encoder.dim))
    ready.linear.load_state_dict(made.linear.state_dict())
    assert_close(ready(made.encode(batch)).logits, out.logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("test_steps=0", "test_steps must be a whole number from 1, not 0"),
        ("lr=0", "lr must be a number above 0, not 0"),
        ("lr=float", "cannot read|plain value"),
        ("max_way=0", "max_way must be a whole number from 1, not 0"),
        ("head='two'", "no head 'two'; known: 'fixed', 'shared'"),
        ("batch_norm='none'", "no batch_norm 'none'; known: 'support', 'query', 'per_step'"),
        ("learn_lr='all'", "no learn_lr 'all'; known: None, 'step', 'weight'"),
        ("multi_step_loss=-1", "multi_step_loss must be a whole number from 0, not -1"),
        ("first_order_until=0.5", "first_order_until must be a whole number from 0, not 0.5"),
        ("trainable='convs'", "'convs' fits none of the encoder's 2 parameters, such as layer.weight, layer.bias"),
        ("batch_norm='per_step', vectorize=True", "cannot be vectorised"),
    ],
)
def test_bad_options(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"maml({options})", encoder=Net())


# ---- many tasks ----


def networks() -> dict[str, Callable[[], Encoder]]:
    return {
        "LayerNorm": lambda: Net(nn.LayerNorm(4)),
        "GroupNorm": lambda: Net(nn.GroupNorm(2, 4)),
        "BatchNorm": lambda: Net(nn.BatchNorm1d(4)),
        "attention": Attention,
    }


@pytest.mark.parametrize("kind", list(networks()))
@pytest.mark.parametrize("options", ["", "first_order=True, ", "head='shared', learn_lr='step', "])
def test_vectorised_equals_the_loop_in_loss_and_gradient(kind: str, options: str) -> None:
    made = method(f"steps=2, lr=0.5, {options}vectorize=True", networks()[kind]())
    loop = method(f"steps=2, lr=0.5, {options}", networks()[kind]())
    loop.load_state_dict(made.state_dict())
    batch = episodes(4)
    out, expected = made(batch), loop(batch)
    assert_close(out.loss, expected.loss, rtol=1e-10, atol=0)
    assert_close(out.logits, expected.logits, rtol=1e-9, atol=1e-10)
    found = gradient(made, out.loss.sum())
    for k, g in gradient(loop, expected.loss.sum()).items():
        assert_close(found[k], g, rtol=1e-9, atol=1e-12)
    for a, b in zip(made.buffers(), loop.buffers(), strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["LayerNorm", "BatchNorm", "attention"])
def test_without_the_cure_torch_gets_second_derivatives_of_gains_wrong(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why `multifsl.norms.apply_gains_outside` is there: finite differences side with it.

    Should this fail with a newer torch, see whether the cure is still needed.
    """
    batch = episodes(3)
    analytic, differences = directional(method("steps=2, lr=0.5, vectorize=True", networks()[kind]()), batch)
    assert analytic == pytest.approx(differences, rel=1e-5)
    monkeypatch.setattr(multifsl.adaptation, "apply_gains_outside", lambda module: None)
    analytic, differences = directional(method("steps=2, lr=0.5, vectorize=True", networks()[kind]()), batch)
    assert analytic != pytest.approx(differences, rel=1e-4)


class Held:
    """A tensor that autograd keeps; `bytes` counts those alive, `peak` the most."""

    bytes = peak = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
        Held.bytes += self.size
        Held.peak = max(Held.peak, Held.bytes)

    def __del__(self) -> None:
        Held.bytes -= self.size


def peak(function: Callable[[], Any]) -> int:
    """Bytes that autograd holds at most while a function runs; its result lives as long."""
    Held.bytes = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        result = function()
        del result
    return Held.peak


def test_memory_does_not_grow_with_the_number_of_tasks() -> None:
    """What autograd holds, counted: of eight tasks as much as of one. Were the losses' graphs kept, it would be eightfold."""
    made = method("steps=3", toys.encoder("image"))
    batch = toys.episodes(made.encoder, "image", tasks=8)
    alone, many = peak(lambda: made(toys.one(batch, 0))), peak(lambda: made(batch))
    assert alone > 1e6
    assert many <= 1.01 * alone
    (sx, sy), (qx, qy), present, _ = batch
    assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
    kept = peak(
        lambda: [
            made.solve(Episode(Batch(sx[t], sy[t]), Batch(qx[t], qy[t]), present[t], False)).loss for t in range(8)
        ]
    )
    assert kept > 7 * alone


# ---- precision, and networks with wishes of their own ----


def test_under_autocast_the_inner_loop_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; so that only the queries' pass is rounded, and the meta-gradient points where it should."""
    encoder, batch = image_episodes("image")
    (sx, sy), _, present, _ = batch
    assert isinstance(sx, Tensor)

    def found(half: bool) -> tuple[Tensor, Tensor]:
        made = method("steps=3", copy.deepcopy(encoder)).float()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            state = made.adapt(Batch(sx[0], sy[0]), present[0])
            loss = made(batch).loss.sum()
        adapted = torch.cat([w.detach().flatten() for w in state.weights.values()])
        return adapted, torch.cat([g.flatten() for g in gradient(made, loss).values()])

    (exact, direction), (adapted, rounded) = found(False), found(True)
    assert_close(adapted, exact, rtol=0, atol=0)
    assert float(F.cosine_similarity(rounded, direction, dim=0)) > 0.999
    monkeypatch.setattr(multifsl.adaptation, "without_autocast", lambda x: torch.autocast("cpu", dtype=torch.bfloat16))
    assert float(F.cosine_similarity(found(True)[1], direction, dim=0)) < 0.95


def test_batch_norm_needs_two_support_items() -> None:
    made = method("", Net(nn.BatchNorm1d(4)), way=1)
    with pytest.raises(MultifslError, match="at least 2 items; 1 came: give more, or take an encoder without it"):
        made(episodes(1, way=1, shot=1))
    method("", Net(), way=1)(episodes(1, way=1, shot=1))  # without, one will do


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.test_text import save

    folder = tmp_path_factory.mktemp("models") / "bert"
    return save(folder, "Bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.parametrize("trainable", ["last", "all"])
def test_a_transformer_is_adapted_by_loop_and_vectorised(bert: Path, trainable: str) -> None:
    """Second order through attention, masks and LayerNorm gains; padded texts of several lengths."""
    from multifsl.encoders.transformer import Transformer
    from tests.test_text import TEXTS

    found = []
    for vectorize in (False, True):
        encoder = Transformer(str(bert))
        made = method(f"steps=2, lr=0.5, trainable={trainable!r}, vectorize={vectorize}", encoder, way=2)
        x = encoder.preprocess(TEXTS)
        assert isinstance(x, dict)
        support = {k: torch.stack([leaf[:4], leaf[1:5]]) for k, leaf in x.items()}
        query = {k: torch.stack([leaf[2:5], leaf[:3]]) for k, leaf in x.items()}
        batch = Episode(
            Batch(support, torch.tensor([[0, 1, 0, 1], [1, 0, 0, 1]])),
            Batch(query, torch.tensor([[0, 1, 0], [1, 1, 0]])),
            torch.ones(2, 2, dtype=torch.bool),
            False,
        )
        out = made(batch)
        found.append((out.loss, gradient(made, out.loss.sum())))
        if vectorize:
            analytic, differences = directional(made, batch)
            assert analytic == pytest.approx(differences, rel=1e-5)
    (loop, slow), (together, fast) = found
    assert_close(together, loop, rtol=1e-12, atol=0)
    for k, g in slow.items():
        assert_close(fast[k], g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_a_ready_made_attention_mask_changes_nothing(kind: str, tmp_path: Path) -> None:
    """What a transformer is given under vmap, where its own mask code cannot run, equals what it makes itself, to 0.0."""
    from multifsl.encoders.transformer import Transformer, additive_mask
    from tests.test_text import TEXTS, save

    encoder = Transformer(str(save(tmp_path / kind, kind)))
    x = encoder.preprocess(TEXTS)
    assert isinstance(x, dict) and not bool(x["attention_mask"].all())
    with torch.no_grad():
        ready = encoder.network(
            input_ids=x["input_ids"].long(), attention_mask=additive_mask(x["attention_mask"], torch.float32)
        ).last_hidden_state
        own = encoder.network(input_ids=x["input_ids"].long(), attention_mask=x["attention_mask"].long())
    real = x["attention_mask"].bool()
    assert_close(ready[real], own.last_hidden_state[real], rtol=0, atol=0)


def test_the_head_may_have_a_rate_of_its_own() -> None:
    """One step by hand: every weight by its rate; and the rates that are learned start from them."""
    made = method("steps=1, lr=0.01, head_lr=0.5, first_order=True")
    batch = episodes(1)
    (sx, sy), _, present, _ = batch
    assert isinstance(sx, Tensor)
    start = made.initial(present.shape[1])
    loss = made.loss(start, Batch(sx[0], sy[0]), present[0])
    slopes = torch.autograd.grad(loss, list(start.values()))
    after = made.inner_loop(Batch(sx[0], sy[0]), present[0])
    for (name, w), slope in zip(start.items(), slopes, strict=True):
        assert_close(after[name], w - (0.5 if name.startswith("head.") else 0.01) * slope)
    learned = Maml(Features(3), steps=2, lr=0.01, head_lr=0.5, learn_lr="step")
    assert learned.step_rates is not None
    assert {k: round(float(v.detach()), 6) for k, v in learned.step_rates(1).items()} == learned.rates


def test_a_fast_shared_head_learns_where_one_rate_for_all_stalls() -> None:
    """Group norm: the zeros that a shared head starts from want a larger rate than the encoder bears."""
    torch.manual_seed(1)
    made: Maml = build(
        "methods", "maml(head='shared', steps=3, lr=0.01, head_lr=0.3)", encoder=toys.encoder("image"), way=5
    ).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=0.003)
    for step in range(64):
        optimizer.zero_grad()
        made(toys.episodes(made.encoder, "image", way=5, dtype=torch.float32, seed=10 * step)).loss.mean().backward()
        optimizer.step()
    test = toys.episodes(made.encoder.eval(), "image", tasks=10, way=5, dtype=torch.float32, seed=10_000)
    assert (made.eval()(test).logits.argmax(-1) == test.query.y).double().mean() >= 0.95


def test_another_method_finds_the_last_step_s_norms_in_the_encoder() -> None:
    encoder, batch = image_episodes("image with batch statistics")
    made = method("steps=2, batch_norm='per_step'", encoder).train()
    made(batch)
    assert made.step_norms is not None
    held = dict(made.encoder.named_parameters()) | dict(made.encoder.named_buffers())
    for name, value in made.step_norms(2).items():
        assert_close(held[name], value, rtol=0, atol=0)
    assert float(held["norms.0.running_mean"].abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("head='shared', steps=1", "the first inner step moves the head alone.*steps of 2 or more"),
        ("head='shared', test_steps=1", "the first inner step moves the head alone"),
        ("trainable='head', batch_norm='query'", "batch_norm='query' has no part where trainable='head'"),
        ("trainable='head', batch_norm='per_step'", "needs an encoder that is adapted, not trainable='head'"),
        ("first_order='no'", "first_order must be True or False, not 'no'"),
        ("vectorize='no'", "vectorize must be True or False, not 'no'"),
        ("head_lr=0", "head_lr must be a number above 0, not 0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"maml({options})", encoder=toys.encoder("image with batch statistics"))
