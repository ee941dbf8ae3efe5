"""What the tasks share: files of a folder or zip archive in a fixed order, items opened when asked for, `Items` built
class by class."""

import os
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from multifsl.archive import Member
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.task import Items, data_roots

File = Path | Member  # both have read_bytes() and suffix
Parts = tuple[str, ...]  # a path inside a folder or an archive


class Lazy(Sequence[Any]):
    """Items that `open_item` makes from a key each, when asked for.

    >>> items = Lazy(["3", "4"], int)
    >>> len(items), items[1], list(items[:1])
    (2, 4, [3])
    """

    def __init__(self, keys: Sequence[Any], open_item: Callable[[Any], Any]) -> None:
        self.keys, self.open_item = keys, open_item

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Lazy(self.keys[index], self.open_item)
        return self.open_item(self.keys[index])


def build(classes: Mapping[str, Collection[Any]], group: Callable[[str, Any], Any] | None = None) -> Items:
    """Items class by class, in the mapping's order; `group(class, item)` is any hashable name of an item's group.

    >>> built = build({"a": ["x1", "y1"], "b": ["x2"]}, lambda name, item: item[0])
    >>> built.items, built.labels, built.groups
    (['x1', 'y1', 'x2'], array([0, 0, 1]), array([0, 1, 0]))
    """
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(items) for items in classes.values()])
    flat = [item for items in classes.values() for item in items]
    groups = None
    if group is not None:
        numbers: dict[Any, int] = {}
        keys = [group(name, item) for name, items in classes.items() for item in items]
        groups = np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
    return Items(flat, labels, list(classes), groups)


def resolve(path: str | Path, data_root: Path | None) -> Path:
    """The path as it is, or else under a data root. Raises DataNotFound, naming each place it was looked for."""
    given = Path(path).expanduser()
    tried = [given] if given.is_absolute() else [given, *(root / given for root in data_roots(data_root))]
    for candidate in tried:
        if candidate.exists():
            return candidate
    raise DataNotFound(f"{str(path)!r} was not found; looked for {', '.join(str(p) for p in tried)}")


def contents(path: Path) -> list[tuple[Parts, File | None]]:
    """Everything in a folder or zip archive, by place; of a folder the file is None. Hidden names are left out."""
    entries: list[tuple[Parts, File | None]] = []
    if path.is_dir():
        for here, folders, files in os.walk(path, onerror=_refuse, followlinks=True):
            folders[:] = [name for name in folders if _visible((name,))]  # the walk does not enter the others
            inside = Path(here).relative_to(path).parts
            entries += [((*inside, name), None) for name in folders]
            entries += [((*inside, name), Path(here, name)) for name in files]
    elif zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            raise BadFile(f"cannot open {path} as a zip archive: {error}") from error
        entries = [(PurePosixPath(n).parts, None if n.endswith("/") else Member(path, n)) for n in names]
    elif path.suffix.lower() == ".zip":
        raise BadFile(f"{path} is named .zip but is not a zip archive, or is cut short")
    else:
        raise MultifslError(f"{path} is neither a folder nor a zip archive; give one that has a folder for each class")
    return sorted(((parts, file) for parts, file in entries if _visible(parts)), key=lambda entry: entry[0])


def _visible(parts: Parts) -> bool:
    return bool(parts) and not any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _refuse(error: OSError) -> None:
    raise BadFile(f"cannot read the folder {error.filename}: {error.strerror}") from error


def data_file(folder: Path, name: str) -> Path:
    """A file of a data folder. Raises DataNotFound where it is not there."""
    if not (folder / name).is_file():
        raise DataNotFound(f"the data folder {folder} has no {name}")
    return folder / name


def folder_or_zip(folder: Path, name: str) -> Path | None:
    """`folder/name`, or `folder/name.zip` where that is not there; None without either."""
    return next((p for p in (folder / name, folder / f"{name}.zip") if p.exists()), None)
