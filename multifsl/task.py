"""A task: labelled items of one modality, in class-disjoint splits."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from multifsl.download import Get
from multifsl.errors import DataNotFound, MultifslError

SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class Items:
    """Labelled items of one split.

    items: what the modality's encoders read: paths, `archive.Member`s, PIL images, (waveform, sample_rate) pairs, texts;
        any sequence, which may open an item only when asked for it.
    labels: int64 [n], indices into class_names. groups: int64 [n], the recording, session or drawer an item is from.
    sources: int64 [C], which of several joined data sets a class is from.
    """

    items: Sequence[Any]
    labels: np.ndarray
    class_names: list[str]
    groups: np.ndarray | None = None
    sources: np.ndarray | None = None

    def fingerprint(self) -> str:
        """A checksum of the labels and the classes' names, to tell whether data are still the same.

        >>> len(Items(["a", "b"], np.array([0, 1]), ["x", "y"]).fingerprint())
        16
        """
        labels = np.ascontiguousarray(self.labels, dtype="<i8").tobytes()
        names = "\0".join(map(str, self.class_names)).encode()
        return hashlib.blake2b(labels + names, digest_size=8).hexdigest()


class Source(NamedTuple):
    """Where a task's data are from: what `multifsl data` shows, and goes by.

    folder: its name under the data root. page: for people. megabytes: about what is downloaded, of 1e6 bytes each.
    by_hand: what to do where the data stand behind a login or a form; else the task's `download` gets them.
    also: other folders that the task reads, where the first is not there.
    """

    folder: str
    page: str
    licence: str
    megabytes: int = 0
    by_hand: str = ""
    also: tuple[str, ...] = ()


class Task:
    """Base of all tasks. A subclass is one file in `tasks/`, whose name is the task's name.

    Constructor keywords are the configuration, each kept as an attribute of the same name.
    `hints` are arguments for encoders to be trained that have such a parameter and were not given it (`{"channels": 1}`).
    """

    modality: ClassVar[str]
    data_root: Path | None = None  # set by the registry; then $MULTIFSL_DATA, then the user's cache
    hints: ClassVar[dict[str, Any]] = {}
    source: ClassVar[Source | None] = None

    def items(self, split: str) -> Items:
        """The items of a split: "train", "val", "test" or "all" of them together."""
        raise NotImplementedError

    def unknowns(self, split: str) -> Sequence[Any]:
        """Items that belong to no class, as `items` has them, none of them in two splits; most tasks have none.

        >>> len(Task().unknowns("test"))
        0
        """
        check_split(split)
        return []

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        """Fill the new, empty data folder from the official files, in the layout that `items` reads.

        `get(url, checksum=...)` is the downloaded file. A task with a `source` that is not `by_hand` has this.
        """
        raise NotImplementedError

    def folder(self, name: str) -> Path:
        """The data folder of that name. Raises DataNotFound, naming each place it was looked for."""
        tried = [root / name for root in data_roots(self.data_root)]
        for path in tried:
            if path.is_dir():
                return path
        raise DataNotFound(
            f"the data folder {name!r} was not found; looked for {', '.join(str(p) for p in tried)}. "
            f"Say where the data are with --data-root or $MULTIFSL_DATA{how_to_get(type(self))}"
        )


class Joined(Task):
    """Several tasks of one modality as one pool of classes; an episode stays within one of them."""

    def __init__(self, *parts: Task) -> None:
        modalities = sorted({part.modality for part in parts})
        if len(modalities) > 1:
            raise MultifslError(f"'+' joins tasks of one modality, not of {' and '.join(modalities)}")
        self.parts = parts
        self.modality = modalities[0]  # type: ignore[misc]
        self.hints = {k: v for part in reversed(parts) for k, v in part.hints.items()}  # type: ignore[misc]

    def items(self, split: str) -> Items:
        parts = [part.items(split) for part in self.parts]
        starts = np.cumsum([0] + [len(p.class_names) for p in parts])
        groups, next_group = [], 0
        for p in parts:
            if p.groups is not None:
                groups.append(p.groups + next_group)
                next_group += int(p.groups.max(initial=-1)) + 1
        return Items(
            items=Chain([p.items for p in parts]),
            labels=np.concatenate([p.labels + start for p, start in zip(parts, starts, strict=False)]),
            class_names=[name for p in parts for name in p.class_names],
            groups=np.concatenate(groups) if len(groups) == len(parts) else None,
            sources=np.repeat(np.arange(len(parts)), [len(p.class_names) for p in parts]),
        )

    def unknowns(self, split: str) -> Sequence[Any]:
        return Chain([part.unknowns(split) for part in self.parts])


class Chain(Sequence[Any]):
    """Sequences end to end, without opening their items."""

    def __init__(self, parts: Sequence[Sequence[Any]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0] + [len(p) for p in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][index - int(self.starts[part])]


def data_roots(data_root: Path | str | None = None) -> list[Path]:
    """Where data are looked for, first to last."""
    if data_root is not None:
        return [Path(data_root)]
    roots = [Path(os.environ["MULTIFSL_DATA"])] if os.environ.get("MULTIFSL_DATA") else []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [*roots, cache / "multifsl" / "data"]


def found_folder(source: Source, data_root: Path | str | None = None) -> Path | None:
    """The data folder of a source, the first that is there; an empty one is not."""
    names = (source.folder, *source.also)
    tried = [root / name for name in names for root in data_roots(data_root)]
    return next((path for path in tried if path.is_dir() and any(path.iterdir())), None)


def how_to_get(task: type[Task]) -> str:
    """The end of a message about missing data: how to get them, where that is known."""
    if task.source is None:
        return ""
    if task.source.by_hand:
        return f"; {task.source.by_hand}, see {task.source.page}"
    return f", or get them with: multifsl data get {task.__module__.rpartition('.')[2]}"


def check_split(split: str) -> str:
    """The split's name, if it is one."""
    if split not in SPLITS:
        raise MultifslError(f"no split {split!r}; known: {', '.join(SPLITS)}")
    return split


def split_classes(
    names: Sequence[str], seed: int = 0, shares: Sequence[float] = (0.64, 0.16, 0.20)
) -> dict[str, list[str]]:
    """Classes dealt into train, val and test by seed, disjoint; "all" is all of them.

    >>> {k: len(v) for k, v in split_classes([str(i) for i in range(50)]).items()}
    {'train': 32, 'val': 8, 'test': 10, 'all': 50}
    """
    names = sorted(names)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    a = round(shares[0] * len(names))
    b = a + round(shares[1] * len(names))
    return {"train": sorted(order[:a]), "val": sorted(order[a:b]), "test": sorted(order[b:]), "all": names}
