"""Embeddings on disk, so that the next evaluation of an encoder on the same items need not make them anew.

A file holds what one encoder made of one block of items [B, *], and its name is a checksum of all that this depends on: the
encoder's weights, arguments and code, and the prepared items. Where those come from, and what they are called, does not count.
The leak check keeps its checksums here, too (`multifsl.leaks`).
Files hold tensors and strings alone (safetensors) and are written whole or not at all, so that many processes may share a folder.

Shape letters: B items, D embedding width.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from multifsl.encoder import Encoder
from multifsl.episode import Inputs
from multifsl.errors import MultifslError
from multifsl.functional import digest

LIMIT = 4 * 2**30  # bytes that the files of a cache may take together
_OURS = re.compile(r"[0-9a-f]{32}\.safetensors|\.[0-9a-f]{32}\.[0-9a-f]{32}")  # the second kind is still being written
_LONGEST = 2**20  # bytes of a file's header: a damaged one may claim any
_DAMAGED = (SafetensorError, LookupError, ValueError, TypeError)  # what reading a file raises that is not what we wrote


class EmbeddingSet(NamedTuple):
    """What a cache has of one encoder with certain weights.

    encoder: its spec. items, width: how many embeddings, of how many numbers each. size: bytes on disk. used: when one of them was
    last written or read, in seconds since 1970.
    """

    encoder: str
    items: int
    width: int
    size: int
    used: float


class EmbeddingCache:
    """A folder of embeddings; those that were not used for longest are removed where it grows beyond its limit.

    folder: by default $MULTIFSL_CACHE, else multifsl/embeddings in the user's cache. limit: bytes.
    Where the disk cannot be read or written, embeddings are made as without a cache, and one warning says so.

    >>> import tempfile
    >>> from multifsl.encoder import Features
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     cache = EmbeddingCache(Path(folder))
    ...     embed = cache.embedder(Features(3), "features(dim=3)")
    ...     first, again = embed(torch.ones(2, 3), 64), embed(torch.ones(2, 3), 64)  # made and kept; read
    ...     again.shape, [(one.items, one.width) for one in cache.sets()]
    (torch.Size([2, 3]), [(2, 3)])
    """

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        self.folder, self.limit = cache_folder() if folder is None else folder, limit
        self._warned = False

    def embedder(self, encoder: Encoder, spec: str) -> Callable[[Inputs, int], Tensor]:
        """`encoder.embed`, but for what is on disk already. spec: the encoder's, with every argument in it.

        An encoder whose class is in no file (a notebook's) is not cached: nothing would show that its code has changed. Nor is
        anything under autocast, which rounds otherwise.
        """
        code = _code(encoder)
        if code is None or torch.is_autocast_enabled(encoder.device.type):
            return encoder.embed
        tensors = {**encoder.state_dict(), **dict(encoder.named_buffers())}  # some buffers are in no state dict
        parts = (spec, type(encoder).__qualname__, digest(tensors), code, encoder.device.type, torch.__version__)
        return partial(self._embed, encoder, spec, _checksum("\n".join(parts).encode()))

    def sets(self) -> list[EmbeddingSet]:
        """What there is, by encoder and weights, the last used first. Raises MultifslError where the folder cannot be read."""
        found: dict[str, EmbeddingSet] = {}
        with _told(self.folder):
            for used, size, path in self._files():
                with contextlib.suppress(*_DAMAGED, FileNotFoundError):  # of no use, and removed when its turn comes
                    (items, width), header = _shape(path)
                    before = found.get(header["identity"], EmbeddingSet("", 0, 0, 0, 0.0))
                    found[header["identity"]] = EmbeddingSet(
                        header["encoder"], before.items + items, width, before.size + size, used / 1e9
                    )
        return sorted(found.values(), key=lambda one: -one.used)

    def clear(self) -> int:
        """Remove all embeddings, and nothing else that is in the folder; returns how many bytes that freed.

        Raises MultifslError where they cannot be removed.
        """
        with _told(self.folder):
            return self._remove_down_to(0)

    def get(self, key: str) -> Tensor | None:
        """What was put under a key, on the CPU; None where there is nothing, or it is damaged.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = EmbeddingCache(Path(folder))
        ...     cache.put("a", torch.ones(2, 3), encoder="by hand", identity="")
        ...     cache.get("a").shape, cache.get("b")
        (torch.Size([2, 3]), None)
        """
        path, found = self._path(key), None
        with self._disk():
            found = _read(path)
            if found is not None:
                os.utime(path)
        return found

    def put(self, key: str, z: Tensor, *, encoder: str, identity: str) -> None:
        """Keep a tensor [B, D] under a key. encoder, identity: what `sets` calls it, and puts together."""
        with self._disk():
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self._path(key), z, {"encoder": encoder, "identity": identity})
            self._remove_down_to(self.limit)

    def _path(self, key: str) -> Path:
        return self.folder / f"{_checksum(key.encode())}.safetensors"

    def _embed(self, encoder: Encoder, spec: str, identity: str, x: Inputs, batch_size: int) -> Tensor:
        """Embeddings [B, D] on the encoder's device. Batches of another size round otherwise, and are another key."""
        key = f"{identity} {batch_size} {digest(x if isinstance(x, dict) else {'x': x})}"
        found = self.get(key)
        if found is not None:
            return found.to(encoder.device)
        z = encoder.embed(x, batch_size)
        self.put(key, z, encoder=spec, identity=identity)
        return z

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """What the disk refuses is told once, and done without."""
        try:
            yield
        except FileNotFoundError:
            pass  # not there yet, or just removed by another process
        except OSError as error:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"embeddings cannot be kept in {self.folder} ({error.strerror or error}) and are made anew each time; name "
                    "another folder with $MULTIFSL_CACHE",
                    stacklevel=5,
                )

    def _files(self) -> list[tuple[int, int, Path]]:
        """(last use in ns, bytes, path) of each file, the longest unused first."""
        found = []
        with contextlib.suppress(FileNotFoundError):  # there is no folder, or no longer
            for path in filter(lambda path: _OURS.fullmatch(path.name), self.folder.iterdir()):
                with contextlib.suppress(FileNotFoundError):  # just removed by another process
                    stat = path.stat()
                    found.append((stat.st_mtime_ns, stat.st_size, path))
        return sorted(found)

    def _remove_down_to(self, limit: int) -> int:
        """Remove the longest unused files until the rest takes no more than `limit` bytes; returns the bytes removed."""
        files = self._files()
        total, removed = sum(size for _, size, _ in files), 0
        for _, size, path in files:
            if total - removed <= limit:
                break
            path.unlink(missing_ok=True)
            removed += size
        return removed


