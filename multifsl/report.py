"""A report: runs and results as one web page that needs no network, to be looked at rather than read.

Shape letters: n items of the split, P items on the map, D embedding width.
"""

import json
import math
import os
import shlex
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from multifsl.answers import Answers
from multifsl.bank import Bank, Progress
from multifsl.checkpoint import made_here, read_json, write_atomically
from multifsl.episode import Indices
from multifsl.episode_file import among, open_episodes, read_episodes
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.evaluation import (
    Drawn,
    Subject,
    answer,
    blocks,
    cache_for,
    class_labels,
    embedded,
    evaluation_of,
    highest,
    items_of,
    leaks_of,
    open_subject,
    positions,
)
from multifsl.options import check_arguments
from multifsl.page import el, page
from multifsl.report_figures import Mistake, Point, Result, Shown, body
from multifsl.report_media import Medium, medium
from multifsl.shipped import names_run, run_folder
from multifsl.task import Items, check_split

SHOTS = (1, 5)
ITEMISED = 6  # sources of a page of which items are shown: a map and mistakes of each
POINTS = 600  # on a map
MISTAKES = (24, 48)  # of a source, and of a page, at most
CLASSES = 20  # on a map: more colours than that cannot be told apart
SIDES = {"point": 64, "mistake": 160}  # pixels


