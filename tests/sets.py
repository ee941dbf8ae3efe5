"""What the tests of the data sets share."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from multifsl.task import Items, Task
from tests.test_tasks import check_contract

PARTS = ("train", "val", "test")


def needs_data(folder: str) -> None:
    """Skip where the real data are not there."""
    root = os.environ.get("MULTIFSL_DATA")
    if not root or not Path(root, folder).is_dir():
        pytest.skip(f"needs the data folder {folder!r} under $MULTIFSL_DATA ({root or 'not set'})")


def check_splits(task: Task, classes: Sequence[int]) -> dict[str, Items]:
    """The splits of a task, once they have that many classes, share none, and are "all" together, items and classes."""
    splits = {split: task.items(split) for split in (*PARTS, "all")}
    for items in splits.values():
        check_contract(items)
    assert [len(splits[part].class_names) for part in PARTS] == list(classes)
    assert sorted(name for part in PARTS for name in splits[part].class_names) == splits["all"].class_names
    assert sum(len(splits[part].items) for part in PARTS) == len(splits["all"].items)
    return splits
