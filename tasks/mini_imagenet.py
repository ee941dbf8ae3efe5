"""miniImageNet: 600 photos of each of 100 ImageNet classes.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning", NIPS 2016. Class split
and lists of images: Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017,
https://github.com/twitter-research/meta-learning-lstm. Images: ImageNet, under its own terms of access.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from multifsl.errors import BadFile, DataNotFound
from multifsl.task import Items, Source, Task
from multifsl.tasks._files import File, build, contents, data_file, folder_or_zip, some
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import listed
from multifsl.tasks._tables import read_texts

COUNTS = {"train": 64, "val": 16, "test": 20}
SUFFIXES = (".jpg", ".jpeg", ".png")


class MiniImageNet(Task):
    """miniImageNet by the split of Ravi and Larochelle: 64, 16 and 20 classes for train, val and test.

    An item is a `Path`, or a `Member` of a zip archive; a class is named by its WordNet id, `n01532829`. Encoders that take
    an image size get 84, the papers' (the shorter side is scaled, the middle cut out). An encoder that was trained on
    ImageNet has seen all of these classes: what it reaches here says nothing of new ones.

    Looked for in the folder `mini_imagenet`, in one of two layouts, each part as a folder or a zip archive:
    `train.csv`, `val.csv` and `test.csv` with the columns filename and label, and `images`; or `train`, `val` and `test`
    with a folder for each class.

        len(MiniImageNet().items("test").class_names)    # 20
    """

    modality = "image"
    hints: ClassVar[dict[str, Any]] = {"channels": 3, "image_size": 84}
    source = Source(
        folder="mini_imagenet",
        page="https://github.com/twitter-research/meta-learning-lstm",
        licence="ImageNet's terms of access",
        by_hand="ask for access at https://www.image-net.org, and put the images, with train.csv, val.csv and test.csv, into the "
        "folder mini_imagenet",
    )

    def items(self, split: str) -> Items:
        folder = self.folder("mini_imagenet")
        by_list = (folder / "train.csv").is_file()
        parts = {part: _listed_names(folder, part) if by_list else _class_files(folder, part) for part in COUNTS}
        classes: dict[str, Collection[Any]] = {}
        for part, found in parts.items():
            twice = [name for name in found if name in classes]
            if twice:
                raise BadFile(f"{folder}: {part} shares classes with another split: {some(twice)}")
            if len(found) != COUNTS[part]:
                raise BadFile(f"{folder}: {part} has {len(found)} classes; miniImageNet's has {COUNTS[part]}")
            classes.update(found)
        chosen = {name: classes[name] for name in listed(split, parts, classes, folder)}
        return build(_found_images(folder, chosen) if by_list else chosen)


def _listed_names(folder: Path, part: str) -> dict[str, list[str]]:
    """Class -> the names of its images."""
    return read_texts(data_file(folder, f"{part}.csv"), "filename", "label")


def _class_files(folder: Path, part: str) -> dict[str, list[File]]:
    path = folder_or_zip(folder, part)
    if path is None:
        raise DataNotFound(f"the data folder {folder} has no {part}.csv, and no {part} with a folder for each class")
    return {name: list(files) for name, files in class_folders(path, SUFFIXES).items()}


def _found_images(folder: Path, names: dict[str, Collection[str]]) -> dict[str, list[File]]:
    """Class -> the files of those names, in `images` or `images.zip`."""
    path = folder_or_zip(folder, "images")
    if path is None:
        raise DataNotFound(f"the data folder {folder} has neither images nor images.zip")
    files = {parts[-1]: file for parts, file in contents(path) if file is not None}
    missing = [name for listed_names in names.values() for name in listed_names if name not in files]
    if missing:
        raise DataNotFound(f"{len(missing)} images that the lists name are not in {path}: {some(missing)}")
    return {label: [files[name] for name in listed_names] for label, listed_names in names.items()}
