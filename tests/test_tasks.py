"""The tasks: each against files made here, so that the right answer is known, and against the real data where they are.

Oracles: the files as they were written, the counts and splits that the data's authors list, numpy's rotation.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from multifsl.archive import Member
from multifsl.episode import EpisodeSampler
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.task import SPLITS, Items, Task, split_classes
from multifsl.tasks._audio import decode
from multifsl.tasks.arabic_speech_commands import ArabicSpeechCommands
from multifsl.tasks.banking77 import Banking77
from multifsl.tasks.images import Images
from multifsl.tasks.librispeech import LibriSpeech
from multifsl.tasks.omniglot import Omniglot
from multifsl.tasks.speakers import Speakers
from multifsl.tasks.speech_commands import SpeechCommands
from multifsl.tasks.texts import Texts
from tests.needs import needs_data

RATE = 16_000
TEN = list("abcdefghij")


# ---- files made here ----


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zipped(folder: Path, archive: Path) -> Path:
    """The folder's content as a zip archive, members in reverse order: the task has to sort them."""
    with zipfile.ZipFile(archive, "w") as out:
        for path in sorted(folder.rglob("*"), reverse=True):
            out.write(path, path.relative_to(folder))
    return archive


def png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def flac(samples: np.ndarray) -> bytes:
    out = BytesIO()
    soundfile.write(out, samples, RATE, format="FLAC")
    return out.getvalue()


def make_folders(root: Path, suffix: str = ".png") -> Path:
    """Ten classes of three files."""
    for name in TEN:
        for number in range(3):
            write(root / name / f"{name}{number}_s{number % 2}{suffix}", b"x")
    return root


def make_texts(path: Path) -> Path:
    rows = [{"text": f"{name} {number}", "label": name, "more": 1} for number in range(3) for name in TEN]
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def drawing(character: int, drawer: int) -> Image.Image:
    """A one-bit drawing of no symmetry, a different one for each character and drawer."""
    ink = np.ones((105, 105), dtype=bool)
    ink[10 : 30 + character, 20 : 24 + drawer] = False
    ink[60:64, 30:90] = False
    return Image.fromarray(ink)


def make_omniglot(root: Path, *, archive: bool = True, drawers: int = 20) -> Path:
    """Characters 1, 2, 3 of an alphabet (train, val, test), the last in the evaluation set."""
    folder = root / "omniglot"
    for number, (part, home) in enumerate((("train", "background"), ("val", "background"), ("test", "evaluation")), 1):
        name = f"Letters/character{number:02}" if home == "background" else f"Signs/character{number:02}"
        lines = "".join(f"{name}/rot{degrees:03}\n" for degrees in (0, 90, 180, 270))
        write(folder / "splits" / "vinyals" / f"{part}.txt", lines)
        for drawer in range(1, drawers + 1):
            file = folder / f"images_{home}" / name / f"{number:04}_{drawer:02}.png"
            write(file, png(drawing(number, drawer)))
    for home in ("images_background", "images_evaluation") if archive else ():
        wrapper = root / f"pack_{home}"
        wrapper.mkdir()
        (folder / home).rename(wrapper / home)
        zipped(wrapper, folder / f"{home}.zip")
    return folder


def make_clips(folder: Path, names: Callable[[str], list[str]], speakers: int = 10, seconds: float = 0.01) -> Path:
    """`clips.zip` of flac files in a folder for each speaker."""
    wave = (np.arange(int(RATE * seconds)) % 20_000).astype(np.int16)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "clips.zip", "w") as out:
        for number in range(speakers):
            for name in names(f"{number:04}"):
                out.writestr(f"{number:04}/{name}.flac", flac(wave))
    return folder


def make_arabic(root: Path) -> Path:
    folder = make_clips(root / "speakers_arabic", lambda _: [f"zoom_{k}_{r}" for k in TEN for r in ("01", "06")])
    ids = [f"{number:04}" for number in range(10)]
    write(folder / "speaker_split_official.json", json.dumps({"train": ids[:6], "val": ids[6:8], "test": ids[8:]}))
    return folder


def make_banking(root: Path) -> Path:
    folder = root / "text_banking77"
    make_texts(folder / "data.jsonl")
    for fold in range(1, 6):
        turned = TEN[fold:] + TEN[:fold]
        lists = {"train": turned[:5], "valid": turned[5:7], "test": turned[7:]}
        write(folder / "splits" / f"split_0{fold}.json", json.dumps(lists))
    return folder


