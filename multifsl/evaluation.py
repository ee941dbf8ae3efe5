"""Evaluation: what a method answers in episodes drawn by seed, or read from a file.

Shape letters: T tasks, N ways, Q queries, n items of the split, D embedding width.
"""

import contextlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multifsl.answers import Answers, collect, details, figures
from multifsl.bank import Bank, Progress, Stream, Tasks, embed_items, open_data, sampler_of, select
from multifsl.cache import EmbeddingCache
from multifsl.checkpoint import load_run, read_json
from multifsl.defaults import is_random, open_encoder, warn_of_euclidean
from multifsl.encoder import Encoder
from multifsl.episode import UNKNOWN, EpisodeSampler, Indices, Range
from multifsl.episode_file import Written, among, of_one_shape, open_episodes, read_episodes, write_episodes
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.leaks import READ_MOST, Contents, Leak, check_leaks, find_leaks, read_contents
from multifsl.method import Method
from multifsl.options import check_arguments
from multifsl.registry import build, names, parse, resolved
from multifsl.shipped import run_folder
from multifsl.task import SPLITS, Chain, Items, Task, check_split

DEFAULT_METHOD = "prototypical(distance='cosine')"
BASE_ITEMS = 2000  # of the train classes, for methods that want to see them
CHUNK = 32  # episodes solved together: small enough to stay in the cache, large enough to hide the dispatch
DRAWN = 4 * CHUNK  # episodes drawn together
MOST_BYTES = (
    2**24
)  # of logits of float32 that are solved together: some ten times as many are taken while they are read


@dataclass(frozen=True)
class Evaluation:
    """What a method did over episodes; docs/evaluation.md says what each figure estimates, and what not to conclude from it.

    accuracy: mean over episodes of the share of right queries, a fraction. ci95: half width of its 95 % interval over episodes
    (normal, 1.96 standard errors), which takes the data set as given; ci95_classes: the one that takes the classes and their items
    as the sample (`multifsl.intervals`), None where it cannot be told. macro_f1, nll (nats), brier (0 to 2), calibration_error (15
    bins of equal width): over all queries of all episodes. unknown: AUROC, AUPR and the false positive rate at 95 % true positives
    of the highest logit, where there are queries of no class. verification: equal error rate and normalised minimal detection
    costs, for speech. marks: leaks of data that were found and are no errors, or were allowed (`multifsl.leaks`). details: what a
    report draws. arguments: of `evaluate`, all that the figures depend on: `evaluate(**arguments)` gives them again, with the same
    data. Way, shot and queries stand beside it as they were: in a file of episodes they can be others than those asked for.
    """

    task: str
    split: str
    encoder: str
    method: str
    way: Range
    shot: Range
    query: Range
    episodes: int
    seed: int
    accuracy: float
    ci95: float
    ci95_classes: float | None
    macro_f1: float | None
    nll: float
    brier: float
    calibration_error: float
    unknown: dict[str, float] | None
    verification: dict[str, float] | None
    transductive: bool
    marks: list[Leak]
    seconds: float
    arguments: dict[str, Any] = field(repr=False)
    details: dict[str, Any] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "marks": [leak._asdict() for leak in self.marks]}


