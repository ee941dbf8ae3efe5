"""The sets of images: against files made here in their official layout, and against the real data where they are.

Oracles: the bytes as they were written, and the counts and class lists that the authors publish.
"""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multifsl import registry
from multifsl.archive import Member
from multifsl.encoders.conv4 import Conv4
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.task import Task
from multifsl.tasks import cifar_fs, fc100, mini_imagenet
from multifsl.tasks._cifar100 import CLASSES, SUPERCLASSES
from multifsl.tasks.cifar_fs import CifarFS
from multifsl.tasks.fc100 import Fc100
from multifsl.tasks.mini_imagenet import MiniImageNet
from tests.needs import needs_data
from tests.sets import PARTS, check_splits
from tests.test_tasks import png, rooted, write, zipped

CIFAR = [CifarFS(), Fc100()]
COUNTS = {"CifarFS": (64, 16, 20), "Fc100": (60, 20, 20), "MiniImageNet": (64, 16, 20)}
both = pytest.mark.parametrize("task", CIFAR, ids=lambda task: type(task).__name__)


def photo(number: int) -> np.ndarray:
    """A photo of noise, uint8 [32, 32, 3]."""
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def make_binary(folder: Path, each: int = 2) -> Path:
    """The binary version: `each` images a class in `train.bin`, one in `test.bin`, classes in turn."""
    write(folder / "fine_label_names.txt", "\n".join(CLASSES) + "\n\n")
    for name, count in (("train", each), ("test", 1)):
        records = [
            bytes([0, label]) + photo(1000 * turn + label + 10_000 * (name == "test")).transpose(2, 0, 1).tobytes()
            for turn in range(count) for label in range(100)
        ]  # fmt: skip
        write(folder / f"{name}.bin", b"".join(records))
    return folder


def make_png(folder: Path, lists: dict[str, list[str]], *, archive: bool = False) -> Path:
    for part, names in lists.items():
        for number, name in enumerate(names):
            write(folder / part / name / f"{name}_s_{number}.png", png(Image.fromarray(photo(number))))
        if archive:
            zipped(folder / part, folder / f"{part}.zip")
            (folder / part).rename(folder / f"was_{part}")
    return folder


# ---- the class lists ----


def test_cifar_class_lists() -> None:
    """Krizhevsky's 20 superclasses of five; the published divisions of 64/16/20 classes and 60/20/20."""
    assert len(CLASSES) == len(set(CLASSES)) == 100
    assert len(SUPERCLASSES) == 20 and {len(names.split()) for names in SUPERCLASSES.values()} == {5}
    for lists, counts in ((cifar_fs.SPLITS, (64, 16, 20)), (fc100.SPLITS, (60, 20, 20))):
        assert tuple(len(lists[part]) for part in PARTS) == counts
        assert sorted(name for part in PARTS for name in lists[part]) == CLASSES
    of = {name: group for group, names in SUPERCLASSES.items() for name in names.split()}
    groups = [{of[name] for name in fc100.SPLITS[part]} for part in PARTS]
    assert [len(names) for names in groups] == [12, 4, 4] and len(set.union(*groups)) == 20  # superclasses stay whole
    numbers = [sorted(list(SUPERCLASSES).index(name) for name in names) for names in groups]
    assert numbers[1:] == [[8, 11, 13, 16], [0, 7, 12, 14]]  # as the authors' script has them


# ---- CIFAR-100, binary ----


@both
@pytest.mark.parametrize("place", ["cifar100", "cifar100/cifar-100-binary"])
def test_binary(tmp_path: Path, task: Task, place: str) -> None:
    make_binary(tmp_path / place)
    splits = check_splits(rooted(task, tmp_path), COUNTS[type(task).__name__])
    assert set(np.bincount(splits["all"].labels)) == {3}
    everything = splits["all"].items
    for label in (0, 57, 99):
        for turn, number in ((0, label), (1, 1000 + label), (2, 10_000 + label)):
            image = everything[3 * label + turn]
            assert image.mode == "RGB" and np.array_equal(np.asarray(image), photo(number))
    everything[0].paste((0, 0, 0), (0, 0, 32, 32))  # a caller's changes stay the caller's
    assert np.array_equal(np.asarray(everything[0]), photo(0))


