"""Reptile against the paper as plain loops, torch's own Adam, and joint training, to which one step comes down."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.adaptation import Adapted
from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.reptile import Reptile, minibatches
from multifsl.registry import build
from tests.contracts import test_methods as contracts
from tests.contracts import toys
from tests.reference import reptile as reference


class Tanh(Encoder):
    """One tanh layer, 3 -> 4."""

    modality = "features"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.layer = 4, nn.Linear(3, 4)

    def forward(self, x: Inputs) -> Tensor:
        return self.layer(x).tanh()


def learner(spec: str, *, features: bool = False) -> Reptile:
    torch.manual_seed(0)
    method = build("methods", spec, encoder=Features(3) if features else Tanh(), way=3).double()
    assert isinstance(method, Reptile)
    return method


def episodes(tasks: int = 1, *, shot: int = 2, query: int = 3, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    sy, qy = np.repeat(np.arange(3), shot), np.repeat(np.arange(3), query)
    return Episode(
        Batch(torch.from_numpy(rng.normal(size=(tasks, len(sy), 3))), torch.from_numpy(np.stack([sy] * tasks))),
        Batch(torch.from_numpy(rng.normal(size=(tasks, len(qy), 3))), torch.from_numpy(np.stack([qy] * tasks))),
        torch.ones(tasks, 3, dtype=torch.bool),
        False,
    )


def net(method: Reptile) -> reference.Net:
    """The first weights, as copies."""
    return {k: w.detach().numpy().copy() for k, w in method.initial(3).items()}


def items(task: Episode, t: int) -> tuple[np.ndarray, np.ndarray]:
    """All of a task's items: support, then queries."""
    assert isinstance(task.support.x, Tensor) and isinstance(task.query.x, Tensor)
    x = torch.cat([task.support.x[t], task.query.x[t]])
    return x.numpy(), torch.cat([task.support.y[t], task.query.y[t]]).numpy()


