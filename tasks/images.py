"""Your own images: a folder or zip archive with one folder for each class."""

from pathlib import Path

from multifsl.task import Items, Task
from multifsl.tasks._files import build, resolve
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import check_own, select

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class Images(Task):
    """Images of a folder or zip archive that has one folder for each class.

    path: the folder or archive; a relative path is looked for as it is, then under the data root. Folders around the
        class folders are opened as long as each holds one folder only; inside a class folder, files count at any depth.
    splits: which classes train, validate and test: a JSON file of {"train": [...], "val": [...], "test": [...]}, or a
        folder of train.txt, val.txt and test.txt with one class a line. Without, 64, 16 and 20 % of them by `seed`.

    An item is a `Path`, or a `Member` of the archive, which is read in place. Split "all" has every class, named by a
    split or not. Files outside the class folders, hidden ones and those of other suffixes are left out.

        Images("birds.zip").items("all").class_names    # ['blackbird', 'robin', 'wren']

    Raises:
        DataNotFound: there is nothing at `path`.
        MultifslError: `path` is neither folder nor archive; a class without any image; a split that names a class which
            does not exist, or one that another split names too; a split without classes.
    """

    modality = "image"

    def __init__(self, path: str | Path, *, splits: str | Path | None = None, seed: int = 0) -> None:
        check_own("images", path, seed)
        self.path, self.splits, self.seed = path, splits, seed

    @staticmethod
    def suffixes() -> tuple[str, ...]:
        """The endings of the files that it takes."""
        return SUFFIXES

    def items(self, split: str) -> Items:
        classes = class_folders(resolve(self.path, self.data_root), SUFFIXES)
        names = select(split, classes, splits=self.splits, seed=self.seed, data_root=self.data_root)
        return build({name: classes[name] for name in names})
