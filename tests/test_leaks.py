"""Leaks. Oracles: toys drawn by hand, one of each kind and one that is clean; correlations by numpy; what is known of real data."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torchaudio.functional import resample

from multifsl import leaks
from multifsl.archive import Member
from multifsl.cache import EmbeddingCache
from multifsl.encoder import Features
from multifsl.errors import DataNotFound, MultifslError
from multifsl.leaks import (
    ALIKE,
    KINDS,
    SEEN,
    SOUNDS_ALIKE,
    Leak,
    alike_pairs,
    check_leaks,
    equal_pairs,
    find_leaks,
    read_contents,
)
from multifsl.registry import build, names, resolved
from multifsl.task import Items, Task
from tests.needs import needs_data


def items(*classes: list[Any], names: str = "abcdefgh", groups: list[int] | None = None) -> Items:
    """Items class by class."""
    labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    numbers = None if groups is None else np.array(groups)
    return Items([item for c in classes for item in c], labels, list(names[: len(classes)]), numbers)


def texts(first: int, count: int, names: str = "abcdefgh") -> Items:
    """Two classes of texts, all different."""
    return items(
        [f"text {i} of one" for i in range(first, first + count)],
        [f"text {i} of two" for i in range(first, first + count)],
        names=names,
    )


def trained(task: str, **more: Any) -> dict[str, Any]:
    """What the run.json of a run on that task says."""
    return {"task": resolved(build("tasks", task)), "encoder": "conv4", "method": "prototypical", **more}


def found(
    task: str | Task, split: str = "test", *, encoder: Any = "conv4", test: Items | None = None, **more: Any
) -> list[Leak]:
    built = build("tasks", task) if isinstance(task, str) else task
    return find_leaks(built, split, encoder=encoder, test=texts(0, 5) if test is None else test, **more)


def kinds(leaks: list[Leak]) -> list[tuple[str, bool]]:
    return [(leak.kind, leak.severe) for leak in leaks]


def noise(seed: int) -> tuple[np.ndarray, int]:
    """A clip unlike all others."""
    return np.random.default_rng(seed).integers(-999, 999, 4000).astype(np.int16), 8000


def test_clean() -> None:
    assert found("banking77") == []
    assert found("banking77", train=texts(5, 5, "xy"), run_info=trained("banking77")) == []


# ---- trained-on, chosen-on, classes ----


@pytest.mark.parametrize(
    ("task", "split", "run", "leak"),
    [
        ("banking77", "train", "banking77(fold=1)", True),
        ("banking77", "all", "banking77", True),
        ("banking77", "val", "banking77", False),
        ("banking77(fold=2)", "train", "banking77", False),  # for the classes' names to tell
        ("hwu64", "train", "hwu64 + banking77", True),
        ("hwu64 + clinc150", "all", "banking77 + clinc150", True),
        ("omniglot(rotations=False)", "train", "omniglot", True),  # turns are of the same characters
        ("speech_commands", "train", "speech_commands(speeds=(0.9, 1.1))", True),
        ("speech_commands(seed=1)", "train", "speech_commands", False),
        ("texts('a.csv')", "train", "texts('./a.csv')", True),
        ("texts('a.csv')", "train", "texts('b.csv')", False),
        ("texts('a.csv', label='x')", "train", "texts('a.csv', label='y')", False),
    ],
)
def test_trained_on(task: str, split: str, run: str, leak: bool) -> None:
    got = found(task, split, run_info=trained(run))
    assert (("trained-on", True) in kinds(got)) == leak


def test_an_older_run_lacks_younger_arguments() -> None:
    got = found("clinc150", "train", run_info={"task": "clinc150(seed=0)"})
    assert got[0].kind == "trained-on" and "the train split of clinc150" in got[0].message
    assert "trained-on" not in dict(kinds(found("clinc150", "train", run_info={"task": "clinc150(seed=1)"})))


def test_classes_told_once() -> None:
    """On the train split every class and item is shared; that is one leak, not three."""
    train = texts(0, 5)
    assert kinds(found("banking77", "train", test=train, train=train, run_info=trained("banking77"))) == [
        ("trained-on", True)
    ]


def test_the_encoder_came_from_a_run() -> None:
    from_model = ["model:omniglot-prototypical", "0" * 32]
    got = found("omniglot", "train", run_info=trained("cifar_fs", encoder_from=from_model))
    assert ("trained-on", True) in kinds(got)
    assert kinds(found("omniglot", "train", encoder="model:omniglot-prototypical"))[0] == ("trained-on", True)
    got = found("omniglot", run_info=trained("cifar_fs", encoder_from=["run:elsewhere", "0" * 32]))
    assert [leak.message for leak in got if "run:elsewhere" in leak.message] == [
        "not checked for leaks: what run:elsewhere was trained on, from which the run's encoder came"
    ]


def test_chosen_on() -> None:
    run = trained("banking77", metrics={"val_step": 60})
    given: dict[str, Any] = {"train": texts(5, 5, "xy"), "run_info": run}
    assert kinds(found("banking77", "val", **given)) == [("chosen-on", False)]
    assert found("banking77", "val", weights="last", **given) == []
    assert found("banking77", "test", **given) == [] and found("hwu64", "val", **given) == []
    assert found("banking77", "val", train=given["train"], run_info=trained("banking77", metrics={})) == []


@pytest.mark.parametrize(
    ("task", "run", "shared"),
    [
        ("banking77(fold=2)", "banking77", ["b"]),
        ("fc100", "cifar_fs", ["b"]),  # the same photos
        ("banking77", "hwu64", []),  # an intent of that name in another set is another one
    ],
)
def test_classes(task: str, run: str, shared: list[str]) -> None:
    modality = build("tasks", task).modality
    some, others = (
        (texts(0, 5), texts(5, 5, "bx")) if modality == "text" else (items([], []), items([], [], names="bx"))
    )
    got = [leak for leak in found(task, test=some, train=others, run_info=trained(run)) if leak.kind == "classes"]
    assert [leak.severe for leak in got] == [True] * len(shared)
    assert all(f"1 of the 2 classes: {', '.join(shared)};" in leak.message for leak in got)


def test_classes_of_joined_tasks() -> None:
    """b is a class of the first set here and of the second there: two classes."""
    joined, sources = build("tasks", "hwu64 + banking77"), np.array([0, 1])
    some, others = texts(0, 5), texts(5, 5, "bx")
    some, others = (Items(i.items, i.labels, i.class_names, None, sources) for i in (some, others))
    assert found(joined, test=some, train=others, run_info=trained("hwu64 + banking77")) == []
    turned = trained("banking77 + hwu64")
    assert kinds(found(joined, test=some, train=others, run_info=turned)) == [("classes", True)]


def test_a_speaker_at_another_speed() -> None:
    clips = [noise(i) for i in range(4)]
    test = Items(clips[:2], np.array([0, 0]), ["anna"])
    train = Items(clips[2:], np.array([0, 0]), ["anna x0.9"])
    got = found(
        "speech_commands(seed=1)", test=test, train=train, run_info=trained("speech_commands(speeds=(0.9, 1.1))")
    )
    assert kinds(got) == [("classes", True)] and "anna;" in got[0].message


# ---- items ----


def picture(seed: int, side: int = 64) -> Image.Image:
    """A smooth picture."""
    coarse = np.random.default_rng(seed).integers(20, 200, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_items_of_each_modality(tmp_path: Path) -> None:
    """What is in it counts, not the name: a copied file, an equal picture, an equal clip, an equal text; not a changed one."""
    files = [
        saved(picture(0), tmp_path / "a.png"),
        saved(picture(0), tmp_path / "b.png"),
        saved(picture(1), tmp_path / "c.png"),
    ]
    wave = np.arange(100, dtype=np.int16)
    kinds_of_items: dict[str, list[Any]] = {
        "image": files,
        "features": [np.ones(3), np.ones(3), np.zeros(3)],
        "speech": [(wave, 8000), (wave.copy(), 8000), (wave, 16000)],
        "text": ["Hello", "Hel" + "lo", "hello"],
    }
    for modality, (one, same, other) in kinds_of_items.items():
        contents = read_contents(items([one], [same, other]), modality)
        assert equal_pairs(contents.exact) == [(1, 0)], modality
    assert equal_pairs(read_contents(items([picture(0)], [picture(0), picture(0).convert("L")]), "image").exact) == [
        (1, 0)
    ]


def test_unreadable_items_are_like_none(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")
    contents = read_contents(items([tmp_path / "gone.png", tmp_path / "gone.png", damaged, picture(0)]), "image")
    assert [len(digest) for digest in contents.exact] == [0, 0, 16, 16]
    assert (
        equal_pairs(contents.exact) == [] and isinstance(contents.near, np.ndarray) and alike_pairs(contents.near) == []
    )


@pytest.mark.parametrize(("copies", "severe"), [(1, False), (2, False), (3, True), (5, True)])
def test_same_items_in_train_and_test(copies: int, severe: bool) -> None:
    """Up to one in a hundred of the 200 test items is a mark, more an error."""
    test, train = texts(0, 100), texts(100 - copies, 50, "xy")
    train = Items(train.items[:50], train.labels[:50], ["x"])  # of one class, so that of the test's `a` alone are there
    got = found("hwu64", test=test, train=train, run_info=trained("banking77"))
    assert kinds(got) == [("same-items", severe)]
    assert got[0].message.startswith(
        f"{copies} of the 200 items of split 'test' are the same as train items: 'text {100 - copies} of one' (a)"
    )
    assert got[0].message.endswith("; above 1% of them that is an error: take out one of each") == severe
    assert got[0].message.endswith("; up to 1% of them that is no error") == (not severe)
    assert (" and 2 more" in got[0].message) == (copies == 5)  # three are named


def test_same_items_within_the_test_items() -> None:
    test = items(["one", "two", "one", "three"], ["two", "four", "one"])
    (leak,) = found("hwu64", test=test)
    assert leak.severe and "(1 of one class, 2 of two): 'one' (a) and 'one' (a)" in leak.message
    assert leak.pairs[0] == ("'one' (a)", "'one' (a)") and len(leak.pairs) == 3


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Where is my card?", "where's my card", False),
        ("Where is my card?", "  WHERE is my-card ", True),
        ("STRASSE", "straße", True),
        ("I owe £5", "I owe $5", False),
        ("कि", "की", False),  # vowel signs are letters' parts, not punctuation
        ("?!", "...", False),  # nothing is left of either
    ],
)
def test_near_texts(one: str, other: str, near: bool) -> None:
    assert kinds(found("hwu64", test=items([one], [other]))) == [("near-items", False)] * near
    train = items([other], names="x")
    assert (
        kinds(found("hwu64", test=items([one]), train=train, run_info=trained("banking77")))
        == [("near-items", False)] * near
    )


def test_near_images(tmp_path: Path) -> None:
    """A picture saved otherwise is found; another one, a flat one, one upside down, are not; marks, never errors."""
    picture(0).save(tmp_path / "a.png")
    changed = {
        "jpeg": saved(picture(0), tmp_path / "a.jpg", quality=60),
        "large": picture(0, 200),
        "bright": picture(0).point(lambda value: int(value * 1.1)),
        "grey": picture(0).convert("L"),
        "none": picture(0).convert("RGBA"),
    }
    strange = [picture(1), picture(0).transpose(Image.Transpose.FLIP_TOP_BOTTOM), Image.new("L", (64, 64), 9)]
    train = items([tmp_path / "a.png", Image.new("L", (32, 32), 200)], names="x")
    test = items(list(changed.values()), strange)
    (leak,) = (
        each
        for each in found("omniglot", test=test, train=train, run_info=trained("cifar_fs"))
        if "train items" in each.message
    )
    assert leak.kind == "near-items" and not leak.severe
    assert (
        leak.message.startswith(f"{len(changed)} of the {len(changed) + len(strange)} items")
        and "a.jpg (a) and a.png (x)" in leak.message
    )


def test_arrays_are_images() -> None:
    array = np.asarray(picture(0))
    contents = read_contents(
        items([picture(0), array, array.transpose(2, 0, 1) / 255, np.zeros((3, 3, 3, 3))]), "image"
    )
    assert isinstance(contents.near, np.ndarray) and alike_pairs(contents.near) == [(1, 0), (2, 0)]


def voice(seed: int, seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    """A sound in -0.5..0.5 that swells and fades: a glide with its harmonics, and breath."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 30 * np.sin(2 * np.pi * (1 + rng.random()) * t + rng.random())
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    wave = sum(np.sin(k * phase + 6 * rng.random()) / k for k in range(1, 15)) + rng.normal(0, 0.1, len(t))
    wave = wave * np.sin(np.pi * t / seconds) ** 2
    return np.asarray(0.5 * wave / np.abs(wave).max(), dtype=np.float32)


