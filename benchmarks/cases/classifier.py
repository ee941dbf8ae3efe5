"""A classifier from a handful of given embeddings: 5 classes of 5 examples each, 512 wide, learned and asked for 75 answers.

scikit-learn's NearestCentroid is the same algorithm: the nearest class mean by Euclidean distance. Both are asked as their users
do, with arrays of float64 and labels that are texts, and check what they are given.
"""

from collections.abc import Iterator, Sequence
from functools import cache, partial

import numpy as np

from benchmarks.harness import Case, Run, Same, Setting
from multifsl import FewShotClassifier

TITLE = "Classifier on given embeddings"
DIM, WAY, SHOT, QUERY = 512, 5, 5, 15


@cache
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples [S, D], their labels [S], and queries [Q, D]."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(WAY, DIM)) * (16 / DIM) ** 0.25
    x, queries = (np.repeat(centres, each, 0) + rng.normal(size=(WAY * each, DIM)) for each in (SHOT, QUERY))
    return x, np.repeat([f"class {c}" for c in range(WAY)], SHOT), queries


def cases(setting: Setting) -> Iterator[Case]:
    count = setting.pick(300, 2)
    yield Case(
        "fit + predict, prototypical, 5 classes x 5, 75 queries",
        ours=partial(ours, setting, count),
        peers={"scikit-learn": partial(scikit_learn, count)},
        aim=1 / 1.5,
        same=partial(same, setting),
        inner=count,
        unit="fit + predict",
    )


def ours(setting: Setting, count: int) -> Run:
    x, y, queries = data()

    def once() -> None:
        for _ in range(count):
            FewShotClassifier(method="prototypical", device=setting.device).fit(x, y).predict(queries)

    return once


def scikit_learn(count: int) -> Run:
    from sklearn.neighbors import NearestCentroid

    x, y, queries = data()

    def once() -> None:
        for _ in range(count):
            NearestCentroid().fit(x, y).predict(queries)

    return once


def same(setting: Setting) -> Sequence[Same]:
    from sklearn.neighbors import NearestCentroid

    x, y, queries = data()
    mine = FewShotClassifier(method="prototypical", device=setting.device).fit(x, y).predict(queries)
    return [
        Same("share of equal answers", float((mine == NearestCentroid().fit(x, y).predict(queries)).mean()), 1.0, 0.0)
    ]
