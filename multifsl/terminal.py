"""What the command line shows and writes: tables and results on stdout; progress, notices and errors on stderr."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multifsl.errors import MultifslError


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

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 1000  # in a pipe, a row is a line
    return Console(stderr=stderr, highlight=False, width=width)


def say(text: str) -> None:
    print(text, file=sys.stderr)


def track(sequence: Any, description: str = "working", total: int | None = None) -> Any:
    """A progress bar on stderr for work that takes longer than a second; nothing in a pipe."""
    from rich.progress import track as rich_track

    return rich_track(
        sequence,
        description=description,
        total=total,
        console=console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


@contextmanager
def training_line() -> Iterator[Any]:
    """A live line on a terminal, a plain line now and then elsewhere; both on stderr."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    live = sys.stderr.isatty()
    columns = [
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    shown = 0.0

    with Progress(*columns, console=console(stderr=True), disable=not live) as progress:
        line = progress.add_task("training", total=1.0, figures="reading data")

        def report(step: int, fraction: float, row: dict[str, float]) -> None:
            nonlocal shown
            best = ""
            if row["best"] >= 0:
                best = f", {row['val_way']:.0f}-way validation {row['validation']:.4f} (best {row['best']:.4f})"
            rate = f"{row['episodes_per_second']:.1f} episodes/s"
            figures = f"step {step}, loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}{best}, {rate}"
            progress.update(line, completed=fraction, figures=figures)
            if not live and (fraction >= shown + 0.05 or fraction >= 1):
                shown = fraction
                say(f"{fraction:4.0%} {figures}")

        yield report
