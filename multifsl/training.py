"""Episodic training: one loop, to be read from top to bottom.

Shape letters: T tasks a step.
"""

import contextlib
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multifsl.bank import Bank, Progress, Stream, embed_items, open_data, sampler_of
from multifsl.base_training import BaseClassifier
from multifsl.checkpoint import Run, save_run
from multifsl.defaults import open_encoder
from multifsl.encoder import Encoder, Features
from multifsl.episode import Range
from multifsl.errors import MultifslError
from multifsl.evaluation import (
    check_modality,
    check_way,
    episode_accuracies,
    half_width,
    highest,
    learn_base,
    pick_device,
)
from multifsl.functional import accuracy, digest
from multifsl.method import Method
from multifsl.registry import build, resolved
from multifsl.run_folder import Metrics, Progressed, check_folder, checkpoint_of, open_folder, restore, save
from multifsl.task import Items, Task

LOG_EVERY = 20  # steps between looks at the loss; each look waits for the accelerator
CHECKPOINT_SECONDS = 60.0
VALIDATIONS = 12  # spread evenly over a run
STEPS_BETWEEN_VALIDATIONS = 50  # at least, in a run given in steps
VALIDATION_EPISODES = 400
COSTLY_VALIDATION_EPISODES = 100  # where each runs an inner loop through the encoder, or many rounds over its queries
VALIDATION_SHARE = 0.25  # of the time of a run given in minutes: beyond, a validation is left out, but for the last
VALIDATION_SEED = 2**31 - 1  # not one that people pick: these episodes choose the weights


