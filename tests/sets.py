"""What the tests of the data sets share."""

from collections.abc import Sequence

from multifsl.task import Items, Task
from tests.test_tasks import check_contract

PARTS = ("train", "val", "test")


def check_splits(task: Task, classes: Sequence[int]) -> dict[str, Items]:
    """The splits of a task, once they have that many classes, share none, and are "all" together, items and classes."""
    splits = {split: task.items(split) for split in (*PARTS, "all")}
    for items in splits.values():
        check_contract(items)
    assert [len(splits[part].class_names) for part in PARTS] == list(classes)
    assert sorted(name for part in PARTS for name in splits[part].class_names) == splits["all"].class_names
    assert sum(len(splits[part].items) for part in PARTS) == len(splits["all"].items)
    return splits