@both
def test_wrong_binary(tmp_path: Path, task: Task) -> None:
    folder = make_binary(tmp_path / "cifar100")
    rooted(task, tmp_path)
    whole = (folder / "train.bin").read_bytes()
    for content in (whole[:-1], b""):
        write(folder / "train.bin", content)
        with pytest.raises(
            BadFile, match=r"train\.bin is cut short: its \d+ bytes are no whole number of records of 3074"
        ):
            task.items("train")
    write(folder / "train.bin", bytes([0, 100]) + whole[2:])
    with pytest.raises(BadFile, match=r"train\.bin has class number 100; CIFAR-100's are 0 to 99"):
        task.items("train")
    write(folder / "train.bin", whole)
    items = task.items("train").items
    write(folder / "train.bin", whole[: 3074 + 100])
    with pytest.raises(BadItem, match=r"cannot read image 1\d\d of .*train\.bin"):
        items[1]
    write(folder / "train.bin", whole)
    write(folder / "fine_label_names.txt", "\n".join(CLASSES[:-1]))
    with pytest.raises(BadFile, match="does not hold the 100 names of CIFAR-100's classes"):
        task.items("train")
    for name in ("fine_label_names.txt", "test.bin", "train.bin"):
        make_binary(folder)
        (folder / name).unlink()
        with pytest.raises(DataNotFound, match=f"has no {name}"):
            task.items("train")


def test_missing_classes_in_the_binary_version(tmp_path: Path) -> None:
    folder = make_binary(tmp_path / "cifar100")
    for name in ("train.bin", "test.bin"):
        records = np.frombuffer((folder / name).read_bytes(), dtype=np.uint8).reshape(-1, 3074)
        write(folder / name, records[records[:, 1] != CLASSES.index("whale")].tobytes())
    with pytest.raises(
        DataNotFound, match=r"1 of the 20 classes of split 'test' are not in .*: whale\. Add what is miss"
    ):
        rooted(CifarFS(), tmp_path).items("test")


# ---- CIFAR-100, PNG ----


@both
@pytest.mark.parametrize("archive", [False, True])
def test_png(tmp_path: Path, task: Task, archive: bool) -> None:
    make_png(tmp_path / "cifar_fs", {part: list(cifar_fs.SPLITS[part]) for part in PARTS}, archive=archive)
    splits = check_splits(rooted(task, tmp_path), COUNTS[type(task).__name__])
    item = splits["val"].items[0]
    assert isinstance(item, Member if archive else Path) and f"/{splits['val'].class_names[0]}/" in str(item)
    assert Conv4(image_size=32).load(item).shape == (32, 32, 3)


def test_the_complete_set_comes_first(tmp_path: Path) -> None:
    make_png(tmp_path / "cifar_fs", {"val": list(cifar_fs.VAL)})
    assert len(rooted(CifarFS(), tmp_path).items("val").items) == 16
    make_binary(tmp_path / "cifar100")
    assert len(rooted(CifarFS(), tmp_path).items("val").items) == 48


def test_wrong_png(tmp_path: Path) -> None:
    folder = make_png(tmp_path / "cifar_fs", {"train": list(cifar_fs.SPLITS["train"])})
    task = rooted(CifarFS(), tmp_path)
    assert len(task.items("train").class_names) == 64
    with pytest.raises(
        DataNotFound, match=r"20 of the 20 classes of split 'test' are not in .*: baby, .* and 15 more\."
    ):
        task.items("test")
    with pytest.raises(DataNotFound, match="36 of the 100 classes of split 'all'"):
        task.items("all")
    with pytest.raises(MultifslError, match="no split 'dev'"):
        task.items("dev")
    write(folder / "train" / "apple" / "apple_s_0.png", "no image")
    with pytest.raises(BadItem, match=r"apple_s_0\.png is not an image"):
        Conv4(image_size=32).load(task.items("train").items[0])
    make_png(folder, {"val": ["apple"]})
    with pytest.raises(BadFile, match="val has classes once more: 'apple'; expected <class>/<file>.png"):
        task.items("train")
    make_png(folder, {"train": ["unicorn"]})
    with pytest.raises(BadFile, match="train has classes that CIFAR-100 has not: 'unicorn'"):
        task.items("train")
    write(tmp_path / "empty" / "cifar_fs" / "readme.txt", "x")
    with pytest.raises(DataNotFound, match="has none of train, val and test"):
        rooted(CifarFS(), tmp_path / "empty").items("train")