def rooted(task: Task, root: Path) -> Task:
    task.data_root = root
    return task


# ---- one contract for all ----


def toy_tasks(root: Path) -> Iterator[Task]:
    yield Images(make_folders(root / "images"))
    yield Speakers(make_folders(root / "audio", ".wav"), group_by=r"_(s\d)")
    yield Texts(make_texts(root / "texts.jsonl"))
    make_omniglot(root)
    yield rooted(Omniglot(), root)
    yield rooted(Omniglot(rotations=False), root)
    make_clips(root / "speakers_speech_commands", lambda _: ["bed_0", "cat_0"])
    yield rooted(SpeechCommands(), root)
    make_clips(root / "speakers_librispeech", lambda s: [f"{s}-1-0000", f"{s}-1-0001"], seconds=0.25)
    yield rooted(LibriSpeech(chunk_seconds=0.1), root)
    make_arabic(root)
    yield rooted(ArabicSpeechCommands(), root)
    yield rooted(ArabicSpeechCommands(by="keyword"), root)
    make_banking(root)
    yield rooted(Banking77(fold=2), root)


def handed_over(items: Sequence[Any]) -> Sequence[Any]:
    """As they come into another process where processes are spawned (macOS, Windows): pickled."""
    there: Sequence[Any] = pickle.loads(pickle.dumps(items))  # noqa: S301  # our own
    return there


def check_contract(items: Items) -> None:
    count = len(items.items)
    assert items.labels.shape == (count,) and items.labels.dtype == np.int64
    assert np.array_equal(np.unique(items.labels), np.arange(len(items.class_names)))  # every class has items
    assert (np.diff(items.labels) >= 0).all()  # class by class
    assert len(set(items.class_names)) == len(items.class_names) and items.class_names == sorted(items.class_names)
    assert all(isinstance(name, str) for name in items.class_names)
    if items.groups is not None:
        assert items.groups.shape == (count,) and items.groups.dtype == np.int64
    with pytest.raises(IndexError):
        items.items[count]
    assert len(handed_over(items.items)) == count


@pytest.mark.parametrize("number", range(10))
def test_contract(tmp_path: Path, number: int) -> None:
    task = list(toy_tasks(tmp_path))[number]
    splits = {split: task.items(split) for split in SPLITS}
    for items in splits.values():
        check_contract(items)
    dealt = [name for split in ("train", "val", "test") for name in splits[split].class_names]
    assert sorted(dealt) == splits["all"].class_names  # disjoint, and all of them together
    assert sum(len(splits[split].items) for split in ("train", "val", "test")) == len(splits["all"].items)
    again = task.items("train")
    assert again.class_names == splits["train"].class_names and np.array_equal(again.labels, splits["train"].labels)
    assert task.modality in {"image", "speech", "text"}
    with pytest.raises(MultifslError, match=r"no split 'dev'; known: train, val, test, all"):
        task.items("dev")


@pytest.mark.parametrize(
    "task",
    [Omniglot(), SpeechCommands(), LibriSpeech(), ArabicSpeechCommands(), Banking77()],
    ids=lambda t: type(t).__name__,
)
def test_missing_data_folder(tmp_path: Path, task: Task) -> None:
    task.data_root = tmp_path
    with pytest.raises(DataNotFound, match=r"was not found; looked for .*--data-root or \$MULTIFSL_DATA"):
        task.items("train")


def test_keywords_are_attributes() -> None:
    task = Speakers("x", splits="y", seed=3, group_by="(a)")
    assert (task.path, task.splits, task.seed, task.group_by) == ("x", "y", 3, "(a)")
    texts = Texts("x", text="t", label="l", splits="y", seed=2)
    assert (texts.path, texts.text, texts.label, texts.splits, texts.seed) == ("x", "t", "l", "y", 2)


# ---- folders and archives ----


@pytest.mark.parametrize("wrappers", ["", "data", "data/inner"])
@pytest.mark.parametrize("archive", [False, True])
def test_folder_and_archive_agree(tmp_path: Path, wrappers: str, archive: bool) -> None:
    make_folders(tmp_path / "root" / wrappers)
    write(tmp_path / "root" / "README.txt", "not an image")
    write(tmp_path / "root" / "__MACOSX" / "a" / "._a.png", "not an image")
    write(tmp_path / "root" / ".hidden" / "a.png", "not an image")
    path = zipped(tmp_path / "root", tmp_path / "root.zip") if archive else tmp_path / "root"
    items = Images(path).items("all")
    assert items.class_names == TEN and items.labels.tolist() == [c for c in range(10) for _ in range(3)]
    assert [Path(str(item)).name for item in items.items] == [f"{c}{n}_s{n % 2}.png" for c in TEN for n in range(3)]
    assert all(isinstance(item, Member if archive else Path) for item in items.items)
    assert items.items[0].read_bytes() == b"x"


