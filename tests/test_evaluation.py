"""Evaluation against loops in numpy, and against figures that an independent script gave on real data."""

import inspect
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from torch import Tensor

import multifsl
from multifsl import evaluation
from multifsl.bank import BadItemWarning, Bank, sampler_of
from multifsl.cache import EmbeddingCache
from multifsl.checkpoint import own_weights, save_run
from multifsl.defaults import open_encoder
from multifsl.encoder import Features
from multifsl.episode import UNKNOWN, EpisodeSampler
from multifsl.episode_file import open_episodes
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.evaluation import CHUNK, Drawn, Evaluation, answer, blocks, embedded, episode_accuracies, highest, solve
from multifsl.intervals import half_width
from multifsl.leaks import find_leaks
from multifsl.methods.prototypical import Prototypical
from multifsl.registry import build
from multifsl.task import Items, Task, check_split
from tests.needs import needs_data, needs_minilm
from tests.reference import prototypical


def features(classes: int = 8, count: int = 9, spread: float = 1.2) -> tuple[np.ndarray, Items]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    x = rng.normal(size=(classes, 5))[labels] + spread * rng.normal(size=(len(labels), 5))
    return x, Items(list(x), labels, [str(i) for i in range(classes)])


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_accuracies_equal_a_plain_loop(distance: str) -> None:
    """Each episode's items, then the paper's sums over them, then the share of right arg-maxes."""
    x, items = features()
    method = build("methods", f"prototypical(distance={distance!r})", encoder=Features(5)).double()
    found = episode_accuracies(method, items, way=4, shot=2, query=3, episodes=40, seed=3)
    sampler = EpisodeSampler(items.labels, way=4, shot=2, query=3, seed=3)
    for i, accuracy in enumerate(found):
        task = sampler.task(i // CHUNK, i % CHUNK)
        scores = prototypical.logits(x[task.support], task.support_y, x[task.query], 4, distance)
        assert accuracy == pytest.approx(np.mean(scores.argmax(1) == task.query_y), abs=1e-6)
    assert 0.3 < found.mean() < 0.95 and found.std() > 0  # neither trivial nor chance


def test_the_interval_holds_what_it_says() -> None:
    """Of 300 evaluations of 50 episodes, about 95 % cover the mean over very many."""
    _, items = features()
    method = build("methods", "prototypical", encoder=Features(5)).double()
    bank = Bank(torch.from_numpy(np.stack(items.items)), items)
    scores = episode_accuracies(method, bank, way=4, shot=1, query=3, episodes=15_000, seed=0).reshape(300, 50)
    covered = [abs(s.mean() - scores.mean()) < half_width(s) for s in scores]
    assert 0.90 < np.mean(covered) < 0.985  # 0.95 with a standard error of 0.013


def test_a_stored_interval_is_the_formula() -> None:
    scores = np.array([0.2, 0.4, 0.9])
    assert half_width(scores) == pytest.approx(1.96 * np.sqrt(((scores - 0.5) ** 2).sum() / 2) / np.sqrt(3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes a run, or a task and an encoder"),
        ({"encoder": "conv4"}, "takes a run, or a task and an encoder"),
        ({"task": "banking77", "encoder": "conv4"}, r"reads image items, but the task .* has text items"),
        (
            {"task": "banking77", "encoder": "transformer", "split": "dev"},
            "no split 'dev'; known: train, val, test, all",
        ),
        ({"task": "banking77", "encoder": "transformer", "episodes": 1}, "at least 2 episodes"),
        ({"run": "/no/such/run"}, "there is no run at /no/such/run"),
        ({"way": "every"}, "way must be a whole number or a pair of whole numbers or 'all', not 'every'"),
        ({"unknown": -1}, "unknown must be a whole number from 0, not -1"),
        ({"outside": -1}, "outside must be a whole number from 0, not -1"),
        ({"unknown": "all"}, "unknown must be a whole number, not 'all'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*random weights")
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(MultifslError, match=message):
        multifsl.evaluate(**options)


def images(folder: Path, seed: int = 0) -> None:
    """Ten classes of three pictures of noise."""
    from PIL import Image

    for c in range(10):
        (folder / f"c{c}").mkdir()
        for i in range(3):
            noise = np.random.default_rng(seed + 9 * c + i).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"c{c}" / f"{i}.png")


def test_random_weights_are_said(tmp_path: Path) -> None:
    images(tmp_path)
    with pytest.warns(UserWarning, match="random weights"):
        result = multifsl.evaluate(task=f"images({str(tmp_path)!r})", encoder="conv4", way=2, query=2, episodes=10)
    assert result.to_json()["method"] == "prototypical(distance='cosine', temperature='learned')"


# ---- a toy task: Gaussian classes, and items of none ----

STRANGERS = 7


class Toy(Task):
    """Eight classes of nine items [5] a split, and some items of no class."""

    modality = "features"

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def items(self, split: str) -> Items:
        rng = np.random.default_rng((self.seed, len(check_split(split))))
        labels = np.repeat(np.arange(8), 9)
        x = rng.normal(size=(8, 5))[labels] + 0.9 * rng.normal(size=(len(labels), 5))
        return Items(list(x), labels, [f"{split} {c}" for c in range(8)])

    def unknowns(self, split: str) -> Sequence[Any]:
        return list(np.random.default_rng(len(split)).normal(size=(STRANGERS, 5)))


class Counting(Features):
    """Counts its batches, and is somebody's: its embeddings are worth keeping."""

    pretrained = True

    def __init__(self, dim: int = 5) -> None:
        super().__init__(dim)
        self.count = 0

    def forward(self, x: Any) -> Tensor:
        self.count += 1
        return super().forward(x)


class Picky(Features):
    """Cannot read a vector that begins with a number above 1."""

    def load(self, item: Any) -> Tensor:
        if item[0] > 1:
            raise BadItem("it begins above 1")
        return super().load(item)


class Adaptable(Picky):
    """With weights, for a method that adapts the encoder."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__(dim)
        self.layer = torch.nn.Linear(dim, dim, dtype=torch.float64)

    def forward(self, x: Any) -> Tensor:
        return self.layer(x).float()


def evaluated(task: Task | None = None, **options: Any) -> Evaluation:
    defaults = {
        "encoder": Features(5),
        "method": "prototypical",
        "way": 3,
        "shot": 2,
        "query": 2,
        "episodes": 70,
        "seed": 1,
    }
    return multifsl.evaluate(task=task or Toy(), **{**defaults, **options})


def test_figures_equal_a_plain_loop() -> None:
    """With classes that are not the episode's among the queries."""
    found, items = evaluated(unknown=2), Toy().items("test")
    x, sampler = np.stack(items.items), EpisodeSampler(items.labels, way=3, shot=2, query=2, unknown=2, seed=1)
    scores: list[float] = []
    highest, is_known, nll = [], [], []
    for i in range(70):
        task = sampler.task(i // CHUNK, i % CHUNK)
        logits = prototypical.logits(x[task.support], task.support_y, x[task.query], 3)
        known = task.query_y != UNKNOWN
        scores.append(np.mean(logits[known].argmax(1) == task.query_y[known]))
        nll.append(prototypical.loss(logits[known], task.query_y[known]))
        highest += logits.max(1).tolist()
        is_known += known.tolist()
    assert found.details["scores"] == pytest.approx(scores, abs=1e-6)
    assert found.accuracy == pytest.approx(np.mean(scores)) and 0.5 < found.accuracy < 0.95
    assert found.ci95 == pytest.approx(half_width(np.array(scores)))
    assert found.nll == pytest.approx(np.mean(nll))
    assert found.unknown is not None
    # two queries whose highest logits are equal may be rounded either way: one pair of 118,000
    assert found.unknown["auroc"] == pytest.approx(oracle.roc_auc_score(is_known, highest), abs=1e-4)
    assert found.verification is None and evaluated().unknown is None
    json.dumps(found.to_json(), allow_nan=False)


def test_speech_is_verified() -> None:
    class Voices(Toy):
        modality = "speech"

    class Voice(Features):
        modality = "speech"

    found, silent = evaluated(Voices(), encoder=Voice(5)), evaluated()
    assert found.accuracy == silent.accuracy
    assert found.verification is not None and silent.verification is None
    assert found.details["detection"] is not None and silent.details["detection"] is None
    assert 0 < found.verification["equal_error_rate"] < 0.5


def test_all_classes_at_once() -> None:
    found = evaluated(way="all", shot=1, episodes=20)
    assert found.way == 8 and found.ci95_classes is None
    assert found.details == evaluated(way=8, shot=1, episodes=20).details
    assert {one["queries"] for one in found.details["classes"]} == {20 * 2}


@pytest.mark.parametrize("method", ["prototypical", "prototypical(distance='cosine')"])
def test_each_way_to_the_answers_gives_the_same(method: str) -> None:
    """By sampler, as a list, one by one, and as accuracies alone."""
    items = Toy().items("test")
    learner = build("methods", method, encoder=Features(5)).double()
    bank = embedded(learner, items)
    sampler = sampler_of(items, way=(2, 4), shot=1, query=2, unknown=1, seed=3)
    tasks = [task for block in blocks(sampler, 70) for task in block]
    assert len(tasks) == 70 and [len(block) for block in blocks(sampler, 70)] == [21, 24, 25]  # of 2, 3 and 4 ways
    found, listed = answer(learner, bank, sampler, 70), answer(learner, bank, tasks, 70)
    first, single = answer(learner, bank, tasks[:20], 20), [answer(learner, bank, [task], 1) for task in tasks[:20]]
    for key in ("scores", "episode", "item", "true", "predicted", "confidence", "nll", "brier", "known", "outside"):
        np.testing.assert_array_equal(getattr(listed, key), getattr(found, key), err_msg=key)
        if key != "episode":
            np.testing.assert_allclose(
                np.concatenate([getattr(one, key) for one in single]), getattr(first, key), rtol=1e-9
            )
    np.testing.assert_allclose(solve(learner, bank, sampler, 70), found.scores, rtol=1e-6)


class Failing(Prototypical):
    """Answers nothing where a query begins with a number above 1."""

    def classify(self, state: Any, x: Any) -> Tensor:
        return super().classify(state, x).where(x[:, :1] <= 1, torch.nan)


def test_what_diverges_is_counted_and_told() -> None:
    items = Toy().items("test")
    bank = Bank(torch.from_numpy(np.stack(items.items)), items)
    sampler = sampler_of(items, way=3, shot=1, query=2, seed=0)
    lost = np.array([(bank.x[task.query, 0] > 1).any().item() for task in sampler.tasks(0, 32)])  # type: ignore[index]
    assert 0 < lost.sum() < 32
    says = f"in {lost.sum()} of 32 episodes the adaptation diverged"
    with pytest.warns(UserWarning, match=says):
        found = answer(Failing(Features(5)), bank, sampler, 32)
    with pytest.warns(UserWarning, match=says):
        solve(Failing(Features(5)), bank, sampler, 32)
    assert found.diverged == lost.sum()
    clean = answer(Prototypical(Features(5)), bank, sampler, 32)
    np.testing.assert_array_equal(found.scores[~lost], clean.scores[~lost])


# ---- queries of no class ----


def test_queries_from_outside() -> None:
    """The same episodes as without them; what they are told by is the highest logit."""
    found, without = evaluated(outside=3), evaluated()
    for told in (found.details, without.details):
        told.pop("coverage")  # over which answers to them count as wrong
    assert found.details == without.details and found.accuracy == without.accuracy
    assert without.unknown is None and found.unknown is not None
    both = evaluated(outside=3, unknown=1).unknown
    assert both is not None and both not in (found.unknown, evaluated(unknown=1).unknown)


@pytest.mark.parametrize("groups", [False, True])
def test_tasks_with_queries_from_outside(groups: bool) -> None:
    toy = Toy()
    own = toy.items("test")
    shape: dict[str, Any] = {"way": 3, "shot": 1, "query": 2, "seed": 4, "disjoint_groups": groups}
    if groups:
        own = Items(own.items, own.labels, own.class_names, np.arange(len(own.labels)) // 3)
    drawn = Drawn(own, toy.unknowns("test"), 4, shape)
    assert len(drawn.items.labels) == len(drawn.items.items) == 72 + STRANGERS
    bank = embedded(Prototypical(Features(5)), drawn.items)
    plain = sampler_of(own, **shape).tasks(2, 50)
    found = drawn.sampler(bank).tasks(2, 50)
    for task, before in zip(found, plain, strict=True):
        assert task.query_y.tolist() == before.query_y.tolist() + [UNKNOWN] * 4
        assert task.query[:6].tolist() == before.query.tolist() and task.support.tolist() == before.support.tolist()
        assert len(set(task.query[6:])) == 4 and task.query[6:].min() >= 72
        assert task.classes.max() < 8
    assert set(np.concatenate([task.query[6:] for task in found])) == set(range(72, 72 + STRANGERS))
    assert not np.array_equal(found[0].query[6:], drawn.sampler(bank).tasks(3, 1)[0].query[6:])


class Untouched(Toy):
    """Whoever reads an item fails."""

    def items(self, split: str) -> Items:
        class Closed(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                raise AssertionError("an item was read")

        items = super().items(split)
        return Items(Closed(items.items), items.labels, items.class_names)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"outside": 8}, "8 queries of no class an episode were asked for, and the split has 7 such items"),
        ({"way": 7, "unknown": 2}, "way 7 and 2 unknown beside asks for more classes than there are: 8"),
        ({"way": 8, "unknown": 1}, "at most --way 7 and 1 unknown beside fits"),
        ({"way": 9}, "way 9 asks for more classes"),
    ],
)
def test_too_much_is_refused_before_anything_is_read(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MultifslError, match=says):
        evaluated(Untouched(), **options)
    with pytest.raises(AssertionError, match="an item was read"):
        evaluated(Untouched())


def test_items_of_no_class_that_cannot_be_read() -> None:
    readable = sum(bool(vector[0] <= 1) for vector in Toy().unknowns("test"))
    assert 0 < readable < STRANGERS
    with pytest.warns(BadItemWarning):
        assert evaluated(encoder=Picky(5), outside=readable).unknown is not None
    says = f"{readable + 1} queries of no class an episode were asked for; {readable} of them can be read"
    with pytest.warns(BadItemWarning), pytest.raises(MultifslError, match=says):
        evaluated(encoder=Picky(5), outside=readable + 1)


# ---- episodes in a file ----


@pytest.mark.parametrize(
    "shape", [{}, {"unknown": 1, "outside": 2}, {"way": (2, 6), "shot": (1, 2)}, {"imbalance": 1.0, "way": 2}]
)
def test_a_file_brings_the_episodes_of_its_seed(shape: dict[str, Any], tmp_path: Path) -> None:
    """Every method meets them, whatever seed it is given."""
    path, cosine = tmp_path / "episodes.jsonl", "prototypical(distance='cosine')"
    drawn = evaluated(**shape)
    wrote = evaluated(**shape, episodes_file=path)
    content = path.read_bytes()
    read = evaluated(**shape, episodes_file=path, seed=2, episodes=5)
    other = evaluated(**shape, episodes_file=str(path), seed=2, method=cosine)
    assert path.read_bytes() == content
    assert drawn.details == wrote.details == read.details != evaluated(**shape, seed=2).details
    assert other.details == evaluated(**shape, method=cosine).details != read.details
    for one in (wrote, read, other):
        assert (one.shot, one.query, one.episodes) == (drawn.shot, drawn.query, 70)
        assert one.way == drawn.way
    assert read.unknown == drawn.unknown


def test_a_file_says_how_many_queries_there_are(tmp_path: Path) -> None:
    evaluated(episodes_file=tmp_path / "e", unknown=1)
    assert evaluated(episodes_file=tmp_path / "e", query=4).query == 2


def test_a_file_with_items_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    with pytest.warns(BadItemWarning, match="left out"):
        wrote = evaluated(encoder=Picky(5), episodes_file=path, unknown=1)
    with pytest.warns(BadItemWarning):
        read = evaluated(encoder=Picky(5), episodes_file=path, seed=2)
    assert read.details == wrote.details
    assert evaluated(episodes_file=path, seed=2).details == wrote.details  # who can read all is given the same
    evaluated(episodes_file=tmp_path / "of all")
    with (
        pytest.warns(BadItemWarning),
        pytest.raises(MultifslError, match=r"episode \d+ needs item \d+, which cannot be read"),
    ):
        evaluated(encoder=Picky(5), episodes_file=tmp_path / "of all")


def test_a_file_of_other_data_or_none(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    evaluated(episodes_file=path)
    with pytest.raises(BadFile, match="of 72 items of the split 'test'.*: take the data, the split and the --outside"):
        evaluated(episodes_file=path, split="val")
    path.write_text("episodes")
    with pytest.raises(BadFile, match="cannot read the episodes in"):
        evaluated(episodes_file=path)


@pytest.mark.parametrize("outside", [0, 2])
def test_a_file_says_how_many_queries_are_from_outside(outside: int, tmp_path: Path) -> None:
    path = tmp_path / "e"
    wrote = evaluated(episodes_file=path, outside=outside)
    for option in (0, 2, 5):
        read = evaluated(episodes_file=path, outside=option)
        assert (read.details, read.unknown) == (wrote.details, wrote.unknown)
    header, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({k: v for k, v in json.loads(header).items() if k != "outside"}) + "\n" + rest)
    assert evaluated(episodes_file=path, outside=outside).details == wrote.details  # by hand: the option counts
    with pytest.raises(BadFile, match="the --outside that they were drawn with"):
        evaluated(episodes_file=path, outside=2 - outside)


# ---- what a result says of itself ----


class Grouped(Toy):
    """Three items of each class are of one group, so that support and query can be parted."""

    def items(self, split: str) -> Items:
        items = super().items(split)
        return Items(items.items, items.labels, items.class_names, np.arange(len(items.labels)) // 3)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"split": "val"}, {"way": (2, 4), "shot": (1, 3)}, {"way": "all"}, {"episodes": 33, "query": 1}, {"seed": 9},
        {"disjoint_groups": True}, {"imbalance": 1.0}, {"unknown": 2}, {"outside": 2},
        {"method": "prototypical(distance='cosine')"}, {"unknown": 1, "outside": 1, "episodes_file": "there"},
    ],
)  # fmt: skip
def test_a_result_is_given_again_by_what_its_json_says(options: dict[str, Any], tmp_path: Path) -> None:
    if "episodes_file" in options:
        options = {**options, "episodes_file": tmp_path / "episodes"}
    first = evaluated(Grouped(), **options)
    told = json.loads(json.dumps(first.to_json()))
    asked = {**told["arguments"], "task": Grouped(), "encoder": Features(5)}  # neither has a name to be built by
    again = multifsl.evaluate(**asked).to_json()
    for key in told.keys() - {"seconds"}:
        assert json.loads(json.dumps(again[key])) == told[key], key
    for key in options.keys() - {"way", "method", "episodes_file"}:
        found = told["arguments"][key]
        assert (tuple(found) if isinstance(found, list) else found) == options[key]
    if options:
        assert first.details != evaluated(Grouped()).details


