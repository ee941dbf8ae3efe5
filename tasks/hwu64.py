"""HWU64: 11,036 utterances to a home assistant, in 64 intents of 18 domains.

Liu, Eshghi, Swietojanski and Rieser, "Benchmarking Natural Language Understanding Services for building Conversational
Agents", IWSDS 2019, https://arxiv.org/abs/1903.05566. Licence: CC BY 4.0. Class splits: the five of Dopierre, Gravier
and Logerais, "ProtAugment: Unsupervised diverse short-texts paraphrasing for intent detection meta-learning", ACL 2021.
"""

import json
from pathlib import Path

from multifsl.download import Get
from multifsl.task import Items, Source, Task
from multifsl.tasks._intents import check_fold, fold_items
from multifsl.tasks._official import PROTAUGMENT, write_protaugment_splits, write_rows


class Hwu64(Task):
    """HWU64 by ProtAugment's class splits, which keep domains whole: six of them each for train, val and test.

    fold: which of the five splits, 1 to 5; papers report the mean over them. Domains differ in size, and so do the splits:

        fold    1         2         3         4         5
        intents 16/23/25  30/15/19  24/18/22  20/15/29  25/11/28

    An item is a str, and a class is `domain/intent`. No text stands twice.

    Looked for in the folder `text_hwu64`: `data.jsonl`, lines {"text", "label"}, and `splits/split_0<fold>.json`.

        Hwu64(fold=1).items("train").class_names[0]    # 'alarm/query'
    """

    modality = "text"
    source = Source("text_hwu64", "https://github.com/xliuhw/NLU-Evaluation-Data", "CC BY 4.0", 1)

    def __init__(self, *, fold: int = 1) -> None:
        self.fold = check_fold("hwu64", fold)

    def items(self, split: str) -> Items:
        return fold_items(self.folder("text_hwu64"), self.fold, split)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        # ProtAugment's copy: the 11,036 utterances that its splits are of; the corpus has more
        lines = get(f"{PROTAUGMENT}/HWU64/full.jsonl").read_text("utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        write_rows(folder / "data.jsonl", ({"text": row["sentence"], "label": row["label"]} for row in rows))
        write_protaugment_splits(folder, get, "HWU64")