def test_suffixes_and_nested_files(tmp_path: Path) -> None:
    for name in ("a/1.PNG", "a/deep/er/2.jpeg", "b/1.TiF", "b/2.webp", "b/notes.txt", "b/3.png.bak"):
        write(tmp_path / name, "x")
    items = Images(tmp_path).items("all")
    assert [item.relative_to(tmp_path).as_posix() for item in items.items] == [
        "a/1.PNG", "a/deep/er/2.jpeg", "b/1.TiF", "b/2.webp"
    ]  # fmt: skip


def test_audio_suffixes(tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "ogg", "mp3", "opus", "aiff", "aif", "au", "FLAC"):
        write(tmp_path / "a" / f"{suffix}_.{suffix}", "x")
    write(tmp_path / "a" / "x.raw", "no header: a rate would have to be guessed")
    assert len(Speakers(tmp_path).items("all").items) == 9


def test_one_class_is_no_wrapper(tmp_path: Path) -> None:
    write(tmp_path / "only" / "1.png", "x")
    write(tmp_path / "only" / "deep" / "2.png", "x")
    assert Images(tmp_path).items("all").class_names == ["only"]


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folders(tmp_path / "root" / "shapes")
    monkeypatch.chdir(tmp_path)
    assert Images("root/shapes").items("all").class_names == TEN
    assert rooted(Images("shapes"), tmp_path / "root").items("all").class_names == TEN
    monkeypatch.setenv("MULTIFSL_DATA", str(tmp_path / "root"))
    assert Images("shapes").items("all").class_names == TEN
    with pytest.raises(DataNotFound, match=r"'nowhere' was not found; looked for nowhere, .*root/nowhere"):
        Images("nowhere").items("all")


@pytest.mark.parametrize("archive", [False, True])
def test_empty_class(tmp_path: Path, archive: bool) -> None:
    make_folders(tmp_path / "root")
    (tmp_path / "root" / "void").mkdir()
    write(tmp_path / "root" / "words" / "x.txt", "x")
    path = zipped(tmp_path / "root", tmp_path / "root.zip") if archive else tmp_path / "root"
    with pytest.raises(MultifslError, match=r"no usable file in class 'void', 'words' of .*\.bmp, .*\.webp"):
        Images(path).items("train")
    with pytest.raises(MultifslError, match=r"no usable file in class 'a', .* and 7 more of .*\.flac, .*\.wav"):
        Speakers(path).items("train")


