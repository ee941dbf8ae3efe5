"""CIFAR-FS: CIFAR-100's classes divided at random for few-shot learning; 32 x 32 colour photos.

Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136. Images: CIFAR-100 (Krizhevsky 2009), which states no licence.
"""

from pathlib import Path
from typing import Any, ClassVar

from multifsl.download import Get
from multifsl.task import Items, Task
from multifsl.tasks._cifar100 import CLASSES, HINTS, SOURCE, cifar_items
from multifsl.tasks._official import write_cifar100

VAL = (
    *("beaver", "beetle", "butterfly", "camel", "cattle", "crab", "crocodile", "flatfish", "lamp", "maple_tree"),
    *("motorcycle", "otter", "sea", "shark", "television", "tractor"),
)
TEST = (
    *("baby", "bed", "bicycle", "chimpanzee", "fox", "leopard", "man", "pickup_truck", "plain", "poppy"),
    *("rocket", "rose", "snail", "sweet_pepper", "table", "telephone", "wardrobe", "whale", "woman", "worm"),
)
SPLITS = {"train": [name for name in CLASSES if name not in (*VAL, *TEST)], "val": VAL, "test": TEST}


class CifarFS(Task):
    """CIFAR-100 by the class lists of Bertinetto et al.: 64, 16 and 20 classes for train, val and test.

    Classes of one superclass stand in different splits: whale is tested, dolphin trained on. Where that matters, see
    `fc100`. A few images of CIFAR-100 stand in two classes of different splits: of girl (train) and baby (test), of seal
    (train) and otter (val).

    Looked for in the folder `cifar100` first, the official binary version, all 600 images a class:
    `cifar-100-binary/train.bin`, `test.bin` and `fine_label_names.txt`; an item is then a PIL image. Else in the folder
    `cifar_fs`: `train`, `val` and `test`, as zip archives or folders, `<class>/<file>.png`, with as many images as are
    there; an item is a `Member` or `Path`. A split needs its own classes only.

        len(CifarFS().items("train").class_names)    # 64
    """

    modality = "image"
    hints: ClassVar[dict[str, Any]] = HINTS
    source = SOURCE

    def items(self, split: str) -> Items:
        return cifar_items(split, SPLITS, self.data_root)

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        write_cifar100(folder, get)
