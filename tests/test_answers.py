"""Answers and their figures. Oracles: a plain loop over episodes and queries with a softmax of its own; scikit-learn; a case drawn
by hand; what must not change when chunks or unknown queries do."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle

from multifsl import answers as module
from multifsl.answers import Answers, collect, details, figures
from multifsl.episode import UNKNOWN, EpisodeSampler, Indices

NAMES = [f"class {c}" for c in range(9)]
Solved = list[tuple[Indices, np.ndarray]]


def drawn(*, way: Any = 4, unknown: int = 2, count: int = 24, spread: float = 1.2) -> Solved:
    """Tasks over Gaussian classes, and the negative squared distances [Q, N] to the means of their support items."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(NAMES)), 8)
    x = rng.normal(size=(len(NAMES), 5))[labels] + spread * rng.normal(size=(len(labels), 5))
    sampler = EpisodeSampler(labels, way=way, shot=2, query=3, unknown=unknown, seed=1)
    found = []
    for step in range(count // 4):
        for task in sampler.tasks(step, 4):
            means = [x[task.support[task.support_y == k]].mean(0) for k in range(len(task.classes))]
            found.append((task, np.array([[-((q - m) ** 2).sum() for m in means] for q in x[task.query]])))
    return found


def chunks(solved: Solved, most: int = 32) -> Iterator[tuple[list[Indices], torch.Tensor]]:
    """As `evaluation.solved` has them: of one shape, `most` at most."""
    block: Solved = []
    for one in solved:
        if block and (len(block) == most or one[1].shape != block[0][1].shape):
            yield [task for task, _ in block], torch.from_numpy(np.stack([z for _, z in block]))
            block = []
        block.append(one)
    yield [task for task, _ in block], torch.from_numpy(np.stack([z for _, z in block]))


def answered(solved: Solved, *, trials: bool = True, most: int = 32) -> Answers:
    return collect(chunks(solved, most), trials=trials)


def plain(solved: Solved) -> dict[str, list[Any]]:
    """One number at a time."""
    found: dict[str, list[Any]] = {
        key: []
        for key in "scores episode item true predicted confidence nll brier known outside outside_confidence targets others".split()
    }
    for number, (task, logits) in enumerate(solved):
        right = []
        for item, y, row in zip(task.query, task.query_y, logits, strict=True):
            powers = [math.exp(z - max(row)) for z in row]
            p = [power / sum(powers) for power in powers]
            if y == UNKNOWN:
                found["outside"].append(max(row))
                found["outside_confidence"].append(max(p))
                continue
            best = max(range(len(row)), key=lambda k: row[k])
            right.append(best == y)
            values = {
                "episode": number, "item": item, "true": task.classes[y], "predicted": task.classes[best], "confidence": p[best],
                "nll": -math.log(p[y]), "brier": sum((p[k] - (k == y)) ** 2 for k in range(len(p))), "known": max(row),
                "targets": row[y],
            }  # fmt: skip
            for key, value in values.items():
                found[key].append(value)
            found["others"] += [row[k] for k in range(len(row)) if k != y]
        found["scores"].append(sum(right) / len(right))
    return found


@pytest.mark.parametrize("way", [4, (2, 5)])
@pytest.mark.parametrize("most", [1, 5, 32])
@pytest.mark.parametrize("waiting", [0, 3000, 2**26])
def test_answers_equal_a_plain_loop(way: Any, most: int, waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of any size, and whether logits wait for none, some or all of the others."""
    monkeypatch.setattr(module, "WAITING", waiting)
    solved = drawn(way=way)
    found, expected = answered(solved, most=most), plain(solved)
    for key, values in expected.items():
        np.testing.assert_allclose(getattr(found, key), values, rtol=1e-9, err_msg=key)
    assert 0.3 < found.scores.mean() < 0.95 and found.scores.std() > 0  # neither trivial nor chance
    assert found.diverged == 0


def test_the_classes_of_fewer_ways_are_padded() -> None:
    solved = drawn(way=(2, 5))
    found = answered(solved)
    widths = [len(task.classes) for task, _ in solved]
    assert len(set(widths)) > 2 and found.classes.shape == (len(solved), max(widths))
    for row, (task, _) in zip(found.classes, solved, strict=True):
        assert row.tolist() == task.classes.tolist() + [-1] * (max(widths) - len(task.classes))


def test_logits_are_kept_where_they_are_asked_for_alone() -> None:
    found = answered(drawn(), trials=False)
    assert len(found.targets) == len(found.others) == 0
    assert figures(found)["verification"] is None and details(found, NAMES)["detection"] is None


# ---- figures ----


def test_figures_by_hand() -> None:
    """Two like episodes of classes 0 and 1. Logits ln 3 and 0 are probabilities 3/4 and 1/4. A query of each class is taken for
    class 0: half are right; F1 of class 0 is 4 / 6, of class 1 nought. The unknown query's highest logit, 0, is below all others.
    Of the trials, ln 3 and 0 are of the own class, 0 and ln 3 of the other: a blind score."""
    task = Indices(np.array([0, 1]), np.array([0, 1]), np.array([2, 3, 4]), np.array([0, 1, UNKNOWN]), np.array([0, 1]))
    logits = np.array([[math.log(3), 0], [math.log(3), 0], [0, 0]])
    found = figures(answered([(task, logits)] * 2))
    assert found.pop("unknown") == {"auroc": 1, "aupr": 1, "fpr_at_95_tpr": 0}
    assert found.pop("verification") == pytest.approx({"equal_error_rate": 0.5, "min_dcf_0.01": 1, "min_dcf_0.05": 1})
    assert found.pop("ci95_classes") is None  # both classes are in every episode
    assert found == pytest.approx({
        "accuracy": 0.5, "ci95": 0, "macro_f1": 1 / 3, "nll": (math.log(4 / 3) + math.log(4)) / 2, "brier": (0.125 + 1.125) / 2,
        "calibration_error": 0.25,
    })  # fmt: skip


@pytest.mark.parametrize("way", [4, (2, 5)])
def test_figures_equal_scikit_learns_and_a_loop(way: Any) -> None:
    solved = drawn(way=way)
    found, e = figures(answered(solved)), {key: np.array(values) for key, values in plain(solved).items()}
    assert found["accuracy"] == pytest.approx(e["scores"].mean())
    assert found["ci95"] == pytest.approx(1.96 * np.std(e["scores"], ddof=1) / np.sqrt(len(solved)))
    assert found["ci95_classes"] > found["ci95"]
    true, predicted = e["true"], e["predicted"]
    assert found["macro_f1"] == pytest.approx(
        oracle.f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)
    )
    assert found["nll"] == pytest.approx(e["nll"].mean()) and found["brier"] == pytest.approx(e["brier"].mean())
    error = 0.0
    for b in range(15):
        inside = (b / 15 < e["confidence"]) & (e["confidence"] <= (b + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((true == predicted)[inside].mean() - e["confidence"][inside].mean())
    assert found["calibration_error"] == pytest.approx(error) and error > 0.01

    is_known, score = np.repeat([1, 0], [len(e["known"]), len(e["outside"])]), np.append(e["known"], e["outside"])
    fpr, tpr, _ = oracle.roc_curve(is_known, score, drop_intermediate=False)
    assert found["unknown"] == pytest.approx({
        "auroc": oracle.roc_auc_score(is_known, score), "aupr": oracle.average_precision_score(1 - is_known, -score),
        "fpr_at_95_tpr": fpr[tpr >= 0.95][0],
    })  # fmt: skip
    assert 0.55 < found["unknown"]["auroc"] < 0.99


def test_verification_equals_scikit_learns_curve() -> None:
    solved = drawn(spread=0.5)
    found, e = figures(answered(solved))["verification"], plain(solved)
    is_target = np.repeat([1, 0], [len(e["targets"]), len(e["others"])])
    accept, hit, _ = oracle.roc_curve(is_target, np.append(e["targets"], e["others"]), drop_intermediate=False)
    along = np.linspace(0, 1, 100_001)
    gap = np.abs(np.interp(along, accept, 1 - hit) - along)
    assert found["equal_error_rate"] == pytest.approx(along[gap.argmin()], abs=1e-3)
    costs = {p: (p * (1 - hit) + (1 - p) * accept).min() / p for p in (0.01, 0.05)}
    assert 0.1 < costs[0.05] < costs[0.01] - 0.05 < 0.9
    for p, cost in costs.items():
        assert found[f"min_dcf_{p}"] == pytest.approx(cost)


def test_unknown_queries_count_for_nothing_else() -> None:
    solved = drawn()
    without = [
        (
            task._replace(query=task.query[task.query_y >= 0], query_y=task.query_y[task.query_y >= 0]),
            z[task.query_y >= 0],
        )
        for task, z in solved
    ]
    with_them, alone = figures(answered(solved)), figures(answered(without))
    assert with_them.pop("unknown") is not None and alone.pop("unknown") is None
    assert with_them == alone
    told, plain_told = details(answered(solved), NAMES), details(answered(without), NAMES)
    assert told.pop("coverage") != plain_told.pop("coverage")  # where whoever answers them is wrong
    assert told == plain_told


@pytest.mark.parametrize("unknown", [0, 2])
def test_accuracy_by_coverage_equals_a_loop(unknown: int) -> None:
    """Answers are given from the surest on; one to a query of no class is wrong."""
    solved = drawn(unknown=unknown)
    told, e = details(answered(solved), NAMES)["coverage"], plain(solved)
    rows = [(p, a == b) for p, a, b in zip(e["confidence"], e["true"], e["predicted"], strict=True)]
    rows += [(p, False) for p in e["outside_confidence"]]
    assert len(rows) == len(solved) * 3 * (4 + unknown)
    for coverage, accuracy in zip(told["coverage"], told["accuracy"], strict=True):
        given = sorted(rows, reverse=True)[: round(coverage * len(rows))]
        assert accuracy == pytest.approx(sum(right for _, right in given) / len(given), abs=1e-6)
    right, known = sum(right for _, right in rows), len(e["true"])
    assert told["coverage"][-1] == 1 and told["accuracy"][-1] == pytest.approx(right / len(rows), abs=1e-6)
    assert (right / len(rows) < right / known - 0.1) == (unknown > 0)


def test_too_many_classes_for_a_table_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CLASSES", len(NAMES))
    assert figures(answered(drawn()))["macro_f1"] is not None
    monkeypatch.setattr(module, "MOST_CLASSES", len(NAMES) - 1)
    assert figures(answered(drawn()))["macro_f1"] is None


# ---- answers that are no numbers ----


@pytest.mark.parametrize("bad", [[math.nan] * 4, [1, math.nan, 0, 0], [0, math.inf, 0, 0], [-math.inf] * 4])
def test_what_is_no_number_counts_by_chance_and_spoils_nothing_else(bad: list[float]) -> None:
    solved = drawn()
    clean = answered(solved)
    hurt = [(task, z.copy()) for task, z in solved]
    hurt[3][1][[1, 7]] = bad  # queries of the first and third class
    hurt[5][1][-1] = bad  # an unknown one
    given = list(chunks(hurt))
    before = [z.clone() for _, z in given]
    found = collect(iter(given), trials=True)
    assert found.diverged == 2
    lost = np.flatnonzero(found.episode == 3)[[1, 7]]
    np.testing.assert_allclose(found.confidence[lost], 1 / 4)
    np.testing.assert_allclose(found.nll[lost], math.log(4))
    np.testing.assert_allclose(found.brier[lost], 0.75)
    assert found.predicted[lost].tolist() == [solved[3][0].classes[0]] * 2
    for key in ("true", "predicted", "confidence", "nll", "brier", "known"):
        rest, expected = (np.delete(getattr(a, key), lost) for a in (found, clean))
        np.testing.assert_array_equal(rest, expected, err_msg=key)
    np.testing.assert_array_equal(np.delete(found.scores, 3), np.delete(clean.scores, 3))
    json.dumps([figures(found), details(found, NAMES)], allow_nan=False)
    for a, (_, b) in zip(before, given, strict=True):  # what came is left as it is
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_nothing_but_nan_is_right_by_chance() -> None:
    """All take the first class, and every class has as many queries."""
    found = answered([(task, np.full_like(z, math.nan)) for task, z in drawn()])
    assert found.diverged == len(found.scores)
    np.testing.assert_allclose(found.scores, 1 / 4)
    assert figures(found)["unknown"]["auroc"] == 0.5


def test_a_class_that_is_absent_is_no_divergence() -> None:
    """-inf is its logit."""
    solved = [(task, np.where(np.arange(4) == 2, -math.inf, z)) for task, z in drawn()]
    found = answered(solved, trials=False)
    assert found.diverged == 0 and (found.confidence > 1 / 4).all()
    assert not (found.predicted == found.classes[found.episode, 2]).any()


# ---- details ----


def test_details_agree_with_the_figures() -> None:
    found = answered(drawn(count=80))
    told, figure = details(found, NAMES), figures(found)
    assert json.loads(json.dumps(told, allow_nan=False)) == told  # plain lists, and numbers alone

    counts = Counter(found.true.tolist())
    assert {one["name"]: one["queries"] for one in told["classes"]} == {NAMES[c]: n for c, n in counts.items()}
    accuracy = sum(one["accuracy"] * one["queries"] for one in told["classes"]) / len(found.true)
    assert accuracy == pytest.approx(figure["accuracy"], abs=1e-4)  # every episode has as many queries
    assert told["scores"] == pytest.approx(found.scores, abs=1e-6)

    table = oracle.confusion_matrix(found.true, found.predicted, labels=range(len(NAMES)))
    np.fill_diagonal(table, 0)
    pairs = {(one["true"], one["answered"]): one["queries"] for one in told["confused"]}
    times = list(pairs.values())
    assert times == sorted(times, reverse=True) == sorted(table[table > 0], reverse=True)[: module.PAIRS]
    for (true, answer), n in pairs.items():
        assert table[NAMES.index(true), NAMES.index(answer)] == n

    bins = told["reliability"]
    assert len(bins["queries"]) == module.BINS and sum(bins["queries"]) == len(found.true)
    parts = [n * abs(a - c) for n, a, c in zip(bins["queries"], bins["accuracy"], bins["confidence"], strict=True) if n]
    assert sum(parts) / len(found.true) == pytest.approx(figure["calibration_error"], abs=1e-5)
    assert told["coverage"]["coverage"][-1] == 1
    assert told["coverage"]["accuracy"][-1] == pytest.approx(
        found.right.sum() / (len(found.true) + len(found.outside)), abs=1e-5
    )
    accept, reject = told["detection"]["false_accept"], told["detection"]["false_reject"]
    assert (accept[0], reject[0], accept[-1], reject[-1]) == (1, 0, 0, 1)
    assert len(accept) <= 200


def test_an_empty_bin_and_a_class_nobody_asked_about() -> None:
    """Answers that are sure leave bins empty; a class that is in no episode is in no list."""
    found = answered([(task, 1e3 * z) for task, z in drawn(count=4)])
    told = details(found, [*NAMES, "never drawn"])
    assert None in told["reliability"]["accuracy"] and told["reliability"]["queries"][-1] > 0
    assert "never drawn" not in {one["name"] for one in told["classes"]}


def test_only_the_most_confused_pairs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = answered(drawn(count=80))
    every = details(found, NAMES)["confused"]
    monkeypatch.setattr(module, "PAIRS", 3)
    assert details(found, NAMES)["confused"] == every[:3]