def test_equal_clips(tmp_path: Path) -> None:
    """The samples count, not what holds them: a FLAC of the WAV, 24 bits, two like channels, a comment, an array."""
    wave = np.rint(voice(0) * 32768).astype(np.int16)
    other = wave.copy()
    other[5000] += 1
    same = {"a.wav": "PCM_16", "a.flac": "PCM_16", "b.flac": "PCM_24", "c.wav": "FLOAT"}
    for name, subtype in same.items():
        soundfile.write(tmp_path / name, wave / np.float32(32768), 16000, subtype=subtype)
    with soundfile.SoundFile(tmp_path / "d.wav", "w", 16000, 2) as sound:
        sound.title = "another header"
        sound.write(np.stack([wave, wave], axis=1))
    soundfile.write(tmp_path / "e.wav", other, 16000)
    soundfile.write(tmp_path / "f.wav", wave, 8000)
    arrays = [
        (wave, 16000),
        (wave.astype(np.int64), 16000.0),
        (wave / np.float32(32768), 16000),
        (torch.from_numpy(wave)[None], 16000),
    ]
    clips = [*(tmp_path / name for name in (*same, "d.wav")), *arrays, tmp_path / "e.wav", tmp_path / "f.wav"]
    exact = read_contents(items(clips), "speech").exact
    assert equal_pairs(exact) == [(i, 0) for i in range(1, 9)]
    assert len(set(exact)) == 3


