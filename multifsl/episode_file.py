"""Episodes in a file: drawn once, read by every method, on any machine.

JSON lines. The first says which items the numbers count: {"episodes": 1, "split": ..., "items": n, "fingerprint": ...}. Each
further one is an episode: {"classes": [names], "support": [[positions of the first class], ...], "query": [[...], ...],
"unknown": [positions]}, with an item's position in the split; "unknown" are queries of no class of the episode.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multifsl.episode import UNKNOWN, Indices
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items

SCHEMA = 1


def write_episodes(
    path: Path, tasks: Iterable[Indices], items: Items, split: str, kept: Sequence[int], seed: int
) -> None:
    """Write tasks whose rows count `kept`, positions among `items`, of which some may have been left out. seed: what drew them.

    Raises MultifslError where the file cannot be written.
    """
    header = {
        "episodes": SCHEMA,
        "split": split,
        "items": len(items.labels),
        "fingerprint": items.fingerprint(),
        "seed": seed,
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


def read_episodes(path: Path, items: Items, split: str, kept: Sequence[int]) -> list[Indices]:
    """The tasks of a file, as rows of `kept`.

    Raises:
        BadFile: it is no such file, damaged, or of other items. MultifslError: an episode needs an item that could not be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would break names that hold U+2028
        header, *episodes = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise BadFile(f"cannot read the episodes in {path}: {error}") from error
    if not isinstance(header, dict) or header.get("episodes") != SCHEMA:
        raise BadFile(f'{path} is no file of episodes: its first line should say {{"episodes": {SCHEMA}, ...}}')
    if (header.get("split"), header.get("fingerprint")) != (split, items.fingerprint()):
        raise BadFile(
            f"the episodes in {path} are of {header.get('items')} items of the split {header.get('split')!r}, not of these "
            f"{len(items.labels)} items of {split!r}: take the data that they were drawn from, or draw them anew"
        )
    if len(episodes) < 2:
        raise BadFile(f"{path} holds {len(episodes)} episodes, and an interval needs at least 2")
    row_of = np.full(len(items.labels), -1)
    row_of[np.asarray(kept)] = np.arange(len(kept))
    return [_task(path, number, one, items, row_of) for number, one in enumerate(episodes, 1)]


def glance(path: Path) -> tuple[int | None, int | None]:
    """The most classes that an episode of a file has, and the seed that drew them; None for what cannot be told: `read_episodes`
    will explain it, and a file that was written by hand has no seed."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        seed = found[0].get("seed")
        return max(len(one.get("classes", ())) for one in found) or None, seed if type(seed) is int else None
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        return None, None


def _task(path: Path, number: int, one: Any, items: Items, row_of: np.ndarray) -> Indices:
    where = f"{path}: episode {number}"
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
    beyond = positions[(positions < 0) | (positions >= len(row_of))]
    if len(beyond):
        raise BadFile(f"{where} names item {beyond[0]}; there are items 0 to {len(row_of) - 1}")
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
    lost = positions[row_of[positions] < 0]
    if len(lost):
        raise MultifslError(f"{where} needs item {lost[0]}, which cannot be read")
    return Indices(
        row_of[parts[0]],
        support_y,
        row_of[np.concatenate([parts[1], outside])],
        np.concatenate([query_y, np.full(len(outside), UNKNOWN)]),
        labels,
    )


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
