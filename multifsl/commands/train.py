"""`multifsl train` and `reproduce`: runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from multifsl.commands.shared import (
    DataRoot,
    Debug,
    Device,
    Disjoint,
    Imbalance,
    Json,
    Overwrite,
    Plugin,
    Query,
    Seed,
    Shot,
    SkipSmall,
    Split,
    Way,
    number_or_range,
)
from multifsl.terminal import say, show_table, track, training_line, write_json


@contextmanager
def _training() -> Iterator[Any]:
    """What a training reports to. One that is stopped says so, and ends with the shell's exit code for the signal."""
    from multifsl.run_folder import Stopped
    from multifsl.training import keep_memory

    keep_memory()
    try:
        with training_line() as report:
            yield report
    except Stopped as stopped:
        say(str(stopped))
        raise typer.Exit(128 + stopped.signal) from None


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
        Literal["float32", "tf32", "bfloat16", "float64"], typer.Option(help="The encoder's arithmetic.")
    ] = "float32",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Run the encoder through torch.compile, for methods that do not adapt it.")
    ] = False,
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
    from multifsl.curves import NAME
    from multifsl.training import train as run_training

    with _training() as report:
        run = run_training(
            task, encoder, method, out=out, way=number_or_range("way", way), shot=number_or_range("shot", shot), query=query,
            episodes_per_step=episodes_per_step, steps=steps, minutes=minutes, lr=lr, optimizer=optimizer,
            weight_decay=weight_decay, schedule=schedule, warmup=warmup, clip=clip, ema=ema, accumulate=accumulate,
            patience=patience, seed=seed, precision=precision, compile=compile_,
            disjoint_groups=disjoint_groups, imbalance=imbalance, skip_small_classes=skip_small_classes,
            freeze_encoder=freeze_encoder, augment=augment, teacher=teacher, device=device, data_root=data_root,
            resume=resume, overwrite=overwrite, report=report, progress=track,
        )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return  # one process of several tells it
    done = run.info["metrics"]
    told = f"{out}: {done['steps_done']} steps in {done['seconds']:.0f} s"
    if "val_accuracy" in done:
        val_way = done["val_episode"]["way"]
        told += f", {val_way}-way validation accuracy {done['val_accuracy']:.4f} at step {done['val_step']}"
        if str(val_way) != way.rpartition("-")[2]:
            told += "\nValidation is 5-way, or of fewer classes where the val split has fewer or the method tells fewer apart."
    if "dealt" in done:
        told += f"\n{' / '.join(f'{count} {split}' for split, count in done['dealt'].items())} classes"
    if (out / NAME).exists():
        told += f"\nloss and accuracy: {out / NAME}"
    print(told)
    if done.get("guessing"):
        say(f"warning: it ended no better than guessing (loss {done['loss']:.3f}): try a smaller --lr, or more steps")


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
    from multifsl.recipe import load_recipe, place_of
    from multifsl.recipe import reproduce as run_recipe

    recipe = load_recipe(name)
    with _training() as report:
        figures = run_recipe(
            name, out=out, eval_only=eval_only, split=split, episodes=episodes, seed=seed, device=device,
            data_root=data_root, overwrite=overwrite, report=report, progress=track,
        )  # fmt: skip
    if int(os.environ.get("RANK", "0")):
        return  # one process of several tells it
    if json_ is not None:
        write_json({"recipe": recipe.name, "figures": [figure.to_json() for figure in figures]}, json_)
    if json_ != "-":
        rows = [
            (
                figure.row.name,
                "" if figure.row.published is None else f"{figure.row.published:g}",
                f"{100 * figure.ours.accuracy:.2f} ± {100 * figure.ours.ci95:.2f}",
                figure.ours.split,
                f"{figure.ours.episodes:,}",
                "transductive" if figure.ours.transductive else "inductive",
            )
            for figure in figures
        ]
        place = place_of(recipe, name, out=out, eval_only=eval_only, seed=seed)
        print(f"{recipe.title or recipe.name}\nours: {place}\npublished: {recipe.source or 'not said'}")
        show_table(("", "published", "ours", "classes", "episodes", ""), rows)
        if any(figure.ours.split == "val" for figure in figures):
            print("The val classes chose the weights; the published figures are of test classes.")