def test_near_clips(tmp_path: Path) -> None:
    """One recording changed is found, another one of the like is not; marks, never errors."""
    rng = np.random.default_rng(0)
    wave = voice(0)
    soundfile.write(tmp_path / "8bit.wav", wave, 16000, subtype="PCM_U8")
    soundfile.write(tmp_path / "a.ogg", wave, 16000, format="OGG")
    changed = [
        (wave + rng.integers(-1, 2, len(wave)) / 32768, 16000),  # the last of 16 bits
        (wave / 10, 16000),
        (wave[300:-300], 16000),
        (np.pad(wave, 2000), 16000),
        (resample(torch.from_numpy(wave), 16000, 44100).numpy(), 44100),
        (resample(torch.from_numpy(wave), 16000, 8000).numpy(), 8000),
        tmp_path / "8bit.wav",
        tmp_path / "a.ogg",
    ]
    strange = [(voice(seed), 16000) for seed in range(1, 9)] + [(wave, 14400), (wave[::-1].copy(), 14000)]
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    train = items([tmp_path / "a.flac"], names="x")
    leaks = found("vctk", test=items(changed, strange), train=train, run_info=trained("arabic_speech_commands"))
    (leak,) = (each for each in leaks if "train items" in each.message and each.kind != "not-checked")
    assert leak.kind == "near-items" and not leak.severe
    begin = f"{len(changed)} of the {len(changed + strange)} items of split 'test' are nearly the same as train items"
    assert leak.message.startswith(begin)


