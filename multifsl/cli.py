"""The command line: a thin layer over the Python functions.

Results go to stdout; progress, notices, warnings and errors to stderr. Exit codes: 0 done; 2 the user's error, one message;
1 ours. Heavy modules are imported inside the commands, so that `--help` is immediate.
"""

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from multifsl import __version__
from multifsl.errors import MultifslError
from multifsl.terminal import console, lines, say, track, training_line, write_json

if TYPE_CHECKING:
    from multifsl.classifier import FewShotClassifier
    from multifsl.comparison import Comparison
    from multifsl.evaluation import Evaluation
    from multifsl.task import Items, Source, Task

app = typer.Typer(
    name="multifsl",
    help="Learn new classes of images, voices and texts from a handful of examples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Get the data sets of the tasks from their official sources.", no_args_is_help=True)
app.add_typer(data_app, name="data")


# ---- options that several commands share ----

Modality = Literal["image", "speech", "text"]
Split = Literal["train", "val", "test", "all"]
_debug = False


def _set_debug(value: bool) -> bool:
    global _debug
    _debug = _debug or value
    return value


def _add_plugins(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from multifsl.registry import add_plugin

        for path in paths:
            add_plugin(path)
    return paths


def _show_version(value: bool) -> None:
    if value:
        print(f"multifsl {__version__}")
        raise typer.Exit


Debug = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug, is_eager=True)
]
Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="A Python file with your own encoder, method or task; it is run.",
        callback=_add_plugins,
        is_eager=True,
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Where the data folders are; else $MULTIFSL_DATA, else the user's cache.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")]
Way = Annotated[str, typer.Option(help="Classes an episode: a number, or a range such as 5-20.")]
Shot = Annotated[str, typer.Option(help="Support items a class: a number, or a range.")]
Query = Annotated[int, typer.Option(help="Query items a class.")]
Seed = Annotated[int, typer.Option(help="Seed of the episodes, and of random weights.", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Let the model's encoder be downloaded where it is not on this machine."),
]
Disjoint = Annotated[
    bool, typer.Option("--disjoint-groups", help="Support and query share no recording, session or drawer.")
]
Imbalance = Annotated[float, typer.Option(help="0: equal shots; above: support items shared out unevenly.", min=0.0)]

AllowLeak = Annotated[
    list[str] | None,
    typer.Option(
        help="A kind of leak of data that is to be a mark beside the figure, not an error; may be given several times."
    ),
]
LeakCheck = Annotated[
    Literal["quick", "full"],
    typer.Option(help="full: compare the items with any number of train items; quick: with at most 20,000."),
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither take nor keep embeddings on disk.")]
SkipSmall = Annotated[
    bool, typer.Option("--skip-small-classes", help="Leave out classes that are too small, instead of an error.")
]


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


# ---- commands ----


@app.command("list")
def list_(
    kind: Annotated[
        Literal["encoders", "methods", "tasks", "models", "recipes"] | None, typer.Argument(help="Of one kind only.")
    ] = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """List encoders and tasks by modality, methods by family, the models that come along, and the recipes that made them."""
    from rich.table import Table

    from multifsl import registry, shipped

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "name", "arguments", "what it is"):
        table.add_column(column, overflow="fold")
    for one in registry.KINDS:
        groups = {name: registry.group(one, name) for name in registry.names(one) if kind in (None, one)}
        for name in sorted(groups, key=lambda name: (_ORDER.get(groups[name], len(_ORDER)), name)):
            shown = f"{one[:-1]}: {_SHOWN.get(groups[name], groups[name])}".removesuffix(": ")
            table.add_row(shown, name, registry.arguments(one, name), registry.summary(one, name))
    if kind in (None, "models", "recipes"):
        from multifsl.recipe import load_recipe, recipe_names

        if kind != "recipes":
            for name in shipped.model_names():
                recipe = load_recipe(name)
                table.add_row(
                    "model", shipped.SHIPPED + name, recipe.train["method"], f"{recipe.title}: {recipe.result}"
                )
        if kind != "models":
            for name in recipe_names():
                recipe = load_recipe(name)
                table.add_row("recipe", name, recipe.train["method"], f"{recipe.title}; published: {recipe.source}")
    console().print(table)


@app.command()
def train(
    task: Annotated[str, typer.Argument(metavar="TASK", help='Such as omniglot, or "speech_commands + librispeech".')],
    encoder: Annotated[
        str,
        typer.Argument(
            metavar="ENCODER",
            help='Such as conv4, or "ecapa(channels=256)"; model:NAME or run:FOLDER begins with that of a run.',
        ),
    ],
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="Such as prototypical, or \"prototypical(distance='cosine')\".")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run's folder.")],
    way: Way = "5",
    shot: Shot = "1",
    query: Query = 15,
    episodes_per_step: Annotated[int, typer.Option(help="Episodes a step.", min=1)] = 1,
    steps: Annotated[
        int | None, typer.Option(help="How many steps (1000 where --minutes is not given either).", min=1)
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="How long instead of how many steps.")] = None,
    lr: Annotated[float, typer.Option(help="The learning rate at its highest.")] = 1e-3,
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], typer.Option(help="What moves the weights.")] = "adam",
    weight_decay: Annotated[float, typer.Option(help="Of matrices; with adamw, apart from the gradient.")] = 0.0,
    schedule: Annotated[
        Literal["cosine", "step", "constant"],
        typer.Option(
            help="How the learning rate falls: to 0 along a cosine, by half at every tenth of the run, not at all."
        ),
    ] = "cosine",
    warmup: Annotated[float, typer.Option(help="The share of the run in which the learning rate rises from 0.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="The longest that the gradient of all weights may be.")] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Validate and keep a moving average of the weights, of this decay, such as 0.999."),
    ] = None,
    accumulate: Annotated[
        int, typer.Option(help="Run a step's episodes in so many micro-batches, for less memory.", min=1)
    ] = 1,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many validations without a better one.", min=1)
    ] = None,
    seed: Seed = 0,
    precision: Annotated[
        Literal["float32", "bfloat16", "float64"], typer.Option(help="The encoder's arithmetic.")
    ] = "float32",
    disjoint_groups: Disjoint = False,
    imbalance: Imbalance = 0.0,
    skip_small_classes: SkipSmall = False,
    freeze_encoder: Annotated[
        bool, typer.Option("--freeze-encoder", help="Train the method alone, on embeddings that are made once.")
    ] = False,
    augment: Annotated[
        Literal["photos", "drawings", "speech"] | None,
        typer.Option(help="Change training items at random, as the field does."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="An encoder that the trained one imitates, such as ge2e: how alike items are to it."),
    ] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Meta-train an encoder and a method on a task's train classes."""
    from multifsl.training import keep_memory
    from multifsl.training import train as run_training

    keep_memory()
    with training_line() as report:
        run = run_training(
            task, encoder, method, out=out, way=_range("way", way), shot=_range("shot", shot), query=query,
            episodes_per_step=episodes_per_step, steps=steps, minutes=minutes, lr=lr, optimizer=optimizer,
            weight_decay=weight_decay, schedule=schedule, warmup=warmup, clip=clip, ema=ema, accumulate=accumulate,
            patience=patience, seed=seed, precision=precision,
            disjoint_groups=disjoint_groups, imbalance=imbalance, skip_small_classes=skip_small_classes,
            freeze_encoder=freeze_encoder, augment=augment, teacher=teacher, device=device, data_root=data_root,
            resume=resume, overwrite=overwrite, report=report, progress=track,
        )  # fmt: skip
    done = run.info["metrics"]
    validated = ""
    if "val_accuracy" in done:
        way_ = done["val_episode"]["way"]
        validated = f", {way_}-way validation accuracy {done['val_accuracy']:.4f} at step {done['val_step']}"
    if int(os.environ.get("RANK", "0")):
        return  # one process of several tells it
    print(f"{out}: {done['steps_done']} steps in {done['seconds']:.0f} s{validated}")