def evaluate(
    run: Path | str | None = None,
    *,
    task: str | Task | None = None,
    encoder: str | Encoder | None = None,
    method: str | None = None,
    weights: Literal["best", "last"] = "best",
    split: str = "test",
    way: Range | Literal["all"] = 5,
    shot: Range = 1,
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
) -> Evaluation:
    """Evaluate a run, or an encoder as it is.

    Args:
        run: a run's folder, or "model:NAME". Its own task is taken unless `task` names another. weights: its "best" or its "last".
        encoder: instead of a run, an encoder without further training. method: the one on top of it, by default
            "prototypical(distance='cosine')". With a run, in the place of its own: of the same name, with the run's weights (such
            as MAML with more steps); of another, on the run's encoder.
        split: "train", "val", "test" or "all". way, shot: a number, or a range (low, high) drawn anew for every episode; way
            may be "all", every class of the split at once.
        disjoint_groups: support and query share no recording, session or drawer. imbalance, skip_small_classes: see EpisodeSampler.
        unknown: classes beside the episode's whose items are among the queries. outside: queries an episode that belong to no class
            of the task, where it has such (`Task.unknowns`). Neither counts for the accuracy.
        episodes_file: where the episodes are read from; where there is no such file, the drawn ones are written to it. What is
            read counts, whatever way, shot, query, seed, unknown and outside are.
        allow_leaks: kinds of leaks that are to be marks, not errors, see `multifsl.leaks`. leak_check: "full" compares the
            items with any number of train items, "quick" with at most 20,000.
        cache: keep embeddings, and what the leak check read of files, on disk, and take what is there (`multifsl cache`).
        allow_download: let a run's pretrained encoder be downloaded where it is not on this machine.
        progress: wraps loops, such as `rich.progress.track`.

    Raises:
        MultifslError: what is asked for does not fit together, the split is too small for it, or data leak. DataNotFound: there
            are no data, or none of the split. BadFile: the file of episodes is damaged, or of other items.

    An example, on any folder with one folder of images a class:
    `evaluate(task="images('photos')", encoder="conv4", split="all", shot=5).accuracy`
    """
    check_arguments(evaluate, locals())
    check_split(split)
    begin = time.perf_counter()
    path, written, seed, outside = find_episodes(episodes_file, seed, outside)
    ways = written.ways if written is not None else None if way == "all" else highest(way)
    subject = open_subject(
        run, task=task, encoder=encoder, method=method, weights=weights, ways=ways, seed=seed, device=device, data_root=data_root,
        allow_download=allow_download, progress=progress,
    )  # fmt: skip
    learner, data = subject.method, subject.task
    items = items_of(data, split)
    shape: dict[str, Any] = {
        "way": way, "shot": shot, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes, "unknown": unknown,
    }  # fmt: skip
    drawn = Drawn(items, data.unknowns(split) if outside else [], outside, shape, check=written is None)
    if written is None:
        check_ways(learner, highest(drawn.shape["way"]))
    listed = [] if written is None else read_episodes(written, drawn.items, split)
    if listed and items.groups is not None:
        disjoint_groups = all(parted(one, drawn.items.groups) for one in listed)
    marks = leaks_of(
        subject, split, items, weights=weights, disjoint_groups=disjoint_groups, allowed=allow_leaks,
        full=leak_check == "full", cache=cache, data_root=data_root, progress=progress,
    )  # fmt: skip
    source = source_of(
        learner, drawn.items, batch_size=batch_size, cache=cache_for(subject) if cache else None, progress=progress
    )
    kept = positions(drawn.items, source.items)
    tasks: Tasks | list[Indices] = among(kept, listed, written.path) if written is not None else drawn.sampler(source)
    if path is not None and written is None:
        tasks = [task for block in blocks(tasks, episodes) for task in block]
        write_episodes(path, tasks, drawn.items, split, kept, seed, outside)
    answers = answer(learner, source, tasks, episodes, progress=progress)
    asked = {**drawn.shape, "outside": outside, "episodes_file": None if path is None else str(path)}
    found = evaluation_of(subject, answers, items, split, asked, marks, time.perf_counter() - begin)
    return replace(found, **shape_of(tasks)) if isinstance(tasks, list) else found


def find_episodes(file: Path | str | None, seed: int, outside: int) -> tuple[Path | None, Written | None, int, int]:
    """Where a file of episodes is, or is to be; what is there; and the seed and outside that count."""
    path = None if file is None else Path(file)
    if path is None or not path.exists():
        return path, None, seed, outside
    written = open_episodes(path)
    return (
        path,
        written,
        seed if written.seed is None else written.seed,
        outside if written.outside is None else written.outside,
    )


