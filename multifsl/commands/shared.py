"""What commands share: their options, and how these are read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from multifsl.errors import MultifslError

Modality = Literal["image", "speech", "text"]
Split = Literal["train", "val", "test", "all"]
debugging = False  # whether --debug was given


def _set_debug(value: bool) -> bool:
    global debugging
    debugging = debugging or value
    return value


def _add_plugins(paths: list[Path] | None) -> list[Path] | None:
    if paths:
        from multifsl.registry import add_plugin

        for path in paths:
            add_plugin(path)
    return paths


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
WayOrAll = Annotated[
    str, typer.Option(help='Classes an episode: a number, a range such as 5-20, or "all" of the split at once.')
]
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


def number_or_range(name: str, text: str) -> int | tuple[int, int]:
    """What an option says: 5, or 5-20 as a pair."""
    try:
        low, dash, high = text.partition("-")
        return (int(low), int(high)) if dash else int(low)
    except ValueError:
        raise MultifslError(f"--{name} takes a number or a range such as 5-20, not {text!r}") from None


def count(number: int, what: str) -> str:
    """A number with its noun: 1 class, 2 classes."""
    return f"{number} {what if number == 1 else what + ('es' if what.endswith('s') else 's')}"
