"""Class splits: dealt by seed, or read from a file and checked against the classes there are."""

import json
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from multifsl.errors import BadFile, DataNotFound, MultifslError, some
from multifsl.task import check_split, split_classes
from multifsl.tasks._files import resolve

PARTS = {"train": "train", "val": "val", "valid": "val", "test": "test"}


def check_own(task: str, path: str | Path, seed: int) -> None:
    """The arguments that the tasks over one's own files share."""
    if not isinstance(path, str | Path) or not str(path):
        raise MultifslError(f"{task}: path is a folder's or a file's name, not {path!r}")
    check_seed(task, seed)


def check_seed(task: str, seed: int) -> None:
    if not isinstance(seed, int) or seed < 0:
        raise MultifslError(f"{task}: seed is a whole number from 0, not {seed!r}")


def select(
    split: str,
    names: Collection[str],
    *,
    splits: str | Path | None = None,
    seed: int = 0,
    shares: Sequence[float] = (0.64, 0.16, 0.20),
    data_root: Path | None = None,
) -> list[str]:
    """The classes of a split, in the order of their names: by the file or folder `splits`, or else dealt by seed.

    >>> len(select("val", list("abcdefghij")))
    2
    """
    check_split(split)
    if splits is None:
        dealt = split_classes(list(names), seed, shares)
    else:
        path = resolve(splits, data_root)
        dealt = {**_checked(_read(path), names, path), "all": sorted(names)}
    if not dealt[split]:
        counts = ", ".join(f"{part} {len(dealt[part])}" for part in ("train", "val", "test"))
        raise MultifslError(
            f"split {split!r} has no class: of {len(names)}, {counts}. "
            "Use split 'all', or say which classes belong where with a splits file"
        )
    return dealt[split]


def listed(split: str, lists: Mapping[str, Collection[str]], found: Collection[str], where: str | Path) -> list[str]:
    """The classes of a split by published lists, in the order of their names; "all" is every class of the lists.

    Raises DataNotFound where some of them are not among those found.

    >>> listed("train", {"train": ["owl", "cat"], "val": ["dog"], "test": ["fox"]}, ["cat", "dog", "owl"], "pets.zip")
    ['cat', 'owl']
    """
    check_split(split)
    wanted = sorted(name for part, names in lists.items() if split in (part, "all") for name in names)
    missing = [name for name in wanted if name not in found]
    if missing:
        raise DataNotFound(
            f"{len(missing)} of the {len(wanted)} classes of split {split!r} are not in {where}: {some(missing)}. "
            "Add what is missing, or use a split that is complete"
        )
    return wanted


def _read(path: Path) -> list[tuple[str, str]]:
    """(class, split) as the file says; of a folder, as train.txt, val.txt and test.txt say, one class a line."""
    try:
        if path.is_dir():
            files = [(PARTS[part], path / f"{part}.txt") for part in PARTS if (path / f"{part}.txt").is_file()]
            lines = [(line.strip(), part) for part, file in files for line in file.read_text("utf-8-sig").splitlines()]
            return [(name, part) for name, part in lines if name]
        given = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise BadFile(f"cannot read the splits in {path}: {error}") from error
    lists = given.values() if isinstance(given, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise BadFile(f'{path} is not of the form {{"train": [classes], "val": [classes], "test": [classes]}}')
    unknown = [part for part in given if part not in PARTS]
    if unknown:
        raise BadFile(f"{path} has a split {unknown[0]!r}; known: train, val (or valid), test")
    return [(name, PARTS[part]) for part, names in given.items() for name in names]


def _checked(pairs: list[tuple[str, str]], names: Collection[str], path: Path) -> dict[str, list[str]]:
    """Split -> classes, once every class is known to exist and to stand in one split, once."""
    if not pairs:
        raise BadFile(f"{path} names no class: give JSON of lists, or a folder with train.txt, val.txt and test.txt")
    known, where = set(names), dict[str, str]()
    unknown = [name for name, _ in pairs if name not in known]
    if unknown:
        close = get_close_matches(unknown[0], sorted(known), 1)
        hint = f"did you mean {close[0]!r} for the first?" if close else f"there are {some(sorted(known))}"
        listed = some([repr(name) for name in unknown])
        raise MultifslError(f"{path} names classes that do not exist: {listed}; {hint}")
    for name, part in pairs:
        if name in where:
            both = f"twice in {part!r}" if where[name] == part else f"in {where[name]!r} and in {part!r}"
            raise MultifslError(f"{path}: class {name!r} stands {both}; the splits must share no class")
        where[name] = part
    return {part: sorted(n for n in where if where[n] == part) for part in ("train", "val", "test")}
