"""A lock beside a folder. Oracle: what another process, or thread, does meanwhile."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multifsl import lock
from multifsl.errors import MultifslError
from multifsl.lock import locked

HOLDING = """
import sys, time
from multifsl.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_holds_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    path, killed = tmp_path / "model", threading.Event()
    with subprocess.Popen([sys.executable, "-c", HOLDING, path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def kill() -> None:
            killed.set()
            holder.kill()

        threading.Timer(0.3, kill).start()
        with pytest.warns(UserWarning, match="waiting for somebody else, who is changing .*model"), locked(path):
            assert killed.is_set()
    assert list(tmp_path.iterdir()) == []


def test_threads_take_turns_and_may_ask_twice(tmp_path: Path) -> None:
    (tmp_path / "other").symlink_to("count")

    def add(name: str) -> None:
        for _ in range(25):
            with locked(tmp_path / name), locked(tmp_path / "count"):
                count = int((tmp_path / "count").read_text())
                time.sleep(0)  # others may run
                (tmp_path / "count").write_text(str(count + 1))

    (tmp_path / "count").write_text("0")
    threads = [threading.Thread(target=add, args=(name,)) for name in ("count", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "count").read_text() == "50"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "other"]


def test_an_error_within_frees_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "model"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_no_place_for_a_lock(tmp_path: Path) -> None:
    with (
        pytest.raises(MultifslError, match="there is no folder .*nowhere, where model is to be"),
        locked(tmp_path / "nowhere" / "model"),
    ):
        raise AssertionError
    (tmp_path / ".model.lock").mkdir()
    with (
        pytest.raises(MultifslError, match=r"cannot write .*model, since its lock .*\.model\.lock cannot be had"),
        locked(tmp_path / "model"),
    ):
        raise AssertionError
