"""Comparisons. Oracles: `evaluate` of each entry by itself, scipy's paired t test, Holm's rule by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import multifsl
from multifsl.comparison import Comparison, compare, draw
from multifsl.encoder import Features
from multifsl.errors import MultifslError
from multifsl.intervals import class_half_width, half_width
from tests.test_evaluation import Counting, Picky, Toy

METHODS = ["prototypical", "ridge", "prototypical(distance='cosine')"]
SHAPE: dict[str, Any] = {"way": 3, "query": 2, "episodes": 70, "seed": 1}


def compared(**options: Any) -> list[Comparison]:
    return compare(Toy(), **{"encoders": [Features(5)], "methods": METHODS, "shots": [2], **SHAPE, **options})


def scores(comparison: Comparison) -> dict[str, np.ndarray]:
    return {entry.name: np.array(entry.evaluation.details["scores"]) for entry in comparison.entries}


def test_each_entry_is_what_evaluate_gives() -> None:
    (found,) = compared()
    assert sorted(entry.name for entry in found.entries) == sorted(METHODS)
    for entry in found.entries:
        alone = multifsl.evaluate(task=Toy(), encoder=Features(5), method=entry.name, shot=2, **SHAPE).to_json()
        together = entry.evaluation.to_json()
        asked = alone.pop("arguments")
        assert asked == {**asked, **together.pop("arguments")}
        assert {**alone, "seconds": 0} == {**together, "seconds": 0}
        assert entry.ms_per_episode > 0 and entry.memory >= 0
    accuracies = [entry.evaluation.accuracy for entry in found.entries]
    assert accuracies == sorted(accuracies, reverse=True) and len(set(accuracies)) == 3


def test_differences_are_paired_and_corrected() -> None:
    (found,) = compared()
    each, names = scores(found), [entry.name for entry in found.entries]
    assert [(pair.a, pair.b) for pair in found.pairs] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    raw = [stats.ttest_rel(each[pair.a], each[pair.b]).pvalue for pair in found.pairs]
    classes = np.stack(
        [
            multifsl.EpisodeSampler(Toy().items("test").labels, way=3, shot=2, query=2, seed=1)
            .task(i // 32, i % 32)
            .classes
            for i in range(70)
        ]
    )
    for pair, p in zip(found.pairs, raw, strict=True):
        gap = each[pair.a] - each[pair.b]
        rank = sorted(raw).index(p)
        assert pair.p == pytest.approx(min(1.0, max((3 - i) * sorted(raw)[i] for i in range(rank + 1))), rel=1e-3)
        assert pair.shown == (pair.p < 0.05) and pair.mean == pytest.approx(gap.mean(), abs=1e-6)
        assert pair.ci95 == pytest.approx(half_width(gap), rel=1e-3)
        assert pair.ci95_classes == pytest.approx(class_half_width(gap, classes), rel=1e-3)
    assert {pair.shown for pair in found.pairs} == {True, False}


def test_what_is_the_same_is_not_told_apart() -> None:
    (found,) = compared(methods=["prototypical", "prototypical(temperature=2.0)"])
    assert [(pair.mean, pair.p, pair.shown) for pair in found.pairs] == [(0, 1, False)]


def test_each_number_of_shots_is_one_comparison() -> None:
    found = compared(shots=[1, 4])
    assert [one.shot for one in found] == [1, 4]
    means = [np.mean([entry.evaluation.accuracy for entry in one.entries]) for one in found]
    assert means[0] < means[1]
    assert (
        json.loads(json.dumps([one.to_json() for one in found], allow_nan=False))[1]["entries"][0]["evaluation"]["shot"]
        == 4
    )


def test_all_classes_at_once() -> None:
    """The figures of `evaluate` with way="all"."""
    found = compared(way="all", shots=[1, 2])
    for one in found:
        assert one.way == 8 and {pair.ci95_classes for pair in one.pairs} == {None}
        for entry in one.entries:
            asked = {**SHAPE, "way": "all", "shot": one.shot}
            alone = multifsl.evaluate(task=Toy(), encoder=Features(5), method=entry.name, **asked)
            assert entry.evaluation.accuracy == alone.accuracy and entry.evaluation.way == alone.way == 8


def test_all_meet_the_items_that_all_can_read() -> None:
    """One encoder cannot read a third of the items: the other goes without them too."""
    with pytest.warns(UserWarning, match="left out"):
        (found,) = compared(encoders=[Picky(5), Features(5)], methods=["prototypical"], skip_small_classes=True)
    first, second = scores(found).values()
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, scores(compared()[0])["prototypical"])


@pytest.mark.parametrize("written_by", ["evaluate", "compare"])
def test_over_a_file_of_episodes_with_queries_of_no_class(written_by: str, tmp_path: Path) -> None:
    """The same figures as `evaluate` gives over that file, whoever wrote it and whatever shape is asked for afterwards."""
    path, asked = (
        tmp_path / "episodes.jsonl",
        {**SHAPE, "unknown": 2, "outside": 3, "episodes_file": tmp_path / "episodes.jsonl"},
    )
    if written_by == "evaluate":
        multifsl.evaluate(task=Toy(), encoder=Features(5), shot=2, **asked)
    else:
        compared(**asked)
    (found,) = compared(episodes_file=path, way=7, shots=[1], query=1, seed=5)
    assert (found.way, found.shot, found.query, found.episodes, found.seed) == (3, 2, 2, 70, 1)
    for entry in found.entries:
        alone = multifsl.evaluate(task=Toy(), encoder=Features(5), method=entry.name, episodes_file=path)
        assert alone.unknown is not None and entry.evaluation.unknown == alone.unknown
        assert entry.evaluation.details == alone.details and entry.evaluation.arguments["outside"] == 3


def test_an_encoder_that_is_the_same_is_run_once() -> None:
    encoder = Counting()
    compared(encoders=[encoder], cache=False)
    assert encoder.count == 2  # 72 items in batches of 64


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": ["ridge"]}, "at least two to compare, of encoders x methods and of runs; 1 came"),
        ({"methods": ["ridge", "ridge"]}, "ridge is named twice"),
        ({"encoders": []}, "methods are compared on encoders: name one"),
        ({"encoders": "conv4"}, "encoders must be a list, not 'conv4'"),
        ({"shots": [1, 9]}, "9 shot"),
        ({"shots": []}, r"at least one number of shots, and each once; \[\] came"),
        ({"shots": [1, 1]}, r"at least one number of shots, and each once; \[1, 1\] came"),
        (
            {"shots": [1, 2], "episodes_file": "x.jsonl"},
            "a file of episodes has one number of shots, and 2 were asked for",
        ),
        ({"outside": 8}, "the split has 7 such items"),
        ({"way": 9}, "way 9 asks for more classes than there are: 8"),
        ({"allow_leaks": ["group"]}, "did you mean 'groups'"),
    ],
)
def test_what_cannot_be_compared(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MultifslError, match=says):
        compared(**options)


@pytest.mark.parametrize("shots", [[2], [1, 2, 4]])
def test_a_picture_names_all(shots: list[int], tmp_path: Path) -> None:
    found = compared(shots=shots)
    draw(found, tmp_path / "a.svg")
    draw(found, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(name in text for name in METHODS) and "shot" in text
    assert text == (tmp_path / "b.svg").read_text()
    assert ("wide: over classes" in text) == (len(shots) == 1)
    draw(compared(way="all", shots=shots), tmp_path / "all.svg")
    assert "8-way" in (tmp_path / "all.svg").read_text() and "wide" not in (tmp_path / "all.svg").read_text()
    with pytest.raises(MultifslError, match=r"cannot draw .*nowhere"):
        draw(found, tmp_path / "nowhere" / "a.svg")
    with pytest.raises(MultifslError, match="cannot draw"):
        draw(found, tmp_path / "a.xyz")
