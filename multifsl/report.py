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
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.evaluation import (
    Drawn,
    Subject,
    answer,
    blocks,
    cache_for,
    embedded,
    evaluation_of,
    highest,
    leaks_of,
    open_subject,
)
from multifsl.options import check_arguments
from multifsl.page import el, page
from multifsl.report_figures import Mistake, Point, Result, Shown, body
from multifsl.report_media import Medium, medium
from multifsl.shipped import names_run, run_folder
from multifsl.task import Items, check_split

SHOTS = (1, 5)
POINTS = 600  # of the maps of a page, all together
MISTAKES = 9
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
        list(allow_leaks), batch_size, cache, device, data_root, allow_download, progress, len(sources),
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
    """The arguments of `report` that every source needs; shape: EpisodeSampler's but for the shots. parts: how many sources."""

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
    parts: int


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
    marks = leaks_of(subject, split, items, allowed=ask.allow_leaks, data_root=ask.data_root, progress=ask.progress)
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
    return found


def _split(subject: Subject, split: str | None) -> tuple[str, Items]:
    """The split asked for, else the test classes, else, where these are not here, those of validation."""
    if split is not None:
        return split, subject.task.items(split)
    try:
        return "test", subject.task.items("test")
    except DataNotFound:
        return "val", subject.task.items("val")


def _bank(subject: Subject, items: Items, ask: _Ask) -> Bank:
    kept = cache_for(subject) if ask.cache else None
    return embedded(subject.method, items, batch_size=ask.batch_size, cache=kept, progress=ask.progress)


def _answered(subject: Subject, bank: Bank, drawn: Drawn, episodes: int, ask: _Ask) -> _Seen:
    tasks = [task for block in blocks(drawn.sampler(bank), episodes) for task in block]
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
    figures, run = result.figures, result.source if _is_run(result.source) else None
    way, shot = (value if isinstance(value, int) else tuple(value) for value in (figures["way"], figures["shot"]))
    with warnings.catch_warnings(
        action="ignore"
    ):  # what it warns of does not matter: only whether the accuracy is the same
        subject = open_subject(
            run, task=figures["task"], encoder=None if run else figures["encoder"], method=None if run else figures["method"],
            ways=highest(way), seed=figures["seed"], device=ask.device, data_root=ask.data_root, allow_download=ask.allow_download,
        )  # fmt: skip
    if run is None and not subject.method.encoder.pretrained:
        raise MultifslError("the file does not hold the encoder's weights; name the run itself beside it")
    shape = {"way": way, "shot": shot, "query": figures["query"], "seed": figures["seed"]}
    items = subject.task.items(figures["split"])
    drawn = Drawn(items, [], 0, shape)
    seen = _answered(subject, _bank(subject, items, ask), drawn, figures["episodes"], ask)
    found = float(seen.answers.scores.mean())
    if abs(found - figures["accuracy"]) > 1e-4:
        raise MultifslError(
            f"the same encoder and method had an accuracy of {found:.4f} here, not {figures['accuracy']:.4f}: trained weights or "
            "options of the episodes are not in the file; name the run itself beside it"
        )
    return seen


# ---- items ----


def _add_items(shown: Shown, seen: _Seen, ask: _Ask) -> None:
    """All pairs of classes that were confused, the map, and the mistakes."""
    names, answers = seen.bank.items.class_names, seen.answers
    both = np.stack([answers.true, answers.predicted], 1)[~answers.right]  # [wrong, 2]
    pairs, counts = np.unique(both, axis=0, return_counts=True)
    shown.pairs = [(names[a], names[b], n) for (a, b), n in zip(pairs.tolist(), counts.tolist(), strict=True)]
    shown.points = _points(seen, max(POINTS // ask.parts, 1), ask.shape["seed"])
    shown.mistakes = _mistakes(seen, max(MISTAKES // ask.parts, 1))


def _points(seen: _Seen, most: int, seed: int) -> list[Point]:
    """Some items of some classes, laid out by t-SNE; none where there are too few, or embeddings of one number."""
    from sklearn.manifold import TSNE

    items, rng = seen.bank.items, np.random.default_rng(seed)
    chosen = rng.permutation(np.unique(items.labels))[:CLASSES]
    each = max(most // len(chosen), 1)
    rows = np.concatenate([rng.permutation(np.flatnonzero(items.labels == c))[:each] for c in chosen])  # [P]
    method, z = seen.subject.method, seen.bank.gather(rows)
    if not method.takes_embeddings:
        z = method.encoder.embed(z)
    assert isinstance(z, Tensor)
    if len(rows) < 5 or z.shape[1] < 2:
        return []
    layout = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), metric="cosine", init="pca", random_state=seed)
    places = layout.fit_transform(z.cpu().numpy())  # [P, 2]
    places = places - (places.max(0) + places.min(0)) / 2
    return [
        Point(float(a), float(b), str(items.class_names[items.labels[row]]), _medium(seen, row, "point"))
        for row, (a, b) in zip(rows.tolist(), places, strict=True)
    ]


def _mistakes(seen: _Seen, most: int) -> list[Mistake]:
    """The most confident wrong answers, each query once."""
    answers, items, found = seen.answers, seen.bank.items, []
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
                items.class_names[answers.true[i]],
                items.class_names[answers.predicted[i]],
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
