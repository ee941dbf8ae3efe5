"""Your own texts: a JSON lines, CSV or TSV file with a text and a label in each row."""

from pathlib import Path

from multifsl.task import Items, Task
from multifsl.tasks._files import build, resolve
from multifsl.tasks._splits import check_own, select
from multifsl.tasks._tables import CSV, JSON_LINES, read_texts


class Texts(Task):
    """Labelled texts of one file: JSON lines (.jsonl, .ndjson, .json), .csv or .tsv, in UTF-8.

    path: the file; a relative path is looked for as it is, then under the data root.
    text, label: the columns (JSON keys) of the text and of its class; others are left alone.
    splits: which classes train, validate and test: a JSON file of {"train": [...], "val": [...], "test": [...]}, or a
        folder of train.txt, val.txt and test.txt with one class a line. Without, 64, 16 and 20 % of them by `seed`.

    An item is the text as it stands in the file. Spaces around a label are dropped; JSON labels may be whole numbers.

        Texts("tickets.csv", text="body", label="queue").items("train").items[0]    # 'I cannot log in'

    Raises:
        DataNotFound: there is nothing at `path`.
        BadFile: a line that is not JSON, CSV or UTF-8, or whose text or label is empty; says which.
        MultifslError: a column that is not there; a split that names a class which does not exist, or one that another
            split names too; a split without classes.
    """

    modality = "text"

    def __init__(
        self,
        path: str | Path,
        *,
        text: str = "text",
        label: str = "label",
        splits: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        check_own("texts", path, seed)
        self.path, self.text, self.label, self.splits, self.seed = path, text, label, splits, seed

    @staticmethod
    def suffixes() -> tuple[str, ...]:
        """The endings of the files that it takes."""
        return (*JSON_LINES, *CSV)

    def items(self, split: str) -> Items:
        classes = read_texts(resolve(self.path, self.data_root), self.text, self.label)
        names = select(split, classes, splits=self.splits, seed=self.seed, data_root=self.data_root)
        return build({name: classes[name] for name in names})
