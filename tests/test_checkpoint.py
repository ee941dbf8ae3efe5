"""Files that are whole or not there at all. Oracle: what was on the disk before a failure that is made to happen."""

import json
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from multifsl import checkpoint
from multifsl.checkpoint import (
    backup_of,
    load_run,
    load_weights,
    read_json,
    read_pair,
    read_tensors,
    recover,
    save_run,
    to_bytes,
    write_atomically,
    write_folder,
    write_pair,
)
from multifsl.errors import BadFile, MultifslError
from multifsl.registry import build


class Cut(Exception):
    """A failure that a test makes."""


def fail(*_args: Any, **_kwargs: Any) -> Any:
    raise Cut


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder, and its content."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def writer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)

    return write


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


# ---- one file ----


def test_write_atomically_replaces(tmp_path: Path, umask: None) -> None:
    file = tmp_path / "file"
    for content in (b"one", b"", b"three" * 100_000):
        write_atomically(file, content)
        assert tree(tmp_path) == {"file": content}  # and no temporary file is left
    assert stat.S_IMODE(file.stat().st_mode) == 0o644  # mkstemp alone makes 0600: others could not read a shared model


@pytest.mark.parametrize("broken", ["replace", "fsync", "chmod"])
def test_write_atomically_keeps_the_old_content_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(Cut):
        write_atomically(file, b"new")
    assert tree(tmp_path) == {"file": b"old"}
    with pytest.raises(Cut):
        write_atomically(tmp_path / "other", b"new")
    assert tree(tmp_path) == {"file": b"old"}


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut can leave an empty file under the old name."""
    order: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def note(*args: Any, real: Any = real, name: str = name) -> Any:
            order.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, note)
    write_atomically(tmp_path / "file", b"new")
    assert order[:2] == ["fsync", "replace"]


# ---- a folder ----


def test_write_folder_makes_and_replaces(tmp_path: Path, umask: None) -> None:
    path = tmp_path / "deep" / "model"
    write_folder(path, writer("one"), overwrite=False)
    assert tree(tmp_path) == {"deep/model/a": b"one", "deep/model/b": b"one"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o755  # mkdtemp alone makes 0700
    with pytest.raises(MultifslError, match="exists already"):
        write_folder(path, writer("two"), overwrite=False)
    assert tree(tmp_path) == {"deep/model/a": b"one", "deep/model/b": b"one"}
    write_folder(path, writer("three"), overwrite=True)
    assert tree(tmp_path) == {"deep/model/a": b"three", "deep/model/b": b"three"}
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model"

    def half(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise Cut

    with pytest.raises(Cut):
        write_folder(path, half, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write_folder(path, writer("old"), overwrite=False)
    for error in (Cut, KeyboardInterrupt):
        with pytest.raises(error):
            write_folder(path, lambda folder, e=error: (_ for _ in ()).throw(e), overwrite=True)  # type: ignore[misc]
        assert tree(tmp_path) == {"model/a": b"old", "model/b": b"old"}
        assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_move_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    path = tmp_path / "model"
    write_folder(path, writer("old"), overwrite=False)
    real, moves = os.rename, 0

    def rename(*args: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == failing:
            raise Cut
        real(*args)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Cut):
        write_folder(path, writer("new"), overwrite=True)
    assert tree(tmp_path) == {"model/a": b"old", "model/b": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def cut_off(path: Path) -> None:
    """What a power cut between the two moves leaves."""
    os.rename(path, backup_of(path))
    fresh = path.parent / f".{path.name}.new.abc"
    fresh.mkdir()
    writer("new")(fresh)


def test_recover_after_a_cut_between_the_two_moves(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_folder(path, writer("old"), overwrite=False)
    cut_off(path)
    recover(path)
    assert tree(path) == {"a": b"old", "b": b"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    recover(path)  # again: nothing to do
    recover(tmp_path / "nowhere")
    assert (path / "a").read_text() == "old"
    write_folder(path, writer("newer"), overwrite=True)
    assert (path / "a").read_text() == "newer"


def pair(number: int) -> Callable[[Path], None]:
    return lambda folder: write_pair(folder, "model.json", {"a": number}, {"x": torch.full((3,), float(number))})


def is_pair(path: Path, number: int) -> None:
    info, read = read_pair(path, "model.json", "model")
    assert info["a"] == number
    torch.testing.assert_close(read["x"], torch.full((3,), float(number)))


def test_a_reader_between_the_two_moves_moves_nothing(tmp_path: Path) -> None:
    """It may be a crash, or a writer at work: the reader cannot know."""
    path = tmp_path / "model"
    write_folder(path, pair(1), overwrite=False)
    (tmp_path / "link").symlink_to("model")
    cut_off(path)
    before = tree(tmp_path)
    tmp_path.chmod(0o555)
    is_pair(path, 1)
    is_pair(tmp_path / "link", 1)
    tmp_path.chmod(0o755)
    assert tree(tmp_path) == before


def test_a_folder_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old JSON is never taken with the new weights: the new pair is read, or, where that never ends, an error says so."""
    path, real, numbers = tmp_path / "model", read_json, iter(range(2, 5))
    write_folder(path, pair(1), overwrite=False)

    def replacing(file: Path) -> dict[str, Any]:
        info = real(file)
        for number in numbers:
            write_folder(path, pair(number), overwrite=True)
            break
        return info

    monkeypatch.setattr(checkpoint, "read_json", replacing)
    is_pair(path, 4)
    numbers = iter(range(5, 500))
    with pytest.raises(MultifslError, match="is replaced all the time"):
        read_pair(path, "model.json", "model")
    assert next(numbers) == 5 + checkpoint.ATTEMPTS