def report(
    sources: Sequence[str],
    out: Path | str,
    *,
    task: str | None = None,
    split: str | None = None,
    way: int = 5,
    shots: Sequence[int] | None = None,
    query: int = 15,
    episodes: int = 600,
    seed: int = 0,
    skip_small_classes: bool = False,
    allow_leaks: Sequence[str] = (),
    batch_size: int = 64,
    cache: bool = True,
    device: str = "auto",
    data_root: Path | str | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML file about runs, which are evaluated, and about results that were written before; returns its path.

    What needs the items themselves (the map, the mistakes) is shown for runs, and for a result whose figures come out again here;
    what cannot be shown is named on the page, with the reason.

    Args:
        sources: runs' folders, "model:NAME", and files that `multifsl evaluate --json` or `multifsl compare --json` wrote.
        task: in the place of the runs' own. split: of the runs; by default "test", or "val" where there are no test data.
        shots: a result for each; by default 1 and 5, of which one is left out where its classes are too small.
        way, query, episodes, seed, skip_small_classes, allow_leaks: of the runs' evaluations; see `multifsl.evaluate`, as for the
            others.

    Raises:
        MultifslError: no such run or file, what is asked for does not fit together, or `out` cannot be written. BadFile: a file is
            damaged, or is no result.

    An example: `report(["model:omniglot-prototypical", "found.json"], "report.html")`
    """
    check_arguments(report, locals())
    if split is not None:
        check_split(split)
    if not sources or (shots is not None and not shots):
        raise MultifslError("a report needs at least one run or result, and at least one number of shots")
    out = Path(out)
    if os.path.isdir(out) or not os.access(out.parent, os.W_OK):
        why = "it is a folder" if os.path.isdir(out) else "its folder is not there, or is not yours to write to"
        raise MultifslError(f"cannot write {out}: {why}")
    # Before the long part, so that what is damaged is told at once.
    files = {source: read_result(Path(source)) for source in sources if not _is_run(source)}
    ask = _Ask(
        task, split, {"way": way, "query": query, "seed": seed, "skip_small_classes": skip_small_classes}, shots, episodes,
        list(allow_leaks), batch_size, cache, device, data_root, allow_download, progress,
        min(MISTAKES[0], MISTAKES[1] // min(len(sources), ITEMISED)), [],
    )  # fmt: skip
    shown = [_of_file(files[source], ask) if source in files else _of_run(source, ask) for source in sources]
    today = datetime.now().astimezone().isoformat(sep=" ", timespec="minutes")
    title = "multifsl report: " + ", ".join(one.title for one in shown)
    header = el("header", el("h1", title), el("p", f"Written {today}.", class_="line"))
    try:
        write_atomically(out, page(title, [header, el("main", body(shown))]))
    except OSError as error:
        raise MultifslError(f"cannot write {out}: {error.strerror or error}") from error
    return out


class _Ask(NamedTuple):
    """The arguments of `report` that every source needs; shape: EpisodeSampler's but for the shots.

    mistakes: of each source, at most. itemised: the sources of which items are shown already, with the embeddings on their map.
    """

    task: str | None
    split: str | None
    shape: dict[str, Any]
    shots: Sequence[int] | None
    episodes: int
    allow_leaks: list[str]
    batch_size: int
    cache: bool
    device: str
    data_root: Path | str | None
    allow_download: bool
    progress: Progress | None
    mistakes: int
    itemised: list[tuple[Shown, list[str], np.ndarray]]


class _Seen(NamedTuple):
    """Episodes and what was answered in them. tasks: in the order of `answers.episode`."""

    subject: Subject
    bank: Bank
    tasks: list[Indices]
    answers: Answers


# ---- runs ----


def _is_run(source: str) -> bool:
    return names_run(source) or os.path.isdir(source)


def _of_run(source: str, ask: _Ask) -> Shown:
    """A run, evaluated; where its data are not here, what its folder tells."""
    folder = run_folder(source)
    shown = Shown(source, steps=_steps(folder / "metrics.jsonl"))
    if not shown.steps:
        shown.notes.append("the learning curves: there is no metrics.jsonl beside its weights")
    try:
        subject = open_subject(
            source, task=ask.task, encoder=None, method=None, ways=ask.shape["way"], seed=ask.shape["seed"], device=ask.device,
            data_root=ask.data_root, allow_download=ask.allow_download, progress=ask.progress,
        )  # fmt: skip
        split, items = _split(subject, ask.split)
    except DataNotFound as error:
        shown.notes.append(f"all that an evaluation would give: {error}")
        shown.made["settings"] = read_json(folder / "run.json")
        return shown
    shown.made = {"command": [], **made_here(), "settings": subject.info}
    drawn = _drawn(shown, items, ask)
    marks = leaks_of(
        subject, split, items, allowed=ask.allow_leaks, cache=ask.cache, data_root=ask.data_root, progress=ask.progress
    )
    bank = _bank(subject, items, ask)
    for one in drawn:
        seen = _answered(subject, bank, one, ask.episodes, ask)
        figures = evaluation_of(subject, seen.answers, items, split, one.shape, marks, 0.0).to_json()
        shown.results.append(Result(source, figures))
        shown.made["command"].append(_command(source, split, one.shape, ask))
    shown.detail = shown.results[-1]
    _add_items(shown, seen, ask)
    return shown


def _drawn(shown: Shown, items: Items, ask: _Ask) -> list[Drawn]:
    """The episodes of each number of shots. Raises MultifslError, before the long part, where the classes are too small."""
    found = []
    for shot in SHOTS if ask.shots is None else ask.shots:
        try:
            found.append(Drawn(items, [], 0, {**ask.shape, "shot": shot}))
        except MultifslError as error:
            if ask.shots is not None or not found:
                raise
            shown.notes.append(f"{shot} shots: {error}")
            warnings.warn(f"{shown.title}: {shot} shots are left out: {error}", stacklevel=3)
    return found


def _split(subject: Subject, split: str | None) -> tuple[str, Items]:
    """The split asked for, else the test classes, else, where these are not here, those of validation."""
    if split is not None:
        return split, items_of(subject.task, split)
    try:
        return "test", subject.task.items("test")
    except DataNotFound:
        return "val", subject.task.items("val")


def _bank(subject: Subject, items: Items, ask: _Ask) -> Bank:
    kept = cache_for(subject) if ask.cache else None
    return embedded(subject.method, items, batch_size=ask.batch_size, cache=kept, progress=ask.progress)


def _answered(
    subject: Subject, bank: Bank, drawn: Drawn, episodes: int, ask: _Ask, listed: list[Indices] | None = None
) -> _Seen:
    tasks = listed or [task for block in blocks(drawn.sampler(bank), episodes) for task in block]
    return _Seen(subject, bank, tasks, answer(subject.method, bank, tasks, episodes, progress=ask.progress))


def _command(source: str, split: str, shape: dict[str, Any], ask: _Ask) -> str:
    """What gives the same figures on the command line."""
    words = ["multifsl", "evaluate", source, *([] if ask.task is None else ["--task", ask.task]), "--split", split]
    for key in ("way", "shot", "query", "seed"):
        words += [f"--{key}", str(shape[key])]
    words += ["--episodes", str(ask.episodes), *(["--skip-small-classes"] if shape["skip_small_classes"] else [])]
    words += [word for kind in ask.allow_leaks for word in ("--allow-leak", kind)]
    words += [] if ask.data_root is None else ["--data-root", str(ask.data_root)]
    return shlex.join(words)


def _steps(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics. Raises BadFile."""
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines() if path.exists() else (), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadFile(f"{path} is damaged in line {number}: {error}") from error
        where = f"{path} is damaged in line {number}: it"
        _check(row, {"step": int}, where)
        _check(row, {key: float for key in ("loss", "accuracy", "val_accuracy", "val_ci95") if key in row}, where)
        rows.append(row)
    return rows


# ---- files ----


class _File(NamedTuple):
    path: Path
    content: dict[str, Any]


_RANGE = (int, [int, int])
_LEAK = {"kind": str, "message": str}
_SHARES = [("share", None)]
_FIGURES = {
    **dict.fromkeys(("task", "split", "encoder", "method"), str),
    **dict.fromkeys(("way", "shot", "query"), _RANGE),
    **dict.fromkeys(("episodes", "seed"), int),
    "accuracy": "share", "ci95": float, "ci95_classes": (float, None), "macro_f1": ("share", None), "nll": float, "brier": float,
    "calibration_error": "share", "transductive": bool, "marks": [_LEAK],
    "unknown": (dict.fromkeys(("auroc", "aupr", "fpr_at_95_tpr"), float), None),
    "verification": (dict.fromkeys(("equal_error_rate", "min_dcf_0.01", "min_dcf_0.05"), float), None),
    "details": {
        "classes": [{"name": str, "accuracy": "share", "queries": int}],
        "confused": [{"true": str, "answered": str, "queries": int}],
        "reliability": {"queries": [int], "confidence": _SHARES, "accuracy": _SHARES},
        "coverage": {"coverage": _SHARES, "accuracy": _SHARES},
        "detection": ({"false_accept": _SHARES, "false_reject": _SHARES}, None),
    },
}  # fmt: skip
_ARGUMENTS = {  # of `evaluate`
    **dict.fromkeys(("run", "task", "encoder", "method", "episodes_file"), (str, None)), **dict.fromkeys(("split", "weights"), str),
    **dict.fromkeys(("way", "shot"), _RANGE), **dict.fromkeys(("query", "seed", "episodes", "unknown", "outside"), int),
    **dict.fromkeys(("disjoint_groups", "skip_small_classes"), bool), "imbalance": float,
}  # fmt: skip
_COMPARISON = {
    **dict.fromkeys(("task", "split"), str),
    **dict.fromkeys(("way", "shot"), _RANGE),
    "entries": [{"name": str, "evaluation": _FIGURES, "ms_per_episode": float, "memory": float}],
    "pairs": [{"a": str, "b": str, "mean": float, "ci95": float, "ci95_classes": (float, None), "p": "share", "shown": bool}],
}  # fmt: skip


def read_result(path: Path) -> _File:
    """What `multifsl evaluate --json` or `multifsl compare --json` wrote.

    Raises MultifslError where there is no such file. BadFile: it is damaged, or is no result, with the first thing that is wrong.
    """
    if not os.path.exists(path):
        raise MultifslError(
            f"there is no run and no result at {path}; a run is a folder or model:NAME, a result what `multifsl evaluate` or "
            "`multifsl compare` writes with --json FILE"
        )
    content = read_json(path)
    if "comparisons" in content:
        _check(content, {"comparisons": [_COMPARISON]}, f"{path} is no result: it")
    else:
        _check(content, _FIGURES, f"{path} is no result: it")
    return _File(path, content)


def _check(value: Any, like: Any, where: str) -> None:
    """Raises BadFile where a value is not like a pattern: a type, "share" (0 to 1), [pattern], {key: pattern}, or some of them."""
    if isinstance(like, tuple):
        if value is None and None in like:
            return
        kinds = [one for one in like if one is not None]
        like = next((one for one in kinds if isinstance(one, list) == isinstance(value, list)), kinds[0])
    if isinstance(like, dict):
        if not isinstance(value, dict) or not value.keys() >= like.keys():
            missing = like.keys() - (value.keys() if isinstance(value, dict) else set())
            raise BadFile(f"{where} lacks {', '.join(sorted(missing))}")
        for key, part in like.items():
            _check(value[key], part, f"{where}.{key}")
    elif isinstance(like, list):
        if not isinstance(value, list) or (len(like) > 1 and len(value) != len(like)):
            raise BadFile(f"{where} must be a list, not {str(value)[:60]}")
        for i, part in enumerate(value):
            _check(part, like[0], f"{where}[{i}]")
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        right = {
            str: isinstance(value, str), bool: isinstance(value, bool), float: number, "share": number and 0 <= value <= 1,
            int: number and isinstance(value, int) and value >= 0,
        }[like]  # fmt: skip
        if not right:
            words = {
                str: "a text",
                bool: "true or false",
                float: "a number",
                int: "a whole number",
                "share": "a number from 0 to 1",
            }
            raise BadFile(f"{where} must be {words[like]}, not {str(value)[:60]}")


def _of_file(file: _File, ask: _Ask) -> Shown:
    content = file.content
    known = {"command": str, "date": str, "versions": dict}  # of a file that Python wrote there is none
    made = {key: content[key] for key, kind in known.items() if isinstance(content.get(key), kind)}
    shown = Shown(file.path.name, made=made)
    if "comparisons" in content:
        shown.comparisons = content["comparisons"]
        for one in shown.comparisons:
            shown.results += [Result(entry["name"], entry["evaluation"]) for entry in one["entries"]]
        best = [one["entries"][0]["evaluation"] for one in shown.comparisons if one["entries"]]
        shown.detail = next((result for result in shown.results if best and result.figures is best[-1]), None)
    else:
        shown.detail = Result(shown.title, content)
        shown.results = [shown.detail]
    if shown.detail is not None:
        try:
            _add_items(shown, _again(shown.detail, ask), ask)
        except MultifslError as error:
            shown.notes.append(f"the map and the mistakes: {error}")
    return shown


def _again(result: Result, ask: _Ask) -> _Seen:
    """The same episodes once more. Raises MultifslError where that cannot be, or does not give the same accuracy."""
    figures = result.figures
    if not isinstance(figures.get("arguments"), dict):
        raise MultifslError("the file does not say what it was made by (`arguments`); name the run itself beside it")
    asked: dict[str, Any] = {
        **dict.fromkeys(("disjoint_groups", "skip_small_classes"), False), "imbalance": 0.0, "unknown": 0, "outside": 0,
        "episodes_file": None, **figures["arguments"],
    }  # fmt: skip
    if asked["episodes_file"] is not None and asked["way"] == "all":
        asked["way"] = 1  # which does not count: the file's does
    _check(asked, _ARGUMENTS, f"{result.source} is no result: it.arguments")
    way, shot = (value if isinstance(value, int) else tuple(value) for value in (asked["way"], asked["shot"]))
    file = None if asked["episodes_file"] is None else open_episodes(Path(asked["episodes_file"]))
    with warnings.catch_warnings(
        action="ignore"
    ):  # what they say does not matter: only whether the accuracy is the same
        subject = open_subject(
            **{key: asked[key] for key in ("run", "task", "encoder", "method", "weights", "seed")},
            ways=highest(way) if file is None else file.ways, device=ask.device, data_root=ask.data_root,
            allow_download=ask.allow_download, progress=ask.progress,
        )  # fmt: skip
    split, outside = asked["split"], asked["outside"]
    check_split(split)
    outsiders = subject.task.unknowns(split) if outside else []
    shape = {
        key: asked[key] for key in ("query", "seed", "disjoint_groups", "imbalance", "skip_small_classes", "unknown")
    }
    shape |= {"way": way, "shot": shot}
    drawn = Drawn(items_of(subject.task, split), outsiders, outside, shape, check=file is None)
    bank = _bank(subject, drawn.items, ask)
    listed = None
    if file is not None:
        listed = among(positions(drawn.items, bank.items), read_episodes(file, drawn.items, split), file.path)
    seen = _answered(subject, bank, drawn, asked["episodes"], ask, listed)
    found = float(seen.answers.scores.mean())
    if abs(found - figures["accuracy"]) > 1e-4:
        raise MultifslError(
            f"the same arguments gave an accuracy of {found:.4f} here, not {figures['accuracy']:.4f}: the weights or the data are "
            "not those of the file"
        )
    return seen


# ---- items ----


def _add_items(shown: Shown, seen: _Seen, ask: _Ask) -> None:
    """All pairs of classes that were confused, the map, unless it is that of a source before, and the mistakes."""
    names, answers = class_labels(seen.bank.items, seen.subject.task), seen.answers
    both = np.stack([answers.true, answers.predicted], 1)[~answers.right]  # [wrong, 2]
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    shown.pairs = [(names[a], names[b], n) for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)]
    if len(ask.itemised) == ITEMISED:
        shown.notes.append(
            f"the map and the mistakes: a page shows items of its first {ITEMISED} sources; make a page of this one alone"
        )
        return
    rows, z = _on_the_map(seen, ask.shape["seed"])
    classes = [str(names[c]) for c in seen.bank.items.labels[rows].tolist()]
    for other, known, embeddings in ask.itemised:
        if known == classes and embeddings.shape == z.shape and np.allclose(embeddings, z, atol=1e-5):
            other.mapped.append(shown.title)
            break
    else:
        shown.mapped = [shown.title]
        shown.whole = (len(seen.bank.items.labels), len(np.unique(seen.bank.items.labels)))
        shown.points = [
            Point(float(a), float(b), name, _medium(seen, row, "point"))
            for row, name, (a, b) in zip(rows.tolist(), classes, _layout(z, ask.shape["seed"]), strict=False)
        ]
    ask.itemised.append((shown, classes, z))
    shown.wrong, shown.asked = len(np.unique(answers.item[~answers.right])), len(np.unique(answers.item))
    shown.mistakes = _mistakes(seen, names, ask.mistakes)