def test_a_result_without_small_classes_is_given_again() -> None:
    with pytest.warns(UserWarning, match="left out 2 of 8"):
        first = evaluated(Uneven(), skip_small_classes=True)
    with pytest.warns(UserWarning, match="left out 2 of 8"):
        again = multifsl.evaluate(**{**first.arguments, "task": Uneven(), "encoder": Features(5)})
    assert again.details == first.details


def test_the_arguments_of_a_result_are_those_of_evaluate() -> None:
    machine = {"leak_check", "batch_size", "cache", "device", "data_root", "allow_download", "progress"}
    assert set(evaluated().arguments) == set(inspect.signature(multifsl.evaluate).parameters) - machine


@pytest.mark.filterwarnings("ignore:.*random")
@pytest.mark.parametrize(
    "options",
    [
        {"run": "model:omniglot-matching"}, {"run": "model:omniglot-matching", "method": "mann"},
        {"run": "model:omniglot-matching", "method": "matching(temperature=1)"},
        {"encoder": "model:omniglot-matching", "method": "ridge"}, {"encoder": "conv4(width=8)"},
    ],
)  # fmt: skip
def test_a_result_on_weights_is_given_again(options: dict[str, Any], tmp_path: Path) -> None:
    """A run's, with its own method, with another whose weights are random, and with other options; its encoder's; random ones."""
    images(tmp_path)
    first = multifsl.evaluate(
        **options, task=f"images({str(tmp_path)!r})", split="all", query=2, episodes=10, cache=False
    )
    assert first.arguments["run"] == options.get("run")
    again = multifsl.evaluate(**json.loads(json.dumps(first.arguments)), cache=False)
    assert (again.details, again.nll) == (first.details, first.nll)


