"""Learns the default calibration of multifsl/calibration.py, and measures it on classes that it was not chosen on.

    MULTIFSL_DATA=... python scripts/calibration_table.py fit        # prints DEFAULT, from the development sets
    MULTIFSL_DATA=... python scripts/calibration_table.py dev        # the table, over the development sets
    MULTIFSL_DATA=... python scripts/calibration_table.py test       # the table, over the others
    MULTIFSL_DATA=... python scripts/calibration_table.py heads      # of several heads, at 5 ways, over one set of each modality

Method: prototypical(distance='cosine') on frozen embeddings; 15 queries a class where the classes have so many items, 1,000
episodes, seed 0 (for `fit`, 200 and seed 1). ECE: expected calibration error, 15 bins of equal width, over all queries of all
episodes, of the method's own softmax and of the calibrated one. Sets: alpha = 0.1. A second argument is a folder where embeddings
are kept as NAME.npz (z, y), and taken from.
"""

import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from multifsl import calibration as cal
from multifsl import metrics
from multifsl.bank import embed_items
from multifsl.defaults import open_encoder
from multifsl.encoder import Features
from multifsl.episode import EpisodeSampler
from multifsl.errors import MultifslError
from multifsl.evaluation import DEFAULT_METHOD
from multifsl.method import EmbeddingMethod
from multifsl.registry import build

SETS = {  # name: encoder, task, split
    "banking_minilm": ("transformer", "banking77", "all"),
    "clinc_minilm": ("transformer", "clinc150", "all"),
    "hwu_minilm": ("transformer", "hwu64", "all"),
    "sc_ge2e": ("ge2e", "speech_commands", "all"),
    "sc_sp": ("model:speakers-prototypical", "speech_commands", "all"),
    "libri_ge2e": ("ge2e", "librispeech(chunk_seconds=1.0)", "all"),
    "libri_sp": ("model:speakers-prototypical", "librispeech(chunk_seconds=1.0)", "all"),
    "arabic_ge2e": ("ge2e", "arabic_speech_commands", "all"),
    "arabic_sp": ("model:speakers-prototypical", "arabic_speech_commands", "all"),
    "omtrain_proto": ("model:omniglot-prototypical", "omniglot", "train"),
    "omtrain_match": ("model:omniglot-matching", "omniglot", "train"),
    "omval_proto": ("model:omniglot-prototypical", "omniglot", "val"),
    "omval_match": ("model:omniglot-matching", "omniglot", "val"),
}
DEV = (
    "banking_minilm",
    "clinc_minilm:first",
    "sc_ge2e",
    "sc_sp",
    "libri_ge2e",
    "libri_sp",
    "omtrain_proto",
    "omtrain_match",
)
TEST = ("clinc_minilm:second", "hwu_minilm", "arabic_ge2e", "arabic_sp", "omval_proto", "omval_match")
EPISODES = ((5, 1), (5, 5), (20, 1), (20, 5))
HEADS = (
    DEFAULT_METHOD, "prototypical", "matching(temperature=0.1)", "ridge(ridge=1.0)", "logistic(c=10.0, iterations=8)", "svm_head",
)  # fmt: skip
ONE_EACH = ("hwu_minilm", "arabic_ge2e", "omval_proto")
ALPHA = 0.1


class Answers(NamedTuple):
    """Of one episode. unit: see `calibration.unit`. held: logits and labels of held-out examples."""

    logits: np.ndarray
    y: np.ndarray
    unit: float
    held: tuple[np.ndarray, np.ndarray]


