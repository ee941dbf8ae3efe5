"""A training step of prototypical networks on Omniglot, the way from drawings to updated weights included.

Ours: `multifsl.train` as it is, timed by the speed that it reports. easyfsl: its `PrototypicalNetworks` and `TaskSampler`, as in
its tutorials, over drawings that are tensors in memory already, which spares it the reading of files. Memory is kept between steps
for both sides, as the command `multifsl train` does (`keep_memory`). It normalises the support and
the query items of an episode apart, multifsl together: hence accuracies are compared, not losses.
"""

import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import multifsl
from benchmarks.cases._easyfsl import sampler_of
from benchmarks.harness import Case, Run, Same, Setting, counted
from multifsl.episode import Batch, Episode
from multifsl.evaluation import episode_accuracies
from multifsl.registry import build
from multifsl.task import Items, Task
from multifsl.training import keep_memory

TITLE = "Training step, prototypical networks, Omniglot, Conv4"
SHAPES = {"60-way 1-shot 5-query": (60, 5, 6, (1.8, 3.0)), "5-way 1-shot 15-query": (5, 15, 60, (1.6, 2.4))}
ENCODER = "conv4(channels=1)"
LR = 1e-3
BETWEEN_RUNS = 0.03  # what two runs of one side differ by that drew other episodes and other first weights
NOTES = {
    "float32": "Nearly all of a step is the network's own passes, in which the layout of the images and pooling before ReLU gain "
    "1.6 to 1.8x in CPU time on one thread.",
    "bfloat16": "easyfsl in float32, as its users have it; where a processor multiplies bfloat16 more slowly than float32, as this "
    "one, small episodes lose by it.",
}
CLASSES = 200  # of the train characters


class Drawings(Task):
    """The first train characters of Omniglot; no val classes, so that a training is nothing but its steps."""

    modality = "image"

    def items(self, split: str) -> Items:
        if split != "train":
            raise multifsl.MultifslError(f"these drawings are for training, not for {split}")
        return drawings()


@cache
def drawings() -> Items:
    every = build("tasks", "omniglot").items("train")
    rows = np.flatnonzero(every.labels < CLASSES)
    return Items([every.items[i] for i in rows], every.labels[rows], every.class_names[:CLASSES])


@cache
def pixels() -> Tensor:
    """The drawings as the encoder meets them [n, 1, 28, 28]."""
    encoder = build("encoders", ENCODER)
    items = drawings().items
    batch: Tensor = encoder.collate([encoder.load(item) for item in items])
    return batch.float() / 255 if batch.dtype == torch.uint8 else batch


def cases(setting: Setting) -> Iterator[Case]:
    if not setting.quick:
        keep_memory()  # for the whole process
    for name, (way, query, steps, aims) in SHAPES.items():
        for precision, aim in zip(("float32", "bfloat16"), aims, strict=True):
            count = setting.pick(steps, 2)
            yield Case(
                f"{name}, {precision}",
                ours=partial(ours, setting, way, query, count, precision),
                peers={"easyfsl": partial(easyfsl, setting, way, query, count)},
                aim=aim,
                same=partial(same, setting, way, query, precision),
                flops=partial(flops, way, query, count),
                precision=precision,
                inner=count,
                unit="step",
                note=NOTES[precision],
            )


def ours(setting: Setting, way: int, query: int, steps: int, precision: str) -> Run:
    return lambda: run(setting, way, query, steps, precision)[0]


def run(setting: Setting, way: int, query: int, steps: int, precision: str) -> tuple[float, Any]:
    """Seconds of the steps, and the run."""
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):  # no val classes
        trained = multifsl.train(
            Drawings(), ENCODER, "prototypical", out=Path(folder) / "run", way=way, shot=1, query=query, steps=steps, lr=LR,
            schedule="constant", precision=precision, device=setting.device,  # type: ignore[arg-type]
            report=lambda step, fraction, row: speeds.append(row["episodes_per_second"]),
        )  # fmt: skip
    return sum(min(20, steps - 20 * i) / speed for i, speed in enumerate(speeds)), trained


