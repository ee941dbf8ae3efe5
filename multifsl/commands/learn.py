"""`multifsl fit`, `enroll`, `forget`, `rename`, `predict`, `verify`, `info` and `demo`: models of one's own classes."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifsl.commands.shared import AllowDownload, Debug, Device, Json, Modality, Overwrite, Plugin, count
from multifsl.errors import BadItem, MultifslError
from multifsl.lock import locked
from multifsl.terminal import lines, say, say_meanwhile, show_table, track, write_json

if TYPE_CHECKING:
    from multifsl.classifier import FewShotClassifier
    from multifsl.task import Items, Task

_OWN_TASKS = {"image": "images", "speech": "speakers", "text": "texts"}


def fit(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="A folder or zip file with one folder a class, or JSON lines or CSV of texts."
        ),
    ],
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder to write.")],
    run: Annotated[
        str | None, typer.Option(help="Take the encoder and the method of a run: its folder, or model:NAME.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder; by default the best for the modality that can be had here.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="The method, or auto; by default the run's, or prototypical(distance='cosine')."),
    ] = None,
    reject: Annotated[
        str | None,
        typer.Option(metavar="auto|NUMBER", help="Answer unknown: by a threshold that is set for you, or your own."),
    ] = None,
    false_accept: Annotated[
        float, typer.Option(help="With --reject auto: the share of unknown items that may be taken for known ones.")
    ] = 0.05,
    background: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA", help="Items of no class, 20 or more, by which unknown ones are told; laid out as DATA."
        ),
    ] = None,
    modality: Annotated[Modality | None, typer.Option(help="What the items are, where the files do not say.")] = None,
    text_column: Annotated[str, typer.Option(help="The column, or JSON key, of the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column, or JSON key, of the label.")] = "label",
    device: Device = "auto",
    allow_download: AllowDownload = False,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Learn the classes of a folder or a file of texts, and save the model."""
    if run is not None and encoder is not None:
        raise MultifslError("give --run or --encoder, not both")
    if model.exists() and not overwrite:
        raise MultifslError(f"{model} exists already; choose another place, or give --overwrite")
    task = _own_task(data, modality, text_column, label_column)
    say_meanwhile("loading the encoder ...")
    from multifsl.classifier import FewShotClassifier
    from multifsl.evaluation import DEFAULT_METHOD
    from multifsl.store import check_label

    items = task.items("all")
    for name in items.class_names:
        check_label(name)
    others = None if background is None else _own_task(background, modality, text_column, label_column)
    if others is not None and others.modality != task.modality:
        raise MultifslError(f"the background has {others.modality} items, but the data are {task.modality} items")
    if run is not None and method == "auto":
        raise MultifslError(
            "--method auto chooses among heads on a frozen encoder: give the run's as --encoder run:FOLDER"
        )
    if run is not None:
        way = len(items.class_names)
        classifier = FewShotClassifier.from_run(
            run, method=method, way=way, device=device, allow_download=allow_download
        )
    else:
        classifier = FewShotClassifier(
            task.modality if encoder is None else encoder, method or DEFAULT_METHOD, device=device
        )
    classifier.set_params(reject=_threshold(reject), false_accept=false_accept)
    _fit(classifier, items, task, None if others is None else others.items("all"))
    told = [] if reject is None else _told_reliability(classifier)  # before a model is written that cannot answer
    classifier.save(model, overwrite=overwrite)
    print(
        f"{model}: {count(len(classifier.classes_), 'class')} from {count(sum(classifier.counts_.values()), 'example')}"
    )
    if method == "auto":
        from multifsl.registry import resolved

        print(f"method: {resolved(classifier.method_)}")
    for line in told:
        print(line)


