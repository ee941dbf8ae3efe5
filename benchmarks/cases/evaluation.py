"""Evaluation from embeddings: 5-way 5-shot 15-query episodes of prototypical networks, from 20 classes of 600 items.

Ours: `episode_accuracies`, which gives the accuracy of each episode, and `multifsl.evaluate`, which checks for leaks and gives all
figures of a result besides. easyfsl: `evaluate` of its `PrototypicalNetworks` over a `FeaturesDataset` and a `TaskSampler`, as in
its tutorial on classical training; it gives the accuracy alone. It is given 200 episodes a round, ours 10,000: times are those of
one episode.
"""

import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import multifsl
from benchmarks.cases._easyfsl import sampler_of
from benchmarks.harness import Case, Run, Same, Setting
from multifsl.bank import Bank
from multifsl.encoder import Features
from multifsl.evaluation import blocks, episode_accuracies
from multifsl.registry import build
from multifsl.task import Items, Task

TITLE = "Evaluation from embeddings, 5-way 5-shot 15-query"
CLASSES, EACH = 20, 600  # the test split of mini-ImageNet
NAMES = [f"class {c}" for c in range(CLASSES)]
AIMS = {64: 100.0, 512: 25.0, 1024: 12.0}
SHAPE: dict[str, Any] = {"way": 5, "shot": 5, "query": 15}


class Given(Task):
    """Embeddings that come ready-made."""

    modality = "features"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def items(self, split: str) -> Items:
        return items(self.dim)


@cache
def embeddings(dim: int) -> Tensor:
    """Gaussian classes [n, D], as far apart at any width."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, dim, generator=generator) * (2 / dim) ** 0.25
    noise = torch.randn(CLASSES * EACH, dim, generator=generator)
    return noise.add_(centres.repeat_interleave(EACH, 0))


@cache
def items(dim: int) -> Items:
    return Items(list(embeddings(dim).numpy()), np.repeat(np.arange(CLASSES), EACH), NAMES)


def cases(setting: Setting) -> Iterator[Case]:
    count, few = setting.pick(10_000, 64), setting.pick(200, 3)
    for dim, aim in AIMS.items():
        yield Case(
            f"accuracy of each episode, D = {dim}",
            ours=partial(ours, setting, dim, count),
            peers={"easyfsl": partial(easyfsl, setting, dim, count, few)},
            aim=aim,
            same=partial(same, setting, dim),
            moved=lambda dim=dim: 2.0 * count * 5 * (5 + 15) * dim * 4,  # type: ignore[misc]
            inner=count,
            unit="episode",
            note="a seed for each episode, a gather, and one path for all methods (torch.vmap) take more time than the arithmetic",
        )
    yield Case(
        "all figures, D = 512",
        ours=partial(figures, setting, 512, count),
        peers={"easyfsl": partial(easyfsl, setting, 512, count, few)},
        aim=10.0,
        inner=count,
        unit="episode",
        note="ours with the leak check, intervals, F1, calibration and all that a report draws; easyfsl's accuracy alone",
    )


def bank(setting: Setting, dim: int) -> Bank:
    return Bank(embeddings(dim).to(setting.device), items(dim))


def ours(setting: Setting, dim: int, count: int) -> Run:
    method, data = build("methods", "prototypical", encoder=Features(dim)), bank(setting, dim)

    def once() -> None:
        episode_accuracies(method, data, **SHAPE, episodes=count)

    return once


def figures(setting: Setting, dim: int, count: int) -> Run:
    def once() -> None:
        multifsl.evaluate(
            task=Given(dim),
            encoder=Features(dim),
            method="prototypical",
            **SHAPE,
            episodes=count,
            device=setting.device,
        )

    return once


def easyfsl(setting: Setting, dim: int, count: int, few: int) -> Run:
    """Seconds of `count` episodes, by those of `few`."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    data = FeaturesDataset(items(dim).labels.tolist(), embeddings(dim), NAMES)
    sampler = sampler_of(TaskSampler, data, n_way=5, n_shot=5, n_query=15, n_tasks=few)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    learner = PrototypicalNetworks()

    def once() -> float:
        start = time.perf_counter()
        evaluate(learner, loader, device=setting.device, use_tqdm=False)
        return (time.perf_counter() - start) / few * count

    return once


def same(setting: Setting, dim: int) -> Sequence[Same]:
    """The accuracy in the same episodes: ours, handed to easyfsl as rows, class by class."""
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate

    count, method = setting.pick(320, 32), build("methods", "prototypical", encoder=Features(dim))
    mine = float(episode_accuracies(method, bank(setting, dim), **SHAPE, episodes=count).mean())
    drawn = multifsl.EpisodeSampler(items(dim).labels, **SHAPE)
    rows = [
        np.concatenate([task.support.reshape(5, 5), task.query.reshape(5, 15)], axis=1).ravel().tolist()
        for block in blocks(drawn, count)
        for task in block
    ]
    data = FeaturesDataset(items(dim).labels.tolist(), embeddings(dim), NAMES)
    sampler = sampler_of(TaskSampler, data, n_way=5, n_shot=5, n_query=15, n_tasks=count)
    loader = torch.utils.data.DataLoader(data, batch_sampler=rows, collate_fn=sampler.episodic_collate_fn)
    theirs = evaluate(PrototypicalNetworks(), loader, device=setting.device, use_tqdm=False)
    return [Same(f"accuracy in the same {count} episodes", mine, theirs, 1e-4)]
