"""Temperatures against plain loops and scipy's minimiser, sets against simulated coverage."""

import json
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from multifsl import metrics
from multifsl.bank import Bank
from multifsl.calibration import (
    ALPHAS,
    DEFAULT,
    PAIRS,
    SLOPE_SPREAD,
    STRAY,
    USUAL,
    Answered,
    Calibration,
    against,
    calibrate,
    fit_calibration,
    fit_temperature,
    held_out,
    prediction_sets,
    refined,
    softened,
    unit,
)
from multifsl.encoder import Features
from multifsl.episode import Batch
from multifsl.errors import BadFile, MultifslError
from multifsl.method import EmbeddingMethod
from multifsl.methods.prototypical import Prototypical
from multifsl.methods.ridge import Ridge
from multifsl.task import Items


def drawn(n: int, way: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, way] that are `sharpness` times too sharp: labels are drawn from the softmax of the logits over it."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, way))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return sharpness * logits, y


def clusters(way: int, shot: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = 2 * rng.normal(size=(way, 1, 8)) + rng.normal(size=(way, shot, 8))
    return torch.tensor(x.reshape(-1, 8)), torch.arange(way).repeat_interleave(shot)


def by_loop(logits: np.ndarray, y: np.ndarray, t: float) -> float:
    """Sum of -log p(y), one answer after the other."""
    return sum(math.log(sum(math.exp(v / t) for v in row)) - row[k] / t for row, k in zip(logits, y, strict=True))


def calibration_error(p: np.ndarray, y: np.ndarray) -> float:
    return metrics.expected_calibration_error(metrics.calibration(p.max(1), p.argmax(1) == y))


# ---- temperature ----


def test_temperature_is_the_minimum_that_scipy_finds_of_a_plain_loop() -> None:
    cells = [Answered(w, k, *drawn(60, w, s)) for w, k, s in ((3, 1, 4.0), (3, 4, 2.0), (6, 1, 5.0))]

    def cost(theta: np.ndarray) -> float:
        away = sum(((a - b) / SLOPE_SPREAD) ** 2 for a, b in zip(theta[1:], DEFAULT.temperature[1:], strict=True)) / 2
        each = (
            by_loop(c.logits, c.y, math.exp(theta[0] + theta[1] * math.log(c.way) + theta[2] * math.log(c.shot)))
            for c in cells
        )
        return away + sum(each)

    expected = minimize(cost, np.zeros(3), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).x
    np.testing.assert_allclose(fit_temperature(cells), expected, atol=2e-3)


def test_calibration_error_falls_to_that_of_the_true_temperature() -> None:
    logits, y = drawn(20_000, 5, sharpness=6.0)
    found = fit_calibration([Answered(5, 1, logits, y)])
    fresh, truth = drawn(20_000, 5, sharpness=6.0, seed=1)
    assert found.at(5, 1) == pytest.approx(6.0, rel=0.05)
    assert calibration_error(softened(fresh, 1.0), truth) > 0.1
    assert calibration_error(softened(fresh, found.at(5, 1)), truth) < 0.015


def test_way_and_shot_have_slopes_of_their_own() -> None:
    cells = [Answered(w, k, *drawn(4000, w, 3.0 * w**0.5 / k**0.25)) for w in (5, 20) for k in (1, 5)]
    found = fit_calibration(cells)
    for way, shot in ((5, 1), (10, 2), (20, 5)):
        assert found.at(way, shot) == pytest.approx(3.0 * way**0.5 / shot**0.25, rel=0.05)


def test_one_way_and_shot_leave_the_slopes_at_the_default() -> None:
    found = fit_temperature([Answered(5, 5, *drawn(500, 5, 3.0))])
    unmoved = fit_temperature([Answered(1, 1, *(np.zeros((1, 1)), np.zeros(1, dtype=int)))])
    assert unmoved[1:] == pytest.approx(DEFAULT.temperature[1:])
    # The greatest likelihood with the slopes that stray least: those are along (log 5, log 5).
    assert found[1] - DEFAULT.temperature[1] == pytest.approx(found[2] - DEFAULT.temperature[2], abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.integers(1, 8))
def test_a_temperature_changes_no_answer(seed: int, t: float, way: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(7, way))
    p = softened(logits, t)
    np.testing.assert_array_equal(p.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(p, metrics.probabilities(logits / t), rtol=1e-12)


def test_an_absent_class_stays_without_probability() -> None:
    p = softened(np.array([[0.0, -np.inf, 1.0]]), 0.5)
    np.testing.assert_allclose(p, [[1 / (1 + math.e**2), 0, 1 / (1 + math.e**-2)]])


def test_refined_is_the_minimum_that_scipy_finds_of_a_plain_loop() -> None:
    logits, y = drawn(40, 4, sharpness=3.0)

    def cost(log_factor: np.ndarray) -> float:
        return by_loop(logits, y, 1.5 * math.exp(log_factor[0])) + (log_factor[0] / STRAY) ** 2 / 2

    expected = minimize(cost, np.zeros(1), method="Nelder-Mead").x
    assert math.log(refined(1.5, logits, y)) == pytest.approx(expected[0], abs=1e-3)


def test_more_examples_pull_the_temperature_further() -> None:
    logits, y = drawn(2000, 4, sharpness=2.0)
    few, many = refined(1.0, logits[:10], y[:10]), refined(1.0, logits, y)
    assert 1 < few < many
    assert many == pytest.approx(2.0, rel=0.1)


# ---- from the user's own examples ----


def test_unit_of_cosines_by_a_plain_loop_over_pairs() -> None:
    x, y = clusters(way=4, shot=1)
    z = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    between = [z[i] @ z[j] for i in range(4) for j in range(i)]
    apart = 1 - sum(between) / 6
    variance = (sum((b - 1 + apart) ** 2 for b in between) + PAIRS * (USUAL * apart) ** 2) / (6 + PAIRS)
    method = Prototypical(Features(8), distance="cosine", temperature=0.25)
    assert unit(method, x, y, 4) == pytest.approx(math.sqrt(apart * math.sqrt(variance)) / 0.25)
    assert unit(method, torch.ones(3, 8), torch.arange(3), 3) == unit(method, x[:1], y[:1], 1) == 1.0


def test_probabilities_do_not_depend_on_the_unit_of_logits() -> None:
    """T is taken in a unit of the logits, so that a method's own temperature falls out."""
    x, y = clusters(way=4, shot=3)
    queries = clusters(way=4, shot=5, seed=1)[0]
    found = []
    for own in (0.01, 1.0):
        method = Prototypical(Features(8), distance="cosine", temperature=own)
        logits = method.classify(method.adapt(Batch(x, y), torch.ones(4, dtype=torch.bool)), queries).numpy()
        t = DEFAULT.at(4, 3) * unit(method, x, y, 4)
        t *= refined(DEFAULT.at(4, 2) * unit(method, x, y, 4), *held_out(method, x, y, 4))
        found.append(softened(logits, t))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


@pytest.mark.parametrize("build", [Prototypical, Ridge])
def test_held_out_answers_are_those_of_a_classifier_without_them(build: Callable[..., EmbeddingMethod]) -> None:
    x, y = clusters(way=3, shot=3)
    x, y = x[:8].float(), y[:8]  # the last class has two
    order = torch.tensor([5, 0, 7, 2, 4, 6, 1, 3])
    x, y = x[order], y[order]
    method: EmbeddingMethod = build(Features(8))
    logits, labels = held_out(method, x, y, 3)
    expected, truth = [], []
    for nth in range(3):
        mine = [rows[nth] for k in range(3) if len(rows := [i for i in range(8) if y[i] == k]) > nth]
        rest = [i for i in range(8) if i not in mine]
        state = method.adapt(Batch(x[rest], y[rest]), torch.ones(3, dtype=torch.bool))
        for i in sorted(mine):
            expected.append(method.classify(state, x[i : i + 1])[0].detach().numpy())
            truth.append(int(y[i]))
    np.testing.assert_allclose(logits, np.stack(expected), rtol=1e-4, atol=1e-4)
    assert labels.tolist() == truth


def test_a_class_of_one_example_is_never_held_out() -> None:
    x, y = clusters(way=3, shot=1)
    method = Prototypical(Features(8))
    assert held_out(method, x, y, 3)[0].shape == (0, 3)
    assert set(held_out(method, torch.cat([x, x[:1] + 1]), torch.tensor([0, 1, 2, 0]), 3)[1].tolist()) == {0}


@pytest.mark.parametrize("build", [Prototypical, Ridge])
def test_copies_of_examples_are_held_out_once_and_not_judged_by_each_other(
    build: Callable[..., EmbeddingMethod],
) -> None:
    x, y = clusters(way=3, shot=3)
    x = x.float()
    method: EmbeddingMethod = build(Features(8))
    once = held_out(method, x, y, 3)
    twice = held_out(method, torch.cat([x, x[:2] * (1 + 1e-6), x]), torch.cat([y, y[:2], y]), 3)
    np.testing.assert_array_equal(twice[0], once[0])
    np.testing.assert_array_equal(twice[1], once[1])
    assert held_out(method, x[::3].repeat(2, 1), y[::3].repeat(2), 3)[0].shape == (0, 3)


def test_what_classes_are_called_changes_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multifsl.calibration.LOOKS", 60)  # 5 of 12 classes are looked at
    x, y = clusters(way=12, shot=2)
    method = Prototypical(Features(8))
    new = torch.from_numpy(np.random.default_rng(0).permutation(12))
    assert unit(method, x, new[y], 12) == pytest.approx(unit(method, x, y, 12), rel=1e-5)


def test_calibrate_learns_what_the_data_and_the_method_have_room_for() -> None:
    x, y = clusters(way=8, shot=12)
    bank = Bank(x.float(), Items(list(range(96)), y.numpy(), list("abcdefgh"), None))
    method = Prototypical(Features(8))
    found = calibrate(method, bank, ways=(4, 20), shots=(1, 4), query=5, episodes=20)
    assert found is not None and len(found.sets) == len(ALPHAS)
    assert found == calibrate(method, bank, ways=(4,), shots=(1, 4), query=5, episodes=20)  # there are no 20 classes
    assert calibrate(method, bank, ways=(20,)) is None


# ---- sets ----


def test_sets_hold_the_truth_as_often_as_asked() -> None:
    """Split conformal prediction is exact on average over calibration sets, however sharp the probabilities."""
    rng = np.random.default_rng(0)
    for alpha, sharpness in ((0.1, 1.0), (0.1, 4.0), (0.3, 0.5)):
        logits, y = drawn(60_000, 5, sharpness)
        p = softened(logits, 1.0)
        covered = []
        for _ in range(400):
            chosen = rng.choice(len(y), 125, replace=False)
            first, rest = chosen[:25], chosen[25:]
            sets = prediction_sets(p[rest], against(p[first])[np.arange(25), y[first]], alpha)
            covered.append(sets[np.arange(100), y[rest]].mean())
        assert abs(np.mean(covered) - (1 - alpha)) < 4 * np.std(covered) / 20


def test_sets_grow_as_alpha_falls() -> None:
    logits, y = drawn(50, 5, 1.0)
    p = softened(logits, 1.0)
    for scores in (against(p)[np.arange(50), y], np.zeros(0)):
        each = [prediction_sets(p, scores, alpha) for alpha in (0.5, 0.2, 0.1, 0.05)]
        for small, large in pairwise(each):
            assert not (small & ~large).any()


def test_without_scores_a_set_is_the_fewest_classes_that_add_up() -> None:
    p = softened(drawn(30, 6, 1.0)[0], 1.0)
    sets = prediction_sets(p, np.zeros(0), alpha=0.1)
    for row, members in zip(p, sets, strict=True):
        ranked = sorted(row, reverse=True)
        count = next(n for n in range(1, 7) if sum(ranked[:n]) >= 0.9)
        assert sorted(row[members], reverse=True) == ranked[:count]


def test_learned_thresholds_cover_other_episodes() -> None:
    cells = [Answered(w, k, *drawn(8000, w, 2.0)) for w, k in ((4, 1), (4, 5), (8, 1), (8, 5))]
    found = fit_calibration(cells)
    for alpha in (0.05, 0.1, 0.3):
        logits, y = drawn(8000, 4, 2.0, seed=1)
        p = softened(logits, found.at(4, 1))
        sets = prediction_sets(p, np.zeros(0), alpha, learned=found.threshold(4, 1, alpha))
        assert sets[np.arange(8000), y].mean() == pytest.approx(1 - alpha, abs=0.02)
    assert found.threshold(4, 1, 0.001) == found.threshold(4, 1, min(ALPHAS))
    assert DEFAULT.threshold(5, 1, 0.1) is None


def test_held_out_scores_come_before_learned_thresholds_where_they_are_enough() -> None:
    p, scores = np.full((1, 2), 0.5), np.zeros(9)
    assert prediction_sets(p, scores, 0.1, learned=-1.0).all()
    assert not prediction_sets(p, scores[:8], 0.1, learned=-1.0).any()


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, math.nan, "0.1"])
def test_an_alpha_that_is_no_share_is_refused(alpha: float) -> None:
    with pytest.raises(MultifslError, match="above 0 and below 1"):
        prediction_sets(np.full((1, 2), 0.5), np.zeros(9), alpha)
    with pytest.raises(MultifslError, match="above 0 and below 1"):
        DEFAULT.threshold(5, 1, alpha)


