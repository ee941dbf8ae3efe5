"""Metrics against scikit-learn's, plain loops over thresholds and pairs, and cases drawn by hand."""

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from multifsl import metrics
from multifsl.errors import MultifslError
from tests.test_imports import modules_after

few = settings(max_examples=50, deadline=None)
side = st.lists(st.integers(-4, 4), min_size=1, max_size=9)  # few values: many ties


def array(*x: float) -> np.ndarray:
    return np.array(x, dtype=np.float64)


def answers(count: int = 300, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, classes))
    y = (logits + rng.normal(size=logits.shape)).argmax(1)
    return metrics.probabilities(2 * logits), y


def trials(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores in steps of a tenth, so that many are equal, within a side and across."""
    rng = np.random.default_rng(1)
    return rng.normal(1.0, 1.0, count).round(1), rng.normal(0.0, 1.0, count // 3).round(1)


def stacked(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's form: which are positive, and all scores."""
    return np.repeat([1, 0], [len(positive), len(negative)]), np.concatenate([positive, negative])


def test_torch_and_scikit_learn_are_not_needed() -> None:
    assert not modules_after("import multifsl.metrics") & {"torch", "sklearn", "scipy"}


# ---- one answer at a time ----


def test_probabilities() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 5, 4))
    p = metrics.probabilities(logits.astype(np.float32))
    assert p.dtype == np.float64
    np.testing.assert_allclose(p, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(metrics.probabilities(logits + 1e4), p, rtol=1e-6)  # a shift changes nothing
    np.testing.assert_array_equal(metrics.probabilities(array(-np.inf, -2000, -np.inf)), [0, 1, 0])


def test_negative_log_likelihood_equals_scikit_learn() -> None:
    p, y = answers()
    each = metrics.negative_log_likelihood(p, y)
    assert each.shape == (300,)
    assert each.mean() == pytest.approx(oracle.log_loss(y, p, labels=range(4)), rel=1e-12)


def test_a_probability_of_zero_costs_149_ln_2() -> None:
    """2^-149 is the float32 next to 0."""
    assert np.nextafter(np.float32(0), np.float32(1)) == metrics.SMALLEST
    assert metrics.negative_log_likelihood(array(1, 0)[None], np.array([1]))[0] == pytest.approx(149 * np.log(2))


def test_brier_equals_a_loop() -> None:
    p, y = answers()
    loop = [sum((p[m, n] - (n == y[m])) ** 2 for n in range(4)) for m in range(300)]
    np.testing.assert_allclose(metrics.brier(p, y), loop, rtol=1e-12)
    two, label = answers(classes=2)
    half = oracle.brier_score_loss(label, two[:, 1])
    assert metrics.brier(two, label).mean() == pytest.approx(2 * half, rel=1e-12)
    assert metrics.brier(np.eye(2), np.array([0, 0])).tolist() == [0, 2]  # the best and the worst


# ---- calibration ----


def test_calibration_equals_a_loop() -> None:
    p, y = answers()
    confidence, right = p.max(1), p.argmax(1) == y
    found = metrics.calibration(confidence, right)
    error = 0.0
    for b in range(15):
        inside = (b / 15 < confidence) & (confidence <= (b + 1) / 15)
        assert found.count[b] == inside.sum()
        if inside.any():
            assert found.confidence[b] == pytest.approx(confidence[inside].mean())
            assert found.accuracy[b] == pytest.approx(right[inside].mean())
            error += inside.sum() / 300 * abs(right[inside].mean() - confidence[inside].mean())
        else:
            assert np.isnan(found.confidence[b]) and np.isnan(found.accuracy[b])
    assert (found.count == 0).any() and (found.count > 0).any()
    assert metrics.expected_calibration_error(found) == pytest.approx(error)
    assert error > 0.01


def test_bins_are_closed_above() -> None:
    edges = np.arange(16) / 15
    assert metrics.calibration(edges, edges == 0).count.tolist() == [2] + 14 * [1]  # 0 and 1/15 share the first
    above = np.nextafter(edges[:-1], 1)
    assert metrics.calibration(above, edges[:-1] == 0).count.tolist() == 15 * [1]


def test_calibration_error_by_hand() -> None:
    """Two bins. Of 0.9, 0.8, 0.7 (mean 0.8) two are right: |2/3 - 0.8| = 2/15 for three. Of 0.4 none: 0.4 for one.
    (3 * 2/15 + 0.4) / 4 = 0.2."""
    c = metrics.calibration(array(0.9, 0.8, 0.7, 0.4), array(1, 1, 0, 0), bins=2)
    assert metrics.expected_calibration_error(c) == pytest.approx(0.2)
    sure = metrics.calibration(array(1, 1), array(1, 1))
    assert metrics.expected_calibration_error(sure) == 0
    wrong = metrics.calibration(array(1, 1), array(0, 0))
    assert metrics.expected_calibration_error(wrong) == 1


# ---- classes ----


def test_confusion_equals_scikit_learn() -> None:
    p, y = answers()
    small = y.astype(np.uint8)  # 100 * 3 does not fit into it
    found = metrics.confusion(small, p.argmax(1), 100)
    np.testing.assert_array_equal(found, oracle.confusion_matrix(y, p.argmax(1), labels=range(100)))
    assert found.dtype == np.int64


@few
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_macro_f1_equals_scikit_learn(rows: list[tuple[int, int]]) -> None:
    true, predicted = np.array(rows).T
    found = metrics.macro_f1(metrics.confusion(true, predicted, 5))
    assert found == pytest.approx(
        oracle.f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    )


def test_macro_f1_by_hand() -> None:
    """Class 0: tp 1, fp 0, fn 1: 2/3. Class 1: tp 1, fp 1, fn 1: 1/2. Class 2 has items and is never predicted: 0.
    Class 3 has none: left out."""
    matrix = metrics.confusion(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 3, 3]), 4)
    assert metrics.macro_f1(matrix) == pytest.approx((2 / 3 + 1 / 2) / 3)


