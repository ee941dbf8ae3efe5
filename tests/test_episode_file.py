"""Episodes in a file. Oracles: the tasks that were written; a file by hand; what is said of each damage."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifsl.episode import UNKNOWN, EpisodeSampler, Indices
from multifsl.episode_file import among, of_one_shape, open_episodes, read_episodes, write_episodes
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 8))
ITEMS = Items(list(range(48)), LABELS, ["ant", "bee", "cat", "two words", 'quoted "fish"', "böse\u2028Zeile"])
ALL = range(48)
SOME = [i for i in range(48) if i % 9]  # the others could not be read


def same(a: list[Indices], b: list[Indices]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def sampled(kept: Any = ALL, **options: Any) -> list[Indices]:
    sampler = EpisodeSampler(LABELS[list(kept)], **{"way": 3, "shot": 2, "query": 2, "seed": 1} | options)
    return [task for step in range(5) for task in sampler.tasks(step, 4)]


def read(path: Path, items: Items, split: str, kept: Any) -> list[Indices]:
    return among(kept, read_episodes(open_episodes(path), items, split), path)


@pytest.mark.parametrize("kept", [ALL, SOME], ids=["all", "some"])
@pytest.mark.parametrize(
    "options", [{}, {"unknown": 2}, {"way": (2, 5)}, {"shot": (1, 3), "imbalance": 2.0, "unknown": 1}]
)
def test_what_is_read_is_what_was_written(kept: Any, options: dict[str, Any], tmp_path: Path) -> None:
    tasks = sampled(kept, **options)
    path = tmp_path / "episodes.jsonl"
    write_episodes(path, iter(tasks), ITEMS, "test", kept, 5, 3)
    written = open_episodes(path)
    assert (written.seed, written.outside, written.ways) == (5, 3, max(len(task.classes) for task in tasks))
    assert same(read(path, ITEMS, "test", kept), tasks)


def test_the_file_names_positions_of_the_split(tmp_path: Path) -> None:
    """So that it says the same to somebody who can read every item."""
    path = tmp_path / "episodes.jsonl"
    tasks = sampled(SOME, unknown=1)
    write_episodes(path, tasks, ITEMS, "test", SOME, 0)
    for task, whole in zip(tasks, read(path, ITEMS, "test", ALL), strict=True):
        np.testing.assert_array_equal(whole.support, np.array(SOME)[task.support])
        np.testing.assert_array_equal(whole.query, np.array(SOME)[task.query])


def test_blocks_are_of_one_shape() -> None:
    small, large = sampled(way=2), sampled(way=3)
    tasks = [*small[:3], large[0], *small[3:4], *large[1:3], sampled(unknown=1)[0]]
    found = list(of_one_shape(tasks, 2))
    assert [len(block) for block in found] == [2, 1, 1, 1, 2, 1]
    assert same([task for block in found for task in block], tasks)
    fewer_ways = [sampled(way=2, shot=3, query=3)[0], sampled(way=3, shot=2, query=2)[0]]  # of 6 items a side, both
    assert [len(block) for block in of_one_shape(fewer_ways, 2)] == [1, 1]
    for block in of_one_shape(sampled(way=(2, 5)), 32):
        assert len({tuple(map(len, task)) for task in block}) == 1


# ---- by hand ----

BY_HAND = Items(list("abcdefgh"), np.array([0, 0, 0, 1, 1, 1, 2, 2]), ["cat", "dog", "fox"])
HEADER = {"episodes": 1, "split": "test", "items": 8, "fingerprint": BY_HAND.fingerprint()}
FIRST = {"classes": ["cat", "dog"], "support": [[0], [3]], "query": [[1, 2], [4, 5]]}
SECOND = {"classes": ["fox", "cat"], "support": [[7], [2, 0]], "query": [[6], []], "unknown": [3, 5]}


def written(path: Path, *lines: Any) -> Path:
    text = "\r\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)  # as some editors do
    path.write_bytes(text.encode())
    return path


def test_a_file_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", HEADER, FIRST, "", SECOND, "")
    file = open_episodes(path)
    assert (file.seed, file.outside, file.ways) == (None, None, 2)
    one, two = read(path, BY_HAND, "test", [0, 1, 2, 3, 4, 5, 6, 7])
    assert [part.tolist() for part in one] == [[0, 3], [0, 1], [1, 2, 4, 5], [0, 0, 1, 1], [0, 1]]
    assert [part.tolist() for part in two] == [[7, 2, 0], [0, 1, 1], [6, 3, 5], [0, UNKNOWN, UNKNOWN], [2, 0]]


def test_classes_of_joined_tasks_may_share_a_name(tmp_path: Path) -> None:
    items = Items(list("abcdef"), np.repeat([0, 1, 2], 2), ["cat", "dog", "cat"])
    tasks = EpisodeSampler(items.labels, way=3, shot=1, query=1).tasks(0, 2)
    write_episodes(tmp_path / "e", tasks, items, "all", range(6), 0)
    assert same(read(tmp_path / "e", items, "all", range(6)), tasks)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ["fox"]}, "must give each class support items and a list of queries"),
        ({"support": [[7], []]}, "must give each class support items"),
        ({"support": [[7]]}, "must give each class support items"),
        ({"query": [[], []]}, "not all of these empty"),
        ({"classes": [], "support": [], "query": []}, "not all of these empty"),
        ({"classes": ["fox", "wolf"]}, "support items of 'cat' for the class 'wolf'"),
        ({"classes": ["cat", "fox"]}, "support items of 'fox' for the class 'cat'"),
        ({"classes": ["fox", "fox"]}, "support items of 'cat' for the class 'fox'"),
        ({"classes": [["fox"], "cat"]}, r"for the class \['fox'\]"),
        ({"classes": 2}, "is no episode"),
        ({"classes": ["cat", "cat"], "support": [[2], [0]], "query": [[1], []]}, "an item or a class twice"),
        ({"query": [[7], []]}, "an item or a class twice"),
        ({"query": [[6, 6], []]}, "an item or a class twice"),
        ({"unknown": [3, 3]}, "an item or a class twice"),
        ({"support": [[7], [2, 4]]}, "has item 4 where its class does not belong"),
        ({"query": [[4], []]}, "has item 4 where its class does not belong"),
        ({"unknown": [3, 1]}, "has item 1 where its class does not belong"),
        ({"query": [[6], [8]]}, "names item 8; there are items 0 to 7"),
        ({"query": [[6], [-1]]}, "names item -1; there are items 0 to 7"),
        ({"query": [[10**30], []]}, "is no episode"),
        ({"query": [[6.5], []]}, "a whole number, not 6.5"),
        ({"query": [["6"], []]}, "a whole number, not '6'"),
        ({"query": [[True], []]}, "a whole number, not True"),
        ({"query": [[None], []]}, "a whole number, not None"),
        ({"query": [[[6]], []]}, r"a whole number, not \[6\]"),
        ({"query": [6, []]}, "is no episode"),
        ({"unknown": 3}, "is no episode"),
        ({"unknown": [[3]]}, "a whole number"),
        ({"unknown": None}, "is no episode"),
    ],
)  # fmt: skip
def test_a_damaged_episode_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", HEADER, FIRST, {**SECOND, **change})
    with pytest.raises(BadFile, match=f"^{re.escape(str(path))}: episode 2 .*{says}"):
        read(path, BY_HAND, "test", range(8))


@pytest.mark.parametrize("line", ["[]", "5", "null", '"classes"', "{}", '{"classes": ["fox"], "support": [[7]]}'])
def test_a_line_that_is_no_episode_is_named(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", HEADER, FIRST, line)
    with pytest.raises(BadFile, match=f"^{re.escape(str(path))}: episode 2 (is no episode|lacks)"):
        read(path, BY_HAND, "test", range(8))


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "cannot read the episodes in"),
        ([HEADER, FIRST, '{"classes": ["fo'], "cannot read the episodes in"),
        ([FIRST, SECOND], "is no file of episodes"),
        ([[HEADER], FIRST, SECOND], "is no file of episodes"),
        ([{**HEADER, "episodes": 2}, FIRST, SECOND], "is no file of episodes"),
        ([HEADER, FIRST], "holds 1 episodes, and an interval needs at least 2"),
        ([{**HEADER, "split": "val"}, FIRST, SECOND], "of 8 items of the split 'val', not of these 8 items of 'test'"),
        ([{**HEADER, "fingerprint": "0" * 16}, FIRST, SECOND], "of these 8 items of 'test'.*draw them anew"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(lines: list[Any], says: str, tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", *lines)
    with pytest.raises(BadFile, match=says) as error:
        read(path, BY_HAND, "test", range(8))
    assert str(path) in str(error.value)


def test_other_data_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", HEADER, FIRST, SECOND)
    swapped = Items(BY_HAND.items, BY_HAND.labels, ["dog", "cat", "fox"])
    longer = Items(list("abcdefghi"), np.append(BY_HAND.labels, 2), BY_HAND.class_names)
    others: list[Callable[[], Any]] = [
        lambda: read(path, swapped, "test", range(8)),
        lambda: read(path, longer, "test", range(9)),
        lambda: read(path, BY_HAND, "all", range(8)),
    ]
    for other in others:
        with pytest.raises(BadFile, match="take the data, the split and the --outside that they were drawn with"):
            other()


def test_an_item_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "mine.jsonl", HEADER, FIRST, SECOND)
    with pytest.raises(MultifslError, match="episode 2 needs item 6, which cannot be read") as error:
        read(path, BY_HAND, "test", [0, 1, 2, 3, 4, 5, 7])
    assert not isinstance(error.value, BadFile)  # the file is right


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="cannot read the episodes in"):
        read(tmp_path, BY_HAND, "test", range(8))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFile, match="cannot read the episodes in"):
        read(tmp_path / "bytes", BY_HAND, "test", range(8))
    with pytest.raises(MultifslError, match=r"cannot write the episodes to .*nowhere"):
        write_episodes(tmp_path / "nowhere" / "e.jsonl", [], BY_HAND, "test", range(8), 0)