def test_the_last_weights_are_asked_for_again(tmp_path: Path) -> None:
    for name in ("photos", "run"):
        (tmp_path / name).mkdir()
    images(tmp_path / "photos")
    run = multifsl.load_run("model:omniglot-matching")
    last = {k: 0.5 * v if v.is_floating_point() else v for k, v in own_weights(run.method).items()}
    save_run(tmp_path / "run", run.method, run.info, last=last)
    asked: dict[str, Any] = {
        "task": f"images({str(tmp_path / 'photos')!r})",
        "split": "all",
        "query": 2,
        "episodes": 10,
        "cache": False,
    }
    best, found = (multifsl.evaluate(tmp_path / "run", weights=weights, **asked) for weights in ("best", "last"))
    assert best.nll != found.nll
    for first in (best, found):
        assert multifsl.evaluate(**json.loads(json.dumps(first.arguments)), cache=False).nll == first.nll


# ---- data that are not there ----


class NoTest(Toy):
    def items(self, split: str) -> Items:
        if split in ("test", "all"):
            raise DataNotFound("some characters lack drawings")
        return super().items(split)


def test_splits_that_are_here_are_named() -> None:
    says = "^some characters lack drawings; other classes are here: --split train, --split val$"
    with pytest.raises(DataNotFound, match=says):
        evaluated(NoTest())
    assert evaluated(NoTest(), split="val").split == "val"

    class Nowhere(Toy):
        def items(self, split: str) -> Items:
            raise DataNotFound("no folder")

    with pytest.raises(DataNotFound, match="^no folder$"):
        evaluated(Nowhere())


