"""Compares the method that is chosen on the examples (multifsl/automatic.py) with the default, on frozen embeddings.

    MULTIFSL_DATA=... python scripts/automatic_table.py dev     # the sets on which candidates and rule were chosen
    MULTIFSL_DATA=... python scripts/automatic_table.py test    # the others: the table of docs/recognition.md

Both meet the same episodes, of seed 0 and 15 queries a class, or as many as the data have. A second argument is a folder where
embeddings are kept as NAME.npz (z, y), and taken from; then come parts of names of sets, to measure these alone.
"""

import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from calibration_table import embeddings

from multifsl.automatic import choose
from multifsl.encoder import Features
from multifsl.episode import Batch, EpisodeSampler
from multifsl.evaluation import DEFAULT_METHOD
from multifsl.functional import accuracy
from multifsl.intervals import difference
from multifsl.method import Method
from multifsl.registry import build

SETS = {
    "dev": ("banking_minilm", "clinc_minilm:first", "sc_ge2e", "sc_sp", "omtrain_proto"),
    "test": ("clinc_minilm:second", "hwu_minilm", "arabic_ge2e", "arabic_sp", "omval_proto"),
}
# way, shot, episodes: fewer where a choice takes long
EPISODES = ((5, 2, 200), (5, 5, 200), (5, 10, 200), (5, 20, 200), (20, 2, 200), (20, 5, 50))


def right(method: Method, support: Batch, queries: Batch, way: int) -> float:
    """Accuracy."""
    state = method.adapt(support, torch.ones(way, dtype=torch.bool))
    return float(accuracy(method.classify(state, queries.x), queries.y))


def row(z: torch.Tensor, labels: np.ndarray, way: int, shot: int, episodes: int) -> str | None:
    """One row of the table without the set's name; None where the data are too few."""
    counts = np.bincount(labels)
    query = next((q for q in (15, 10, 2) if (counts >= shot + q).sum() >= way), None)
    if query is None:
        return None
    with warnings.catch_warnings(action="ignore"):  # of classes that are too small
        sampler = EpisodeSampler(labels, way=way, shot=shot, query=query, skip_small_classes=True)
    features, results, found = Features(z.shape[1]), [], Counter[str]()
    default = build("methods", DEFAULT_METHOD, encoder=features)
    for step in range(episodes):
        task = sampler.task(step)
        support = Batch(z[task.support], torch.from_numpy(task.support_y))
        queries = Batch(z[task.query], torch.from_numpy(task.query_y))
        chosen = choose(features, z[task.support], support.y, way).method
        found[type(chosen).__name__.lower()] += 1
        results.append([right(method, support, queries, way) for method in (chosen, default)])
    auto, plain = 100 * np.array(results).T
    gap = difference(auto, plain, None)
    shares = ", ".join(f"{name} {100 * count / episodes:.0f} %" for name, count in found.most_common())
    return f"{way} | {shot} | {episodes} | {plain.mean():.1f} | {auto.mean():.1f} | {gap.mean:+.2f} ± {gap.ci95:.2f} | {shares}"


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    kept = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    print("| set | way | shot | episodes | default, % | auto, % | difference | chosen |\n" + "|---" * 8 + "|")
    for name in SETS[sys.argv[1]]:
        if sys.argv[3:] and not any(part in name for part in sys.argv[3:]):
            continue
        z, labels = embeddings(name, kept)
        for way, shot, episodes in EPISODES:
            line = row(z, labels, way, shot, episodes)
            if line is not None:
                print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
