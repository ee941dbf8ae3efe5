"""CLINC150: queries to a voice assistant, 150 for each of 150 intents in ten domains, and queries out of scope.

Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction", EMNLP 2019,
https://arxiv.org/abs/1909.02027. Licence: CC BY 3.0.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from multifsl.download import Get
from multifsl.errors import BadFile, MultifslError
from multifsl.task import Items, Source, Task, check_split
from multifsl.tasks._files import build, data_file
from multifsl.tasks._official import write_rows
from multifsl.tasks._splits import check_seed, select
from multifsl.tasks._tables import read_texts

OFFICIAL = "https://raw.githubusercontent.com/clinc/oos-eval/master/data"
THIRDS = (1 / 3, 1 / 3, 1 / 3)
DOMAINS = (0.4, 0.2, 0.4)
TURN = ("train", "val", "test")  # whose turn it is to get an out-of-scope query


class Clinc150(Task):
    """CLINC150, its intents dealt by seed, with the out-of-scope queries as unknowns.

    by="intent": a third of the intents each for train, val and test: 50, 50 and 50 of the whole set, the sizes that
        ProtAugment's splits (Dopierre et al., ACL 2021) have. A domain has intents in every split. Its lists of names
        are not used: they need all ten domains.
    by="domain": whole domains are dealt, 40, 20 and 40 % of them: 60, 30 and 60 intents of the whole set. Test intents
        are then of domains never seen in training, which is harder.
    seed: which deal. Another set of domains in the file gives another deal.

    An item is a str. `unknowns` are the queries out of scope, dealt to the three splits in turn: a threshold set on
    val's is tested on others. They are the same kind in each, for they belong to no intent at all.

    Looked for in the folder `text_clinc150`: `data.jsonl`, lines {"text", "label", "domain"}, all ten domains or some
    of them, and `out_of_scope.jsonl`, lines {"text", "part"}, for `unknowns` alone.

        len(Clinc150(by="domain").items("test").class_names)    # 60 of ten domains, 30 of five
    """

    modality = "text"
    source = Source("text_clinc150", "https://github.com/clinc/oos-eval", "CC BY 3.0", 2)

    def __init__(self, *, by: str = "intent", seed: int = 0) -> None:
        if by not in ("intent", "domain"):
            raise MultifslError(f"by must be 'intent' or 'domain', not {by!r}")
        check_seed("clinc150", seed)
        self.by, self.seed = by, seed

    def items(self, split: str) -> Items:
        path = data_file(self.folder("text_clinc150"), "data.jsonl")
        classes = read_texts(path)
        if self.by == "intent":
            names = select(split, classes, seed=self.seed, shares=THIRDS)
        else:
            domains = _domains(path)
            chosen = set(select(split, set(domains.values()), seed=self.seed, shares=DOMAINS))
            names = [name for name in classes if domains[name] in chosen]
        return build({name: classes[name] for name in names})

    def unknowns(self, split: str) -> Sequence[str]:
        path = data_file(self.folder("text_clinc150"), "out_of_scope.jsonl")
        texts = [text for part in read_texts(path, label="part").values() for text in part]
        return texts if check_split(split) == "all" else texts[TURN.index(split) :: len(TURN)]

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        domains = json.loads(get(f"{OFFICIAL}/domains.json").read_text("utf-8"))
        home = {intent: domain for domain, intents in domains.items() for intent in intents}
        parts = json.loads(get(f"{OFFICIAL}/data_full.json").read_text("utf-8"))
        queries = [pair for part in TURN for pair in parts[part]]
        write_rows(folder / "data.jsonl", ({"text": t, "label": name, "domain": home[name]} for t, name in queries))
        strange = [{"text": text, "part": part} for part in TURN for text, _ in parts[f"oos_{part}"]]
        write_rows(folder / "out_of_scope.jsonl", strange)


def _domains(path: Path) -> dict[str, str]:
    """Intent -> its domain."""
    found: dict[str, str] = {}
    for domain, labels in read_texts(path, text="label", label="domain").items():
        for label in dict.fromkeys(label.strip() for label in labels):
            if label in found:
                raise BadFile(f"{path}: intent {label!r} stands in the domains {found[label]!r} and {domain!r}")
            found[label] = domain
    return found
