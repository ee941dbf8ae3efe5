"""Meta-LSTM against the paper as plain loops, and its meta-gradient against finite differences of those loops."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from multifsl.encoder import Encoder, Features
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.methods.meta_lstm import MetaLstm, lstm, preprocess
from multifsl.registry import build
from tests.contracts import test_methods as contracts
from tests.contracts import toys
from tests.reference import meta_lstm as reference

META = ("lstm", "input_gate", "forget_gate")


class Tanh(Encoder):
    """One tanh layer, 2 -> 2."""

    modality = "features"

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.layer = 2, nn.Linear(2, 2)

    def forward(self, x: Inputs) -> Tensor:
        return self.layer(x).tanh()


def learner(spec: str, *, features: bool = False) -> MetaLstm:
    """With gates that are neither shut nor open, and that depend on everything that they read."""
    torch.manual_seed(0)
    method = build("methods", spec, encoder=Features(2) if features else Tanh(), way=3).double()
    assert isinstance(method, MetaLstm)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            if name.startswith(META):
                parameter.add_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64), alpha=0.3)
        method.input_gate.bias.add_(3)
    return method


def episodes(tasks: int = 1, *, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    y = torch.arange(3).repeat(tasks, 2)
    x, q = (torch.from_numpy(rng.normal(size=(tasks, 6, 2))) for _ in range(2))
    return Episode(Batch(x, y), Batch(q, y), torch.ones(tasks, 3, dtype=torch.bool), False)


def arrays(task: Episode, t: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support items, queries, and the labels of both."""
    assert isinstance(task.support.x, Tensor) and isinstance(task.query.x, Tensor)
    return task.support.x[t].numpy(), task.query.x[t].numpy(), task.support.y[t].numpy()


def net(method: MetaLstm) -> reference.Arrays:
    return {k: w.detach().numpy().copy() for k, w in method.initial(3).items()}


def meta(method: MetaLstm) -> reference.Arrays:
    return {k: w.detach().numpy().copy() for k, w in method.named_parameters() if k.startswith(META)}


