"""CIFAR-100 for the tasks that divide its classes: the names, and two layouts of the images.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from multifsl.errors import BadFile, BadItem, DataNotFound, some
from multifsl.task import Items, Source, data_roots
from multifsl.tasks._files import File, Lazy, build, data_file, folder_or_zip
from multifsl.tasks._folders import class_folders
from multifsl.tasks._splits import listed

SOURCE = Source("cifar100", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated", 169, also=("cifar_fs",))
HINTS = {"channels": 3, "image_size": 32}

Record = tuple[Path, int]  # a file of the binary version, and a record's number in it
RECORD = 2 + 3 * 32 * 32  # bytes: the number of the superclass, that of the class, red, green, blue row by row

SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CLASSES = sorted(" ".join(SUPERCLASSES.values()).split())


def cifar_items(split: str, lists: Mapping[str, Collection[str]], data_root: Path | None) -> Items:
    """The images of a split by class lists, from the folder `cifar100` (binary), or else `cifar_fs` (PNG)."""
    tried = [root / name for name in ("cifar100", "cifar_fs") for root in data_roots(data_root)]
    folder = next((path for path in tried if path.is_dir()), None)
    if folder is None:
        raise DataNotFound(
            f"CIFAR-100 was not found; looked for {', '.join(str(path) for path in tried)}. "
            "Say where the data are with --data-root or $MULTIFSL_DATA, or get them with: multifsl data get cifar_fs"
        )
    classes: Mapping[str, Collection[Any]] = _binary(folder) if folder.name == "cifar100" else _folders(folder)
    built = build({name: classes[name] for name in listed(split, lists, classes, folder)})
    return Items(Lazy(built.items, _open), built.labels, built.class_names)


def _binary(folder: Path) -> dict[str, list[Record]]:
    """Class -> its records in `train.bin`, then in `test.bin`."""
    folder = folder / "cifar-100-binary" if (folder / "cifar-100-binary").is_dir() else folder
    names = data_file(folder, "fine_label_names.txt").read_text("utf-8").split()
    if sorted(names) != CLASSES:
        raise BadFile(
            f"{folder / 'fine_label_names.txt'} does not hold the {len(CLASSES)} names of CIFAR-100's classes"
        )
    classes: dict[str, list[Record]] = {}
    for path in (data_file(folder, "train.bin"), data_file(folder, "test.bin")):
        size = path.stat().st_size
        if not size or size % RECORD:
            raise BadFile(f"{path} is cut short: its {size} bytes are no whole number of records of {RECORD} bytes")
        labels = np.memmap(path, np.uint8, "r").reshape(-1, RECORD)[:, 1]  # [images]
        if labels.max() >= len(names):
            raise BadFile(f"{path} has class number {labels.max()}; CIFAR-100's are 0 to {len(names) - 1}")
        for row, label in enumerate(labels.tolist()):
            classes.setdefault(names[label], []).append((path, row))
    return classes


def _folders(folder: Path) -> dict[str, list[File]]:
    """Class -> its files in `train`, `val` and `test`, folders or zip archives, as far as they are there."""
    classes: dict[str, list[File]] = {}
    paths = [path for part in ("train", "val", "test") if (path := folder_or_zip(folder, part))]
    if not paths:
        raise DataNotFound(
            f"the data folder {folder} has none of train, val and test, neither as folders nor as zip archives"
        )
    for path in paths:
        found = class_folders(path, (".png",))
        strange = [repr(name) for name in found if name not in CLASSES]
        twice = [repr(name) for name in found if name in classes]
        if strange or twice:
            fault = (
                f"classes that CIFAR-100 has not: {some(strange)}" if strange else f"classes once more: {some(twice)}"
            )
            raise BadFile(f"{path} has {fault}; expected <class>/<file>.png, each class in one of train, val and test")
        classes.update({name: list(files) for name, files in found.items()})
    return classes


def _open(key: File | Record) -> File | Image.Image:
    if not isinstance(key, tuple):
        return key
    path, row = key
    try:
        with path.open("rb") as file:
            file.seek(row * RECORD + 2)
            pixels = np.frombuffer(file.read(RECORD - 2), dtype=np.uint8).reshape(3, 32, 32)
    except (OSError, ValueError) as error:  # ValueError: fewer bytes than an image has
        raise BadItem(f"cannot read image {row} of {path}: {error}") from error
    return Image.fromarray(pixels.transpose(1, 2, 0).copy())
