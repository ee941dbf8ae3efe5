"""Embeddings on disk. Oracles: the encoder without a cache, bit for bit; how often it ran; what is in the folder."""

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from multifsl import bank, cli, evaluation
from multifsl.bank import BadItemWarning, embed_items, sampler_of
from multifsl.cache import EmbeddingCache, cache_folder
from multifsl.encoder import Encoder, Features
from multifsl.errors import MultifslError
from multifsl.evaluation import episode_accuracies
from multifsl.registry import build
from multifsl.task import Items
from tests.test_classifier import SENTENCES, clip, picture, tiny_bert

SMALL = "conv4(width=8, image_size=20)"


class Scaled(Features):
    """An encoder without weights, but with an option."""

    def __init__(self, dim: int = 3, *, scale: float = 1.0) -> None:
        super().__init__(dim)
        self.scale = scale

    def forward(self, x: Any) -> Tensor:
        return super().forward(x) * self.scale


class Shifted(Scaled):
    """Another one, with the same arguments."""

    def forward(self, x: Any) -> Tensor:
        return super().forward(x) + self.scale


def items_of(things: Sequence[Any]) -> Items:
    return Items(things, np.arange(len(things)), [str(i) for i in range(len(things))])


def vectors(count: int = 4, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)))


def seeded(spec: str) -> Encoder:
    torch.manual_seed(0)
    encoder: Encoder = build("encoders", spec)
    return encoder


def embedded(encoder: Encoder, things: Sequence[Any], cache: EmbeddingCache | None, **options: Any) -> tuple[Any, int]:
    """The embeddings, and how often the encoder ran for them."""
    ran: list[int] = []
    handle = encoder.register_forward_pre_hook(lambda *_: ran.append(1))
    z, _ = embed_items(encoder, items_of(things), cache=cache, **options)
    handle.remove()
    return z, len(ran)