def enroll(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    label: Annotated[str, typer.Argument(metavar="LABEL", help="A new class, or a known one.")],
    items: Annotated[list[str], typer.Argument(metavar="ITEM...", help="Files, or the texts themselves.")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Add examples of a new or a known class to a model."""
    with _changing(model, device, allow_download) as classifier:
        own = _own_label(classifier, label)
        classifier.enroll(own, items)
    print(
        f"{model}: {label} has {count(classifier.counts_[own], 'example')}; {count(len(classifier.classes_), 'class')}"
    )


def forget(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    label: Annotated[str, typer.Argument(metavar="LABEL")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Remove a class and its examples from a model."""
    with _changing(model, device, allow_download) as classifier:
        classifier.forget(_own_label(classifier, label))
    print(f"{model}: forgot {label}; {count(len(classifier.classes_), 'class')}")


def rename(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    old: Annotated[str, typer.Argument(metavar="OLD")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Give a class of a model another label."""
    with _changing(model, device, allow_download) as classifier:
        classifier.rename(_own_label(classifier, old), _own_label(classifier, new))
    print(f"{model}: {old} is now {new}")


def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    label: Annotated[str, typer.Argument(metavar="LABEL")],
    item: Annotated[str, typer.Argument(metavar="ITEM", help="A file, or the text itself.")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Say whether an item is of the class that it is said to be of; the exit code is 0 for yes and 3 for no."""
    classifier = _load(model, device, allow_download)
    found = classifier.verify(_own_label(classifier, label), item)
    if json_ is not None:
        write_json({"schema": 1, "item": item, "label": label, **found._asdict()}, json_)
    if json_ != "-":
        sign, word = (">=", "accepted") if found.accepted else ("<", "refused")
        print(f"{word}: {item} as {label} (score {found.score:.3f} {sign} {found.threshold:.3f})")
    if not found.accepted:
        raise typer.Exit(3)


def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Show what a model knows: its classes and examples, how well it tells unknown items, and which classes overlap."""
    from multifsl.registry import resolved

    classifier = _load(model, device, allow_download)
    encoder, counts = classifier.method_.encoder, classifier.counts_
    known: dict[str, Any] = {
        "schema": 1,
        "encoder": encoder.run or resolved(encoder),
        "method": resolved(classifier.method_),
        "classes": [{"label": label, "examples": n} for label, n in counts.items()],
        "temperature": classifier.temperature_,
        "reject": classifier.reject,
        "false_accept": classifier.false_accept,
    }
    try:
        known |= {"threshold": classifier.threshold_, "reliability": _reliability(classifier)}
    except MultifslError as error:  # one class alone, and nothing to tell it from
        known |= {"threshold": None, "reliability": {"notes": [str(error)]}}
    if json_ is not None:
        write_json(known, json_)
    if json_ == "-":
        return
    print(f"encoder: {known['encoder']}\nmethod: {known['method']}")
    asked = {"None": "never says unknown", "auto": "says unknown by a threshold set for it"}
    print(f"reject: {asked.get(str(classifier.reject), f'says unknown below {classifier.reject}')}")
    show_table(("class", "examples"), [(str(label), str(n)) for label, n in counts.items()])
    for line in known["reliability"]["notes"] if known["threshold"] is None else _told_reliability(classifier):
        print(line)


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    items: Annotated[
        list[str] | None, typer.Argument(metavar="[ITEM...]", help="Files, or the texts themselves.")
    ] = None,
    file: Annotated[str | None, typer.Option("--file", help="One item a line; - is standard input.")] = None,
    device: Device = "auto",
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Say which class each item is of; where some cannot be read, why, and the exit code is 1."""
    chosen = [*(items or []), *(lines(file) if file is not None else [])]
    if not chosen:
        raise MultifslError("nothing to predict: give items, or --file with one item a line")
    classifier = _load(model, device, allow_download)
    results = _predictions(classifier, chosen)
    if json_ is not None:
        write_json({"schema": 1, "results": results}, json_)
    if json_ != "-":
        show_table(("item", "label", "probability"), [_told_prediction(row) for row in results])
    unread = sum("error" in row for row in results)
    if unread:
        say(f"error: {unread} of {count(len(results), 'item')} cannot be read")
        raise typer.Exit(1)


def demo(device: Device = "auto", json_: Json = None, debug: Debug = False) -> None:
    """Check the installation: learn, add and recognise classes of all three modalities, on data that come with it."""
    from multifsl.demo import run_demo

    results = run_demo(device=device, say=say if json_ == "-" else print)
    if json_ is not None:
        write_json(results, json_)


def _own_task(data: Path, modality: Modality | None, text_column: str, label_column: str) -> "Task":
    """The user's files as a task, its modality read from the files' suffixes where it is not given."""
    from multifsl.registry import find

    name = _OWN_TASKS[modality if modality is not None else _guess_modality(data)]
    columns = {"text": text_column, "label": label_column} if name == "texts" else {}
    task: Task = find("tasks", name)(str(data), **columns)
    return task


def _guess_modality(data: Path) -> str:
    """The modality that most files are of."""
    from multifsl.archive import members
    from multifsl.registry import find

    if not data.exists():
        raise MultifslError(f"there are no data at {data}")
    own = _OWN_TASKS
    if data.is_dir():
        files = [f.name.lower() for f in data.rglob("*") if f.is_file()]
        own = {
            kind: name for kind, name in own.items() if kind != "text"
        }  # texts are one file; images may have some beside
    else:
        files = [m.name.lower() for m in members(data)] if data.suffix.lower() == ".zip" else [data.name.lower()]
    suffixes = {kind: find("tasks", name).suffixes() for kind, name in own.items()}  # type: ignore[attr-defined]
    counts = {kind: sum(f.endswith(ends) for f in files) for kind, ends in suffixes.items()}
    best = max(counts, key=lambda kind: counts[kind])
    if counts[best] == 0:
        known = "; ".join(f"{kind}: {' '.join(ends)}" for kind, ends in suffixes.items())
        raise MultifslError(
            f"{data} has no images, clips or texts by their suffixes ({known}); say what it holds with --modality"
        )
    return best


def _fit(classifier: "FewShotClassifier", items: "Items", task: "Task", background: "Items | None") -> None:
    from multifsl.defaults import is_random, open_encoder
    from multifsl.registry import resolved

    if isinstance(classifier.encoder, str):
        import torch

        torch.manual_seed(0)  # weights that nobody published start at random, but the same every time
        built = open_encoder(classifier.encoder, task=task)
        if is_random(classifier.encoder, built):
            warnings.warn(
                f"{classifier.encoder} has random weights; train it first (`multifsl train`, then --run)", stacklevel=2
            )
        classifier.set_params(encoder=built)
    encoder = classifier.encoder
    assert encoder is not None and not isinstance(encoder, str)
    if encoder.modality != task.modality:
        raise MultifslError(
            f"the encoder {resolved(encoder)!r} reads {encoder.modality} items, but the data are {task.modality} items"
        )

    def progress(sequence: Any, description: str, total: int | None) -> "Iterator[Any]":
        yield from track(sequence, description, total)
        say_meanwhile(f"learning from {count(total or 0, 'item')} ...")  # embedded in large blocks: no bar would move

    classifier.fit_items(items, background=background, progress=progress)


def _load(model: Path, device: str, allow_download: bool) -> "FewShotClassifier":
    from multifsl.classifier import FewShotClassifier

    classifier = FewShotClassifier.load(model, device=device, allow_download=allow_download)
    if classifier.encoder is None:
        raise MultifslError(f"{model} takes ready-made features, not files or texts; use it in Python")
    classifier._progress = track
    return classifier


@contextmanager
def _changing(model: Path, device: str, allow_download: bool) -> "Iterator[FewShotClassifier]":
    """A model that is saved at the end, unless there is an error; meanwhile no other process changes it."""
    with locked(model):
        classifier = _load(model, device, allow_download)
        yield classifier
        classifier.save(model, overwrite=True)


def _own_label(classifier: "FewShotClassifier", label: str) -> Any:
    """The label in the model's own type: a text, or a number where its labels are numbers."""
    from multifsl.store import check_label

    check_label(label)
    if classifier.classes_.dtype.kind in "US":
        return label
    try:
        number = json.loads(label)
        own = classifier.classes_.dtype.type(number)
        if isinstance(number, bool) == (own.dtype.kind == "b") and isinstance(number, int | float) and own == number:
            return own.item()
        raise ValueError(label)
    except (ValueError, TypeError, OverflowError):
        raise MultifslError(f"the labels of this model are numbers; {label!r} is none") from None


def _threshold(reject: str | None) -> Any:
    if reject is None or reject == "auto":
        return reject
    try:
        return float(reject)
    except ValueError:
        raise MultifslError(f"--reject takes auto or a number, not {reject!r}") from None


def _reliability(classifier: "FewShotClassifier") -> dict[str, Any]:
    found = classifier.reliability_
    rates = {"false_accept": found.false_accept, "false_reject": found.false_reject}
    return {
        **{name: None if rate is None else rate._asdict() for name, rate in rates.items()},
        "overlaps": [overlap._asdict() for overlap in found.overlaps],
        "notes": found.notes,
    }


def _told_reliability(classifier: "FewShotClassifier", most: int = 5) -> list[str]:
    found = classifier.reliability_
    told = [f"unknown below a score of {classifier.threshold_:.3f}"]
    for what, rate in (
        ("unknown items taken for known", found.false_accept),
        ("known items refused", found.false_reject),
    ):
        if rate is not None:
            told.append(f"  {what}: {rate}, estimated")
    if found.false_reject is not None and found.false_reject.estimate > 0.5:
        asked = "--false-accept, such as 0.2" if classifier.false_accept < 0.2 else "--false-accept"
        other = f"a higher {asked}" if classifier.reject in (None, "auto") else "a lower --reject"
        told.append(f"  more than half of your own items would be refused: fit with {other}, or give more examples")
    for first, second, share in found.overlaps[:most]:
        told.append(f"  {first} and {second} overlap: {share:.0%} of one's examples would pass as the other's")
    if len(found.overlaps) > most:
        told.append(f"  and {len(found.overlaps) - most} pairs more")
    return [*told, *(f"  {note}" for note in found.notes)]


def _predictions(classifier: "FewShotClassifier", items: list[str]) -> list[dict[str, Any]]:
    """A row for each item; for one that cannot be read, while others can, with the reason under `error`."""
    try:
        return _answers(classifier, items)
    except BadItem:
        unread = _unread(classifier, items)
        if len(unread) in (0, len(items)):
            raise
    answers = iter(_answers(classifier, [item for i, item in enumerate(items) if i not in unread]))
    empty: dict[str, Any] = {"label": None, "probability": None, "known": False, "best": []}
    return [
        {"item": item, **empty, "error": unread[i]} if i in unread else next(answers) for i, item in enumerate(items)
    ]


def _unread(classifier: "FewShotClassifier", items: list[str]) -> dict[int, str]:
    """The places of the items that cannot be read, and why."""
    method = classifier.method_
    read = method.encoder.windows if method.takes_embeddings else method.encoder.load
    found = {}
    for i, item in enumerate(track(items, description="reading items", total=len(items))):
        try:
            read(item)
        except BadItem as error:
            found[i] = str(error)
    return found


def _answers(classifier: "FewShotClassifier", items: list[str], best: int = 5) -> list[dict[str, Any]]:
    answers, labels = classifier.predict_all(items), classifier.classes_.tolist()
    results = []
    for i, (item, row) in enumerate(zip(items, answers.probabilities, strict=True)):
        top = [{"label": labels[k], "probability": float(row[k])} for k in (-row).argsort(kind="stable")[:best]]
        known = bool(answers.known[i])
        found = {"item": item, **top[0], "known": known, "best": top}
        if not known:
            found |= {"label": answers.labels[i].item(), "probability": None}
        if answers.scores is not None:
            found["score"] = float(answers.scores[i])
        results.append(found)
    return results


def _told_prediction(row: dict[str, Any]) -> tuple[str, str, str]:
    if "error" in row:
        return row["item"], "-", f"error: {row['error']}"
    told = f"{row['probability']:.3f}" if row["known"] else f"(nearest: {row['best'][0]['label']})"
    return row["item"], str(row["label"]), told