@pytest.mark.filterwarnings("ignore:the weights of Mann")
def test_all_classes_are_too_many_for_a_method_with_places() -> None:
    with pytest.raises(MultifslError, match=r"^mann\(.*tells at most 5 classes apart, not 8.*max_way=8"):
        evaluated(Untouched(), method="mann", way="all")
    with pytest.raises(AssertionError, match="an item was read"):
        evaluated(Untouched(), method="mann(max_way=8)", way="all")


# ---- embeddings that are kept ----


def test_embeddings_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path))
    encoder = Counting()
    first = evaluated(encoder=encoder, outside=1)
    assert encoder.count > 0 and [(one.items, one.width) for one in EmbeddingCache().sets()] == [(72 + STRANGERS, 5)]
    encoder.count = 0
    again = evaluated(encoder=encoder, outside=1)
    assert encoder.count == 0 and again.details == first.details
    evaluated(encoder=encoder, outside=1, cache=False)
    assert encoder.count > 0


@pytest.mark.parametrize("why", ["random", "cache=False"])
def test_embeddings_that_are_not_kept(why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path))
    encoder = Counting()
    encoder.pretrained = why != "random"
    for _ in range(2):
        encoder.count = 0
        evaluated(encoder=encoder, cache=why == "random")
        assert encoder.count > 0
    assert EmbeddingCache().sets() == []