def test_neither_folder_nor_archive(tmp_path: Path) -> None:
    with pytest.raises(MultifslError, match="is neither a folder nor a zip archive"):
        Images(write(tmp_path / "x.png", "x")).items("all")
    with pytest.raises(BadFile, match="not a zip archive, or is cut short"):
        Images(write(tmp_path / "x.zip", "x")).items("all")
    with pytest.raises(MultifslError, match="has no class folders"):
        Images(write(tmp_path / "flat" / "x.png", "x").parent).items("all")
    whole = zipped(make_folders(tmp_path / "root"), tmp_path / "root.zip").read_bytes()
    with pytest.raises(BadFile, match="not a zip archive, or is cut short"):
        Images(write(tmp_path / "cut.zip", whole[: len(whole) // 2])).items("all")


def test_group_by(tmp_path: Path) -> None:
    make_folders(tmp_path / "root", ".wav")
    items = Speakers(tmp_path / "root", group_by=r"_(s\d)").items("all")
    assert items.groups is not None and items.groups.tolist() == [0, 1, 0] * 10
    assert Speakers(tmp_path / "root").items("all").groups is None
    write(tmp_path / "days" / "ann" / "monday" / "1.wav", "x")
    write(tmp_path / "days" / "ann" / "tuesday" / "1.wav", "x")
    write(tmp_path / "days" / "bob" / "tuesday" / "1.wav", "x")
    nested = Speakers(tmp_path / "days", group_by="^([^/]*)/").items("all")
    assert nested.groups is not None and nested.groups.tolist() == [0, 1, 1]
    with pytest.raises(MultifslError, match=r"group_by '\(night\)' finds no group in 'monday/1.wav'"):
        Speakers(tmp_path / "days", group_by="(night)").items("all")
    with pytest.raises(MultifslError, match="is not a regular expression"):
        Speakers("x", group_by="(")
    with pytest.raises(MultifslError, match="has no group"):
        Speakers("x", group_by="x")


# ---- class splits ----


def test_splits_by_seed(tmp_path: Path) -> None:
    make_folders(tmp_path)
    for seed in (0, 1):
        for split in SPLITS:
            assert Images(tmp_path, seed=seed).items(split).class_names == split_classes(TEN, seed)[split]
    assert [len(Images(tmp_path).items(split).class_names) for split in SPLITS] == [6, 2, 2, 10]


@pytest.mark.parametrize("form", ["json", "valid", "folder"])
def test_splits_from_a_file(tmp_path: Path, form: str) -> None:
    make_folders(tmp_path / "root")
    val = "val" if form == "json" else "valid"
    if form == "folder":
        for part, names in (("train", "j\na\n"), ("valid", "\ufeffb\n\n"), ("test", " c \r\nd")):
            write(tmp_path / "splits" / f"{part}.txt", names)
        path = tmp_path / "splits"
    else:
        path = write(tmp_path / "s.json", json.dumps({"train": ["j", "a"], val: ["b"], "test": ["c", "d"]}))
    task = Images(tmp_path / "root", splits=path)
    assert [task.items(split).class_names for split in SPLITS] == [["a", "j"], ["b"], ["c", "d"], TEN]
    assert rooted(Images("root", splits=path.name), tmp_path).items("val").class_names == ["b"]


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        ({"train": ["robbin"]}, MultifslError, "do not exist: 'robbin'; did you mean 'robin'"),
        (
            {"train": list("uv1234")},
            MultifslError,
            "'u', 'v', '1', '2', '3' and 1 more; there are blackbird, robin, wren",
        ),
        ({"train": ["wren"], "test": ["wren"]}, MultifslError, "class 'wren' stands in 'train' and in 'test'"),
        ({"val": ["wren"], "valid": ["wren"]}, MultifslError, "class 'wren' stands twice in 'val'"),
        ({"train": ["wren"]}, MultifslError, "split 'test' has no class: of 3, train 1, val 0, test 0"),
        ({"train": ["wren"], "dev": []}, BadFile, "has a split 'dev'; known: train, val"),
        ({}, BadFile, "names no class"),
        ({"train": [["wren"]]}, BadFile, "is not of the form"),
        ([], BadFile, "is not of the form"),
    ],
)
def test_wrong_splits(tmp_path: Path, lists: Any, error: type[MultifslError], message: str) -> None:
    for name in ("robin", "wren", "blackbird"):
        write(tmp_path / "birds" / name / "1.png", "x")
    path = write(tmp_path / "s.json", json.dumps(lists))
    with pytest.raises(error, match=message):
        Images(tmp_path / "birds", splits=path).items("test")


def test_unreadable_splits(tmp_path: Path) -> None:
    make_folders(tmp_path / "root")
    with pytest.raises(BadFile, match=r"cannot read the splits in .*s\.json: .*line 1 column 2"):
        Images(tmp_path / "root", splits=write(tmp_path / "s.json", "{")).items("train")
    with pytest.raises(BadFile, match="cannot read the splits in"):
        Images(tmp_path / "root", splits=write(tmp_path / "s.json", b'"\xff"')).items("train")
    with pytest.raises(BadFile, match="names no class"):
        Images(tmp_path / "root", splits=tmp_path / "root").items("train")
    with pytest.raises(DataNotFound, match=r"'s2\.json' was not found"):
        Images(tmp_path / "root", splits="s2.json").items("train")
    write(tmp_path / "one" / "a" / "1.png", "x")
    with pytest.raises(MultifslError, match="split 'val' has no class: of 1, train 1, val 0, test 0"):
        Images(tmp_path / "one").items("val")


# ---- texts ----


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "x.jsonl",
            '\ufeff{"text": "é, \u2028ü", "label": "b"}\r\n\n{"text": "two\\nlines", "label": " a "}\n'
            '{"text": "x", "label": 7}',
        ),
        ("x.csv", '\ufefftext,id,label\n"é, \u2028ü",1,b\r\n\n"two\nlines",2, a \nx,3,7\n'),
        ("x.TSV", 'label\ttext\nb\té, \u2028ü\na\t"two\nlines"\n7\tx\n'),
    ],
)
def test_texts(tmp_path: Path, name: str, content: str) -> None:
    items = Texts(write(tmp_path / name, content)).items("all")
    assert items.class_names == ["7", "a", "b"] and items.labels.tolist() == [0, 1, 2]
    assert list(items.items) == ["x", "two\nlines", "é, \u2028ü"]


