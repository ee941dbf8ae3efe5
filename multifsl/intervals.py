"""How sure a figure is: intervals over episodes and over classes, and whether two methods differ.

The usual interval takes the data set as given: more episodes make it as narrow as one likes, though they are drawn from the same
few classes and items again and again (Lafargue, Smith, Vermet, Löwe, Reid, Gripon, Duffner: Oops, I Sampled it Again. 2024.
https://arxiv.org/abs/2409.02850). `class_half_width` takes the classes, with their items, as the sample: what it covers is the
accuracy on classes of the same kind that nobody has drawn yet.

Shape letters: B episodes, N ways, C classes of the split, M tests.
"""

import math
from typing import NamedTuple

import numpy as np

from multifsl.errors import MultifslError

MOST = 0.75  # of all classes in one episode; with more, there is too little without a class


def half_width(scores: np.ndarray) -> float:
    """Half width of the 95 % interval of a mean over episodes (normal: 1.96 standard errors), the data set taken as given.

    >>> round(half_width(np.array([0.0, 1.0, 0.0, 1.0])), 3)
    0.566
    """
    return float(1.96 * scores.std(ddof=1) / math.sqrt(len(scores)))


def class_half_width(scores: np.ndarray, classes: np.ndarray) -> float | None:
    """Half width of the 95 % interval of a mean over episodes, the classes and their items taken as the sample.

    The jackknife: with m_c the mean over the episodes without class c, and m their mean over classes,

        variance = (C - 1) / C * sum over c of (m_c - m)^2        (Efron and Stein 1981), less what it counts of the episodes' noise

    and Student's t of C - 1 degrees of freedom. The m_c are means over different episodes, which adds their noise once for each
    class of an episode, N times instead of once. In simulations (tests/test_intervals.py) it holds
    the truth in 93 to 97 % of cases.

    scores: [B]. classes: int64 [B, N], -1 where an episode has fewer classes than others.

    Returns None where that cannot be told: fewer than 3 classes, or episodes of more than MOST of them.

    >>> rng = np.random.default_rng(0)
    >>> classes = np.stack([rng.choice(20, 5, replace=False) for _ in range(2000)])
    >>> difficulty = rng.normal(size=20)
    >>> scores = difficulty[classes].mean(1)
    >>> half_width(scores) < 0.02 < 0.3 < class_half_width(scores, classes) < 0.8
    True
    """
    from scipy import stats

    used, column = np.unique(classes[classes >= 0], return_inverse=True)
    n_classes, count = len(used), len(scores)
    if n_classes < 3:
        return None
    row = np.nonzero(classes >= 0)[0]
    held = np.bincount(column, minlength=n_classes)  # [C]: episodes with the class
    ways = len(row) / count
    if ways > MOST * n_classes or held.max() == count:
        return None
    total = np.bincount(column, weights=scores[row], minlength=n_classes)
    without = (scores.sum() - total) / (count - held)
    jackknife = (n_classes - 1) / n_classes * ((without - without.mean()) ** 2).sum()
    noise = scores.var(ddof=1) / count
    variance = max(jackknife - (ways - 1) * noise, noise)
    return float(stats.t.ppf(0.975, n_classes - 1) * math.sqrt(variance))


class Difference(NamedTuple):
    """Mean of a - b over the same episodes, half widths of its 95 % intervals (see above), and the paired t test's p."""

    mean: float
    ci95: float
    ci95_classes: float | None
    p: float


def difference(a: np.ndarray, b: np.ndarray, classes: np.ndarray | None) -> Difference:
    """How two methods differ that met the same episodes. a, b: scores [B]; classes: [B, N], or None for no interval over them.

    p: of the two-sided paired t test, the data set taken as given; where all episodes have the same difference, of the sign
    test, 2^(1 - B), or 1 where there is none.

    >>> difference(np.array([0.8, 0.9, 0.7]), np.array([0.7, 0.7, 0.6]), np.array([[0, 1], [1, 2], [0, 2]])).mean.__round__(3)
    0.133
    """
    from scipy import stats

    if a.shape != b.shape:
        raise MultifslError(f"a pair of methods must have met the same episodes, not {len(a)} and {len(b)}")
    gap = a - b
    error = gap.std(ddof=1) / math.sqrt(len(gap))
    same = error < 1e-12  # in every episode
    if same:
        p = 1.0 if abs(gap[0]) < 1e-12 else 2.0 ** (1 - len(gap))
    else:
        p = float(2 * stats.t.sf(abs(gap.mean()) / error, len(gap) - 1))
    over_classes = None if classes is None else class_half_width(gap, classes)
    return Difference(float(gap.mean()), half_width(gap), over_classes, p)


def holm(p: np.ndarray) -> np.ndarray:
    """p values [M] of several tests, corrected (Holm 1979): below 0.05 is then a false alarm in one of 20 whole tables.

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty_like(p, dtype=np.float64)
    out[order] = np.minimum(raised, 1.0)
    return out
