"""The nearest of 100,000 classes, of one example each: what a classifier answers when very many were enrolled.

Ours: `FewShotClassifier.predict`, by cosine. faiss: a flat index of the same examples, of length 1, by inner product; given rows of
float32 as it wants them, and its answers left as numbers.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np

from benchmarks.harness import Case, Run, Same, Setting
from multifsl import FewShotClassifier

TITLE = "Nearest of 100,000 classes"
DIM = 256


@cache
def data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An example of each class [N, D], and 64 queries [64, D], each close to one; float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(classes, DIM)).astype(np.float32)
    return x, x[:: classes // 64][:64] + rng.normal(size=(64, DIM)).astype(np.float32)


@cache
def model(setting: Setting, classes: int) -> FewShotClassifier:
    return FewShotClassifier(device=setting.device).fit(data(classes)[0], np.arange(classes))


def cases(setting: Setting) -> Iterator[Case]:
    classes = setting.pick(100_000, 1000)
    for name, queries, repeats, aim in (("64 queries at once", 64, 5, 2.5), ("one query", 1, 20, 1.0)):
        repeats = setting.pick(repeats, 1)
        yield Case(
            name,
            ours=partial(ours, setting, classes, queries, repeats),
            peers={"faiss": partial(faiss, classes, queries, repeats)},
            aim=aim,
            same=partial(same, setting, classes, queries),
            flops=(lambda queries=queries, n=repeats: 2.0 * n * queries * classes * DIM) if queries > 1 else None,  # type: ignore[misc]
            moved=lambda n=repeats: 4.0 * n * classes * DIM,  # type: ignore[misc]
            inner=repeats,
            unit="call",
        )


def ours(setting: Setting, classes: int, queries: int, repeats: int) -> Run:
    fitted, x = model(setting, classes), data(classes)[1][:queries]

    def once() -> None:
        for _ in range(repeats):
            fitted.predict(x)

    return once


def flat(classes: int) -> tuple[object, np.ndarray]:
    """faiss's index, and the queries as it wants them."""
    import faiss as library

    x, queries = (np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True)) for rows in data(classes))
    index = library.IndexFlatIP(DIM)
    index.add(x)
    return index, queries


def faiss(classes: int, queries: int, repeats: int) -> Run:
    index, x = flat(classes)

    def once() -> None:
        for _ in range(repeats):
            index.search(x[:queries], 1)  # type: ignore[attr-defined]

    return once


def same(setting: Setting, classes: int, queries: int) -> Sequence[Same]:
    index, x = flat(classes)
    theirs = index.search(x[:queries], 1)[1][:, 0]  # type: ignore[attr-defined]
    mine = model(setting, classes).predict(data(classes)[1][:queries])
    return [Same("share of equal neighbours", float((mine == theirs).mean()), 1.0, 0.0)]
