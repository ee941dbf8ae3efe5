"""Episodic training: one loop, to be read from top to bottom.

Shape letters: T tasks a step.
"""

import contextlib
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multifsl.augment import Augmentation, augmented, check_augment
from multifsl.bank import Bank, Progress, Stream, embed_items, open_data, sampler_of
from multifsl.base_training import BaseClassifier
from multifsl.calibration import calibrate
from multifsl.checkpoint import Run, has_checkpoint, own_weights, run_of, save_run
from multifsl.defaults import is_random, open_encoder
from multifsl.distillation import Imitation
from multifsl.encoder import Encoder, Features
from multifsl.episode import Range
from multifsl.errors import MultifslError, some
from multifsl.evaluation import (
    check_modality,
    episode_accuracies,
    highest,
    learn_base,
    pick_device,
)
from multifsl.functional import accuracy, digest, full_precision
from multifsl.intervals import half_width
from multifsl.leaks import READ_MOST, anchored, equal_pairs, read_contents
from multifsl.method import Method
from multifsl.optim import Average, Optimizer, Schedule, learning_rate, optimizer_of
from multifsl.options import check_arguments
from multifsl.parallel import Processes, Share
from multifsl.registry import build, resolved
from multifsl.run_folder import (
    Metrics,
    Progressed,
    Stopped,
    check_folder,
    open_folder,
    restore,
    save,
    tidy,
    writing,
)
from multifsl.shipped import names_run
from multifsl.task import Items, Joined, Task

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
    optimizer: Optimizer = "adam",
    weight_decay: float = 0.0,
    schedule: Schedule = "cosine",
    warmup: float = 0.0,
    clip: float | None = None,
    ema: float | None = None,
    accumulate: int = 1,
    patience: int | None = None,
    seed: int = 0,
    precision: Literal["float32", "tf32", "bfloat16", "float64"] = "float32",
    compile: bool = False,
    disjoint_groups: bool = False,
    imbalance: float = 0.0,
    skip_small_classes: bool = False,
    freeze_encoder: bool = False,
    augment: Augmentation | None = None,
    teacher: str | Encoder | None = None,
    device: str = "auto",
    data_root: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    report: Any = None,
    progress: Progress | None = None,
) -> Run:
    """Meta-train an encoder and a method on a task's train classes.

    Started by `accelerate launch` or `torchrun`, it shares each step's tasks among the processes; their number does not change
    what is computed (see `multifsl.parallel`).

    For a method of transfer learning (`learns_from = "classes"`) the encoder is trained as a plain classifier of all train
    classes, by batches of way * (shot + query) items of an episode; see `multifsl.base_training`.

    The weights kept are those that did best on validation episodes (5-way, of the val classes, always the same ones), or
    the last ones where the task has no val classes that an episode fits into. Where they are not the last, those stand beside
    them, in `last.safetensors`.

    Args:
        task, encoder, method: spec strings, or built ones (the method always by its spec); the encoder also as "model:NAME" or
            "run:FOLDER", to begin with that of a run.
        out: the run's folder; an existing one is refused unless `resume` or `overwrite`.
        way, shot: a number, or an inclusive range (low, high) drawn anew every step. query: items a class.
        episodes_per_step: T. steps or minutes: how long (1,000 steps where neither is given); with `steps`, a run repeated with
            its seed is the same to the bit on the CPU.
        lr: at its highest. optimizer: "adam", "adamw" or "sgd" (momentum 0.9). schedule, warmup: how lr goes over the run, see
            `multifsl.optim.learning_rate`.
        clip: the longest that the gradient of all weights together may be; a longer one is shortened.
        ema: keep an exponential moving average of the weights, of this decay, such as 0.999; it is what is validated and saved.
        accumulate: in how many micro-batches the T tasks of a step are run, for less memory; T must be a multiple.
        patience: stop after so many validations without a better one.
        precision: "float32"; "tf32" (float32, but an NVIDIA card may round what it multiplies to TF32, in every matrix product and
            convolution of the training); "bfloat16" (the encoder under autocast; distances and losses stay in float32);
            "float64", for checks.
        compile: run the encoder through `torch.compile` while it is trained, for methods that train it and do not adapt it to each
            task. The first steps take longer; results are the same up to rounding.
        disjoint_groups, imbalance, skip_small_classes: see EpisodeSampler.
        freeze_encoder: leave the encoder as it is, and train the method's own weights on embeddings that are made once: a
            hundred times the steps where the encoder is large.
        augment: "photos", "drawings" or "speech", random changes to the training items, see `multifsl.augment`.
        teacher: an encoder that the trained one imitates, such as a larger, pretrained one; see `multifsl.distillation`.
        report: called as report(step, fraction done, {"loss", "accuracy", "episodes_per_second"}) every few steps.
        progress: wraps the reading of the data, such as `rich.progress.track`.

    Raises:
        MultifslError: what is asked for does not fit together, the data are too small for the episodes, or the loss is
            no longer finite. Stopped: by Ctrl-C or SIGTERM, once the state is saved.

    An example: `train("omniglot", "conv4", "prototypical", out="runs/omniglot", way=60, query=5, steps=3000)`
    """
    # ---- what is asked for ----
    check_arguments(train, locals())
    if steps is not None and minutes is not None:
        raise MultifslError("give steps or minutes, not both")
    steps = 1000 if steps is None and minutes is None else steps
    processes = Processes(pick_device(device))
    where = processes.device
    torch.manual_seed(seed)
    data = build("tasks", task, data_root=data_root) if isinstance(task, str) else task
    network = open_encoder(encoder, task=data)
    learner: Method = build("methods", method, encoder=network, way=highest(way))
    check_modality(learner, data)
    check_augment(augment, data.modality)
    if augment is not None and freeze_encoder:
        raise MultifslError(
            "with a frozen encoder embeddings are made once, so that items cannot change: leave augment out"
        )
    if compile:
        _check_compile(learner, freeze_encoder, where)
    shape: dict[str, Any] = {
        "way": way, "shot": shot, "query": query, "seed": seed, "disjoint_groups": disjoint_groups, "imbalance": imbalance,
        "skip_small_classes": skip_small_classes,
    }  # fmt: skip
    settings = {
        "task": resolved(data), "encoder": resolved(network), "method": resolved(learner),
        **shape, "way": _plain(way), "shot": _plain(shot),
        "episodes_per_step": episodes_per_step, "steps": steps, "minutes": minutes, "lr": lr, "optimizer": optimizer,
        "weight_decay": weight_decay, "schedule": schedule, "warmup": warmup, "clip": clip, "ema": ema, "accumulate": accumulate,
        "patience": patience, "precision": precision, "compile": compile, "freeze_encoder": freeze_encoder, "augment": augment,
    }  # fmt: skip
    settings["encoder_from"] = [encoder, digest(network.state_dict())] if names_run(encoder) else None
    if freeze_encoder:
        _check_frozen(learner)
        settings["frozen_encoder"] = digest(network.state_dict())
        if is_random(encoder, network):
            warnings.warn(
                f"{encoder} has random weights, and they are frozen: nothing will have trained it", stacklevel=2
            )
    tutor = None if teacher is None else open_encoder(teacher)
    if tutor is not None:
        _check_teacher(tutor, learner, freeze_encoder)
    settings["teacher"] = None if tutor is None else [resolved(tutor), digest(tutor.state_dict())]
    out = Path(out)

    # ---- data ----
    train_items = data.items("train")
    settings["train_items"] = [len(train_items.labels), train_items.fingerprint()]
    check_folder(out, settings, resume=resume, overwrite=overwrite)
    dealt = _dealt(data)
    try:
        sampler = sampler_of(train_items, **shape)  # says at once what does not fit
    except MultifslError as error:
        counts = "" if dealt is None else f" has {dealt['train']} of your {sum(dealt.values())} classes"
        raise MultifslError(f"the train split{counts}: {error}") from None
    if not resume and processes.first:
        _warn_of_repeats(data, train_items, progress)
    if freeze_encoder:
        learner.encoder = Features(network.dim)  # all that it meets from here on are embeddings
    source = _open(network, learner, train_items, where, precision, progress)
    if len(source.items.labels) != len(train_items.labels):  # unreadable items were left out
        sampler = sampler_of(source.items, **shape)
    lessons = None if tutor is None else _lessons(tutor.to(where), _seen(source), precision, progress)
    validation = _validation_data(data, network, learner, shape, where, precision, progress)

    # ---- model ----
    learner.to(where).train()
    trains_encoder = not freeze_encoder and any(p.requires_grad for p in network.parameters())
    network.published = network.published and not trains_encoder
    by_class = learner.learns_from == "classes"
    n_classes = len(source.items.class_names) if by_class else 0
    model: nn.Module = learner
    if by_class:
        model = BaseClassifier(learner, n_classes, learner.base_head).to(where)
    elif lessons is not None:
        model = Imitation(learner)
    if precision == "float64":
        model.double()
    trained = [p for p in (network if by_class else learner).parameters() if p.requires_grad]
    if not trained:
        raise MultifslError(
            f"{resolved(learner)} on {resolved(network)} has nothing to train; `evaluate` takes it as it is"
        )
    mover = optimizer_of(optimizer, model, lr, weight_decay)
    average = None if ema is None else Average(learner, ema)
    share = Share(sampler, tasks=episodes_per_step, parts=accumulate, rank=processes.rank, size=processes.size)
    processes.wait()  # until all have looked at the folder
    if processes.first:
        open_folder(out, settings, resume=resume)
    else:
        torch.manual_seed(seed + 1_000_003 * processes.rank)  # each draws numbers of its own
    at = Progressed()
    if resume and has_checkpoint(out):
        at = restore(out, model, mover, average, processes)
    processes.wait()
    shared = processes.wrap(model)
    ahead = range(at.step * accumulate, 2**62 if steps is None else steps * accumulate)
    batches = source.stream(share, ahead, share.count, n_classes=n_classes)
    taught = None if lessons is None else lessons.stream(share, ahead, share.count)

    # ---- the loop ----
    metrics = Metrics(out / "metrics.jsonl", keep_through=at.step) if processes.first else None
    began = time.monotonic() - at.seconds
    saved, logged = at.seconds, time.monotonic()
    losses: list[Tensor] = []  # of the steps since the last look
    accuracies: list[Tensor] = []
    row: dict[str, Any] = {}  # of the last look

    def fraction() -> float:
        done: float = at.seconds / (60 * (minutes or 1)) if steps is None else at.step / steps
        return min(1.0, done)

    def finite_loss() -> float:
        """Mean loss since the last look, which waits for the accelerator; an error where it, or a weight, is not finite."""
        each: list[float] = processes.mean(torch.stack(losses)).tolist()  # of a step
        whole = bool(torch.stack([p.detach().isfinite().all() for p in model.parameters()]).all())
        if whole and all(map(math.isfinite, each)):
            return sum(each) / len(each)
        i = next((i for i, loss in enumerate(each) if not math.isfinite(loss)), len(each) - 1)
        step = at.step - len(each) + i
        what = "the weights are not finite after" if math.isfinite(each[i]) else f"the loss is {each[i]} at"
        good = f"; the last good state is in {out}, and would come to the same" if has_checkpoint(out) else ""
        raise MultifslError(
            f"{what} step {step + 1}, whose episodes are EpisodeSampler(..., seed={seed}).tasks({step}, {episodes_per_step}); "
            f"begin anew with a smaller --lr, or with --clip 1{good}"
        )

    validations = VALIDATIONS if steps is None else max(1, min(VALIDATIONS, steps // STEPS_BETWEEN_VALIDATIONS))
    latest = at.best_accuracy  # of the validations; a resumed run shows the best one until its next

    def impatient() -> bool:
        return patience is not None and at.without_better >= patience

    def validate() -> None:
        nonlocal latest
        at.validations += 1
        costly = minutes is not None and at.validating > VALIDATION_SHARE * at.seconds and fraction() < 1
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
        if metrics is not None:
            with writing(out):
                metrics.write({"step": at.step, "val_accuracy": latest, "val_ci95": half_width(scores)})
        at.without_better += 1
        if latest > at.best_accuracy:
            at.best_accuracy, at.best_step, at.without_better = latest, at.step, 0
            at.best = {k: v.detach().clone() for k, v in learner.state_dict().items()}
        at.validating += time.monotonic() - start

    given_up: float = impatient()  # what all processes agree on
    with _interrupts() as interrupted, _tf32(precision == "tf32"), _compiled(network, compile):
        while fraction() < 1 and not given_up:
            for group in mover.param_groups:
                group["lr"] = lr * learning_rate(schedule, warmup, fraction())
            before, parts = processes.buffers(model), list[Tensor]()  # parts: losses of the micro-batches
            learner.begin_step(at.step)
            for part in range(accumulate):
                episodes = next(batches)
                if augment is not None:
                    episodes = augmented(episodes, augment)
                last = part == accumulate - 1
                with nullcontext() if last else processes.without_sync(shared):
                    with torch.autocast(where.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
                        output = shared(episodes) if taught is None else shared(episodes, next(taught))
                    (output.loss.mean() / accumulate).backward()
                parts.append(output.loss.detach().mean())
                accuracies.append(accuracy(output.logits.detach(), episodes.query.y).mean())
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            mover.step()
            mover.zero_grad(set_to_none=True)
            processes.combine(model, before)
            if average is not None:
                average.update(learner, at.step)
            losses.append(torch.stack(parts).mean())
            at.step += 1
            at.seconds, stopped = processes.agree(time.monotonic() - began, bool(interrupted))

            if at.step % LOG_EVERY == 0 or fraction() >= 1:
                row = {
                    "step": at.step,
                    "loss": finite_loss(),
                    "accuracy": float(processes.mean(torch.stack(accuracies)).mean()),
                    "episodes_per_second": episodes_per_step * len(losses) / (time.monotonic() - logged),
                    "lr": mover.param_groups[0]["lr"],
                    "seconds": round(at.seconds, 1),
                }
                if metrics is not None:
                    with writing(out):
                        metrics.write(row)
                if report is not None and processes.first:
                    val_way = validation[1]["way"] if validation else 0
                    seen = {"validation": latest, "best": at.best_accuracy, "val_way": val_way}
                    report(at.step, fraction(), {**row, **seen})
                losses, accuracies, logged = [], [], time.monotonic()
            if fraction() >= (at.validations + 1) / validations:
                if losses:
                    finite_loss()  # weights that are not finite have no accuracy
                with average.in_place_of(learner) if average is not None else nullcontext():
                    validate()
                at.seconds, stopped, given_up = processes.agree(
                    time.monotonic() - began, bool(interrupted or stopped), impatient()
                )
            if stopped or at.seconds - saved > CHECKPOINT_SECONDS:
                if losses:
                    finite_loss()  # else the last good checkpoint stays
                states = processes.gather_states()
                if processes.first:
                    with writing(out):
                        save(out, model, mover, average, at, states)
                saved = at.seconds
            if stopped:
                by = interrupted[0] if interrupted else signal.SIGINT  # of another process
                raise Stopped(f"stopped at step {at.step}; the state is in {out} and goes on by --resume", by)

    if metrics is not None:
        metrics.close()

    # ---- the run ----
    reads = learner.encoder  # the network, or what stands in for a frozen one

    def finish(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put weights into the learner, and complete it; returns what a file holds of them."""
        learner.encoder = reads
        learner.load_state_dict(weights)
        if learner.wants_base:
            learn_base(learner.eval(), _seen(source))
        learner.encoder = network
        return {k: v.clone() for k, v in own_weights(learner).items()}

    ended_with = finish(learner.state_dict() if average is None else average.tensors)
    earlier_is_best = bool(at.best) and at.best_step < at.step
    if earlier_is_best:
        finish(at.best)
    learner.eval()
    result: dict[str, Any] = {
        "seconds": round(at.seconds, 1),
        "threads": torch.get_num_threads(),
        "steps_done": at.step,
        "train_way": str(n_classes) if by_class else _told(way),
        "train_classes": len(source.items.class_names),
    }
    if dealt is not None:
        result["dealt"] = dealt
    if row and tutor is None:
        ways = range(n_classes, n_classes + 1) if by_class else range(sampler.way[0], sampler.way[1] + 1)
        result |= {"loss": row["loss"], "guessing": _no_better(row, ways)}
    if validation is not None and processes.first and learner.takes_embeddings:
        fitting = {key: validation[1][key] for key in ("query", "disjoint_groups", "skip_small_classes")}
        learner.encoder = reads
        with torch.no_grad():
            sure = calibrate(learner, _seen(validation[0]), **fitting)
        learner.encoder = network
        if sure is not None:
            result["calibration"] = sure.to_json()
    if at.best:
        result |= {
            "val_accuracy": at.best_accuracy,
            "val_step": at.best_step,
            "val_episode": validation[1] if validation else None,
        }
    info = {
        **settings,
        "task_at": anchored(settings["task"]),
        "encoder_began": settings["encoder"],
        "processes": processes.size,
        "metrics": result,
    }
    if not processes.first:
        processes.wait()  # until the files are there
        return run_of(out, learner, info)
    with writing(out):
        run = save_run(out, learner, info, last=ended_with if earlier_is_best else None)
        tidy(out)
    processes.wait()
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
    """A list of the signal that asked to stop, Ctrl-C or SIGTERM (of Slurm, or `timeout`), once one did: a step is finished, not
    torn; a second one stops at once."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield seen
        return

    def note(number: int, _frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Within it, an NVIDIA card may round what it multiplies to TF32; what other devices compute stays as it is. The setting is the
    process's, and is put back. (`torch.set_float32_matmul_precision` would be for some CPUs too.)"""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    kinds: list[Any] = [cuda.matmul, cudnn.conv, cudnn.rnn] if on else []  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "tf32"
        yield
    finally:
        for kind, own in zip(kinds, before, strict=True):
            kind.fp32_precision = own


@contextlib.contextmanager
def _compiled(network: Encoder, on: bool) -> Iterator[None]:
    """Within it, an encoder is compiled, in place, so that its weights keep their names."""
    before = network._compiled_call_impl  # torch has no public way back
    if on:
        network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = before


def _check_compile(learner: Method, freeze_encoder: bool, where: torch.device) -> None:
    """Raises MultifslError where the encoder cannot be compiled, or would not be trained."""
    if freeze_encoder:
        raise MultifslError("with a frozen encoder embeddings are made once: leave compile out")
    if learner.learns_from == "episodes" and not learner.takes_embeddings:
        raise MultifslError(
            f"{resolved(learner)} adapts the encoder in every task, and a compiled encoder has no gradients of gradients and no "
            "weights but its own: leave compile out"
        )
    try:
        torch.compile(torch.Tensor.exp)(torch.ones(2, device=where))
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise MultifslError(f"torch.compile does not work here ({first}): leave compile out") from error


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


def _check_teacher(tutor: Encoder, learner: Method, freeze_encoder: bool) -> None:
    """Raises MultifslError where there is nobody to be taught."""
    if freeze_encoder:
        raise MultifslError("a frozen encoder imitates nobody: leave the teacher out")
    if not learner.takes_embeddings or learner.learns_from == "classes":
        raise MultifslError(
            f"{resolved(learner)} is not trained on embeddings of whole episodes, which a teacher needs; metric methods are"
        )
    if tutor.modality != learner.encoder.modality:
        raise MultifslError(
            f"the teacher {resolved(tutor)!r} reads {tutor.modality} items, the encoder {learner.encoder.modality} items"
        )


def _lessons(tutor: Encoder, data: Bank | Items, precision: str, progress: Progress | None) -> Bank:
    """The teacher's embeddings of all train items, less their mean. Raises MultifslError where it cannot read one of them."""
    items = data.items if isinstance(data, Bank) else data
    z, kept = embed_items(tutor, items, progress=progress)
    if len(kept.labels) != len(items.labels):
        raise MultifslError("the teacher cannot read some items that the encoder can; leave them out of the data")
    z = z.double() if precision == "float64" else full_precision(z)
    return Bank(z - z.mean(0), kept)


def _open(
    network: Encoder, learner: Method, items: Items, where: torch.device, precision: str, progress: Progress | None
) -> Bank | Stream:
    """What the learner's encoder reads: decoded items, or, where `Features` stands in for the network, its embeddings."""
    if learner.encoder is network:
        return open_data(network, items, device=where, progress=progress)
    z, kept = embed_items(network.to(where), items, progress=progress)
    return Bank(z.double() if precision == "float64" else z, kept)


def _is_own(data: Task) -> bool:
    """Whether the task's items are the user's own, no published data set."""
    return all(part.source is None for part in (data.parts if isinstance(data, Joined) else (data,)))


def _dealt(data: Task) -> dict[str, int] | None:
    """How many classes of one's own data each split has; None for published ones, whose splits are known."""
    if not _is_own(data):
        return None
    counts = dict.fromkeys(("train", "val", "test"), 0)
    for split in counts:
        with contextlib.suppress(MultifslError):  # a split without a class
            counts[split] = len(data.items(split).class_names)
    return counts


def _warn_of_repeats(data: Task, train: Items, progress: Progress | None) -> None:
    """Warn where one's own train items stand there twice, or among the val items. Above READ_MOST items, nothing is looked for."""
    if not _is_own(data) or len(train.labels) > READ_MOST:
        return
    seen = read_contents(train, data.modality, progress).exact
    pairs = {"train": equal_pairs(seen)}
    splits = {"train": train}
    with contextlib.suppress(MultifslError):  # there are no val items
        splits["val"] = data.items("val")
        pairs["val"] = equal_pairs(read_contents(splits["val"], data.modality, progress).exact, seen)
    for split, found in pairs.items():
        if found:
            where = "other train items" if split == "train" else "train items"
            named = some([f"{str(splits[split].items[i])[-80:]} and {str(train.items[j])[-80:]}" for i, j in found])
            warnings.warn(
                f"{len(found)} of the {len(splits[split].labels)} {split} items are the same as {where} ({named}): take "
                "out one of each, or figures look better than they are",
                stacklevel=3,
            )


def _no_better(row: dict[str, Any], ways: range) -> bool:
    """Whether loss and accuracy are those of one who guesses among so many classes."""
    loss, chance = (sum(map(f, ways)) / len(ways) for f in (math.log, lambda way: 1 / way))
    return bool(row["loss"] > 0.99 * loss and row["accuracy"] < 1.5 * chance)


def _told(value: Range) -> str:
    return str(value) if isinstance(value, int) else f"{value[0]} to {value[1]}"


def _plain(value: Range) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _validation_data(
    data: Task,
    network: Encoder,
    learner: Method,
    train_shape: dict[str, Any],
    where: torch.device,
    precision: str,
    progress: Progress | None,
) -> tuple[Bank | Stream, dict[str, Any]] | None:
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
    return _open(network, learner, items, where, precision, progress), shape
