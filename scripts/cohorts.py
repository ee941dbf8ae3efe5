"""Makes the cohorts that come with the package, `multifsl/cohorts/NAME.safetensors`, of the sets that defaults are chosen on.

    MULTIFSL_DATA=... python scripts/cohorts.py [NAME...]

Texts: a third each of banking77, hwu64 and 37 of CLINC150's intents (seed 0), without texts that the other intents have too.
Speech: half each of Speech Commands and LibriSpeech in chunks of a second. Drawings: Omniglot's train characters. Photos:
CIFAR-FS's train classes. 1,000 items (500 photos, whose embeddings are long), seed 0, in float16.
"""

import sys

import numpy as np
import torch
from safetensors.torch import save_file

from multifsl.bank import embed_items, select
from multifsl.cohort import FOLDER
from multifsl.defaults import open_encoder
from multifsl.functional import digest
from multifsl.registry import build
from multifsl.task import Items

INTENTS = np.random.default_rng(0).permutation(75)[
    :37
]  # of CLINC150, for choosing defaults; the others are for the figures
TEXT, SPEECH = ("banking77", "hwu64", "clinc150"), ("speech_commands", "librispeech(chunk_seconds=1.0)")
COHORTS = {  # name -> encoder, tasks, split, items
    "minilm": ("transformer", TEXT, "all", 999),
    "ge2e": ("ge2e", SPEECH, "all", 1000),
    "speakers-prototypical": ("model:speakers-prototypical", SPEECH, "all", 1000),
    "omniglot-prototypical": ("model:omniglot-prototypical", ("omniglot",), "train", 1000),
    "omniglot-matching": ("model:omniglot-matching", ("omniglot",), "train", 1000),
    "efficientnet_lite0": ("efficientnet_lite0", ("cifar_fs",), "train", 500),
}


def drawn(task: str, split: str, count: int, rng: np.random.Generator) -> Items:
    """So many items of a split, without those that figures are measured on."""
    items = build("tasks", task).items(split)
    free = np.ones(len(items.labels), dtype=bool)
    if task == "clinc150":
        free = np.isin(items.labels, INTENTS)
    elif task == "hwu64":
        clinc = set(build("tasks", "clinc150").items("all").items)
        free = np.array([text not in clinc for text in items.items])
    return select(items, np.sort(rng.choice(np.flatnonzero(free), count, replace=False)).tolist())


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or COHORTS:
        spec, tasks, split, count = COHORTS[name]
        encoder, rng = open_encoder(spec, task=build("tasks", tasks[0])), np.random.default_rng(0)
        parts = [embed_items(encoder, drawn(task, split, count // len(tasks), rng))[0] for task in tasks]
        cohort = torch.cat(parts)[torch.from_numpy(rng.permutation(sum(map(len, parts))))]
        note = {"encoder": spec, "digest": digest(encoder.state_dict()), "items": f"{split} of {', '.join(tasks)}"}
        save_file({"cohort": cohort.half().contiguous()}, FOLDER / f"{name}.safetensors", note)
        print(name, list(cohort.shape), flush=True)


if __name__ == "__main__":
    main()
