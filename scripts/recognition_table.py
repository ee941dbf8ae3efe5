"""Measures how unknown items are told from known ones, on classes that nothing was chosen on: the table of docs/recognition.md.

    MULTIFSL_DATA=... python scripts/recognition_table.py [--few] [FOLDER [DRAWS [NAME...]]]

A draw: 10 known classes of 5 examples, 15 queries of each, and 15 queries of each of 10 unknown classes, or 150 out-of-scope ones;
300 draws, seed 0. With `--few`, fewer classes, and one example of each, with the cohort and without. AUROC: of known against
unknown queries, within a draw, their mean over the draws, with its 95 % interval; plain: by the largest cosine to the class means.
The rest is of `FewShotClassifier(reject="auto")` with the cohort that comes with the package: the share of unknown queries that it
accepts (median, and the middle half of the draws), how often the interval of `reliability_` holds that share, and how wide it is;
the share of known queries that it refuses, and how often the interval holds that; and how often `verify` accepts a query for a
class that it is not of. FOLDER: where embeddings are kept
(scripts/calibration_table.py).
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from calibration_table import SETS, embeddings
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from multifsl import FewShotClassifier
from multifsl.cohort import FOLDER
from multifsl.defaults import open_encoder
from multifsl.episode import EpisodeSampler
from multifsl.registry import build

TEST = {  # embeddings -> the cohort that comes with their encoder
    "clinc_minilm:second": "minilm",
    "clinc_minilm:second, out of scope": "minilm",
    "arabic_ge2e": "ge2e",
    "arabic_sp": "speakers-prototypical",
    "omval_proto": "omniglot-prototypical",
    "omval_match": "omniglot-matching",
}
SHAPES = ((2, 1), (2, 5), (3, 1), (3, 5), (5, 1), (5, 5), (10, 1), (10, 5))  # ways and shots of `--few`
QUERY, UNKNOWN, OUTSIDE = 15, 10, 150


def out_of_scope(kept: Path | None) -> torch.Tensor:
    """Embeddings [n, D] of CLINC150's queries that are of no intent."""
    file = None if kept is None else kept / "clinc_outside.npz"
    if file is not None and file.exists():
        return torch.from_numpy(np.load(file)["z"])
    encoder, texts = open_encoder("transformer"), build("tasks", "clinc150").unknowns("all")
    z = encoder.embed(encoder.preprocess(list(texts)))
    if file is not None:
        np.savez(file, z=z.numpy())
    return z


def draws(
    name: str, kept: Path | None, count: int, way: int, shot: int
) -> Iterator[tuple[torch.Tensor, np.ndarray, torch.Tensor, np.ndarray, torch.Tensor]]:
    """Examples [way * shot, D], their labels, known queries [15 * way, D], theirs, and unknown queries [150, D]."""
    sets, _, outside = name.partition(", ")
    z, labels = embeddings(sets, kept)
    others = out_of_scope(kept) if outside else None
    sampler = EpisodeSampler(labels, way=way, shot=shot, query=QUERY, seed=0, unknown=0 if outside else UNKNOWN)
    for step in range(count):
        task = sampler.task(step)
        known = task.query_y >= 0
        q = z[task.query]
        unknown = q[~known]
        if others is not None:
            unknown = others[np.random.default_rng([0, step]).choice(len(others), OUTSIDE, replace=False)]
        yield z[task.support], task.support_y, q[known], task.query_y[known], unknown


def measured(
    name: str, kept: Path | None, count: int, way: int = 10, shot: int = 5, *, few: bool = False, alone: bool = False
) -> str:
    """A row of the table, or of that of few classes; `alone`: without the cohort."""
    cohort = None if alone else load_file(FOLDER / f"{TEST[name]}.safetensors")["cohort"].float().numpy()
    rows = []
    for x, y, known, known_y, unknown in draws(name, kept, count, way, shot):
        model = FewShotClassifier(reject="auto").fit(x.numpy(), y, background=cohort)
        scores, plain = [], FewShotClassifier(reject_by="cosine").fit(x.numpy(), y)
        both = torch.cat([known, unknown]).numpy()
        scores, is_known = model.score_samples(both), np.arange(len(both)) < len(known)
        accepted = scores >= model.threshold_
        found = model.reliability_
        rejection = model._rejection(model._now)
        claims = rejection.score(known).numpy() >= rejection.claim
        claims[np.arange(len(known)), known_y] = False
        realised, refused = accepted[~is_known].mean(), 1 - accepted[is_known].mean()
        assert found.false_accept is not None
        told = found.false_reject is not None and found.false_reject.low <= refused <= found.false_reject.high
        rows.append(
            (
                roc_auc_score(is_known, plain.score_samples(both)),
                roc_auc_score(is_known, scores),
                realised,
                found.false_accept.low <= realised <= found.false_accept.high,
                found.false_accept.high - found.false_accept.low,
                refused,
                told,
                claims.sum() / (len(known) * (way - 1)),
            )
        )
    table = np.array(rows, dtype=float)
    mean, interval = table.mean(0), 1.96 * table.std(0, ddof=1) / len(table) ** 0.5
    low, middle, high = np.quantile(table[:, 2], (0.25, 0.5, 0.75))
    if few:
        return (
            f"| {name} | {way}, {shot} | {'no' if alone else 'yes'} | {mean[1]:.3f} | {middle:.1%} ({low:.1%} to {high:.1%}) "
            f"| {mean[2]:.1%} | {mean[3]:.0%}, {mean[4]:.3f} | {mean[5]:.1%} |"
        )
    return (
        f"| {name} | {mean[0]:.3f} ± {interval[0]:.3f} | {mean[1]:.3f} ± {interval[1]:.3f} "
        f"| {middle:.1%} ({low:.1%} to {high:.1%}) | {mean[3]:.0%}, {mean[4]:.3f} | {mean[5]:.1%} | {mean[6]:.0%} | {mean[7]:.1%} |"
    )


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--few", action="store_true")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("draws", nargs="?", type=int, default=300)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    names = given.names or [name for name in TEST if not given.few or "out of scope" not in name]
    assert all(name.partition(":")[0].partition(",")[0] in SETS for name in names)
    if given.few:
        heads = (
            "embeddings",
            "way, shot",
            "cohort",
            "AUROC",
            "unknown accepted",
            "mean",
            "interval holds, width",
            "known refused",
        )
    else:
        heads = ("embeddings", "AUROC, plain", "AUROC", "unknown accepted", "interval holds, width", "known refused",
                 "interval holds", "false claims")  # fmt: skip
    print("| " + " | ".join(heads) + " |\n" + "|---" * 8 + "|")
    for name in names:
        if not given.few:
            print(measured(name, given.folder, given.draws), flush=True)
            continue
        for way, shot in SHAPES:
            for alone in (False, True):
                print(measured(name, given.folder, given.draws, way, shot, few=True, alone=alone), flush=True)


if __name__ == "__main__":
    main()
