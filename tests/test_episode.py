"""The sampler: a pure function of (seed, step, task), without overlap, within its bounds."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multifsl.bank import Bank
from multifsl.encoder import Features
from multifsl.episode import UNKNOWN, EpisodeSampler, Indices, Streams, distinct, trim
from multifsl.errors import MultifslError
from multifsl.task import Items


def same(a: Indices, b: Indices) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 10))


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    step=st.integers(0, 10**9),
    way=st.integers(1, 12),
    shot=st.integers(1, 6),
    query=st.integers(1, 4),
    imbalance=st.sampled_from([0.0, 0.5, 3.0]),
)
def test_an_episode_is_what_was_asked_for(
    seed: int, step: int, way: int, shot: int, query: int, imbalance: float
) -> None:
    sampler = EpisodeSampler(LABELS, way=way, shot=shot, query=query, seed=seed, imbalance=imbalance)
    task = sampler.task(step, 3)
    assert same(
        task, EpisodeSampler(LABELS, way=way, shot=shot, query=query, seed=seed, imbalance=imbalance).task(step, 3)
    )
    assert len(task.support) == way * shot and len(task.query) == way * query
    assert len(set(task.classes)) == way
    rows = np.concatenate([task.support, task.query])
    assert len(set(rows)) == len(rows)  # no item twice, none on both sides
    assert (LABELS[task.support] == task.classes[task.support_y]).all()
    assert (LABELS[task.query] == task.classes[task.query_y]).all()
    assert (np.bincount(task.query_y, minlength=way) == query).all()
    shots = np.bincount(task.support_y, minlength=way)
    assert shots.min() >= 1 and (imbalance > 0 or (shots == shot).all())


def test_every_item_and_class_comes_up_evenly() -> None:
    sampler = EpisodeSampler(LABELS, way=4, shot=1, query=2, seed=1)
    tasks = [sampler.task(step) for step in range(2000)]
    classes = np.bincount(np.concatenate([t.classes for t in tasks]), minlength=12)
    items = np.bincount(np.concatenate([np.concatenate([t.support, t.query]) for t in tasks]), minlength=120)
    # 8,000 draws of 12 classes: 667 each, standard deviation 21; 24,000 of 120 items: 200 each, below 14.2
    assert abs(classes - 8000 / 12).max() < 5 * 21
    assert abs(items - 200).max() < 5 * 14.2


def test_steps_tasks_and_seeds_differ_and_ranks_share_a_step() -> None:
    sampler = EpisodeSampler(LABELS, seed=1, query=5)
    assert not same(sampler.task(0, 0), sampler.task(0, 1))
    assert not same(sampler.task(0, 0), sampler.task(1, 0))
    assert not same(sampler.task(0, 0), EpisodeSampler(LABELS, seed=2, query=5).task(0, 0))
    alone = sampler.tasks(7, 6)
    shared = [sampler.tasks(7, 6, rank=rank, world=3) for rank in range(3)]
    assert all(same(alone[i], shared[i % 3][i // 3]) for i in range(6))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.integers(1, 8), st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_distinct_numbers_are_numpys(seed: int, count: int, more: list[int]) -> None:
    """What each generator's own `choice` draws, down to sizes of which all are drawn, and its state after."""
    sizes = count + np.array([more, more[::-1]]) * 300
    streams, twins = Streams([seed, np.arange(2)]), [np.random.default_rng((seed, t)) for t in range(2)]
    found = distinct(streams.upto, sizes, count)
    after = streams.fractions()
    for t in np.flatnonzero(streams.sure):
        for r, size in enumerate(sizes[t]):
            assert found[t, r].tolist() == twins[t].choice(size, count, replace=False).tolist()
        assert after[t] == twins[t].random()


