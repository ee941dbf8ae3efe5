"""Memory-augmented networks against the paper as plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.errors import MultifslError
from multifsl.methods.mann import Mann, _mixed
from multifsl.registry import build
from tests.contracts import toys
from tests.reference import mann as reference

SMALL = "slots=9, slot_width=3, controller=4, heads=2, max_way=4"
DIM = 3
LABELS = np.array([0, 2, 1, 1, 0, 2, 0])
QUERY_LABELS = np.array([1, 0, 2, 1])


def method(options: str = "", dim: int = DIM) -> Mann:
    """A small network with larger weights than it begins with, so that no gate is near its middle; items in the order given."""
    torch.manual_seed(0)
    options = options if "order=" in options else ", ".join(filter(None, [options, "order='given'"]))
    options = options if "standardise=" in options else f"{options}, standardise=False"
    made: Mann = build("methods", f"mann({SMALL}{', ' if options else ''}{options})", encoder=Features(dim)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(2.5)
    return made


def items(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim))


def episode(x: np.ndarray, q: np.ndarray, n_classes: int = 3) -> Episode:
    """An episode of LABELS and QUERY_LABELS."""
    return Episode(
        Batch(torch.from_numpy(x), torch.from_numpy(LABELS)),
        Batch(torch.from_numpy(q), torch.from_numpy(QUERY_LABELS)),
        torch.ones(n_classes, dtype=torch.bool),
    )


def meta_batch(tasks: int = 3, *, seed: int = 0) -> Episode:
    """Tasks [T, ...] of LABELS and QUERY_LABELS."""
    x, q = items(7 * tasks, seed=seed).reshape(tasks, 7, DIM), items(4 * tasks, seed=seed + 1).reshape(tasks, 4, DIM)
    return Episode(
        Batch(torch.from_numpy(x), torch.from_numpy(LABELS).repeat(tasks, 1)),
        Batch(torch.from_numpy(q), torch.from_numpy(QUERY_LABELS).repeat(tasks, 1)),
        torch.ones(tasks, 3, dtype=torch.bool),
        False,
    )


def weights(made: Mann) -> reference.Weights:
    names = ["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"]
    names += ["interface.weight", "interface.bias", "output.weight", "output.bias"]
    return reference.Weights(*(made.get_parameter(name).detach().numpy() for name in names))


def after(made: Mann, x: np.ndarray, y: np.ndarray, begin: reference.State | None = None) -> tuple[Any, np.ndarray]:
    """The paper's state after a sequence, and its logits."""
    begin = reference.start(4, 9, 3, 2, 4) if begin is None else begin
    temperature = float(torch.as_tensor(made.number("temperature"), dtype=torch.float64).detach())
    return reference.sequence(begin, x, y, weights(made), gamma=made.gamma, temperature=temperature)


def expected_logits(made: Mann, x: np.ndarray, q: np.ndarray, y: np.ndarray = LABELS) -> np.ndarray:
    """Each query as the next item after the support set, [Q, C]."""
    state, _ = after(made, x, y)
    return np.concatenate([after(made, one[None], np.array([0]), state)[1] for one in q])


OPTIONS = ["", "gamma=0.5", "temperature=0.3", "temperature='learned'", "setting='sequence'", "memory='persistent'"]


@pytest.mark.parametrize("options", OPTIONS)
def test_answers_equal_the_paper(options: str) -> None:
    """Logits, loss and the state after the support set as sums over plain numbers, 1e-10 in float64; 7 items reuse the 9 slots."""
    made = method(options).eval()
    x, q = items(7), items(4, seed=1)
    asked = episode(x, q)
    state = made.adapt(asked.support, asked.present)
    theirs, _ = after(made, x, LABELS)
    for ours, values in (
        (state.h, theirs.h),
        (state.c, theirs.c),
        (state.memory, theirs.memory),
        (state.usage, theirs.usage),
        (state.weights, theirs.read_weights),
        (state.read, theirs.read),
        (state.label, theirs.label),
    ):
        np.testing.assert_allclose(ours.detach().numpy(), np.array(values), rtol=1e-10, atol=1e-12)
    out = made.solve(asked)
    expected = expected_logits(made, x, q)
    np.testing.assert_allclose(out.logits.detach().numpy(), expected[:, :3], rtol=1e-10)
    np.testing.assert_allclose(float(out.loss.detach()), reference.loss(expected, QUERY_LABELS, 3) / 4, rtol=1e-10)
    np.testing.assert_allclose(made.classify(state, torch.from_numpy(q)).detach().numpy(), expected[:, :3], rtol=1e-10)