class InMemory(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """What easyfsl asks of a data set, over tensors."""

    def __len__(self) -> int:
        return len(drawings().labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return pixels()[index], int(drawings().labels[index])

    def get_labels(self) -> list[int]:
        return [int(label) for label in drawings().labels]


def easyfsl(setting: Setting, way: int, query: int, steps: int, network: nn.Sequential | None = None) -> Run:
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler

    data = InMemory()
    sampler = sampler_of(TaskSampler, data, n_way=way, n_shot=1, n_query=query, n_tasks=steps)
    loader = torch.utils.data.DataLoader(data, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
    network = plain_conv4(build("encoders", ENCODER)) if network is None else network

    class Squared(PrototypicalNetworks):  # type: ignore[misc]
        """By squared distances, as the paper and multifsl have them; easyfsl's own are plain ones."""

        def l2_distance_to_prototypes(self, samples: Tensor) -> Tensor:
            plain: Tensor = super().l2_distance_to_prototypes(samples)
            return -plain.square()

    learner = Squared(network).to(setting.device).train()
    optimizer = torch.optim.Adam(learner.parameters(), lr=LR)

    def once() -> float:
        start = time.perf_counter()
        for support, support_y, images, labels, _ in loader:
            optimizer.zero_grad()
            learner.process_support_set(support.to(setting.device), support_y.to(setting.device))
            loss = F.cross_entropy(learner(images.to(setting.device)), labels.to(setting.device))
            loss.backward()
            optimizer.step()
            loss.item()  # as its tutorials do, for the progress bar
        return time.perf_counter() - start

    return once


def same(setting: Setting, way: int, query: int, precision: str) -> Sequence[Same]:
    """The loss and the gradient of one episode whose items are normalised together; and, as easyfsl normalises support and
    queries apart, the accuracy on characters held out after as many steps of each, from the same weights on episodes of its own:
    equal within the noise."""
    steps = setting.pick(20 if way > 20 else 60, 2)
    _, trained = run(setting, way, query, steps, precision)
    torch.manual_seed(0)  # as `train` begins
    theirs = build("encoders", ENCODER)
    network = plain_conv4(theirs)
    easyfsl(setting, way, query, steps, network)()
    copy(network, theirs)
    judged = []
    for method in (trained.method, build("methods", "prototypical", encoder=theirs)):
        settle(method.to(setting.device).encoder, setting)
        judged.append(episode_accuracies(method, held_out(), way=5, shot=1, query=5, episodes=setting.pick(400, 5)))
    ours, peer = (float(scores.mean()) for scores in judged)
    noise = float(np.hypot(*(scores.std() / len(scores) ** 0.5 for scores in judged)))
    return [*one_step(way, query), Same(f"accuracy after {steps} steps", ours, peer, 3 * noise + BETWEEN_RUNS)]


def one_step(way: int, query: int) -> list[Same]:
    """The loss of an episode, and its gradient to all weights, beside the plain network and a loop over classes, in float32."""
    encoder = build("encoders", ENCODER)
    network, method = plain_conv4(encoder), build("methods", "prototypical", encoder=encoder).train()
    x, counts = pixels(), 1 + query
    rows = torch.cat([torch.from_numpy(np.flatnonzero(drawings().labels == c)[:counts]) for c in range(way)])
    rows = rows.view(way, counts)
    order = torch.cat([rows[:, 0], rows[:, 1:].flatten()])  # support, then queries
    y = torch.arange(way).repeat_interleave(query)
    z = network(x[order])
    prototypes = torch.stack([z[c : c + 1].mean(0) for c in range(way)])
    theirs = F.cross_entropy(-torch.cdist(z[way:], prototypes).square(), y)
    theirs.backward()
    raw = (x * 255).round().to(torch.uint8)
    support, queries = Batch(raw[order[:way]][None], torch.arange(way)[None]), Batch(raw[order[way:]][None], y[None])
    output = method(Episode(support, queries, torch.ones(1, way, dtype=torch.bool), False))
    output.loss.mean().backward()
    own, plain = (
        torch.cat([p.grad.flatten() for layer in layers for p in layer.parameters() if p.grad is not None])
        for layers in zip(*pairs(network, encoder), strict=True)
    )
    return [
        Same("loss of an episode", float(output.loss.detach()), float(theirs.detach()), 1e-3),
        Same("cosine of its gradients", float(F.cosine_similarity(own, plain, 0)), 1.0, 1e-3),
    ]


def settle(encoder: Any, setting: Setting) -> None:
    """Running statistics of the same drawings: those of a few steps hang on how often a step updates them."""
    for norm in encoder.norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of all batches
    with torch.no_grad():
        for batch in (pixels()[: setting.pick(2000, 100)] * 255).to(torch.uint8).to(setting.device).split(500):
            encoder.train()(batch)
    encoder.eval()


@cache
def held_out() -> Items:
    every = build("tasks", "omniglot").items("train")
    rows = np.flatnonzero((every.labels >= CLASSES) & (every.labels < CLASSES + 100))
    names = every.class_names[CLASSES : CLASSES + 100]
    return Items([every.items[i] for i in rows], every.labels[rows] - CLASSES, names)


def plain_conv4(like: Any) -> nn.Sequential:
    """Conv4 as everybody writes it, with the weights of ours."""
    blocks: list[nn.Module] = []
    for conv in like.convs:
        blocks += [nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1), nn.BatchNorm2d(conv.out_channels)]
        blocks += [nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*blocks, nn.Flatten())
    for own, other in pairs(network, like):
        other.load_state_dict(own.state_dict())
    return network


def copy(network: nn.Sequential, into: Any) -> None:
    for own, other in pairs(network, into):
        own.load_state_dict(other.state_dict())


def pairs(network: nn.Sequential, like: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each layer of ours with that of the plain network."""
    for i, (conv, norm) in enumerate(zip(like.convs, like.norms, strict=True)):
        yield conv, network[4 * i]
        yield norm, network[4 * i + 1]


def flops(way: int, query: int, steps: int) -> float:
    """Conv4 forward and backward on all images of the episodes."""
    network = plain_conv4(build("encoders", ENCODER))
    images = pixels()[: way * (1 + query)]
    return steps * counted(lambda: network(images).sum().backward())
