"""FC100: CIFAR-100 divided by superclass, so that train and test share as little as can be; 32 x 32 colour photos.

Oreshkin, Rodriguez and Lacoste, "TADAM: Task dependent adaptive metric for improved few-shot learning", NeurIPS 2018,
https://arxiv.org/abs/1805.10123. Images: CIFAR-100 (Krizhevsky 2009), which states no licence.
"""

from pathlib import Path
from typing import Any, ClassVar

from multifsl.download import Get
from multifsl.task import Items, Task
from multifsl.tasks._cifar100 import HINTS, SOURCE, SUPERCLASSES, cifar_items
from multifsl.tasks._official import write_cifar100

VAL = ("large_carnivores", "large_omnivores_and_herbivores", "non-insect_invertebrates", "small_mammals")
TEST = ("aquatic_mammals", "insects", "medium_mammals", "people")
TRAIN = tuple(name for name in SUPERCLASSES if name not in (*VAL, *TEST))
SPLITS = {
    part: " ".join(SUPERCLASSES[name] for name in names).split()
    for part, names in (("train", TRAIN), ("val", VAL), ("test", TEST))
}


class Fc100(Task):
    """CIFAR-100 by the superclasses of Oreshkin et al.: 60, 20 and 20 classes for train, val and test.

    Plants, things, landscapes, fish and reptiles are for training, the other animals and people for val and test, which is
    harder than `cifar_fs`. A few images of CIFAR-100 stand in two classes, of girl and baby, and of seal and otter; all four
    are test classes here, so that nothing leaks, but no classifier can be right on both.

    Looked for where `cifar_fs` looks: the folder `cifar100`, or else `cifar_fs`; a split needs its own classes only, in
    whichever of the archives they are.

        len(Fc100().items("test").class_names)    # 20
    """

    modality = "image"
    hints: ClassVar[dict[str, Any]] = HINTS
    source = SOURCE

    def items(self, split: str) -> Items:
        return cifar_items(split, SPLITS, self.data_root)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        write_cifar100(folder, get)