def test_what_stays_is_no_recording() -> None:
    """Voices under one loud hum are alike in their spectra, and differ in time; a copy under it is found."""
    t = np.arange(16000) / 16000
    hum = sum(np.sin(2 * np.pi * 50 * k * t + k) for k in range(1, 40)) / 20
    heard = [(np.asarray(0.2 * voice(seed) + hum, dtype=np.float32) / 4, 16000) for seed in range(6)]
    contents = read_contents(items([*heard, (heard[0][0] / 2, 16000)]), "speech")
    assert isinstance(contents.near, np.ndarray)
    assert len(alike_pairs(contents.near, least=SOUNDS_ALIKE)) == 6
    (leak,) = (one for one in found("vctk", test=contents) if one.kind == "near-items")  # type: ignore[arg-type]
    assert leak.message.startswith("1 of the 7 items") and "item 6 (a) and item 0 (a)" in leak.message


def test_clips_that_are_none(tmp_path: Path) -> None:
    """What no encoder reads, and silence, are like nothing; the shortest clips and lowest rates are compared."""
    (tmp_path / "damaged.wav").write_bytes(b"RIFF")
    wave = voice(0)
    nothing = [
        tmp_path / "gone.wav", tmp_path / "gone.wav", tmp_path / "damaged.wav", np.zeros(9), (wave, 1e12), (wave, "16000 Hz"),
        (wave * np.nan, 16000), (np.zeros(16000), 16000), (np.zeros(16000), 16000), (np.zeros(0), 16000), (wave, 0),
    ]  # fmt: skip
    short = [(voice(1, 0.1, 4000), 4000), (voice(1, 0.1, 4000) / 2, 4000)]
    contents = read_contents(items([*nothing, *short]), "speech")
    assert [len(one) for one in contents.exact] == [0] * len(nothing) + [16, 16]
    assert isinstance(contents.near, np.ndarray)
    assert alike_pairs(contents.near, least=SOUNDS_ALIKE) == [(len(nothing) + 1, len(nothing))]


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_kept_on_disk(modality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read again, it is the same to the bit and opens no file; a file of another time, size, place or name is read anew."""
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for i in range(3):
            if modality == "image":
                path = saved(picture(i), tmp_path / f"{i}.png")
            else:
                path = tmp_path / f"{i}.flac"
                soundfile.write(path, voice(i), 16000)
            archive.write(path, path.name)
    names = [f"{i}.{'png' if modality == 'image' else 'flac'}" for i in range(3)]
    files = [tmp_path / name for name in names]
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"")
    given = items([*files, *(Member(tmp_path / "all.zip", name) for name in names), damaged])
    opened: list[Path] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        opened.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)

    def read(given: Items, cache: bool = True) -> tuple[Any, int]:
        opened.clear()
        contents = read_contents(given, modality, cache=cache)
        return contents, sum(path in (*files, damaged) for path in opened)

    plain, _ = read(given, cache=False)
    assert equal_pairs(plain.exact) == [(3, 0), (4, 1), (5, 2)] and not (tmp_path / "cache").exists()
    for _ in range(2):
        assert read(given)[1] == 4  # so young that they may change within one tick of the clock
    for path in tmp_path.iterdir():
        os.utime(path, (1e9, 1e9))
    for count in (4, 0):
        contents, reads = read(given)
        assert reads == count and contents.exact[:6] == plain.exact[:6]
        np.testing.assert_array_equal(contents.near, plain.near)
    (one,) = EmbeddingCache().sets()
    assert one.encoder == f"(leak check, {modality})" and one.items == 7
    os.utime(files[0], (1e9, 1e9 + 1))
    assert read(given)[1] == 4 and read(given)[1] == 0
    assert read(items([*files[::-1], *given.items[3:]]))[1] == 4
    files[1].unlink()
    assert read(given)[0].exact[1] == b""


def test_a_failure_that_passes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many open files, once: the next look reads what is there."""
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path / "cache"))
    given = items([saved(picture(i), tmp_path / f"{i}.png") for i in range(3)])
    for path in given.items:
        os.utime(path, (1e9, 1e9))
    read_bytes = Path.read_bytes

    def fails(path: Path) -> bytes:
        if path.suffix == ".png":
            raise OSError(24, "Too many open files")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        assert read_contents(given, "image", cache=True).exact == [b""] * 3
    assert all(read_contents(given, "image", cache=True).exact)


