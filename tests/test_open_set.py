"""Open-set scores. Oracles: each one's description as plain numpy loops, in float64; invariances."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from multifsl import open_set
from multifsl.errors import MultifslError
from multifsl.open_set import SCORES, Score, SNorm
from multifsl.rejection import learn_rejection

Array = np.ndarray
COUNTS = {"unequal": [4, 1, 2, 6], "two": [2, 2, 2, 2], "one": [1, 1, 1, 1]}
WITHOUT = [name for name, kind in SCORES.items() if not kind.needs_cohort]
CASES = [(name, counts, cohort) for name in SCORES for counts in COUNTS for cohort in (True, False)]
CASES = [case for case in CASES if case[2] or case[0] in WITHOUT]


def drawn(counts: list[int]) -> tuple[Array, Array, Array, Array]:
    """Examples [S, 5] in a mixed order, labels [S], queries [7, 5] and a cohort [30, 5]."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    z = 2 * rng.normal(size=(len(counts), 5))[y] + rng.normal(size=(len(y), 5)) + 1
    return z, y, 2 * rng.normal(size=(7, 5)) + 1, 2 * rng.normal(size=(30, 5)) - 1


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def class_means(z: Array, y: Array) -> Array:
    return np.stack([z[y == k].mean(0) for k in range(y.max() + 1)])