@pytest.mark.slow
@pytest.mark.parametrize(("way", "shot", "expected"), [(5, 1, 0.851), (5, 5, 0.951), (20, 1, 0.674)])
def test_frozen_minilm_on_banking77(way: int, shot: int, expected: float) -> None:
    """An independent script's figures for nearest class mean by cosine, on the test classes of fold 1."""
    needs_data("text_banking77")
    needs_minilm()
    result = multifsl.evaluate(task="banking77(fold=1)", encoder="transformer", way=way, shot=shot)
    assert result.accuracy == pytest.approx(expected, abs=0.008)


def test_a_file_needs_no_options_of_its_episodes(tmp_path: Path) -> None:
    """Episodes that the defaults, 5-way with 15 queries, would not fit; a method's head is as wide as the widest of them."""
    path = tmp_path / "episodes.jsonl"
    drawn = evaluated(way=(3, 6), query=1, episodes=70, episodes_file=path)
    read = multifsl.evaluate(task=Toy(), encoder=Features(5), method="prototypical", episodes_file=path)
    assert (
        read.details["scores"] == drawn.details["scores"]
        and (read.way, read.query) == (drawn.way, 1)
        and highest(drawn.way) > 4
    )
    assert open_episodes(path).ways == highest(drawn.way) and read.seed == 1