@pytest.mark.parametrize(("most", "fewest"), [(0, 100), (599, 100), (10**9, 10)])
def test_streams_are_numpys_generators_or_say_so(most: int, fewest: int) -> None:
    """Towards 2^32 numpy draws many a number anew."""
    streams = Streams([2**33, 7, np.arange(100), 1])
    halves = streams.fractions()
    bounds = np.full((3, 100), most)
    found = [streams.upto(bounds), streams.upto(bounds[:2])]
    assert streams.sure.sum() >= fewest
    for t in np.flatnonzero(streams.sure).tolist():
        twin = np.random.default_rng((2**33, 7, t, 1))
        assert halves[t] == twin.random()
        for part in found:
            assert part[:, t].tolist() == twin.integers(0, bounds[: len(part), t], endpoint=True).tolist()


@pytest.mark.parametrize("options", [{}, {"shot": (1, 3)}, {"sources": np.repeat([0, 1], 6)}, {"shot": 60, "query": 5}])
@pytest.mark.parametrize("count", [3, 40])
def test_many_tasks_are_those_that_come_one_by_one(options: dict[str, Any], count: int) -> None:
    """Over classes of different sizes, of which the smallest is used up."""
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(12), 65 + np.arange(12) // 2))
    if "shot" not in options:
        labels = labels[np.random.default_rng(0).random(len(labels)) < 0.3]
    fewest = int(np.bincount(labels).min())
    sampler = EpisodeSampler(labels, **{"way": 5, "shot": 1, "query": min(fewest - 3, 60), "seed": 2**33} | options)
    for step in range(3):
        for index, task in enumerate(sampler.tasks(step, count)):
            assert same(task, sampler.task(step, index))
        assert all(
            same(a, b)
            for a, b in zip(sampler.tasks(step, count)[1::2], sampler.tasks(step, count, rank=1, world=2), strict=True)
        )


def test_classes_of_many_items_are_drawn_as_ever() -> None:
    """Beyond 10,000 items numpy draws otherwise."""
    labels = np.repeat([0, 1, 2, 3, 4], 10_001)
    sampler = EpisodeSampler(labels, way=5, shot=1, query=230)
    few = EpisodeSampler(labels, way=5, shot=1, query=15)
    for one in (sampler, few):
        assert all(same(task, one.task(0, index)) for index, task in enumerate(one.tasks(0, 8)))


def test_variable_way_and_shot_are_one_shape_a_step() -> None:
    sampler = EpisodeSampler(LABELS, way=(2, 6), shot=(1, 3), query=2, seed=0)
    shapes = [sampler.shape(step) for step in range(200)]
    assert {way for way, _ in shapes} == {2, 3, 4, 5, 6} and {shot for _, shot in shapes} == {1, 2, 3}
    for step in range(20):
        assert {len(task.support) for task in sampler.tasks(step, 4)} == {shapes[step][0] * shapes[step][1]}


def test_imbalance_is_uneven_and_keeps_the_total() -> None:
    sampler = EpisodeSampler(LABELS, way=4, shot=4, query=2, imbalance=2.0)
    counts = np.array([np.bincount(sampler.task(step).support_y, minlength=4) for step in range(100)])
    assert (counts.sum(1) == 16).all() and counts.min() == 1 and counts.max() > 6 and counts.max() <= 8


@pytest.mark.parametrize("across", [False, True])
def test_disjoint_groups(across: bool) -> None:
    """No recording on both sides, whether each class has its own recordings or all share the same sessions."""
    groups = np.arange(len(LABELS)) % 5 if across else LABELS * 5 + np.arange(len(LABELS)) % 5
    sampler = EpisodeSampler(LABELS, way=3, shot=2, query=2, groups=groups, disjoint_groups=True)
    done = 0
    for step in range(50):
        try:
            task = sampler.task(step)
        except MultifslError:
            continue
        done += 1
        assert not set(groups[task.support]) & set(groups[task.query])
        assert (LABELS[task.support] == task.classes[task.support_y]).all() and len(task.query) == 6
    assert done >= 45


GROUPED = {"groups": LABELS * 5 + np.arange(120) % 5, "disjoint_groups": True}
SESSIONS = {"groups": np.arange(120) % 5, "disjoint_groups": True}  # all classes share them


