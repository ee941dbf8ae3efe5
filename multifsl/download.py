"""Getting a data set from its official source: files over HTTP, what is in an archive, a folder that appears when it is whole."""

import hashlib
import re
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from email.message import Message
from errno import ENOSPC
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from multifsl.errors import BadFile, DataNotFound, MultifslError

BLOCK = 2**18  # bytes read at once
SILENCE = 30.0  # seconds without a byte, after which a connection counts as broken
PATIENCE = 8.0  # seconds for a server's first answer to a short question
LARGEST = 2**30  # bytes of one file of an archive: a few kilobytes can claim any size

Progress = Callable[[str, int, int | None], None]  # the file's name, bytes there, bytes in all where that is known
Answer = TypeVar("Answer")


class Get(Protocol):
    """What a task is handed to download with: the file behind a URL, wherever it is put."""

    def __call__(self, url: str, *, checksum: str | None = None) -> Path: ...


# ---- one file ----


def fetch(
    url: str, path: Path, *, size: int | None = None, checksum: str | None = None, progress: Progress | None = None
) -> Path:
    """Download a file to `path`; what is there already stays. A cut-off download is gone on with, by HTTP Range.

    While it runs, the file is `path` with `.part` added; it gets its name once it is whole, as far as can be known: it
    has the length that the server announced, and `size` and `checksum` where they are given. A broken connection is
    taken up again as long as every attempt brings something. Beside it, `.part.version` keeps the server's mark of the
    file's version (ETag or Last-Modified): of a file that has changed, nothing is gone on with.

    Args:
        size: bytes. checksum: "md5:..." or "sha256:...", in hexadecimal digits. progress: called as bytes come in.

    Raises:
        DataNotFound: the server is out of reach, does not have the file, or cut it off; a `.part` that is left is gone on
            with next time.
        BadFile: the file is not of that size or checksum; it is removed.
        MultifslError: the folder cannot be written, or the disk is too small.
    """
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            before = _length(part)
            try:
                total = _receive(url, part, progress)
                break
            except (HTTPError, URLError) as error:
                raise _unreachable(url, error) from None
            except (HTTPException, ConnectionError) as error:
                if _length(part) <= before:
                    raise _unreachable(url, error) from None
        _check(part, url, total if size is None else size, checksum)
        part.replace(path)
        _version_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unreachable(url: str, error: Exception) -> DataNotFound:
    if isinstance(error, HTTPError):
        if error.code in (401, 403):
            what = "it does not hand the file out here, or not now: try later, or see the page that `multifsl data list` names"
        elif error.code == 429 or error.code >= 500:
            what = "try again later: what has come is kept, and gone on with"
        else:
            what = "has the file moved?"
        return DataNotFound(f"cannot download {url}: the server answered {error.code} {error.reason}; {what}")
    said = error.reason if isinstance(error, URLError) else error
    return DataNotFound(
        f"cannot download {url}: {str(said) or type(error).__name__}. Check the network and try again: what has come "
        "is kept, and gone on with"
    )


def cannot_write(path: Path, error: OSError) -> MultifslError:
    """What to tell the user of a full disk or a folder without permission."""
    if error.errno == ENOSPC:
        return MultifslError(f"the disk is full at {path.parent}; make room there, or choose another --data-root")
    return MultifslError(f"cannot write {path}: {error.strerror or error}; choose another --data-root")


