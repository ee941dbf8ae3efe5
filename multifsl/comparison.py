"""Several methods, encoders and runs on the same episodes: who is better, by how much, and whether that is more than chance.

Shape letters: B episodes.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from multifsl.bank import Bank, Progress, select
from multifsl.curves import write
from multifsl.encoder import Encoder
from multifsl.episode import Indices, Range, map_inputs, spelled
from multifsl.episode_file import among, read_episodes, write_episodes
from multifsl.errors import MultifslError
from multifsl.evaluation import (
    DEFAULT_METHOD,
    Drawn,
    Evaluation,
    Subject,
    answer,
    blocks,
    cache_for,
    embedded,
    evaluation_of,
    find_episodes,
    highest,
    is_joined,
    items_of,
    leaks_of,
    open_subject,
    parted,
    positions,
    shape_of,
)
from multifsl.intervals import difference, holm
from multifsl.leaks import Leak, read_contents
from multifsl.options import check_arguments
from multifsl.registry import build, resolved
from multifsl.task import Items, Task, check_split

LEVEL = 0.05  # of the tests, over a whole table
EVERY = 0.005  # seconds between looks at the memory
WARM = 2  # episodes before the time is taken


@dataclass(frozen=True)
class Entry:
    """One of those that were compared. name: as it was asked for. ms_per_episode: to solve one, from embeddings where it takes
    such. memory: MiB at most beside what was there, while it solved them."""

    name: str
    evaluation: Evaluation
    ms_per_episode: float
    memory: float


@dataclass(frozen=True)
class Pair:
    """a less b, over the same episodes (`multifsl.intervals.Difference`). p: corrected for all pairs of the table (Holm). shown:
    whether it is below 0.05; where it is not, no difference was shown, which is not to say that there is none."""

    a: str
    b: str
    mean: float
    ci95: float
    ci95_classes: float | None
    p: float
    shown: bool


@dataclass(frozen=True)
class Comparison:
    """entries: the best first. pairs: of all of them, the better one first."""

    task: str
    split: str
    way: Range
    shot: Range
    query: Range
    episodes: int
    seed: int
    entries: list[Entry]
    pairs: list[Pair]

    def to_json(self) -> dict[str, Any]:
        entries = [{**asdict(one), "evaluation": one.evaluation.to_json()} for one in self.entries]
        return {**asdict(self), "entries": entries}


def compare(
    task: str | Task,
    *,
    encoders: Sequence[str | Encoder] = (),
    methods: Sequence[str] = (),
    runs: Sequence[str] = (),
    split: str = "test",
    way: Range | Literal["all"] = 5,
    shots: Sequence[int] = (1,),
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    unknown: int = 0,
    outside: int = 0,
    episodes_file: Path | str | None = None,
    allow_leaks: Sequence[str] = (),
    leak_check: Literal["quick", "full"] = "quick",
    batch_size: int = 64,
    cache: bool = True,
    device: str = "auto",
    data_root: Path | str | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> list[Comparison]:
    """Compare on the same episodes: every method on every encoder as it is, and runs; one `Comparison` for each number of shots.

    Args:
        encoders: specs, or built ones. methods: on top of each of them, by default "prototypical(distance='cosine')". runs:
            folders, or "model:NAME".
        shots: each is compared by itself, so that accuracy can be drawn against the number of labels. With episodes_file, one.
        The others: see `multifsl.evaluate`.

    Raises:
        MultifslError: fewer than two things to compare, one of them twice, or what `evaluate` raises.

    An example: `compare("banking77", encoders=["transformer"], methods=["prototypical(distance='cosine')", "ridge"], split="val")`
    """
    check_arguments(compare, locals())
    check_split(split)
    if methods and not encoders:
        raise MultifslError("methods are compared on encoders: name one (--encoder), or leave the methods out")
    asked: list[tuple[str, dict[str, Any]]] = [
        (
            _name(encoder, method, whole=len(encoders) > 1 or bool(runs), methods=methods),
            {"encoder": encoder, "method": method},
        )
        for encoder in encoders
        for method in methods or (DEFAULT_METHOD,)
    ]
    asked += [(str(run), {"run": run}) for run in runs]
    names = [name for name, _ in asked]
    if len(asked) < 2:
        raise MultifslError(f"there are at least two to compare, of encoders x methods and of runs; {len(asked)} came")
    if len(set(names)) < len(names):
        raise MultifslError(f"{next(name for name in names if names.count(name) > 1)} is named twice")
    if not shots or len(set(shots)) < len(shots):
        raise MultifslError(f"a comparison needs at least one number of shots, and each once; {list(shots)} came")
    if episodes_file is not None and len(shots) > 1:
        raise MultifslError(f"a file of episodes has one number of shots, and {len(shots)} were asked for: name one")
    data = build("tasks", task, data_root=data_root) if isinstance(task, str) else task
    items = items_of(data, split)
    path, written, seed, outside = find_episodes(episodes_file, seed, outside)
    outsiders = data.unknowns(split) if outside else []
    shape: dict[str, Any] = {
        "way": way, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes, "unknown": unknown,
    }  # fmt: skip
    drawn = {  # says at once what does not fit
        shot: Drawn(items, outsiders, outside, {**shape, "shot": shot}, check=written is None) for shot in shots
    }
    every = drawn[shots[0]].items
    listed = [] if written is None else read_episodes(written, every, split)
    if listed and items.groups is not None:
        disjoint_groups = all(parted(one, every.groups) for one in listed)
    ways = max(highest(one.shape["way"]) for one in drawn.values()) if written is None else written.ways
    contents = read_contents(items, data.modality, progress, cache=cache)  # once, for all
    subjects: dict[str, Subject] = {}
    banks: dict[str, Bank] = {}
    marks: dict[str, list[Leak]] = {}
    for name, what in asked:
        subject = open_subject(
            what.get("run"), task=data, encoder=what.get("encoder"), method=what.get("method"), ways=ways, seed=seed,
            device=device, data_root=data_root, allow_download=allow_download, progress=progress,
        )  # fmt: skip
        subjects[name] = subject
        twin = next((k for k in banks if _same_items(subjects[k], subject)), None)
        marks[name] = leaks_of(
            subject, split, contents, disjoint_groups=disjoint_groups, allowed=allow_leaks,
            full=leak_check == "full", cache=cache, data_root=data_root, progress=progress,
        )  # fmt: skip
        banks[name] = (
            banks[twin]
            if twin is not None
            else embedded(
                subject.method,
                every,
                batch_size=batch_size,
                cache=cache_for(subject) if cache else None,
                progress=progress,
            )
        )
    common = sorted(set.intersection(*(set(positions(every, bank.items)) for bank in banks.values())))
    banks = {name: _restricted(bank, positions(every, bank.items), common) for name, bank in banks.items()}
    found = []
    for one in drawn.values():
        if written is not None:
            tasks = among(common, listed, written.path)
        else:
            sampler = one.sampler(next(iter(banks.values())))
            tasks = [task for block in blocks(sampler, episodes) for task in block]
            if path is not None:
                write_episodes(path, tasks, every, split, common, seed, outside)
        asked_for = {**one.shape, "outside": outside, "episodes_file": None if path is None else str(path)}
        met = {key: one.shape[key] for key in ("way", "shot", "query")} if path is None else shape_of(tasks)
        entries, scores, classes = [], {}, np.empty(0)
        for name, subject in subjects.items():
            entry, scores[name], classes = _entry(
                name, subject, banks[name], tasks, items, split, asked_for, marks[name], progress
            )
            entries.append(replace(entry, evaluation=replace(entry.evaluation, **met)))
        entries.sort(key=lambda entry: -entry.evaluation.accuracy)
        found.append(
            Comparison(
                task=resolved(data),
                split=split,
                **met,
                episodes=len(tasks),
                seed=seed,
                entries=entries,
                pairs=_pairs([entry.name for entry in entries], scores, None if is_joined(items) else classes),
            )
        )
    return found


def _name(encoder: str | Encoder, method: str, *, whole: bool, methods: Sequence[str]) -> str:
    """What tells an entry from the others. whole: of several encoders, or beside runs, both are named."""
    encoder = encoder if isinstance(encoder, str) else resolved(encoder)
    if not methods:
        return encoder
    return f"{encoder} / {method}" if whole else method


def _same_items(a: Subject, b: Subject) -> bool:
    """Whether the bank of one serves the other: both take embeddings, of encoders that are the same."""
    if not (a.method.takes_embeddings and b.method.takes_embeddings):
        return False
    first, second = a.method.encoder, b.method.encoder
    mine, other = first.state_dict(), second.state_dict()
    return (
        resolved(first) == resolved(second)
        and mine.keys() == other.keys()
        and all(torch.equal(mine[k], other[k]) for k in mine)
    )


def _restricted(bank: Bank, have: Sequence[int], common: list[int]) -> Bank:
    """The rows of a bank that every other one has too."""
    if len(have) == len(common):
        return bank
    row_of = {position: row for row, position in enumerate(have)}
    rows = [row_of[position] for position in common]
    return Bank(map_inputs(lambda leaf: leaf[torch.tensor(rows, device=leaf.device)], bank.x), select(bank.items, rows))


def _entry(
    name: str,
    subject: Subject,
    bank: Bank,
    tasks: list[Indices],
    items: Items,
    split: str,
    shape: dict[str, Any],
    marks: list[Leak],
    progress: Progress | None,
) -> tuple[Entry, np.ndarray, np.ndarray]:
    """An entry, its scores [B], and the classes of the episodes [B, N]."""
    answer(subject.method, bank, tasks[:WARM], min(WARM, len(tasks)))  # the first takes longer
    begin = time.perf_counter()
    with _memory(bank) as most:
        answers = answer(subject.method, bank, tasks, len(tasks), progress=progress)
    seconds = time.perf_counter() - begin
    evaluation = evaluation_of(subject, answers, items, split, shape, marks, seconds)
    entry = Entry(name, evaluation, round(1000 * seconds / len(tasks), 3), round(most[0] / 2**20, 1))
    return entry, answers.scores, answers.classes


@contextmanager
def _memory(bank: Bank) -> Any:
    """A list whose one number becomes the most bytes that were taken inside, beside what was there."""
    most = [0]
    device = bank.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield most
        most[0] = torch.cuda.max_memory_allocated(device) - before
        return
    import psutil  # accelerate brings it

    process, over = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def look() -> None:
        while not over.wait(EVERY):
            most[0] = max(most[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()
        most[0] = max(most[0], process.memory_info().rss - before)


def _pairs(names: list[str], scores: dict[str, np.ndarray], classes: np.ndarray | None) -> list[Pair]:
    """All pairs of names, the best first."""
    each = [(a, b, difference(scores[a], scores[b], classes)) for a, b in combinations(names, 2)]
    corrected = holm(np.array([one.p for *_, one in each])).tolist()
    return [
        Pair(a, b, one.mean, one.ci95, one.ci95_classes, p, p < LEVEL)
        for (a, b, one), p in zip(each, corrected, strict=True)
    ]


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Write a picture: accuracy against shots, or, of one number of shots, the entries with their intervals. SVG, PNG or PDF."""
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    first = comparisons[0]
    names = [entry.name for entry in first.entries]
    many = len(comparisons) > 1
    figure = Figure(figsize=(7, 4.5) if many else (7, 0.9 + 0.45 * len(names)), layout="constrained")
    axis = figure.subplots()
    for place, name in enumerate(names):
        found = [next(e.evaluation for e in one.entries if e.name == name) for one in comparisons]
        accuracy, half = [e.accuracy for e in found], [e.ci95 for e in found]
        if many:
            axis.errorbar(
                [str(one.shot) for one in comparisons], accuracy, yerr=half, marker="o", capsize=2, label=name
            )
        else:
            wide = found[0].ci95_classes
            if wide is not None:
                axis.plot(
                    [accuracy[0] - wide, accuracy[0] + wide],
                    [place, place],
                    color="0.75",
                    linewidth=5,
                    solid_capstyle="butt",
                )
            axis.errorbar(accuracy, [place], xerr=half, marker="o", capsize=3, color="C0")
    if many:
        axis.set(xlabel="labelled examples of each class (shots)", ylabel=f"accuracy, {spelled(first.way)}-way")
        axis.legend(loc="lower right")
    else:
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)  # the best on top
        told = "" if all(e.evaluation.ci95_classes is None for e in first.entries) else "; wide: over classes"
        axis.set_xlabel(f"accuracy, {spelled(first.way)}-way {first.shot}-shot (thin: over episodes{told})")
    try:
        write(figure, path)
    except (OSError, ValueError) as error:  # ValueError: no such format
        raise MultifslError(f"cannot draw {path}: {error}") from error