def test_text_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "body,queue\nhello,greeting\n")
    assert list(Texts(path, text="body", label="queue").items("all").items) == ["hello"]


GOOD = '{"text": "x", "label": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("x.jsonl", GOOD + '{"text": "x", "label" "a"}\n', BadFile, r"x\.jsonl, line 2: broken JSON, .* at column 23"),
        ("x.jsonl", GOOD + "[1]", BadFile, r"x\.jsonl, line 2: each line must be a JSON object"),
        (
            "x.jsonl",
            GOOD + '{"txt": "x", "label": "a"}',
            MultifslError,
            r"line 2: no column 'text'; there are 'txt', 'label'",
        ),
        ("x.jsonl", GOOD + "\n" + '{"text": " ", "label": "a"}', BadFile, r"line 3: 'text' is empty"),
        ("x.jsonl", '{"text": "x", "label": ""}', BadFile, r"line 1: 'label' is empty"),
        ("x.jsonl", '{"text": null, "label": "a"}', BadFile, r"line 1: 'text' should be a string, not None"),
        ("x.jsonl", '{"text": "x", "label": true}', BadFile, r"line 1: 'label' should be a string, not True"),
        ("x.jsonl", "\n", BadFile, r"x\.jsonl has no rows"),
        ("x.jsonl", GOOD.encode() + b'{"text": "caf\xe9", "label": "a"}', BadFile, r"x\.jsonl, line 2: not UTF-8"),
        ("x.csv", "text;label\nx;a\n", MultifslError, r"x\.csv, line 2: no column 'text'; there are 'text;label'"),
        ("x.csv", 'text,label\n"a\nb",c\nx,,y\n', BadFile, r"line 4: 3 columns where the header has 2; .*',' in it"),
        ("x.csv", "text,label\nx,a\n,a\n", BadFile, r"line 3: 'text' is empty"),
        ("x.csv", 'text,label\nx,a\n"open,a\nx,a\n', BadFile, r"line 3: broken CSV, unexpected end of data"),
        ("x.csv", "text,label\n", BadFile, r"x\.csv has no rows"),
        ("x.xlsx", "x", MultifslError, r"not a table of texts; give a file with suffix \.jsonl, .*\.tsv"),
    ],
)
def test_wrong_texts(tmp_path: Path, name: str, content: str | bytes, error: type[MultifslError], message: str) -> None:
    with pytest.raises(error, match=message):
        Texts(write(tmp_path / name, content)).items("all")


def test_missing_texts(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="was not found"):
        Texts(tmp_path / "x.jsonl").items("all")
    with pytest.raises(MultifslError, match="is not a table of texts"):
        Texts(tmp_path).items("all")


# ---- Omniglot ----


@pytest.mark.parametrize("archive", [False, True])
def test_omniglot_items(tmp_path: Path, archive: bool) -> None:
    make_omniglot(tmp_path, archive=archive)
    items = rooted(Omniglot(), tmp_path).items("val")
    assert items.class_names == [f"Letters/character02/rot{degrees}" for degrees in ("000", "090", "180", "270")]
    assert items.groups is not None and items.groups.tolist() == [*range(1, 21)] * 4
    for drawer in (1, 20):
        upright = np.asarray(items.items[drawer - 1])
        grey = drawing(2, drawer).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
        assert np.array_equal(upright, 255 - np.asarray(grey))
        assert upright.dtype == np.uint8 and np.median(upright) == 0 and upright.max() > 200  # white ink on black
        for quarter in (1, 2, 3):
            turned = np.asarray(items.items[20 * quarter + drawer - 1])
            assert np.array_equal(turned, np.rot90(upright, quarter))  # counter-clockwise
            assert not np.array_equal(turned, upright)
    first = items.items[0]
    assert first.mode == "L" and first.size == (28, 28)
    first.paste(77, (0, 0, 28, 28))  # a caller's changes stay the caller's
    assert np.asarray(items.items[0]).min() == 0
    assert rooted(Omniglot(rotations=False), tmp_path).items("all").class_names == [
        "Letters/character01/rot000", "Letters/character02/rot000", "Signs/character03/rot000"
    ]  # fmt: skip