def embeddings(name: str, kept: Path | None) -> tuple[torch.Tensor, np.ndarray]:
    """z [n, D] and labels [n] of a set, or of a half of its classes."""
    name, _, half = name.partition(":")
    file = None if kept is None else kept / f"{name}.npz"
    if file is not None and file.exists():
        with np.load(file) as content:
            z, y = torch.from_numpy(content["z"]), content["y"]
    else:
        spec, task, split = SETS[name]
        data = build("tasks", task)
        z, items = embed_items(open_encoder(spec, task=data), data.items(split))
        y = items.labels
        if file is not None:
            np.savez(file, z=z.numpy(), y=y)
    if half:
        count = int(y.max()) + 1
        first = np.isin(y, np.random.default_rng(0).permutation(count)[: count // 2])
        chosen = first if half == "first" else ~first
        z, y = z[torch.from_numpy(chosen)], np.unique(y[chosen], return_inverse=True)[1]
    return z, y


def answers(
    z: torch.Tensor, labels: np.ndarray, way: int, shot: int, episodes: int, seed: int, head: str = DEFAULT_METHOD
) -> list[Answers]:
    query = next(q for q in (15, 3, 1) if (np.bincount(labels) >= shot + q).sum() >= way)
    with warnings.catch_warnings(action="ignore"):  # of classes that are too small
        sampler = EpisodeSampler(labels, way=way, shot=shot, query=query, seed=seed, skip_small_classes=True)
    method: EmbeddingMethod = build("methods", head, encoder=Features(z.shape[1])).eval()
    found = []
    for step in range(episodes):
        task = sampler.task(step)
        x, y = z[task.support], torch.from_numpy(task.support_y)
        with torch.inference_mode():
            state = method.adapt(cal.Batch(x, y), torch.ones(way, dtype=torch.bool))
            logits = method.classify(state, z[task.query]).numpy()
        found.append(Answers(logits, task.query_y, cal.unit(method, x, y, way), cal.held_out(method, x, y, way)))
    return found


def fit(kept: Path | None) -> None:
    answered = []
    for name in DEV:
        z, labels = embeddings(name, kept)
        for way, shot in EPISODES:
            each = answers(z, labels, way, shot, 200, 1)
            logits = np.concatenate([a.logits / a.unit for a in each])
            answered.append(cal.Answered(way, shot, logits, np.concatenate([a.y for a in each])))
    print(f"DEFAULT = Calibration(temperature={cal.fit_temperature(answered)})")


def measured(each: list[Answers], way: int, shot: int) -> list[str]:
    """Cells of the table: accuracy, calibration error before and after, coverage, size and empty share of sets."""
    before, after, right, sets, known = [], [], [], [], []
    for a in each:
        t = cal.DEFAULT.at(way, shot) * a.unit
        logits, y = a.held
        if len(y):
            t *= cal.refined(cal.DEFAULT.at(way, shot - 1) * a.unit, logits, y)
        scores = cal.against(cal.softened(logits, t))[np.arange(len(y)), y]
        p = cal.softened(a.logits, t)
        before.append(cal.softened(a.logits, 1.0).max(1))
        after.append(p.max(1))
        right.append(p.argmax(1) == a.y)
        sets.append(cal.prediction_sets(p, scores, ALPHA))
        known.append(a.y)
    hit, inside = np.concatenate(right), np.concatenate(sets)
    error = [metrics.expected_calibration_error(metrics.calibration(np.concatenate(c), hit)) for c in (before, after)]
    size = inside.sum(1)
    coverage = inside[np.arange(len(inside)), np.concatenate(known)].mean()
    return [f"{100 * hit.mean():.1f}", *(f"{e:.3f}" for e in error), f"{100 * coverage:.1f}", f"{size.mean():.2f}",
            f"{100 * (size == 0).mean():.1f}"]  # fmt: skip


def table(names: tuple[str, ...], kept: Path | None, episodes: int) -> None:
    print("| embeddings | way, shot | accuracy | ECE before | ECE after | coverage | mean set | empty |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        z, labels = embeddings(name, kept)
        for way, shot in EPISODES:
            try:
                cells = measured(answers(z, labels, way, shot, episodes, 0), way, shot)
            except MultifslError:  # fewer classes than that
                continue
            print(f"| {name} | {way}, {shot} | {' | '.join(cells)} |", flush=True)


def heads(kept: Path | None, episodes: int) -> None:
    print(
        "| embeddings | head | way, shot | accuracy | ECE before | ECE after | coverage | mean set | empty |\n"
        + "|---" * 9
        + "|"
    )
    for name in ONE_EACH:
        z, labels = embeddings(name, kept)
        for head in HEADS:
            for way, shot in EPISODES[:2]:
                cells = measured(answers(z, labels, way, shot, episodes, 0, head), way, shot)
                print(f"| {name} | `{head}` | {way}, {shot} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    what, kept = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
    if what == "fit":
        fit(kept)
        return
    episodes = int(sys.argv[3]) if len(sys.argv) > 3 else 1000
    if what == "heads":
        heads(kept, episodes)
    else:
        table({"dev": DEV, "test": TEST}[what], kept, episodes)


if __name__ == "__main__":
    main()