class Uneven(Toy):
    """The last two classes have two items each."""

    def items(self, split: str) -> Items:
        items = super().items(split)
        kept = [i for i, label in enumerate(items.labels) if label < 6 or i % 9 < 2]
        return Items([items.items[i] for i in kept], items.labels[kept], items.class_names)


def test_all_classes_that_are_large_enough() -> None:
    with pytest.warns(UserWarning, match="left out 2 of 8 classes"):
        assert evaluated(Uneven(), way="all", skip_small_classes=True).way == 6
    with pytest.raises(MultifslError, match="class 'test 6' has 2 items"):
        evaluated(Uneven(), way="all")
    assert evaluated(way="all", unknown=2).way == 6


def test_all_classes_that_are_large_enough_once_they_are_read() -> None:
    """Of the first class one item can be read: it is left out, as with any other way."""

    class Torn(Toy):
        def items(self, split: str) -> Items:
            items = super().items(split)
            x = [np.append(2 if 0 < i < 9 else 0, one[1:]) for i, one in enumerate(items.items)]
            return Items(x, items.labels, items.class_names)

    with pytest.warns(UserWarning, match="left out 1 of 8 classes"), pytest.warns(BadItemWarning):
        found = evaluated(Torn(), encoder=Picky(5), way="all", skip_small_classes=True)
    assert found.way == 7 and found.arguments["way"] == 7