def test_what_is_opened_anew_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path / "cache"))
    read_contents(items([picture(0)]), "image", cache=True)
    read_contents(texts(0, 2), "text", cache=True)
    assert not (tmp_path / "cache").exists()


def test_transparent_images_lie_on_white() -> None:
    """Icons whose hidden colour is black all over differ by their shapes."""
    shapes = [np.zeros((64, 64, 4), dtype=np.uint8) for _ in range(3)]
    shapes[0][:20, :, 3] = shapes[1][:20, :, 3] = shapes[2][:, 40:, 3] = 255
    contents = read_contents(items([Image.fromarray(shape) for shape in shapes]), "image")
    assert isinstance(contents.near, np.ndarray) and alike_pairs(contents.near) == [(1, 0)]


def test_blank_pages_are_not_alike() -> None:
    """Light that falls off by a few grey levels is no picture; by many, it is one."""
    for depth, alike in ((4, []), (40, [(1, 0)])):
        pages = [
            Image.fromarray(np.linspace(200, 200 + depth, 64).repeat(64).reshape(64, 64).astype(np.uint8) - i)
            for i in (0, 1)
        ]
        contents = read_contents(items([*pages]), "image")
        assert isinstance(contents.near, np.ndarray) and alike_pairs(contents.near) == alike