def cosine(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    return np.array([[unit(q) @ unit(m) for m in class_means(unit(z), y)] for q in x])


def knn(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    cosines = unit(x) @ unit(z).T
    return np.array([[np.sort(row[y == k])[-3:].mean() for k in range(y.max() + 1)] for row in cosines])


def openmax(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    z = unit(z)
    apart: dict[int, list[float]] = {k: [] for k in range(y.max() + 1)}
    for i, k in enumerate(y):
        rest = [z[j] for j in range(len(y)) if y[j] == k and j != i]
        if rest:
            apart[k].append(float(np.linalg.norm(z[i] - np.mean(rest, axis=0))))
    every = [a for one in apart.values() for a in one]
    typical = np.mean(every) if every else 1.0
    usual = [(sum(one) + 5 * typical) / (len(one) + 5) for one in apart.values()]
    means = class_means(z, y)
    return np.array([[-np.linalg.norm(unit(q) - m) / u for m, u in zip(means, usual, strict=True)] for q in x])


def inverse(z: Array, y: Array) -> Array:
    """The inverse of the covariance within classes, of trace D, shrunk nine tenths of the way to the identity."""
    covariance = np.zeros((z.shape[1], z.shape[1]))
    for i, k in enumerate(y):
        d = z[i] - z[y == k].mean(0)
        covariance += np.outer(d, d)
    trace = np.trace(covariance)
    if trace < 1e-9:
        return np.eye(len(covariance))
    return np.linalg.inv(0.1 * covariance * len(covariance) / trace + 0.9 * np.eye(len(covariance)))


def mahalanobis(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    precision = inverse(unit(z), y)
    return np.array([[-(unit(q) - m) @ precision @ (unit(q) - m) for m in class_means(unit(z), y)] for q in x])


def compare(a: Array, b: Array, precision: Array) -> Array:
    """Cosines of all pairs, by an inner product."""
    return np.array([[p @ precision @ q / math.sqrt((p @ precision @ p) * (q @ precision @ q)) for q in b] for p in a])


def whitened(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    half = unit(z).mean(0) / 2
    moved = unit(unit(z) - half)
    return compare(unit(unit(x) - half), class_means(moved, y), inverse(moved, y))


def snorm(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    assert cohort is not None
    means = unit(class_means(unit(z), y))

    def largest(a: Array) -> Array:
        return np.sort(unit(cohort) @ a)[-SNorm.top :]

    scores = np.zeros((len(x), len(means)))
    for i, q in enumerate(unit(x)):
        for k, m in enumerate(means):
            of_class, of_item = largest(m), largest(q)
            scores[i, k] = ((q @ m - of_class.mean()) / of_class.std() + (q @ m - of_item.mean()) / of_item.std()) / 2
    return scores


def gp(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    half = unit(z).mean(0) / 2
    precision = inverse(unit(unit(z) - half), y)
    points, target = unit(z), np.eye(y.max() + 1)[y]
    if cohort is not None:
        others = unit(cohort) - unit(cohort).mean(0) + unit(z).mean(0)
        points = np.concatenate([points, others])
        target = np.concatenate([target, np.zeros((len(others), target.shape[1]))])
    points, queries = unit(unit(points) - half), unit(unit(x) - half)
    kernel = np.exp(4 * (compare(points, points, precision) - 1))
    weight = np.linalg.solve(kernel + 0.3 * np.eye(len(kernel)), target)
    return np.exp(4 * (compare(queries, points, precision) - 1)) @ weight


def mixed(z: Array, y: Array, x: Array, cohort: Array | None) -> Array:
    return whitened(z, y, x, cohort) + gp(z, y, x, cohort)


LOOPS: dict[str, Callable[[Array, Array, Array, Array | None], Array]] = {
    "mixed": mixed, "cosine": cosine, "energy": cosine, "knn": knn, "openmax": openmax, "mahalanobis": mahalanobis,
    "whitened": whitened, "snorm": snorm, "gp": gp,
}  # fmt: skip


def learned(name: str, z: Array, y: Array, cohort: Array | None) -> Score:
    others = None if cohort is None else torch.from_numpy(cohort)
    return SCORES[name](torch.from_numpy(z), torch.from_numpy(y), int(y.max()) + 1, others)


def test_every_score_has_its_loop() -> None:
    assert LOOPS.keys() == SCORES.keys()


@pytest.mark.parametrize(("name", "counts", "with_cohort"), CASES)
def test_a_score_is_what_it_is_said_to_be(
    name: str, counts: str, with_cohort: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SNorm, "top", 7)  # fewer than there are
    z, y, x, cohort = drawn(COUNTS[counts])
    others = cohort if with_cohort else None
    score = learned(name, z, y, others)
    got, want = score(torch.from_numpy(x)), LOOPS[name](z, y, x, others)
    torch.testing.assert_close(got, torch.from_numpy(want), atol=1e-5, rtol=1e-5)
    overall = want.max(1) if name != "energy" else 0.05 * np.log(np.exp(want / 0.05).sum(1))
    torch.testing.assert_close(score.overall(got), torch.from_numpy(overall), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SCORES)
def test_orders_do_not_matter(name: str) -> None:
    z, y, x, cohort = drawn(COUNTS["unequal"])
    rng = np.random.default_rng(1)
    rows, names = rng.permutation(len(y)), np.array([2, 0, 3, 1])
    queries = torch.from_numpy(x)
    plain = learned(name, z, y, cohort)(queries)
    mixed_up = learned(name, z[rows], names[y[rows]], cohort[::-1].copy())(queries)
    torch.testing.assert_close(mixed_up[:, torch.from_numpy(names)], plain, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", SCORES)
def test_a_length_does_not_matter(name: str) -> None:
    z, y, x, cohort = drawn(COUNTS["unequal"])
    lengths = np.random.default_rng(1).uniform(0.1, 10, size=(len(z), 1))
    plain = learned(name, z, y, cohort)(torch.from_numpy(x))
    torch.testing.assert_close(
        learned(name, z * lengths, y, cohort * 3)(torch.from_numpy(x / 7)), plain, atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_precisions(name: str, dtype: torch.dtype) -> None:
    z, y, x, cohort = (torch.from_numpy(a) for a in drawn(COUNTS["unequal"]))
    z, x, cohort = z.to(dtype), x.to(dtype), cohort.to(dtype)
    got = SCORES[name](z, y, 4, cohort)(x)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = SCORES[name](z.double(), y, 4, cohort.double())(x.double())
    torch.testing.assert_close(got.double(), exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", [name for name in SCORES if name != "knn"])  # which reads the counts of its examples
def test_nothing_waits_for_an_accelerator(name: str) -> None:
    z, y, x, cohort = (torch.from_numpy(a).to("meta") for a in drawn(COUNTS["unequal"]))
    score = SCORES[name](z, y, 4, cohort)
    assert score.overall(score(x)).shape == (7,)


def test_above_so_many_examples_there_is_no_gaussian_process(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y, x, cohort = drawn(COUNTS["unequal"])
    queries = torch.from_numpy(x)
    monkeypatch.setattr(open_set, "EXACT", len(z))
    whole = learned("mixed", z, y, cohort)(queries)
    monkeypatch.setattr(open_set, "EXACT", len(z) - 1)
    plain = learned("whitened", z, y, cohort)(queries)
    assert torch.equal(learned("mixed", z, y, cohort)(queries), plain)
    assert not torch.allclose(whole, plain)
    with pytest.raises(MultifslError, match=r"'gp' takes at most 12 examples, not 13; take 'whitened'"):
        learned("gp", z, y, cohort)


@pytest.mark.parametrize("name", [name for name, kind in SCORES.items() if kind.needs_cohort])
def test_a_score_that_needs_a_cohort_says_so(name: str) -> None:
    z, y, _, _ = (torch.from_numpy(a) for a in drawn(COUNTS["two"]))
    with pytest.raises(MultifslError, match=rf"the score '{name}' needs a background"):
        learn_rejection(z, y, 4, score=name)