def test_many_logits_are_solved_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, of few tasks at a time: no more logits together than MOST_BYTES, or one task."""
    whole, sizes = evaluated(way="all", episodes=40), []
    monkeypatch.setattr(evaluation, "MOST_BYTES", 3 * 4 * 8 * 8 * 2)  # three tasks of 8 classes and 16 queries
    solve = Prototypical.solve_embedded

    def noted(self: Prototypical, episodes: Any) -> Any:
        sizes.append(len(episodes.present))
        return solve(self, episodes)

    monkeypatch.setattr(Prototypical, "solve_embedded", noted)
    assert evaluated(way="all", episodes=40).details == whole.details
    assert max(sizes) == 3 and sum(sizes) == 40


@pytest.mark.filterwarnings("ignore:the weights of Maml")
def test_items_that_do_not_fit_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers, to the bit, and the same items left out, as with the bank."""
    torch.manual_seed(0)
    asked: dict[str, Any] = {"encoder": Adaptable(), "method": "maml", "outside": 1}
    with pytest.warns(BadItemWarning) as whole:
        found = evaluated(**asked)
    monkeypatch.setattr("multifsl.bank.free_bytes", lambda _: 3000)
    with pytest.warns() as streamed:
        again = evaluated(**asked)
    assert again.details == found.details and again.accuracy == found.accuracy
    told = [str(one.message) for one in streamed]
    assert sum("they are streamed from disk" in one for one in told) == 1 and "left out 4 of 79 items" in told[-1]
    assert [one for one in told if "streamed" not in one] == [str(one.message) for one in whole]


def test_what_was_built_in_python_is_not_named() -> None:
    """A spec would give other weights, and no task: a replay refuses, and says why."""
    built = build("encoders", "conv4(channels=1, image_size=28)")

    class Photos(Toy):
        modality = "image"

        def items(self, split: str) -> Items:
            items = super().items(split)
            return Items([np.full((28, 28), 99, dtype=np.uint8)] * len(items.labels), items.labels, items.class_names)

    found = multifsl.evaluate(task=Photos(), encoder=built, way=2, query=2, episodes=3, allow_leaks=["same-items"])
    assert found.arguments["encoder"] is found.arguments["task"] is None
    with pytest.raises(MultifslError, match="they were built in Python, and are to be given as they were"):
        multifsl.evaluate(**found.arguments)
    again = multifsl.evaluate(**{**found.arguments, "task": Photos(), "encoder": built})
    assert again.details == found.details


def test_what_a_method_learned_beforehand_is_no_new_class() -> None:
    """simpleshot sees the train classes' embeddings: to be asked about them is an error."""
    assert evaluated(method="simpleshot").marks == evaluated(method="prototypical").marks
    for split in ("train", "all"):
        with pytest.raises(MultifslError, match="trained-on: .* the method, learned from the train split"):
            evaluated(method="simpleshot", split=split)
        evaluated(method="prototypical", split=split)


