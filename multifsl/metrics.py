"""What can be said of answers: how right, how sure, how well known is told from unknown, how well a voice is verified.

Everything is numpy, in float64, and takes O(n log n). What adds up over chunks (losses of items, `Calibration`, `confusion`) may be
empty; what is a share of something may not.

Shape letters: M answers, N classes, B bins, P points of a curve, * any.
"""

from typing import NamedTuple

import numpy as np

from multifsl.errors import MultifslError

SMALLEST = 2.0**-149  # the smallest number above 0 that float32 has: a loss is at most 149 ln 2 = 103.3


# ---- one answer at a time ----


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis: logits [*, N] -> float64 [*, N]. A logit of -inf gives exactly 0.

    Raises:
        MultifslError: a row holds NaN or +inf, or nothing but -inf.

    >>> probabilities(np.array([1000.0, 1000.0, -np.inf])).tolist()
    [0.5, 0.5, 0.0]
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise MultifslError(f"logits must be [..., N] with N at least 1, not {list(logits.shape)}")
    highest = logits.max(-1, keepdims=True)  # [*, 1], NaN where any is
    if not np.isfinite(highest).all():
        row = np.flatnonzero(~np.isfinite(highest))[0]
        raise MultifslError(
            f"logits must be numbers or -inf, and no row all -inf; row {row} is {logits.reshape(-1, logits.shape[-1])[row]}"
        )
    p: np.ndarray = np.exp(logits - highest)
    p /= p.sum(-1, keepdims=True)
    return p


