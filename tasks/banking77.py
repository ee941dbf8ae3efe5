"""BANKING77: 13,083 customers' questions to a bank, in 77 intents.

Casanueva, Temčinas, Gerz, Henderson and Vulić, "Efficient Intent Detection with Dual Sentence Encoders", NLP for
ConvAI 2020, https://arxiv.org/abs/2003.04807. Licence: CC BY 4.0. Class splits: the five of Dopierre, Gravier and
Logerais, "ProtAugment: Unsupervised diverse short-texts paraphrasing for intent detection meta-learning", ACL 2021.
"""

from multifsl.errors import MultifslError
from multifsl.task import Items, Task
from multifsl.tasks._files import build, data_file
from multifsl.tasks._splits import select
from multifsl.tasks._tables import read_texts

FOLDS = (1, 2, 3, 4, 5)


class Banking77(Task):
    """BANKING77 by ProtAugment's class splits: 25, 25 and 27 intents for train, val and test.

    fold: which of the five splits, 1 to 5; papers report the mean over them.

    An item is a str. Eleven questions stand in the data twice, under one intent, so that a query may, rarely, equal a
    support item.

    Looked for in the folder `text_banking77`: `data.jsonl`, lines {"text", "label"}, and `splits/split_0<fold>.json`.

        Banking77(fold=2).items("test").class_names[0]    # an intent such as 'card_arrival'
    """

    modality = "text"

    def __init__(self, *, fold: int = 1) -> None:
        if fold not in FOLDS:
            raise MultifslError(f"banking77 has the folds 1 to 5, not {fold!r}")
        self.fold = fold

    def items(self, split: str) -> Items:
        folder = self.folder("text_banking77")
        classes = read_texts(data_file(folder, "data.jsonl"))
        names = select(split, classes, splits=data_file(folder, f"splits/split_0{self.fold}.json"))
        return build({name: classes[name] for name in names})
