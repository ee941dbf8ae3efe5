"""What the command line shows and writes: tables and results on stdout; progress, notices and errors on stderr."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multifsl.errors import MultifslError

QUIET = 15.0  # seconds


def lines(file: str) -> list[str]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MultifslError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise MultifslError(f"{file} is not UTF-8 text: {error}") from None
    return [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]


def write_json(content: Any, target: str) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    if target == "-":
        print(text)
        return
    try:
        Path(target).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise MultifslError(f"cannot write {target}: {error.strerror}") from None


def console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On a terminal, folded to its width; in a pipe, each row whole on a line of its own, without blanks at its end.

    >>> show_table(("method", "accuracy"), [("prototypical", "0.93"), ("ridge", "")])
    method        accuracy
    prototypical  0.93
    ridge
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    if sys.stdout.isatty():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console().print(table)
        return
    lines = [[" ".join(cell.splitlines()) for cell in line] for line in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def say(text: str) -> None:
    print(text, file=sys.stderr)


def say_meanwhile(text: str) -> None:
    """What takes the next seconds, for who looks on; in a pipe, nothing."""
    if sys.stderr.isatty():
        say(text)


def track(sequence: Any, description: str = "working", total: int | None = None) -> Any:
    """A progress bar on stderr; in a pipe, a line every quarter of a minute."""
    from rich.progress import track as rich_track

    if sys.stderr.isatty():
        return rich_track(sequence, description=description, total=total, console=console(stderr=True), transient=True)
    return _told(sequence, description, total)


def _told(sequence: Any, description: str, total: int | None) -> Iterator[Any]:
    said = time.monotonic()
    for i, item in enumerate(sequence):
        if time.monotonic() - said > QUIET:
            said = time.monotonic()
            say(f"{description}: {i}" + ("" if total is None else f" of {total}"))
        yield item


@contextmanager
def training_line() -> Iterator[Any]:
    """A live line on a terminal, a plain line now and then elsewhere; both on stderr."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    live = sys.stderr.isatty()
    columns = [BarColumn(bar_width=8), TextColumn("{task.fields[figures]}"), TimeRemainingColumn(compact=True)]
    shown = 0.0

    with Progress(*columns, console=console(stderr=True), disable=not live) as progress:
        line = progress.add_task("training", total=1.0, figures="training", visible=False)

        def report(step: int, fraction: float, row: dict[str, float]) -> None:
            nonlocal shown
            loss, accuracy, rate = row["loss"], row["accuracy"], row["episodes_per_second"]
            val = f" val {row['validation']:.3f} best {row['best']:.3f}" if row["best"] >= 0 else ""
            short = f"step {step} loss {loss:.3f} acc {accuracy:.3f}{val} {rate:.1f}/s"  # a line of 80 columns
            progress.update(line, completed=fraction, figures=short, visible=True)
            if not live and (fraction >= shown + 0.05 or fraction >= 1):
                shown = fraction
                best = ""
                if row["best"] >= 0:
                    best = f", {row['val_way']:.0f}-way validation {row['validation']:.4f} (best {row['best']:.4f})"
                say(
                    f"{fraction:4.0%} step {step}, loss {loss:.4f}, accuracy {accuracy:.4f}{best}, {rate:.1f} episodes/s"
                )

        yield report