@app.command()
def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(metavar="[RUN]", help="A run's folder, or model:NAME; or give --task and --encoder."),
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task; by default the run's own.")] = None,
    encoder: Annotated[str | None, typer.Option(help="An encoder as it is, no training.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The method; by default the run's, or prototypical(distance='cosine'). On a run, one of the same name takes over "
            'its weights, such as "maml(test_steps=10)".'
        ),
    ] = None,
    weights: Annotated[Literal["best", "last"], typer.Option(help="The run's best weights, or its last.")] = "best",
    split: Annotated[Split, typer.Option(help="Which classes.")] = "test",
    way: Annotated[
        str, typer.Option(help='Classes an episode: a number, a range such as 5-20, or "all" of the split at once.')
    ] = "5",
    shot: Shot = "1",
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 1000,
    seed: Seed = 0,
    disjoint_groups: Disjoint = False,
    imbalance: Imbalance = 0.0,
    skip_small_classes: SkipSmall = False,
    unknown: Annotated[
        int,
        typer.Option(
            help="Classes beside the episode's that are asked about too: are they told from the known?", min=0
        ),
    ] = 0,
    outside: Annotated[
        int, typer.Option(help="Queries an episode that belong to no class, of the tasks that have such.", min=0)
    ] = 0,
    episodes_file: Annotated[
        Path | None,
        typer.Option(help="Read the episodes from this file; where there is none, write those that are drawn."),
    ] = None,
    allow_leak: AllowLeak = None,
    leak_check: LeakCheck = "quick",
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Accuracy and other figures over episodes, of a run or of an encoder as it is."""
    from multifsl.evaluation import evaluate as run_evaluation

    result = run_evaluation(
        run, task=task, encoder=encoder, split=split, way="all" if way == "all" else _range("way", way),
        shot=_range("shot", shot), query=query, unknown=unknown, outside=outside, episodes_file=episodes_file, cache=not no_cache,
        allow_leaks=allow_leak or (), leak_check=leak_check,
        episodes=episodes, seed=seed, disjoint_groups=disjoint_groups, imbalance=imbalance, device=device, data_root=data_root,
        skip_small_classes=skip_small_classes, allow_download=allow_download, progress=track, method=method, weights=weights,
    )  # fmt: skip
    if json_ is not None:
        write_json({**result.to_json(), **_made()}, json_)
    if json_ != "-":
        _show(result)


@app.command()
def reproduce(
    name: Annotated[
        str, typer.Argument(metavar="RECIPE", help="As in `multifsl list recipes`, or the path of a .toml file.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run's folder; by default runs/RECIPE.")] = None,
    eval_only: Annotated[
        bool,
        typer.Option("--eval-only", help="Train nothing; score the run at --out, or else the weights that come along."),
    ] = False,
    split: Annotated[Split | None, typer.Option(help="Which classes, instead of the recipe's.")] = None,
    episodes: Annotated[int | None, typer.Option(help="How many, instead of the recipe's.", min=2)] = None,
    seed: Annotated[int | None, typer.Option(help="Of the training, instead of the recipe's.", min=0)] = None,
    device: Device = "auto",
    data_root: DataRoot = None,
    overwrite: Overwrite = False,
    json_: Json = None,
    debug: Debug = False,
) -> None:
    """Train a recipe, or go on with it where it was stopped, and print the published figures beside ours."""
    from rich.table import Table

    from multifsl.recipe import load_recipe, place_of
    from multifsl.recipe import reproduce as run_recipe
    from multifsl.training import keep_memory

    recipe = load_recipe(name)
    keep_memory()
    with training_line() as report:
        figures = run_recipe(
            name, out=out, eval_only=eval_only, split=split, episodes=episodes, seed=seed, device=device,
            data_root=data_root, overwrite=overwrite, report=report, progress=track,
        )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return  # one process of several tells it
    if json_ is not None:
        write_json({"recipe": recipe.name, "figures": [figure.to_json() for figure in figures]}, json_)
    if json_ != "-":
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("", "published", "ours", "classes", "episodes", ""):
            table.add_column(column, overflow="fold")
        for figure in figures:
            ours, published = figure.ours, figure.row.published
            table.add_row(
                figure.row.name,
                "" if published is None else f"{published:g}",
                f"{100 * ours.accuracy:.2f} ± {100 * ours.ci95:.2f}",
                ours.split,
                f"{ours.episodes:,}",
                "transductive" if ours.transductive else "inductive",
            )
        place = place_of(recipe, name, out=out, eval_only=eval_only, seed=seed)
        print(f"{recipe.title or recipe.name}\nours: {place}\npublished: {recipe.source or 'not said'}")
        console().print(table)
        if any(figure.ours.split == "val" for figure in figures):
            print("The val classes chose the weights; the published figures are of test classes.")


@app.command()
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
        str | None, typer.Option(help="The method; by default the run's, or prototypical(distance='cosine').")
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
    from multifsl.classifier import FewShotClassifier
    from multifsl.evaluation import DEFAULT_METHOD

    items = task.items("all")
    if run is not None:
        way = len(items.class_names)
        classifier = FewShotClassifier.from_run(
            run, method=method, way=way, device=device, allow_download=allow_download
        )
    else:
        classifier = FewShotClassifier(
            task.modality if encoder is None else encoder, method or DEFAULT_METHOD, device=device
        )
    _fit(classifier, items, task)
    classifier.save(model, overwrite=overwrite)
    print(
        f"{model}: {_count(len(classifier.classes_), 'class')} from {_count(sum(classifier.counts_.values()), 'example')}"
    )


@app.command()
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
    classifier = _load(model, device, allow_download)
    own = _own_label(classifier, label)
    classifier.partial_fit(items, [own] * len(items))
    classifier.save(model, overwrite=True)
    print(
        f"{model}: {label} has {_count(classifier.counts_[own], 'example')}; {_count(len(classifier.classes_), 'class')}"
    )


@app.command()
def forget(
    model: Annotated[Path, typer.Argument(metavar="MODEL")],
    label: Annotated[str, typer.Argument(metavar="LABEL")],
    device: Device = "auto",
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Remove a class and its examples from a model."""
    classifier = _load(model, device, allow_download)
    classifier.forget(_own_label(classifier, label)).save(model, overwrite=True)
    print(f"{model}: forgot {label}; {_count(len(classifier.classes_), 'class')}")