def negative_log_likelihood(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-ln of the probability of the true class, of each answer: p [M, N], y int [M] -> float64 [M], in nats.

    Its mean estimates how surprising the truth is to the model. A probability below 2^-149, the smallest above 0 in float32, counts
    as that, so that one answer costs at most 103.3.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 6 (there summed).

    Raises:
        MultifslError: rows of p are no probabilities, y is no label of theirs, or they are of different lengths.

    >>> round(float(negative_log_likelihood(np.array([[0.25, 0.75]]), np.array([1]))[0]), 3)
    0.288
    """
    p, y = _rows(p, y)
    loss: np.ndarray = -np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST))
    return loss


def brier(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Squared distance of the probabilities from the truth, of each answer: p [M, N], y int [M] -> float64 [M], 0 to 2.

    Summed over all classes, so that of two classes it is twice the score of one of them. Its mean estimates calibration and
    sharpness together.

    Source: Brier, Verification of Forecasts Expressed in Terms of Probability, Monthly Weather Review 78, 1950, equation 2.

    Raises:
        MultifslError: as `negative_log_likelihood`.

    >>> brier(np.array([[0.5, 0.5], [0.0, 1.0]]), np.array([0, 0])).tolist()
    [0.5, 2.0]
    """
    p, y = _rows(p, y)
    error = p.copy()
    error[np.arange(len(y)), y] -= 1
    score: np.ndarray = np.square(error).sum(1)
    return score


# ---- calibration ----


class Calibration(NamedTuple):
    """A reliability diagram. count: int64 [B], answers in each of B equal bins of (0, 1]. confidence, accuracy: float64 [B], their
    mean confidence and the share of right ones, NaN in an empty bin."""

    count: np.ndarray  # type: ignore[assignment] # tuple's own count is of no use here
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Calibration:
    """Mean confidence and accuracy by confidence: confidence [M] in 0 to 1, right bool [M] -> `Calibration` of B = bins.

    Bin b of 1..B is ((b - 1) / B, b / B], and a confidence of 0 is in the first. Accuracy estimates the chance of being right,
    given a confidence in the bin.

    Source: Guo et al., ICML 2017, section 2.

    Raises:
        MultifslError: a confidence is not from 0 to 1, `right` holds more than yes and no, or they are of different lengths.

    >>> calibration(np.array([0.3, 0.5, 0.9]), np.array([False, True, True]), bins=2).confidence.tolist()
    [0.4, 0.9]
    """
    confidence, right = _answers(confidence, right)
    if bins < 1:
        raise MultifslError(f"bins must be at least 1, not {bins}")
    if not ((confidence >= 0) & (confidence <= 1 + 1e-6)).all():  # float32 may add up to a little over 1
        raise MultifslError(f"confidence must be from 0 to 1; it runs from {confidence.min()} to {confidence.max()}")
    index = np.searchsorted(np.arange(1, bins) / bins, confidence)  # [M]
    count = np.bincount(index, minlength=bins)
    return Calibration(count, *(_mean(np.bincount(index, x, bins), count) for x in (confidence, right)))


def expected_calibration_error(c: Calibration) -> float:
    """Mean of |accuracy - confidence| over the answers' bins, each weighted by its count: 0 to 1.

    It estimates how far confidence is from the chance of being right. More bins or fewer answers make it larger, so figures compare
    at equal bins and about equal numbers of answers only.

    Source: Guo et al., ICML 2017, equation 3.

    Raises:
        MultifslError: there is no answer.

    >>> round(expected_calibration_error(calibration(np.array([0.9, 0.7]), np.array([True, False]))), 3)
    0.4
    """
    if not c.count.sum():
        raise MultifslError("the calibration error of no answers was asked for: give at least one")
    return float(np.nansum(c.count * np.abs(c.accuracy - c.confidence)) / c.count.sum())


# ---- classes ----


def confusion(true: np.ndarray, predicted: np.ndarray, n: int) -> np.ndarray:
    """How often each class was taken for each: labels int [M] of 0..n-1 -> int64 [n, n], rows true, columns predicted.

    Raises:
        MultifslError: a label is none of 0..n-1, or the two are of different lengths.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    true, predicted = _labels(true, n, "true"), _labels(predicted, n, "predicted")
    _same_length(true=true, predicted=predicted)
    return np.bincount(true * n + predicted, minlength=n * n).reshape(n, n)


def macro_f1(confusion: np.ndarray) -> float:
    """Mean of F1 = 2 tp / (2 tp + fp + fn) over the classes that have true items: confusion [n, n] -> 0 to 1.

    Every class counts alike, however many items it has. One that is never rightly predicted has F1 0.

    Source: Opitz and Burst, Macro F1 and Macro F1, arXiv 1911.03347: the mean of F1s, not the F1 of mean precision and recall.

    Raises:
        MultifslError: the confusion is not square, or empty.

    >>> round(macro_f1(confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)), 3)
    0.667
    """
    confusion = np.asarray(confusion)
    if confusion.ndim != 2 or confusion.shape[0] != confusion.shape[1]:
        raise MultifslError(
            f"a confusion is [n, n], not {list(confusion.shape)}: `multifsl.metrics.confusion` makes one"
        )
    count = confusion.sum(1)  # [n], true items
    there = count > 0
    if not there.any():
        raise MultifslError("macro-F1 of a confusion without items was asked for: give at least one")
    return float((2 * confusion.diagonal() / np.maximum(count + confusion.sum(0), 1))[there].mean())


# ---- known against unknown: a higher score is "more known" ----


def auroc(known: np.ndarray, unknown: np.ndarray) -> float:
    """The chance that a known item scores above an unknown one, a tie counting one half: known [*], unknown [*] -> 0 to 1.

    0.5 is what a blind score has.

    Source: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017, section 2.

    Raises:
        MultifslError: a side is empty, or a score is NaN.

    >>> auroc(np.array([0.9, 0.5]), np.array([0.5, 0.1]))
    0.875
    """
    _, k, u = _accepted(known, unknown, ("known", "unknown"))
    return float(-np.diff(u) @ (k[:-1] + k[1:])) / (2 * float(k[0]) * float(u[0]))  # whole numbers up to the division


def aupr(known: np.ndarray, unknown: np.ndarray) -> float:
    """AUPR-out, the area under precision and recall with the *unknown* as what is to be found: known [*], unknown [*] -> 0 to 1.

    It is average precision: the precision among items that score t or less, weighted by the share of unknown ones at t, over all
    scores t; no line is drawn between points. A blind score has the share of unknown items among all, so figures compare at equal
    shares only.

    Source: as `auroc`; why no lines: Davis and Goadrich, The Relationship Between Precision-Recall and ROC Curves, ICML 2006.

    Raises:
        MultifslError: a side is empty, or a score is NaN.

    >>> round(aupr(np.array([0.9, 0.5]), np.array([0.7, 0.1])), 3)
    0.833
    """
    _, k, u = _accepted(known, unknown, ("known", "unknown"))
    found, false = (u[0] - u)[1:], (k[0] - k)[1:]  # at or below each score, from low to high
    return float((-np.diff(u) * (found / (found + false))).sum() / u[0])


def false_positive_rate_at(known: np.ndarray, unknown: np.ndarray, tpr: float = 0.95) -> float:
    """The share of unknown items that are accepted where at least `tpr` of the known ones are: known [*], unknown [*] -> 0 to 1.

    The threshold is the highest that accepts enough, and what scores just as much is accepted on both sides: with ties, more than
    `tpr` of the known items may be in, and the figure is the worse for it, never the better.

    Source: Liang et al., Enhancing the Reliability of Out-of-Distribution Image Detection in Neural Networks, ICLR 2018, "FPR at
    95% TPR".

    Raises:
        MultifslError: a side is empty, a score is NaN, or tpr is not above 0 and at most 1.

    >>> false_positive_rate_at(np.array([0.9, 0.8, 0.3]), np.array([0.7, 0.3, 0.2]), tpr=1)
    0.6666666666666666
    """
    if not 0 < tpr <= 1:
        raise MultifslError(f"tpr must be above 0 and at most 1, not {tpr}")
    _, k, u = _accepted(known, unknown, ("known", "unknown"))
    last = np.flatnonzero(k / k[0] >= tpr)[-1]
    return float(u[last] / u[0])


class Curve(NamedTuple):
    """Points of a line to draw, x rising: float64 [P] each."""

    x: np.ndarray
    y: np.ndarray


def accuracy_coverage(confidence: np.ndarray, right: np.ndarray, points: int = 101) -> Curve:
    """Accuracy of the answers given (y) when only the most confident share of them is (x): confidence [M], right bool [M] -> [P].

    Answers of equal confidence are given together, so only some shares can be: x has, for each of `points` even steps from 0 to 1,
    the next that can, each once. The last is 1, with the accuracy of all. For unknown items, `right` is False.

    Source: El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 11, 2010, section 2 (there
    the risk).

    Raises:
        MultifslError: there is no answer, a confidence is NaN, `right` holds more than yes and no, they are of different lengths,
            or points is below 2.

    >>> accuracy_coverage(np.array([0.9, 0.6, 0.6, 0.2]), np.array([True, True, False, False])).y.tolist()
    [1.0, 0.6666666666666666, 0.5]
    """
    confidence, right = _answers(confidence, right)
    if not len(confidence):
        raise MultifslError("the accuracy of no answers was asked for: give at least one")
    _check_points(points)
    order = np.argsort(-confidence)
    ranked = confidence[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # the last of each group of equals
    x, y = (ends + 1) / len(right), np.cumsum(right[order])[ends] / (ends + 1)
    keep = np.unique(np.searchsorted(x, np.linspace(0, 1, points)))
    return Curve(x[keep], y[keep])


# ---- verification: is it the same speaker? accepted is what scores the threshold or more ----


def detection_errors(
    target: np.ndarray, impostor: np.ndarray, points: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both errors at every threshold: target [*], impostor [*] -> false_accept, false_reject, threshold, float64 [P] each.

    false_accept is the share of impostors that score the threshold or more, false_reject that of targets that score less.
    Thresholds are all scores, rising, and inf, where nothing is accepted. With `points`, as many of them at most, evenly along a
    DET plot (both axes in normal deviates), first and last included.

    Source: Martin et al., The DET Curve in Assessment of Detection Task Performance, Eurospeech 1997.

    Raises:
        MultifslError: a side is empty, a score is NaN, or points is below 2.

    >>> false_accept, false_reject, threshold = detection_errors(np.array([0.9, 0.4]), np.array([0.4, 0.1]))
    >>> false_accept.tolist(), false_reject.tolist(), threshold.tolist()
    ([1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0], [0.1, 0.4, 0.9, inf])
    """
    threshold, t, i = _accepted(target, impostor, ("target", "impostor"))
    false_accept, false_reject = i / i[0], (t[0] - t) / t[0]
    if points is not None:
        from scipy.special import ndtri

        _check_points(points)
        shares = ((false_reject, t[0]), (false_accept, i[0]))
        down, across = (ndtri(np.clip(share, 0.5 / n, 1 - 0.5 / n)) for share, n in shares)
        along = down - across  # rises with the threshold
        keep = np.unique(np.searchsorted(along, np.linspace(along[0], along[-1], points)))
        false_accept, false_reject, threshold = false_accept[keep], false_reject[keep], threshold[keep]
    return false_accept, false_reject, threshold