def test_omniglot_missing_files(tmp_path: Path) -> None:
    folder = make_omniglot(tmp_path)
    (folder / "images_evaluation.zip").unlink()
    task = rooted(Omniglot(), tmp_path)
    assert len(task.items("train").items) == 80
    with pytest.raises(
        DataNotFound, match=r"1 of the 1 characters of split 'test' lack drawings .*Signs/character03\."
    ):
        task.items("test")
    with pytest.raises(DataNotFound, match="1 of the 3 characters of split 'all'"):
        task.items("all")
    lines = "".join(f"Signs/character{number:02}/rot000\n" for number in range(11, 18))
    write(folder / "splits" / "vinyals" / "test.txt", lines)
    with pytest.raises(DataNotFound, match=r"7 of the 7 .*Signs/character15 and 2 more\. Put the official images_back"):
        task.items("test")
    write(folder / "splits" / "vinyals" / "test.txt", "Signs/character03\n")
    with pytest.raises(BadFile, match="'Signs/character03' is not Alphabet/characterNN/rotDDD"):
        task.items("test")
    (folder / "splits" / "vinyals" / "test.txt").unlink()
    with pytest.raises(DataNotFound, match=r"has no splits/vinyals/test\.txt"):
        task.items("test")


def test_omniglot_incomplete_or_broken_drawings(tmp_path: Path) -> None:
    make_omniglot(tmp_path / "few", archive=False, drawers=19)
    with pytest.raises(DataNotFound, match=r"lack drawings in .* \(of 20 each\)"):
        rooted(Omniglot(), tmp_path / "few").items("train")
    folder = make_omniglot(tmp_path / "broken", archive=False)
    write(folder / "images_background" / "Letters" / "character01" / "0001_01.png", "no image")
    with pytest.raises(BadItem, match=r"cannot read the drawing .*0001_01\.png"):
        rooted(Omniglot(), tmp_path / "broken").items("train").items[0]


# ---- speakers ----


def test_clips_unpacked(tmp_path: Path) -> None:
    """`clips.zip`, `clips/` and the speakers' folders themselves are the same data."""
    folder = make_clips(tmp_path / "speakers_speech_commands", lambda _: ["bed_0", "cat_0"])
    task = rooted(SpeechCommands(seed=1), tmp_path)
    packed = task.items("train")
    content = [clip.read_bytes() for clip in packed.items]
    with zipfile.ZipFile(folder / "clips.zip") as archive:
        archive.extractall(folder / "clips")
    (folder / "clips.zip").unlink()
    in_clips = task.items("train")
    for speaker in (folder / "clips").iterdir():
        speaker.rename(folder / speaker.name)
    (folder / "clips").rmdir()
    bare = task.items("train")
    assert packed.class_names == in_clips.class_names == bare.class_names and len(packed.class_names) == 8
    assert content == [clip.read_bytes() for clip in bare.items] and all(isinstance(clip, Path) for clip in bare.items)
    for speaker in folder.iterdir():
        speaker.rename(tmp_path / speaker.name)
    with pytest.raises(DataNotFound, match=r"has neither clips\.zip nor folders of speakers"):
        task.items("train")


