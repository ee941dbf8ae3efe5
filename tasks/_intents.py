"""Texts of intents with the five class splits of ProtAugment."""

from pathlib import Path

from multifsl.errors import MultifslError
from multifsl.task import Items
from multifsl.tasks._files import build, data_file
from multifsl.tasks._splits import select
from multifsl.tasks._tables import read_texts

FOLDS = (1, 2, 3, 4, 5)


def check_fold(task: str, fold: int) -> int:
    """The fold, if it is one."""
    if fold not in FOLDS:
        raise MultifslError(f"{task} has the folds 1 to 5, not {fold!r}")
    return fold


def fold_items(folder: Path, fold: int, split: str) -> Items:
    """The texts of `data.jsonl`, lines {"text", "label"}, whose labels `splits/split_0<fold>.json` puts in the split."""
    classes = read_texts(data_file(folder, "data.jsonl"))
    names = select(split, classes, splits=data_file(folder, f"splits/split_0{fold}.json"))
    return build({name: classes[name] for name in names})