def test_the_paper_s_loss_is_the_sum_over_the_whole_sequence() -> None:
    """setting='sequence' in training, in the order given: support and query are one sequence, and every item is asked for."""
    made = method("setting='sequence', order='given'").train()
    x, q = items(7), items(4, seed=1)
    out = made.solve(episode(x, q))
    _, expected = after(made, np.concatenate([x, q]), np.concatenate([LABELS, QUERY_LABELS]))
    np.testing.assert_allclose(out.logits.detach().numpy(), expected[7:, :3], rtol=1e-10)
    total = reference.loss(expected, np.concatenate([LABELS, QUERY_LABELS]), 3)
    np.testing.assert_allclose(float(out.loss.detach()), total, rtol=1e-10)


@pytest.mark.parametrize("setting", ["episode", "sequence"])
def test_one_step_of_training(setting: str) -> None:
    """An SGD step of a linear encoder and of every weight, against numerical differences of the loops."""
    made = method(f"setting={setting!r}, order='given', temperature='learned'", dim=2).train()
    linear = torch.nn.Linear(3, 2, bias=False).double()
    x, q = items(7), items(4, seed=1)
    parameters = [linear.weight, *made.parameters()]
    labels = np.concatenate([LABELS, QUERY_LABELS])

    def expected() -> float:
        weight = linear.weight.detach().numpy()
        if setting == "sequence":
            return reference.loss(after(made, np.concatenate([x, q]) @ weight.T, labels)[1], labels, 3)
        return reference.loss(expected_logits(made, x @ weight.T, q @ weight.T), QUERY_LABELS, 3) / 4

    asked = episode(x, q)
    (sx, sy), (qx, qy), present, _ = asked
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    loss = made.solve(Episode(Batch(linear(sx), sy), Batch(linear(qx), qy), present)).loss
    np.testing.assert_allclose(float(loss.detach()), expected(), rtol=1e-10)
    slopes = []
    rng = np.random.default_rng(0)
    for p in parameters:
        values = p.detach().numpy()  # shares memory with the parameter
        places = list(np.ndindex(values.shape))
        picked = [places[i] for i in rng.permutation(len(places))[:6]]  # the loops are slow: six numbers of each tensor
        for place in picked:
            here, ends = values[place], []
            for nudge in (1e-5, -1e-5):
                values[place] = here + nudge
                ends.append(expected())
            values[place] = here
            slopes.append((p, place, values[place], (ends[0] - ends[1]) / 2e-5))
    assert max(abs(slope) for *_, slope in slopes) > 1e-2
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    loss.backward()
    optimizer.step()
    for p, place, was, slope in slopes:
        np.testing.assert_allclose(p.detach().numpy()[place], was - 0.5 * slope, atol=1e-7)


def test_single_precision_gradients_are_those_of_double() -> None:
    """Slots are empty at first, and a cosine with an empty slot has no slope: it must not come to 1e12 times a rounding error."""
    found = []
    for dtype in (torch.float32, torch.float64):
        made = method("order='given'").to(dtype).train()
        (sx, sy), (qx, qy), present, _ = episode(items(7), items(4, seed=1))
        assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
        loss = made.solve(Episode(Batch(sx.to(dtype), sy), Batch(qx.to(dtype), qy), present)).loss
        found.append([g.double() for g in torch.autograd.grad(loss, list(made.parameters()))])
    for single, double in zip(*found, strict=True):
        assert_close(single, double, rtol=1e-3, atol=1e-5)