def train(
    task: str | Task,
    encoder: str | Encoder,
    method: str = "prototypical",
    *,
    out: Path | str,
    way: Range = 5,
    shot: Range = 1,
    query: int = 15,
    episodes_per_step: int = 1,
    steps: int | None = None,
    minutes: float | None = None,
    lr: float = 1e-3,
    seed: int = 0,
    precision: str = "float32",
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    freeze_encoder: bool = False,
    device: str = "auto",
    data_root: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Any = None,
    progress: Progress | None = None,
) -> Run:
    """Meta-train an encoder and a method on a task's train classes; Adam, learning rate falling to 0 along a cosine.

    For a method of transfer learning (`learns_from = "classes"`) the encoder is trained as a plain classifier of all train
    classes, by batches of way * (shot + query) items of an episode; see `multifsl.base_training`.

    The weights kept are those that did best on validation episodes (5-way, of the val classes, always the same ones), or
    the last ones where the task has no val classes that an episode fits into.

    Args:
        task, encoder, method: spec strings, or built ones (the method always by its spec).
        out: the run's folder; an existing one is refused unless `resume` or `overwrite`.
        way, shot: a number, or an inclusive range (low, high) drawn anew every step. query: items a class.
        episodes_per_step: T. steps or minutes: how long (1,000 steps where neither is given); with `steps`, a run repeated with
            its seed is the same to the bit on the CPU.
        precision: "float32", or "bfloat16" (the encoder under autocast; distances and losses stay in float32).
        disjoint_groups, imbalance, skip_small_classes: see EpisodeSampler.
        freeze_encoder: leave the encoder as it is, and train the method's own weights on embeddings that are made once: a
            hundred times the steps where the encoder is large.
        report: called as report(step, fraction done, {"loss", "accuracy", "episodes_per_second"}) every few steps.
        progress: wraps the reading of the data, such as `rich.progress.track`.

    Raises:
        MultifslError: what is asked for does not fit together, the data are too small for the episodes, or the loss is
            no longer finite.

    An example: `train("omniglot", "conv4", "prototypical", out="runs/omniglot", way=60, query=5, steps=3000)`
    """
    # ---- what is asked for ----
    if steps is not None and minutes is not None:
        raise MultifslError("give steps or minutes, not both")
    steps = 1000 if steps is None and minutes is None else steps
    if (steps is not None and steps < 1) or (minutes is not None and not 0 < minutes < math.inf):
        raise MultifslError("steps and minutes must be numbers above 0")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MultifslError("this version trains in one process; start it without torchrun or accelerate launch")
    check_way(way)
    if episodes_per_step < 1:
        raise MultifslError(f"episodes_per_step must be at least 1, not {episodes_per_step}")
    if not 0 < lr < math.inf:
        raise MultifslError(f"lr must be a number above 0, not {lr}")
    if precision not in ("float32", "bfloat16"):
        raise MultifslError(f"no precision {precision!r}; known: float32, bfloat16")
    where = pick_device(device)
    torch.manual_seed(seed)
    data = build("tasks", task, data_root=data_root) if isinstance(task, str) else task
    network = open_encoder(encoder, task=data)
    learner: Method = build("methods", method, encoder=network, way=highest(way))
    check_modality(learner, data)
    shape: dict[str, Any] = {
        "way": way, "shot": shot, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes,
    }  # fmt: skip
    settings = {
        "task": resolved(data), "encoder": resolved(network), "method": resolved(learner),
        **shape, "way": _plain(way), "shot": _plain(shot),
        "episodes_per_step": episodes_per_step, "steps": steps, "minutes": minutes, "lr": lr, "precision": precision,
        "freeze_encoder": freeze_encoder,
    }  # fmt: skip
    if freeze_encoder:
        _check_frozen(learner)
        settings["frozen_encoder"] = digest(network.state_dict())
        if isinstance(encoder, str) and not network.pretrained:
            warnings.warn(
                f"{encoder} has random weights, and they are frozen: nothing will have trained it", stacklevel=2
            )
    out = Path(out)

    # ---- data ----
    train_items = data.items("train")
    check_folder(out, settings, resume=resume, overwrite=overwrite)
    sampler = sampler_of(train_items, **shape)  # says at once what does not fit
    if freeze_encoder:
        learner.encoder = Features(network.dim)  # all that it meets from here on are embeddings
    source = _open(network, learner, train_items, where, progress)
    if len(source.items.labels) != len(train_items.labels):  # unreadable items were left out
        sampler = sampler_of(source.items, **shape)
    validation = _validation_data(data, network, learner, shape, where, progress)

    # ---- model ----
    learner.to(where).train()
    trains_encoder = not freeze_encoder and any(p.requires_grad for p in network.parameters())
    network.published = network.published and not trains_encoder
    by_class = learner.learns_from == "classes"
    n_classes = len(source.items.class_names) if by_class else 0
    model = BaseClassifier(learner, n_classes, learner.base_head).to(where) if by_class else learner
    trained = [p for p in (network if by_class else learner).parameters() if p.requires_grad]
    if not trained:
        raise MultifslError(
            f"{resolved(learner)} on {resolved(network)} has nothing to train; `evaluate` takes it as it is"
        )
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    open_folder(out, settings, resume=resume)
    at = Progressed()
    if resume and checkpoint_of(out).exists():
        at = restore(checkpoint_of(out), model, optimizer)
    batches = source.stream(sampler, range(at.step, steps or 2**62), episodes_per_step, n_classes=n_classes)

    # ---- the loop ----
    metrics = Metrics(out / "metrics.jsonl", keep_through=at.step)
    began = time.monotonic() - at.seconds
    saved = logged = time.monotonic()
    losses: list[Tensor] = []
    accuracies: list[Tensor] = []

    def fraction() -> float:
        return at.step / steps if steps else min(1.0, at.seconds / (60 * (minutes or 1)))

    def finite_loss() -> float:
        """Mean loss since the last look, which waits for the accelerator; an error where it is not finite."""
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            good = f"; the last good state is in {out} and goes on by --resume" if checkpoint_of(out).exists() else ""
            raise MultifslError(
                f"the loss is {loss} between steps {at.step - len(losses) + 1} and {at.step} (seed {seed}); "
                f"a smaller --lr often helps{good}"
            )
        return loss

    validations = VALIDATIONS if steps is None else max(1, min(VALIDATIONS, steps // STEPS_BETWEEN_VALIDATIONS))
    validating = 0.0  # seconds
    latest = at.best_accuracy  # of the validations; a resumed run shows the best one until its next

    def validate() -> None:
        nonlocal latest, validating
        at.validations += 1
        costly = minutes is not None and validating > VALIDATION_SHARE * at.seconds and fraction() < 1
        if validation is None or costly:
            return
        start = time.monotonic()
        held_out, val_shape = validation
        judge = learner
        # Fine-tuning anew for every episode would take longer than the training.
        if by_class and not learner.takes_embeddings:
            judge = build("methods", "prototypical(distance='cosine')", encoder=network).to(where)
        if judge.wants_base:
            learn_base(judge, _seen(source))
        cheap = judge.takes_embeddings and not judge.transductive
        episodes = VALIDATION_EPISODES if cheap else COSTLY_VALIDATION_EPISODES
        with warnings.catch_warnings(action="ignore"):  # said when the run began
            scores = episode_accuracies(judge, held_out, episodes=episodes, seed=VALIDATION_SEED, **val_shape)
        latest = float(scores.mean())
        metrics.write({"step": at.step, "val_accuracy": latest, "val_ci95": half_width(scores)})
        if scores.mean() > at.best_accuracy:
            at.best_accuracy, at.best_step = float(scores.mean()), at.step
            at.best = {k: v.detach().clone() for k, v in learner.state_dict().items()}
        validating += time.monotonic() - start

    with _interrupts() as interrupted:
        while fraction() < 1:
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * fraction()))
            episodes = next(batches)
            with torch.autocast(where.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                output = model(episodes)
            output.loss.mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(output.loss.detach().mean())
            accuracies.append(accuracy(output.logits.detach(), episodes.query.y).mean())
            at.step += 1
            at.seconds = time.monotonic() - began

            if at.step % LOG_EVERY == 0 or fraction() >= 1:
                row = {
                    "step": at.step,
                    "loss": finite_loss(),
                    "accuracy": float(torch.stack(accuracies).mean()),
                    "episodes_per_second": episodes_per_step * len(losses) / (time.monotonic() - logged),
                    "seconds": round(at.seconds, 1),
                }
                metrics.write(row)
                if report is not None:
                    val_way = validation[1]["way"] if validation else 0
                    seen = {"validation": latest, "best": at.best_accuracy, "val_way": val_way}
                    report(at.step, fraction(), {**row, **seen})
                losses, accuracies, logged = [], [], time.monotonic()
            if fraction() >= (at.validations + 1) / validations:
                if losses:
                    finite_loss()  # weights that are not finite have no accuracy
                validate()
                at.seconds = time.monotonic() - began
            if interrupted or time.monotonic() - saved > CHECKPOINT_SECONDS:
                if losses:
                    finite_loss()  # else the last good checkpoint stays
                save(checkpoint_of(out), model, optimizer, at)
                saved = time.monotonic()
            if interrupted:
                raise MultifslError(f"stopped at step {at.step}; the state is in {out} and goes on by --resume")

    # ---- the run ----
    if at.best:
        learner.load_state_dict(at.best)
    if learner.wants_base:
        learn_base(learner.eval(), _seen(source))
    learner.encoder = network
    learner.eval()
    result: dict[str, Any] = {
        "seconds": round(at.seconds, 1),
        "steps_done": at.step,
        "train_classes": len(source.items.class_names),
    }
    if at.best:
        result |= {
            "val_accuracy": at.best_accuracy,
            "val_step": at.best_step,
            "val_episode": validation[1] if validation else None,
        }
    run = save_run(out, learner, {**settings, "metrics": result})
    checkpoint_of(out).unlink(missing_ok=True)
    return run


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the system; for processes that only train.

    Tensors above 32 MiB are otherwise mapped anew, page by page, at every step: a 60-way Omniglot step in float32 takes
    3.4 times as long. It holds for the whole process, so it is not for libraries to do; the command line does.
    Elsewhere: no effect.
    """
    if sys.platform == "linux":
        import ctypes

        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            trim_threshold, mmap_max = -1, -4
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, 2**31 - 1)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C was pressed: a step is finished, not torn; a second one stops at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield seen
        return

    def note(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _seen(source: Bank | Stream) -> Bank | Items:
    return source.items if isinstance(source, Stream) else source


def _check_frozen(learner: Method) -> None:
    """Raises MultifslError for a method that cannot be trained on the embeddings of a frozen encoder."""
    if learner.learns_from == "classes":
        raise MultifslError(f"{resolved(learner)} trains nothing but the encoder; it cannot be frozen")
    if not learner.takes_embeddings:
        raise MultifslError(
            f"{resolved(learner)} adapts the encoder in every task; with the encoder frozen, take trainable='head'"
        )
    if not any(p.requires_grad for name, p in learner.named_parameters() if not name.startswith("encoder.")):
        raise MultifslError(
            f"{resolved(learner)} with its encoder frozen has nothing to train; `evaluate` takes it as it is"
        )


def _open(
    network: Encoder, learner: Method, items: Items, where: torch.device, progress: Progress | None
) -> Bank | Stream:
    """What the learner's encoder reads: decoded items, or, where `Features` stands in for the network, its embeddings."""
    if learner.encoder is network:
        return open_data(network, items, device=where, progress=progress)
    return Bank(*embed_items(network.to(where), items, progress=progress))


def _plain(value: Range) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _validation_data(
    data: Task,
    network: Encoder,
    learner: Method,
    train_shape: dict[str, Any],
    where: torch.device,
    progress: Progress | None,
) -> tuple[Bank | Items, dict[str, Any]] | None:
    """The val items and the shape of their episodes; None, with a warning, where there are none that fit."""
    try:
        items = data.items("val")
        shot = train_shape["shot"]
        way = min(5, learner.max_way or 5, len(items.class_names) if items.sources is None else 5)
        if way < 2:
            raise MultifslError(f"the val split has {len(items.class_names)} of the 2 classes that an episode needs")
        fixed = {"way": way, "shot": shot if isinstance(shot, int) else shot[0]}
        shape = {k: v for k, v in {**train_shape, **fixed}.items() if k != "seed"}
        sampler_of(items, **shape)
    except MultifslError as error:
        warnings.warn(f"no validation, so the last weights will be kept: {error}", stacklevel=3)
        return None
    return _seen(_open(network, learner, items, where, progress)), shape