# ---- known against unknown ----


@few
@given(side, side)
def test_auroc_equals_the_pairs(known: list[int], unknown: list[int]) -> None:
    wins = sum((k > u) + 0.5 * (k == u) for k in known for u in unknown)
    assert metrics.auroc(array(*known), array(*unknown)) == pytest.approx(wins / len(known) / len(unknown))


def test_known_against_unknown_equals_scikit_learn() -> None:
    known, unknown = trials()
    y, score = stacked(known, unknown)
    assert metrics.auroc(known, unknown) == pytest.approx(oracle.roc_auc_score(y, score), rel=1e-12)
    assert metrics.aupr(known, unknown) == pytest.approx(oracle.average_precision_score(1 - y, -score), rel=1e-12)
    fpr, tpr, _ = oracle.roc_curve(y, score, drop_intermediate=False)
    for at in (0.01, 0.5, 0.95, 1):
        assert metrics.false_positive_rate_at(known, unknown, at) == pytest.approx(fpr[tpr >= at][0])


@few
@given(side, side)
def test_aupr_equals_scikit_learn(known: list[int], unknown: list[int]) -> None:
    y, score = stacked(array(*unknown), array(*known))
    assert metrics.aupr(array(*known), array(*unknown)) == pytest.approx(oracle.average_precision_score(y, -score))


@few
@given(side, side, st.sampled_from([0.05, 0.5, 0.75, 0.95, 1.0]))
def test_false_positive_rate_equals_a_loop(known: list[int], unknown: list[int], tpr: float) -> None:
    """The highest score that lets enough of the known in; none above it does."""
    threshold = max(t for t in known if sum(k >= t for k in known) >= tpr * len(known))
    share = sum(u >= threshold for u in unknown) / len(unknown)
    assert metrics.false_positive_rate_at(array(*known), array(*unknown), tpr) == pytest.approx(share)


def test_95_percent_of_20_is_19() -> None:
    """19 of 20 known score 1 and one scores 0, so the threshold is 1; with 18 of 20 it must fall to 0."""
    unknown = array(0.5, 1.0)
    assert metrics.false_positive_rate_at(np.repeat([1.0, 0.0], [19, 1]), unknown) == 0.5
    assert metrics.false_positive_rate_at(np.repeat([1.0, 0.0], [18, 2]), unknown) == 1.0


def test_known_against_unknown_by_hand() -> None:
    """Known 4, 3, 1; unknown 2, 1. Pairs won: 2 of 2, 2 of 2, half of one: 4.5 of 6. From low to high, at score 1: one unknown of
    two items, at 2: two of three: average precision 1/2 * 1/2 + 1/2 * 2/3. All known are in from 1 on, and so are all unknown; two
    thirds of them from 3 on, and none."""
    known, unknown = array(4, 3, 1), array(2, 1)
    assert metrics.auroc(known, unknown) == 0.75
    assert metrics.aupr(known, unknown) == pytest.approx(7 / 12)
    assert metrics.false_positive_rate_at(known, unknown) == 1
    assert metrics.false_positive_rate_at(known, unknown, 2 / 3) == 0


