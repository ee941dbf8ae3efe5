"""BANKING77: 13,083 customers' questions to a bank, in 77 intents.

Casanueva, Temčinas, Gerz, Henderson and Vulić, "Efficient Intent Detection with Dual Sentence Encoders", NLP for
ConvAI 2020, https://arxiv.org/abs/2003.04807. Licence: CC BY 4.0. Class splits: the five of Dopierre, Gravier and
Logerais, "ProtAugment: Unsupervised diverse short-texts paraphrasing for intent detection meta-learning", ACL 2021.
"""

import csv
from io import StringIO
from pathlib import Path

from multifsl.download import Get
from multifsl.task import Items, Source, Task
from multifsl.tasks._intents import check_fold, fold_items
from multifsl.tasks._official import write_protaugment_splits, write_rows

OFFICIAL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"


class Banking77(Task):
    """BANKING77 by ProtAugment's class splits: 25, 25 and 27 intents for train, val and test.

    fold: which of the five splits, 1 to 5; papers report the mean over them.

    An item is a str. Eleven questions stand in the data twice, under one intent, so that a query may, rarely, equal a
    support item.

    Looked for in the folder `text_banking77`: `data.jsonl`, lines {"text", "label"}, and `splits/split_0<fold>.json`.

        Banking77(fold=2).items("test").class_names[0]    # an intent such as 'card_arrival'
    """

    modality = "text"
    source = Source("text_banking77", "https://github.com/PolyAI-LDN/task-specific-datasets", "CC BY 4.0", 1)

    def __init__(self, *, fold: int = 1) -> None:
        self.fold = check_fold("banking77", fold)

    def items(self, split: str) -> Items:
        return fold_items(self.folder("text_banking77"), self.fold, split)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        tables = [get(f"{OFFICIAL}/{part}.csv").read_bytes().decode("utf-8") for part in ("train", "test")]
        rows = [row for table in tables for row in csv.DictReader(StringIO(table, newline=""))]
        write_rows(folder / "data.jsonl", ({"text": row["text"], "label": row["category"]} for row in rows))
        write_protaugment_splits(folder, get, "BANKING77")
