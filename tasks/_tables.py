"""Tables of labelled texts: JSON lines, CSV and TSV."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from multifsl.errors import BadFile, MultifslError

JSON_LINES, CSV = (".jsonl", ".ndjson", ".json"), {".csv": ",", ".tsv": "\t"}


def read_texts(path: Path, text: str = "text", label: str = "label") -> dict[str, list[str]]:
    """Label -> its texts in the file's order; labels sorted. A label loses the spaces around it, and may be an integer.

    Raises BadFile or MultifslError with the file's name, the line, and what is wrong there.
    """
    found: dict[str, list[str]] = {}
    for line, row in rows(path):
        where = f"{path}, line {line}"
        for column in (text, label):
            if column not in row:
                raise MultifslError(f"{where}: no column {column!r}; there are {', '.join(map(repr, row)) or 'none'}")
        value, name = row[text], row[label]
        name = str(name) if isinstance(name, int) and not isinstance(name, bool) else name
        for column, content in ((text, value), (label, name)):
            if not isinstance(content, str):
                raise BadFile(f"{where}: {column!r} should be a string, not {content!r}")
            if not content.strip():
                raise BadFile(f"{where}: {column!r} is empty")
        found.setdefault(name.strip(), []).append(value)
    if not found:
        raise BadFile(f"{path} has no rows")
    return dict(sorted(found.items()))


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a file, read by its suffix."""
    suffix = path.suffix.lower()
    if path.is_dir() or suffix not in (*JSON_LINES, *CSV):
        raise MultifslError(f"{path} is not a table of texts; give a file with suffix {', '.join((*JSON_LINES, *CSV))}")
    raw = path.read_bytes()
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadFile(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    return _csv_rows(path, content, CSV[suffix]) if suffix in CSV else _json_rows(path, content)


def _json_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):  # not splitlines: U+2028 may stand inside a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadFile(f"{path}, line {number}: broken JSON, {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise BadFile(f'{path}, line {number}: each line must be a JSON object, {{"text": ..., "label": ...}}')
        yield number, row


def _csv_rows(path: Path, content: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(StringIO(content, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    first = 1  # the line on which a row starts: quoted texts may run over several
    try:
        for cells in reader:
            if cells and header is None:
                header = cells
            elif cells and header is not None:
                if len(cells) != len(header):
                    counts = f"{len(cells)} columns where the header has {len(header)}"
                    raise BadFile(f"{path}, line {first}: {counts}; a cell with {delimiter!r} in it must be quoted")
                yield first, dict(zip(header, cells, strict=True))
            first = reader.line_num + 1
    except csv.Error as error:
        raise BadFile(f"{path}, line {first}: broken CSV, {error}") from error
