"""`multifsl data`: the data sets of the tasks."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multifsl.commands.shared import DataRoot, Debug
from multifsl.errors import MultifslError
from multifsl.terminal import console, say, show_table

if TYPE_CHECKING:
    from multifsl.task import Source, Task


def get(
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


def list_(data_root: DataRoot = None, debug: Debug = False) -> None:
    """List the data sets: what they weigh, their licence, where they are looked for, and whether they are there."""
    from multifsl.task import data_roots, found_folder

    rows = []
    for name, source in _sources().items():
        there = found_folder(source, data_root)
        size = "by hand" if source.by_hand else f"{source.megabytes:,} MB"
        folder = str(there or data_roots(data_root)[0] / source.folder)
        rows.append((name, size, source.licence, folder, "no" if there is None else "yes", source.page))
    show_table(("name", "download", "licence", "folder", "there", "source"), rows)


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
