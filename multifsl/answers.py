"""What a method answers in its episodes, and the figures of it.

An `Answers` holds every query's answer as plain arrays, so that each figure is one line over them, and two methods that met the
same episodes can be compared query by query.

Shape letters: T tasks, B episodes, N ways, M queries of a known class, U of none, C classes of the split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multifsl import metrics
from multifsl.episode import UNKNOWN, Indices
from multifsl.intervals import class_half_width, half_width

# bytes of logits that wait on their device: asking for each chunk's would hold an accelerator up; many more leave a CPU's cache
WAITING = 2**19
BINS = 15
PAIRS = 50  # of confused classes that are kept
MOST_CLASSES = 3000  # of which there is a table of all pairs


@dataclass(frozen=True)
class Answers:
    """scores: float64 [B], the share of right queries of each episode. classes: int64 [B, N], the split's, -1 past the ways of an
    episode that has fewer. Of each query of a known class, in the order of the episodes: episode and item, int64 [M]; true and
    predicted class of the split, int64 [M]; confidence, the probability of the predicted class, its negative log-likelihood and
    Brier score, float64 [M]; known, the highest logit [M]. outside, outside_confidence: the highest logit of queries of no
    class, and its probability, float64 [U]. targets, others: logits of a query's own class and of the episode's others, where these
    were asked for. diverged: episodes with answers that are not numbers, which count by chance.
    """

    scores: np.ndarray
    classes: np.ndarray
    episode: np.ndarray
    item: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    nll: np.ndarray
    brier: np.ndarray
    known: np.ndarray
    outside: np.ndarray
    outside_confidence: np.ndarray
    targets: np.ndarray
    others: np.ndarray
    diverged: int

    @property
    def right(self) -> np.ndarray:
        """bool [M]."""
        same: np.ndarray = self.true == self.predicted
        return same


def collect(solved: Iterator[tuple[Sequence[Indices], Tensor]], *, trials: bool = False) -> Answers:
    """The answers of tasks with their logits [T, Q, N], chunk by chunk. trials: keep the logits, as scores of verification."""
    parts: list[dict[str, np.ndarray]] = []
    waiting: list[tuple[Sequence[Indices], Tensor]] = []
    size = 0
    for tasks, logits in solved:
        waiting.append((tasks, logits))
        size += logits.nbytes
        if size > WAITING:
            parts += _read_all(waiting, trials)
            waiting, size = [], 0
    parts += _read_all(waiting, trials)
    widest = max(part["classes"].shape[1] for part in parts)
    for part in parts:
        missing = widest - part["classes"].shape[1]
        part["classes"] = np.pad(part["classes"], ((0, 0), (0, missing)), constant_values=-1)
    starts = np.cumsum([0] + [len(part["scores"]) for part in parts])
    for part, start in zip(parts, starts, strict=False):
        part["episode"] += start
    diverged = sum(int(part.pop("diverged")) for part in parts)
    return Answers(**{key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, diverged=diverged)


def _read_all(waiting: list[tuple[Sequence[Indices], Tensor]], trials: bool) -> Iterator[dict[str, np.ndarray]]:
    """The answers of chunks, those of one shape together: fewer and larger steps."""
    for _, alike in groupby(waiting, key=lambda one: one[1].shape[1:]):
        blocks, logits = zip(*alike, strict=True)
        yield _read([task for block in blocks for task in block], torch.cat(logits), trials)


def _read(tasks: Sequence[Indices], logits: Tensor, trials: bool) -> dict[str, np.ndarray]:
    """A chunk's answers; its tasks are of one shape."""
    z = logits.to("cpu", torch.float64, copy=True).numpy()  # [T, Q, N]
    wrecked = ~np.isfinite(z.max(2))  # [T, Q]: no number is the highest
    lost = wrecked.any(1)  # [T]
    z[wrecked] = 0.0
    y, item = (np.stack([getattr(task, key) for task in tasks]) for key in ("query_y", "query"))  # [T, Q]
    classes = np.stack([task.classes for task in tasks])  # [T, N]
    inside = y != UNKNOWN
    episode = np.broadcast_to(np.arange(len(tasks))[:, None], y.shape)[inside]  # [M]
    z_in, y_in = z[inside], y[inside]  # [M, N], [M]
    p, z_out = metrics.probabilities(z_in), z[~inside]  # [M, N], [U, N]
    predicted, at = z_in.argmax(1), np.arange(len(z_in))
    right = predicted == y_in
    own = np.zeros(z_in.shape if trials else (0, z_in.shape[1]), dtype=bool)
    if trials:
        own[at, y_in] = True
    shown = z_in[: len(own)]
    return {
        "scores": np.bincount(episode, right, len(tasks)) / np.bincount(episode, minlength=len(tasks)),
        "classes": classes, "episode": episode.copy(), "item": item[inside],
        "true": classes[episode, y_in], "predicted": classes[episode, predicted],
        "confidence": p[at, predicted], "nll": metrics.negative_log_likelihood(p, y_in), "brier": metrics.brier(p, y_in),
        "known": z_in[at, predicted], "outside": z_out.max(1), "outside_confidence": metrics.probabilities(z_out).max(1),
        "targets": shown[own], "others": shown[~own], "diverged": lost.sum(),
    }  # fmt: skip