def test_alike_pairs_against_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """np.corrcoef in a loop, over more images than are compared at once."""
    monkeypatch.setattr(leaks, "BLOCK", 7)
    rng = np.random.default_rng(0)
    base = rng.normal(size=(30, 64))
    rows = np.concatenate([base, base[:10] * 3 + 1 + rng.normal(size=(10, 64)) * np.linspace(0.01, 0.5, 10)[:, None]])
    ready = leaks._standardised(rows.astype(np.float32) * 50)
    like = np.corrcoef(rows)
    expected = [(i, int(like[i, :i].argmax())) for i in range(1, 40) if like[i, :i].max() >= ALIKE]
    assert alike_pairs(ready) == expected and 0 < len(expected) < 10
    assert alike_pairs(ready[30:], ready[:30]) == [(i - 30, j) for i, j in expected]
    assert alike_pairs(ready, ready[:0]) == [] and alike_pairs(ready[:0]) == []


def test_a_contents_is_read_once() -> None:
    run, task = trained("banking77"), build("tasks", "hwu64")
    test, train = texts(0, 5), texts(3, 5, "xy")
    once: dict[str, Any] = {"test": read_contents(test, "text"), "train": read_contents(train, "text")}
    got = find_leaks(task, "test", encoder="conv4", run_info=run, **once)
    assert got == find_leaks(task, "test", encoder="conv4", run_info=run, test=test, train=train) != []


# ---- groups ----