@both
def test_missing_cifar(tmp_path: Path, task: Task) -> None:
    with pytest.raises(DataNotFound, match=r"was not found; looked for .*cifar100, .*cifar_fs\. .*--data-root"):
        rooted(task, tmp_path).items("train")


def test_hints_reach_the_encoder() -> None:
    for task, size in ((CifarFS(), 32), (Fc100(), 32), (MiniImageNet(), 84)):
        encoder = registry.build("encoders", "conv4(width=8)", task=task)
        assert (encoder.channels, encoder.image_size) == (3, size)


# ---- miniImageNet ----

SYNSETS = mini_imagenet.SPLITS


def test_mini_imagenet_class_lists() -> None:
    """64, 16 and 20 WordNet ids; the well-known ones: house finch trains, goose validates, nematode is tested."""
    assert [len(SYNSETS[part]) for part in PARTS] == [64, 16, 20]
    every = [name for part in PARTS for name in SYNSETS[part]]
    assert len(set(every)) == 100 and all(re.fullmatch(r"n\d{8}", name) for name in every)
    assert [SYNSETS[part][0] for part in PARTS] == ["n01532829", "n01855672", "n01930112"]


def make_mini(root: Path, layout: str, *, archive: bool = False, lists: dict[str, list[str]] = SYNSETS) -> Path:
    folder = root / "mini_imagenet"
    for part, synsets in lists.items():
        rows = [(f"{synset}0000000{number}.jpg", synset) for number in range(2) for synset in synsets]
        if layout == "lists":
            write(folder / f"{part}.csv", "filename,label\n" + "".join(f"{name},{synset}\n" for name, synset in rows))
        for name, synset in rows:
            write(folder / ("images" if layout == "lists" else f"{part}/{synset}") / name, f"{name}")
    for name in ("images", *PARTS) if archive else ():
        if (folder / name).is_dir():
            zipped(folder / name, folder / f"{name}.zip")
            (folder / name).rename(root / name)
    return folder


@pytest.mark.parametrize("layout", ["lists", "folders"])
@pytest.mark.parametrize("archive", [False, True])
def test_mini_imagenet(tmp_path: Path, layout: str, archive: bool) -> None:
    make_mini(tmp_path, layout, archive=archive)
    splits = check_splits(rooted(MiniImageNet(), tmp_path), (64, 16, 20))
    for part in PARTS:
        items = splits[part]
        assert items.class_names == SYNSETS[part] and Counter(items.labels.tolist()) == dict.fromkeys(
            range(len(SYNSETS[part])), 2
        )
        names = [items.items[row].read_bytes().decode() for row in range(4)]
        assert names == [f"{synset}0000000{number}.jpg" for synset in SYNSETS[part][:2] for number in range(2)]
    assert isinstance(splits["test"].items[0], Member if archive else Path)