@app.command()
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
    """Say which class each item is of."""
    chosen = [*(items or []), *(lines(file) if file is not None else [])]
    if not chosen:
        raise MultifslError("nothing to predict: give items, or --file with one item a line")
    classifier = _load(model, device, allow_download)
    results = _predictions(classifier, chosen)
    if json_ is not None:
        write_json({"schema": 1, "results": results}, json_)
    if json_ != "-":
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("item", "label", "probability"):
            table.add_column(column, overflow="fold")
        for row in results:
            table.add_row(row["item"], str(row["label"]), f"{row['probability']:.3f}")
        console().print(table)


@app.command()
def demo(device: Device = "auto", json_: Json = None, debug: Debug = False) -> None:
    """Check the installation: learn, add and recognise classes of all three modalities, on data that come with it."""
    from multifsl.demo import run_demo

    results = run_demo(device=device, say=say if json_ == "-" else print)
    if json_ is not None:
        write_json(results, json_)


@app.command()
def compare(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Such as banking77, or \"images('photos')\".")],
    encoder: Annotated[list[str] | None, typer.Option(help="An encoder as it is; may be given several times.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method on each encoder; may be given several times.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="A run's folder, or model:NAME; may be given several times.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which classes.")] = "test",
    way: Way = "5",
    shots: Annotated[
        str, typer.Option(help="Support items a class; several, such as 1,2,5,10,20, show how many labels are needed.")
    ] = "1",
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 1000,
    seed: Seed = 0,
    disjoint_groups: Disjoint = False,
    imbalance: Imbalance = 0.0,
    skip_small_classes: SkipSmall = False,
    plot: Annotated[Path | None, typer.Option(help="Where a picture of it goes: SVG, PNG or PDF.")] = None,
    allow_leak: AllowLeak = None,
    leak_check: LeakCheck = "quick",
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    json_: Json = None,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Compare methods, encoders and runs on the same episodes: who is better, by how much, and is that more than chance?"""
    from multifsl.comparison import compare as run_comparison
    from multifsl.comparison import draw

    each = _shots(shots)
    found = run_comparison(
        task, encoders=encoder or [], methods=method or [], runs=run or [], split=split, way=_range("way", way), shots=each,
        query=query, episodes=episodes, seed=seed, disjoint_groups=disjoint_groups, imbalance=imbalance,
        skip_small_classes=skip_small_classes, allow_leaks=allow_leak or (), leak_check=leak_check, cache=not no_cache,
        device=device, data_root=data_root,
        allow_download=allow_download, progress=track,
    )  # fmt: skip
    if json_ is not None:
        write_json({"comparisons": [one.to_json() for one in found], **_made()}, json_)
    if json_ != "-":
        _show_comparisons(found)
    if plot is not None:
        draw(found, plot)
        say(f"drew {plot}")


@app.command()
def report(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RESULT...",
            help="Runs (a folder, or model:NAME) and files that evaluate --json or compare --json wrote.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page: one HTML file that needs no network.")] = Path("report.html"),
    task: Annotated[str | None, typer.Option(help="The task of the runs' evaluations; by default their own.")] = None,
    split: Annotated[
        Split | None, typer.Option(help="Which classes; by default test, or val where there are no test data.")
    ] = None,
    way: Annotated[int, typer.Option(help="Classes an episode.")] = 5,
    shots: Annotated[
        str | None,
        typer.Option(help="Support items a class; several, such as 1,5,10, are a result each; by default 1 and 5."),
    ] = None,
    query: Query = 15,
    episodes: Annotated[int, typer.Option(help="How many episodes.", min=2)] = 600,
    seed: Seed = 0,
    skip_small_classes: SkipSmall = False,
    allow_leak: AllowLeak = None,
    no_cache: NoCache = False,
    device: Device = "auto",
    data_root: DataRoot = None,
    allow_download: AllowDownload = False,
    plugin: Plugin = None,
    debug: Debug = False,
) -> None:
    """Runs and results as one web page: tables, plots, a map of the items and the worst mistakes. Runs are evaluated for it."""
    from multifsl.report import report as write_report

    path = write_report(
        sources, out, task=task, split=split, way=way, shots=None if shots is None else _shots(shots), query=query,
        episodes=episodes, seed=seed, skip_small_classes=skip_small_classes, allow_leaks=allow_leak or (), cache=not no_cache,
        device=device, data_root=data_root, allow_download=allow_download, progress=track,
    )  # fmt: skip
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove them all.")] = False,
    json_: Json = None,
    debug: Debug = False,
) -> None:
    """Show the embeddings that evaluations have kept on disk, in $MULTIFSL_CACHE or the user's cache, or remove them."""
    from datetime import datetime

    from rich.table import Table

    from multifsl.cache import EmbeddingCache

    kept = EmbeddingCache()
    sets = kept.sets()
    if clear:
        freed = kept.clear()
        if json_ is not None:
            write_json({"folder": str(kept.folder), "freed_bytes": freed}, json_)
        if json_ != "-":
            print(f"{kept.folder}: removed {_count(len(sets), 'set')}, freed {freed / 1e6:,.1f} MB")
        return
    size = sum(one.size for one in sets)
    if json_ is not None:
        rows = [
            {**one._asdict(), "used": datetime.fromtimestamp(one.used).astimezone().isoformat(timespec="seconds")}
            for one in sets
        ]
        write_json({"folder": str(kept.folder), "bytes": size, "limit_bytes": kept.limit, "sets": rows}, json_)
    if json_ != "-":
        print(f"{kept.folder}: {_count(len(sets), 'set')}, {size / 1e6:,.1f} MB of at most {kept.limit / 1e6:,.0f} MB")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("encoder", "items", "width", "size", "last used"):
            table.add_column(column, overflow="fold")
        for one in sets:
            used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
            table.add_row(one.encoder, f"{one.items:,}", f"{one.width}", f"{one.size / 1e6:,.1f} MB", used)
        if sets:
            console().print(table)


@data_app.command("get")
def data_get(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A task, such as omniglot; `multifsl data list` has them.")
    ],
    data_root: DataRoot = None,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Keep the downloaded files, in the folder downloads.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Download a task's data set, in the layout that the task reads. A download that was cut off is gone on with."""
    from multifsl.download import install
    from multifsl.registry import build, find
    from multifsl.task import data_roots

    task: type[Task] = find("tasks", name)
    source = task.source
    if source is None:
        raise MultifslError(f"{name} reads data of your own; there are data sets for {', '.join(_sources())}")
    if source.by_hand:
        raise MultifslError(
            f"{name} cannot be downloaded without you: {source.by_hand}, under {data_roots(data_root)[0]}; see {source.page}"
        )
    folder = data_roots(data_root)[0] / source.folder
    say(f"{name}: about {source.megabytes:,} MB from {source.page}; licence: {source.licence}")
    try:
        with _download_bars() as report:
            made = install(task.download, folder, keep_archive=keep_archive, progress=report)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        sys.exit(130)
    if not made:
        try:
            build("tasks", name, data_root=data_root).items("all")
        except MultifslError as error:
            raise MultifslError(
                f"{folder} is there, but the task cannot read all of it; add what is missing, or move the folder away and "
                f"run the same command to have it anew: {error}"
            ) from error
    print(folder if made else f"{folder} (there already; to have it anew, remove it first)")


@data_app.command("list")
def data_list(data_root: DataRoot = None, debug: Debug = False) -> None:
    """List the data sets: what they weigh, their licence, where they are looked for, and whether they are there."""
    from rich.table import Table

    from multifsl.task import data_roots, found_folder

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "download", "licence", "folder", "there", "source"):
        table.add_column(column, overflow="fold")
    for name, source in _sources().items():
        there = found_folder(source, data_root)
        table.add_row(
            name,
            "by hand" if source.by_hand else f"{source.megabytes:,} MB",
            source.licence,
            str(there or data_roots(data_root)[0] / source.folder),
            "no" if there is None else "yes",
            source.page,
        )
    console().print(table)


# ---- what the commands share ----


@contextmanager
def _download_bars() -> Iterator[Any]:
    """A bar on stderr for each file that comes in; nothing in a pipe."""
    from rich import progress as bars

    columns = [
        *(bars.SpinnerColumn(), bars.TextColumn("{task.description}"), bars.BarColumn(bar_width=20)),
        *(bars.DownloadColumn(), bars.TransferSpeedColumn(), bars.TimeRemainingColumn(compact=True)),
    ]
    shown: dict[str, Any] = {}

    with bars.Progress(
        *columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:

        def report(name: str, done: int, total: int | None) -> None:
            if name not in shown:
                shown[name] = progress.add_task(name, total=None)
            progress.update(shown[name], completed=done, total=total)

        yield report


def _sources() -> dict[str, "Source"]:
    """The tasks that have a data set of their own, and where it is from."""
    from multifsl import registry

    tasks: dict[str, type[Task]] = {name: registry.find("tasks", name) for name in registry.names("tasks")}
    return {name: task.source for name, task in tasks.items() if task.source is not None}


# how what is listed is ordered and called
_ORDER = {g: i for i, g in enumerate(("", "image", "speech", "text", "metric", "memory", "optimisation", "transfer"))}
_SHOWN = {"memory": "model (memory)"}


def _count(number: int, what: str) -> str:
    return f"{number} {what if number == 1 else what + ('es' if what.endswith('s') else 's')}"


def _show(result: "Evaluation") -> None:
    """An evaluation for people to read."""
    from multifsl.episode import spelled

    kind = "transductive" if result.transductive else "inductive"
    way, shot, query = map(spelled, (result.way, result.shot, result.query))
    print(f"{result.task}, {result.split} classes\n{result.encoder}\n{result.method}, {kind}")
    queries = "1 query" if result.query == 1 else f"{query} queries"
    print(f"{way}-way {shot}-shot, {queries} a class, {result.episodes:,} episodes, seed {result.seed}")
    half = result.ci95_classes
    over_classes = "; over classes it cannot be told" if half is None else f", ± {half:.4f} over classes"
    rows = [("accuracy", f"{result.accuracy:.4f} ± {result.ci95:.4f} (95 %) over episodes{over_classes}")]
    if result.macro_f1 is not None:
        rows.append(("macro-F1", f"{result.macro_f1:.4f}"))
    rows.append(("log loss", f"{result.nll:.4f} nats; Brier score {result.brier:.4f}"))
    rows.append(("calibration error", f"{result.calibration_error:.4f} (15 bins)"))
    if result.unknown is not None:
        auroc, aupr, false_positives = result.unknown.values()
        rows.append(
            (
                "known or unknown",
                f"AUROC {auroc:.4f}, AUPR {aupr:.4f}, {false_positives:.4f} of the unknown taken at 95 % of the known",
            )
        )
    if result.verification is not None:
        equal, *costs = result.verification.values()
        rows.append(
            ("verification", f"equal error rate {equal:.4f}, min DCF {costs[0]:.4f} (p 0.01), {costs[1]:.4f} (p 0.05)")
        )
    weakest = sorted(result.details["classes"], key=lambda one: one["accuracy"])[:3]
    rows.append(("weakest classes", ", ".join(f"{one['name']} {one['accuracy']:.2f}" for one in weakest)))
    if confused := result.details["confused"][:3]:
        named = ", ".join(f"{one['true']} taken for {one['answered']} ({one['queries']:,})" for one in confused)
        rows.append(("often confused", named))
    rows += [(leak.kind, leak.message) for leak in result.marks]
    wide = max(len(name) for name, _ in rows)
    for name, figure in rows:
        print(f"{name:<{wide}}  {figure}")


def _show_comparisons(found: "list[Comparison]") -> None:
    """Tables for people to read: the entries, the best first, and each one's difference from the best; then accuracy by shots."""
    from rich.table import Table
    from rich.text import Text

    from multifsl.episode import spelled

    def show(columns: list[str], rows: list[list[str]]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console().print(table)

    first = found[0]
    print(
        f"{first.task}, {first.split} classes, {first.query} queries a class, {first.episodes:,} episodes, seed {first.seed}"
    )
    for one in found:
        print(f"\n{spelled(one.way)}-way {spelled(one.shot)}-shot")
        best, rows = one.entries[0].name, []
        for entry in one.entries:
            result = entry.evaluation
            less = next((pair for pair in one.pairs if (pair.a, pair.b) == (best, entry.name)), None)
            gap = "" if less is None else f"{-less.mean:+.4f} ± {less.ci95:.4f}"
            verdict = "" if less is None else f"p {less.p:.2g}" if less.shown else "no difference shown"
            rows.append(
                [
                    entry.name, f"{result.accuracy:.4f} ± {result.ci95:.4f}",
                    "" if result.ci95_classes is None else f"± {result.ci95_classes:.4f}", gap, verdict,
                    f"{entry.ms_per_episode:.2f}", f"{entry.memory:,.0f}", "transductive" if result.transductive else "inductive",
                ]
            )  # fmt: skip
        columns = [
            "",
            "accuracy (over episodes)",
            "over classes",
            "less than the best",
            "Holm-corrected",
            "ms/episode",
            "MiB",
            "",
        ]
        show(columns, rows)
    marks = {
        leak: [e.name for e in first.entries if leak in e.evaluation.marks]
        for e in first.entries
        for leak in e.evaluation.marks
    }
    for leak, names in marks.items():
        print(f"{'all' if len(names) == len(first.entries) else ', '.join(names)}: {leak.kind}: {leak.message}")
    if len(found) > 1:
        print()
        names = [entry.name for entry in first.entries]
        by_name = [{entry.name: entry.evaluation.accuracy for entry in one.entries} for one in found]
        show(
            ["shots", *(str(one.shot) for one in found)],
            [[name, *(f"{one[name]:.4f}" for one in by_name)] for name in names],
        )


def _shots(text: str) -> list[int]:
    try:
        return [int(shot) for shot in text.split(",")]
    except ValueError:
        raise MultifslError(f"--shots takes numbers such as 1,2,5, not {text!r}") from None


def _made() -> dict[str, Any]:
    """How a result was made, as its file says."""
    import shlex

    from multifsl.checkpoint import made_here

    return {"command": shlex.join(["multifsl", *sys.argv[1:]]), **made_here()}


def _range(name: str, text: str) -> int | tuple[int, int]:
    try:
        low, dash, high = text.partition("-")
        return (int(low), int(high)) if dash else int(low)
    except ValueError:
        raise MultifslError(f"--{name} takes a number or a range such as 5-20, not {text!r}") from None


_OWN_TASKS = {"image": "images", "speech": "speakers", "text": "texts"}


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


def _fit(classifier: "FewShotClassifier", items: "Items", task: "Task") -> None:
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
    classifier.fit_items(items, progress=track)


def _load(model: Path, device: str, allow_download: bool) -> "FewShotClassifier":
    from multifsl.classifier import FewShotClassifier

    classifier = FewShotClassifier.load(model, device=device, allow_download=allow_download)
    if classifier.encoder is None:
        raise MultifslError(f"{model} takes ready-made features, not files or texts; use it in Python")
    classifier._progress = track
    return classifier


def _own_label(classifier: "FewShotClassifier", label: str) -> Any:
    """The label in the model's own type: a text, or a number where its labels are numbers."""
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


def _predictions(classifier: "FewShotClassifier", items: list[str], best: int = 5) -> list[dict[str, Any]]:
    probabilities = classifier.predict_proba(items)
    labels = classifier.classes_.tolist()
    results = []
    for item, row in zip(items, probabilities, strict=True):
        top = [{"label": labels[i], "probability": float(row[i])} for i in (-row).argsort(kind="stable")[:best]]
        results.append({"item": item, **top[0], "known": True, "best": top})
    return results


def main() -> None:
    """The `multifsl` command."""
    warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
    try:
        app()
    except MultifslError as error:
        if _debug:
            raise
        say(f"error: {error}")
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if _debug:
            raise
        say(f"internal error: {type(error).__name__}: {error}\nThis is a fault of multifsl; --debug shows where.")
        sys.exit(1)


if __name__ == "__main__":
    main()
