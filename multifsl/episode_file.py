"""Episodes in a file: drawn once, read by every method, on any machine.

JSON lines. The first says which items the numbers count: {"episodes": 1, "split": ..., "items": n, "fingerprint": ...}, and, of
episodes that were drawn here, the "seed", and how many queries from outside the task's classes each has, "outside". Each further
one is an episode: {"classes": [names], "support": [[positions of the first class], ...], "query": [[...], ...], "unknown":
[positions]}, with an item's position in the split; "unknown" are queries of no class of the episode.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from multifsl.episode import UNKNOWN, Indices
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items

SCHEMA = 1


def write_episodes(
    path: Path, tasks: Iterable[Indices], items: Items, split: str, kept: Sequence[int], seed: int, outside: int = 0
) -> None:
    """Write tasks whose rows count `kept`, positions among `items`, of which some may have been left out. seed: what drew them.
    outside: how many queries of each are of items behind the split's own.

    Raises MultifslError where the file cannot be written.
    """
    header = {
        "episodes": SCHEMA,
        "split": split,
        "items": len(items.labels),
        "fingerprint": items.fingerprint(),
        "seed": seed,
        "outside": outside,
    }
    at = np.asarray(kept)
    lines = [json.dumps(header)]
    for task in tasks:
        ways = range(len(task.classes))
        episode = {
            "classes": [items.class_names[c] for c in task.classes],
            "support": [at[task.support[task.support_y == k]].tolist() for k in ways],
            "query": [at[task.query[task.query_y == k]].tolist() for k in ways],
        }
        if (task.query_y == UNKNOWN).any():
            episode["unknown"] = at[task.query[task.query_y == UNKNOWN]].tolist()
        lines.append(json.dumps(episode, ensure_ascii=False))
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise MultifslError(f"cannot write the episodes to {path}: {error.strerror}") from error


class Written(NamedTuple):
    """A file of episodes, not yet held against the items that it is of. Where it does not say its seed, or how many queries of no
    class an episode has, which are not in files that were written by hand, that is None."""

    path: Path
    header: dict[str, Any]
    episodes: list[Any]

    @property
    def seed(self) -> int | None:
        return self._number("seed")

    @property
    def outside(self) -> int | None:
        return self._number("outside")

    @property
    def ways(self) -> int | None:
        """The most classes that an episode has; None where `read_episodes` will say what is wrong."""
        classes = [one.get("classes") for one in self.episodes if isinstance(one, dict)]
        return max((len(one) for one in classes if isinstance(one, list)), default=0) or None

    def _number(self, key: str) -> int | None:
        value = self.header.get(key)
        return value if type(value) is int and value >= 0 else None


def open_episodes(path: Path) -> Written:
    """The lines of a file. Raises BadFile: it is no such file, or damaged."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would break names that hold U+2028
        header, *episodes = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read the episodes in {path}: {error}") from error
    if not isinstance(header, dict) or header.get("episodes") != SCHEMA:
        raise BadFile(f'{path} is no file of episodes: its first line should say {{"episodes": {SCHEMA}, ...}}')
    if len(episodes) < 2:
        raise BadFile(f"{path} holds {len(episodes)} episodes, and an interval needs at least 2")
    return Written(path, header, episodes)


def read_episodes(written: Written, items: Items, split: str) -> list[Indices]:
    """The tasks of a file, as rows of the items.

    Raises BadFile: an episode is damaged, or the file is of other items.
    """
    path, header = written.path, written.header
    if (header.get("split"), header.get("fingerprint")) != (split, items.fingerprint()):
        raise BadFile(
            f"the episodes in {path} are of {header.get('items')} items of the split {header.get('split')!r}, not of these "
            f"{len(items.labels)} items of {split!r}: take the data, the split and the --outside that they were drawn with, "
            "or draw them anew"
        )
    return [_task(f"{path}: episode {number}", one, items) for number, one in enumerate(written.episodes, 1)]


def among(kept: Sequence[int], tasks: Sequence[Indices], path: Path) -> list[Indices]:
    """Tasks of a file as rows of `kept`, the items that could be read.

    Raises MultifslError where one needs another item.
    """
    row_of = {position: row for row, position in enumerate(kept)}
    found = []
    for number, task in enumerate(tasks, 1):
        try:
            support, query = (np.array([row_of[p] for p in part.tolist()]) for part in (task.support, task.query))
        except KeyError as error:
            raise MultifslError(f"{path}: episode {number} needs item {error}, which cannot be read") from None
        found.append(task._replace(support=support, query=query))
    return found


def _task(where: str, one: Any, items: Items) -> Indices:
    """An episode. where: the file and the number, for messages."""
    try:
        classes, support, query, unknown = one["classes"], one["support"], one["query"], one.get("unknown", [])
        if not len(classes) == len(support) == len(query) or not all(support) or not any(query):
            raise BadFile(f"{where} must give each class support items and a list of queries, not all of these empty")
        lengths = [[len(part) for part in parts] for parts in (support, query)]
        parts = [_positions(p for part in parts for p in part) for parts in (support, query)]
        outside = _positions(unknown)
    except KeyError as error:
        raise BadFile(f"{where} lacks {error}") from None
    except (TypeError, OverflowError) as error:
        raise BadFile(f"{where} is no episode: {error}") from None
    positions = np.concatenate([*parts, outside])
    beyond = positions[(positions < 0) | (positions >= len(items.labels))]
    if len(beyond):
        raise BadFile(f"{where} names item {beyond[0]}; there are items 0 to {len(items.labels) - 1}")
    # by the items, not by the names, which classes of joined tasks may share
    labels = items.labels[parts[0][np.cumsum([0, *lengths[0][:-1]])]]  # [N]
    for name, label in zip(classes, labels, strict=True):
        if name != items.class_names[label]:
            raise BadFile(f"{where} has support items of {items.class_names[label]!r} for the class {name!r}")
    if len(np.unique(positions)) < len(positions) or len(np.unique(labels)) < len(labels):
        raise BadFile(f"{where} has an item or a class twice")
    support_y, query_y = (np.repeat(np.arange(len(classes)), each) for each in lengths)
    right = [items.labels[part] == labels[y] for part, y in zip(parts, (support_y, query_y), strict=True)]
    wrong = positions[~np.concatenate([*right, ~np.isin(items.labels[outside], labels)])]
    if len(wrong):
        raise BadFile(f"{where} has item {wrong[0]} where its class does not belong")
    query_y = np.concatenate([query_y, np.full(len(outside), UNKNOWN)])
    return Indices(parts[0], support_y, np.concatenate([parts[1], outside]), query_y, labels)


def _positions(values: Iterable[Any]) -> np.ndarray:
    """int64 [n]. Raises TypeError where one is no whole number: numpy would cut 1.5 down to 1."""
    found = list(values)
    for value in found:
        if type(value) is not int:
            raise TypeError(f"an item is a whole number, not {value!r}")
    return np.array(found, dtype=np.int64)


def of_one_shape(tasks: Sequence[Indices], most: int) -> Iterator[list[Indices]]:
    """Tasks in their order, in blocks of at most `most` that have one shape and can be solved together."""
    block: list[Indices] = []
    for task in tasks:
        if block and (len(block) == most or _shape(task) != _shape(block[0])):
            yield block
            block = []
        block.append(task)
    if block:
        yield block


def _shape(task: Indices) -> tuple[int, ...]:
    return tuple(len(part) for part in task)
