"""Saying "unknown". Oracles: the threshold's formula in numpy; what a spied score was learned from; the rate at which unknown
synthetic classes are accepted; thresholding by hand; a fit from scratch."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Encoder
from multifsl.errors import MultifslError
from multifsl.open_set import SCORES, Cosine
from multifsl.rejection import Rate, _trials, learn_rejection

UNEQUAL = [3, 1, 2, 5, 1, 4, 2, 3, 2, 2, 6, 3]


def clouds(
    counts: list[int], *, seed: int = 0, dim: int = 16, within: float = 0.6
) -> tuple[np.ndarray, np.ndarray, Callable[[int, int], np.ndarray]]:
    """Examples [S, D] and labels [S] of Gaussian classes; and more classes of the same kind: n of them, m items each [n m, D]."""
    rng = np.random.default_rng(seed)

    def more(n: int, each: int) -> np.ndarray:
        return np.repeat(rng.normal(size=(n, dim)), each, axis=0) + within * rng.normal(size=(n * each, dim))

    y = np.repeat(np.arange(len(counts)), counts)
    x = rng.normal(size=(len(counts), dim))[y] + within * rng.normal(size=(len(y), dim))
    return x, y, more


def tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


class Spied(Cosine):
    """Notes what it was learned from, and what it was then asked about."""

    made: list["Spied"] = []  # noqa: RUF012

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        super().__init__(z, y, n, cohort)
        self.z, self.y, self.n, self.cohort = z, y, n, cohort
        self.asked: list[Tensor] = []
        self.made.append(self)

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return super().__call__(x)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[Spied]:
    monkeypatch.setitem(SCORES, "cosine", Spied)
    monkeypatch.setattr(Spied, "made", [])
    return Spied.made


def rows(x: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in x.tolist()}


# ---- thresholds ----


def test_no_item_is_scored_by_what_has_seen_it(spied: list[Spied]) -> None:
    x, y, more = clouds(UNEQUAL)
    cohort = more(30, 1)
    found = learn_rejection(*tensors(x, y), len(UNEQUAL), torch.from_numpy(cohort), score="cosine")
    assert len(spied) == 1 and not spied[0].asked  # trials wait
    assert np.isfinite(found.threshold)
    label_of = {tuple(row): int(label) for row, label in zip(x.tolist(), y, strict=True)}
    unknown, known = [], []
    assert len(spied[0].z) == len(x)  # the score itself; it is asked for its own examples, and what strangers score
    assert {tuple(row) for part in spied[0].asked for row in part.tolist()} == label_of.keys() | rows(
        torch.from_numpy(cohort[15:])
    )
    for score in spied[1:]:
        assert score.cohort is not None
        learned = rows(score.z)
        assert len(score.y.unique()) == score.n
        for item in (tuple(row) for part in score.asked for row in part.tolist()):
            if score.n == len(UNEQUAL):
                known.append(item)
                assert item not in learned
            else:
                unknown.append(item)
                assert label_of[item] not in {label_of[seen] for seen in learned}
    assert sorted(unknown) == sorted(label_of)  # each once
    assert sorted(known) == sorted(item for item, label in label_of.items() if UNEQUAL[label] > 1)
    assert all(
        len(rows(score.cohort) - rows(torch.from_numpy(cohort[:15]))) == 0
        for score in spied
        if score.cohort is not None
    )


@pytest.mark.parametrize("false_accept", [0.02, 0.3])
@pytest.mark.parametrize("background", [0, 40, 500])
def test_the_threshold_is_its_formula(false_accept: float, background: int) -> None:
    x, y, more = clouds([3] * 6)  # up to ten classes, each is left out alone
    cohort = more(background, 1) + 0.3
    given = torch.from_numpy(cohort) if background else None
    got = learn_rejection(*tensors(x, y), 6, given, score="cosine", false_accept=false_accept)

    def unit(a: np.ndarray) -> np.ndarray:
        return a / np.linalg.norm(a, axis=-1, keepdims=True)

    means = unit(np.stack([unit(x[y == k]).mean(0) for k in range(6)]))
    pairs = np.array([[q @ means[k] for k in range(6) if k != label] for q, label in zip(unit(x), y, strict=True)])
    outside = unit(cohort[len(cohort) // 2 :]) @ means.T
    own = np.median((unit(x) @ means.T).max(1))
    want = []
    for scores, strangers in ((pairs.max(1), outside.max(1)), (pairs.ravel(), outside.ravel())):
        usual = 0.1 * (own - scores.mean())
        free, squares = 6 - 1 + 3, 6 * scores.var() + 3 * usual**2
        reach = 1.15 * stats.t.isf(false_accept, free) * np.sqrt(squares / free * (1 + 1 / 6))
        want.append(scores.mean() + usual / 5 + reach)
        if background:
            count = len(strangers)
            want[-1] = max(want[-1], np.quantile(strangers, min(1.0, (count + 1) * (1 - false_accept) / count)))
    np.testing.assert_allclose([got.threshold, got.claim], want, rtol=1e-6)


@pytest.mark.parametrize("asked", [0.05, 0.2])
def test_as_many_unknown_items_are_accepted_as_asked_for(asked: float) -> None:
    realised = []
    for seed in range(20):
        x, y, more = clouds([5] * 10, seed=seed)
        rejection = learn_rejection(*tensors(x, y), 10, false_accept=asked)
        realised.append(float(rejection.known(torch.from_numpy(more(20, 15)))[1].double().mean()))
    assert asked / 2 <= np.median(realised) <= asked * 2


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 5), (3, 1), (3, 5), (5, 5)])
def test_few_classes_let_no_crowd_in(n: int, k: int) -> None:
    """Two classes are each scored against the other alone, nearly alike: what they differ by tells nothing of strangers."""
    realised, held, refused = [], [], []
    for seed in range(12):
        x, y, more = clouds([k + 5] * n, seed=seed, within=0.3)
        new = np.arange(len(x)) % (k + 5) < k
        found = learn_rejection(*tensors(x[new], y[new]), n)
        realised.append(float(found.known(torch.from_numpy(more(10, 10)))[1].double().mean()))
        refused.append(1 - float(found.known(torch.from_numpy(x[~new]))[1].double().mean()))
        rate = found.reliability.false_accept
        assert rate is not None
        held.append(rate.low <= realised[-1] <= rate.high)
        assert any("classes tell little" in note for note in found.reliability.notes) == (n < 5)
    assert np.median(realised) <= 0.1
    assert np.mean(held) >= 0.75
    assert np.median(refused) <= 0.2


def test_intervals_are_wider_where_less_was_seen() -> None:
    def width(n: int, background: int = 0) -> float:
        x, y, more = clouds([3] * n)
        cohort = torch.from_numpy(more(background, 1)) if background else None
        rate = learn_rejection(*tensors(x, y), n, cohort, score="cosine").reliability.false_accept
        assert rate is not None
        return rate.high - rate.low

    assert width(2) > 1.5 * width(5) > 1.5 * width(20)
    assert width(2) > width(2, background=20) > width(2, background=60) > width(2, background=500)
    assert width(2, background=60) == pytest.approx(width(2, background=400), abs=0.02)  # it may be of as few classes


def test_with_one_example_a_class_the_background_sets_the_threshold() -> None:
    x, y, more = clouds([1] * 8)
    cohort = torch.from_numpy(more(500, 1))
    found = learn_rejection(*tensors(x, y), 8, cohort, score="cosine")
    strangers = Cosine(*tensors(x, y), 8, None)(cohort[250:]).amax(1).numpy()
    assert found.threshold == pytest.approx(np.quantile(strangers, 0.95 * 251 / 250))
    assert any("set by the background alone" in note for note in found.reliability.notes)
    few = learn_rejection(*tensors(x, y), 8, cohort[:20], score="cosine").reliability.notes
    assert any("10 items, is too few to tell a rate of 5.0%: give 38 items or more" in note for note in few)
    assert not any("background alone" in note for note in few)


def test_a_background_of_few_classes_does_not_set_the_threshold_alone() -> None:
    """A hundred items each of two classes, mixed: those held out are of the very classes that the score was learned from."""
    for seed in range(8):
        x, y, more = clouds([1] * 8, seed=seed)
        background = np.random.default_rng(seed).permutation(more(2, 100))
        found = learn_rejection(*tensors(x, y), 8, torch.from_numpy(background))
        realised = float(
            found.known(torch.from_numpy(more(10, 10)))[1].double().mean()
        )  # by the background alone, up to 0.4
        rate = found.reliability.false_accept
        assert rate is not None
        assert realised <= min(0.15, rate.high)
        assert not any("background alone" in note for note in found.reliability.notes)


def test_copies_of_examples_change_nothing() -> None:
    x, y, _ = clouds([3] * 6)
    once = learn_rejection(*tensors(x, y), 6)
    again, labels = np.concatenate([x, x[:4] * (1 + 1e-7), x]), np.concatenate([y, y[:4], y])
    twice = learn_rejection(*tensors(again, labels), 6)
    assert (twice.threshold, twice.claim) == (once.threshold, once.claim)
    note = "22 of the examples are copies of others of their class: what is there twice is counted once"
    assert twice.reliability == once.reliability._replace(notes=[note, *once.reliability.notes])
    assert learn_rejection(*tensors(x[::3].repeat(2, 0), y[::3].repeat(2)), 6).reliability.false_reject is None


def test_what_classes_are_called_changes_no_threshold() -> None:
    x, y, _ = clouds([3] * 24)
    new = np.random.default_rng(0).permutation(24)
    one, other = learn_rejection(*tensors(x, y), 24), learn_rejection(*tensors(x, new[y]), 24)
    assert other.threshold == pytest.approx(one.threshold, rel=1e-9)
    assert other.claim == pytest.approx(one.claim, rel=1e-9)


def test_known_items_are_accepted() -> None:
    x, y, _ = clouds([10] * 8, within=0.3)
    rejection = learn_rejection(*tensors(x[::2], y[::2]), 8)
    assert rejection.known(torch.from_numpy(x[1::2]))[1].double().mean() > 0.9


def test_a_threshold_of_ones_own_is_kept() -> None:
    x, y, more = clouds([3] * 6)
    auto = learn_rejection(*tensors(x, y), 6)
    own = learn_rejection(*tensors(x, y), 6, reject=0.25)
    assert own.threshold == 0.25
    assert own.claim == auto.claim
    items = torch.from_numpy(more(20, 2))
    scores, known = own.known(items)
    torch.testing.assert_close(scores, auto.scores(items), rtol=0, atol=0)
    assert known.tolist() == [score >= 0.25 for score in scores.tolist()]
    assert 0 < known.sum() < 40
    assert learn_rejection(*tensors(x[:3], y[:3]), 1, reject=0.25).threshold == 0.25  # where nothing else tells one


def test_trials_are_made_when_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def noted(*given: Any) -> Any:
        made.append(1)
        return _trials(*given)

    monkeypatch.setattr("multifsl.rejection._trials", noted)
    x, y, _ = clouds([3] * 6)
    own, auto = (learn_rejection(*tensors(x, y), 6, reject=reject) for reject in (0.25, "auto"))
    own.known(torch.from_numpy(x))
    auto.scores(torch.from_numpy(x))
    assert own.threshold == 0.25
    assert not made
    assert own.claim == auto.claim
    auto.known(torch.from_numpy(x))
    assert auto.reliability.false_accept is not None
    assert len(made) == 2  # one of each, once


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"score": "cosin"}, "cosine"),
        ({"false_accept": 0.0}, "false_accept must be a share between 0 and 1, not 0.0"),
        ({"false_accept": 1}, "false_accept must be a share between 0 and 1, not 1"),
        ({"cohort": 19}, "a background needs 20 items or more, not 19"),
        (
            {"n": 1},
            re.escape("one class alone tells nothing of what is unknown: give more classes, fit(..., background"),
        ),
    ],
)
def test_what_cannot_be_learned_is_said(changed: dict[str, Any], said: str) -> None:
    n = changed.pop("n", 3)
    x, y, more = clouds([3] * n)
    cohort = torch.from_numpy(more(changed.pop("cohort"), 1)) if "cohort" in changed else None
    with pytest.raises(MultifslError, match=said):
        learn_rejection(*tensors(x, y), n, cohort, **changed)


def test_one_class_and_a_cohort_are_enough() -> None:
    x, y, more = clouds([10], within=0.3)
    rejection = learn_rejection(*tensors(x[:5], y[:5]), 1, torch.from_numpy(more(100, 1)))
    assert rejection.known(torch.from_numpy(x[5:]))[1].all()
    assert rejection.known(torch.from_numpy(more(100, 1)))[1].double().mean() < 0.2


# ---- what can be expected ----


@pytest.mark.parametrize("counts", [[1] * 8, [5] * 8, UNEQUAL, [2, 2]])
@pytest.mark.parametrize("reject", ["auto", 0.0, -9.0, 9.0])
def test_rates_lie_in_their_intervals(counts: list[int], reject: Any) -> None:
    x, y, more = clouds(counts)
    for cohort in (None, torch.from_numpy(more(30, 1))):
        found = learn_rejection(*tensors(x, y), len(counts), cohort, reject=reject).reliability
        rates = [rate for rate in (found.false_accept, found.false_reject) if rate is not None]
        assert len(rates) == (1 if max(counts) == 1 else 2)
        for rate in rates:
            assert 0 <= rate.low <= rate.estimate <= rate.high <= 1
            assert rate.low < rate.high
        assert any("no background" in note for note in found.notes) == (cohort is None)
        if reject in (-9.0, 9.0):
            assert [rate.estimate for rate in rates] == ([1, 0] if reject == -9.0 else [0, 1])[: len(rates)]


def test_a_rate_reads_as_percentages() -> None:
    assert str(Rate(0.05, 0.0, 0.1234)) == "5.0% (0.0% to 12.3%)"


def test_one_example_a_class_tells_nothing_of_refusals() -> None:
    x, y, _ = clouds([1] * 6)
    found = learn_rejection(*tensors(x, y), 6).reliability
    assert found.false_reject is None
    assert any("one example a class" in note for note in found.notes)


def test_classes_that_are_one_cloud_are_named() -> None:
    x, y, _ = clouds([6] * 10, within=0.2)
    assert FewShotClassifier().fit(x, y).reliability_.overlaps == []
    names = np.array([f"class {k}" for k in [*range(10), 10]])
    both = np.concatenate([y, np.full(3, 10)])
    both[3:6], again = 10, np.concatenate([x, x[:3] + 0.01])  # half of class 0, and its like, as an eleventh
    overlaps = FewShotClassifier().fit(again, names[both]).reliability_.overlaps
    assert [(one.first, one.second) for one in overlaps] == [("class 0", "class 10")]
    assert overlaps[0].share >= 1 / 3


# ---- the classifier ----


def fitted(labels: Any = None, **settings: Any) -> tuple[FewShotClassifier, np.ndarray, np.ndarray]:
    """A model of eight classes; its examples, and items of other classes."""
    x, y, more = clouds([3] * 8)
    names = np.array([f"n{k}" for k in range(8)]) if labels is None else np.array(labels)
    return FewShotClassifier(**{"reject": "auto"} | settings).fit(x, names[y]), x, more(20, 3)


@pytest.mark.parametrize(
    ("labels", "own", "want"),
    [
        (None, None, "unknown"),
        (None, "none of them at all", "none of them at all"),
        (np.arange(8, dtype=np.int32), None, -1),
        (np.arange(8, dtype=np.uint8), None, -1),
        (np.arange(8), 99, 99),
        (np.arange(8), np.int64(99), 99),
    ],
)
def test_the_label_of_unknown_items(labels: Any, own: Any, want: Any) -> None:
    model, x, others = fitted(labels, unknown_label=own)
    got = model.predict(np.concatenate([x, others]))
    hand = model.score_samples(np.concatenate([x, others])) >= model.threshold_
    assert 0 < hand.sum() < len(hand)
    np.testing.assert_array_equal(got != want, hand)
    never = fitted(labels, reject=None, unknown_label=own)[0]
    plain = never.predict(np.concatenate([x, others]))
    assert plain.dtype == never.classes_.dtype
    np.testing.assert_array_equal(got[hand], plain[hand])
    answers = model.predict_all(np.concatenate([x, others]))
    np.testing.assert_array_equal(answers.labels, got)
    np.testing.assert_array_equal(answers.known, hand)
    np.testing.assert_array_equal(answers.scores, model.score_samples(np.concatenate([x, others])))
    np.testing.assert_array_equal(answers.probabilities, model.predict_proba(np.concatenate([x, others])))
    assert never.predict_all(x).scores is None


def test_a_threshold_between_two_floats_is_kept_to() -> None:
    """Scores are float32 where features are; a threshold just above one of them refuses it."""
    x, y, _ = clouds([3] * 8)
    model = FewShotClassifier(reject=0.0).fit(x.astype(np.float32), y)
    score = model.score_samples(x[:1].astype(np.float32))[0]
    for threshold, known in ((score, True), (np.nextafter(score, 9), False)):
        model.set_params(reject=float(threshold))
        assert model.predict_all(x[:1].astype(np.float32)).known.tolist() == [known]
        assert (model.predict(x[:1].astype(np.float32))[0] != -1) == known


@pytest.mark.parametrize(
    ("labels", "own", "said"),
    [
        (None, 7, "unknown_label=7 is of another kind than the labels, which are texts"),
        (np.arange(8), "none", "unknown_label='none' is of another kind than the labels, which are numbers"),
        (None, "n3", "a class is called 'n3', as unknown items would be; choose another unknown_label"),
        (np.arange(8) - 4, None, "a class is called -1, as unknown items would be"),
    ],
)
def test_a_label_that_cannot_be_is_refused(labels: Any, own: Any, said: str) -> None:
    with pytest.raises(MultifslError, match=said):
        fitted(labels, unknown_label=own)
    fitted(labels, unknown_label=own, reject=None)  # of which no use is made


@pytest.mark.parametrize("reject", ["no", True, float("nan"), "0.5"])
def test_a_threshold_that_is_none_is_refused(reject: Any) -> None:
    with pytest.raises(MultifslError, match='reject is None, "auto" or a threshold, not '):
        fitted(reject=reject)


def test_verify() -> None:
    model, x, others = fitted()
    for label in ("n2", np.str_("n2")):
        found = model.verify(label, x[6])
        assert found.accepted
        assert found.score >= found.threshold
    accepted = [model.verify("n2", item).accepted for item in others]
    assert np.mean(accepted) < 0.2
    with pytest.raises(MultifslError, match="there is no class 'n9'; known: n0, n1, n2"):
        model.verify("n9", x[0])


def test_predict_set_is_ordered_by_probability() -> None:
    model, x, others = fitted()
    items = np.concatenate([x, others])
    for labels, row in zip(model.predict_set(items, alpha=0.02), model.predict_proba(items), strict=True):
        order = [str(model.classes_[i]) for i in np.argsort(-row, kind="stable")]
        assert labels == order[: len(labels)]
    assert max(map(len, model.predict_set(items, alpha=0.02))) > 1
    for alpha in (0, 1, -0.1, float("nan")):
        with pytest.raises(MultifslError, match="alpha"):
            model.predict_set(items, alpha=alpha)


class Numbers(Encoder):
    """Texts of numbers, "1 2 3", as they are."""

    modality, dim = "text", 16

    def load(self, item: str) -> Tensor:
        return torch.tensor([float(part) for part in item.split()])

    def collate(self, loaded: Any) -> Tensor:
        return torch.stack(list(loaded))

    def forward(self, x: Any) -> Tensor:
        return x


def as_items(x: np.ndarray) -> list[str]:
    return [" ".join(map(repr, row.tolist())) for row in x.astype(np.float32)]


def test_a_background_is_read_as_examples_are() -> None:
    x, y, more = clouds([3] * 8)
    others, queries = more(40, 1) + 0.5, more(20, 2)
    features = FewShotClassifier(reject="auto").fit(x.astype(np.float32), y, background=others.astype(np.float32))
    for background in (as_items(others), iter(as_items(others))):
        items = FewShotClassifier(Numbers(), reject="auto", batch_size=7).fit(as_items(x), y, background=background)
        assert items.threshold_ == pytest.approx(features.threshold_, rel=1e-5)
        np.testing.assert_array_equal(items.predict(as_items(queries)), features.predict(queries.astype(np.float32)))
    assert features.threshold_ != FewShotClassifier().fit(x.astype(np.float32), y).threshold_
    with pytest.raises(MultifslError, match="a background needs 20 items or more, not 19"):
        FewShotClassifier(Numbers()).fit(as_items(x), y, background=as_items(others[:19]))
    with pytest.raises(MultifslError, match="a background needs 20 items or more, not 19"):
        FewShotClassifier().fit(x, y, background=others[:19])
    with pytest.raises(ValueError, match="X has 15 features, but FewShotClassifier is expecting 16"):
        FewShotClassifier().fit(x, y, background=others[:, :15])


@pytest.mark.parametrize("with_background", [True, False])
def test_a_saved_model_refuses_as_it_did(tmp_path: Path, with_background: bool) -> None:
    x, y, more = clouds(UNEQUAL)
    background = more(30, 1) if with_background else None
    model = FewShotClassifier(reject="auto", false_accept=0.1, reject_by="whitened").fit(x, y, background=background)
    model.save(tmp_path / "model")
    again = FewShotClassifier.load(tmp_path / "model")
    assert (again.reject, again.false_accept, again.reject_by) == ("auto", 0.1, "whitened")
    assert again.threshold_ == model.threshold_
    assert again.reliability_ == model.reliability_
    items = more(20, 2)
    np.testing.assert_array_equal(again.score_samples(items), model.score_samples(items))
    np.testing.assert_array_equal(again.predict(items), model.predict(items))


def test_a_shipped_encoder_refuses_by_its_own_cohort(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sheets = [(255 * (rng.random((28, 28)) < 0.2)).astype(np.uint8) for _ in range(3)]
    model = FewShotClassifier.from_pretrained("omniglot-prototypical").set_params(reject="auto").fit(sheets, [0, 1, 2])
    assert not any("no background" in note for note in model.reliability_.notes)
    model.save(tmp_path / "model")
    assert FewShotClassifier.load(tmp_path / "model").threshold_ == model.threshold_


def test_changes_equal_a_fit_from_scratch() -> None:
    x, y, more = clouds([3] * 8)
    background, new = more(30, 1), more(1, 4)
    names = np.array([f"n{k}" for k in y])
    model = FewShotClassifier(reject="auto").fit(x, names, background=background)
    seen = [model.threshold_]

    def check(x: np.ndarray, names: np.ndarray) -> None:
        fresh = FewShotClassifier(reject="auto").fit(x, names, background=background)
        assert model.threshold_ == pytest.approx(fresh.threshold_, rel=1e-9)
        np.testing.assert_array_equal(model.predict(x), fresh.predict(x))
        seen.append(model.threshold_)

    model.enroll("m", new)
    x, names = np.concatenate([x, new]), np.append(names, ["m"] * 4)
    check(x, names)
    model.rename("n7", "a")
    names = np.where(names == "n7", "a", names)
    check(x, names)
    model.forget("n0")
    x, names = x[names != "n0"], names[names != "n0"]
    check(x, names)
    assert seen[0] != seen[1] != seen[3]


@pytest.mark.parametrize("spec", ["maml(steps=2)", "ridge", "auto"])
@pytest.mark.filterwarnings("ignore:the weights of")
def test_any_method_can_refuse(spec: str) -> None:
    torch.manual_seed(0)
    x, y, more = clouds([4] * 5, within=0.3)
    x, far = x.astype(np.float32), more(20, 2).astype(np.float32)
    model = FewShotClassifier(method=spec, reject="auto").fit(x, y)
    np.testing.assert_array_equal(model.predict(far) == -1, model.score_samples(far) < model.threshold_)
    assert (model.predict(far) == -1).mean() > 0.6
    plain = FewShotClassifier(reject="auto").fit(x, y)
    assert model.threshold_ == plain.threshold_  # scores go by embeddings, whatever the method


def test_a_thousand_classes(spied: list[Spied]) -> None:
    x, y, more = clouds([3] * 1000, dim=32)
    start = time.process_time()
    model = FewShotClassifier(reject="auto").fit(x.astype(np.float32), y)
    assert -1 in model.predict(more(20, 1).astype(np.float32))
    assert time.process_time() - start < 3
    assert np.isfinite(learn_rejection(*tensors(x, y), 1000, score="cosine").threshold)
    assert max(len(part) for score in spied for part in score.asked) <= 256  # a table [256, N] is the most that is held


def test_all_of_few_classes_are_left_out_however_many_examples_they_have() -> None:
    z, y = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)), torch.arange(10).repeat_interleave(500)
    trials = _trials(SCORES["cosine"], z, y, 10, None)
    assert sorted(set(trials.label.tolist())) == list(range(10))
    assert len(trials.label) == len(trials.known) == 1000
    z, y = torch.randn(600, 8, generator=torch.Generator().manual_seed(0)), torch.arange(300).repeat_interleave(2)
    assert len(set(_trials(SCORES["cosine"], z, y, 300, None).label.tolist())) == 120  # four tenths


def groups_of(classes: int, each: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Examples [classes * each, 16] around means that are apart, and labels."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(each)
    return torch.randn(classes, 16, generator=draw)[y] + 0.3 * torch.randn(len(y), 16, generator=draw), y


def test_a_twin_is_named_and_does_not_close_the_door() -> None:
    """A class that is enrolled twice, under two names: known items are still let in."""
    for classes in (5, 10):
        z, y = groups_of(classes, 10)
        x, y, held = z[::2], y[::2], z[1::2]
        x[y == 1], held[y == 1] = groups_of(1, 10)[0][::2] + 2, groups_of(1, 10)[0][1::2] + 2
        x[y == 0], held[y == 0] = groups_of(1, 10)[0][1::2] + 2, groups_of(1, 10)[0][::2] + 2
        found = learn_rejection(x, y, classes)
        assert float(found.known(held)[1].float().mean()) > 0.7
        assert [(a, b) for a, b, _ in found.reliability.overlaps] == [(0, 1)]
        assert any("look like others" in note for note in found.reliability.notes)


def test_folds_go_by_the_score_of_the_whole() -> None:
    """Past 2,000 examples `mixed` is `whitened`, also in folds, which have fewer."""
    z, y = groups_of(20, 105)
    found = learn_rejection(z, y, 20)
    assert float(found.known(z)[1].float().mean()) > 0.8
    assert type(found.score) is SCORES["whitened"]


def test_a_class_of_many_examples_counts_as_one() -> None:
    z, y = groups_of(6, 60)
    few = torch.cat([torch.arange(60), *(torch.arange(k * 60, k * 60 + 5) for k in range(1, 6))])
    even = torch.cat([torch.arange(k * 60, k * 60 + 5) for k in range(6)])
    one, other = (learn_rejection(z[i], y[i], 6, score="cosine").threshold for i in (few, even))
    assert abs(one - other) < 0.1


def test_the_rate_of_accepted_items_is_one_over_classes() -> None:
    z, y = groups_of(6, 60)
    few = torch.cat([torch.arange(60), *(torch.arange(k * 60, k * 60 + 5) for k in range(1, 6))])
    trials = _trials(SCORES["cosine"], z[few], y[few], 6, None)
    threshold = float(np.median(trials.unknown))
    rate = learn_rejection(z[few], y[few], 6, score="cosine", reject=threshold).reliability.false_accept
    by_class = [(trials.unknown[trials.label == k] >= threshold).mean() for k in range(6)]
    assert rate is not None and rate.estimate == pytest.approx(np.mean(by_class))
    assert abs(rate.estimate - 0.5) > 0.01  # that of items


def test_no_class_gets_the_label_of_unknown_items() -> None:
    model = FewShotClassifier(reject="auto").fit([[0.0, 1.0], [0.1, 1.0], [1.0, 0.0], [1.0, 0.1]], ["a", "a", "b", "b"])
    with pytest.raises(MultifslError, match="a class is called 'unknown'"):
        model.enroll("unknown", [[-1.0, 0.0]])
    with pytest.raises(MultifslError, match="a class is called 'unknown'"):
        model.rename("a", "unknown")
    assert model.classes_.tolist() == ["a", "b"]
