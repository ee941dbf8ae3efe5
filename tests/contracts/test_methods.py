"""What every method promises, over every file in `multifsl/methods/` and every modality."""

import copy
import importlib
import importlib.util
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from multifsl import registry
from multifsl.adaptation import AdaptationMethod
from multifsl.base_training import BaseClassifier, base_batch
from multifsl.episode import Batch, Episode, concat, map_inputs
from multifsl.method import EmbeddingMethod, Method, encode
from tests.contracts import toys


def page(name: str, constant: str, default: Any) -> Any:
    """A constant of `tests/reference/NAME.py`, where there is such a page and such a constant on it."""
    if importlib.util.find_spec(f"tests.reference.{name}") is None:
        return default
    return getattr(importlib.import_module(f"tests.reference.{name}"), constant, default)


# VARIANTS: the specs to run; without, the name alone
SPECS = [spec for name in registry.names("methods") for spec in page(name, "VARIANTS", [name])]
every = pytest.mark.parametrize("spec", SPECS)
everywhere = pytest.mark.parametrize("modality", toys.MODALITIES)


def build(spec: str, modality: str, dtype: torch.dtype = torch.float64, way: int = 3) -> Method:
    torch.manual_seed(1)
    method: Method = registry.build("methods", spec, encoder=toys.encoder(modality), way=way)
    return method.to(dtype)


def meta_trains(method: Method) -> bool:
    """Whether episodes train the method; else its encoder is trained as a classifier, and the method itself needs no gradient."""
    return method.learns_from == "episodes"


def grads(method: Method, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in method.parameters() if p.requires_grad]
    return list(torch.autograd.grad(loss, parameters)) if parameters and meta_trains(method) else []


@every
@everywhere
def test_shapes_and_gradients(spec: str, modality: str) -> None:
    method = build(spec, modality).train()
    out = method(toys.episodes(method.encoder, modality))
    assert out.loss.shape == (2,) and out.logits.shape == (2, 6, 3)
    parameters = [p for p in method.parameters() if p.requires_grad]
    if parameters and meta_trains(method):
        found = torch.autograd.grad(out.loss.mean(), parameters)  # raises for a parameter that takes no part
        assert all(torch.isfinite(g).all() for g in found)
        assert any(float(g.abs().max()) > 0 for g in found)


@every
@everywhere
def test_many_tasks_equal_one_at_a_time(spec: str, modality: str) -> None:
    """Vectorised == loop, loss and gradient: nothing of one task, batch statistics least of all, enters another."""
    method = build(spec, modality).train()
    episodes = toys.episodes(method.encoder, modality, tasks=3)
    alone = copy.deepcopy(method)
    together = method(episodes)
    single = [alone(toys.one(episodes, t)) for t in range(3)]
    assert_close(together.loss, torch.cat([s.loss for s in single]), rtol=1e-9, atol=1e-10)
    assert_close(together.logits, torch.cat([s.logits for s in single]), rtol=1e-9, atol=1e-9)
    loop = torch.cat([s.loss for s in single]).sum()
    for a, b in zip(grads(method, together.loss.sum()), grads(alone, loop), strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-9)


@every
@everywhere
def test_queries_do_not_influence_each_other(spec: str, modality: str) -> None:
    method = build(spec, modality).eval()
    episodes = toys.episodes(method.encoder, modality)
    (support, query, present, padded) = episodes
    first = Episode(support, Batch(map_inputs(lambda leaf: leaf[:, :1], query.x), query.y[:, :1]), present, padded)
    if not method.transductive:
        assert_close(method(first).logits, method(episodes).logits[:, :1], rtol=1e-8, atol=1e-8)


