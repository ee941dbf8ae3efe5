"""Saying "unknown": where to set the threshold of an open-set score, and how far to trust it.

A user asks for a rate of false acceptance, alpha: the share of items of no known class that may be taken for known ones. What
such items will look like he cannot say. Two things stand in for them: his own classes, each left out in its turn and scored
against the others, and the cohort, where there is one. The threshold is the larger of

    mean + 0.1 gap / (N - 1) + 1.15 t sd sqrt(1 + 1/N)     of the scores of examples whose class was left out, all classes alike
    the 1 - alpha quantile of the scores of cohort items that the score was not learned from

The first is the upper prediction bound for one class more (Hahn, Meeker: Statistical Intervals, 1991), t Student's quantile of
1 - alpha. A handful of classes tells little of how much classes differ, and two, of which each is scored against the other, next
to nothing. So sd is as if three classes more had been seen, which differ as is usual: by a tenth of the gap between the mean and
what the classes' own examples score, once learned from. As a stranger is scored against one class more than a class that was left
out, the mean is moved by a tenth of the gap over N - 1. These numbers were chosen on development sets (docs/recognition.md).

A class whose left-out examples score as known ones do, half of them at least, is a twin of another: it says nothing of unknown
classes, is not counted for the threshold, and stands in `overlaps`. Where no class has two examples a cohort of 500 items or more
tells the threshold alone, if it is large enough for the rate. Examples that are the same are counted once.

How often a known item is refused is estimated by leaving examples out: a fold leaves out one of each class, so that the others
are one fewer. Rates are given with 90 % intervals for what the next ten unknown classes will show, not for the mean over all
thinkable ones: whether one of them looks like a known class makes most of the difference between one day and another.

Shape letters: S examples, N classes, B cohort items, D embedding width.
"""

import math
import numbers
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from multifsl.errors import MultifslError
from multifsl.functional import distinct, full_precision, highest_precision, places_in_class
from multifsl.open_set import COHORT, EXACT, SCORES, Mixed, Score, Whitened
from multifsl.options import check_choice

SPREAD = 1.15  # by which the spread of classes that were left out falls short of that of unknown ones
USUAL, PRIOR = 0.1, 3  # the spread of classes over their gap, and as how many classes it counts
FOLDS = 10  # of classes, and of examples at most 5
CLASSES, ENOUGH = 100, 1000  # once so many classes, or examples, were left out, no more are
FEWEST = 20  # items of a cohort
FEW = 4  # examples of a class, of which one less makes much of a difference
LITTLE = 5  # classes, of which fewer tell little without a cohort
ASKED = 50  # items, as on which the rate counts that a threshold was set for
# How rates scatter from one set of ten unknown classes to another, and from one set of known ones, as if each had been counted
# on so many items (beta distributions; development sets, docs/recognition.md). Of accepted ones, on half as many with HALF known
# classes. ITEMS of the cohort tell as much as a class of it; where fewer than MANY are held out, all of them as KINDS classes at
# most: they may be of few, the very ones that the score was learned from.
ACCEPT_COUNT, HALF, ITEMS, REJECT_COUNT = 9.0, 5, 10, 15.0
MANY, KINDS = 250, 3


class Rate(NamedTuple):
    """An estimated rate and its 90 % interval, all in [0, 1]."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.1%} ({self.low:.1%} to {self.high:.1%})"


class Overlap(NamedTuple):
    """Two classes, of which one's examples would be taken for the other's, were it not known itself; and the share of them."""

    first: Any  # its number; in `FewShotClassifier.reliability_`, its label
    second: Any
    share: float


class Reliability(NamedTuple):
    """What can be expected of a threshold. rates are None where nothing tells them; `notes` says why, and what would help."""

    false_accept: Rate | None
    false_reject: Rate | None
    overlaps: list[Overlap]
    notes: list[str]


class Bars(NamedTuple):
    """What trials tell of a score."""

    threshold: float
    claim: float
    reliability: Reliability


class Rejection:
    """A learned score with its thresholds: `threshold` for "of any class?", `claim` for "of this class?"; and its `reliability`.

    The trials, which cost many times as much as the score, are made when what hangs on them is first read; by one thread, others
    that read it meanwhile wait.

    own: the threshold, where no trial tells it.
    """

    def __init__(self, score: Score, own: float | None, find: Callable[[], Bars]) -> None:
        self.score, self._own, self._find, self._lock = score, own, find, threading.Lock()
        self._found: Bars | None = None

    @property
    def threshold(self) -> float:
        return self._told.threshold if self._own is None else self._own

    @property
    def claim(self) -> float:
        return self._told.claim

    @property
    def reliability(self) -> Reliability:
        return self._told.reliability

    def scores(self, z: Tensor) -> Tensor:
        """How much embeddings z [Q, D] look like any known class, [Q]."""
        return highest_precision(self.score.overall(self.score(z)))  # as the threshold, a Python number, is

    def known(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The scores [Q] of embeddings z [Q, D], and which of the items are of a known class, bool [Q]."""
        scores = self.scores(z)
        return scores, scores >= self.threshold

    @property
    def _told(self) -> Bars:
        with self._lock:
            if self._found is None:
                self._found = self._find()
                del self._find  # and the examples that it holds
            return self._found


