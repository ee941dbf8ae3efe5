"""Omniglot: handwritten characters, 20 drawings of each.

Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction", Science 2015,
https://github.com/brendenlake/omniglot. Licence: MIT. Class splits: those of Vinyals et al., "Matching Networks for One
Shot Learning", NIPS 2016, as published with Snell et al., "Prototypical Networks", NIPS 2017.
"""

from collections import defaultdict
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from multifsl.download import Get, place
from multifsl.errors import BadFile, BadItem, DataNotFound, some
from multifsl.task import Items, Source, Task, check_split
from multifsl.tasks._files import File, Lazy, contents, data_file, folder_or_zip

DRAWERS = 20
OFFICIAL = "https://github.com/brendenlake/omniglot/raw/master/python"
ZIPS = {  # the checksums are those that torchvision's Omniglot holds
    "images_background": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}
VINYALS = "https://raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot/splits/vinyals"
TURN = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class Omniglot(Task):
    """Omniglot by the Vinyals split: 1028, 172 and 423 characters for train, val and test.

    rotations: turns of a character by 90, 180 and 270 degrees (counter-clockwise) are classes of their own, as in the
        papers: 4112, 688 and 1692 classes. Without, upright characters only.

    An item is a PIL image of mode "L", 28 x 28, ink white on black. The 105 x 105 one-bit drawing is made grey, then
    scaled down with Lanczos: the filter that MAML's script asks for. The scripts of MAML and of prototypical networks
    scale the one-bit image itself, where Pillow takes the nearest pixel whatever the filter, and thin strokes break.
    Groups are the drawers, 1 to 20. A character counts as missing unless all 20 drawings are there.

    Looked for in the folder `omniglot`: `images_background` and `images_evaluation`, as the official zip files or
    unpacked, and `splits/vinyals/{train,val,test}.txt`.

        Omniglot().items("train").items[0].size    # (28, 28)
    """

    modality = "image"
    hints: ClassVar[dict[str, Any]] = {"channels": 1, "image_size": 28}
    source = Source("omniglot", "https://github.com/brendenlake/omniglot", "MIT", 16)

    def __init__(self, *, rotations: bool = True) -> None:
        self.rotations = rotations

    def items(self, split: str) -> Items:
        folder = self.folder("omniglot")
        wanted = ("train", "val", "test") if check_split(split) == "all" else (split,)
        names = sorted(name for one in wanted for name in _split_names(data_file(folder, f"splits/vinyals/{one}.txt")))
        names = names if self.rotations else [name for name in names if name.endswith("/rot000")]
        drawings = _drawings(folder)
        characters = {_character(name) for name in names}
        missing = sorted(character for character in characters if len(drawings[character]) != DRAWERS)
        if missing:
            raise DataNotFound(
                f"{len(missing)} of the {len(characters)} characters of split {split!r} lack drawings in {folder} "
                f"(of {DRAWERS} each): {some(missing)}. "
                "Put the official images_background.zip and images_evaluation.zip there"
            )
        keys = [(file, int(name[-3:])) for name in names for file in drawings[_character(name)]]
        return Items(
            items=Lazy(keys, _open),
            labels=np.repeat(np.arange(len(names), dtype=np.int64), DRAWERS),
            class_names=names,
            groups=np.tile(np.arange(1, DRAWERS + 1, dtype=np.int64), len(names)),
        )

    @classmethod
    def download(cls, folder: Path, get: Get) -> None:
        for name, checksum in ZIPS.items():
            place(get(f"{OFFICIAL}/{name}.zip", checksum=checksum), folder / f"{name}.zip")
        for part in ("train", "val", "test"):
            place(get(f"{VINYALS}/{part}.txt"), folder / "splits" / "vinyals" / f"{part}.txt")


def _character(name: str) -> str:
    return name.rpartition("/")[0]


def _split_names(path: Path) -> list[str]:
    """Lines `Alphabet/characterNN/rotDDD`."""
    names = path.read_text(encoding="utf-8").split()
    for name in names:
        if name.count("/") != 2 or name.rpartition("/")[2] not in ("rot000", "rot090", "rot180", "rot270"):
            raise BadFile(f"{path}: {name!r} is not Alphabet/characterNN/rotDDD with DDD one of 000, 090, 180, 270")
    return names


def _drawings(folder: Path) -> defaultdict[str, list[File]]:
    """`Alphabet/characterNN` -> its drawings, in the order of the drawers (files are named `<id>_<drawer>.png`)."""
    found: defaultdict[str, list[File]] = defaultdict(list)
    for name in ("images_background", "images_evaluation"):
        path = folder_or_zip(folder, name)
        for parts, file in contents(path) if path else []:
            if file is not None and len(parts) >= 3 and file.suffix == ".png":
                found["/".join(parts[-3:-1])].append(file)
    return found


def _open(key: tuple[File, int]) -> Image.Image:
    file, degrees = key
    upright = _upright(file)
    return upright.transpose(TURN[degrees]) if degrees else upright.copy()


@lru_cache(maxsize=64)  # a class is 20 drawings and its turns follow it: each is decoded once for its four turns
def _upright(file: File) -> Image.Image:
    try:
        with Image.open(BytesIO(file.read_bytes())) as drawing:
            grey = drawing.convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, BadFile) as error:  # SyntaxError: what Pillow says of a broken PNG
        raise BadItem(f"cannot read the drawing {file}: {error}") from error
    return grey.point([255 - value for value in range(256)])