def test_perfect_inverted_and_blind() -> None:
    high, low, same = array(3, 4, np.inf), array(-np.inf, 1), np.full(5, 2.0)
    every = (metrics.auroc, metrics.aupr, metrics.false_positive_rate_at, metrics.equal_error_rate, metrics.min_dcf)
    assert [f(high, low) for f in every] == [1, 1, 0, 0, 0]
    # inverted: the two unknown come last of five, at ranks 4 and 5
    assert [f(low, high) for f in every] == pytest.approx([0, (1 / 3 + 2 / 4 + 3 / 5) / 3, 1, 1, 1])
    assert [f(same[:3], same) for f in every] == pytest.approx([0.5, 5 / 8, 1, 0.5, 1])


# ---- accuracy and coverage ----


def test_accuracy_coverage_equals_a_loop() -> None:
    p, y = answers()
    confidence, right = p.max(1).round(2), p.argmax(1) == y
    curve = metrics.accuracy_coverage(confidence, right, points=11)
    expected = []
    for step in np.linspace(0, 1, 11):
        for threshold in sorted(set(confidence), reverse=True):
            given_ = confidence >= threshold
            if given_.mean() >= step:
                break
        expected.append((given_.mean(), right[given_].mean()))
    np.testing.assert_allclose(np.transpose(curve), expected)
    assert curve.x[-1] == 1 and curve.y[-1] == pytest.approx(right.mean())
    assert curve.y[0] > curve.y[-1]


def test_equal_confidences_are_answered_together() -> None:
    curve = metrics.accuracy_coverage(array(0.5, np.inf, 0.5, np.inf, 0.1), array(1, 1, 0, 1, 0))
    assert curve.x.tolist() == [0.4, 0.8, 1.0] and curve.y.tolist() == [1.0, 0.75, 0.6]
    assert np.transpose(metrics.accuracy_coverage(np.ones(3), array(1, 0, 1))).tolist() == [[1, pytest.approx(2 / 3)]]


# ---- verification ----


def errors_by_loop(target: list[int], impostor: list[int]) -> list[tuple[Fraction, Fraction]]:
    """(false accepts, false rejects) at each score, rising, and above them all."""
    return [
        (
            Fraction(sum(i >= t for i in impostor), len(impostor)),
            Fraction(sum(s < t for s in target), len(target)),
        )
        for t in [*sorted({*target, *impostor}), 99]
    ]


@few
@given(side, side, st.sampled_from([0.01, 0.05, 0.5, 0.9]))
def test_verification_equals_a_loop(target: list[int], impostor: list[int], p: float) -> None:
    """EER: where a piece of the line through the points crosses the diagonal, in fractions. DCF: the least of all points."""
    points = errors_by_loop(target, impostor)
    found = metrics.detection_errors(array(*target), array(*impostor))
    np.testing.assert_allclose(np.transpose(found[:2]), np.array(points, dtype=float))
    crossings = set()
    for (a, r), (a2, r2) in pairwise(points):
        share = (a - r) / ((a - r) - (a2 - r2))
        if 0 <= share <= 1:
            crossings.add(a + share * (a2 - a))
    assert len(crossings) == 1
    assert metrics.equal_error_rate(array(*target), array(*impostor)) == pytest.approx(float(crossings.pop()))
    cost = min(10 * p * r + 2 * (1 - p) * a for a, r in points) / min(10 * p, 2 * (1 - p))
    assert metrics.min_dcf(array(*target), array(*impostor), p, 10, 2) == pytest.approx(cost)


def test_detection_errors_equal_scikit_learn() -> None:
    target, impostor = trials()
    false_accept, false_reject, threshold = metrics.detection_errors(target, impostor)
    fpr, tpr, at = oracle.roc_curve(*stacked(target, impostor), drop_intermediate=False)
    np.testing.assert_allclose(false_accept, fpr[::-1])
    np.testing.assert_allclose(false_reject, 1 - tpr[::-1], atol=1e-12)
    np.testing.assert_array_equal(threshold, at[::-1])
    det = {tuple(np.round(row, 9)) for row in np.transpose(oracle.det_curve(*stacked(target, impostor))[:2])}
    assert det <= {tuple(np.round(row, 9)) for row in np.transpose([false_accept, false_reject])} and len(det) > 30