def equal_error_rate(target: np.ndarray, impostor: np.ndarray) -> float:
    """The error where false accepts and false rejects are equal shares: target [*], impostor [*] -> 0 to 1; a blind score has 0.5.

    Between the two neighbouring thresholds where the order of the errors turns, both are taken to run in straight lines, and the
    rate is where they meet. It is the rate of the curve as it is, not of its convex hull, which is never higher. The threshold is
    chosen on the trials themselves: in use, expect more.

    Source: as `detection_errors`.

    Raises:
        MultifslError: a side is empty, or a score is NaN.

    >>> equal_error_rate(np.array([0.9, 0.8, 0.3]), np.array([0.5, 0.2, 0.1]))
    0.3333333333333333
    """
    false_accept, false_reject, _ = detection_errors(target, impostor)
    gap = false_accept - false_reject  # falls from 1 to -1 without a rest
    after = int(np.argmax(gap < 0))
    share = gap[after - 1] / (gap[after - 1] - gap[after])
    return float(false_accept[after - 1] + share * (false_accept[after] - false_accept[after - 1]))


def min_dcf(
    target: np.ndarray,
    impostor: np.ndarray,
    p_target: float = 0.01,
    c_miss: float = 1.0,
    c_false_accept: float = 1.0,
) -> float:
    """The least cost of decisions over all thresholds, in units of the better blind one: target [*], impostor [*] -> 0 to 1.

    The cost is c_miss * p_target * false_reject + c_false_accept * (1 - p_target) * false_accept, over min(c_miss * p_target,
    c_false_accept * (1 - p_target)), which is what accepting or rejecting everything costs: 1 is what a blind system has.

    Source: The NIST Year 2010 Speaker Recognition Evaluation Plan, on the performance measure (C_Det and C_Default).

    Raises:
        MultifslError: a side is empty, a score is NaN, p_target is not between 0 and 1, or a cost is not above 0.

    >>> min_dcf(np.array([0.9, 0.8, 0.3]), np.array([0.5, 0.2, 0.1]))
    0.3333333333333333
    """
    if not 0 < p_target < 1:
        raise MultifslError(f"p_target must be between 0 and 1, not {p_target}")
    if not (0 < c_miss < np.inf and 0 < c_false_accept < np.inf):
        raise MultifslError(f"costs must be numbers above 0; got c_miss={c_miss}, c_false_accept={c_false_accept}")
    false_accept, false_reject, _ = detection_errors(target, impostor)
    miss, accept = c_miss * p_target, c_false_accept * (1 - p_target)
    return float((miss * false_reject + accept * false_accept).min() / min(miss, accept))