def _receive(url: str, part: Path, progress: Progress | None) -> int | None:
    """Append what the file lacks; returns the whole length where the server says it."""
    start = _length(part)
    header, version = _kept_version(part)
    headers = {"User-Agent": "multifsl", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    if start and version and not version.startswith("W/"):  # If-Range takes no weak ETag
        headers["If-Range"] = version
    try:
        answer = _open(Request(url, headers=headers))
    except HTTPError as error:
        error.close()  # of the connection; its code and headers stay
        if error.code != 416 or not start:
            raise
        # Nothing from there on: the part is whole, or, where the lengths or versions differ, of another file.
        total = _total(error.headers.get("Content-Range"))
        if total == start and error.headers.get(header, version) == version:
            return total
        _discard(part)
        return _receive(url, part, progress)
    except URLError:
        raise
    except OSError as error:  # silence, or a fault of TLS, before the answer's first line: not one of the disk
        raise ConnectionError(str(error) or type(error).__name__) from error
    if answer.status == 206 and answer.headers.get(header, version) != version:  # a server that does not know If-Range
        answer.close()
        _discard(part)
        return _receive(url, part, progress)
    with answer:
        if answer.status != 206:  # a server without Range sends all of it
            start = 0
        announced = answer.headers.get("Content-Length")
        total = None if announced is None else start + int(announced)
        if total is not None:
            _check_room(part, total - start)
        with part.open("ab" if start else "wb") as out:
            if not start:
                _keep_version(part, answer.headers)
            while block := _more(answer):
                out.write(block)
                start += len(block)
                if progress is not None:
                    progress(part.stem, start, total)
    if total is not None and start < total:
        raise ConnectionError(f"the connection ended after {start} of {total} bytes")
    return total


# The version of a `.part`, as one line: the header's name and its value.


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _keep_version(part: Path, headers: Message) -> None:
    """The server's mark of the version: a strong ETag, else the date, else a weak ETag; no file where it gives none."""
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    header, value = ("Last-Modified", date) if date and (not etag or etag.startswith("W/")) else ("ETag", etag)
    if value:
        _version_file(part).write_text(f"{header} {value}", encoding="utf-8")
    else:
        _version_file(part).unlink(missing_ok=True)


def _kept_version(part: Path) -> tuple[str, str]:
    """The header's name and its value; two empty texts where none was kept."""
    kept = _version_file(part)
    header, _, value = (kept.read_text("utf-8") if kept.exists() else "").partition(" ")
    return header, value


def _discard(part: Path) -> None:
    part.unlink()
    _version_file(part).unlink(missing_ok=True)


def _more(answer: Any) -> bytes:
    try:
        block: bytes = answer.read1(BLOCK)
    except OSError as error:  # of the connection: not to be taken for one of the disk
        raise ConnectionError(str(error) or type(error).__name__) from error
    return block


def _open(request: Request) -> Any:
    """The server's answer. Tests put their own server here."""
    return urlopen(request, timeout=SILENCE)


def _total(content_range: str | None) -> int | None:
    """`bytes */1234` -> 1234."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _check_room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise MultifslError(
            f"{part.name} needs another {megabytes(needed)} and {part.parent} has {megabytes(free)} free; make room there, "
            "or choose another --data-root"
        )


def megabytes(size: int) -> str:
    """A length to read.

    >>> megabytes(15_927_098), megabytes(900)
    ('16 MB', '1 MB')
    """
    return f"{max(1, round(size / 1e6)):,} MB"


def _check(part: Path, url: str, size: int | None, checksum: str | None) -> None:
    wrong = ""
    if size is not None and _length(part) != size:
        wrong = f"it has {_length(part)} bytes instead of {size}"
    elif checksum is not None:
        kind, _, expected = checksum.partition(":")
        with part.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
        wrong = f"its {kind} is {found} instead of {expected}" if found != expected else ""
    if wrong:
        _discard(part)
        raise BadFile(f"{url} is damaged, or another file than it was: {wrong}. It is removed; try again")


# ---- a data set ----


def install(
    download: Callable[[Path, Get], None],
    folder: Path,
    *,
    keep_archive: bool = False,
    progress: Progress | None = None,
) -> bool:
    """Make a data folder by `download(new folder, get)`; True where it was made, False where it is there already, not empty.

    The files come into `downloads/` beside it, from where a later call goes on, and are removed in the end unless
    `keep_archive`. The folder appears under its name once it is whole.

    Raises: what `fetch` raises, and BadFile where an archive is damaged.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return False
    store, building = folder.parent / "downloads" / folder.name, folder.with_name(folder.name + ".part")

    def get(url: str, *, checksum: str | None = None) -> Path:
        place = store.joinpath(
            *(name for name in unquote(urlsplit(url).path).split("/") if name not in ("", ".", ".."))
        )
        return fetch(url, place, checksum=checksum, progress=progress)

    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        download(building, get)
        if folder.is_dir():  # an empty one, over which not every system can move another
            folder.rmdir()
        building.replace(folder)
    except MultifslError:
        raise
    except OSError as error:
        raise cannot_write(folder, error) from error
    except (KeyError, ValueError) as error:  # no such JSON or table: a hotel's page to log in, where a file should be
        shutil.rmtree(store, ignore_errors=True)
        raise BadFile(
            f"what was downloaded for {folder.name} is not as expected ({type(error).__name__}: {error}); it is removed, try again"
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if not keep_archive:
        shutil.rmtree(store, ignore_errors=True)
        if not any(store.parent.iterdir()):
            store.parent.rmdir()
    return True


def place(file: Path, target: Path) -> None:
    """A downloaded file as it is, in the data folder: the same bytes on the disk where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, target)


def archived(archive: Path, pattern: str) -> Iterator[tuple[re.Match[str], bytes]]:
    """The files of a zip or tar archive whose whole name is of the pattern, one after the other: (match, content).

    Nothing is unpacked to where the archive says: the caller writes what it asked for under names of its own.
    Raises BadFile, and removes the archive, where it is damaged.
    """
    wanted, found = re.compile(pattern), False
    try:
        for name, size, read in _zipped(archive) if zipfile.is_zipfile(archive) else _tarred(archive):
            match = wanted.fullmatch(name.removeprefix("./"))
            if match is not None:
                if size > LARGEST:
                    raise BadFile(f"{name} of {archive} would unpack to {size} bytes; at most {LARGEST} are read")
                found = True
                yield match, read()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        archive.unlink(missing_ok=True)
        raise BadFile(f"the archive {archive} is damaged ({error}); it is removed, try again") from error
    if not found:
        archive.unlink(missing_ok=True)
        raise BadFile(
            f"the archive {archive} is not the one expected, it has no file such as {pattern}; it is removed, try again"
        )


def _zipped(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, info.file_size, lambda info=info: archive.read(info)  # type: ignore[misc]


def _tarred(path: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    with tarfile.open(path) as archive:
        for info in archive:
            if info.isreg():
                yield info.name, info.size, lambda info=info: archive.extractfile(info).read()  # type: ignore[misc, union-attr]
        assert archive.fileobj is not None
        while archive.fileobj.read(BLOCK):  # to the end, where gzip has its checksum
            pass


# ---- a short question to a server ----


def within(seconds: float, function: Callable[[], Answer]) -> Answer:
    """The function's answer, or TimeoutError.

    A network library's time limit holds for each address of a host, and for none of the look-up of its name: behind a
    firewall that drops packets the sum is minutes.

    >>> within(1.0, lambda: 2 + 2)
    4
    """
    outcome: list[Any] = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except Exception as error:  # noqa: BLE001  # handed on
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)  # a daemon: an unanswered call does not hold up the exit
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    answer, error = outcome[0]
    if error is not None:
        raise error
    return answer  # type: ignore[no-any-return]