def identical(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def files(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


# ---- what hits ----


def modality(name: str, folder: Path) -> tuple[Encoder, list[Any]]:
    """An encoder and items for it."""
    if name == "text":
        return seeded(f"transformer(model={str(tiny_bert(folder / 'bert'))!r})"), SENTENCES["cat"]
    if name == "image":
        return seeded(SMALL), [picture(k, 0) for k in range(3)]
    if name == "speech":
        return seeded("ecapa(channels=8, dim=8)"), [clip(k, 0, seconds=0.3 + 0.1 * k) for k in range(3)]
    return Scaled(), vectors()


@pytest.mark.parametrize("name", ["text", "image", "speech", "features"])
def test_the_second_time_is_bit_identical_and_runs_nothing(name: str, cache: EmbeddingCache, tmp_path: Path) -> None:
    encoder, things = modality(name, tmp_path)
    plain, _ = embedded(encoder, things, None)
    first, ran = embedded(encoder, things, cache)
    again, ran_again = embedded(encoder, things, EmbeddingCache(cache.folder))
    assert ran > 0 and ran_again == 0
    identical(first, plain)
    identical(again, plain)
    assert len(files(cache)) == 1


@pytest.mark.parametrize("name", ["text", "image", "speech"])
def test_what_cannot_be_read_is_left_out_alike(name: str, cache: EmbeddingCache, tmp_path: Path) -> None:
    encoder, things = modality(name, tmp_path)
    bad = {"text": " ", "image": "none.png", "speech": "none.wav"}[name]
    found = []
    for given in (None, cache, cache):
        with pytest.warns(BadItemWarning, match="left out 1 of") as told:
            z, kept = embed_items(encoder, items_of([*things[:2], bad, *things[2:]]), cache=given)
        found.append((z, kept.labels.tolist(), str(told[0].message)))
    for z, labels, message in found[1:]:
        identical(z, found[0][0])
        assert (labels, message) == found[0][1:]
    identical(found[0][0], embedded(encoder, things, cache)[0])
    assert embedded(encoder, things, cache)[1] == 0  # those that are left are the same


def test_other_names_hit(cache: EmbeddingCache, tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    for k, name in enumerate(names):
        picture(k, 0).save(tmp_path / name)
    encoder = seeded(SMALL)
    first, _ = embedded(encoder, [tmp_path / name for name in names], cache)
    (tmp_path / "else").mkdir()
    for k, name in enumerate(names):
        (tmp_path / name).rename(tmp_path / "else" / f"{9 - k}.bmp")
    again, ran = embedded(encoder, [tmp_path / "else" / f"{9 - k}.bmp" for k in range(3)], cache)
    assert ran == 0
    identical(again, first)


def test_an_evaluation_is_the_same(cache: EmbeddingCache) -> None:
    method = build("methods", "prototypical", encoder=Scaled())
    items = Items(vectors(30), np.arange(30) % 5, list("abcde"))
    shape: dict[str, Any] = {"way": 3, "shot": 1, "query": 2}
    plain = episode_accuracies(method, items, episodes=20, **shape)
    for _ in range(2):
        bank = evaluation.embedded(method, items, cache=cache)
        np.testing.assert_array_equal(evaluation.solve(method, bank, sampler_of(bank.items, **shape), 20), plain)
    assert embedded(method.encoder, vectors(30), cache)[1] == 0


# ---- what misses ----


def nudged(name: str) -> Encoder:
    encoder = seeded(SMALL)
    encoder.state_dict()[name][0] += 1e-3
    return encoder


def other_pixel() -> list[np.ndarray]:
    images = [np.asarray(picture(k, 0)).copy() for k in range(3)]
    images[1][7, 7, 0] ^= 1
    return images


PICTURES = [np.asarray(picture(k, 0)) for k in range(3)]
CHANGES: dict[str, Callable[[], tuple[Encoder, Sequence[Any], dict[str, Any]]]] = {
    "a weight": lambda: (nudged("convs.0.bias"), PICTURES, {}),
    "a statistic": lambda: (nudged("norms.0.running_mean"), PICTURES, {}),
    "the type": lambda: (seeded(SMALL).double(), PICTURES, {}),
    "an option": lambda: (seeded("conv4(width=8, image_size=20, norm='group')"), PICTURES, {}),
    "a pixel": lambda: (seeded(SMALL), other_pixel(), {}),
    "the order": lambda: (seeded(SMALL), PICTURES[::-1], {}),
    "one more": lambda: (seeded(SMALL), [*PICTURES, PICTURES[0]], {}),
    "one less": lambda: (seeded(SMALL), PICTURES[:2], {}),
    "the batches": lambda: (seeded(SMALL), PICTURES, {"batch_size": 2}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_misses(change: str, cache: EmbeddingCache) -> None:
    embedded(seeded(SMALL), PICTURES, cache)
    assert embedded(seeded(SMALL), PICTURES, cache)[1] == 0
    encoder, things, options = CHANGES[change]()
    z, ran = embedded(encoder, things, cache, **options)
    assert ran > 0
    identical(z, embedded(encoder, things, None, **options)[0])


@pytest.mark.parametrize("other", [Scaled(scale=2.0), Shifted()], ids=["argument", "class"])
def test_what_no_weight_shows_misses(other: Encoder, cache: EmbeddingCache) -> None:
    embedded(Scaled(), vectors(), cache)
    z, ran = embedded(other, vectors(), cache)
    assert ran > 0
    identical(z, other(torch.stack(vectors())))


def test_a_buffer_that_is_not_saved_counts(cache: EmbeddingCache) -> None:
    clips = [clip(k, 0) for k in range(2)]
    encoder = seeded("ecapa(channels=8, dim=8)")
    embedded(encoder, clips, cache)
    (name,) = [n for n, _ in encoder.named_buffers() if n.endswith("bands") and n not in encoder.state_dict()]
    encoder.get_buffer(name).mul_(0.5)
    assert embedded(encoder, clips, cache)[1] > 0


def test_another_tokenizer_misses(cache: EmbeddingCache, tmp_path: Path) -> None:
    """The same folder and weights, but two words have changed places."""
    spec = f"transformer(model={str(tiny_bert(tmp_path / 'bert'))!r})"
    embedded(seeded(spec), SENTENCES["cat"], cache)
    for file in (tmp_path / "bert").glob("*.*"):
        if file.name in ("vocab.txt", "tokenizer.json"):
            swapped = re.sub(r"\b(cat|dog)\b", lambda word: {"cat": "dog", "dog": "cat"}[word[0]], file.read_text())
            file.write_text(swapped)
    z, ran = embedded(seeded(spec), SENTENCES["cat"], cache)
    assert ran > 0
    identical(z, embedded(seeded(spec), SENTENCES["cat"], None)[0])


PLUGIN = """
from multifsl.encoder import Features
from {helper} import factor

class Net(Features):
    def __init__(self, dim=3): super().__init__(dim)
    def forward(self, x): return super().forward(x) * {own} * factor
"""


def test_other_code_misses(cache: EmbeddingCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in whose file, or a helper of it, was edited between two evaluations."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for own, factor in ((1.0, 1.0), (2.0, 1.0), (2.0, 3.0)):
        (tmp_path / "_cache_helper.py").write_text(f"factor = {factor}\n")
        (tmp_path / "cache_net.py").write_text(PLUGIN.format(own=own, helper="_cache_helper"))
        monkeypatch.delitem(sys.modules, "_cache_helper", raising=False)
        spec = importlib.util.spec_from_file_location("cache_net", tmp_path / "cache_net.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "cache_net", module)
        spec.loader.exec_module(module)
        for ran in (1, 0):
            z, count = embedded(module.Net(), vectors(), cache)
            assert count == ran
            identical(z, torch.stack(vectors()) * own * factor)
    monkeypatch.delitem(sys.modules, "_cache_helper")


def test_a_class_in_no_file_is_not_cached(cache: EmbeddingCache) -> None:
    typed = type("Typed", (Scaled,), {"__module__": "typed_in"})
    for _ in range(2):
        assert embedded(typed(), vectors(), cache)[1] > 0
    assert not cache.folder.exists()


# ---- blocks, and where they are ----


def test_a_run_that_was_stopped_loses_a_block(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "EMBED_BLOCK", 4)

    class Stopped(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            if index == 9:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        embedded(Scaled(), Stopped(vectors(14)), cache)
    assert len(files(cache)) == 2
    z, ran = embedded(Scaled(), vectors(14), cache)
    assert ran == 2  # the third block, and the rest of 2
    identical(z, torch.stack(vectors(14)))
    (one,) = cache.sets()
    assert one.items == 14 and one.width == 3
    assert one.encoder == "test_cache(dim=3, scale=1.0)"
    assert one.size == sum(file.stat().st_size for file in files(cache))
    assert one.used == pytest.approx(max(file.stat().st_mtime for file in files(cache)))


def test_what_was_not_used_for_longest_goes(cache: EmbeddingCache) -> None:
    embedded(Scaled(), vectors(seed=0), cache)
    each = files(cache)[0].stat().st_size
    small = EmbeddingCache(cache.folder, limit=2 * each)
    embedded(Scaled(), vectors(seed=1), small)
    for age, file in enumerate(files(small)):
        os.utime(file, (1000 + age, 1000 + age))
    embedded(Scaled(), vectors(seed=0), small)  # used again, and so younger than the other
    embedded(Scaled(), vectors(seed=2), small)
    assert len(files(small)) == 2
    assert [embedded(Scaled(), vectors(seed=seed), small)[1] for seed in (0, 2, 1)] == [0, 0, 1]


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["MULTIFSL_CACHE"])  # of the tests
    monkeypatch.setenv("MULTIFSL_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "multifsl" / "embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "multifsl" / "embeddings"


# ---- what can go wrong ----


def of_other_items(cache: EmbeddingCache, file: Path) -> bytes:
    """A whole file, but of other items, under this one's name."""
    other = EmbeddingCache(cache.folder.with_name("other"))
    embedded(Scaled(), vectors(seed=1), other)
    return files(other)[0].read_bytes()


DAMAGE: dict[str, Callable[[EmbeddingCache, Path], bytes]] = {
    "empty": lambda cache, file: b"",
    "cut": lambda cache, file: file.read_bytes()[:-1],
    "no tensors": lambda cache, file: b"hello",
    "foreign": lambda cache, file: save({"weight": torch.ones(3)}),
    "foreign, of that name": lambda cache, file: save({file.stem: torch.ones(4, 3)}),
    "of other items": of_other_items,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_a_miss(how: str, cache: EmbeddingCache) -> None:
    first, _ = embedded(Scaled(), vectors(), cache)
    (file,) = files(cache)
    file.write_bytes(DAMAGE[how](cache, file))
    assert cache.sets() == []
    for expected in (1, 0):  # made anew, and kept anew
        z, ran = embedded(Scaled(), vectors(), cache)
        assert ran == expected
        identical(z, first)


def test_no_flipped_byte_is_believed(cache: EmbeddingCache) -> None:
    first, _ = embedded(Scaled(), vectors(2), cache)
    (file,) = files(cache)
    content = file.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 0x11
        file.write_bytes(flipped)
        cache.sets()
        z, _ = embedded(Scaled(), vectors(2), cache)
        identical(z, first)


def test_a_disk_that_takes_nothing_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "EMBED_BLOCK", 2)
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file" / "cache")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*cache \(Not a directory\).*\$MULTIFSL_CACHE") as told:
        z, _ = embedded(Scaled(), vectors(6), cache)
    assert len(told) == 1
    identical(z, torch.stack(vectors(6)))
    identical(embedded(Scaled(), vectors(6), cache)[0], z)  # no second warning


def test_a_full_disk(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def half(path: Path, data: bytes) -> int:
        write(path, data[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bank, "EMBED_BLOCK", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.warns(UserWarning, match="No space left on device") as told:
            z, _ = embedded(Scaled(), vectors(), cache)
    identical(z, torch.stack(vectors()))
    assert len(told) == 1
    assert files(cache) == []
    embedded(Scaled(), vectors(), cache)  # there is room again
    assert len(files(cache)) == 2


def test_a_folder_of_somebody_else_is_read(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = embedded(Scaled(), vectors(), cache)

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    with pytest.warns(UserWarning, match="Operation not permitted"):
        z, ran = embedded(Scaled(), vectors(), cache)
    assert ran == 0
    identical(z, first)


MANY = """
import sys, torch
from pathlib import Path
from multifsl.cache import EmbeddingCache
from multifsl.encoder import Features
cache = EmbeddingCache(Path(sys.argv[1]), limit=2000)
embed = cache.embedder(Features(3), "features(dim=3)")
print("ready", flush=True)
sys.stdin.readline()
for i in range(300):
    x = torch.full((2, 3), float(i % 9))
    assert torch.equal(embed(x, 64), x)
"""


def test_processes_share_a_folder(cache: EmbeddingCache) -> None:
    """Each writes, reads and, the limit being that of a few files, removes what the other does; none warns or fails."""
    command = [sys.executable, "-W", "error", "-c", MANY, str(cache.folder)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both: list[Any] = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in both]
    assert ends == [("", 0)] * 2
    left = files(cache)
    assert left and all(re.fullmatch(r"[0-9a-f]{32}\.safetensors", file.name) for file in left)
    sizes = [file.stat().st_size for file in left]
    assert sum(sizes) <= 2000 + max(sizes)  # each looks before the other has written its last


def test_what_another_process_removes_between_two_looks(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed and then gone; there when it is looked at, and gone when it is opened."""
    embedded(Scaled(), vectors(), cache)
    (file,) = files(cache)
    listed, size = Path.iterdir, file.stat().st_size
    gone = cache.folder / f"{'0' * 32}.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", lambda folder: iter([gone, *listed(folder)]))
        assert [one.items for one in cache.sets()] == [4]
        patch.setattr(cache, "_files", lambda: [(0, 9, gone), (1, size, file)])
        assert [one.items for one in cache.sets()] == [4]
        assert cache.clear() == 9 + size
    assert files(cache) == [] and cache.get("gone") is None


# ---- showing and clearing ----


def test_clearing_removes_what_is_ours(cache: EmbeddingCache) -> None:
    assert cache.sets() == [] and cache.clear() == 0  # there is no folder yet
    for encoder in (Scaled(), Shifted()):
        embedded(encoder, vectors(), cache)
    size = sum(file.stat().st_size for file in files(cache))
    (cache.folder / f".{'0' * 32}.{'1' * 32}").write_bytes(b"12345")  # of a process that was killed
    theirs = [cache.folder / name for name in ("model.safetensors", "notes.txt")]
    for file in theirs:
        file.write_bytes(b"theirs")
    assert len(cache.sets()) == 2
    assert cache.clear() == size + 5
    assert files(cache) == theirs
    assert cache.sets() == []


def command(*args: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["multifsl", *args])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return (end.value.code, *capsys.readouterr())


def test_the_command(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MULTIFSL_CACHE", str(cache.folder))
    streams: dict[str, Any] = {"capsys": capsys, "monkeypatch": monkeypatch}
    code, out, _ = command("cache", **streams)
    assert code == 0 and out == f"{cache.folder}: 0 sets, 0.0 MB of at most 4,295 MB\n"
    embedded(Scaled(), vectors(), cache)
    embedded(Shifted(), vectors(5), cache)
    for age, one in enumerate(files(cache)):
        os.utime(one, (1e9 + age, 1e9 + age))
    embedded(Scaled(), vectors(), cache)
    code, out, _ = command("cache", **streams)
    told = out.splitlines()
    assert code == 0 and ": 2 sets, 0.0 MB of" in told[0]
    assert re.split(r"\s{2,}", told[1].strip()) == ["encoder", "items", "width", "size", "last used"]
    assert re.fullmatch(
        r"test_cache\(dim=3, scale=1\.0\)\s+4\s+3\s+0\.0 MB\s+20[2-9]\d-\d\d-\d\d \d\d:\d\d\s*", told[2]
    )
    assert re.fullmatch(r"test_cache\(dim=3, scale=1\.0\)\s+5\s+3\s+0\.0 MB\s+2001-09-0\d \d\d:\d\d\s*", told[3])
    size = sum(file.stat().st_size for file in files(cache))
    code, out, _ = command("cache", "--json", "-", **streams)
    content = json.loads(out)
    assert code == 0
    assert (content["folder"], content["bytes"], content["limit_bytes"]) == (str(cache.folder), size, 4 * 2**30)
    assert [(one["items"], one["width"], one["used"][:3]) for one in content["sets"]] == [(4, 3, "202"), (5, 3, "200")]
    code, out, _ = command("cache", "--clear", **streams)
    assert code == 0 and out == f"{cache.folder}: removed 2 sets, freed 0.0 MB\n"
    assert files(cache) == []
    code, out, _ = command("cache", "--clear", "--json", "-", **streams)
    assert json.loads(out) == {"folder": str(cache.folder), "freed_bytes": 0}


def test_a_folder_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file")
    with pytest.raises(MultifslError, match="cannot use the embeddings in .*file: Not a directory"):
        cache.clear()
    monkeypatch.setenv("MULTIFSL_CACHE", str(cache.folder))
    code, out, err = command("cache", capsys=capsys, monkeypatch=monkeypatch)
    assert code == 2 and out == "" and err.startswith("error: cannot use the embeddings in ")
