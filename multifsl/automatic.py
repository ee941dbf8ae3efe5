"""The method of a classifier, chosen on its own examples: `method="auto"`.

Each example is left out once and told by what the others teach (leave-one-out; with more than FOLDS examples a class, every
FOLDS-th is left out at a time). A candidate is worth the mean log-likelihood of the left-out items' classes, in nats,

    mean over i of log softmax(logits of x_i / t)[y_i],   t > 0 the best for that candidate,

so that none loses for the scale of its logits. The default, nearest class mean by cosine, is left only for one that gains
more than MARGIN standard errors of the paired difference on it, and more than LEAST (the rule of one standard error is from
Breiman, Friedman, Olshen, Stone: Classification and Regression Trees, 1984, section 3.4.3). Candidates and rule were chosen
on development sets: docs/recognition.md.

What it costs is bounded: no more than CLASSES classes, SHOTS examples of each and ITEMS examples in all are looked at, the
classes evenly spread over all, and a candidate that would be slow to fit to all examples is left out. Examples of a class that
are the same are looked at once.

Shape letters: S examples, N classes, F folds, Q examples left out in a fold, D embedding width.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from multifsl.encoder import Encoder, Features
from multifsl.episode import PADDING, Batch, Episode
from multifsl.evaluation import DEFAULT_METHOD
from multifsl.functional import distinct, highest_precision, places_in_class
from multifsl.method import Method
from multifsl.registry import build

FOLDS = 5
CLASSES, SHOTS, ITEMS = 20, 20, 200
MARGIN = 1.0
LEAST = 1e-3  # nats: a smaller gain is none
LOGISTIC_WORK = 1.5e9  # N * S^3, a step of logistic regression: a few seconds for a fit
RIDGE_WORK = 5e7  # S * N, the labels of ridge regression as a matrix


class Score(NamedTuple):
    """What a candidate is worth on the left-out items; `spec` names it.

    log_likelihood: the mean, in nats. gain: over the default's; standard_error: of the gain. temperature: the best one, which the
    candidate's logits were divided by.
    """

    spec: str
    log_likelihood: float
    gain: float
    standard_error: float
    temperature: float


class Choice(NamedTuple):
    """The chosen method, and the candidates' scores, the default's first: none where there was no choice to make."""

    method: Method
    scores: list[Score]


def candidates(n_items: int, n_classes: int, square: float) -> list[str]:
    """Specs of the methods that are compared for so many examples and classes; square: the mean squared length of an embedding.

    >>> candidates(100, 20, 1.0)
    ["prototypical(distance='cosine')", 'matching(temperature=0.1)', 'ridge(ridge=1)', 'logistic(c=10.0, iterations=8)']
    >>> candidates(50_000, 10_000, 1.0)
    ["prototypical(distance='cosine')", 'matching(temperature=0.1)']
    """
    specs = [DEFAULT_METHOD, "matching(temperature=0.1)"]
    if n_items * n_classes <= RIDGE_WORK:
        specs.append(f"ridge(ridge={max(square, 1e-9):.3g})")
    if n_classes * n_items**3 <= LOGISTIC_WORK:
        specs.append("logistic(c=10.0, iterations=8)")
    return specs


@torch.no_grad()
def choose(encoder: Encoder, z: Tensor, y: Tensor, n_classes: int) -> Choice:
    """The method for these examples, built on the encoder, and how the candidates did. The same examples give the same choice.

    Where a class has one example, but for copies, or there is one class, it is the default.

    Args:
        encoder: what the method is built on; it is not run.
        z: [S, D], the examples' embeddings. y: int64 [S], 0 to n_classes - 1, at least one of each.

    >>> z, y = torch.tensor([[1.0, 0.0], [0.9, 0.2], [0.0, 1.0], [0.1, 0.8]]), torch.tensor([0, 0, 1, 1])
    >>> choice = choose(Features(2), z, y, 2)
    >>> type(choice.method).__name__, len(choice.scores)
    ('Prototypical', 4)
    """
    n_items, kept = len(y), distinct(z, y)
    z, y = z[kept], y[kept]
    counts = y.bincount(minlength=n_classes)
    if n_classes < 2 or int(counts.min()) < 2:
        return Choice(build("methods", DEFAULT_METHOD, encoder=encoder), [])
    seen, seen_y = _spread(y, counts)
    z = highest_precision(z[seen])
    specs = candidates(n_items, n_classes, float(z.square().sum(1).mean()))
    features = Features(z.shape[1])
    scores: list[Score] = []
    default: Tensor | None = None
    for spec in specs:
        method = build("methods", spec, encoder=features).to(z.device).eval()
        found, temperature = best_likelihood(leave_one_out(method, z, seen_y), seen_y)
        default = found if default is None else default
        gain = found - default
        error = float(gain.std()) / len(gain) ** 0.5
        scores.append(Score(spec, float(found.mean()), float(gain.mean()), error, temperature))
    better = [s for s in scores if s.gain > max(MARGIN * s.standard_error, LEAST)]
    best = max(better, key=lambda s: s.log_likelihood, default=scores[0])
    return Choice(build("methods", best.spec, encoder=encoder), scores)


def leave_one_out(method: Method, z: Tensor, y: Tensor) -> Tensor:
    """Logits [S, N] of each example, by the method adapted to the folds that it is not in.

    z: [S, D]; y: int64 [S], two or more of each class. Fold f has the examples that stand at the places f, f + FOLDS, ... of their
    class. All folds are solved at once; where they differ in size, the smaller are padded.

    >>> method = build("methods", DEFAULT_METHOD, encoder=Features(2))
    >>> leave_one_out(method, torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 0, 1])).argmax(1)
    tensor([0, 1, 0, 1])
    """
    place, counts = places_in_class(y), y.bincount()
    folds = min(int(counts.max()), FOLDS)
    out = place % folds == torch.arange(folds, device=y.device)[:, None]  # [F, S]

    def some(wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [F, R] that are wanted [F, S] in each fold, and their labels; PADDING where a fold has fewer than R."""
        rows = (~wanted).to(torch.int8).argsort(dim=1, stable=True)[:, : int(wanted.sum(1).max())]
        return rows, y[rows].where(wanted.gather(1, rows), PADDING)

    (kept, kept_y), (left, left_y) = some(~out), some(out)
    present = torch.ones(folds, len(counts), dtype=torch.bool, device=y.device)
    logits = method.solve_embedded(Episode(Batch(z[kept], kept_y), Batch(z[left], left_y), present)).logits  # [F, Q, N]
    real = left_y != PADDING
    return logits.new_empty(len(y), len(counts)).index_copy(0, left[real], logits[real])


