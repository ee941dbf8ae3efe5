"""Enrolling and forgetting while a model is in use. Oracles: a fit from scratch on the same examples; the answers of whole states;
counts of what is read, copied and computed."""

import copy
import math
import pickle
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from multifsl import learned, rejection
from multifsl.bank import pad_together
from multifsl.classifier import FewShotClassifier
from multifsl.encoder import Encoder
from multifsl.episode import Batch, first_leaf
from multifsl.errors import BadItem, MultifslError
from multifsl.method import Method
from multifsl.methods.prototypical import Prototypical
from multifsl.registry import build
from multifsl.rejection import learn_rejection

SPECS = {
    "prototypical(distance='cosine')": 1e-9,
    "prototypical(distance='euclidean')": 1e-9,
    "matching": 1e-9,
    "ridge": 1e-9,
    "anil(steps=2, lr=0.1, max_way=5)": 1e-5,  # weights of float32; classes are told apart by their places
    "anil(steps=2, lr=0.1, head='shared')": 1e-5,
}
LABELS = st.sampled_from(["a", "bb", "c", "dddd"])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("enroll"), LABELS, st.integers(1, 3)),
        st.tuples(st.just("partial_fit"), st.lists(LABELS, min_size=1, max_size=4)),
        st.tuples(st.just("forget"), LABELS),
        st.tuples(st.just("rename"), LABELS, LABELS),
        st.tuples(st.just("predict")),
    ),
    max_size=8,
)


def fitted(spec: str, X: np.ndarray, y: list[str]) -> FewShotClassifier:
    torch.manual_seed(0)  # the weights of a head are drawn
    return FewShotClassifier(method=spec).fit(X, y)