def test_wrong_mini_imagenet(tmp_path: Path) -> None:
    task = rooted(MiniImageNet(), tmp_path)
    with pytest.raises(DataNotFound, match="'mini_imagenet' was not found; looked for"):
        task.items("train")
    (tmp_path / "mini_imagenet").mkdir()
    with pytest.raises(DataNotFound, match=r"has no train\.csv, and no train with a folder for each class"):
        task.items("train")
    folder = make_mini(tmp_path, "lists")
    first = folder / "images" / f"{SYNSETS['val'][0]}00000000.jpg"
    with pytest.raises(BadItem, match="is not an image"):
        Conv4(image_size=84).load(task.items("val").items[0])
    first.unlink()
    assert len(task.items("train").items) == 128
    with pytest.raises(DataNotFound, match=rf"1 images that the lists name are not in .*images: {first.name}"):
        task.items("val")
    lists = (folder / "val.csv").read_text()
    write(folder / "val.csv", lists + f"x.jpg,{SYNSETS['train'][5]}\n")
    with pytest.raises(
        BadFile, match=f"val has classes that are not of .* val: {SYNSETS['train'][5]}; for a division of"
    ):
        task.items("val")
    write(folder / "val.csv", "".join(row for row in lists.splitlines(True) if SYNSETS["val"][3] not in row))
    for split in ("val", "all"):
        with pytest.raises(
            DataNotFound, match=f"1 of the .* classes of split '{split}' are not in .*{SYNSETS['val'][3]}"
        ):
            task.items(split)
    write(folder / "val.csv", "name,class\na.jpg,n1\n")
    with pytest.raises(MultifslError, match=r"val\.csv, line 2: no column 'filename'; there are 'name', 'class'"):
        task.items("val")
    write(folder / "val.csv", lists)
    (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataNotFound, match=r"has neither images nor images\.zip"):
        task.items("train")
    (folder / "test.csv").unlink()
    with pytest.raises(DataNotFound, match=r"has no test\.csv"):
        task.items("test")


@pytest.mark.parametrize("layout", ["lists", "folders"])
def test_another_division_of_mini_imagenet(tmp_path: Path, layout: str) -> None:
    """64, 16 and 20 classes that share none, but dealt otherwise, or of other images altogether: no figure would compare."""
    every = sorted(name for part in PARTS for name in SYNSETS[part])
    for number, names in enumerate((every, [f"n{99_000_000 + i}" for i in range(100)])):
        lists = {"train": names[:64], "val": names[64:80], "test": names[80:]}
        make_mini(tmp_path / str(number), layout, lists=lists)
        for part in PARTS:
            with pytest.raises(BadFile, match=f"{part} has classes that are not of Ravi and Larochelle's {part}"):
                rooted(MiniImageNet(), tmp_path / str(number)).items(part)


# ---- the real data, where they are ----


def test_real_cifar_fs() -> None:
    needs_data("cifar_fs")
    parts = {part: CifarFS().items(part) for part in ("train", "val")}
    assert [len(parts[part].class_names) for part in parts] == [64, 16]
    for items in parts.values():
        assert len(set(np.bincount(items.labels))) == 1  # as many images in every class
        image = Conv4(image_size=32).load(items.items[-1])
        assert image.shape == (32, 32, 3) and image.std() > 5
    seal, otter = parts["train"].class_names.index("seal"), parts["val"].class_names.index("otter")
    pixels = [
        {
            Conv4(image_size=32).load(items.items[row]).tobytes()
            for row in np.flatnonzero(items.labels == label).tolist()
        }
        for items, label in ((parts["train"], seal), (parts["val"], otter))
    ]
    assert len(pixels[0] & pixels[1]) >= 1  # the known leak: a photo that is seal and otter


def test_real_fc100() -> None:
    """Without the archive of CIFAR-FS's test classes, FC100 lacks those of them that it trains on, and says so."""
    needs_data("cifar_fs")
    lacking = sorted(set(fc100.SPLITS["train"]) & set(cifar_fs.TEST))
    try:
        splits = check_splits(Fc100(), (60, 20, 20))
    except DataNotFound as error:
        assert f"{len(lacking)} of the 60 classes of split 'train' are not in" in str(error)
        assert f": {', '.join(lacking[:5])} and {len(lacking) - 5} more." in str(error)
    else:
        assert len(set(np.bincount(splits["all"].labels))) == 1


def test_real_mini_imagenet() -> None:
    needs_data("mini_imagenet")
    splits = check_splits(MiniImageNet(), (64, 16, 20))
    assert [len(splits[part].items) for part in PARTS] == [38_400, 9_600, 12_000]