def test_speech_commands_seed(tmp_path: Path) -> None:
    make_clips(tmp_path / "speakers_speech_commands", lambda _: ["bed_0"], speakers=20)
    by_seed = [rooted(SpeechCommands(seed=seed), tmp_path).items("test").class_names for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_arabic_groups(tmp_path: Path) -> None:
    make_arabic(tmp_path)
    by_speaker = rooted(ArabicSpeechCommands(), tmp_path).items("test")
    assert by_speaker.class_names == ["0008", "0009"] and by_speaker.groups is not None
    assert by_speaker.groups.tolist() == [0, 1] * 10 + [2, 3] * 10  # (speaker, round)
    by_keyword = rooted(ArabicSpeechCommands(by="keyword"), tmp_path).items("all")
    assert by_keyword.class_names == [f"zoom_{name}" for name in TEN] and by_keyword.groups is not None
    assert by_keyword.groups.tolist() == [speaker for _ in TEN for speaker in range(10) for _ in (0, 1)]
    with pytest.raises(MultifslError, match="by must be 'speaker' or 'keyword', not 'word'"):
        ArabicSpeechCommands(by="word")


def test_arabic_in_two_parts(tmp_path: Path) -> None:
    make_arabic(tmp_path)
    three, two = (rooted(ArabicSpeechCommands(two_parts=parts), tmp_path) for parts in (False, True))
    assert two.items("train").class_names == three.items("train").class_names
    assert two.items("test").class_names == sorted(
        n for split in ("val", "test") for n in three.items(split).class_names
    )
    with pytest.raises(MultifslError, match="split 'val' has no class"):
        two.items("val")
    fast = rooted(ArabicSpeechCommands(two_parts=True, speeds=(1.0, 1.1)), tmp_path)
    assert len(fast.items("train").class_names) == 2 * len(two.items("train").class_names)
    assert fast.items("test").class_names == two.items("test").class_names
    with pytest.raises(MultifslError, match="about speakers"):
        ArabicSpeechCommands(by="keyword", two_parts=True)


def test_arabic_wrong_names(tmp_path: Path) -> None:
    folder = make_clips(tmp_path / "speakers_arabic", lambda _: ["zoom"])
    with pytest.raises(BadFile, match=r"zoom\.flac is not named <keyword>_<round>"):
        rooted(ArabicSpeechCommands(by="keyword"), tmp_path).items("all")
    assert folder.is_dir()


def test_librispeech_chunks(tmp_path: Path) -> None:
    """The chunks, end to end, are the utterance, but for the rest that fills no chunk."""
    make_clips(tmp_path / "speakers_librispeech", lambda s: [f"{s}-1-0000", f"{s}-1-0001"], seconds=0.25)
    items = rooted(LibriSpeech(chunk_seconds=0.1), tmp_path).items("all")
    assert len(items.items) == 10 * 2 * 2 and items.groups is not None
    assert items.groups.tolist() == [utterance for utterance in range(20) for _ in (0, 1)]
    waves = [wave for wave, rate in items.items[:2]]
    assert all(wave.dtype == np.int16 and wave.shape == (1600,) for wave in waves) and items.items[0][1] == RATE
    assert np.array_equal(np.concatenate(waves), np.arange(3200))
    waves[0][:] = 0  # a caller's changes stay the caller's
    assert np.array_equal(items.items[0][0], np.arange(1600))
    whole = rooted(LibriSpeech(chunk_seconds=0.25), tmp_path).items("all")
    assert len(whole.items) == 20 and whole.items[0][0].shape == (4000,)


def test_librispeech_errors(tmp_path: Path) -> None:
    make_clips(tmp_path / "speakers_librispeech", lambda s: [s], seconds=0.25)
    with pytest.raises(MultifslError, match=r"8 of 8 speakers, such as '\d{4}', have no utterance of 0\.3 seconds"):
        rooted(LibriSpeech(chunk_seconds=0.3), tmp_path).items("train")
    for seconds in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MultifslError, match="chunk_seconds must be a number above 0"):
            LibriSpeech(chunk_seconds=seconds)
    for number in range(10):
        write(tmp_path / "bad" / "speakers_librispeech" / str(number) / "x.flac", "no audio")
    with (
        pytest.warns(UserWarning, match=r"left out 8 recordings: cannot read the recording .*x\.flac"),
        pytest.raises(MultifslError, match="8 of 8 speakers"),
    ):
        rooted(LibriSpeech(), tmp_path / "bad").items("train")


# ---- BANKING77 ----


def test_banking77_folds(tmp_path: Path) -> None:
    make_banking(tmp_path)
    assert rooted(Banking77(fold=1), tmp_path).items("val").class_names == ["g", "h"]
    assert rooted(Banking77(fold=5), tmp_path).items("val").class_names == ["a", "b"]
    assert list(rooted(Banking77(), tmp_path).items("val").items) == ["g 0", "g 1", "g 2", "h 0", "h 1", "h 2"]
    for fold in (0, 6, "1"):
        with pytest.raises(MultifslError, match="folds 1 to 5, not"):
            Banking77(fold=fold)  # type: ignore[arg-type]
    (tmp_path / "text_banking77" / "splits" / "split_01.json").unlink()
    with pytest.raises(DataNotFound, match=r"has no splits/split_01\.json"):
        rooted(Banking77(), tmp_path).items("train")


# ---- the real data, where they are ----


def sizes(items: Items) -> tuple[int, int]:
    check_contract(items)
    return len(items.class_names), len(items.items)


