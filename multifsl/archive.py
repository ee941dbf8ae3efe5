"""Files inside zip archives, read in place."""

import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from multifsl.errors import BadFile

MAX_MEMBER_BYTES = 2**30  # an archive of a few kilobytes can claim any size


@dataclass(frozen=True)
class Member:
    """A file inside a zip archive, read when asked for."""

    archive: Path
    name: str

    def read_bytes(self) -> bytes:
        handle, lock = _open_archive(self.archive)
        with lock:
            try:
                size = handle.getinfo(self.name).file_size
                if size > MAX_MEMBER_BYTES:
                    raise BadFile(f"{self} would unpack to {size} bytes; at most {MAX_MEMBER_BYTES} are read")
                return handle.read(self.name)
            except KeyError:
                raise BadFile(f"{self.archive} has no member {self.name}") from None
            # RuntimeError: encrypted, or (NotImplementedError) of a compression that Python does not know
            except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
                raise BadFile(f"cannot read {self}: {error}") from error

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


def _open_archive(path: Path) -> tuple[zipfile.ZipFile, threading.Lock]:
    try:
        status = path.stat()
        return _archive(path, os.getpid(), status.st_mtime_ns, status.st_size)
    except (zipfile.BadZipFile, OSError) as error:
        raise BadFile(f"cannot open {path} as a zip archive: {error}") from error


@lru_cache(maxsize=32)
def _archive(path: Path, _process: int, _modified: int, _size: int) -> tuple[zipfile.ZipFile, threading.Lock]:
    """An open archive; anew for another process, which would share the file position, and for another file of that name."""
    return zipfile.ZipFile(path), threading.Lock()


def members(archive: Path) -> list[Member]:
    """The files of a zip archive, in the order of their names."""
    handle, _ = _open_archive(archive)
    return [
        Member(archive, n)
        for n in sorted(handle.namelist())
        if not n.endswith("/") and not Path(n).name.startswith(".")
    ]