def test_a_folder_that_a_cut_hid_is_not_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_folder(path, writer("old"), overwrite=False)
    cut_off(path)
    with pytest.raises(MultifslError, match="exists already"):
        write_folder(path, writer("new"), overwrite=False)
    assert (path / "a").read_text() == "old"


def test_the_folder_may_be_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    write_folder(path, writer("old"), overwrite=False)
    monkeypatch.chdir(path)
    write_folder(Path("."), writer("new"), overwrite=True)
    assert tree(tmp_path) == {"model/a": b"new", "model/b": b"new"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    """`models/current -> models/v1`: what is replaced is what the link leads to."""
    write_folder(tmp_path / "v1", writer("old"), overwrite=False)
    (tmp_path / "current").symlink_to("v1")
    write_folder(tmp_path / "current", writer("new"), overwrite=True)
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "v1" / "a").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["current", "v1"]


def test_a_place_that_cannot_hold_a_folder_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(MultifslError, match="file"):
        write_folder(tmp_path / "file" / "model", writer("x"), overwrite=False)
    assert tree(tmp_path) == {"file": b"mine"}


# ---- what is in the files ----


def test_tensors_come_back_to_the_bit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4).t(),  # not contiguous
        "b": torch.arange(5),
        "c": torch.randn(2).bfloat16(),
        "d": torch.zeros(0, 3),
        "e": torch.tensor(True),
    }
    tensors["shared"] = tensors["b"]
    (tmp_path / "x").write_bytes(to_bytes(tensors, {"k": "v"}))
    read, header = read_tensors(tmp_path / "x")
    assert header == {"k": "v"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_damaged_tensors(tmp_path: Path) -> None:
    whole = to_bytes({"a": torch.arange(100.0)})
    file = tmp_path / "x"
    rng = random.Random(0)
    flips = 0
    for _ in range(300):
        content = bytearray(whole)
        if rng.random() < 0.3:
            del content[rng.randrange(len(whole)) :]
        else:
            content[rng.randrange(100)] ^= 1 << rng.randrange(8)  # in the header
        file.write_bytes(bytes(content))
        try:
            read_tensors(file)
        except BadFile as error:
            assert "x" in str(error)
            flips += 1
    assert flips > 200
    with pytest.raises(BadFile, match="lacks nothing"):
        read_tensors(tmp_path / "nothing")
    with pytest.raises(BadFile):
        read_tensors(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, b'{"a": ' + b"1" * 9000 + b"}"])