def test_verification_by_hand() -> None:
    """Targets 0.8, 0.5, 0.5; impostors 0.5, 0.2, 0.1. Errors (accept, reject) by threshold: 0.1 (1, 0), 0.2 (2/3, 0), 0.5 (1/3, 0),
    0.8 (0, 2/3), inf (0, 1). From 1/3 down by 1/3 and from 0 up by 2/3, they meet a third of the way: 2/9. The cost at p = 0.01
    is reject + 99 accept: least at 0.8, 2/3. At p = 0.5 it is reject + accept: least at 0.5, 1/3. With misses 198 times as dear,
    at p = 0.01, it is 2 reject + accept: again 1/3, at 0.5."""
    target, impostor = array(0.8, 0.5, 0.5), array(0.5, 0.2, 0.1)
    assert metrics.equal_error_rate(target, impostor) == pytest.approx(2 / 9)
    assert metrics.min_dcf(target, impostor) == pytest.approx(2 / 3)
    assert metrics.min_dcf(target, impostor, 0.5) == pytest.approx(1 / 3)
    assert metrics.min_dcf(target, impostor, 0.01, c_miss=198) == pytest.approx(1 / 3)


def test_not_the_convex_hull() -> None:
    """Targets 4, 2; impostors 3, 1: errors (1, 0), (1/2, 0), (1/2, 1/2), (0, 1/2), (0, 1), so 1/2. The hull cuts the corner from
    (1/2, 0) to (0, 1/2) and would say 1/4."""
    assert metrics.equal_error_rate(array(4, 2), array(3, 1)) == 0.5


def test_thinned_points_are_some_of_all_and_reach_the_tail() -> None:
    """Of 10,100 thresholds, some 150 have false accepts below 1 %: of 50 evenly by count, one would be among them."""
    rng = np.random.default_rng(2)
    target, impostor = rng.normal(3, 1, 100), rng.normal(0, 1, 10_000)
    every = np.transpose(metrics.detection_errors(target, impostor))
    thin = np.transpose(metrics.detection_errors(target, impostor, points=50))
    assert 30 < len(thin) <= 50
    assert {tuple(row) for row in thin} <= {tuple(row) for row in every}
    np.testing.assert_array_equal(thin[[0, -1]], every[[0, -1]])
    assert ((every[:, 0] > 0) & (every[:, 0] < 0.01)).sum() < 200
    assert ((thin[:, 0] > 0) & (thin[:, 0] < 0.01)).sum() >= 5


# ---- invariances ----


@few
@given(side, side, st.integers(0, 9))
def test_only_the_order_of_scores_counts(known: list[int], unknown: list[int], seed: int) -> None:
    a, b = array(*known), array(*unknown)
    rng = np.random.default_rng(seed)
    moved = (
        np.exp(rng.permutation(a) / 3),
        np.exp(rng.permutation(b) / 3),
    )  # rises with the score; items in another order
    for f in (metrics.auroc, metrics.aupr, metrics.false_positive_rate_at, metrics.equal_error_rate, metrics.min_dcf):
        assert f(*moved) == f(a, b)
    assert metrics.auroc(-b, -a) == pytest.approx(metrics.auroc(a, b))  # both turned round
    assert metrics.equal_error_rate(-b, -a) == pytest.approx(metrics.equal_error_rate(a, b))