@pytest.mark.parametrize("features", [False, True])
def test_evaluation_equals_the_paper(features: bool) -> None:
    """Logits and loss after 3 updates, where training has 2, as loops over plain numbers, 1e-10 in float64."""
    method = learner("meta_lstm(steps=2, test_steps=3, hidden=3)", features=features).eval()
    task = episodes()
    out = method(task)
    x, q, y = arrays(task)
    adapted, _ = reference.adapt(net(method), meta(method), x, y, 3)
    np.testing.assert_allclose(out.logits[0].detach().numpy(), reference.logits(adapted, q), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(out.loss.item(), reference.loss(adapted, q, y), rtol=1e-10)


def differences(method: MetaLstm, task: Episode, *, second_order: bool) -> dict[str, np.ndarray]:
    """The meta-gradient by central differences of the reference, the parameters of the module by name.

    In first order the gradients and losses that come in are those of the unmoved parameters: they count as constants.
    """
    x, q, y = arrays(task)
    weights, rule = net(method), meta(method)
    _, inputs = reference.adapt(weights, rule, x, y, method.steps)

    def loss() -> float:
        given = None if second_order else inputs
        return reference.loss(reference.adapt(weights, rule, x, y, method.steps, given)[0], q, y)

    found = {}
    names = {"head.weight": "linear.weight", "head.bias": "linear.bias"}
    for name, value in {**weights, **rule}.items():
        slope = np.zeros_like(value)
        for at in np.ndindex(value.shape):
            kept = value[at]
            ends = []
            for step in (1e-5, -1e-5):
                value[at] = kept + step
                ends.append(loss())
            value[at] = kept
            slope[at] = (ends[0] - ends[1]) / 2e-5
        found[names.get(name, name)] = slope
    return found


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("second_order", [False, True])
def test_a_meta_update_is_that_of_finite_differences(second_order: bool, features: bool) -> None:
    """Every parameter after a step of SGD, of rate 1: the learned start, the LSTM and both gates."""
    method = learner(f"meta_lstm(steps=2, hidden=2, second_order={second_order})", features=features).train()
    task = episodes()
    before = {k: p.detach().clone() for k, p in method.named_parameters()}
    expected = differences(method, task, second_order=second_order)
    assert set(expected) == set(before)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    method(task).loss.mean().backward()
    optimizer.step()
    for name, parameter in method.named_parameters():
        moved = (before[name] - parameter.detach()).numpy()
        np.testing.assert_allclose(moved, expected[name], rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("features", [False, True])
def test_second_order_is_another_gradient_of_the_same_loss(features: bool) -> None:
    """Else the test above would not tell them apart."""
    first = learner("meta_lstm(steps=2)", features=features).train()
    second = learner("meta_lstm(steps=2, second_order=True)", features=features).train()
    a, b = first(episodes()), second(episodes())
    assert_close(a.loss, b.loss, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(out.loss.sum(), m.linear.weight)[0] for out, m in ((a, first), (b, second))]
    assert float((slopes[0] - slopes[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("second_order", [False, True])
@pytest.mark.parametrize("modality", ["image", "image with batch statistics", "text"])
def test_tasks_together_by_vmap_equal_the_loop(modality: str, second_order: bool) -> None:
    """Loss and meta-gradient, gains of normalisation included; one task alone is never vectorised."""
    spec = f"meta_lstm(steps=2, lr=0.1, vectorize=True, second_order={second_order})"
    contracts.test_many_tasks_equal_one_at_a_time(spec, modality)


def test_constant_gates_make_it_gradient_descent() -> None:
    """With f = 1 and i = lr, whatever comes in, it is MAML's inner loop (section 3.2)."""
    method = build("methods", "meta_lstm(steps=4)", encoder=Tanh(), way=3).double().eval()
    maml = build("methods", "maml(steps=4, lr=0.2)", encoder=copy.deepcopy(method.encoder), way=3).double().eval()
    maml.linear.load_state_dict(method.linear.state_dict())
    with torch.no_grad():
        for layer, bias in (
            (method.input_gate, math.log(0.25)),
            (method.forget_gate, 100.0),
        ):  # sigmoid of log 1/4: 1/5
            layer.weight.zero_()
            layer.bias.fill_(bias)
    assert_close(method(episodes()).logits, maml(episodes()).logits, rtol=1e-12, atol=1e-12)


def test_it_begins_as_gradient_descent_with_decay() -> None:
    """Gates at 0.99 and at `lr`, up to the small random weights of what they read."""
    method = build("methods", "meta_lstm(steps=1, lr=0.2)", encoder=Features(2), way=3).double().eval()
    (x, y), _, present, _ = episodes()
    assert isinstance(x, Tensor)
    start = method.initial(3)
    slope = torch.autograd.grad(method.loss(start, Batch(x[0], y[0]), present[0]), method.linear.weight)[0]
    adapted = method.adapt(Batch(x[0], y[0]), present[0]).weights["head.weight"]
    assert_close(adapted, 0.99 * start["head.weight"] - 0.2 * slope, rtol=0.03, atol=1e-3)


@pytest.mark.parametrize("modality", ["features", "image with batch statistics"])
def test_a_shared_head_keeps_the_contracts(modality: str) -> None:
    """Those of tests/contracts/: any order of the items, any numbers for the classes, any of them absent."""
    spec = "meta_lstm(steps=2, lr=0.1, head='shared', second_order=True)"
    contracts.test_shapes_and_gradients(spec, modality)
    contracts.test_many_tasks_equal_one_at_a_time(spec, modality)
    contracts.test_padding_rows_are_inert(spec, modality, True)
    contracts.test_order_of_the_support_set_and_names_of_the_classes(spec, modality)
    contracts.test_absent_classes_get_no_probability(spec)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("modality", ["features", "image with batch statistics"])
def test_nothing_leaks_from_task_to_task(modality: str, training: bool) -> None:
    """A task gives the same after another one, to the last bit; at evaluation nothing at all has changed on the module."""
    method = contracts.build("meta_lstm(steps=2)", modality).train(training)
    one, other = (toys.episodes(method.encoder, modality, tasks=1, seed=s) for s in (0, 5))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    first = method(one)
    method(other)
    again = method(one)
    assert_close(again.loss, first.loss, rtol=0, atol=0)
    assert_close(again.logits, first.logits, rtol=0, atol=0)
    for name, value in method.state_dict().items():
        if not (training and "norms" in name):  # in training the encoder's running statistics go on
            assert_close(value, before[name], rtol=0, atol=0)


def test_statistics_of_other_tasks_play_no_part_at_evaluation() -> None:
    """The running statistics of the encoder are those of all tasks: changing them changes nothing."""
    method = contracts.build("meta_lstm(steps=2)", "image with batch statistics").eval()
    task = toys.episodes(method.encoder, "image with batch statistics", tasks=1)
    before = method(task).logits
    for _, norm in method.norms:  # type: ignore[union-attr]
        norm.running_mean.add_(3)
        norm.running_var.mul_(5)
    assert_close(method(task).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("v", [0.0, 1.0, -1.0, 1e-3, -1e-3, 1e30, 4e-5, 5e-5, -4e-5, 1e-12])
def test_preprocessing(v: float) -> None:
    """Either side of e^-10 = 4.54e-5, where the two branches meet."""
    expected = torch.tensor(reference.preprocess(v), dtype=torch.float64)
    assert_close(preprocess(torch.tensor([v], dtype=torch.float64)).flatten(), expected)


def test_the_lstm_is_torchs() -> None:
    """Against nn.LSTMCell, whose axes are the other way round."""
    torch.manual_seed(0)
    cell = nn.LSTMCell(4, 5).double()
    x, h, c = torch.randn(7, 4).double(), torch.randn(7, 5).double(), torch.randn(7, 5).double()
    for mine, torchs in zip(lstm(cell, x.T, h.T, c.T), cell(x, (h, c)), strict=True):
        assert_close(mine.T, torchs, rtol=1e-12, atol=1e-12)


def test_preprocessing_has_finite_gradients() -> None:
    v = torch.tensor([0.0, 1e-12, 0.5, -2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(preprocess(v).sum(), v)
    assert_close(slope, torch.tensor([math.exp(10), math.exp(10), 0.2, -0.05], dtype=torch.float64))


def test_serving_keeps_no_graph_of_the_lstm() -> None:
    """What autograd saves under no_grad holds nothing of H = 7 rows; with gradients it does."""
    method = learner("meta_lstm(steps=3, hidden=7)").eval()
    saved: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    def wide() -> bool:
        return any(shape[:1] == (7,) and len(shape) == 2 for shape in saved)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.no_grad():
            served = method(episodes()).logits
        assert saved and not wide()
        assert_close(method(episodes()).logits, served, rtol=1e-12, atol=1e-12)
        assert wide()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("steps=0", "steps must be a whole number from 1, not 0"),
        ("test_steps=-1", "test_steps must be a whole number from 1, not -1"),
        ("hidden=2.5", "hidden must be a whole number from 1, not 2.5"),
        ("lr=1.0", "lr, where a gate begins, must be a number between 0 and 1, not 1.0"),
        ("lr='fast'", "lr, where a gate begins, must be a number between 0 and 1, not 'fast'"),
        ("second_order='both'", "second_order must be True or False, not 'both'"),
        ("head='none'", "no head 'none'"),
    ],
)
def test_bad_options_are_refused(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"meta_lstm({options})", encoder=Features(3))


def test_more_classes_than_the_head_has_are_refused() -> None:
    method: Any = MetaLstm(Features(3), max_way=2)
    with pytest.raises(MultifslError, match="at most 2 classes apart, not 3"):
        method.adapt(Batch(torch.zeros(3, 3), torch.arange(3)), torch.ones(3, dtype=torch.bool))
