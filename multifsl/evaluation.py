"""Evaluation: accuracy over episodes drawn by seed.

Shape letters: T tasks, N ways, Q queries, n items of the split, D embedding width.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multifsl.bank import Bank, Progress, embed_items, sampler_of, select
from multifsl.checkpoint import load_run
from multifsl.defaults import is_random, open_encoder
from multifsl.encoder import Encoder
from multifsl.episode import EpisodeSampler, Range
from multifsl.errors import BadFile, BadItem, MultifslError
from multifsl.functional import accuracy
from multifsl.method import Method
from multifsl.options import check_arguments
from multifsl.registry import build, resolved
from multifsl.task import Items, Task, check_split

DEFAULT_METHOD = "prototypical(distance='cosine')"
BASE_ITEMS = 2000  # of the train classes, for methods that want to see them
CHUNK = 32  # episodes solved together: small enough to stay in the cache, large enough to hide the dispatch


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of a method over episodes.

    accuracy: mean over episodes of the share of right queries, a fraction. ci95: half width of its 95 % interval over episodes
    (normal, 1.96 standard errors), which takes the data set as given.
    """

    task: str
    split: str
    encoder: str
    method: str
    way: Range
    shot: Range
    query: int
    episodes: int
    seed: int
    accuracy: float
    ci95: float
    transductive: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(
    run: Path | str | None = None,
    *,
    task: str | Task | None = None,
    encoder: str | Encoder | None = None,
    method: str | None = None,
    weights: Literal["best", "last"] = "best",
    split: str = "test",
    way: Range = 5,
    shot: Range = 1,
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    batch_size: int = 64,
    device: str = "auto",
    data_root: Path | str | None = None,
    allow_download: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run, or an encoder as it is.

    Args:
        run: a run's folder, or "model:NAME". Its own task is taken unless `task` names another. weights: its "best" or its "last".
        encoder: instead of a run, an encoder without further training. method: the one on top of it, by default
            "prototypical(distance='cosine')". With a run, in the place of its own: of the same name, with the run's weights (such
            as MAML with more steps); of another, on the run's encoder.
        split: "train", "val", "test" or "all". way, shot: a number, or a range (low, high) drawn anew for every 32 episodes.
        disjoint_groups: support and query share no recording, session or drawer. imbalance, skip_small_classes: see EpisodeSampler.
        allow_download: let a run's pretrained encoder be downloaded where it is not on this machine.
        progress: wraps loops, such as `rich.progress.track`.

    Raises:
        MultifslError: what is asked for does not fit together, or the split is too small for it.

    An example, on any folder with one folder of images a class:
    `evaluate(task="images('photos')", encoder="conv4", split="all", shot=5).accuracy`
    """
    check_arguments(evaluate, locals())
    check_split(split)
    begin = time.perf_counter()
    where = pick_device(device)
    trained_on: Any = None
    if run is not None:
        if encoder is not None:
            raise MultifslError("evaluate takes a run or an encoder, not both")
        loaded = load_run(
            run, method=method, way=highest(way), weights=weights, device=where, allow_download=allow_download
        )
        learner, info = loaded.method, loaded.info
        trained_on = info.get("task")
        task = trained_on if task is None else task
        if not isinstance(task, str | Task):
            raise BadFile(f"{run} names no task")
    elif encoder is None or task is None:
        raise MultifslError("evaluate takes a run, or a task and an encoder")
    data = build("tasks", task, data_root=data_root) if isinstance(task, str) else task
    if encoder is not None:
        torch.manual_seed(seed)  # an encoder without published weights starts at random
        network = open_encoder(encoder, task=data)
        if is_random(encoder, network):
            warnings.warn(f"{encoder} has random weights: it was neither trained nor published", stacklevel=2)
        learner = build("methods", method or DEFAULT_METHOD, encoder=network, way=highest(way)).to(where)
        learner.warn_of_random_weights()
    check_modality(learner, data)
    if learner.max_way is not None and highest(way) > learner.max_way:
        raise MultifslError(f"{resolved(learner)} tells at most {learner.max_way} classes apart, not {highest(way)}")
    if learner.wants_base and not learner.saw_base:
        base = data if run is None or trained_on in (None, task) else build("tasks", trained_on, data_root=data_root)
        learn_base(learner.eval(), base.items("train"), progress)
    scores = episode_accuracies(
        learner, data.items(split), way=way, shot=shot, query=query, episodes=episodes, seed=seed,
        disjoint_groups=disjoint_groups, imbalance=imbalance, skip_small_classes=skip_small_classes,
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return Evaluation(
        task=resolved(data), split=split, encoder=resolved(learner.encoder), method=resolved(learner),
        way=way, shot=shot, query=query, episodes=episodes, seed=seed, accuracy=float(scores.mean()),
        ci95=half_width(scores), transductive=learner.transductive, seconds=round(time.perf_counter() - begin, 3),
    )  # fmt: skip


def episode_accuracies(
    method: Method,
    data: Items | Bank,
    *,
    way: Range = 5,
    shot: Range = 1,
    query: int = 15,
    episodes: int = 1000,
    seed: int = 0,
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> np.ndarray:
    """Accuracy of each episode, float64 [episodes], in evaluation mode.

    Items are embedded once, or, for a method that adapts the encoder, decoded once.
    """
    items = data.items if isinstance(data, Bank) else data
    shape: dict[str, Any] = {
        "way": way, "shot": shot, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes,
    }  # fmt: skip
    sampler = sampler_of(items, **shape)  # asked for the impossible, it says so before the long part
    if not method.takes_embeddings:
        bank = (
            data
            if isinstance(data, Bank)
            else Bank.build(method.encoder, items, device=method.encoder.device, progress=progress)
        )
        return solve(method, bank, sampler_of(bank.items, **shape), episodes, progress)
    if isinstance(data, Bank):
        z = method.encoder.embed(data.x, batch_size)
    else:
        z, items = embed_items(method.encoder, data, batch_size=batch_size, progress=progress)
        sampler = sampler_of(items, **shape)
    check_finite(z, items.items)
    return solve(method, Bank(z, items), sampler, episodes, progress)


@torch.inference_mode()
def solve(
    method: Method, bank: Bank, sampler: EpisodeSampler, episodes: int, progress: Progress | None = None
) -> np.ndarray:
    """Accuracy of each episode over a bank of embeddings [n, D], or, for a method that adapts the encoder, of items [n, *]."""
    was_training = method.training
    method.eval()
    run = method.solve_embedded if method.takes_embeddings else method
    out: list[Tensor] = []
    diverged: list[Tensor] = []
    steps: Iterable[int] = range(math.ceil(episodes / CHUNK))
    for step in progress(steps, description="episodes", total=len(steps)) if progress else steps:  # type: ignore[arg-type]
        batch = bank.episodes(sampler.tasks(step, min(CHUNK, episodes - step * CHUNK)))
        logits = run(batch).logits
        out.append(accuracy(logits, batch.query.y))
        diverged.append(logits.isnan().flatten(1).any(1))
    method.train(was_training)
    if count := int(torch.cat(diverged).sum()):
        warnings.warn(
            f"in {count} of {episodes} episodes the adaptation diverged (its answers are not numbers, and count by chance): a "
            "smaller inner learning rate, lr, helps",
            stacklevel=2,
        )
    return torch.cat(out).cpu().double().numpy()


def learn_base(method: Method, data: Items | Bank, progress: Progress | None = None) -> None:
    """Show a method embeddings of some of the train classes' items, BASE_ITEMS at most, evenly spread."""
    bank, items = (data, data.items) if isinstance(data, Bank) else (None, data)
    count = len(items.labels)
    rows = np.unique(np.linspace(0, count - 1, min(count, BASE_ITEMS)).astype(np.int64))
    if bank is not None:
        z = method.encoder.embed(bank.gather(rows))
    else:
        z, _ = embed_items(method.encoder, select(items, rows.tolist()), progress=progress)
    method.learn_base(z)


