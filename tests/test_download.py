"""Downloads, against a server on this machine that hands out tiny files of the official layouts.

Oracles: the bytes that the server holds, the requests that it got, and what each task reads from what came.
"""

import contextlib
import csv
import hashlib
import io
import json
import socket
import ssl
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
import soundfile

from multifsl import download, registry
from multifsl.download import archived, fetch, install, within
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.task import Task
from multifsl.tasks import _official, librispeech, omniglot, speech_commands, vctk
from multifsl.tasks._cifar100 import CLASSES
from tests.test_cli import Run, fails, run, works  # noqa: F401  # run: a fixture
from tests.test_tasks import drawing, flac, handed_over, png, write

CONTENT = bytes(range(256)) * 4096  # 1 MB
URL = "https://example.org/set/file.bin"


class Server:
    """Files by host and path, the requests for them, and the ways in which a server can fail."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []  # (host and path, Range)
        self.version: tuple[str, str] | None = None  # a header, ETag or Last-Modified, and its value
        self.if_ranges: list[str | None] = []  # what If-Range said, request by request
        self.heeds_if_range = True
        self.refuses: int | None = None  # with which code
        self.ranges = True
        self.announces = True
        self.cut_after: list[int] = []  # bytes after which the next answers break off
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content, wanted = server.files.get(self.path[1:]), self.headers["Range"]
                server.asked.append((self.path[1:], wanted))
                server.if_ranges.append(self.headers["If-Range"])
                if server.refuses is not None:
                    self.send_error(server.refuses)
                    return
                if (
                    server.version
                    and server.heeds_if_range
                    and self.headers["If-Range"] not in (None, server.version[1])
                ):
                    wanted = None  # of another version: all of it
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and server.ranges else 0
                if content is None:
                    self.send_error(404)
                    return
                if start >= len(content) > 0 and wanted:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    if server.version:
                        self.send_header(*server.version)
                    self.end_headers()
                    return
                self.send_response(206 if start else 200)
                if server.version:
                    self.send_header(*server.version)
                if server.announces:
                    self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                limit = server.cut_after.pop(0) if server.cut_after else len(content)
                with contextlib.suppress(ConnectionError):  # the client has gone
                    self.wfile.write(content[start : start + limit])

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingTCPServer(
            ("127.0.0.1", 0), Handler
        )  # HTTPServer looks up its own name, which takes seconds
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})

    def open(self, request: Request) -> Any:
        """Whatever host is asked for, this server answers."""
        parts = urlsplit(request.full_url)
        host, port = self.http.server_address[:2]
        here = Request(f"http://{host!s}:{port}/{parts.netloc}{parts.path}", headers=dict(request.header_items()))
        return urlopen(here, timeout=10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    made.files[URL.removeprefix("https://")] = CONTENT
    made.thread.start()
    monkeypatch.setattr(download, "_open", made.open)
    yield made
    made.http.shutdown()
    made.thread.join()
    made.http.server_close()


# ---- one file ----


def test_a_file(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = fetch(URL, tmp_path / "new" / "file.bin", progress=lambda *row: seen.append(row))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 1
    fetch(URL, path)  # is there already
    assert len(server.asked) == 1


def test_what_was_cut_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == ["bytes=1000-"]


def test_a_whole_part(server: Server, tmp_path: Path) -> None:
    """Stopped between the last byte and the new name: the server has nothing to add (416)."""
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_of_another_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_without_range_starts_anew(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 1


VERSIONS = [
    (("ETag", '"one"'), ("ETag", '"two"')),
    (("ETag", 'W/"one"'), ("ETag", 'W/"two"')),
    (("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT"), ("Last-Modified", "Tue, 02 Jan 2024 00:00:00 GMT")),
]


@pytest.mark.parametrize(("before", "after"), VERSIONS)
@pytest.mark.parametrize("heeds", [True, False])
@pytest.mark.parametrize("cut", [300_000, len(CONTENT)])
def test_no_file_is_joined_of_two_versions(
    before: tuple[str, str], after: tuple[str, str], heeds: bool, cut: int, server: Server, tmp_path: Path
) -> None:
    """Cut off, and changed before it is gone on with: with a server that heeds If-Range, and one that does not know it.

    The new file is as long as the old. Cut at its end, the old one is whole, but for the name.
    """

    def stop(_name: str, done: int, _total: int | None) -> None:
        if done >= cut:
            raise KeyboardInterrupt

    server.version, server.heeds_if_range = before, heeds
    with pytest.raises(KeyboardInterrupt):
        fetch(URL, tmp_path / "file.bin", progress=stop)
    assert (tmp_path / "file.bin.part").stat().st_size >= cut
    server.version, changed = after, CONTENT[::-1]
    server.files[URL.removeprefix("https://")] = changed
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == changed
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("version", [old for old, _ in VERSIONS])
def test_the_same_version_is_gone_on_with(version: tuple[str, str], server: Server, tmp_path: Path) -> None:
    server.version, server.cut_after = version, [300_000]
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-"]
    assert server.if_ranges == [
        None,
        None if version[1].startswith("W/") else version[1],
    ]  # no weak mark: RFC 9110, 13.1.5
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_damaged_file_leaves_no_version(server: Server, tmp_path: Path) -> None:
    server.version = VERSIONS[0][0]
    with pytest.raises(BadFile, match="removed; try again"):
        fetch(URL, tmp_path / "file.bin", checksum=f"md5:{'00' * 16}")
    assert not any(tmp_path.iterdir())


def test_a_connection_that_breaks_is_taken_up_again(server: Server, tmp_path: Path) -> None:
    server.cut_after = [300_000, 400_000]
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=700000-"]


def test_a_connection_that_brings_nothing(server: Server, tmp_path: Path) -> None:
    server.cut_after = [300_000, 0]
    with pytest.raises(DataNotFound, match="ended after 300000 of 1048576 bytes.*what has come is kept"):
        fetch(URL, tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:300_000]
    assert not (tmp_path / "file.bin").exists()
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT


def test_without_range_a_cut_does_not_go_on_for_ever(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut_after = False, [1000] * 10
    with pytest.raises(DataNotFound, match="ended after 1000 of"):
        fetch(URL, tmp_path / "file.bin")
    assert len(server.asked) == 2


def test_checksums(server: Server, tmp_path: Path) -> None:
    for kind in ("md5", "sha256"):
        right = f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}"
        assert fetch(URL, tmp_path / kind, checksum=right).exists()
        with pytest.raises(BadFile, match=f"its {kind} is .* instead of 00.*removed; try again"):
            fetch(URL, tmp_path / "wrong", checksum=f"{kind}:{'00' * 16}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["md5", "sha256"]


def test_a_size_that_is_known(server: Server, tmp_path: Path) -> None:
    server.announces = False
    with pytest.raises(BadFile, match="it has 1048576 bytes instead of 1048577"):
        fetch(URL, tmp_path / "file.bin", size=len(CONTENT) + 1)
    assert not any(tmp_path.iterdir())
    assert fetch(URL, tmp_path / "file.bin", size=len(CONTENT)).read_bytes() == CONTENT


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="https://example.org/other: the server answered 404"):
        fetch("https://example.org/other", tmp_path / "file.bin")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (404, "answered 404 .*has the file moved"),
        (410, "answered 410 .*has the file moved"),
        (403, "answered 403 .*try later, or see the page that `multifsl data list` names"),
        (429, "answered 429 .*try again later: what has come is kept"),
        (503, "answered 503 .*try again later: what has come is kept"),
    ],
)
def test_what_a_refusal_means(code: int, says: str, server: Server, tmp_path: Path) -> None:
    server.refuses = code
    with pytest.raises(DataNotFound, match=says) as error:
        fetch(URL, tmp_path / "file.bin")
    assert ("moved" in str(error.value)) == (code in (404, 410))


def test_a_server_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and never answers: a fault of the network, not of the disk."""
    monkeypatch.setattr(download, "SILENCE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(DataNotFound, match=f"cannot download {url}: timed out. Check the network and try again"):
            fetch(url, tmp_path / "x")


@pytest.mark.parametrize("error", [ssl.SSLError("bad record"), ConnectionResetError("bad record")])
def test_a_connection_that_breaks_before_the_answer(
    error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Request) -> None:
        raise error

    monkeypatch.setattr(download, "_open", broken)
    with pytest.raises(DataNotFound, match="bad record.*Check the network and try again"):
        fetch(URL, tmp_path / "x")


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="cannot download http://127.0.0.1:9/x: .*refused.*Check the network"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x")


def test_ctrl_c_leaves_what_has_come(server: Server, tmp_path: Path) -> None:
    def stop(_name: str, done: int, _total: int | None) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(URL, tmp_path / "file.bin", progress=stop)
    kept = (tmp_path / "file.bin.part").read_bytes()
    assert len(kept) > 400_000
    assert CONTENT.startswith(kept)
    assert fetch(URL, tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_disk_that_is_too_small(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(
        MultifslError, match=r"needs another 1 MB and .* has 1 MB free; make room there, or .*--data-root"
    ):
        fetch(URL, tmp_path / "file.bin")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MultifslError, match="cannot write .*choose another --data-root"):
        fetch(URL, tmp_path / "file" / "file.bin")
    with pytest.raises(MultifslError, match="cannot write .*choose another --data-root"):
        install(lambda _folder, _get: None, tmp_path / "file" / "set")


# ---- a data folder ----


def test_a_folder_appears_when_it_is_whole(server: Server, tmp_path: Path) -> None:
    folder, states = tmp_path / "set", []

    def make(new: Path, get: download.Get) -> None:
        (new / "copy").write_bytes(get(URL).read_bytes())
        states.append(folder.exists())

    assert install(make, folder)
    assert states == [False]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]  # neither downloads nor half a folder is left
    assert (folder / "copy").read_bytes() == CONTENT
    assert not install(make, folder)  # is there already
    assert len(states) == 1
    (folder / "copy").unlink()
    assert install(make, folder)  # an empty folder is none
    assert (folder / "copy").read_bytes() == CONTENT


def test_a_folder_that_fails_leaves_its_downloads(server: Server, tmp_path: Path) -> None:
    def make(new: Path, get: download.Get) -> None:
        get(URL)
        get("https://example.org/other")

    for _ in range(2):
        with pytest.raises(DataNotFound, match="404"):
            install(make, tmp_path / "set")
        assert [p.name for p in tmp_path.iterdir()] == ["downloads"]
    assert [path for path, _ in server.asked].count("example.org/set/file.bin") == 1


def test_what_is_not_as_expected_is_removed(server: Server, tmp_path: Path) -> None:
    """Such as a network's page to log in, answered in the place of a file: it must not be kept."""

    def make(new: Path, get: download.Get) -> None:
        json.loads(get(URL).read_bytes().decode("latin-1"))

    with pytest.raises(BadFile, match="for set is not as expected .JSONDecodeError.*removed, try again"):
        install(make, tmp_path / "set")
    assert not (tmp_path / "downloads" / "set").exists()


def tarred(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize("pack", [tarred, zipped])
def test_archives(pack: Callable[[dict[str, bytes]], bytes], tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(pack({"a/1.txt": b"one", "../2.txt": b"two", "a/3.png": b"three", "a/b/4.txt": b"four"}))
    assert [(m[1], content) for m, content in archived(path, r"a/(\d)\.txt")] == [("1", b"one")]
    assert [p.name for p in tmp_path.iterdir()] == ["archive"]  # nothing is unpacked to where an archive says
    with pytest.raises(BadFile, match="not the one expected, it has no file such as z"):
        list(archived(path, "z"))
    assert not path.exists()


@pytest.mark.parametrize("pack", [tarred, zipped])
@pytest.mark.parametrize("damage", ["cut", "turned"])
def test_damaged_archives(pack: Callable[[dict[str, bytes]], bytes], damage: str, tmp_path: Path) -> None:
    path, content = tmp_path / "archive", np.random.default_rng(0).bytes(50_000)
    whole = pack({"a/1.txt": content})
    half = len(whole) // 2
    path.write_bytes(whole[:half] if damage == "cut" else whole[:half] + bytes(200) + whole[half + 200 :])
    with pytest.raises(BadFile, match="damaged|not the one expected"):
        list(archived(path, r".*\.txt"))
    assert not path.exists()


# ---- the sets, each in its official layout ----


def wav(value: int, seconds: float = 1.0, rate: int = 16_000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.full(round(seconds * rate), value, dtype=np.int16), rate, format="WAV")
    return out.getvalue()


def sum_of(content: bytes, kind: str) -> str:
    return f"{kind}:{hashlib.new(kind, content).hexdigest()}"


Serve = Callable[[Server, pytest.MonkeyPatch], None]


def serve_omniglot(server: Server, patch: pytest.MonkeyPatch) -> None:
    """One character each for train, val and test, the last in the evaluation set."""
    github, sums = "github.com/brendenlake/omniglot/raw/master/python", {}
    for home, numbers in (("images_background", (1, 2)), ("images_evaluation", (3,))):
        name = f"{home}/Letters/character"
        content = zipped({f"{name}{n:02}/{n:04}_{d:02}.png": png(drawing(n, d)) for n in numbers for d in range(1, 21)})
        server.files[f"{github}/{home}.zip"], sums[home] = content, sum_of(content, "md5")
    lists = "raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot/splits/vinyals"
    for n, part in enumerate(("train", "val", "test"), 1):
        lines = "".join(f"Letters/character{n:02}/rot{turn:03}\n" for turn in (0, 90, 180, 270))
        server.files[f"{lists}/{part}.txt"] = lines.encode()
    patch.setattr(omniglot, "ZIPS", sums)


def serve_cifar100(server: Server, patch: pytest.MonkeyPatch) -> None:
    records = b"".join(bytes([0, n]) + bytes([n]) * 3072 for n in range(100))
    names = "\n".join(CLASSES).encode() + b"\n"
    files = {
        "train.bin": records * 2,
        "test.bin": records,
        "fine_label_names.txt": names,
        "coarse_label_names.txt": b"",
    }
    content = tarred({f"cifar-100-binary/{name}": data for name, data in files.items()})
    server.files["www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"] = content
    patch.setattr(_official, "CIFAR100_MD5", sum_of(content, "md5"))


def serve_speech_commands(server: Server, patch: pytest.MonkeyPatch) -> None:
    """Speakers with 3, 4, 9 and 10 clips of the words that are taken, and more of others."""
    clips = {f"./dog/{name}_nohash_0.wav": wav(5) for name in ("0000000a", "0000000b")}
    for name, count in (("0000000a", 3), ("0000000b", 4), ("0000000c", 9), ("0000000d", 10)):
        for number in range(count):
            word = ("bed", "cat", "happy")[number % 3]
            clips[f"./{word}/{name}_nohash_{number // 3}.wav"] = wav(100 + number)
    content = tarred({"./_background_noise_/pink_noise.wav": wav(1), **clips})
    server.files["download.tensorflow.org/data/speech_commands_v0.01.tar.gz"] = content
    patch.setattr(speech_commands, "CHECKSUM", sum_of(content, "sha256"))


def serve_librispeech(server: Server, patch: pytest.MonkeyPatch) -> None:
    """Two speakers; the first with chapters 20 and 9, of which 9 is taken, and an utterance of 12 seconds, of which 9."""
    files = {"LibriSpeech/SPEAKERS.TXT": b"who"}
    for speaker, chapter, value in ((19, 20, 1), (19, 9, 2), (26, 5, 3)):
        for number in (0, 1):
            clip = np.full(16_000 * 12, 10 * value + number, dtype=np.int16)
            files[f"LibriSpeech/train-clean-100/{speaker}/{chapter}/{speaker}-{chapter}-{number:04}.flac"] = flac(clip)
    content = tarred(files)
    server.files["www.openslr.org/resources/12/train-clean-100.tar.gz"] = content
    patch.setattr(librispeech, "CHECKSUM", sum_of(content, "md5"))


def serve_arabic(server: Server, _: pytest.MonkeyPatch) -> None:
    top = "arabic-speech-commands-dataset-master"
    files = {f"{top}/README.md": b"what"}
    for speaker in (1, 2, 3):
        for number in range(1, 11):
            files[f"{top}/dataset/zoom in/{speaker:08}_NO_{number:02}.wav"] = wav(100 * speaker + number, 0.2)
    place = "github.com/abdulkaderghandoura/arabic-speech-commands-dataset/archive/master.zip"
    server.files[place] = zipped(files)


def serve_vctk(server: Server, patch: pytest.MonkeyPatch) -> None:
    files = {"wav48_silence_trimmed/log.txt": b"", "txt/p225/p225_001.txt": b"Please call Stella."}
    for speaker in ("p225", "p226", "s5"):
        for name in ("001_mic1", "001_mic2", "002_mic1", "002_mic2"):
            files[f"wav48_silence_trimmed/{speaker}/{speaker}_{name}.flac"] = flac(np.full(2000, 7, dtype=np.int16))
    content = zipped(files)
    server.files["datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip"] = content
    patch.setattr(vctk, "CHECKSUM", sum_of(content, "sha256"))


def serve_splits(server: Server, name: str, labels: list[str]) -> None:
    lists = {"train": labels[:-2], "valid": labels[-2:-1], "test": labels[-1:]}
    for fold in range(1, 6):
        for part, names in lists.items():
            place = (
                f"raw.githubusercontent.com/tdopierre/ProtAugment/main/data/{name}/few_shot/0{fold}/labels.{part}.txt"
            )
            server.files[place] = "".join(f"{label}\n" for label in names).encode()


BANKING = [
    ("Where is it,\nthen?", "card_arrival"),
    ('It is "lost"', "lost_card"),
    ("Wo ist die Karte für mich?", "top_up?"),
]


def serve_banking77(server: Server, _: pytest.MonkeyPatch) -> None:
    for part, rows in (("train", BANKING), ("test", BANKING[:1])):
        table = io.StringIO(newline="")
        csv.writer(table).writerows([("text", "category"), *rows])
        place = f"raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data/{part}.csv"
        server.files[place] = table.getvalue().encode()
    serve_splits(server, "BANKING77", [label for _, label in BANKING])


def serve_hwu64(server: Server, _: pytest.MonkeyPatch) -> None:
    rows = [("wake me", "alarm/set"), ("play it", "play/music"), ("buy milk", "lists/createoradd")]
    lines = "".join(json.dumps({"sentence": text, "label": label}) + "\n" for text, label in rows)
    server.files["raw.githubusercontent.com/tdopierre/ProtAugment/main/data/HWU64/full.jsonl"] = lines.encode()
    serve_splits(server, "HWU64", [label for _, label in rows])


def serve_clinc150(server: Server, _: pytest.MonkeyPatch) -> None:
    home = "raw.githubusercontent.com/clinc/oos-eval/master/data"
    intents = ["balance", "pin_change", "greeting", "alarm"]
    domains = {"banking": intents[:2], "small_talk": intents[2:3], "utility": intents[3:]}
    parts = {part: [[f"{part} {name}", name] for name in intents] for part in ("train", "val", "test")}
    strange = {f"oos_{part}": [[f"strange {part}", "oos"]] for part in parts}
    server.files[f"{home}/domains.json"] = json.dumps(domains).encode()
    server.files[f"{home}/data_full.json"] = json.dumps(strange | parts).encode()


SETS: dict[str, tuple[Serve, int, int]] = {  # how it is served, and how many classes and items are to come of it
    "omniglot": (serve_omniglot, 12, 240),
    "cifar_fs": (serve_cifar100, 100, 300),
    "fc100": (serve_cifar100, 100, 300),
    "speech_commands": (serve_speech_commands, 2, 13),
    "librispeech": (serve_librispeech, 2, 12),
    "arabic_speech_commands": (serve_arabic, 3, 6),
    "vctk": (serve_vctk, 3, 6),
    "banking77": (serve_banking77, 3, 4),
    "hwu64": (serve_hwu64, 3, 3),
    "clinc150": (serve_clinc150, 4, 12),
}


def test_every_set_is_here() -> None:
    tasks: dict[str, type[Task]] = {name: registry.find("tasks", name) for name in registry.names("tasks")}
    assert set(SETS) == {name for name, task in tasks.items() if task.source and not task.source.by_hand}


@pytest.fixture(params=SETS)
def made(request: pytest.FixtureRequest, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Each task, its data downloaded."""
    task: Task = registry.build("tasks", request.param, data_root=tmp_path)
    SETS[request.param][0](server, monkeypatch)
    with pytest.raises(DataNotFound, match="multifsl data get "):
        task.items("all")
    assert task.source is not None
    assert install(task.download, tmp_path / task.source.folder)
    assert [p.name for p in tmp_path.iterdir()] == [task.source.folder]
    return task


def test_what_is_downloaded_is_read(made: Task) -> None:
    _, classes, count = SETS[registry.resolved(made).partition("(")[0]]
    items = made.items("all")
    assert (len(items.class_names), len(items.items)) == (classes, count)
    for item in items.items:
        assert item is not None
    assert len(handed_over(items.items)) == count


def get(name: str, server: Server, root: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    task: Task = registry.build("tasks", name, data_root=root)
    SETS[name][0](server, monkeypatch)
    assert task.source is not None
    install(task.download, root / task.source.folder)
    return task


def heard(clip: Any) -> tuple[int, int]:
    """The value of a clip of one value, and its length."""
    wave = clip[0] if isinstance(clip, tuple) else soundfile.read(io.BytesIO(clip.read_bytes()), dtype="int16")[0]
    assert (wave == wave[0]).all()
    return int(wave[0]), len(wave)


def test_speech_commands(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speakers with 4 to 9 clips; the samples as they were."""
    items = get("speech_commands", server, tmp_path, monkeypatch).items("all")
    assert items.class_names == ["0000000b", "0000000c"]
    names = [item.name for item in items.items]
    assert names[:4] == ["0000000b/bed_0.flac", "0000000b/bed_1.flac", "0000000b/cat_0.flac", "0000000b/happy_0.flac"]
    assert [heard(item) for item in items.items[:4]] == [(100, 16_000), (103, 16_000), (101, 16_000), (102, 16_000)]


def test_librispeech(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 9 seconds of the first utterance of the first chapter, six chunks of 1.5."""
    items = get("librispeech", server, tmp_path, monkeypatch).items("all")
    with zipfile.ZipFile(tmp_path / "speakers_librispeech" / "clips.zip") as archive:
        assert archive.namelist() == ["19/19-9-0000.flac", "26/26-5-0000.flac"]
    assert [heard(item) for item in items.items] == [(20, 24_000)] * 6 + [(30, 24_000)] * 6


def test_arabic_speech_commands(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings 1 and 6; speaker 1 is for train, 2 for val, 3 for test."""
    task = get("arabic_speech_commands", server, tmp_path, monkeypatch)
    assert [task.items(split).class_names for split in ("train", "val", "test")] == [
        ["00000001"],
        ["00000002"],
        ["00000003"],
    ]
    assert [heard(item)[0] for item in task.items("all").items] == [101, 106, 201, 206, 301, 306]


def test_the_arabic_split_is_that_of_the_real_data() -> None:
    task = registry.build("tasks", "arabic_speech_commands")
    try:
        folder = task.folder("speakers_arabic")
    except DataNotFound as error:
        pytest.skip(str(error))
    from multifsl.tasks.arabic_speech_commands import OFFICIAL, TEST, VAL

    lists = json.loads((folder / OFFICIAL).read_text())
    assert [int(name) for name in lists["val"]] == list(VAL)
    assert [int(name) for name in lists["test"]] == list(TEST)
    assert len(lists["train"]) == 18


def test_banking77(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = get("banking77", server, tmp_path, monkeypatch)
    items = task.items("all")
    assert sorted(items.items) == sorted(text for text, _ in [*BANKING, BANKING[0]])
    assert items.class_names == sorted(label for _, label in BANKING)
    assert task.items("test").class_names == ["top_up?"]


def test_clinc150(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = get("clinc150", server, tmp_path, monkeypatch)
    assert list(task.items("all").items[:3]) == ["train alarm", "val alarm", "test alarm"]
    assert sorted(task.unknowns("all")) == ["strange test", "strange train", "strange val"]


# ---- the command ----


def test_data_get(run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    serve_hwu64(server, monkeypatch)
    root = tmp_path / "data"
    done = works(run("data", "get", "hwu64", "--data-root", root, "--keep-archive"))
    assert done.out == f"{root / 'text_hwu64'}\n"
    assert "CC BY 4.0" in done.err
    assert len(list((root / "downloads" / "text_hwu64").rglob("*.txt"))) == 15
    again = works(run("data", "get", "hwu64", "--data-root", root))
    assert "there already" in again.out
    listed = works(run("data", "list", "--data-root", root)).out.splitlines()
    row = next(line.split() for line in listed if line.startswith("hwu64"))
    assert row[1:] == [
        "1",
        "MB",
        "CC",
        "BY",
        "4.0",
        str(root / "text_hwu64"),
        "yes",
        "https://github.com/xliuhw/NLU-Evaluation-Data",
    ]
    assert next(line.split() for line in listed if line.startswith("voxceleb1"))[1:3] == ["by", "hand"]


def test_data_get_looks_at_what_is_there(
    run: Run,  # noqa: F811
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty folder is none; of one that lacks something, the task says what, and nothing is downloaded or removed."""
    serve_hwu64(server, monkeypatch)
    folder = tmp_path / "text_hwu64"
    folder.mkdir()
    listed = works(run("data", "list", "--data-root", tmp_path)).out
    assert "yes" not in listed
    assert works(run("data", "get", "hwu64", "--data-root", tmp_path)).out == f"{folder}\n"
    asked = len(server.asked)
    (folder / "splits" / "split_01.json").unlink()
    says = r"is there, but the task cannot read all of it; .*move the folder away .*has no splits/split_01\.json"
    result = run("data", "get", "hwu64", "--data-root", tmp_path)
    fails(result._replace(err="".join(line for line in result.err.splitlines(True) if "licence:" not in line)), says)
    assert (len(server.asked), (folder / "data.jsonl").exists()) == (asked, True)


def test_data_list_knows_the_other_folder_of_cifar(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Both tasks read the folder `cifar_fs` where there is no `cifar100`."""
    write(tmp_path / "cifar_fs" / "train" / "apple" / "1.png", b"x")
    rows = [line.split() for line in works(run("data", "list", "--data-root", tmp_path)).out.splitlines()]
    there = {row[0]: row[-2] for row in rows if str(tmp_path / "cifar_fs") in row}
    assert there == {"cifar_fs": "yes", "fc100": "yes"}
    write(tmp_path / "cifar100" / "train.bin", b"x")
    rows = [line.split() for line in works(run("data", "list", "--data-root", tmp_path)).out.splitlines()]
    assert {row[0] for row in rows if str(tmp_path / "cifar100") in row} == {"cifar_fs", "fc100"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hwu", "did you mean 'hwu64'"),
        ("images", "images reads data of your own; there are data sets for arabic_speech_commands, .*vctk"),
        ("voxceleb1", "form.*vox1_dev_wav.zip.*folder voxceleb1.*https://www.robots.ox.ac.uk"),
        ("mini_imagenet", "image-net.org.*folder mini_imagenet"),
        ("huffpost", "News_Category_Dataset_v3.json.*Kaggle.*folder text_huffpost"),
        ("banking77", "train.csv: the server answered 404"),
    ],
)
def test_data_get_fails(name: str, says: str, run: Run, server: Server, tmp_path: Path) -> None:  # noqa: F811
    result = run("data", "get", name, "--data-root", tmp_path)
    fails(result._replace(err="".join(line for line in result.err.splitlines(True) if "licence:" not in line)), says)


def test_data_get_stopped(run: Run, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_receive", stop)
    result = run("data", "get", "hwu64", "--data-root", tmp_path)
    assert result.code == 130
    assert "goes on from here" in result.err
    assert not (tmp_path / "text_hwu64").exists()


def test_within_hands_on_answers_and_errors() -> None:
    assert within(5, lambda: "answer") == "answer"
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 / 0)