class Trials(NamedTuple):
    """Scores of examples whose class was left out: overall [S'], and against each other class [S', N], NaN for their own;
    `label`: theirs. `known`: overall scores [S''] of examples that were left out alone (none where no class has two)."""

    unknown: np.ndarray
    pairs: np.ndarray
    label: np.ndarray
    known: np.ndarray

    @property
    def alike(self) -> np.ndarray:
        """Rows of `unknown` whose class looks like another one, bool [S']: half of its scores at least are as known ones are."""
        if not len(self.known):
            return np.zeros(len(self.unknown), dtype=bool)
        as_known = np.median(self.known)
        twins = [label for label in np.unique(self.label) if np.median(self.unknown[self.label == label]) >= as_known]
        return np.isin(self.label, twins)


def learn_rejection(
    z: Tensor,
    y: Tensor,
    n: int,
    cohort: Tensor | None = None,
    *,
    reject: Literal["auto"] | float = "auto",
    score: str = "mixed",
    false_accept: float = 0.05,
) -> Rejection:
    """A score and its thresholds, from examples z [S, D] with labels y [S] in 0 to n - 1, and a cohort [B, D].

    reject: "auto", or a threshold of one's own.

    Raises MultifslError for an unknown score, one that needs a cohort and has none, a cohort of less than 20 items, or a threshold
    that nothing tells: one class, and no cohort.

    >>> z = torch.eye(6).repeat_interleave(4, 0) + 0.1 * torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    >>> rejection = learn_rejection(z, torch.arange(6).repeat_interleave(4), 6)
    >>> rejection.known(torch.stack([z[0], -z[0]]))[1]
    tensor([ True, False])
    """
    check_choice("score", score, tuple(SCORES))
    check_share(false_accept)
    kind = SCORES[score]
    if cohort is None and kind.needs_cohort:
        raise MultifslError(f"the score {score!r} needs a background: give fit(..., background=items) or another score")
    if cohort is not None and len(cohort) < FEWEST:
        raise MultifslError(f"a background needs {FEWEST} items or more, not {len(cohort)}")
    if reject == "auto" and n < 2 and cohort is None:
        raise MultifslError(
            "one class alone tells nothing of what is unknown: give more classes, fit(..., background=items), or a threshold "
            "of your own, reject=NUMBER"
        )
    z = full_precision(z)
    kept = distinct(z, y)
    copies = int((~kept).sum())
    if copies:
        z, y = z[kept], y[kept]
    if kind is Mixed and len(z) > EXACT:  # now, so that folds, which have fewer, go by the same score
        kind = Whitened
    held: Tensor | None = None
    if cohort is not None:
        # One half to learn from, the other, of other classes where they are sorted, to set the threshold by.
        most = min(len(cohort), 2 * COHORT)
        chosen = torch.linspace(0, len(cohort) - 1, most, dtype=torch.float64).round().long()
        cohort = full_precision(cohort[chosen.to(cohort.device)])
        cohort, held = cohort[: most // 2], cohort[most // 2 :]
    learned, own = kind(z, y, n, cohort), None if reject == "auto" else float(reject)
    return Rejection(learned, own, lambda: _bars(kind, learned, z, y, n, cohort, held, own, false_accept, copies))


@torch.inference_mode()
def _bars(
    kind: type[Score],
    learned: Score,
    z: Tensor,
    y: Tensor,
    n: int,
    cohort: Tensor | None,
    held: Tensor | None,
    reject: float | None,
    false_accept: float,
    copies: int,
) -> Bars:
    """What trials tell, and the half of the cohort that the score was not learned from, `held`. reject: a threshold to keep."""
    trials = _trials(kind, z, y, n, cohort)
    strangers = None if held is None else torch.cat([learned(part) for part in held.split(256)])
    outside = None if strangers is None else learned.overall(strangers).cpu().numpy()
    alike, weight = trials.alike, 1 / np.bincount(trials.label, minlength=n)[trials.label]
    others = trials.label >= 0 if alike.all() else ~alike
    alone = held is not None and not len(trials.known) and len(held) >= max(MANY, 1 / false_accept - 1)
    if alone:
        others = np.zeros_like(others)
    some = torch.linspace(0, len(z) - 1, min(len(z), ENOUGH), dtype=torch.float64).long().to(z.device)
    own = float(
        np.median(np.concatenate([learned.overall(learned(z[part])).cpu().numpy() for part in some.split(256)]))
    )

    def bar(unknown: np.ndarray, weights: np.ndarray, outside: np.ndarray | None) -> float:
        """The threshold that scores of left-out classes and of the cohort ask for."""
        found = []
        if len(unknown):
            classes = len(np.unique(trials.label[others]))
            mean = float(np.average(unknown, weights=weights))
            usual = USUAL * max(own - mean, 0.0)
            squares = classes * np.average((unknown - mean) ** 2, weights=weights) + PRIOR * usual**2
            free = classes - 1 + PRIOR
            reach = SPREAD * stats.t.isf(false_accept, free) * (squares / free * (1 + 1 / classes)) ** 0.5
            found.append(float(mean + usual / (n - 1) + reach))
        if outside is not None:
            found.append(float(np.quantile(outside, min(1.0, (1 - false_accept) * (1 + 1 / len(outside))))))
        return max(found, default=float("nan"))

    threshold = bar(trials.unknown[others], weight[others], outside) if reject is None else reject
    pairs = trials.pairs[others]
    each = np.broadcast_to(weight[others][:, None], pairs.shape)[~np.isnan(pairs)]
    claim = bar(pairs[~np.isnan(pairs)], each, None if strangers is None else strangers.cpu().numpy().ravel())
    notes = []
    if copies:
        notes.append(
            f"{copies} of the examples are copies of others of their class: what is there twice is counted once"
        )
    if alone and reject is None:
        notes.append("one example a class: the threshold is set by the background alone")
    return Bars(threshold, claim, _reliability(trials, outside, threshold, n, y, false_accept, reject, notes))


def check_share(false_accept: float) -> None:
    """Raises MultifslError where it is none."""
    if not (isinstance(false_accept, numbers.Real) and 0 < false_accept < 1):
        raise MultifslError(f"false_accept must be a share between 0 and 1, not {false_accept!r}")


def _trials(kind: type[Score], z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> Trials:
    """Classes left out by tenths (one by one up to ten), and examples by fifths, until enough were."""
    rng, labels = np.random.default_rng(0), y.cpu().numpy()
    place, counts = places_in_class(y).cpu().numpy(), np.bincount(labels, minlength=n)
    unknown, pairs, known = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    whose = list[np.ndarray]()
    if n > 1:
        group = np.empty(n, dtype=np.int64)
        group[labels[place == 0]] = rng.permutation(n) % min(
            FOLDS, n
        )  # dealt as classes came, whatever they are called
        groups = int(group.max()) + 1
        taken = groups if n <= CLASSES else -(-CLASSES * groups // n)
        for g in range(taken):
            out = group[labels] == g
            stay = np.flatnonzero(group != g)
            new = np.searchsorted(stay, labels[~out])
            learned = kind(z[_mask(~out, z)], _index(new, z), len(stay), cohort)
            for part in _some(np.flatnonzero(out), rng, ENOUGH // taken):
                scores = learned(z[_index(part, z)])
                row = np.full((len(part), n), np.nan, dtype=np.float32)
                row[:, stay] = scores.cpu().numpy()
                unknown.append(learned.overall(scores).cpu().numpy())
                pairs.append(row)
                whose.append(labels[part])
    folds = int(min(5, counts.max()))
    for f in range(folds if folds > 1 else 0):
        out = (place % np.minimum(folds, counts)[labels] == f) & (counts[labels] > 1)
        if not out.any() or sum(map(len, known)) >= ENOUGH:
            continue
        learned = kind(z[_mask(~out, z)], _index(labels[~out], z), n, cohort)
        for part in _some(np.flatnonzero(out), rng, ENOUGH):
            known.append(learned.overall(learned(z[_index(part, z)])).cpu().numpy())

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts) if parts else np.zeros(0)

    table = np.concatenate(pairs) if pairs else np.zeros((0, n))
    return Trials(joined(unknown), table, joined(whose).astype(np.int64), joined(known))


def _some(rows: np.ndarray, rng: np.random.Generator, most: int) -> Iterator[np.ndarray]:
    """At most so many of the rows, drawn without replacement, in blocks that fit memory."""
    if len(rows) > most:
        rows = np.sort(rng.choice(rows, most, replace=False))
    for start in range(0, len(rows), 256):
        yield rows[start : start + 256]


def _mask(kept: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(kept).to(like.device)


def _index(places: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(places.astype(np.int64)).to(like.device)


def _reliability(
    trials: Trials,
    outside: np.ndarray | None,
    threshold: float,
    n: int,
    y: Tensor,
    false_accept: float,
    reject: float | None,
    notes: list[str],
) -> Reliability:
    accept = refuse = None
    looked, held = len(np.unique(trials.label)), 0 if outside is None else len(outside)
    # What was counted, classes or items, and, for a threshold that was set for it, the rate asked for.
    found = [] if outside is None else [(float((outside >= threshold).mean()), held)]
    if looked:
        weight = 1 / np.bincount(trials.label)[trials.label]
        found.append((float(np.average(trials.unknown >= threshold, weights=weight)), looked))
    if found:
        asked = ASKED if reject is None else 0
        estimate = max((share * count + false_accept * asked) / (count + asked) for share, count in found)
        # A cohort that nothing was compared with tells how alike its items are, not whether strangers are like them.
        told = looked + (_worth(held) if looked and len(trials.known) else min(_worth(held), HALF))
        accept = _rate(estimate, ACCEPT_COUNT * told / (told + HALF))
    else:
        notes.append("nothing tells how often unknown items are accepted: give more classes, or a background")
    if outside is None:
        notes.append("there is no background: unknown items are taken to be like items of your other classes")
        if 1 < n < LITTLE and reject is None:
            notes.append(
                f"{n} classes tell little of what is unknown: the threshold is set high, so that more known items are refused, "
                "and the rate is a rough one; fit(..., background=items) helps most, more classes do too"
            )
    elif reject is None and (held + 1) * false_accept < 1:
        notes.append(
            f"half of the background, {held} items, is too few to tell a rate of {false_accept:.1%}: "
            f"give {2 * math.ceil(1 / false_accept - 1)} items or more"
        )
    if len(trials.known):
        refuse = _rate(float((trials.known < threshold).mean()), REJECT_COUNT)
        if int(y.bincount(minlength=n).min()) < FEW:
            notes.append(
                "known items refused: estimated with one example a class fewer than there are, which tells too high a share where "
                f"there are under {FEW}; more examples a class help most"
            )
    else:
        notes.append("one example a class: how often known items are refused cannot be told; two or more would")
    if 1 < looked < n:
        notes.append(f"overlaps: {looked} of the {n} classes were looked at")
    if trials.alike.any():
        notes.append("some classes look like others, see the overlaps: they were not counted for the threshold")
    bar = min(threshold, float(np.median(trials.known))) if len(trials.known) else threshold
    return Reliability(accept, refuse, _overlaps(trials, bar), notes)


def _worth(held: int) -> float:
    """As how many classes so many held-out items of a cohort count."""
    return held / ITEMS if held >= MANY else min(held / ITEMS, KINDS)


def _rate(estimate: float, count: float) -> Rate:
    """A rate with a 90 % interval, of a beta distribution as after `count` items; it begins at 0 where not one was found."""
    hits = max(estimate * count, 0.3), max((1 - estimate) * count, 0.3)
    low, high = (0.0, 0.9) if hits[0] < 1 else (float(stats.beta.ppf(0.05, *hits)), 0.95)
    return Rate(estimate, min(low, estimate), max(float(stats.beta.ppf(high, *hits)), estimate))


def _overlaps(trials: Trials, bar: float) -> list[Overlap]:
    """Pairs of classes of which two or more examples, and a third at least, of one score `bar` as the other's; the worst first."""
    found: dict[tuple[int, int], float] = {}
    for label in np.unique(trials.label):
        rows = trials.pairs[trials.label == label]
        passing = np.nan_to_num(rows, nan=-np.inf) >= bar
        for other in np.flatnonzero((passing.sum(0) >= 2) & (passing.mean(0) >= 1 / 3)):
            pair = (min(int(label), int(other)), max(int(label), int(other)))
            found[pair] = max(found.get(pair, 0.0), float(passing[:, other].mean()))
    return [Overlap(a, b, share) for (a, b), share in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
