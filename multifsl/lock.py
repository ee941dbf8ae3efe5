"""One at a time: a lock beside a folder that is to be changed.

It is the operating system's lock on a file `.NAME.lock` beside the folder (flock; a locked byte on Windows), and goes with the
process that holds it, by `kill -9` too: the file that is left then holds nobody up. It binds those alone who ask for it.
"""

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from multifsl.errors import MultifslError

PATIENCE = 1.0  # seconds of waiting, after which that is told
PAUSE = 0.02  # seconds between two attempts
_own = threading.local()  # places: the folders that this thread holds

if sys.platform == "win32":
    import msvcrt

    def _try(handle: int, file: str) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _release(handle: int, file: str) -> None:
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        os.close(handle)
        with suppress(OSError):  # somebody else has it open
            os.unlink(file)

else:
    import fcntl

    def _try(handle: int, file: str) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return os.path.samestat(os.fstat(handle), os.stat(file))
        except (BlockingIOError, FileNotFoundError):  # who held it last may have removed the file meanwhile
            return False

    def _release(handle: int, file: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(file)
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing alone would leave it with a process that was forked meanwhile
        os.close(handle)


@contextmanager
def locked(path: Path | str) -> Iterator[None]:
    """Hold the lock of a folder, or of a place for one: whatever is loaded, changed and saved meanwhile is changed by nobody else.

    Other processes and threads that save there, or ask for the lock, wait until it is free; a warning tells of it after a second.
    Readers need no lock. A thread that holds it may ask again, as `save` does.

    Raises MultifslError where there is no folder around `path`, or one that cannot be written to.

    >>> import tempfile
    >>> from multifsl import FewShotClassifier
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     FewShotClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["up", "right"]).save(f"{folder}/model")
    ...     with locked(f"{folder}/model"):
    ...         model = FewShotClassifier.load(f"{folder}/model")
    ...         model.enroll("left", [[-1.0, 0.0]]).save(f"{folder}/model", overwrite=True)
    ...     len(FewShotClassifier.load(f"{folder}/model").classes_)
    3
    """
    place = os.path.realpath(path)
    places: set[str] = _own.__dict__.setdefault("places", set())
    if place in places:
        yield
        return
    around, name = os.path.split(place)
    if not os.path.isdir(around):
        raise MultifslError(f"there is no folder {around}, where {name} is to be")
    file = os.path.join(around, f".{name}.lock")
    try:
        handle = _wait(file, path)
    except OSError as error:
        raise MultifslError(f"cannot write {path}, since its lock {file} cannot be had: {error.strerror}") from error
    places.add(place)
    try:
        yield
    finally:
        places.remove(place)
        _release(handle, file)


def _wait(file: str, path: Path | str) -> int:
    """The file, open and locked."""
    start, told = time.monotonic(), False
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try(handle, file):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not told and time.monotonic() - start > PATIENCE:
            told = True
            warnings.warn(f"waiting for somebody else, who is changing {path}", stacklevel=4)
        time.sleep(PAUSE)
