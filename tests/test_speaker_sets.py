"""The sets of speakers: against files made here in their official layout, and against the real data where they are.

Oracles: the files as they were written, and the counts and speakers that the authors publish.
"""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from multifsl.archive import Member
from multifsl.encoders._speech import load_waveform
from multifsl.episode import EpisodeSampler
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.task import Task, split_classes
from multifsl.tasks.vctk import Vctk
from multifsl.tasks.voxceleb1 import DEV, TEST, VoxCeleb1
from tests.needs import needs_data
from tests.sets import PARTS, check_splits
from tests.test_tasks import flac, rooted, write

# ---- VoxCeleb1 ----

SHARED = "interview_of_two"
CLIPS = [f"{video}/0000{number}.wav" for video in ("aaa", "bbb") for number in (1, 2)]


def make_voxceleb(root: Path, *, archive: bool = False) -> Path:
    """All 1,251 speakers with two clips of each of two videos; id10270 and id10271 talk in one more, together."""
    folder = root / "voxceleb1"
    clips = {name: [f"{name}_{clip}" for clip in CLIPS] for name in [*DEV, *TEST]}
    for name in TEST[:2]:
        clips[name].append(f"{SHARED}/00001.wav")
    for name, paths in clips.items():
        for path in () if archive else paths:
            write(folder / "wav" / name / path, "x")
    for part, names in (("dev", DEV), ("test", TEST)) if archive else ():
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(folder / f"vox1_{part}_wav.zip", "w") as out:
            for name in reversed(names):
                for path in clips[name]:
                    out.writestr(f"wav/{name}/{path}", "x")
    return folder


def test_voxceleb_speakers() -> None:
    """1,251 speakers, numbered without a gap; 40 of them are the verification set."""
    assert len(DEV) == 1211 and len(TEST) == 40 and (TEST[0], TEST[-1]) == ("id10270", "id10309")
    assert sorted([*DEV, *TEST]) == [f"id{number}" for number in range(10001, 11252)]


@pytest.mark.parametrize("archive", [False, True])
def test_voxceleb(tmp_path: Path, archive: bool) -> None:
    make_voxceleb(tmp_path, archive=archive)
    splits = check_splits(rooted(VoxCeleb1(), tmp_path), (1090, 121, 40))
    test = splits["test"]
    assert test.class_names == TEST and test.groups is not None and len(test.items) == 40 * 4 + 2
    assert test.groups[:10].tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4, 2]  # one video of two speakers is one group
    assert str(test.items[4]).endswith(f"wav/id10270/{SHARED}/00001.wav")
    assert isinstance(test.items[0], Member if archive else Path)
    sampler = EpisodeSampler(test.labels, way=5, shot=1, query=2, groups=test.groups, disjoint_groups=True)
    task = sampler.task(0)
    assert not set(test.groups[task.support]) & set(test.groups[task.query])


def test_voxceleb_seed_moves_val_alone(tmp_path: Path) -> None:
    make_voxceleb(tmp_path)
    first, other = (rooted(VoxCeleb1(seed=seed), tmp_path) for seed in (0, 1))
    assert first.items("test").class_names == other.items("test").class_names
    assert first.items("val").class_names != other.items("val").class_names
    with pytest.raises(MultifslError, match="voxceleb1: seed is a whole number"):
        VoxCeleb1(seed=-1)