@every
@everywhere
def test_order_of_the_support_set_and_names_of_the_classes(spec: str, modality: str) -> None:
    method = build(spec, modality).eval()
    (sx, sy), (qx, qy), present, padded = toys.episodes(method.encoder, modality)
    before = method(Episode(Batch(sx, sy), Batch(qx, qy), present, padded))
    order = torch.randperm(sy.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = method(
        Episode(Batch(map_inputs(lambda leaf: leaf[:, order], sx), sy[:, order]), Batch(qx, qy), present, padded)
    )
    if not method.sequential:
        assert_close(shuffled.logits, before.logits, rtol=1e-8, atol=1e-8)
    if method.max_way is not None:
        return
    new = torch.tensor([2, 0, 1])  # class k is now called new[k]
    renamed = method(Episode(Batch(sx, new[sy]), Batch(qx, new[qy]), present, padded))
    assert_close(renamed.logits[:, :, new], before.logits, rtol=1e-8, atol=1e-8)
    assert_close(renamed.loss, before.loss, rtol=1e-8, atol=1e-8)


@every
def test_a_class_is_scored_by_itself(spec: str) -> None:
    """Where the method says so (class_by_class), other support items of class 2 leave the logits of class 0 as they were."""
    method = build(spec, "features").eval()
    if not method.class_by_class:
        pytest.skip(f"{spec} compares the classes")
    (sx, sy), query, present, padded = toys.episodes(method.encoder, "features")
    assert isinstance(sx, torch.Tensor)
    other = sx.where((sy != 2).unsqueeze(-1), sx.flip(-1) + 1.0)
    first, second = (method(Episode(Batch(x, sy), query, present, padded)).logits[..., 0] for x in (sx, other))
    assert_close(first, second, rtol=1e-9, atol=1e-9)


@every
@everywhere
@pytest.mark.parametrize("training", [False, True])
def test_padding_rows_are_inert(spec: str, modality: str, training: bool) -> None:
    """Rows with y = -1, of whatever content, change neither the loss nor the gradient nor the other rows' logits."""
    method = build(spec, modality).train(training)
    twin = copy.deepcopy(method)
    (sx, sy), (qx, qy), present, _ = toys.episodes(method.encoder, modality)
    junk = map_inputs(lambda leaf: leaf[:, -2:], sx)
    nothing = torch.full((2, 2), -1)
    padded = Episode(
        Batch(concat([junk, sx], 1), torch.cat([nothing, sy], 1)),
        Batch(concat([qx, junk], 1), torch.cat([qy, nothing], 1)),
        present,
    )
    a, b = method(padded), twin(Episode(Batch(sx, sy), Batch(qx, qy), present, False))
    assert_close(a.loss, b.loss, rtol=1e-8, atol=1e-9)
    assert_close(a.logits[:, : qy.shape[1]], b.logits, rtol=1e-8, atol=1e-8)
    for g, h in zip(grads(method, a.loss.sum()), grads(twin, b.loss.sum()), strict=True):
        assert_close(g, h, rtol=1e-7, atol=1e-9)
    for name, buffer in method.named_buffers():  # running statistics too
        assert_close(buffer, dict(twin.named_buffers())[name], rtol=1e-8, atol=1e-9)


@every
def test_padding_may_hold_anything(spec: str) -> None:
    method = build(spec, "features").train()
    twin = copy.deepcopy(method)
    (sx, sy), (qx, qy), present, _ = toys.episodes(method.encoder, "features")
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    rubbish, nothing = torch.full_like(sx[:, :1], float("nan")), torch.full((2, 1), -1)
    support = Batch(torch.cat([sx, rubbish], 1), torch.cat([sy, nothing], 1))
    query = Batch(torch.cat([qx, rubbish], 1), torch.cat([qy, nothing], 1))
    padded, plain = method(Episode(support, query, present)), twin(Episode(Batch(sx, sy), Batch(qx, qy), present))
    assert_close(padded.loss, plain.loss)
    for a, b in zip(grads(method, padded.loss.sum()), grads(twin, plain.loss.sum()), strict=True):
        assert_close(a, b)


@every
def test_embeddings_that_are_not_numbers_make_a_loss_that_is_none(spec: str) -> None:
    """So that training, which looks at the loss alone, notices them."""
    method = build(spec, "features").train()
    (sx, sy), (qx, qy), present, _ = toys.episodes(method.encoder, "features")
    assert isinstance(sx, torch.Tensor) and isinstance(qx, torch.Tensor)
    sx[1], qx[1] = float("nan"), float("nan")
    loss = method(Episode(Batch(sx, sy), Batch(qx, qy), present, False)).loss
    assert torch.isfinite(loss[0])
    assert not meta_trains(method) or not torch.isfinite(loss[1])


@every
def test_absent_classes_get_no_probability(spec: str) -> None:
    method = build(spec, "features", way=5).eval()
    episodes = toys.episodes(method.encoder, "features")
    (sx, sy), (qx, qy), present, _ = episodes
    wide = torch.cat([present, torch.zeros(2, 2, dtype=torch.bool)], 1)
    out = method(Episode(Batch(sx, sy), Batch(qx, qy), wide))
    assert (out.logits[:, :, 3:] == float("-inf")).all()
    assert_close(out.logits[:, :, :3], method(episodes).logits)
    assert_close(out.loss, method(episodes).loss)
    assert all(torch.isfinite(g).all() for g in grads(method, out.loss.sum()))


@every
def test_unknown_queries_do_not_count(spec: str) -> None:
    method = build(spec, "features").eval()
    (support, (qx, qy), present, _) = toys.episodes(method.encoder, "features")
    assert isinstance(qx, torch.Tensor)
    out = method(
        Episode(support, Batch(torch.cat([qx, qx[:, :1] * 9], 1), torch.cat([qy, torch.full((2, 1), -2)], 1)), present)
    )
    assert torch.isfinite(out.logits).all()
    if not method.transductive:
        assert_close(out.loss, method(Episode(support, Batch(qx, qy), present)).loss)


def learners() -> list[Any]:
    """All specs in all modalities. Left to the slow tests: variants of a method where it is not on features, and inner loops
    through a speech encoder."""
    found, met = [], set()
    for spec in SPECS:
        name = registry.parse(spec)[0].name
        adapts = issubclass(registry.find("methods", name), AdaptationMethod)
        for modality in toys.MODALITIES:
            slow = (adapts and modality == "speech") or ((name, modality) in met and modality != "features")
            met.add((name, modality))
            found.append(pytest.param(spec, modality, marks=pytest.mark.slow if slow else ()))
    return found


@pytest.mark.parametrize(("spec", "modality"), learners())
def test_learns_a_separable_toy(spec: str, modality: str) -> None:
    """0.95 from a chance of 0.2, on classes that a place, a pitch or a letter tells apart, within 60 steps of Adam.

    A method that needs more says how many, as STEPS on its reference page.
    """
    method = build(spec, modality, torch.float32, way=5).train()
    model = method if meta_trains(method) else BaseClassifier(method, 5, method.base_head)
    parameters = [p for p in model.parameters() if p.requires_grad] if any(True for _ in method.parameters()) else []
    optimizer = torch.optim.Adam(parameters, lr=0.01) if parameters else None
    for step in range(page(registry.parse(spec)[0].name, "STEPS", 60) if optimizer else 0):
        episodes = toys.episodes(method.encoder, modality, way=5, dtype=torch.float32, seed=10 * step)
        loss = model(episodes if model is method else as_base_batch(episodes)).loss.mean()
        assert optimizer is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if method.wants_base:
        seen = toys.episodes(method.encoder.eval(), modality, tasks=4, way=5, dtype=torch.float32, seed=20_000)
        method.learn_base(encode(method.encoder, seen).support.x.flatten(0, 1).detach())  # type: ignore[union-attr]
    test = toys.episodes(method.encoder.eval(), modality, tasks=10, way=5, dtype=torch.float32, seed=10_000)
    with torch.no_grad():
        right = (method.eval()(test).logits.argmax(-1) == test.query.y).double().mean()
    assert right >= 0.95


def as_base_batch(episodes: Episode) -> Episode:
    (sx, sy), (qx, qy), present, _ = episodes
    return base_batch(concat([sx, qx], 1), torch.cat([sy, qy], 1), present.shape[1])


@every
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_serves_without_gradients_and_in_bfloat16(spec: str, mode: type) -> None:
    method = build(spec, "features", torch.float32).eval()
    episodes = toys.episodes(method.encoder, "features", dtype=torch.float32)
    with mode():
        exact = method(episodes).logits
        half = (
            map_inputs(lambda leaf: leaf.bfloat16(), episodes.support.x),
            map_inputs(lambda leaf: leaf.bfloat16(), episodes.query.x),
        )
        rounded = method(
            Episode(Batch(half[0], episodes.support.y), Batch(half[1], episodes.query.y), episodes.present)
        ).logits
    assert rounded.dtype == torch.float32
    assert_close(rounded, exact, rtol=0.05, atol=0.3)


@every
@everywhere
def test_a_training_step_makes_no_tensor_elsewhere_and_waits_for_nothing(spec: str, modality: str) -> None:
    """On the meta device a tensor made on the CPU, or a look at a value, raises; it stands for an accelerator."""
    method = build(spec, modality, torch.float32).train()
    (sx, sy), (qx, qy), present, padded = toys.episodes(method.encoder, modality, dtype=torch.float32)
    method.to("meta")
    meta = Episode(
        Batch(map_inputs(lambda leaf: leaf.to("meta"), sx), sy.to("meta")),
        Batch(map_inputs(lambda leaf: leaf.to("meta"), qx), qy.to("meta")),
        present.to("meta"),
        padded,
    )
    loss = method(meta).loss.mean()
    assert loss.device.type == "meta"
    if loss.requires_grad:
        loss.backward()


@every
def test_state_dict_round_trip(spec: str) -> None:
    method, other = build(spec, "image"), build(spec, "image")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(method.state_dict())
    episodes = toys.episodes(method.encoder, "image")
    assert_close(method.eval()(episodes).logits, other.eval()(episodes).logits, rtol=0, atol=0)


@every
def test_update_and_remove_equal_a_fresh_adapt(spec: str) -> None:
    method = build(spec, "features").eval()
    if not isinstance(method, EmbeddingMethod) or type(method).update is EmbeddingMethod.update:
        pytest.skip(f"the state of {spec} does not grow")
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 6, generator=rng, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 3, 3, 1, 3])
    queries = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    present = torch.ones(4, dtype=torch.bool)
    grown = method.update(method.adapt(Batch(x[:8], y[:8]), present[:3]), Batch(x[8:], y[8:]), present)
    fresh = method.adapt(Batch(x, y), present)
    assert_close(method.classify(grown, queries), method.classify(fresh, queries), rtol=1e-12, atol=1e-12)
    kept = y != 1
    without = method.adapt(Batch(x[kept], torch.tensor([0, 0, 1, 2])[y[kept]]), present[:3])
    assert_close(
        method.classify(method.remove(grown, 1), queries), method.classify(without, queries), rtol=1e-12, atol=1e-12
    )