def test_a_padding_row_leaves_the_whole_state_as_it_was() -> None:
    """Before, between and after the support items, holding NaN; the last label too stays the one before."""
    made = method().eval()
    x = torch.from_numpy(items(7))
    nan = torch.full((1, DIM), float("nan"), dtype=torch.float64)
    present = torch.ones(3, dtype=torch.bool)
    plain = made.adapt(Batch(x, torch.from_numpy(LABELS)), present)
    y = torch.tensor([-1, *LABELS[:3], -1, -1, *LABELS[3:], -1])
    padded = made.adapt(Batch(torch.cat([nan, x[:3], nan, nan, x[3:], nan]), y), present)
    assert_close(padded, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", ["setting='sequence', order='given'", "order='given'"])
def test_many_tasks_equal_one_at_a_time_in_training(options: str) -> None:
    """All tasks side by side, one by one, and vmap over tasks: loss, logits and gradient."""
    made = method(options).train()
    batch = meta_batch()
    (sx, sy), (qx, qy), present, _ = batch
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    together = made(batch)
    single = [made(toys.one(batch, t)) for t in range(3)]

    def alone(*leaves: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b, c, d, e = leaves
        out = made.solve(Episode(Batch(a, b), Batch(c, d), e))
        return out.loss, out.logits

    vectorised = torch.vmap(alone)(sx, sy, qx, qy, present)
    for loss, logits in (
        (torch.cat([s.loss for s in single]), torch.cat([s.logits for s in single])),
        vectorised,
    ):
        assert_close(together.loss, loss, rtol=1e-11, atol=1e-12)
        assert_close(together.logits, logits, rtol=1e-11, atol=1e-12)
        ours = torch.autograd.grad(together.loss.sum(), list(made.parameters()), retain_graph=True)
        assert_close(ours, torch.autograd.grad(loss.sum(), list(made.parameters())), rtol=1e-9, atol=1e-10)


def test_adapt_and_classify_under_vmap() -> None:
    made = method().eval()
    (sx, sy), (qx, _), present, _ = meta_batch()
    together = torch.vmap(lambda x, y, p, q: made.classify(made.adapt(Batch(x, y), p), q))(sx, sy, present, qx)
    assert_close(together, made(meta_batch()).logits, rtol=1e-11, atol=1e-12)


def test_padding_within_a_training_sequence_changes_nothing() -> None:
    """setting='sequence': rows of NaN in support and query, loss and gradient; and a query of no class counts for nothing."""
    made = method("setting='sequence', order='given'").train()
    (sx, sy), (qx, qy), present, _ = meta_batch()
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    nan, none = torch.full_like(sx[:, :1], float("nan")), torch.full_like(sy[:, :1], -1)
    stranger = torch.full_like(sx[:, :1], 7.0)
    padded = Episode(
        Batch(torch.cat([sx[:, :2], nan, sx[:, 2:]], 1), torch.cat([sy[:, :2], none, sy[:, 2:]], 1)),
        Batch(
            torch.cat([nan, qx[:, :1], stranger, qx[:, 1:]], 1), torch.cat([none, qy[:, :1], none - 1, qy[:, 1:]], 1)
        ),
        present,
    )
    a, b = made(padded), made(meta_batch())
    assert_close(a.loss, b.loss, rtol=1e-12, atol=1e-12)
    assert_close(a.logits[:, [1, 3, 4, 5]], b.logits, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(a.logits).all()
    ours, theirs = (torch.autograd.grad(out.loss.sum(), list(made.parameters())) for out in (a, b))
    assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("setting", ["episode", "sequence"])
def test_items_are_shuffled(setting: str) -> None:
    """What a seed's order gives equals the items handed over in that order; logits come back in the queries' own places.

    At evaluation the order is always the same.
    """
    shuffled, given = (method(f"setting={setting!r}, order={order!r}") for order in ("shuffled", "given"))
    batch = meta_batch()
    (sx, sy), (qx, qy), _, _ = batch
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    same = _mixed(sy)
    assert (same[0] == same[1]).all() and (same[0] != torch.arange(7)).any()
    mixed = batch._replace(support=Batch(sx[:, same[0]], sy[:, same[0]]))
    assert_close(shuffled.eval()(batch), given.eval()(mixed), rtol=0, atol=0)
    alone, plain = (
        shuffled.adapt(Batch(sx[0], sy[0]), batch.present[0]),
        given.adapt(Batch(sx[0, same[0]], sy[0, same[0]]), batch.present[0]),
    )
    assert_close(alone, plain, rtol=0, atol=0)
    torch.manual_seed(3)
    out = shuffled.train()(batch)
    torch.manual_seed(3)
    x, y = (torch.cat([sx, qx], 1), torch.cat([sy, qy], 1)) if setting == "sequence" else (sx, sy)
    order = torch.rand(y.shape).argsort(1)
    assert (order[0] != order[1]).any()
    for t in range(3):
        if setting == "sequence":
            _, logits = after(given, x[t, order[t]].numpy(), y[t, order[t]].numpy())
            expected = np.empty_like(logits)
            expected[order[t].numpy()] = logits
            expected = expected[7:]
        else:
            expected = expected_logits(given, x[t, order[t]].numpy(), qx[t].numpy(), y[t, order[t]].numpy())
        np.testing.assert_allclose(out.logits[t].detach().numpy(), expected[:, :3], rtol=1e-9)


def test_a_persistent_memory_is_what_the_last_task_of_the_last_step_left() -> None:
    """Against the loops; without a gradient into it, untouched by evaluation, and part of what is saved.

    It is not among the contracts' variants: they compare three tasks at once with one after the other in training, and there each
    step would begin with what the one before has left.
    """
    made = method("memory='persistent', order='given'").train()
    batch = meta_batch()
    (sx, sy), (qx, _), _, _ = batch
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    first = made(batch)
    left, _ = after(made, sx[2].numpy(), sy[2].numpy())
    np.testing.assert_allclose(made.kept_memory.numpy(), left.memory, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(made.kept_usage.numpy(), left.usage, rtol=1e-10)
    assert not made.kept_memory.requires_grad
    made.eval()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    second, third = made(batch), made(batch)
    assert_close(second, third, rtol=0, atol=0)
    assert_close(dict(made.state_dict()), before, rtol=0, atol=0)
    assert float((second.logits - first.logits).detach().abs().max()) > 1e-4
    begin = reference.start(4, 9, 3, 2, 4)
    begin.memory, begin.usage = left.memory, left.usage
    state, _ = after(made, sx[0].numpy(), sy[0].numpy(), begin)
    expected = np.concatenate([after(made, q[None], np.array([0]), state)[1] for q in qx[0].numpy()])
    np.testing.assert_allclose(second.logits[0].detach().numpy(), expected[:, :3], rtol=1e-10)
    made.train()
    made(
        batch
    ).loss.mean().backward()  # the memory that a step starts from may be replaced before its gradient is asked for
    copied = method("memory='persistent', order='given'")
    copied.load_state_dict(made.state_dict())
    assert_close(copied.eval()(batch), made.eval()(batch), rtol=0, atol=0)


def test_all_micro_batches_of_a_step_start_from_the_same_memory() -> None:
    """Task by task as all at once; what a step leaves is there in the next one, and in evaluation at once."""
    options, batch = "memory='persistent', order='given'", meta_batch()
    made, other, copied = method(options).train(), method(options).train(), method(options).eval()
    seen = []
    for step in range(2):
        made.begin_step(step)
        other.begin_step(step)
        seen.append(torch.cat([made(toys.one(batch, t)).logits for t in range(3)]).detach())
        assert_close(seen[-1], other(batch).logits.detach(), rtol=1e-10, atol=1e-12)
    assert float((seen[1] - seen[0]).abs().max()) > 1e-4
    copied.load_state_dict(made.state_dict())
    assert_close(made.eval()(batch), copied(batch), rtol=0, atol=0)


def test_the_order_at_evaluation_does_not_see_padding() -> None:
    y = torch.tensor([[0, 0, 1, 1, 2, 2]])
    padded = torch.tensor([[-1, 0, 0, -1, 1, 1, 2, 2, -1]])
    places = torch.tensor([1, 2, 4, 5, 6, 7])
    assert torch.equal(_mixed(padded)[0, :6], places[_mixed(y)[0]])


def test_embeddings_are_standardised_each_by_itself() -> None:
    """The same answers as without, on numbers that were standardised by hand; and so whatever their scale and shift."""
    made, plain = method("standardise=True"), method()
    x, q = items(7), items(4, seed=1)
    by_hand = [(v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) for v in (x, q)]
    by_hand = [v * 8 / np.sqrt(v.shape[1]) for v in by_hand]
    expected = plain.eval().solve(episode(*by_hand))
    assert_close(made.eval().solve(episode(x, q)), expected, rtol=1e-10, atol=1e-10)
    assert_close(made.solve(episode(50 * x + 7, 50 * q + 7)).logits, expected.logits, rtol=1e-2, atol=1e-3)


def test_a_class_without_support_is_refused() -> None:
    batch = meta_batch()
    with pytest.raises(MultifslError, match="support"):
        method()(batch._replace(support=Batch(batch.support.x, batch.support.y.clamp(max=1))))


@pytest.mark.parametrize(
    "options", ["setting='sequence'", "memory='persistent'", "setting='sequence', memory='persistent'"]
)
def test_a_training_step_elsewhere(options: str) -> None:
    """The meta device stands for an accelerator: a tensor made on the CPU, or a look at a value, raises."""
    made = method(options).train().to("meta")
    (sx, sy), (qx, qy), present, padded = meta_batch()
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    there = Episode(
        Batch(sx.to("meta"), sy.to("meta")), Batch(qx.to("meta"), qy.to("meta")), present.to("meta"), padded
    )
    made(there).loss.mean().backward()
    made(there).loss.mean().backward()
    assert made.accuracy_by_instance(there, 3).device.type == "meta"


@pytest.mark.parametrize("order", ["given", "shuffled"])
def test_accuracy_by_instance(order: str) -> None:
    """Counted by hand over the loops' answers; a padding row is no instance, and nothing is seen a sixth time."""
    made = method(f"order={order!r}").eval()
    batch = meta_batch(4)
    (sx, sy), (qx, qy), present, _ = batch
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    sy = sy.clone()
    sy[0, 1] = -1
    torch.manual_seed(5)
    found = made.accuracy_by_instance(Episode(Batch(sx, sy), Batch(qx, qy), present), 6)
    x, y = torch.cat([sx, qx], 1), torch.cat([sy, qy], 1)
    torch.manual_seed(5)
    permutation = torch.rand(y.shape).argsort(1) if order == "shuffled" else torch.arange(11).repeat(4, 1)
    answers, labels = [], []
    for t in range(4):
        kept = [i for i in permutation[t].tolist() if y[t, i] >= 0]
        _, logits = after(made, x[t, kept].numpy(), y[t, kept].numpy())
        answers.append(logits[:, :3].argmax(1))
        labels.append(y[t, kept].numpy())
    expected = reference.accuracy_by_instance(answers, labels, 6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert math.isnan(expected[5])


def test_whole_sequences_teach_what_belongs_to_which_label() -> None:
    """New classes in every sequence: by the third time a class is seen it is known, the first time it cannot be.

    Oracle: at first sight no more can be right than by leaving out the classes already named, (1/3 + 1/2 + 1) / 3 = 0.61 for three;
    who cannot bind labels to items, but sees only that some label must come, stays below 0.5 from the second time on.
    """
    torch.manual_seed(0)
    made: Mann = build(
        "methods",
        "mann(setting='sequence', max_way=3, slots=16, slot_width=20, controller=64, temperature='learned', standardise=False)",
        encoder=Features(4),
    ).train()

    def drawn(tasks: int) -> Episode:
        centres = torch.randn(tasks, 3, 4) * 2
        y = torch.arange(3).repeat(2).repeat(tasks, 1)
        sx, qx = (centres.gather(1, y[:, :, None].expand(-1, -1, 4)) + 0.1 * torch.randn(tasks, 6, 4) for _ in range(2))
        return Episode(Batch(sx, y), Batch(qx, y), torch.ones(tasks, 3, dtype=torch.bool), False)

    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(250):
        optimizer.zero_grad()
        made(drawn(16)).loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        by_instance = made.eval().accuracy_by_instance(drawn(500), 4)
    assert float(by_instance[0]) < 0.66
    assert float(by_instance[2]) > 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("setting='stream'", "no setting 'stream'; known: 'episode', 'sequence'"),
        ("memory='none'", "no memory 'none'; known: 'episode', 'persistent'"),
        ("order='random'", "no order 'random'; known: 'shuffled', 'given'"),
        ("slots=0", "slots must be a whole number from 1, not 0"),
        ("slot_width=2.5", "slot_width must be a whole number from 1, not 2.5"),
        ("controller=-1", "controller must be a whole number from 1, not -1"),
        ("heads=0", "heads must be a whole number from 1, not 0"),
        ("max_way=0", "max_way must be a whole number from 1, not 0"),
        ("heads=4, slots=3", "4 heads needs a slot to write to, but there are 3"),
        ("gamma=1", "gamma must be a number from 0 and below 1, not 1"),
        ("gamma='high'", "gamma must be a number from 0 and below 1, not 'high'"),
        ("temperature=0", "temperature must be a number above 0 or 'learned', not 0"),
    ],
)
def test_options_that_cannot_be(options: str, message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        build("methods", f"mann({options})", encoder=Features(DIM))


def test_more_classes_than_outputs() -> None:
    made = method()
    with pytest.raises(MultifslError, match="at most 4 classes apart, not 5: train with --way 5"):
        made.adapt(Batch(torch.from_numpy(items(7)), torch.from_numpy(LABELS)), torch.ones(5, dtype=torch.bool))
    assert build("methods", "mann", encoder=Features(DIM)).max_way == 5
    assert build("methods", "mann", encoder=Features(DIM), way=7).max_way == 7
