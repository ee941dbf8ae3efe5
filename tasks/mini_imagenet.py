"""miniImageNet: 600 photos of each of 100 ImageNet classes.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning", NIPS 2016. Class split
and lists of images: Ravi and Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017,
https://github.com/twitter-research/meta-learning-lstm. Images: ImageNet, under its own terms of access.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from multifsl.errors import BadFile, DataNotFound, some
from multifsl.task import Items, Source, Task, check_split
from multifsl.tasks._files import File, build, contents, data_file, folder_or_zip
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import listed
from multifsl.tasks._tables import read_texts

TRAIN = """
n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006 n02105505
n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 n02747177 n02795169
n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 n03400231 n03476684 n03527444
n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548
n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 n04604644 n04612504 n06794110 n07584110 n07697537
n07747607 n09246464 n13054560 n13133613
"""
VAL = """
n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780 n03584254
n03770439 n03773504 n03980874 n09256479
"""
TEST = """
n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925 n03146219
n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
"""
SPLITS = {"train": TRAIN.split(), "val": VAL.split(), "test": TEST.split()}  # WordNet ids
SUFFIXES = (".jpg", ".jpeg", ".png")


class MiniImageNet(Task):
    """miniImageNet by the split of Ravi and Larochelle: 64, 16 and 20 classes for train, val and test.

    An item is a `Path`, or a `Member` of a zip archive; a class is named by its WordNet id, `n01532829`. Encoders that take
    an image size get 84, the papers' (the shorter side is scaled, the middle cut out). An encoder that was trained on
    ImageNet has seen all of these classes: what it reaches here says nothing of new ones.

    Looked for in the folder `mini_imagenet`, in one of two layouts, each part as a folder or a zip archive:
    `train.csv`, `val.csv` and `test.csv` with the columns filename and label, and `images`; or `train`, `val` and `test`
    with a folder for each class. A split needs its own classes only.

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
        by_list = any((folder / f"{part}.csv").is_file() for part in SPLITS)
        classes: dict[str, Collection[Any]] = {}
        for part in SPLITS if check_split(split) == "all" else (split,):
            found = _listed_names(folder, part) if by_list else _class_files(folder, part)
            strange = [name for name in found if name not in SPLITS[part]]
            if strange:
                raise BadFile(
                    f"{folder}: {part} has classes that are not of Ravi and Larochelle's {part}: {some(strange)}; for a division "
                    "of your own, use images(path, splits=...)"
                )
            classes.update(found)
        chosen = {name: classes[name] for name in listed(split, SPLITS, classes, folder)}
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