def test_wrong_voxceleb(tmp_path: Path) -> None:
    task = rooted(VoxCeleb1(), tmp_path)
    with pytest.raises(DataNotFound, match="'voxceleb1' was not found; looked for"):
        task.items("train")
    (tmp_path / "voxceleb1").mkdir()
    with pytest.raises(DataNotFound, match=r"has neither the folder wav nor vox1_dev_wav\.zip nor vox1_test_wav\.zip"):
        task.items("train")
    folder = make_voxceleb(tmp_path, archive=True)
    (folder / "vox1_test_wav.zip").unlink()
    assert len(task.items("val").class_names) == 121
    with pytest.raises(
        DataNotFound, match=r"40 of the 40 classes of split 'test' are not in .*: id10270, .* and 35 more"
    ):
        task.items("test")
    whole = (folder / "vox1_dev_wav.zip").read_bytes()
    write(folder / "vox1_dev_wav.zip", whole[: len(whole) // 2])
    with pytest.raises(BadFile, match="not a zip archive, or is cut short"):
        task.items("train")
    for wrong in ("id10001/00001.wav", "Edward_Norton/aaa/00001.wav"):
        write(tmp_path / "wrong" / "voxceleb1" / "wav" / wrong, "x")
        with pytest.raises(BadFile, match=r"00001\.wav is not at <speaker>/<video>/<clip>\.wav with a speaker such as"):
            rooted(VoxCeleb1(), tmp_path / "wrong").items("train")
        (tmp_path / "wrong" / "voxceleb1" / "wav" / wrong).unlink()


def test_real_voxceleb() -> None:
    needs_data("voxceleb1")
    test = VoxCeleb1().items("test")
    assert (len(test.class_names), len(test.items)) == (40, 4874)


# ---- VCTK ----

NAMES = [f"p{number}" for number in range(225, 334)] + ["s5"]  # as many as VCTK's 110, not the same numbers


def make_vctk(root: Path, version: str = "0.92", place: str = "") -> Path:
    """110 speakers with three sentences; p280 and p315 lack the second microphone. p225's first clip is audio."""
    wave = flac((3000 * np.sin(np.arange(24_000) / 20)).astype(np.int16))
    for name in NAMES:
        for sentence in ("001", "002", "024"):
            if version == "0.80":
                write(root / "vctk" / place / "wav48" / name / f"{name}_{sentence}.wav", "x")
                continue
            for mic in (1, 2):
                if mic == 1 or name not in ("p280", "p315"):
                    path = root / "vctk" / place / "wav48_silence_trimmed" / name / f"{name}_{sentence}_mic{mic}.flac"
                    write(path, wave if name == "p225" and sentence == "001" else b"x")
    write(root / "vctk" / place / ("wav48" if version == "0.80" else "wav48_silence_trimmed") / "log.txt", "x")
    return root / "vctk"


@pytest.mark.parametrize(
    ("version", "place"), [("0.92", ""), ("0.92", "VCTK-Corpus-0.92"), ("0.80", ""), ("0.80", "VCTK-Corpus")]
)
def test_vctk(tmp_path: Path, version: str, place: str) -> None:
    make_vctk(tmp_path, version, place)
    splits = check_splits(rooted(Vctk(), tmp_path), (88, 11, 11))
    dealt = split_classes(NAMES, 0, (0.8, 0.1, 0.1))
    everything = splits["all"]
    assert [splits[part].class_names for part in PARTS] == [dealt[part] for part in PARTS]
    ending = ".wav" if version == "0.80" else "_mic1.flac"
    assert [Path(item).name for item in everything.items[:3]] == [f"p225_{n}{ending}" for n in ("001", "002", "024")]
    assert everything.groups is not None and everything.groups.tolist() == [0, 1, 2] * 110  # one sentence, one group


def test_vctk_microphones(tmp_path: Path) -> None:
    make_vctk(tmp_path)
    first, second = rooted(Vctk(), tmp_path), rooted(Vctk(microphone=2), tmp_path)
    everything = second.items("all")
    assert len(everything.class_names) == 108 and not {"p280", "p315"} & set(everything.class_names)
    assert all(Path(item).name.endswith("_mic2.flac") for item in everything.items)
    for part in PARTS:  # who trains, trains with either microphone
        assert second.items(part).class_names == [n for n in first.items(part).class_names if n not in ("p280", "p315")]
    wave = load_waveform(first.items("all").items[0])
    assert wave.shape == (24_000,) and np.abs(wave).max() > 2500  # made at 16 kHz, as it is
    with pytest.raises(BadItem, match=r"p225_002_mic1\.flac: not audio"):
        load_waveform(first.items("all").items[1])


def test_wrong_vctk(tmp_path: Path) -> None:
    for microphone in (0, 3, "1"):
        with pytest.raises(MultifslError, match="vctk has the microphones 1 and 2, not"):
            Vctk(microphone=microphone)  # type: ignore[arg-type]
    with pytest.raises(DataNotFound, match="'vctk' was not found; looked for"):
        rooted(Vctk(), tmp_path).items("train")
    (tmp_path / "vctk").mkdir()
    with pytest.raises(DataNotFound, match=r"has none of the folders wav48_silence_trimmed, VCTK-Corpus-0\.92/wav48_s"):
        rooted(Vctk(), tmp_path).items("train")
    make_vctk(tmp_path / "old", "0.80")
    with pytest.raises(MultifslError, match="wav48 has no recording of microphone 2; version 0.92 of VCTK has both"):
        rooted(Vctk(microphone=2), tmp_path / "old").items("train")
    write(tmp_path / "old" / "vctk" / "wav48" / "p225" / "p225_one.wav", "x")
    with pytest.raises(BadFile, match=r"p225_one\.wav is not named <speaker>_<sentence>"):
        rooted(Vctk(), tmp_path / "old").items("train")
    (tmp_path / "empty" / "vctk" / "wav48" / "p225").mkdir(parents=True)
    with pytest.raises(MultifslError, match=r"no usable file in class 'p225' of .*\.flac, \.wav"):
        rooted(Vctk(), tmp_path / "empty").items("train")


def test_real_vctk() -> None:
    needs_data("vctk")
    splits = {part: Vctk().items(part) for part in PARTS}
    assert sum(len(items.class_names) for items in splits.values()) in (109, 110)


@pytest.mark.parametrize("task", [VoxCeleb1(), Vctk()], ids=lambda task: type(task).__name__)
def test_unknown_split(tmp_path: Path, task: Task) -> None:
    (make_voxceleb if isinstance(task, VoxCeleb1) else make_vctk)(tmp_path)
    with pytest.raises(MultifslError, match="no split 'dev'; known: train, val, test, all"):
        rooted(task, tmp_path).items("dev")