def check_finite(z: Tensor, items: Sequence[Any]) -> None:
    """Raises BadItem naming the first item whose embedding is not finite."""
    finite = torch.isfinite(z).all(dim=1)
    if not bool(finite.all()):
        position = int((~finite).nonzero()[0])
        name = items.iloc[position] if hasattr(items, "iloc") else items[position]
        raise BadItem(f"the embedding of item {position} ({str(name)[:80]}) is not finite")


def highest(value: Range) -> int:
    """The larger end of a range."""
    return value if isinstance(value, int) else value[1]


def half_width(scores: np.ndarray) -> float:
    """Half width of the 95 % interval of a mean over episodes.

    >>> round(half_width(np.array([0.0, 1.0, 0.0, 1.0])), 3)
    0.566
    """
    return float(1.96 * scores.std(ddof=1) / math.sqrt(len(scores)))


def check_modality(method: Method, task: Task) -> None:
    """An encoder reads one modality, and the task must be of it."""
    if method.encoder.modality != task.modality:
        raise MultifslError(
            f"the encoder {resolved(method.encoder)!r} reads {method.encoder.modality} items, "
            f"but the task {resolved(task)!r} has {task.modality} items"
        )


def pick_device(device: str) -> torch.device:
    """ "auto" is CUDA, else Apple's GPU, else the CPU. Raises MultifslError for a device that is not there."""
    have: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device == "auto":
        return torch.device(next((name for name, there in have.items() if there()), "cpu"))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MultifslError(f"no device {device!r}; known: auto, cpu, cuda, mps") from None
    if chosen.type not in ("cpu", *have) or (chosen.type in have and not have[chosen.type]()):
        raise MultifslError(
            f"the device {device!r} is not there; known here: {', '.join(['auto', 'cpu', *(n for n, t in have.items() if t())])}"
        )
    return chosen