def best_likelihood(logits: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """log softmax(logits / t)[y] [S] for the t of the highest mean, and t; of 33 from 20 times the logits' spread to 1/150 of it.

    >>> likelihood, t = best_likelihood(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1]))
    >>> likelihood.exp().round(decimals=1).tolist()
    [0.7, 0.3, 0.7]
    """
    logits = highest_precision(logits)
    spread = float((logits - logits.mean(1, keepdim=True)).std())
    spread = max(spread, 1e-6 * float(logits.abs().max()), 1e-12)  # what is but rounding tells nothing
    temperatures = [spread * math.exp(3 - step / 4) for step in range(33)]
    found = [(logits / t).log_softmax(1).gather(1, y[:, None]).squeeze(1) for t in temperatures]
    best = int(torch.stack(found).mean(1).argmax())
    return found[best], temperatures[best]


def _spread(y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that are looked at, and their labels, renumbered: the first SHOTS of each of some classes, evenly spread in the order of
    their first rows."""
    shots = counts.clamp(max=SHOTS)
    n = min(len(counts), CLASSES, max(2, ITEMS // int(shots.max())))
    place = places_in_class(y)
    few = torch.linspace(0, len(counts) - 1, n, dtype=torch.float64).long().to(y.device)
    chosen = y[place == 0][few].sort().values
    new = torch.full_like(counts, PADDING).index_copy(0, chosen, torch.arange(n, device=y.device))
    rows = ((new[y] >= 0) & (place < SHOTS)).nonzero().squeeze(1)
    return rows, new[y[rows]]