def cache_folder() -> Path:
    """Where embeddings are kept: $MULTIFSL_CACHE, else multifsl/embeddings in the user's cache."""
    if os.environ.get("MULTIFSL_CACHE"):
        return Path(os.environ["MULTIFSL_CACHE"])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "multifsl" / "embeddings"


def _code(encoder: Encoder) -> str | None:
    """A checksum of the files that define the network's classes, and of the `_*.py`, or a plug-in's `*.py`, beside the encoder's.

    None where the encoder's class is in no file.
    """
    own = _file(type(encoder))
    if own is None:
        return None
    ours = own.parent.name == "encoders"  # of a plug-in, all that stands beside it may be in use
    beside = set(own.parent.glob("_*.py" if ours else "*.py"))
    files = {_file(kind) for part in encoder.modules() for kind in type(part).__mro__} | beside
    return _checksum("".join(sorted(_checksum(file.read_bytes()) for file in files if file is not None)).encode())


def _file(kind: type) -> Path | None:
    """The file that a class is from; None for those that are built in, or were typed in."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return Path(file) if file is not None and Path(file).is_file() else None


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(path: Path, z: Tensor, header: dict[str, str]) -> None:
    """Put a file into its place, whole. The tensor has the file's own name, so that a renamed file is told from it."""
    tensors = {path.stem: z.cpu()}
    fresh = path.with_name(f".{path.stem}.{uuid.uuid4().hex}")
    try:
        fresh.write_bytes(save(tensors, metadata={**header, "checksum": digest(tensors)}))
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


# Files are opened once each and not by `safe_open`, which opens them twice: another process may remove one in between.


def _read(path: Path) -> Tensor | None:
    """The embeddings of a file; None, and the file is removed, where it is damaged or is not what its name says."""
    content = path.read_bytes()
    with contextlib.suppress(*_DAMAGED):
        z = load(content)[path.stem]
        size = int.from_bytes(content[:8], "little")
        if json.loads(content[8 : 8 + size])["__metadata__"]["checksum"] == digest({path.stem: z}):
            return z
    path.unlink(missing_ok=True)
    return None


def _shape(path: Path) -> tuple[list[int], dict[str, str]]:
    """The shape [B, D] of a file's embeddings, and what is written about them, without reading them."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(size, _LONGEST)))
        tensor = header[path.stem]
        if 8 + size + tensor["data_offsets"][1] != os.fstat(file.fileno()).st_size:
            raise ValueError("the file is cut off")
    return tensor["shape"], header["__metadata__"]


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MultifslError(f"cannot use the embeddings in {folder}: {error.strerror or error}") from error