def shape_of(tasks: Sequence[Indices]) -> dict[str, Any]:
    """way, shot and query as they are in a list of tasks."""
    return {
        "way": _range_of([len(one.classes) for one in tasks]),
        "shot": _range_of([len(one.support) // len(one.classes) for one in tasks]),
        "query": _range_of([int((one.query_y != UNKNOWN).sum()) // len(one.classes) for one in tasks]),
    }


def evaluation_of(
    subject: "Subject",
    answers: Answers,
    items: Items,
    split: str,
    shape: dict[str, Any],
    marks: list[Leak],
    seconds: float,
) -> Evaluation:
    """The figures of answers. items: of the split. shape: the arguments of `evaluate` that the episodes were drawn by, of which
    way, shot, query and seed must be there."""
    method, found = subject.method, figures(answers)
    arguments = {
        **subject.asked, "split": split, **shape, "episodes": len(answers.scores),
        "allow_leaks": sorted({leak.kind for leak in marks if leak.severe}),
    }  # fmt: skip
    if is_joined(items):  # a class left out would move the share of its data set, which is no variation between classes
        found["ci95_classes"] = None
    return Evaluation(
        task=resolved(subject.task), split=split, encoder=resolved(method.encoder), method=resolved(method),
        **{key: shape[key] for key in ("way", "shot", "query", "seed")}, episodes=len(answers.scores), **found,
        transductive=method.transductive, marks=marks, seconds=round(seconds, 3), arguments=arguments,
        details=details(answers, class_labels(items, subject.task)),
    )  # fmt: skip


def class_labels(items: Items, task: Task) -> list[str]:
    """The classes' names; where joined data sets have the same ones, with the data set behind: "cat [photos]"."""
    counts = Counter(items.class_names)
    if items.sources is None or len(counts) == len(items.class_names):
        return items.class_names
    sets = [Path(str(part.kwargs.get("path") or part.name)).name for part in parse(resolved(task))]
    sets = [f"{name} {i}" if sets.count(name) > 1 else name for i, name in enumerate(sets, 1)]
    return [
        f"{name} [{sets[source]}]" if counts[name] > 1 else name
        for name, source in zip(items.class_names, items.sources.tolist(), strict=True)
    ]


def is_joined(items: Items) -> bool:
    """Whether the classes are of several data sets."""
    return items.sources is not None and len(np.unique(items.sources)) > 1


class Subject(NamedTuple):
    """What is evaluated: a method, in evaluation mode on its device, the task, and the page of its run, where it is of one. asked:
    the arguments of `evaluate` that give it again, None for what was built in Python and has no name that would. base: the task of
    whose train items the method was shown embeddings here."""

    method: Method
    task: Task
    info: dict[str, Any] | None
    asked: dict[str, str | None]
    base: Task | None = None


def open_subject(
    run: Path | str | None,
    *,
    task: str | Task | None,
    encoder: str | Encoder | None,
    method: str | None,
    weights: Literal["best", "last"] = "best",
    ways: int | None = None,
    seed: int = 0,
    device: str = "auto",
    data_root: Path | str | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> Subject:
    """A run's method, or one on an encoder as it is. ways: the most classes of an episode. Raises as `evaluate`."""
    where = pick_device(device)
    torch.manual_seed(seed)  # weights that nobody trained or published start at random
    info: dict[str, Any] | None = None
    if run is not None:
        if encoder is not None:
            raise MultifslError("evaluate takes a run or an encoder, not both")
        loaded = load_run(run, method=method, way=ways, weights=weights, device=where, allow_download=allow_download)
        learner, info = loaded.method, loaded.info
        task = info.get("task") if task is None else task
        if not isinstance(task, str | Task):
            raise BadFile(f"{run} names no task")
    elif encoder is None or task is None:
        raise MultifslError(
            "evaluate takes a run, or a task and an encoder; where a result's arguments have None for these, they were built in "
            "Python, and are to be given as they were"
        )
    data = build("tasks", task, data_root=data_root) if isinstance(task, str) else task
    if encoder is not None:
        network = open_encoder(encoder, task=data)
        if is_random(encoder, network):
            warnings.warn(f"{encoder} has random weights: it was neither trained nor published", stacklevel=3)
        learner = build("methods", method or DEFAULT_METHOD, encoder=network, way=ways).to(where)
        learner.warn_of_random_weights()
        warn_of_euclidean(method or DEFAULT_METHOD, network)
    check_modality(learner, data)
    if ways is not None:
        check_ways(learner, ways)
    base = None
    if learner.wants_base and not learner.saw_base:
        own = None if info is None else info.get("task")
        base = data if own in (None, task) else build("tasks", own, data_root=data_root)
        learn_base(learner.eval(), base.items("train"), progress)
    named: str | None = learner.encoder.run or resolved(learner.encoder)
    if isinstance(encoder, Encoder) and encoder.run is None and not encoder.published:
        named = None
    asked = {
        "run": None if run is None else str(run), "weights": weights,
        "task": resolved(data) if all(part.name in names("tasks") for part in parse(resolved(data))) else None,
        "encoder": None if run is not None else named,
        "method": None if run is not None and method is None else resolved(learner),
    }  # fmt: skip
    return Subject(learner.eval(), data, info, asked, base)


def check_ways(method: Method, ways: int) -> None:
    """Raises MultifslError where a method cannot tell so many classes apart."""
    if method.max_way is not None and ways > method.max_way:
        raise MultifslError(
            f"{resolved(method)} tells at most {method.max_way} classes apart, not {ways}: ask for fewer (--way), or "
            f"take one that was built or trained with max_way={ways}"
        )


def items_of(task: Task, split: str) -> Items:
    """The items of a split. Raises DataNotFound; where other splits are there, it names them."""
    try:
        return task.items(split)
    except DataNotFound as error:
        here = []
        for other in set(SPLITS) - {split}:
            with contextlib.suppress(DataNotFound):
                task.items(other)
                here.append(f"--split {other}")
        if not here:
            raise
        raise DataNotFound(f"{error}; other classes are here: {', '.join(sorted(here))}") from error


def cache_for(subject: Subject) -> EmbeddingCache | None:
    """Where a subject's embeddings are kept. Random weights are nobody's: their embeddings would be looked up never again."""
    known = subject.info is not None or subject.method.encoder.pretrained
    return EmbeddingCache() if known else None


def leaks_of(
    subject: Subject,
    split: str,
    items: Items | Contents,
    *,
    weights: str = "best",
    disjoint_groups: bool = False,
    allowed: Collection[str] = (),
    full: bool = False,
    cache: bool = False,
    data_root: Path | str | None = None,
    progress: Progress | None = None,
) -> list[Leak]:
    """The leaks to mark. items: of the split.

    Raises MultifslError for a severe leak that is not allowed.
    """
    check_leaks([], allowed)
    encoder, info = subject.method.encoder, subject.info
    if info is None and encoder.run is not None:
        info = read_json(run_folder(encoder.run) / "run.json")
    pasts = [_with_train_items(info, data_root)]
    if subject.base is not None:  # without a run, of the evaluated task, which is then what was learned from
        page = {"task": resolved(subject.base), "encoder": (info or {}).get("encoder")}
        pasts = [*(pasts if info else []), (page, subject.base.items("train"))]
    test = items if isinstance(items, Contents) else read_contents(items, subject.task.modality, progress, cache=cache)
    found = [
        leak
        for past, train in pasts
        for leak in find_leaks(
            subject.task, split, encoder=encoder, test=test, train=train, run_info=past, weights=weights,
            disjoint_groups=disjoint_groups, most=None if full else READ_MOST, cache=cache, progress=progress,
        )
    ]  # fmt: skip
    return check_leaks(dict.fromkeys(found), allowed)


def _with_train_items(
    info: dict[str, Any] | None, data_root: Path | str | None
) -> tuple[dict[str, Any] | None, Items | None]:
    """A run's page, with the place where its train items now are, and these; None where they are not here, or are not the same."""
    if info is None:
        return None, None
    for at in dict.fromkeys((info.get("task_at", info["task"]), info["task"])):
        with contextlib.suppress(MultifslError):  # then it is marked as not checked
            train = build("tasks", at, data_root=data_root).items("train")
            if info.get("train_items") in (None, [len(train.labels), train.fingerprint()]):
                return {**info, "task_at": at}, train
    return info, None


class Drawn:
    """The items that episodes are drawn from; behind those of the classes, some of no class, of which each episode gets a few.

    outsiders: the items of no class, and outside: how many an episode. shape: EpisodeSampler's options; a way of "all" becomes the
    number of classes.

    Raises MultifslError, before anything is read, where the items are too few; not with check=False, for episodes from elsewhere.
    """

    def __init__(
        self, items: Items, outsiders: Sequence[Any], outside: int, shape: dict[str, Any], *, check: bool = True
    ) -> None:
        self.every, self.shape = shape["way"] == "all", shape
        if check:
            self._sampler(items)
        if outside > len(outsiders):
            raise MultifslError(
                f"{outside} queries of no class an episode were asked for, and the split has {len(outsiders)} such items; take "
                "classes of the split for unknown instead (--unknown)"
            )
        self.own, self.outside, self.items = items, outside, items
        if outside:
            many = len(outsiders)
            groups = items.groups
            if groups is not None:
                groups = np.concatenate([groups, np.full(many, int(groups.max(initial=-1)) + 1)])
            labels = np.concatenate([items.labels, np.full(many, len(items.class_names))])
            sources = None if items.sources is None else np.append(items.sources, -1)
            self.items = Items(Chain([items.items, outsiders]), labels, [*items.class_names, "(none)"], groups, sources)

    def sampler(self, source: Bank | Stream) -> Tasks:
        """What draws tasks from the bank, or the stream, of these items, some of which may not have been readable."""
        if not self.outside:
            return self._sampler(source.items)
        count = int((source.items.labels < len(self.own.class_names)).sum())
        kept = select(source.items, range(count))
        own = Items(kept.items, kept.labels, self.own.class_names, kept.groups, self.own.sources)
        rows = np.arange(count, len(source.items.labels))
        return WithOutside(self._sampler(own), rows, self.outside)

    def _sampler(self, items: Items) -> EpisodeSampler:
        if self.every:
            self.shape = {**self.shape, "way": all_ways(sampler_of(items, **{**self.shape, "way": 2}))}
        return sampler_of(items, **self.shape)


class WithOutside:
    """A sampler's tasks with queries of no class behind the others."""

    def __init__(self, sampler: EpisodeSampler, rows: np.ndarray, count: int) -> None:
        if count > len(rows):
            raise MultifslError(
                f"{count} queries of no class an episode were asked for; {len(rows)} of them can be read"
            )
        self.sampler, self.rows, self.count = sampler, rows, count

    def tasks(self, step: int, count: int) -> list[Indices]:
        return [self._more(task, step, index) for index, task in enumerate(self.sampler.tasks(step, count))]

    def _more(self, task: Indices, step: int, index: int) -> Indices:
        rng = np.random.default_rng((self.sampler.seed, step, index, 2))
        query = np.concatenate([task.query, rng.choice(self.rows, self.count, replace=False)])
        return task._replace(query=query, query_y=np.concatenate([task.query_y, np.full(self.count, UNKNOWN)]))


def embedded(
    method: Method,
    data: Items | Bank,
    *,
    batch_size: int = 64,
    cache: EmbeddingCache | None = None,
    progress: Progress | None = None,
) -> Bank:
    """What a method's episodes are gathered from: embeddings [n, D], or, where it adapts the encoder, the items, decoded once.

    Raises BadItem where an embedding is not finite.
    """
    if not method.takes_embeddings:
        if isinstance(data, Bank):
            return data
        return Bank.build(method.encoder, data, device=method.encoder.device, progress=progress)
    if isinstance(data, Bank):
        z, items = method.encoder.embed(data.x, batch_size), data.items
    else:
        z, items = embed_items(method.encoder, data, batch_size=batch_size, cache=cache, progress=progress)
    check_finite(z, items.items)
    return Bank(z, items)


def source_of(
    method: Method,
    data: Items | Bank | Stream,
    *,
    batch_size: int = 64,
    cache: EmbeddingCache | None = None,
    progress: Progress | None = None,
) -> Bank | Stream:
    """As `embedded`, but where a method adapts the encoder, items that would take too much memory are streamed, with a warning."""
    if method.takes_embeddings or isinstance(data, Bank):
        data = data.items if isinstance(data, Stream) else data
        return embedded(method, data, batch_size=batch_size, cache=cache, progress=progress)
    if isinstance(data, Stream):
        return data
    return open_data(method.encoder, data, device=method.encoder.device, progress=progress)


def all_ways(sampler: EpisodeSampler) -> int:
    """How many classes an episode of all classes has. Raises MultifslError where it would be of several data sets."""
    if len(sampler.pools) > 1:
        raise MultifslError(
            "an episode stays within one data set: with way='all' take one task, not several that are joined"
        )
    return len(sampler.pools[0]) - sampler.unknown


def positions(items: Items, kept: Items) -> Sequence[int]:
    """Where those that `bank.select` kept stand among the items."""
    return range(len(items.labels)) if kept is items else kept.items.positions  # type: ignore[attr-defined]


def blocks(tasks: Tasks | list[Indices], episodes: int) -> Iterator[Sequence[Indices]]:
    """Tasks of one shape, CHUNK at most together: those of a list, or as many as `episodes` of a sampler.

    Of a sampler whose way or shot is a range, each task is of a step of its own, and so of a shape of its own: with one shape for
    a whole block, the episodes would not be independent, and intervals over them too narrow. Those of one shape come together.
    """
    if isinstance(tasks, list):
        yield from of_one_shape(tasks, CHUNK)
        return
    sampler = tasks.sampler if isinstance(tasks, WithOutside) else tasks
    if isinstance(sampler, EpisodeSampler) and sampler.varies:
        each = [tasks.tasks(step, 1)[0] for step in range(episodes)]
        yield from of_one_shape(sorted(each, key=lambda task: (len(task.classes), len(task.support))), CHUNK)
        return
    if isinstance(tasks, EpisodeSampler):
        for start in range(0, episodes, DRAWN):
            places = np.arange(start, min(start + DRAWN, episodes))
            drawn = tasks.drawn(places // CHUNK, places % CHUNK)
            yield from (drawn[i : i + CHUNK] for i in range(0, len(drawn), CHUNK))
        return
    for step, start in enumerate(range(0, episodes, CHUNK)):
        yield tasks.tasks(step, min(CHUNK, episodes - start))


def solved(
    method: Method, source: Bank | Stream, tasks: Tasks | list[Indices], episodes: int, progress: Progress | None = None
) -> Iterator[tuple[Sequence[Indices], Tensor, Tensor]]:
    """Each block of tasks, cut where its logits would be many, with them [T, Q, N] and its queries' labels [T, Q], both on the
    source's device."""
    was_training = method.training
    method.eval()
    run = method.solve_embedded if method.takes_embeddings else method
    each: Iterable[Sequence[Indices]] = blocks(tasks, episodes)
    if progress:
        count = len(list(of_one_shape(tasks, CHUNK))) if isinstance(tasks, list) else -(-episodes // CHUNK)
        each = progress(each, description="episodes", total=count)

    def fitting() -> Iterator[Sequence[Indices]]:
        for block in each:
            fit = max(1, MOST_BYTES // (4 * len(block[0].query) * len(block[0].classes)))
            yield from (block[start : start + fit] for start in range(0, len(block), fit))

    try:
        for part, batch in source.batches(fitting()):
            with torch.inference_mode():
                logits = run(batch).logits
            yield part, logits, batch.query.y
    finally:
        method.train(was_training)


def answer(
    method: Method,
    source: Bank | Stream,
    tasks: Tasks | list[Indices],
    episodes: int,
    *,
    progress: Progress | None = None,
) -> Answers:
    """All that a method answers in a list of tasks, or in as many as `episodes` of a sampler; of speech, trials of verification
    too, where a class's logit is a score of that class."""
    trials = method.encoder.modality == "speech" and method.class_by_class
    found = collect(
        ((block, logits) for block, logits, _ in solved(method, source, tasks, episodes, progress)), trials=trials
    )
    _warn_of_diverged(found.diverged, len(found.scores))
    return found


def solve(
    method: Method, source: Bank | Stream, tasks: Tasks | list[Indices], episodes: int, progress: Progress | None = None
) -> np.ndarray:
    """Accuracy of each episode, float64 [episodes], over a bank or a stream as `source_of` makes it."""
    out: list[Tensor] = []
    diverged: list[Tensor] = []
    for _, logits, y in solved(method, source, tasks, episodes, progress):
        highest, picked = logits.max(2)  # [T, Q]
        lost = ~highest.isfinite()  # no number is the highest: such an answer is the first class, and right by chance
        right = (picked.masked_fill(lost, 0) == y) & (y >= 0)
        out.append(right.sum(1) / (y >= 0).sum(1).clamp(min=1))
        diverged.append(lost.any(1))
    _warn_of_diverged(int(torch.cat(diverged).sum()), episodes)
    return torch.cat(out).cpu().double().numpy()


def episode_accuracies(
    method: Method,
    data: Items | Bank | Stream,
    *,
    way: Range = 5,
    shot: Range = 1,
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> np.ndarray:
    """Accuracy of each episode, float64 [episodes], in evaluation mode."""
    shape: dict[str, Any] = {
        "way": way, "shot": shot, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes,
    }  # fmt: skip
    sampler_of(data if isinstance(data, Items) else data.items, **shape)  # asked for the impossible, it says so at once
    source = source_of(method, data, batch_size=batch_size, progress=progress)
    return solve(method, source, sampler_of(source.items, **shape), episodes, progress)


def parted(task: Indices, groups: np.ndarray | None) -> bool:
    """Whether the support and the queries of a task share no group."""
    return groups is None or not np.isin(groups[task.query], groups[task.support]).any()


def _warn_of_diverged(count: int, episodes: int) -> None:
    if count:
        warnings.warn(
            f"in {count} of {episodes} episodes the adaptation diverged (its answers are not numbers, and count by chance): a "
            "smaller inner learning rate, lr, helps",
            stacklevel=3,
        )


def _range_of(values: Sequence[int]) -> Range:
    """The number that all values are, or the range that they are in."""
    low, high = min(values), max(values)
    return low if low == high else (low, high)


def learn_base(method: Method, data: Items | Bank, progress: Progress | None = None) -> None:
    """Show a method embeddings of some of the train classes' items, BASE_ITEMS at most, evenly spread."""
    bank, items = (data, data.items) if isinstance(data, Bank) else (None, data)
    count = len(items.labels)
    rows = np.unique(np.linspace(0, count - 1, min(count, BASE_ITEMS)).astype(np.int64))
    if bank is not None:
        z = method.encoder.embed(bank.gather(rows))
    else:
        z, _ = embed_items(method.encoder, select(items, rows.tolist()), progress=progress)
    method.learn_base(z)


def check_finite(z: Tensor, items: Sequence[Any]) -> None:
    """Raises BadItem naming the first item whose embedding is not finite."""
    finite = torch.isfinite(z).all(dim=1)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        name = items.iloc[position] if hasattr(items, "iloc") else items[position]
        raise BadItem(f"the embedding of item {position} ({str(name)[:80]}) is not finite")


def highest(value: Range) -> int:
    """The larger end of a range."""
    return value if isinstance(value, int) else value[1]


def check_modality(method: Method, task: Task) -> None:
    """An encoder reads one modality, and the task must be of it."""
    if method.encoder.modality != task.modality:
        raise MultifslError(
            f"the encoder {resolved(method.encoder)!r} reads {method.encoder.modality} items, "
            f"but the task {resolved(task)!r} has {task.modality} items"
        )


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA, else Apple's GPU, else the CPU. Raises MultifslError for a device that is not there."""
    have: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device == "auto":
        return torch.device(next((name for name, there in have.items() if there()), "cpu"))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MultifslError(f"no device {device!r}; known: auto, cpu, cuda, mps") from None
    if chosen.type not in ("cpu", *have) or (chosen.type in have and not have[chosen.type]()):
        raise MultifslError(
            f"the device {device!r} is not there; known here: {', '.join(['auto', 'cpu', *(n for n, t in have.items() if t())])}"
        )
    return chosen
