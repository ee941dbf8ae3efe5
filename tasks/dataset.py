"""Any data set of the `datasets` library: images, speech or texts, from a folder or from the Hugging Face hub."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from multifsl.errors import BadItem, MultifslError
from multifsl.task import Items, Task
from multifsl.tasks._datasets import columns, load
from multifsl.tasks._files import Lazy, build
from multifsl.tasks._splits import check_own, select


class Opened(NamedTuple):
    """The parts of a data set, which columns of them are what, and the parts that were not chosen."""

    parts: Mapping[str, Any]
    item: str
    label: str
    modality: str
    others: list[str]


class Dataset(Task):
    """A data set that `datasets` reads, its classes dealt into train, val and test.

    path: a folder that `save_to_disk` wrote (of one data set, or of a dictionary of its parts); another folder of data
        files that `datasets` reads; or a name on the hub. A relative folder is looked for as it is, then under the data
        root. No code of a data set is ever run.
    item, label: the columns of the items and of their classes; to be given where more than one could be meant. The
        item's column is of images, of audio or of strings; the label's of class labels, strings or whole numbers.
    group: a column that says which recording, session or drawer an item is from; of class labels, strings or whole numbers.
    part: one of the data set's own splits, such as "train"; without, all of them are pooled.
    config: which of several sets under one name; not of a folder that `save_to_disk` wrote. revision: of a name on the hub.
    splits: which classes train, validate and test: a JSON file of {"train": [...], "val": [...], "test": [...]}, or a
        folder of train.txt, val.txt and test.txt with one class a line. Without, 64, 16 and 20 % of them by `seed`.

    `modality` is the item column's. An item, made when asked for, is a PIL image, a pair (waveform float32 [n] or
    [n, channels], sample_rate in hertz), or a str.

        Dataset("tickets", item="body", label="queue").items("test").class_names[0]    # such as 'billing'

    Raises:
        DataNotFound: neither a folder nor on the hub, or the hub is out of reach; says what was tried.
        BadFile: a folder that `datasets` cannot read.
        MultifslError: a column or a part that is not there, is of another type, or has to be named; a row without label or
            group; an argument that such a data set does not take.
        BadItem: a row whose image or audio cannot be decoded, when it is asked for.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        item: str | None = None,
        label: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        part: str | None = None,
        group: str | None = None,
        splits: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        check_own("dataset", path, seed)
        self.path, self.item, self.label, self.group, self.part = path, item, label, group, part
        self.config, self.revision, self.splits, self.seed = config, revision, splits, seed

    @property
    def modality(self) -> str:  # type: ignore[override]  # of the data, not of the class
        return self._opened.modality

    def items(self, split: str) -> Items:
        opened = self._opened
        rows = [(part, row) for part, table in opened.parts.items() for row in range(len(table))]
        classes: dict[str, list[tuple[str, int]]] = {}
        for key, name in zip(rows, self._names(opened, "label", opened.label), strict=True):
            classes.setdefault(name, []).append(key)
        names = select(split, classes, splits=self.splits, seed=self.seed, data_root=self.data_root)
        groups: dict[tuple[str, int], str] = {}
        if self.group is not None:
            groups = dict(zip(rows, self._names(opened, "group", self.group), strict=True))
        chosen = build({n: classes[n] for n in names}, (lambda _, key: groups[key]) if groups else None)
        tables = {part: _undecoded(table, opened.item) for part, table in opened.parts.items()}
        decode = {"image": _image, "speech": _clip, "text": _text}[opened.modality]
        open_row = partial(_open_row, tables, opened.item, decode, str(self.path))
        return Items(Lazy(chosen.items, open_row), chosen.labels, chosen.class_names, chosen.groups)

    def _names(self, opened: Opened, role: str, column: str) -> list[str]:
        """The class of every row, or its group."""
        found: list[str] = []
        for part, table in opened.parts.items():
            names = getattr(table.features[column], "names", None)  # of a ClassLabel
            for row, value in enumerate(_values(table, column)):
                known = value is not None and (names is None or 0 <= value < len(names))
                name = str(value if names is None else names[value]).strip() if known else ""
                if not name:
                    others = [*opened.others, *(other for other in opened.parts if other != part)]
                    rest = f"choose another part ({', '.join(map(repr, others))}) with part=, or " if others else ""
                    raise MultifslError(
                        f"row {row} of part {part!r} of {self.path} has no {role} in {column!r}, but {value!r}; "
                        f"{rest}save the set without such rows{', or leave out group=' if role == 'group' else ''}"
                    )
                found.append(name)
        return found

    @cached_property
    def _opened(self) -> Opened:
        parts = load(self.path, self.config, self.revision, self.data_root)
        if self.part is not None and self.part not in parts:
            raise MultifslError(f"{self.path} has no part {self.part!r}; there are {', '.join(map(repr, parts))}")
        others = [] if self.part is None else [part for part in parts if part != self.part]
        parts = parts if self.part is None else {self.part: parts[self.part]}
        chosen = [columns(table.features, self.item, self.label, self.group, self.path) for table in parts.values()]
        if len(set(chosen)) > 1:
            raise MultifslError(
                f"the parts {', '.join(map(repr, parts))} of {self.path} have other columns; choose one with part="
            )
        return Opened(parts, *chosen[0], others)


def _values(table: Any, column: str) -> list[Any]:
    """A column as Python values; no other is read."""
    values: list[Any] = table.with_format(None).select_columns([column])[:][column]
    return values


def _undecoded(table: Any, column: str) -> Any:
    """The column alone, images and audio as the files that they are."""
    import datasets

    table = table.with_format(None).select_columns([column])
    kind = type(table.features[column])
    return table.cast_column(column, kind(decode=False)) if kind in (datasets.Image, datasets.Audio) else table


def _open_row(
    tables: Mapping[str, Any], column: str, decode: Callable[[Any], Any], path: str, key: tuple[str, int]
) -> Any:
    part, row = key
    try:
        return decode(tables[part][row][column])
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:  # SyntaxError: Pillow, of a broken PNG
        raise BadItem(f"cannot read row {row} of part {part!r} of {path}: {error}") from error


def _file(stored: Mapping[str, Any] | None) -> Any:
    if not stored or (stored["bytes"] is None and stored["path"] is None):
        raise ValueError("it is empty")
    return stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"])


def _image(stored: Any) -> Any:
    from PIL import Image

    image = Image.open(_file(stored))
    image.load()
    return image


def _clip(stored: Any) -> Any:
    import soundfile  # not torchcodec, which `datasets` would take: that needs FFmpeg

    return soundfile.read(_file(stored), dtype="float32")


def _text(stored: Any) -> Any:
    if stored is None:
        raise ValueError("it is empty")
    return stored