def changed(
    model: FewShotClassifier, X: np.ndarray, y: list[str], change: Any, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Do a change to a model, and to the examples that it should have; where it is not allowed, see that it is refused."""
    name, *rest = change
    if name == "predict":
        model.predict(X)
    elif name in ("enroll", "partial_fit"):
        more = [rest[0]] * rest[1] if name == "enroll" else rest[0]
        x = rng.normal(size=(len(more), 3)) + 3
        model.enroll(rest[0], x) if name == "enroll" else model.partial_fit(x, more)
        return np.concatenate([X, x]), y + more
    elif name == "forget":
        if rest[0] not in y or set(y) == {rest[0]}:
            with pytest.raises(MultifslError, match="no class|only class"):
                model.forget(rest[0])
            return X, y
        model.forget(rest[0])
        kept = [i for i, label in enumerate(y) if label != rest[0]]
        return X[kept], [y[i] for i in kept]
    else:
        old, new = rest
        if old not in y or new in set(y) - {old}:
            with pytest.raises(MultifslError, match=f"no class '{old}'; known: |there is a class '{new}' already"):
                model.rename(old, new)
            return X, y
        model.rename(old, new)
        return X, [new if label == old else label for label in y]
    return X, y


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.filterwarnings("ignore:there is one class|the weights of")
def test_any_changes_equal_a_fit_from_scratch(spec: str) -> None:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(CHANGES)
    def check(changes: list[Any]) -> None:
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(3, 3)) + 3, ["c", "a", "c"]
        model = fitted(spec, X, y)
        for change in changes:
            X, y = changed(model, X, y, change, rng)
        scratch = fitted(spec, X, y)
        assert model.classes_.tolist() == scratch.classes_.tolist()
        assert model.classes_.dtype == scratch.classes_.dtype
        assert model.counts_ == scratch.counts_ == {label: y.count(label) for label in sorted(set(y))}
        assert model.support_labels_.tolist() == y
        queries = rng.normal(size=(6, 3)) + 3
        np.testing.assert_allclose(
            model.decision_function(queries), scratch.decision_function(queries), rtol=SPECS[spec], atol=SPECS[spec]
        )

    check()


def test_enroll_starts_a_model_and_takes_numpys_labels() -> None:
    model = FewShotClassifier().enroll(np.int64(7), [[1.0, 0.0]]).enroll(np.int64(3), [[0.0, 1.0], [0.0, 2.0]])
    assert model.counts_ == {3: 2, 7: 1}
    assert model.predict([[0.0, 5.0]]).tolist() == [3]
    model.rename(np.int64(3), 9)
    assert model.predict([[0.0, 5.0], [1.0, 0.0]]).tolist() == [9, 7]


def test_what_cannot_be_changed_is_said_and_changes_nothing() -> None:
    model = FewShotClassifier().fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    for change, says in [
        (lambda: model.rename("z", "c"), "no class 'z'; known: a, b"),
        (lambda: model.rename("a", "b"), "class 'b' already"),
        (lambda: model.rename("a", 3), "known labels are texts, the new ones numbers"),
        (lambda: model.enroll(3, [[1.0, 0.0]]), "known labels are texts, the new ones numbers"),
        (lambda: model.enroll(None, [[1.0, 0.0]]), "labels must be texts or numbers"),
        (lambda: model.enroll(["a"], [[1.0, 0.0]]), r"labels must be texts or numbers, not \['a'\]"),
        (lambda: model.forget(["a"]), r"labels must be texts or numbers, not \['a'\]"),
        (lambda: model.rename("a", ["b"]), r"labels must be texts or numbers, not \['b'\]"),
        (lambda: model.rename("a", None), "labels must be texts or numbers, not None"),
        (lambda: model.verify({"a"}, [1.0, 0.0]), "labels must be texts or numbers, not {'a'}"),
        (lambda: model.enroll("c", [[1.0, 0.0, 2.0]]), "3 features.*expecting 2"),
        (lambda: model.enroll("c", np.empty((0, 2))), "0 sample"),
    ]:
        with pytest.raises(ValueError, match=says):
            change()
    assert model.counts_ == {"a": 1, "b": 1}
    unfitted = FewShotClassifier()
    steps: list[Callable[[], Any]] = [lambda: unfitted.forget("a"), lambda: unfitted.predict([[1.0]])]
    for change in [*steps, lambda: unfitted.rename("a", "b")]:
        with pytest.raises(ValueError, match="nothing yet.*`fit`"):
            change()
    assert not [name for name in ("classes_", "counts_", "n_features_in_", "state_") if hasattr(unfitted, name)]


@pytest.mark.filterwarnings("ignore:the weights of")
def test_more_classes_than_a_head_has_are_refused_and_change_nothing() -> None:
    model = FewShotClassifier(method="anil(max_way=2)").fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    with pytest.raises(MultifslError, match="at most 2 classes apart, not 3"):
        model.enroll("c", [[1.0, 1.0]])
    assert model.counts_ == {"a": 1, "b": 1}


@pytest.mark.filterwarnings("ignore:the weights of")
def test_places_that_nobody_trained_are_built_anew_for_more_classes() -> None:
    X = np.eye(3).repeat(2, 0)
    model = fitted("anil(lr=0.5)", X[:4], list("aabb"))
    assert model.method_.max_way == 2
    torch.manual_seed(0)
    model.enroll("c", X[4:])
    np.testing.assert_allclose(model.predict_proba(X), fitted("anil(lr=0.5)", X, list("aabbcc")).predict_proba(X))
    trained = build(
        "methods", "anil(max_way=2)", encoder=build("encoders", "conv4(width=4, channels=1, image_size=16)")
    )
    photos = [np.full((16, 16), 40 * k, dtype=np.uint8) for k in range(3)]
    model = FewShotClassifier(trained.encoder, trained).fit(photos[:2], ["a", "b"])
    with pytest.raises(MultifslError, match="at most 2 classes apart, not 3"):
        model.enroll("c", photos[2:])


def test_one_class_left_of_which_nothing_can_be_told_is_warned_of() -> None:
    X = np.eye(3)[[0, 0, 1, 1]]
    model = FewShotClassifier(reject="auto").fit(
        X, list("aabb"), background=np.random.default_rng(0).normal(size=(20, 3))
    )
    with warnings.catch_warnings(action="error"):
        assert model.forget("b").predict(X[:1]).tolist() == ["a"]
        FewShotClassifier(reject=0.5).fit(X[:2], ["a", "a"]).predict(X)  # each answer is that class, or unknown
    model = FewShotClassifier(reject="auto").fit(X, list("aabb"))
    with pytest.warns(UserWarning, match=r"cannot answer: give more classes, fit\(..., background=items\)") as told:
        model.forget("b")
    assert [w.filename for w in told] == [__file__]
    with pytest.raises(MultifslError, match="one class alone"):
        model.predict(X)
    scores = model.score_samples(X)  # which need no threshold
    np.testing.assert_array_equal(scores, model.set_params(reject=None).score_samples(X))
    assert scores[0] > scores[2]
    model.enroll("b", X[2:]).set_params(reject="auto").predict(X)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])  # noqa: S301
def test_a_copy_is_one_of_its_own(copied: Callable[[FewShotClassifier], FewShotClassifier]) -> None:
    model = FewShotClassifier().enroll("a", [[1.0, 0.0]]).enroll("b", [[0.0, 1.0]])
    before = model.predict_proba([[1.0, 2.0]])
    other = copied(model).enroll("c", [[1.0, 1.0]]).forget("a")
    assert (model.counts_, other.counts_) == ({"a": 1, "b": 1}, {"b": 1, "c": 1})
    np.testing.assert_array_equal(model.predict_proba([[1.0, 2.0]]), before)
    with model._writing:  # a copy does not wait for the other's lock
        worker = threading.Thread(target=other.enroll, args=("d", [[2.0, 1.0]]))
        worker.start()
        worker.join(60)
    assert other.counts_ == {"b": 1, "c": 1, "d": 1}
    assert not hasattr(clone(model), "classes_")


# ---- threads ----


@pytest.mark.parametrize("spec", ["prototypical(distance='cosine')", "anil(steps=1, lr=0.5, max_way=3)"])
@pytest.mark.filterwarnings("ignore:the weights of")
def test_threads_see_whole_states_only(spec: str) -> None:
    """Eight threads ask while another one enrols, renames and forgets a class. Its examples are unlike all others, and its labels
    stand before, between and behind the others', so that labels of one state beside columns of another give themselves away."""
    corners = np.eye(3) * 4
    model = fitted(spec, corners[:2], ["b", "d"])
    whole = [model.predict_proba(corners)]
    names = ["a", "c", "e"]
    allowed = {tuple(model.predict(corners))}
    for name in names:
        model.enroll(name, corners[2:])
        whole.append(model.predict_proba(corners))
        allowed.add(tuple(model.predict(corners)))
        model.forget(name)
    done, failures, asked = threading.Event(), [], [0] * 8

    def ask(own: int) -> None:
        try:
            while not done.is_set():
                labels, odds = tuple(model.predict(corners)), model.predict_proba(corners)
                assert labels in allowed, labels
                assert any(odds.shape == w.shape and np.allclose(odds, w, atol=1e-5) for w in whole), odds
                assert model.counts_.keys() <= {"b", "d", *names}
                asked[own] += 1
        except BaseException as error:  # noqa: BLE001 (told below)
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        rounds = 0
        while not failures and (rounds < 20 or min(asked) < 3):
            model.enroll("a", corners[2:]).rename("a", "c").rename("c", "e").forget("e")
            rounds += 1
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failures, failures[0]
    assert model.counts_ == {"b": 1, "d": 1}


def test_changes_wait_for_each_other() -> None:
    model = FewShotClassifier().fit(np.eye(4)[:1].repeat(2, 0), ["x", "y"])

    def enrol(own: int) -> None:
        for i in range(20):
            model.enroll(f"{own} {i % 5}", np.eye(4)[own : own + 1])

    threads = [threading.Thread(target=enrol, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.counts_ == {"x": 1, "y": 1} | {f"{own} {i}": 4 for own in range(4) for i in range(5)}


@pytest.mark.parametrize("spec", ["maml(steps=1, lr=0.4, max_way=3)", "finetune(steps=1, lr=0.1)"])
@pytest.mark.filterwarnings("ignore:the weights of")
def test_passes_side_by_side_leave_each_other_and_the_encoder_alone(spec: str) -> None:
    """Two threads are held until both are inside the encoder. Oracle: the same questions one after the other."""
    torch.manual_seed(0)
    encoder = build("encoders", "conv4(width=4, channels=1, image_size=16)")
    meet: list[threading.Barrier] = []

    def wait(*_: Any) -> None:
        for barrier in meet:
            barrier.wait(20)

    encoder.norms[1].register_forward_pre_hook(wait)
    photos = list(np.random.default_rng(0).integers(0, 255, (6, 16, 16), dtype=np.uint8))
    model = FewShotClassifier(encoder, spec, reject=0.0).fit(photos, list("aabbcc"))
    weights = {name: value.clone() for name, value in model.method_.state_dict().items()}
    odds, scores = model.predict_proba(photos), model.score_samples(photos)
    for first, second in [("predict_proba", "predict_proba"), ("predict_proba", "score_samples")]:
        meet[:] = [threading.Barrier(2)]
        found: dict[int, np.ndarray] = {}

        def ask(own: int, name: str, found: dict[int, np.ndarray] = found) -> None:
            found[own] = getattr(model, name)(photos)

        threads = [threading.Thread(target=ask, args=pair) for pair in enumerate([first, second])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        meet.clear()
        for own, name in enumerate([first, second]):
            np.testing.assert_allclose(found[own], odds if name == "predict_proba" else scores, atol=1e-6)
        after = model.method_.state_dict()
        assert all(torch.equal(after[name], value) for name, value in weights.items())


@pytest.mark.parametrize("reject", ["auto", 0.5])
def test_what_a_change_costs_is_paid_by_one_thread(monkeypatch: pytest.MonkeyPatch, reject: Any) -> None:
    calls = []

    def slow(name: str, step: Any) -> Any:
        def slowly(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            time.sleep(0.05)
            return step(*args, **kwargs)

        return slowly

    monkeypatch.setattr(learned, "learn_rejection", slow("score", learn_rejection))
    monkeypatch.setattr(rejection, "_trials", slow("trials", rejection._trials))
    X = np.eye(3).repeat(2, 0)
    model = FewShotClassifier(reject=reject).fit(X, list("aabbcc")).enroll("a", X[:1])
    threads = [threading.Thread(target=model.predict, args=(X,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == (["score", "trials"] if reject == "auto" else ["score"])


# ---- cost ----


def test_enrolments_copy_each_example_a_logarithm_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [0]
    joined = pad_together

    def counted(parts: Any) -> Any:
        x = joined(parts)
        rows[0] += len(x)
        return x

    monkeypatch.setattr(learned, "pad_together", counted)
    X = np.random.default_rng(0).normal(size=(513, 8))
    model = FewShotClassifier(method="prototypical").fit(X[:1].repeat(2, 0), ["x", "y"])
    rows[0] = 0
    for i in range(512):
        model.enroll(f"c{i}", X[i : i + 1])
    assert rows[0] <= 514 * math.log2(514)
    parts = model._now.parts
    assert len(parts) <= math.log2(514) + 1
    assert (
        sum(first_leaf(part.x).untyped_storage().nbytes() for part in parts) == 514 * 8 * 8
    )  # nothing but the examples is held


def test_a_method_that_grows_sees_an_example_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    adapt = Prototypical.adapt

    def counted(self: Prototypical, support: Batch, present: torch.Tensor) -> Any:
        seen.append(len(support.y))
        return adapt(self, support, present)

    monkeypatch.setattr(Prototypical, "adapt", counted)
    X = np.random.default_rng(0).normal(size=(64, 8))
    model = FewShotClassifier().fit(X[:40], ["x", "y"] * 20)
    for i in range(40, 64):
        model.enroll(f"c{i}", X[i : i + 1]).predict(X[:1])
    model.predict(X)
    assert seen == [40] + [1] * 24


# ---- items that come one by one ----


class Sheet:
    """An item that can be told from its numbers, and says when it is gone."""

    def __init__(self, value: float) -> None:
        self.value = value


class Counting(Encoder):
    """Two numbers from each sheet; notes the largest batch."""

    modality, dim = "image", 2

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def load(self, item: Sheet) -> torch.Tensor:
        if item.value == 999:
            return torch.tensor([math.nan, 1.0])
        return torch.tensor([item.value, 1.0])

    def collate(self, loaded: Any) -> torch.Tensor:
        self.largest = max(self.largest, len(loaded))
        return torch.stack(list(loaded))

    def forward(self, x: Any) -> torch.Tensor:
        return x


def test_iterators_are_read_block_by_block() -> None:
    alive: weakref.WeakSet[Sheet] = weakref.WeakSet()
    most = [0]

    def sheets(values: list[float]) -> Iterator[Sheet]:
        for value in values:
            sheet = Sheet(value)
            alive.add(sheet)
            most[0] = max(most[0], len(alive))
            yield sheet

    shown: list[int] = []

    def progress(blocks: Any, description: str, total: int | None) -> Iterator[Any]:
        for block in blocks:
            shown.append(len(block))
            yield block

    encoder = Counting()
    values, y = [float(v) for v in [*range(50), *range(-50, 0)]], ["up"] * 50 + ["down"] * 50
    model = FewShotClassifier(encoder, "prototypical", batch_size=8).fit(sheets(values), y)
    model.enroll("far", sheets([500.0] * 20))
    assert model.counts_ == {"down": 50, "far": 20, "up": 50}
    model._progress = progress
    asked = [-20.0, 600.0, 10.0] * 700
    answers = model.predict(sheets(asked))
    assert answers.tolist() == ["down", "far", "up"] * 700
    assert shown == [8] * 262 + [4]
    assert most[0] <= 2 * 8  # the block that is being read, and the one before
    assert encoder.largest == 8
    by_list = FewShotClassifier(encoder, "prototypical").fit([Sheet(v) for v in values], y)
    by_list.enroll("far", [Sheet(500.0)] * 20)
    np.testing.assert_array_equal(
        by_list.predict_proba([Sheet(v) for v in asked[:9]]), model.predict_proba(sheets(asked[:9]))
    )


def test_what_is_wrong_with_an_iterator_is_said() -> None:
    model = FewShotClassifier(Counting(), "prototypical", batch_size=8)
    for X, y, says in [
        (iter([Sheet(1.0)] * 3), ["a", "b"], "3 items.*2 labels"),
        (iter([]), ["a"], "no items"),
        (iter([Sheet(1.0)] * 10 + [Sheet(999.0)]), ["a"] * 11, "item 10.*not finite"),
    ]:
        with pytest.raises(MultifslError, match=says):
            model.fit(X, y)
    model.fit(iter([Sheet(1.0), Sheet(2.0)]), ["a", "b"])
    with pytest.raises(MultifslError, match="no items"):
        model.predict(iter([]))
    with pytest.raises(MultifslError, match="no items"):
        model.enroll("c", iter([]))
    with pytest.raises(BadItem, match="item 9.*not finite"):
        model.predict(iter([Sheet(1.0)] * 9 + [Sheet(999.0)]))
    assert isinstance(model.method_, Method)
    assert model.counts_ == {"a": 1, "b": 1}