def test_the_order_of_answers_does_not_count() -> None:
    p, y = answers()
    order = np.random.default_rng(0).permutation(len(y))
    confidence, right = p.max(1), p.argmax(1) == y
    np.testing.assert_array_equal(metrics.brier(p, y)[order], metrics.brier(p[order], y[order]))
    for f in (metrics.accuracy_coverage, metrics.calibration):
        for a, b in zip(f(confidence, right), f(confidence[order], right[order]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    stretched = metrics.accuracy_coverage(np.log(confidence), right)
    np.testing.assert_array_equal(np.transpose(stretched), np.transpose(metrics.accuracy_coverage(confidence, right)))


# ---- what cannot be answered ----

ONE, TWO, NONE, NAN = array(1), array(1, 0), array(), array(0.5, np.nan)
ROW, LABEL = array(0.5, 0.5)[None], np.array([0])
NO_ITEMS = np.array([], dtype=np.int64)


@pytest.mark.parametrize("f", [metrics.auroc, metrics.aupr, metrics.false_positive_rate_at])
def test_sides_must_be_there_and_numbers(f: Callable[..., Any]) -> None:
    with pytest.raises(MultifslError, match=r"there are no known scores \(of known: 0, of unknown: 2\)"):
        f(NONE, TWO)
    with pytest.raises(MultifslError, match="there are no unknown scores"):
        f(TWO, NONE)
    with pytest.raises(MultifslError, match="unknown scores must be numbers: 1 of 2 are NaN, first at 1"):
        f(TWO, NAN)
    with pytest.raises(MultifslError, match=r"known scores must have one axis, not the shape \[1, 2\]"):
        f(ROW, TWO)


@pytest.mark.parametrize("f", [metrics.detection_errors, metrics.equal_error_rate, metrics.min_dcf])
def test_trials_must_be_there_and_numbers(f: Callable[..., Any]) -> None:
    with pytest.raises(MultifslError, match="there are no target scores"):
        f(NONE, TWO)
    with pytest.raises(MultifslError, match="there are no impostor scores"):
        f(TWO, NONE)
    with pytest.raises(MultifslError, match="target scores must be numbers"):
        f(NAN, TWO)


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (lambda: metrics.probabilities(array(0, np.nan)), "row 0 is"),
        (lambda: metrics.probabilities(array(0, np.inf)), "logits must be numbers or -inf"),
        (lambda: metrics.probabilities(np.array([[0, 1], [-np.inf, -np.inf]])), "row 1 is"),
        (lambda: metrics.probabilities(NONE), r"N at least 1, not \[0\]"),
        (lambda: metrics.brier(ROW, np.array([2])), r"y must be labels 0..1, but runs from 2 to 2"),
        (lambda: metrics.brier(ROW, np.array([-2])), "leave rows of no class out"),
        (lambda: metrics.brier(ROW, np.array([0.0])), "y must be whole numbers on one axis, not float64"),
        (lambda: metrics.brier(ROW, np.array([0, 1])), "there are 1 probabilities and 2 y"),
        (lambda: metrics.brier(ROW[0], LABEL), r"must be \[M, N\], not \[2\]"),
        (lambda: metrics.negative_log_likelihood(2 * ROW, LABEL), "sum to 1 in each row; row 0 is"),
        (lambda: metrics.negative_log_likelihood(NAN[None], LABEL), "sum to 1 in each row"),
        (lambda: metrics.negative_log_likelihood(array(-1, 2)[None], LABEL), "0 or more"),
        (lambda: metrics.calibration(TWO, ONE), "there are 2 confidence and 1 right"),
        (lambda: metrics.calibration(NAN, TWO), "confidence must be numbers"),
        (lambda: metrics.calibration(array(1.5, 0.2), TWO), "it runs from 0.2 to 1.5"),
        (lambda: metrics.calibration(TWO, array(0, 2)), "answer 1 has 2.0"),
        (lambda: metrics.calibration(TWO, TWO, bins=0), "bins must be at least 1, not 0"),
        (lambda: metrics.expected_calibration_error(metrics.calibration(NONE, NONE)), "of no answers"),
        (lambda: metrics.confusion(LABEL, np.array([3]), 3), "predicted must be labels 0..2, but runs from 3 to 3"),
        (lambda: metrics.confusion(LABEL, NO_ITEMS, 3), "there are 1 true and 0 predicted"),
        (lambda: metrics.macro_f1(metrics.confusion(NO_ITEMS, NO_ITEMS, 3)), "without items"),
        (lambda: metrics.macro_f1(ROW), r"is \[n, n\], not \[1, 2\]"),
        (lambda: metrics.false_positive_rate_at(TWO, TWO, 95), "tpr must be above 0 and at most 1, not 95"),
        (lambda: metrics.accuracy_coverage(NONE, NONE), "accuracy of no answers"),
        (lambda: metrics.accuracy_coverage(ONE, TWO), "there are 1 confidence and 2 right"),
        (lambda: metrics.accuracy_coverage(TWO, TWO, points=1), "points must be at least 2, not 1"),
        (lambda: metrics.detection_errors(TWO, TWO, points=0), "points must be at least 2, not 0"),
        (lambda: metrics.min_dcf(TWO, TWO, 1.0), "p_target must be between 0 and 1, not 1.0"),
        (lambda: metrics.min_dcf(TWO, TWO, c_miss=0), "costs must be numbers above 0; got c_miss=0"),
    ],
)
def test_errors_say_what_came_and_what_is_allowed(ask: Callable[[], Any], answer: str) -> None:
    with pytest.raises(MultifslError, match=answer):
        ask()


def test_what_adds_up_may_be_empty() -> None:
    assert metrics.brier(ROW[:0], NO_ITEMS).shape == metrics.negative_log_likelihood(ROW[:0], NO_ITEMS).shape == (0,)
    assert metrics.calibration(NONE, NONE).count.tolist() == 15 * [0]
    assert metrics.confusion(NO_ITEMS, NO_ITEMS, 2).tolist() == [[0, 0], [0, 0]]