def _on_the_map(seen: _Seen, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [P] of some items of some classes, and their embeddings [P, D]."""
    labels, rng = seen.bank.items.labels, np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(labels))[:CLASSES]
    rows = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[: POINTS // len(chosen)] for c in chosen])
    method, z = seen.subject.method, seen.bank.gather(rows)
    if not method.takes_embeddings:
        z = method.encoder.embed(z)
    assert isinstance(z, Tensor)
    return rows, z.float().cpu().numpy()


def _layout(z: np.ndarray, seed: int) -> np.ndarray:
    """Places [P, 2] by t-SNE, around 0; none where there are too few embeddings, or embeddings of one number."""
    from sklearn.manifold import TSNE

    if len(z) < 5 or z.shape[1] < 2:
        return np.empty((0, 2))
    layout = TSNE(perplexity=min(30.0, (len(z) - 1) / 3), metric="cosine", init="pca", random_state=seed)
    places: np.ndarray = layout.fit_transform(z)
    places -= (places.max(0) + places.min(0)) / 2
    return places


def _mistakes(seen: _Seen, names: list[str], most: int) -> list[Mistake]:
    """The most confident wrong answers, each query once."""
    answers, found = seen.answers, []
    order = np.flatnonzero(~answers.right)
    order = order[np.argsort(-answers.confidence[order], kind="stable")]
    order = order[np.sort(np.unique(answers.item[order], return_index=True)[1])]
    for i in order[:most].tolist():
        task = seen.tasks[answers.episode[i]]
        own, other = (
            int(task.support[task.classes[task.support_y] == c][0]) for c in (answers.true[i], answers.predicted[i])
        )
        found.append(
            Mistake(
                names[answers.true[i]],
                names[answers.predicted[i]],
                float(answers.confidence[i]),
                *(_medium(seen, row, "mistake") for row in (int(answers.item[i]), own, other)),
            )
        )
    return found


def _medium(seen: _Seen, row: int, place: str) -> Medium:
    try:
        item = seen.bank.items.items[row]
        return medium(item, seen.subject.task.modality, side=SIDES[place], sound=place == "mistake")
    except BadItem as error:
        return {"text": str(error)}
