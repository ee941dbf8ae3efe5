"""Counts the texts that stand more than once in the sets of intents, and those that two sets share: docs/data.md has the figures.

    MULTIFSL_DATA=... python scripts/duplicate_texts.py

A text counts once, however often it stands. "To the letter" compares texts as they are; "but for case, spaces and punctuation"
compares their letters and digits alone, in lower case.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations

from multifsl.registry import build

SETS = ("banking77", "hwu64", "clinc150")


def exactly(text: str) -> str:
    return text


def letters(text: str) -> str:
    """
    >>> letters("Where's my card, then?")
    'wheresmycardthen'
    """
    return re.sub(r"[\W_]+", "", text.lower())


def intents(name: str, key: Callable[[str], str]) -> dict[str, list[int]]:
    """Each text of a set, by its key, with the intent of every place where it stands."""
    items = build("tasks", name).items("all")
    found: defaultdict[str, list[int]] = defaultdict(list)
    for text, label in zip(items.items, items.labels.tolist(), strict=True):
        found[key(text)].append(label)
    return found


def main() -> None:
    for what, key in (("to the letter", exactly), ("but for case, spaces and punctuation", letters)):
        found = {name: intents(name, key) for name in SETS}
        for name, texts in found.items():
            several = sum(len(set(labels)) > 1 for labels in texts.values())
            one = sum(len(labels) > 1 for labels in texts.values()) - several
            count = sum(len(labels) for labels in texts.values())
            print(
                f"{what}: of the {count:,} texts of {name}, {one} stand twice or more in one intent, {several} in several"
            )
        for first, second in combinations(SETS, 2):
            print(f"{what}: {first} and {second} share {len(found[first].keys() & found[second].keys())}")


if __name__ == "__main__":
    main()