# ---- files and errors ----


@pytest.mark.parametrize("sets", [(), ((1.0, 2.0, -3.0),) * len(ALPHAS)])
def test_json_round_trip(sets: tuple[tuple[float, float, float], ...]) -> None:
    one = Calibration((0.5, -0.25, 0.125), sets)
    assert Calibration.from_json(json.loads(json.dumps(one.to_json())), "run.json") == one


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {"temperature": [0, 0, 0]},
        {"temperature": [0, 0], "sets": []},
        {"temperature": [0, 0, math.nan], "sets": []},
        {"temperature": [0, 0, 1e9], "sets": []},
        {"temperature": ["a", 0, 0], "sets": []},
        {"temperature": [0, 0, 0], "sets": [[0, 0, 0]]},
        {"temperature": [0, 0, 0], "sets": [[0, 0, 0], [0]]},
        {"temperature": 1, "sets": {}},
    ],
)
def test_a_damaged_calibration_is_refused(content: object) -> None:
    with pytest.raises(BadFile, match=r"run\.json"):
        Calibration.from_json(content, "run.json")


def test_a_temperature_of_nothing_is_refused() -> None:
    with pytest.raises(MultifslError, match="there are none"):
        fit_temperature([])
    with pytest.raises(MultifslError, match="not finite"):
        fit_temperature([Answered(2, 1, np.array([[math.nan, 0.0]]), np.array([1]))])