def test_real_omniglot() -> None:
    needs_data("omniglot")
    train, val = Omniglot().items("train"), Omniglot().items("val")
    assert sizes(train) == (1028 * 4, 1028 * 4 * 20) and sizes(val) == (172 * 4, 172 * 4 * 20)
    assert not {name[:-7] for name in train.class_names} & {name[:-7] for name in val.class_names}
    assert sizes(Omniglot(rotations=False).items("val")) == (172, 172 * 20)
    shades = np.stack([np.asarray(val.items[row]) for row in range(0, 13_760, 172)])  # [80, 28, 28]
    assert shades.shape == (80, 28, 28) and 10 < shades.mean() < 60 and shades.max() == 255  # thin white strokes
    task = EpisodeSampler(train.labels, way=5, shot=1, query=15, class_names=train.class_names).task(0)
    assert task.support.shape == (5,) and task.query.shape == (75,)


def test_real_omniglot_test_characters_are_not_in_our_copy() -> None:
    needs_data("omniglot")
    with pytest.raises(DataNotFound, match=r"423 of the 423 characters of split 'test'.* and 418 more"):
        Omniglot().items("test")


def test_real_speech_commands() -> None:
    needs_data("speakers_speech_commands")
    assert sizes(SpeechCommands().items("all")) == (520, 2486)
    assert [len(SpeechCommands().items(split).class_names) for split in ("train", "val", "test")] == [416, 52, 52]


def test_real_librispeech() -> None:
    needs_data("speakers_librispeech")
    items = LibriSpeech().items("all")
    assert sizes(items)[0] == 251 and items.groups is not None and items.groups.max() == 250
    assert np.median(np.bincount(items.labels)) == 6
    wave, rate = items.items[0]
    assert wave.dtype == np.int16 and wave.shape == (24_000,) and rate == 16_000 and np.abs(wave).max() > 500


def test_real_arabic() -> None:
    needs_data("speakers_arabic")
    speakers, keywords = ArabicSpeechCommands(), ArabicSpeechCommands(by="keyword")
    assert sizes(speakers.items("all")) == (30, 2400) and sizes(keywords.items("all")) == (40, 2400)
    assert [sizes(speakers.items(split)) for split in ("train", "val", "test")] == [(18, 1440), (6, 480), (6, 480)]
    assert [sizes(keywords.items(split))[0] for split in ("train", "val", "test")] == [26, 6, 8]
    test = speakers.items("test")
    assert test.groups is not None and np.bincount(test.groups).tolist() == [40] * 12  # two rounds of 40 words
    sampler = EpisodeSampler(test.labels, way=5, shot=5, query=15, groups=test.groups, disjoint_groups=True)
    task = sampler.task(0)
    assert not set(test.groups[task.support]) & set(test.groups[task.query])


def test_real_banking77() -> None:
    needs_data("text_banking77")
    assert sizes(Banking77().items("all")) == (77, 13_083)
    for fold in range(1, 6):
        parts = [Banking77(fold=fold).items(split) for split in ("train", "val", "test")]
        assert [sizes(part)[0] for part in parts] == [25, 25, 27]
        assert len({name for part in parts for name in part.class_names}) == 77


def test_speeds_make_speakers_of_their_own_in_the_train_split_alone(tmp_path: Path) -> None:
    make_clips(tmp_path / "speakers_speech_commands", lambda _: ["bed_0", "cat_0"])
    plain = rooted(SpeechCommands(), tmp_path).items("train")
    task = rooted(SpeechCommands(speeds=(0.8, 1.0)), tmp_path)
    items = task.items("train")
    n = len(plain.class_names)
    assert items.class_names == [f"{name} x0.8" for name in plain.class_names] + plain.class_names
    assert items.labels.tolist() == [*plain.labels, *(plain.labels + n)]
    wave, rate = items.items[0]
    assert rate == 0.8 * 16000 and np.array_equal(wave, decode(plain.items[0])[0])
    assert items.items[len(plain.labels)] == plain.items[0]
    again, again_rate = handed_over(items.items)[0]
    assert again_rate == rate and np.array_equal(again, wave)
    assert task.items("val").class_names == rooted(SpeechCommands(), tmp_path).items("val").class_names
    for wrong in [(), 1.0, (1.0, 1.0), (9.0,)]:
        with pytest.raises(MultifslError, match="speeds must be different numbers"):
            SpeechCommands(speeds=wrong)  # type: ignore[arg-type]