# ---- what came is what was asked for ----


def _accepted(a: np.ndarray, b: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All scores, rising, and inf; at each, how many of a and of b score as much or more (at the last: none). int64, [P] each."""
    a, b = (np.sort(_scores(x, f"{name} scores")) for x, name in zip((a, b), names, strict=True))
    for x, name in zip((a, b), names, strict=True):
        if not len(x):
            raise MultifslError(
                f"there are no {name} scores (of {names[0]}: {len(a)}, of {names[1]}: {len(b)}): give both"
            )
    threshold = np.unique(np.concatenate([a, b]))
    k, u = (np.append(len(x) - np.searchsorted(x, threshold), 0) for x in (a, b))
    return np.append(threshold, np.inf), k, u


def _scores(x: np.ndarray, name: str) -> np.ndarray:
    """float64 [*], without NaN."""
    x = np.asarray(x, dtype=np.float64)
    if x.ndim != 1:
        raise MultifslError(f"{name} must have one axis, not the shape {list(x.shape)}")
    if np.isnan(x).any():
        raise MultifslError(
            f"{name} must be numbers: {np.isnan(x).sum()} of {len(x)} are NaN, first at {np.isnan(x).argmax()}"
        )
    return x


def _answers(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, float64 [M], and whether each is right, bool [M]."""
    confidence, right = _scores(confidence, "confidence"), _scores(right, "right")
    _same_length(confidence=confidence, right=right)
    odd = (right != 0) & (right != 1)
    if odd.any():
        raise MultifslError(
            f"right must be True or False for each answer; answer {odd.argmax()} has {right[odd.argmax()]}"
        )
    return confidence, right == 1


def _rows(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, float64 [M, N], and labels, int64 [M]."""
    p = np.asarray(p, dtype=np.float64)
    if p.ndim != 2:
        raise MultifslError(f"probabilities must be [M, N], not {list(p.shape)}")
    fine = (p >= 0).all(1) & (np.abs(p.sum(1) - 1) < 1e-3)
    if not fine.all():
        raise MultifslError(
            f"probabilities must be 0 or more and sum to 1 in each row; row {fine.argmin()} is {p[fine.argmin()]} (of logits, "
            "`multifsl.metrics.probabilities` makes them)"
        )
    y = _labels(y, p.shape[1], "y")
    _same_length(probabilities=p, y=y)
    return p, y


def _labels(y: np.ndarray, n: int, name: str) -> np.ndarray:
    """int64 [M], each of 0..n-1."""
    y = np.asarray(y)
    if y.ndim != 1 or (y.size and y.dtype.kind not in "iu"):
        raise MultifslError(f"{name} must be whole numbers on one axis, not {y.dtype} of shape {list(y.shape)}")
    if y.size and not (y.min() >= 0 and y.max() < n):
        raise MultifslError(
            f"{name} must be labels 0..{n - 1}, but runs from {y.min()} to {y.max()}; leave rows of no class out first"
        )
    return y.astype(np.int64)


def _same_length(**arrays: np.ndarray) -> None:
    if len({len(x) for x in arrays.values()}) > 1:
        lengths = " and ".join(f"{len(x)} {name}" for name, x in arrays.items())
        raise MultifslError(f"one of each is needed for each answer, but there are {lengths}")


def _check_points(points: int) -> None:
    if points < 2:
        raise MultifslError(f"points must be at least 2, not {points}")


def _mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """total / count, NaN where there is none."""
    mean = np.full(len(count), np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    return mean
