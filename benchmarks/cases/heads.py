"""Heads that are solved for each episode: ridge and logistic regression, 5-way 5-shot 15-query, from embeddings.

Ours: `episode_accuracies`, the drawing of episodes included. scikit-learn: an estimator fitted and asked per episode, of rows that
were drawn before. The same regularisation and no other options; logistic regression is on embeddings of length 1, as by default.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

import multifsl
from benchmarks.cases.evaluation import SHAPE, bank, embeddings, items
from benchmarks.harness import Case, Run, Same, Setting
from multifsl.encoder import Features
from multifsl.episode import Batch, Indices
from multifsl.evaluation import blocks, episode_accuracies
from multifsl.registry import build

TITLE = "Heads on embeddings, 5-way 5-shot 15-query"
COUNTS = {"ridge": (3200, 100), "logistic": (320, 40)}  # episodes a round: ours, and scikit-learn's
NOTES = {
    "ridge": "a seed for each episode and one path for all methods (torch.vmap) take most of the time, not the solution",
    "logistic": "six Newton steps in float64, each with a Cholesky factor a class, where scikit-learn stops when it is near",
}


def cases(setting: Setting) -> Iterator[Case]:
    for name, counts in COUNTS.items():
        for dim in (64, 512):
            count, few = (setting.pick(each, 4) for each in counts)
            yield Case(
                f"{name}, D = {dim}",
                ours=partial(ours, setting, name, dim, count),
                peers={"scikit-learn": partial(scikit_learn, name, dim, count, few)},
                aim=20.0,
                same=partial(same, setting, name, dim),
                inner=count,
                unit="episode",
                note=NOTES[name],
            )


def ours(setting: Setting, name: str, dim: int, count: int) -> Run:
    method, data = build("methods", name, encoder=Features(dim)).to(setting.device), bank(setting, dim)

    def once() -> None:
        episode_accuracies(method, data, **SHAPE, episodes=count)

    return once


def scikit_learn(name: str, dim: int, count: int, few: int) -> Run:
    """Seconds of `count` episodes, by those of `few`."""
    tasks, x = drawn(few), rows(name, dim)

    def once() -> float:
        start = time.perf_counter()
        for task in tasks:
            score(fitted(name, task, x), task, x)
        return (time.perf_counter() - start) / few * count

    return once


def drawn(count: int) -> list[Indices]:
    sampler = multifsl.EpisodeSampler(items(64).labels, **SHAPE)
    return [task for block in blocks(sampler, count) for task in block]


def rows(name: str, dim: int) -> np.ndarray:
    x = embeddings(dim)
    found: np.ndarray = (F.normalize(x, dim=1) if name == "logistic" else x).numpy()
    return found


def fitted(name: str, task: Indices, x: np.ndarray, tol: float = 1e-4) -> Any:
    """Of logistic regression, to a tolerance: scikit-learn's own by default."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if name == "logistic":
        return LogisticRegression(C=1.0, tol=tol).fit(x[task.support], task.support_y)
    return Ridge(alpha=1.0, fit_intercept=False).fit(x[task.support], np.eye(5, dtype=x.dtype)[task.support_y])


def score(model: Any, task: Indices, x: np.ndarray) -> float:
    answers = model.predict(x[task.query])
    return float(((answers.argmax(1) if answers.ndim == 2 else answers) == task.query_y).mean())


def same(setting: Setting, name: str, dim: int) -> Sequence[Same]:
    """The accuracy in the same episodes, and the weights of the first."""
    count, method = setting.pick(64, 4), build("methods", name, encoder=Features(dim))
    tasks, x = drawn(count), rows(name, dim)
    theirs = [fitted(name, task, x, tol=1e-8) for task in tasks]
    first = tasks[0]
    support = Batch(embeddings(dim)[first.support], torch.from_numpy(first.support_y))
    with torch.no_grad():
        weight = method.adapt(support, torch.ones(5, dtype=torch.bool)).weight.T.numpy()  # [N, D]
    mine = episode_accuracies(method.to(setting.device), bank(setting, dim), **SHAPE, episodes=count).mean()
    other = np.mean([score(model, task, x) for model, task in zip(theirs, tasks, strict=True)])
    apart = np.abs(weight - theirs[0].coef_).max() / np.abs(theirs[0].coef_).max()
    return [
        Same(f"accuracy in the same {count} episodes", float(mine), float(other), 1e-3),
        Same("largest difference of a weight, of the largest weight", float(apart), 0.0, 1e-3),
    ]