@pytest.mark.parametrize(
    ("options", "support", "query", "classes"),
    [
        ({}, [45, 110, 94], [113, 96, 89, 108, 51, 12], [5, 6, 8]),
        (
            {"way": (2, 5), "shot": (2, 3)},
            [11, 40, 109, 20, 73, 19, 80, 59], [83, 116, 86, 3, 39, 12, 75, 115], [5, 11, 8, 4],
        ),
        ({"shot": 3, "imbalance": 2.0}, [96, 67, 77, 108, 66, 38, 63, 1, 39], [45, 116, 79, 89, 19, 58], [5, 6, 8]),
        (GROUPED, [112, 79, 12], [11, 96, 66, 1, 73, 58], [5, 6, 8]),
        ({"sources": np.repeat([0, 1], [5, 7])}, [24, 107, 111], [12, 58, 44, 81, 105, 47], [8, 10, 7]),
    ],
    ids=["plain", "variable", "imbalance", "groups", "sources"],
)  # fmt: skip
def test_the_tasks_of_a_seed_are_what_they_were(
    options: dict[str, Any], support: list[int], query: list[int], classes: list[int]
) -> None:
    """Rows that were drawn before there were unknown classes: figures of before and after compare."""
    task = EpisodeSampler(LABELS, **{"way": 3, "query": 2, "seed": 7, **options}).task(5, 2)
    assert (task.support.tolist(), task.query.tolist(), task.classes.tolist()) == (support, query, classes)


@pytest.mark.parametrize("grouped", [{}, GROUPED, SESSIONS], ids=["alone", "recordings", "sessions"])
@pytest.mark.parametrize(
    "options", [{}, {"way": (2, 5)}, {"shot": 2, "imbalance": 1.0}, {"sources": np.repeat([0, 1], 6)}]
)
def test_unknown_classes_are_asked_about_and_never_shown(options: dict[str, Any], grouped: dict[str, Any]) -> None:
    sampler = EpisodeSampler(LABELS, **{"way": 3, "query": 2, "seed": 1, "unknown": 2} | options | grouped)
    for step in range(20):
        way, shot = sampler.shape(step)
        task = sampler.task(step)
        assert len(task.classes) == len(set(task.classes)) == way
        assert len(task.support) == way * shot and set(task.support_y) == set(range(way))
        assert task.query_y.tolist() == np.repeat(np.arange(way), 2).tolist() + [UNKNOWN] * 4
        rows = np.concatenate([task.support, task.query])
        assert len(set(rows)) == len(rows)
        assert (LABELS[task.support] == task.classes[task.support_y]).all()
        known, strange = task.query[: way * 2], LABELS[task.query[way * 2 :]]
        assert (LABELS[known] == task.classes[task.query_y[: way * 2]]).all()
        assert not set(strange) & set(task.classes)
        assert len(set(strange)) == 2 and (np.bincount(strange)[list(set(strange))] == 2).all()
        if grouped:
            assert not set(grouped["groups"][task.support]) & set(grouped["groups"][task.query])
        if "sources" in options:
            assert len(set(options["sources"][np.append(task.classes, strange)])) == 1


def test_every_class_is_unknown_now_and_then() -> None:
    """2,000 of 12: 333 of each two, standard deviation 17."""
    sampler = EpisodeSampler(LABELS, way=4, query=1, unknown=2)
    tasks = [sampler.task(step) for step in range(2000)]
    strange = np.bincount(LABELS[np.concatenate([task.query[-2:] for task in tasks])], minlength=12)
    assert abs(strange - 4000 / 12).max() < 5 * 17


def test_too_few_classes_for_unknown_ones() -> None:
    EpisodeSampler(LABELS, way=10, query=2, unknown=2)
    says = r"way 10 and 3 unknown beside asks for more classes than there are: 12 .*at most --way 9 and 3 unknown beside fits"
    with pytest.raises(MultifslError, match=says):
        EpisodeSampler(LABELS, way=10, query=2, unknown=3)
    with pytest.raises(MultifslError, match="take a split with more"):
        EpisodeSampler(LABELS, way=2, query=2, unknown=12)
    with pytest.raises(MultifslError, match="more classes than there are: 5 "):  # of the smaller source
        EpisodeSampler(LABELS, way=4, query=2, unknown=2, sources=np.repeat([0, 1], [5, 7]))
    with pytest.raises(MultifslError, match="unknown is a number of classes, 0 or more, not -1"):
        EpisodeSampler(LABELS, query=2, unknown=-1)
    one = {"groups": np.where(LABELS == 0, 99, np.arange(120)), "disjoint_groups": True}
    with pytest.raises(MultifslError, match="class '0' has 10 items in 1 group: they cannot be split"):
        EpisodeSampler(LABELS, way=3, query=2, unknown=1, **one)  # type: ignore[arg-type]


