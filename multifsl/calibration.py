"""Calibrated probabilities, and sets of classes that hold the true one as often as asked.

Temperature (Guo et al.: On Calibration of Modern Neural Networks, ICML 2017): p = softmax(logits / T), here with

    log T = level + way log N + shot log K

fitted by likelihood on validation episodes of several ways N and shots K (`calibrate`). For an encoder that nobody trained on
episodes there are none. There T is taken in a `unit` of how far class means are from each other in logits, which changes with
the encoder and the classes as T does; `DEFAULT` has it from development sets of three modalities (docs/recognition.md). Where
classes have two examples or more, `refined` corrects T by the likelihood of examples that were held out, not far from where it was.

Sets (Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005): all classes whose score is at most a threshold, which
a share 1 - alpha of true classes stays below. The score is the log odds against the class, log((1 - p) / p). The threshold is a
quantile of the scores of held-out examples; where those are too few, that of validation episodes, as a function of way and shot
(Fisch et al.: Few-shot Conformal Prediction with Auxiliary Tasks, ICML 2021). Where there are none of these either, the set is the
fewest classes whose probabilities add up to 1 - alpha, which is as good as the probabilities are, and errs by being too large.

A set by a threshold may be empty: where 98 % of answers are right, sets with a class for every item would be right for 98 %, not
for 90 %. An empty one says that the item is less like any class than nine of ten are like theirs: it is one to look at.

Departures: a held-out example is judged by a classifier with an example a class less, so that the coverage is not guaranteed; it
is measured, in docs/recognition.md.

Shape letters: S examples, Q queries, M answers, N classes, D embedding width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from multifsl.bank import Bank, sampler_of
from multifsl.episode import Batch
from multifsl.errors import BadFile, MultifslError
from multifsl.evaluation import embedded, solved
from multifsl.functional import class_sums, distinct, places_in_class
from multifsl.method import EmbeddingMethod, Method
from multifsl.task import Items

ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # at which the thresholds of sets are learned
SLOPE_SPREAD = 0.5  # standard deviation of a slope around DEFAULT's, where episodes do not tell it
STRAY = 0.3  # standard deviation of log T around what was learned elsewhere
USUAL = 0.15  # the spread of logits over their gap, on development sets
PAIRS = 3  # of classes, as how many it counts
ROUNDS = 10  # of holding out an example a class
LOOKS = 2_000_000  # logits in all that held-out examples are judged by
CERTAIN = 1e-12  # nearer to 0 or 1 no probability is looked at


class Calibration(NamedTuple):
    """T and the thresholds of sets as functions of way and shot. temperature: level, way, shot. sets: the same for the threshold at
    each of ALPHAS, or nothing where it was not learned.

    >>> round(Calibration((0.0, 0.5, 0.0)).at(way=4, shot=1), 3)
    2.0
    """

    temperature: tuple[float, float, float]
    sets: tuple[tuple[float, float, float], ...] = ()

    def at(self, way: float, shot: float) -> float:
        """T; that of DEFAULT is to be multiplied by the `unit`. shot: with unequal counts, their harmonic mean."""
        return float(np.exp(np.dot(self.temperature, _terms(way, shot))))

    def threshold(self, way: float, shot: float, alpha: float) -> float | None:
        """The score up to which classes are in the set, between ALPHAS by straight lines over log alpha; None where not learned.

        Raises MultifslError where alpha is not from 0 to 1, both left out.
        """
        check_alpha(alpha)
        if not self.sets:
            return None
        each = np.array(self.sets) @ _terms(way, shot)
        falling = np.minimum.accumulate(each)  # fitted one by one, they may cross
        return float(np.interp(np.log(alpha), np.log(ALPHAS), falling))

    def to_json(self) -> dict[str, Any]:
        return {"temperature": list(self.temperature), "sets": [list(row) for row in self.sets]}

    @classmethod
    def from_json(cls, content: Any, source: str) -> Self:
        """What `to_json` made. Raises BadFile, naming the source, where it is something else."""
        try:
            t, sets = np.array(content["temperature"], dtype=float), np.array(content["sets"], dtype=float)
        except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
            raise BadFile(f"{source} has no calibration: {error!r}") from error
        shapes = t.shape == (3,) and sets.shape in ((0,), (len(ALPHAS), 3))
        if not shapes or not (np.abs(t) < 100).all() or not (np.abs(sets) < 1000).all():
            raise BadFile(
                f"{source}: a calibration has 3 numbers for the temperature and none or {len(ALPHAS)} x 3 for sets, all of them "
                f"small; here are {list(t.shape)} and {list(sets.shape)}"
            )
        level, way, shot = t.tolist()
        return cls((level, way, shot), tuple((a, b, c) for a, b, c in sets.reshape(-1, 3).tolist()))


class Answered(NamedTuple):
    """Answers of episodes of one way and shot. logits: [M, N]; y: int [M]."""

    way: int
    shot: int
    logits: np.ndarray
    y: np.ndarray


DEFAULT = Calibration(temperature=(-1.6589, -0.06, -0.1578))  # by scripts/calibration_table.py


def calibrate(
    method: Method,
    data: Items | Bank,
    *,
    ways: Sequence[int] = (5, 20),
    shots: Sequence[int] = (1, 5),
    query: int = 15,
    episodes: int = 50,
    seed: int = 0,
    disjoint_groups: bool = False,
    skip_small_classes: bool = False,
) -> Calibration | None:
    """Learn a calibration from episodes of the data, as many of each way and shot as the data and the method have classes and items
    for; None where that is none.

    The classes must be others than those that the method was trained on. Answers that are no numbers, of an adaptation that
    diverged, are left out.
    """
    bank = embedded(method, data)
    found = []
    for way, shot in ((way, shot) for way in ways for shot in shots):
        try:
            method.check_ways(way)
            sampler = sampler_of(
                bank.items, way=way, shot=shot, query=query, seed=seed, disjoint_groups=disjoint_groups,
                skip_small_classes=skip_small_classes,
            )  # fmt: skip
        except MultifslError:  # too few
            continue
        each = [(logits.flatten(0, 1), y.flatten()) for _, logits, y in solved(method, bank, sampler, episodes)]
        logits, y = (torch.cat(part).cpu().numpy() for part in zip(*each, strict=True))
        fine = np.isfinite(logits).all(1)
        if fine.any():
            found.append(Answered(way, shot, logits[fine], y[fine]))
    return fit_calibration(found) if found else None


def fit_calibration(answers: Sequence[Answered]) -> Calibration:
    """The temperature and the thresholds that answers of unseen classes ask for.

    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 5, 2000)
    >>> logits = rng.normal(size=(2000, 5)) + 2 * np.eye(5)[y]  # whose softmax of 2 x is right
    >>> round(fit_calibration([Answered(5, 1, logits, y)]).at(5, 1), 1)
    0.5
    """
    temperature = fit_temperature(answers)
    learned = Calibration(temperature)
    scores = [against(softened(a.logits, learned.at(a.way, a.shot)))[np.arange(len(a.y)), a.y] for a in answers]
    terms = np.array([_terms(a.way, a.shot) for a in answers])
    levels = np.array([[np.quantile(s, 1 - alpha) for alpha in ALPHAS] for s in scores])
    sets = np.linalg.lstsq(terms, levels, rcond=None)[0].T  # of all that fit, the smallest
    return learned._replace(sets=tuple((round(a, 4), round(b, 4), round(c, 4)) for a, b, c in sets.tolist()))


def fit_temperature(answers: Sequence[Answered]) -> tuple[float, float, float]:
    """Level and slopes of log T of the greatest likelihood, the slopes near DEFAULT's where episodes do not tell.

    Raises MultifslError where there are no answers, or a logit of a true class is not finite.
    """
    from scipy.optimize import minimize

    if not any(len(a.y) for a in answers):
        raise MultifslError("a temperature is fitted to answers, and there are none: give some")
    for a in answers:
        if not np.isfinite(a.logits[np.arange(len(a.y)), a.y]).all() or not (a.logits.max(1) < np.inf).all():
            raise MultifslError(f"logits of the answers at {a.way}-way {a.shot}-shot are not finite: leave those out")
    spread = np.mean(
        [np.ptp(np.where(np.isfinite(a.logits), a.logits, a.logits.max()), axis=1).mean() for a in answers]
    )
    start = np.array([np.log(max(spread, 1e-6) / 10), *DEFAULT.temperature[1:]])

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        slopes = (theta[1:] - DEFAULT.temperature[1:]) / SLOPE_SPREAD
        total, gradient = 0.5 * float(slopes @ slopes), np.array([0.0, *slopes / SLOPE_SPREAD])
        for a in answers:
            terms = _terms(a.way, a.shot)
            loss, slope = _loss(a.logits, a.y, float(theta @ terms))
            total, gradient = total + loss, gradient + slope * terms
        count = sum(len(a.y) for a in answers)
        return total / count, gradient / count

    theta = minimize(cost, start, jac=True, method="BFGS").x
    level, way, shot = (round(float(v), 4) for v in theta)
    return level, way, shot


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T): [M, N] -> float64 [M, N]; -inf stays at 0, and the order stays.

    >>> softened(np.array([[0.0, 1.0]]), 1e3).round(3).tolist()
    [[0.5, 0.5]]
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    odds = np.exp(scaled - scaled.max(1, keepdims=True))
    p: np.ndarray = odds / odds.sum(1, keepdims=True)
    return p


# ---- from the user's own examples ----


def unit(method: EmbeddingMethod, x: Tensor, y: Tensor, n: int) -> float:
    """In what T is measured where no episodes tell it: how far classes are from each other in a method's logits.

    It is sqrt(gap * spread), of the logits of each class's own mean: gap is how much higher that of the class is than those of the
    others on average, spread the standard deviation of those others. So few numbers tell little of the spread that PAIRS more are
    added at its usual ratio to the gap. With `prototypical(distance='cosine')` the gap is 1 less the mean cosine between classes,
    over the method's own temperature.

    x: [S, D]; y: int64 [S] of 0..n-1. With one class, or where all means are the same, it is 1. Of more classes than can be looked
    at, some are, evenly spread in the order of their first examples, whatever their numbers.
    """
    if n < 2:
        return 1.0
    sums, counts = class_sums(x, y, n)
    few = torch.linspace(0, n - 1, min(n, max(1, LOOKS // n)), dtype=torch.float64).long().to(x.device)
    chosen = y[places_in_class(y) == 0][few]
    with torch.inference_mode():
        state = method.adapt(Batch(x, y), torch.ones(n, dtype=torch.bool, device=x.device))
        logits = method.classify(state, (sums / counts[:, None])[chosen]).cpu().double().numpy()  # [Q, N]
    other = np.ones(logits.shape, dtype=bool)
    other[np.arange(len(chosen)), chosen.cpu()] = False
    gap = float(logits[~other].mean() - logits[other].mean())
    if not (np.isfinite(gap) and gap > 1e-6):
        return 1.0
    pairs = n * (n - 1) / 2
    variance = (pairs * logits[other].var() + PAIRS * (USUAL * gap) ** 2) / (pairs + PAIRS)
    return float(np.sqrt(gap * np.sqrt(variance)))


def held_out(method: EmbeddingMethod, x: Tensor, y: Tensor, n: int) -> tuple[np.ndarray, np.ndarray]:
    """What a method answers to examples that it has not seen: logits [M, N] and labels [M]; M = 0 with one example a class.

    One example of each class that has two is held out together, the first of each, then the second, ... So each is judged as in
    an episode of one shot less, and a task of K shots takes K rounds of learning (at most ROUNDS). Examples of a class that are the
    same count as one: a copy would tell the answer.
    """
    kept = distinct(x, y)
    x, y = x[kept], y[kept]
    place, counts = places_in_class(y), y.bincount(minlength=n)
    rounds = min(ROUNDS, int(counts.max()))
    most = max(1, LOOKS // (n * rounds))
    present = torch.ones(n, dtype=torch.bool, device=y.device)
    logits, labels = [x.new_empty(0, n)], [y[:0]]
    for nth in range(rounds):
        out = (place == nth) & (counts[y] > 1)
        rows = out.nonzero()[:, 0]
        rows = rows[:: -(-len(rows) // most) or 1]
        if len(rows):
            with torch.inference_mode():
                state = method.adapt(Batch(x[~out], y[~out]), present)
                logits.append(method.classify(state, x[rows]))
            labels.append(y[rows])
    return torch.cat(logits).cpu().numpy(), torch.cat(labels).cpu().numpy()


def refined(temperature: float, logits: np.ndarray, y: np.ndarray) -> float:
    """By what to multiply T: what the likelihood of held-out answers asks for, less the further away it is (`STRAY`).

    temperature: T at the shot at which they were given, one less. logits: [M, N]; y: int [M]. Without answers it is 1.

    >>> refined(1.0, np.zeros((0, 2)), np.zeros(0, dtype=int))
    1.0
    """
    from scipy.optimize import minimize_scalar

    if not len(y):
        return 1.0

    def cost(log_factor: float) -> float:
        return _loss(logits, y, np.log(temperature) + log_factor)[0] + 0.5 * (log_factor / STRAY) ** 2

    return float(
        np.exp(minimize_scalar(cost, bounds=(-4 * STRAY, 4 * STRAY), method="bounded", options={"xatol": 1e-9}).x)
    )


# ---- sets ----


def against(p: np.ndarray) -> np.ndarray:
    """The score of sets, log odds against each class: probabilities [*] -> float64 [*].

    >>> against(np.array([0.5, 1.0])).round(1).tolist()
    [0.0, -27.6]
    """
    p = np.clip(np.asarray(p, dtype=np.float64), CERTAIN, 1 - CERTAIN)
    score: np.ndarray = np.log1p(-p) - np.log(p)
    return score


def prediction_sets(p: np.ndarray, scores: np.ndarray, alpha: float, learned: float | None = None) -> np.ndarray:
    """Which classes are in the set of each item: probabilities [Q, N] -> bool [Q, N].

    scores: [M] of the true classes of held-out examples (`against`), made with the temperature of p. The threshold is the
        (M + 1) (1 - alpha)-th of them, sorted; between two by a straight line. They are too few where M + 1 is below 1 / alpha.
    alpha: the share of sets that may miss the true class, above 0 and below 1.
    learned: the threshold where they are too few, see `Calibration.threshold`. Without it, the sets are the fewest classes that
        add up to 1 - alpha, and none is empty.

    >>> p = np.array([[0.7, 0.3, 0.0], [0.4, 0.3, 0.3]])
    >>> prediction_sets(p, scores=-np.arange(9.0), alpha=0.2).tolist()
    [[False, False, False], [False, False, False]]
    >>> prediction_sets(p, scores=np.zeros(0), alpha=0.2).sum(1).tolist()
    [2, 3]
    """
    check_alpha(alpha)
    place = (len(scores) + 1) * (1 - alpha)
    if (len(scores) + 1) * alpha >= 1 - 1e-9:
        learned = float(np.interp(place, np.arange(1, len(scores) + 1), np.sort(scores)))
    if learned is not None:
        below: np.ndarray = against(p) <= learned
        return below
    order = np.argsort(-p, axis=1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=1)
    sets = np.zeros(p.shape, dtype=bool)
    np.put_along_axis(sets, order, ranked.cumsum(1) - ranked < 1 - alpha - 1e-9, axis=1)
    return sets


def check_alpha(alpha: float) -> None:
    """Raises MultifslError where alpha is not from 0 to 1, both left out."""
    if not (isinstance(alpha, int | float) and 0 < alpha < 1):
        raise MultifslError(
            f"alpha is the share of sets that may miss the true class, above 0 and below 1, not {alpha!r}; 0.1 is usual"
        )


# ---- inside ----


def _terms(way: float, shot: float) -> np.ndarray:
    return np.array([1.0, np.log(way), np.log(shot)])


def _loss(logits: np.ndarray, y: np.ndarray, log_t: float) -> tuple[float, float]:
    """The sum of -log p(y) at a temperature, in nats, and its derivative by log T. logits: [M, N]; y: [M]."""
    scaled = np.asarray(logits, dtype=np.float64) * np.exp(-log_t)
    scaled = scaled - scaled.max(1, keepdims=True)
    odds = np.exp(scaled)
    total, own = odds.sum(1), scaled[np.arange(len(y)), y]
    mean = (odds * np.where(odds > 0, scaled, 0.0)).sum(1) / total
    return float((np.log(total) - own).sum()), float((own - mean).sum())