def test_a_run_knows_its_data_wherever_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is that of the training: other data under it are not the run's, and its own are, by whatever path."""
    for seed, name in enumerate(("here", "there")):
        (tmp_path / name / "photos").mkdir(parents=True)
        images(tmp_path / name / "photos", seed=1000 * seed)
    shutil.rmtree(tmp_path / "there" / "photos" / "c1")
    monkeypatch.chdir(tmp_path / "here")
    asked: dict[str, Any] = {"way": 2, "query": 2, "episodes": 3}
    multifsl.train("images('photos')", "conv4(width=4)", "prototypical", out=tmp_path / "run", steps=1, way=2, query=2)
    monkeypatch.chdir(tmp_path / "there")

    def marks(task: str, split: str) -> list[str]:
        return [leak.kind for leak in multifsl.evaluate("../run", task=task, split=split, **asked).marks]

    assert marks("images('photos')", "train") == marks("images('../here/photos')", "test") == []
    with pytest.raises(MultifslError, match="trained-on"):
        marks("images('../here/photos')", "train")
    (tmp_path / "here" / "photos").rename(tmp_path / "moved")
    assert marks("images('photos')", "train") == ["not-checked"]  # what is under the name here has other classes


def test_classes_of_one_name_in_joined_data_sets(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        images(tmp_path / name, seed=1000 * seed)
    task = " + ".join(f"images({str(tmp_path / name)!r})" for name in "ab")
    found = multifsl.evaluate(
        task=task, encoder=build("encoders", "conv4(width=4)"), split="all", way=10, query=2, episodes=40
    )
    names = [one["name"] for one in found.details["classes"]]
    assert names == [f"c{c} [{name}]" for name in "ab" for c in range(10)]
    assert {pair["true"][-3:] == pair["answered"][-3:] for pair in found.details["confused"]} == {True}


def test_a_range_is_drawn_anew_for_each_episode() -> None:
    """With one way for a whole block of 32, the interval over episodes would be several times too narrow."""
    _, items = features(classes=20)
    method = build("methods", "prototypical", encoder=Features(5)).double()
    each = [
        episode_accuracies(method, items, way=(2, 20), shot=(1, 3), query=3, episodes=96, seed=seed)
        for seed in range(40)
    ]
    claimed = np.mean([half_width(scores) for scores in each])
    assert 0.7 < 1.96 * np.std([scores.mean() for scores in each]) / claimed < 1.4  # 40 seeds: 1 is seen as 0.8 to 1.2


def test_over_joined_data_sets_there_is_no_interval_over_classes() -> None:
    joined = build("tasks", "banking77 + hwu64")
    joined.parts = (Toy(), Toy(seed=1))
    joined.modality = "features"
    assert evaluated(joined).ci95_classes is None and evaluated().ci95_classes is not None


def test_logits_that_know_the_other_classes_verify_nobody() -> None:
    class Heard(Toy):
        modality = "speech"

    class Ears(Features):
        modality = "speech"

    given_by = {
        "prototypical": True,
        "matching": False,
        "bd_cspn": False,
        "ridge": False,
        "logistic": False,
        "svm_head": False,
    }
    for method, given in given_by.items():
        assert (evaluated(Heard(), encoder=Ears(5), method=method).verification is not None) == given


def test_the_groups_of_a_file_are_its_own(tmp_path: Path) -> None:
    """Whether support and query share groups is seen in the episodes that are read, whatever the option says."""

    class Grouped(Toy):
        def items(self, split: str) -> Items:
            items = super().items(split)
            return Items(items.items, items.labels, items.class_names, np.tile(np.arange(9) // 2, 8))

    for name, parted in (("shared", False), ("parted", True)):
        path = tmp_path / f"{name}.jsonl"
        evaluated(Grouped(), episodes_file=path, disjoint_groups=parted)
        for option in (False, True):
            marks = evaluated(Grouped(), episodes_file=path, disjoint_groups=option).marks
            assert ("groups" in [leak.kind for leak in marks]) == (not parted)


def test_an_encoder_that_is_a_runs_has_the_runs_past(tmp_path: Path) -> None:
    """Named by its run, as the encoder of a modality, or built: what it was trained on is looked up."""
    needs_data("speakers_speech_commands")
    shape: dict[str, Any] = {"task": "speech_commands", "query": 2, "episodes": 2, "skip_small_classes": True}
    for encoder in ("model:speakers-prototypical", open_encoder("model:speakers-prototypical")):
        with pytest.raises(MultifslError, match="trained-on"):
            multifsl.evaluate(encoder=encoder, split="train", **shape)
    run = multifsl.load_run("model:speakers-prototypical")
    test = build("tasks", "voxceleb1")
    found = find_leaks(test, "test", encoder=run.method.encoder, run_info=run.info, test=Toy().items("test"))
    assert "pretrained" in [leak.kind for leak in found]