def test_damaged_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BadFile, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_json_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json") == {"a": 1}
    monkeypatch.setattr(checkpoint, "MAX_JSON_BYTES", 7)
    with pytest.raises(BadFile, match="more than 7 bytes"):
        read_json(tmp_path / "x.json")


@pytest.mark.skipif(sys.platform == "win32", reason="needs devices and pipes that are files")
def test_json_that_never_ends_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("zero.json", "pipe.json", "."):
        with pytest.raises(BadFile, match="is no file"):
            read_json(tmp_path / name)


def test_what_utf_8_cannot_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(MultifslError, match=r"cannot write .*photos\\udcff"):
        write_pair(tmp_path, "run.json", {"task": "images('photos\udcff')"}, {})
    assert tree(tmp_path) == {}


def test_weights_that_do_not_fit_change_nothing() -> None:
    module = build("methods", "prototypical(distance='cosine')", encoder=build("encoders", "conv4(width=8)"))
    right = {k: v.clone() for k, v in module.state_dict().items()}
    name = "encoder.convs.0.weight"
    wrong = [
        ({k: v for k, v in right.items() if k != name}, "missing .*convs.0"),
        ({**right, "other": torch.zeros(1)}, "unknown .*other"),
        ({**right, name: torch.zeros(8, 3, 3, 2)}, r"\[8, 3, 3, 2\], not \[8, 3, 3, 3\]"),
    ]
    for tensors, says in wrong:
        with pytest.raises(BadFile, match=says):
            load_weights(module, {k: v + 1 for k, v in tensors.items()}, Path("x"))
        for key, value in module.state_dict().items():
            assert torch.equal(value, right[key])


# ---- runs ----


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    method = build("methods", "prototypical", encoder=build("encoders", "conv4(width=8, norm='group')"))
    (tmp_path / "run").mkdir()
    save_run(tmp_path / "run", method, {"task": "images(path='x')", "seed": 3})
    return tmp_path / "run"


def test_a_run_comes_back_to_the_bit(run: Path) -> None:
    torch.manual_seed(0)
    method = build("methods", "prototypical", encoder=build("encoders", "conv4(width=8, norm='group')"))
    loaded = load_run(run)
    assert not loaded.method.training
    assert loaded.info["seed"] == 3
    assert loaded.info["encoder"] == "conv4(width=8, norm='group', channels=3, image_size=28)"
    assert loaded.info["method"] == "prototypical(distance='euclidean', temperature=1.0)"
    assert {"torch", "numpy"} <= loaded.info["versions"].keys()
    for key, value in method.state_dict().items():
        assert torch.equal(loaded.method.state_dict()[key], value)


def test_folders_that_are_no_runs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(MultifslError, match="no run at"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(MultifslError, match=r"is no run: it has no run\.json"):
        load_run(tmp_path)
    (run / "run.json").rename(run / "other")
    (run / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(MultifslError, match="not finished.*--resume"):
        load_run(run)


def test_a_damaged_run_is_refused_or_harmless(run: Path) -> None:
    from multifsl.evaluation import evaluate

    whole = (run / "run.json").read_bytes()
    info = json.loads(whole)
    rng = random.Random(0)
    for _ in range(60):
        content = bytearray(whole)
        content[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (run / "run.json").write_bytes(bytes(content))
        try:
            load_run(run)
        except MultifslError as error:
            assert str(error)
    for key in info:
        for changed in (
            {k: v for k, v in info.items() if k != key},
            {**info, key: 5},
            {**info, key: "conv4(width='8')"},
        ):
            (run / "run.json").write_text(json.dumps(changed))
            with pytest.raises(MultifslError):  # at the latest since the task's data are not there
                evaluate(run)
    (run / "run.json").write_bytes(whole)
    weights = (run / "model.safetensors").read_bytes()
    for harmed in (weights[:-1], weights[:100], b"", weights + b"x"):
        (run / "model.safetensors").write_bytes(harmed)
        with pytest.raises(BadFile, match="damaged"):
            load_run(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(BadFile, match="lacks"):
        load_run(run)