def test_groups_that_cannot_be_split_are_an_error() -> None:
    with pytest.raises(MultifslError, match=r"'.*' has 10 items in 1 group: .* share no group"):
        EpisodeSampler(LABELS, query=2, groups=LABELS, disjoint_groups=True).task(0)
    with pytest.raises(MultifslError, match="have no groups"):
        EpisodeSampler(LABELS, query=2, disjoint_groups=True)


def test_an_episode_stays_within_one_source() -> None:
    sources = np.array([0] * 5 + [1] * 7)
    sampler = EpisodeSampler(LABELS, way=4, query=2, sources=sources)
    seen = [set(sources[sampler.task(step).classes]) for step in range(300)]
    assert all(len(s) == 1 for s in seen)
    assert abs(sum(s == {1} for s in seen) - 175) < 5 * 8.6  # in proportion to the classes: 7 of 12
    with pytest.raises(MultifslError, match="at most --way 5 fits"):
        EpisodeSampler(LABELS, way=6, query=2, sources=sources)


def test_too_small_says_which_class_how_many_and_what_fits() -> None:
    labels = np.concatenate([LABELS, [12, 12, 12]])
    names = [f"bird {i}" for i in range(13)]
    with pytest.raises(
        MultifslError,
        match=r"class 'bird 12' has 3 items, but 1 shot \+ 5 query items ask for 6 \(1 of 13 .*--shot 1 --query 2",
    ):
        EpisodeSampler(labels, way=5, shot=1, query=5, class_names=names)
    with pytest.warns(UserWarning, match="left out 1 of 13 classes.*bird 12"):
        sampler = EpisodeSampler(labels, way=12, shot=1, query=5, class_names=names, skip_small_classes=True)
    assert 12 not in sampler.task(0).classes
    with pytest.raises(MultifslError, match="way 20 asks for more classes than there are: 12"):
        EpisodeSampler(LABELS, way=20)
    with pytest.raises(MultifslError, match="data are empty"):
        EpisodeSampler(np.array([], dtype=np.int64))


@pytest.mark.parametrize("options", [{"way": 0}, {"shot": 0}, {"query": 0}, {"way": (5, 2)}, {"imbalance": -1.0}])
def test_nonsense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(MultifslError):
        EpisodeSampler(LABELS, **options)  # type: ignore[arg-type]


def test_a_bank_gathers_what_the_sampler_drew_and_trims_padding() -> None:
    x = torch.arange(120.0).unsqueeze(1)
    bank = Bank(x, Items([], LABELS, [str(i) for i in range(12)]))
    tasks = EpisodeSampler(LABELS, way=3, shot=2, query=1).tasks(0, 4)
    episodes = bank.episodes(tasks)
    assert episodes.support.x.shape == (4, 6, 1) and episodes.query.x.shape == (4, 3, 1)  # type: ignore[union-attr]
    for t, task in enumerate(tasks):
        assert episodes.support.x[t, :, 0].tolist() == task.support.tolist()  # type: ignore[index]
        assert episodes.query.x[t, :, 0].tolist() == task.query.tolist()  # type: ignore[index]
    words = {
        "input_ids": torch.ones(5, 9),
        "attention_mask": (torch.arange(9) < torch.tensor([[2], [9], [3], [4], [1]])).long(),
    }
    short = Bank(words, Items([], np.zeros(5, dtype=np.int64), ["a"])).gather(np.array([0, 3, 4]))
    assert isinstance(short, dict) and short["input_ids"].shape == (3, 4)
    assert trim(x, 1) is x
    assert Features(3).uses_batch_statistics is False