def figures(answers: Answers) -> dict[str, Any]:
    """Every figure that a table shows; what each estimates stands in docs/evaluation.md.

    unknown: where there are queries of no class, how well the highest logit tells them from the others. verification: where logits
    were kept.
    """
    found: dict[str, Any] = {
        "accuracy": float(answers.scores.mean()),
        "ci95": half_width(answers.scores),
        "ci95_classes": class_half_width(answers.scores, answers.classes),
        "macro_f1": _macro_f1(answers),
        "nll": float(answers.nll.mean()),
        "brier": float(answers.brier.mean()),
        "calibration_error": metrics.expected_calibration_error(_calibration(answers)),
        "unknown": None,
        "verification": None,
    }
    if len(answers.outside):
        known, outside = answers.known, answers.outside
        found["unknown"] = {
            "auroc": metrics.auroc(known, outside),
            "aupr": metrics.aupr(known, outside),
            "fpr_at_95_tpr": metrics.false_positive_rate_at(known, outside, 0.95),
        }
    if len(answers.targets) and len(answers.others):
        targets, others = answers.targets, answers.others
        found["verification"] = {
            "equal_error_rate": metrics.equal_error_rate(targets, others),
            "min_dcf_0.01": metrics.min_dcf(targets, others, p_target=0.01),
            "min_dcf_0.05": metrics.min_dcf(targets, others, p_target=0.05),
        }
    return found


def details(answers: Answers, class_names: Sequence[str]) -> dict[str, Any]:
    """What a report draws, as plain lists: classes with their accuracy and their queries, the pairs that are confused most, the
    reliability diagram, the accuracy/coverage curve, and, where logits were kept, the detection error curve.

    coverage: accuracy of the most confident answers against their share of all queries. Those of no class are among them, and to
    answer one is an error: where there are such, even a perfect method ends below 1.
    """
    counts = np.bincount(answers.true, minlength=len(class_names))
    rights = np.bincount(answers.true, answers.right, len(class_names))
    used = np.flatnonzero(counts)
    wrong = ~answers.right
    pairs, times = np.unique(
        answers.true[wrong] * len(class_names) + answers.predicted[wrong], return_counts=True
    )  # [pairs]
    first = np.argsort(-times, kind="stable")[:PAIRS]
    bins = _calibration(answers)
    coverage = metrics.accuracy_coverage(
        np.concatenate([answers.confidence, answers.outside_confidence]),
        np.concatenate([answers.right, np.zeros(len(answers.outside), dtype=bool)]),
    )
    found: dict[str, Any] = {
        "classes": [
            {"name": class_names[c], "accuracy": round(rights[c] / counts[c], 4), "queries": int(counts[c])} for c in used.tolist()
        ],
        "confused": [
            {"true": class_names[pair // len(class_names)], "answered": class_names[pair % len(class_names)], "queries": int(n)}
            for pair, n in zip(pairs[first].tolist(), times[first].tolist(), strict=True)
        ],
        "reliability": {
            "queries": bins.count.tolist(),
            "confidence": _rounded(bins.confidence),
            "accuracy": _rounded(bins.accuracy),
        },
        "coverage": {"coverage": _rounded(coverage.x), "accuracy": _rounded(coverage.y)},
        "detection": None,
        "scores": _rounded(answers.scores),
    }  # fmt: skip
    if len(answers.targets) and len(answers.others):
        false_accept, false_reject, _ = metrics.detection_errors(answers.targets, answers.others, points=200)
        found["detection"] = {"false_accept": _rounded(false_accept), "false_reject": _rounded(false_reject)}
    return found


def _macro_f1(answers: Answers) -> float | None:
    many = max(answers.true.max(), answers.predicted.max()) + 1
    met = np.bincount(answers.true, minlength=many) + np.bincount(answers.predicted, minlength=many) > 0  # [C]
    count = int(met.sum())
    if count > MOST_CLASSES:
        return None
    place = np.cumsum(met) - 1
    return metrics.macro_f1(metrics.confusion(place[answers.true], place[answers.predicted], count))


def _calibration(answers: Answers) -> metrics.Calibration:
    return metrics.calibration(answers.confidence, answers.right, BINS)


def _rounded(x: np.ndarray) -> list[float | None]:
    """Numbers for a file; None where there is none."""
    return [round(value, 6) if np.isfinite(value) else None for value in x.tolist()]