INNER: list[dict[str, Any]] = [
    {"optimizer": "adam", "lr": 0.01, "batch_size": 4},
    {"optimizer": "adam", "lr": 0.01, "batch_size": None},
    {"optimizer": "sgd", "lr": 0.5, "batch_size": 7},
]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("inner", INNER)
def test_evaluation_equals_the_paper(inner: dict[str, Any], features: bool) -> None:
    """Logits and loss after 6 inner steps on 6 items, as loops over plain numbers, 1e-10 in float64."""
    options = ", ".join(f"{k}={v!r}" for k, v in inner.items())
    method = learner(f"reptile(test_steps=6, {options})", features=features).eval()
    task = episodes()
    out = method(task)
    (sx, sy), (qx, qy) = task.support, task.query
    phi, _ = reference.adapt(net(method), sx[0].numpy(), sy[0].numpy(), steps=6, **inner)  # type: ignore[index]
    expected = reference.logits(phi, qx[0].numpy())  # type: ignore[index]
    np.testing.assert_allclose(out.logits[0].detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    picked = expected[np.arange(9), qy[0].numpy()]
    loss = np.mean(np.log(np.exp(expected).sum(1)) - picked)
    np.testing.assert_allclose(out.loss.detach().numpy(), [loss], rtol=1e-10)


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("tasks", [1, 3])  # Algorithm 1, serial, and Algorithm 2, batched
@pytest.mark.parametrize("inner", INNER)
def test_a_meta_update_by_sgd_is_the_papers(inner: dict[str, Any], tasks: int, features: bool) -> None:
    """theta + eps * mean of (phi - theta), to 1e-12, and half the squared distances as losses."""
    options = ", ".join(f"{k}={v!r}" for k, v in inner.items())
    method = learner(f"reptile(steps=4, carry=False, {options})", features=features).train()
    theta, batch = net(method), episodes(tasks)
    phis = [reference.adapt(theta, *items(batch, t), steps=4, **inner)[0] for t in range(tasks)]
    optimizer = torch.optim.SGD(method.parameters(), lr=0.3)
    loss = method(batch).loss
    loss.mean().backward()
    optimizer.step()
    losses = [reference.half_squared_distance(theta, phi) for phi in phis]
    np.testing.assert_allclose(loss.detach().numpy(), losses, rtol=1e-10)
    for name, moved in net(method).items():
        expected = theta[name] + 0.3 * (sum(phi[name] for phi in phis) / tasks - theta[name])
        np.testing.assert_allclose(moved, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("features", [False, True])
def test_second_moments_go_on_from_task_to_task(features: bool) -> None:
    """One Adam for all tasks, in turn, within a step and from step to step, and at evaluation too; 1e-10."""
    inner = {"optimizer": "adam", "lr": 0.01, "batch_size": 4}
    method = learner("reptile(steps=3, test_steps=2, lr=0.01, batch_size=4)", features=features).train()
    assert method.carry
    theta = net(method)
    second, done = None, 0
    for seed in range(2):
        batch = episodes(2, seed=seed)
        losses = method(batch).loss.detach()
        for t in range(2):
            phi, second = reference.adapt(theta, *items(batch, t), steps=3, second=second, done=done, **inner)  # type: ignore[arg-type]
            done += 3
            np.testing.assert_allclose(float(losses[t]), reference.half_squared_distance(theta, phi), rtol=1e-10)
    method.eval()
    restored = learner("reptile(steps=3, test_steps=2, lr=0.01, batch_size=4)", features=features).eval()
    restored.load_state_dict(method.state_dict())
    (sx, sy), (qx, _), _, _ = task = episodes(seed=5)
    phi, _ = reference.adapt(theta, sx[0].numpy(), sy[0].numpy(), steps=2, second=second, done=done, **inner)  # type: ignore[arg-type, index]
    for served in (method, restored):
        logits = served(task).logits[0].detach().numpy()
        np.testing.assert_allclose(logits, reference.logits(phi, qx[0].numpy()), rtol=1e-10, atol=1e-12)  # type: ignore[index]
    assert method.clock is not None
    assert method.clock.steps == 4  # evaluation leaves no trace


@pytest.mark.parametrize("features", [False, True])
def test_second_moments_go_on_from_step_to_step_where_steps_are_told(features: bool) -> None:
    """All tasks of a step start from those of the last task of the step before, each in a call of its own; 1e-10."""
    inner = {"optimizer": "adam", "lr": 0.01, "batch_size": 4}
    method = learner("reptile(steps=3, lr=0.01, batch_size=4)", features=features).train()
    theta, second = net(method), None
    for step in range(3):
        method.begin_step(step)
        batch, found = episodes(3, seed=step), []
        losses = torch.cat([method(toys.one(batch, t)).loss.detach() for t in range(3)])
        for t in range(3):
            phi, after = reference.adapt(theta, *items(batch, t), steps=3, second=second, done=3 * step, **inner)  # type: ignore[arg-type]
            found.append(reference.half_squared_distance(theta, phi))
        second = after
        np.testing.assert_allclose(losses.numpy(), found, rtol=1e-10)
    assert method.clock is not None and method.clock.steps == 3


def test_the_inner_loop_is_torchs_adam_without_momentum() -> None:
    """Against torch.optim.Adam on a copy of the network: another implementation."""
    method = learner("reptile(test_steps=20, lr=0.01, batch_size=None)").eval()
    (sx, sy), _, present, _ = episodes()
    assert isinstance(sx, Tensor)
    layer, head = copy.deepcopy(method.encoder), copy.deepcopy(method.linear)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.01, betas=(0.0, 0.999))
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(head(layer(sx[0])), sy[0]).backward()
        optimizer.step()
    state: Adapted = method.adapt(Batch(sx[0], sy[0]), present[0])
    assert_close(state.weights["head.weight"], head.weight, rtol=1e-10, atol=1e-12)
    assert_close(state.weights["encoder.layer.weight"], layer.get_parameter("layer.weight"), rtol=1e-10, atol=1e-12)


def test_one_step_of_sgd_on_all_items_is_joint_training() -> None:
    """Section 2: with k = 1 the meta-gradient is lr times the gradient of the mean loss, here by plain autograd."""
    method = learner("reptile(steps=1, lr=0.25, optimizer='sgd', batch_size=None)").train()
    batch = episodes(2)
    parameters = list(method.parameters())
    found = torch.autograd.grad(method(batch).loss.mean(), parameters)
    x, y = (np.concatenate(part) for part in zip(*(items(batch, t) for t in range(2)), strict=True))
    scores = method.linear(method.encoder(torch.from_numpy(x)))
    joint = torch.autograd.grad(F.cross_entropy(scores, torch.from_numpy(y)), parameters)
    for a, b in zip(found, joint, strict=True):
        assert_close(a, 0.25 * b, rtol=1e-10, atol=1e-14)


def test_training_logits_are_those_of_the_adapted_weights() -> None:
    method = learner("reptile(steps=4, lr=0.5, optimizer='sgd', batch_size=None)").train()
    batch = episodes(2)
    out = method(batch)
    assert not out.logits.requires_grad
    for t in range(2):
        phi, _ = reference.adapt(net(method), *items(batch, t), steps=4, lr=0.5, optimizer="sgd", batch_size=None)
        expected = reference.logits(phi, batch.query.x[t].numpy())  # type: ignore[index]
        np.testing.assert_allclose(out.logits[t].numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("y", [[0, 0, 0, 1, 1, 2], [2, 0, 1, 0, 1, 2, 0], [1, 1]])
@pytest.mark.parametrize("batch_size", [None, 1, 2, 4, 9])
def test_minibatches_are_dealt_as_in_the_reference(y: list[int], batch_size: int | None) -> None:
    """Padding rows between the items change nothing: they are not dealt, and a slot without an item has y = -1."""
    rows = list(minibatches(Batch(torch.arange(len(y)), torch.tensor(y)), 3, batch_size, 5))
    assert [b.x.tolist() for b in rows] == reference.deal(np.array(y), batch_size, 5)  # type: ignore[union-attr]
    x, padded = torch.tensor([-7, *range(len(y)), -7]), torch.tensor([-1, *y, -1])
    dealt = list(minibatches(Batch(x, padded), 3, batch_size, 5))
    kept = [b.x[b.y >= 0].tolist() for b in dealt]  # type: ignore[index]
    assert kept == reference.deal(np.array(y), batch_size, 5)


def test_a_shared_head_moves_to_the_mean_of_its_classes() -> None:
    """Its one row against the mean, over the classes that take part, of the rows that the reference adapts from it."""
    method = learner("reptile(steps=3, lr=0.02, batch_size=None, head='shared', carry=False)", features=True).train()
    with torch.no_grad():
        method.linear.weight.normal_(generator=torch.Generator().manual_seed(1))
    batch = episodes()
    wide = batch._replace(present=torch.tensor([[True, True, True, False]]))
    phi, _ = reference.adapt(net(method), *items(batch, 0), steps=3, lr=0.02, optimizer="adam", batch_size=None)
    for given in (batch, wide):
        found = torch.autograd.grad(method(given).loss.sum(), list(method.parameters()))
        for g, name, own in zip(found, ("head.weight", "head.bias"), method.parameters(), strict=True):
            expected = own.detach().numpy() - phi[name].mean(0, keepdims=True)
            np.testing.assert_allclose(g.numpy(), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("modality", ["features", "image with batch statistics"])
def test_a_shared_head_keeps_the_contracts(modality: str) -> None:
    """Those of tests/contracts/: any order of the items, any numbers for the classes, any of them absent."""
    spec = "reptile(steps=2, test_steps=5, lr=0.01, head='shared', batch_size=4, carry=False)"
    contracts.test_shapes_and_gradients(spec, modality)
    contracts.test_many_tasks_equal_one_at_a_time(spec, modality)
    contracts.test_padding_rows_are_inert(spec, modality, True)
    contracts.test_order_of_the_support_set_and_names_of_the_classes(spec, modality)
    contracts.test_absent_classes_get_no_probability(spec)


def test_what_is_not_adapted_is_frozen() -> None:
    encoder = Tanh()
    Reptile(encoder, trainable="bias")
    assert [p.requires_grad for p in encoder.parameters()] == [False, True]
    Reptile(frozen := Tanh(), trainable="head")
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("optimizer='adamw'", "no optimizer 'adamw'; known: 'adam', 'sgd'"),
        ("carry='yes'", "carry must be True or False, not 'yes'"),
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("test_steps=None", "test_steps must be a whole number from 1, not None"),
        ("batch_size=0", "batch_size must be a whole number from 1, not 0"),
        ("lr=-1", "lr must be a number above 0, not -1"),
        ("vectorize=True", "cannot be vectorised: take carry=False or vectorize=False"),
        ("head='none'", "no head 'none'"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"reptile({options})", encoder=Features(3))


def test_more_classes_than_the_head_has_are_refused() -> None:
    method = Reptile(Features(3), max_way=2)
    support = Batch(torch.zeros(3, 3), torch.arange(3))
    with pytest.raises(MultifslError, match="at most 2 classes apart, not 3"):
        method.adapt(support, torch.ones(3, dtype=torch.bool))