class Voices(Task):
    """Two speakers for train, one for test; `shared` gives the last one a recording of the first."""

    modality = "speech"

    def __init__(self, *, shared: bool = False, whole: bool = True) -> None:
        self.shared, self.whole = shared, whole

    def items(self, split: str) -> Items:
        clips = [noise(i) for i in range(6)]
        every = items(clips[:2], clips[2:4], clips[4:], groups=[0, 1, 2, 3, 0 if self.shared else 4, 5])
        if split == "all" and not self.whole:
            raise DataNotFound("the other archive is not there")
        if split == "all":
            return every
        # within a split they are counted from 0 again
        return items(*([clips[:2], clips[2:4]] if split == "train" else [clips[4:]]), names="ab" if split == "train" else "c",
                     groups=[0, 1, 2, 3] if split == "train" else [0, 1])  # fmt: skip


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Voices(), []),
        (
            Voices(shared=True),
            ["1 of the 2 recordings, sessions or speakers of split 'test' are in the train items too"],
        ),
        (
            Voices(whole=False),
            ["not checked for leaks: whether train and test share groups, for which all splits are needed"],
        ),
    ],
)
def test_groups_of_train_and_test(task: Voices, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {
        "test": task.items("test"),
        "train": task.items("train"),
        "run_info": {"task": resolved(task)},
    }
    got = found(task, **given)
    assert [leak.message for leak in got] == expected and not any(leak.severe for leak in got)
    monkeypatch.setattr(leaks, "BY_DESIGN", ("test_leaks",))
    assert found(task, **given) == []


def test_groups_of_support_and_query() -> None:
    """Several items of a class and a group are a mark; one of each class, as Omniglot's drawers have it, are none."""
    clips = [noise(i) for i in range(4)]
    test = items(clips[:2], clips[2:], groups=[0, 0, 1, 2])
    (leak,) = found("vctk", test=test)
    assert (
        leak.kind == "groups"
        and not leak.severe
        and "in 1 of 2 classes" in leak.message
        and "--disjoint-groups" in leak.message
    )
    assert found("vctk", test=test, disjoint_groups=True) == []
    assert found("vctk", test=items(clips[:2], clips[2:], groups=[0, 1, 0, 1])) == []


# ---- pretrained, not-checked ----


@pytest.mark.parametrize(
    ("encoder", "task", "kind"),
    [
        ("efficientnet_lite0(image_size=224, published=True)", "cifar_fs", "pretrained"),
        ("efficientnet_lite0(image_size=224, published=False)", "cifar_fs", None),
        ("efficientnet_lite0", "omniglot", None),
        ("vision(model='facebook/dinov2-small', pooling='cls', revision=None, lora=8)", "fc100", "pretrained"),
        ("vision(model='microsoft/resnet-50')", "mini_imagenet", "pretrained"),
        ("vision(model='openai/clip-vit-base-patch32')", "cifar_fs", "not-checked"),
        ("ge2e", "voxceleb1", "pretrained"),
        ("ge2e", "arabic_speech_commands", None),
        ("audio(model='microsoft/wavlm-base-plus-sv')", "voxceleb1", "pretrained"),
        ("audio(model='microsoft/wavlm-base-plus')", "voxceleb1", None),
        ("transformer(model='sentence-transformers/all-MiniLM-L6-v2')", "banking77", None),
        ("transformer(model='a/folder')", "banking77", "not-checked"),
        ("conv4", "cifar_fs", None),
        ("conv4", "images(path='photos')", None),
        ("efficientnet_lite0", "images(path='photos')", "not-checked"),
        ("transformer(model='sentence-transformers/all-MiniLM-L6-v2')", "texts(path='texts')", "not-checked"),
    ],
)
def test_pretrained(encoder: str, task: str, kind: str | None) -> None:
    expected = [] if kind is None else [(kind, False)]
    test = items([])
    assert kinds(found(task, test=test, encoder=encoder)) == expected
    run = trained(task) | {"encoder": encoder}  # a run carries it along
    assert kinds(found(task, test=test, train=items([], names="x"), encoder=encoder, run_info=run)) == expected
    taught = trained(task, teacher=[encoder, "0" * 32])  # and so does who imitates
    if encoder.startswith("conv4"):
        expected = [("not-checked", False)]  # a teacher that was a run: nobody wrote down which
    assert kinds(found(task, test=test, train=items([], names="x"), run_info=taught)) == expected


def test_built_encoders() -> None:
    assert (
        found("banking77", encoder=Features(3))
        == found("omniglot", test=items([]), encoder=build("encoders", "conv4"))
        == []
    )


def test_whether_own_classes_were_seen_is_not_known() -> None:
    (leak,) = found("images(path='photos')", test=items([]), encoder="efficientnet_lite0")
    assert leak.message.endswith("whether efficientnet_lite0 has seen such classes (it was trained on ImageNet)")


def test_what_is_known_of_published_weights() -> None:
    for row in SEEN:
        assert row.encoder in names("encoders") and set(row.tasks) <= set(names("tasks"))
        assert row.source.startswith("https://") and row.data and bool(row.what) == bool(row.tasks)


def test_kinds_that_are_not_compared_for_nearness_are_said() -> None:
    class Vectors(Voices):
        modality = "features"

    (leak,) = found(Vectors(), test=items([np.ones(3)], [np.zeros(3)]))
    assert leak.kind == "not-checked" and not leak.severe
    assert leak.message.endswith("whether items are nearly the same: features items are found where they are equal")


def test_what_was_not_compared_is_said() -> None:
    (leak,) = found("banking77", run_info=trained("banking77"))
    assert leak == Leak(
        "not-checked",
        "not checked for leaks: whether classes and items stand in the train split of banking77(fold=1)",
        False,
    )
    got = found("banking77", train=texts(0, 5, "bx"), run_info=trained("banking77"), most=9)
    assert kinds(got) == [("classes", True), ("not-checked", False)]
    assert "whether test items stand among the 10 train items" in got[1].message


# ---- what is allowed ----


def test_check_leaks() -> None:
    mark, error, other = (
        Leak("groups", "marked", False),
        Leak("classes", "both have 'cat'", True),
        Leak("same-items", "a and b", True),
    )
    assert check_leaks([mark]) == [mark]
    assert check_leaks([error, other, mark], ["same-items", "classes"]) == [error, other, mark]
    with pytest.raises(
        MultifslError,
        match=r"classes: both have 'cat'; same-items: a and b\. .*--allow-leak classes --allow-leak same-items$",
    ):
        check_leaks([error, other, mark])
    with pytest.raises(MultifslError, match=r"leak: same-items: a and b\. .*: --allow-leak same-items$"):
        check_leaks([error, other], ["classes"])
    with pytest.raises(MultifslError, match=r"no leak 'class' to allow; did you mean 'classes'\?; known: trained-on, "):
        check_leaks([], ["class"])
    assert {"trained-on", "classes", "same-items"} <= set(KINDS)


# ---- real data ----


def test_speech_commands() -> None:
    """No two of the 248 recordings are alike, those of one word by one speaker either."""
    needs_data("speakers_speech_commands")
    contents = read_contents(build("tasks", "speech_commands").items("val"), "speech")
    assert isinstance(contents.near, np.ndarray) and all(contents.exact)
    assert equal_pairs(contents.exact) == alike_pairs(contents.near, least=SOUNDS_ALIKE) == []


def test_cifar_fs() -> None:
    """One photo stands in seal (train) and otter (val); no other two of train and val are alike."""
    needs_data("cifar_fs")
    task = build("tasks", "cifar_fs")
    got = found(task, "val", test=task.items("val"), train=task.items("train"), run_info=trained("cifar_fs"))
    (same,) = (leak for leak in got if "train items" in leak.message)
    assert same.kind == "same-items" and not same.severe
    assert "train items: test_otter_s_000663.png (otter) and test_seal_s_001907.png (seal)" in same.message
    check_leaks(got)  # a set that everybody compares on is no error


def test_omniglot() -> None:
    """Drawings of few strokes are no near duplicates of each other: two of one character are, of 3,440."""
    needs_data("omniglot")
    contents = read_contents(build("tasks", "omniglot(rotations=False)").items("val"), "image")
    assert isinstance(contents.near, np.ndarray)
    assert equal_pairs(contents.exact) == [] and len(alike_pairs(contents.near)) == 1


@pytest.mark.parametrize(
    ("one", "other", "same", "near"),
    [("hwu64", "clinc150", 82, 97), ("clinc150", "banking77", 0, 4), ("banking77", "hwu64", 0, 0)],
)
def test_texts_of_two_sets(one: str, other: str, same: int, near: int) -> None:
    """The figures of docs/data.md, which scripts/duplicate_texts.py counts in its own way: each text once."""
    for name in (one, other):
        needs_data(f"text_{name}")
    first, second = (read_contents(build("tasks", name).items("all"), "text") for name in (one, other))
    assert len({j for _, j in equal_pairs(first.exact, second.exact)}) == same
    assert isinstance(first.near, list) and isinstance(second.near, list)
    assert len({j for _, j in equal_pairs(first.near, second.near)}) == near


def test_trained_on_one_set_of_texts_and_tested_on_another() -> None:
    needs_data("text_clinc150")
    needs_data("text_hwu64")
    task = build("tasks", "clinc150")
    got = found(task, test=task.items("test"), train=build("tasks", "hwu64").items("train"), run_info=trained("hwu64"))
    (same,) = (leak for leak in got if leak.kind == "same-items")
    assert same.message.startswith("4 of the 3,750 items") and "'call mom' (make_call)" in same.message
