"""Leaks: what makes a figure look better than it is, found before an evaluation and said beside it.

    trained-on    the classes evaluated are those that the run was trained on, or that the method was shown beforehand
    chosen-on     the run's best weights are those that did best on this split
    classes       train and test items share classes of one data set
    same-items    the same item stands in the train and the test items, or twice in the test items
    near-items    the same but for case, spaces and punctuation (texts), for size, coding and brightness (images), or for volume,
                  coding, mild noise and silence at the ends (clips)
    groups        support and query, or train and test, share recordings, sessions or speakers
    pretrained    published weights have seen the classes, or what is like them
    not-checked   what could not be looked for

The first and the third are errors unless allowed by name, the fourth above MUCH of the test items: sets that everybody compares
on have a few such items. The others are marks beside the figure.

Shape letters: n items, C classes.
"""

import hashlib
import time
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatch
from functools import cache as remembered
from io import BytesIO
from os.path import abspath, exists, realpath
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import numpy as np
import torch
from PIL import Image

from multifsl.archive import Member
from multifsl.bank import Progress
from multifsl.cache import EmbeddingCache
from multifsl.checkpoint import read_json
from multifsl.encoder import Encoder
from multifsl.errors import BadItem, DataNotFound, MultifslError, nearest, some
from multifsl.registry import Spec, find, names, parse, resolved
from multifsl.report_media import picture
from multifsl.shipped import SHIPPED, is_shipped, model_names, names_run, run_folder
from multifsl.task import Items, Task

KINDS = ("trained-on", "chosen-on", "classes", "same-items", "near-items", "groups", "pretrained", "not-checked")
LISTED = 200  # pairs of items that are the same, in a result's JSON
MUCH = 0.01  # of the test items: fewer hardly move a figure
READ_MOST = 20_000  # train items that are compared unless asked for: a few seconds
# Grey images of 8 x 8 that correlate by so much are of one picture. Measured, val against train: of CIFAR-FS's photos saved as JPEG
# of quality 60, or at twice the size, all are found; of those 10 % brighter, 98 %; of the 3,200 themselves 1 has a fellow in train,
# which is the same photo; of Omniglot's 13,760 drawings, 3. (Of hashes of differences, 128 bits, a threshold that finds 83 % of
# JPEGs of quality 85 lets 3 % of the drawings through.)
ALIKE = 0.995
SIDE = 8
FLAT = 2.0  # grey levels of standard deviation: below it, any two images are alike
# Clips whose sketches (see `_sketch`) correlate by so much are of one recording. Measured: of 6.9 million pairs of different clips
# (Arabic and English Speech Commands, LibriSpeech in chunks of 1.5 s) none does, the highest being 0.84 and the next 0.79. Of 300
# clips with the last bit disturbed, half as loud, at 8 or 44.1 kHz, as MP3, or with 0.1 s of silence at the ends, all are found; as
# Ogg Vorbis 97 %; of 8 bits 94 %; less 2 % at both ends 96 % (90 % of the chunks, which are cut amid speech); less 5 %, 92 %.
SOUNDS_ALIKE = 0.9
LOWEST, BAND, BANDS = 100.0, 8.0, 230  # hertz, hertz, number: up to 1,940 Hz, which clips of any rate have
AROUND = 9  # bands whose mean is taken off: what is left is not the voice's timbre, but chance
# What the sketch takes for one recording is looked at again, in time: a hum or a note that stays is alike in any clip. The
# amplitudes in bands of 120 Hz, 100 times a second, less each band's mean, must correlate by so much where they do best. Measured
# on 80 clips: of the copies above that the sketch finds all are confirmed; of 2,563 pairs that it takes for one recording because
# of a hum four times as loud as the voices, none; of 614 of notes of one pitch, 25: those that die away alike.
ALIKE_IN_TIME = 0.9
FRAME, HOP, SHIFT = (
    0.025,
    0.01,
    0.3,
)  # seconds: of what one amplitude is, from one to the next, and that the ends may differ by
EDGES = np.arange(120, 1921, 120)  # hertz
RATES = (4_000, 384_000)  # hertz, as the encoders take them
WIDTH = {"image": SIDE * SIDE, "speech": BANDS}  # of what is compared for being nearly the same
BLOCK = 128  # items compared with all others at once
SLOW = 100_000_000  # comparisons that take more than a second or two
FRESH = 2.0  # seconds: a file this young may yet change without its time showing it

NEUTRAL = {  # arguments of tasks that choose no classes; path: compared as that of the data set
    *("path", "speeds", "two_parts", "chunk_seconds", "microphone", "rotations", "description"),
    *("text", "item", "group", "group_by", "part", "revision"),
}
FILES = ("path", "splits")  # arguments of tasks that may name a file
ONE_DATA_SET = {"fc100": "cifar_fs"}  # the same photos, divided otherwise
# Groups that all classes share: Omniglot's drawers, and VCTK's numbers of sentences, which mean little across speakers.
BY_DESIGN = ("omniglot", "vctk")


class Leak(NamedTuple):
    """One leak: its kind, one of KINDS; what was found; whether it is an error unless allowed; and, of items that are the same,
    the first LISTED pairs, by name and class."""

    kind: str
    message: str
    severe: bool
    pairs: tuple[tuple[str, str], ...] = ()


class Seen(NamedTuple):
    """What published weights have seen: an encoder's name, a pattern of its argument `model`, the data, and our tasks that these
    bear on."""

    encoder: str
    model: str
    data: str
    tasks: tuple[str, ...]
    what: str
    source: str


PHOTOS = ("cifar_fs", "fc100", "mini_imagenet")
IMAGENET = "not a novel-class result: {} was trained on ImageNet, which has these classes or such"
SPEAKERS = "not a novel-class result: {} was trained to tell apart the speakers of VoxCeleb1"
HEARD = "{} has heard LibriSpeech or the readings that it is from, without the speakers' names"
SEEN = (
    Seen("efficientnet_lite0", "*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/1905.11946"),
    # LVD-142M holds ImageNet-22k and the train part of ImageNet-1k
    Seen("vision", "facebook/dinov2*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2304.07193, table 15"),
    Seen("vision", "google/vit-*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2010.11929"),
    Seen("vision", "facebook/deit-*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2012.12877"),
    Seen("vision", "microsoft/beit-*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2106.08254"),
    Seen("vision", "microsoft/swin*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2103.14030"),
    Seen("vision", "microsoft/resnet-*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/1512.03385"),
    Seen("vision", "facebook/convnext*", "ImageNet", PHOTOS, IMAGENET, "https://arxiv.org/abs/2201.03545"),
    Seen("ge2e", "*", "VoxCeleb1", ("voxceleb1",), SPEAKERS, "https://github.com/resemble-ai/Resemblyzer/issues/3"),
    Seen(
        "ge2e", "*", "LibriSpeech", ("librispeech",),
        "{} was trained on the 'other' part of LibriSpeech: such readings, of other speakers",
        "https://github.com/resemble-ai/Resemblyzer/issues/3",
    ),
    Seen("audio", "microsoft/wavlm-*-sv", "VoxCeleb1", ("voxceleb1",), SPEAKERS, "https://huggingface.co/microsoft/wavlm-base-plus-sv"),
    Seen("audio", "microsoft/wavlm-*", "LibriSpeech", ("librispeech",), HEARD, "https://arxiv.org/abs/2110.13900"),
    Seen("audio", "facebook/wav2vec2-base*", "LibriSpeech", ("librispeech",), HEARD, "https://arxiv.org/abs/2006.11477"),
    Seen("audio", "facebook/hubert-*", "LibriSpeech", ("librispeech",), HEARD, "https://arxiv.org/abs/2106.07447"),
    # its page lists what it was trained on, and none of our sets is there
    Seen(
        "transformer", "sentence-transformers/all-MiniLM-L6-v2", "what its page lists", (), "",
        "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    ),
)  # fmt: skip


# ---- what items are made of ----


class Contents(NamedTuple):
    """Items of a split as they are compared: read once, used for as many runs as there are.

    exact: a checksum each, b"" of an item that cannot be read. near: texts' letters; of images float32 [n, 64], of clips
    [n, 230], of mean 0 and length 1 or all 0; None of other items, which are not compared for being nearly the same.
    """

    items: Items
    modality: str
    exact: list[bytes]
    near: list[str] | np.ndarray | None


def read_contents(items: Items, modality: str, progress: Progress | None = None, *, cache: bool = False) -> Contents:
    """What the items of a split are made of.

    Checksums are of a clip's samples (mono, 16 bits, at its rate), so that a FLAC file equals the WAV file that it was made
    from; of an image's file as it lies there, or of its pixels where it is no file; of a text as it is.

    An item that cannot be read, and a clip without a sound, is like no other; the evaluation leaves it out as well, and names it.
    Omniglot's 82,240 train items take about ten seconds of one core, CIFAR-FS's 12,800 two, 2,000 clips of a second two.

    cache: where all items are files, keep what was read with the embeddings, by their places, sizes and times of change.

    >>> read_contents(Items(["Hi!", "hi"], np.array([0, 1]), ["a", "b"]), "text").near
    ['hi', 'hi']
    >>> wave = np.sin(np.arange(16000)).astype(np.float32)
    >>> clips = Items([(wave, 16000), (wave / 2, 16000)], np.array([0, 1]), ["a", "b"])
    >>> alike_pairs(read_contents(clips, "speech").near, least=SOUNDS_ALIKE)
    [(1, 0)]
    """
    width = WIDTH.get(modality, 0)
    store, key = EmbeddingCache(), _files(items, modality) if cache and width else None
    kept = None if key is None else store.get(key)
    if kept is not None:
        table = kept.numpy()  # uint8 [n, 16 + 4 * width]
        exact = [row.tobytes() if row.any() else b"" for row in table[:, :16]]
        return Contents(items, modality, exact, np.ascontiguousarray(table[:, 16:]).view(np.float32))
    exact, failed = [], False
    texts: list[str] = []
    rows = np.zeros((len(items.labels), width), dtype=np.float32)
    positions = range(len(items.labels))
    for i in progress(positions, description="looking for leaks", total=len(positions)) if progress else positions:
        try:
            item = items.items[i]
            if modality == "speech":
                wave, rate = _samples(item)
                content, rows[i] = f"{rate} ".encode() + wave.tobytes(), _sketch(wave, rate)
            else:
                content = _bytes(item, modality)
            if modality == "image":
                rows[i] = _small(item, content)
        except (OSError, MultifslError) as error:
            failed |= isinstance(error, OSError) or isinstance(
                error.__cause__, OSError
            )  # and may be well the next time
            exact.append(b"")
            texts.append("")
            continue
        exact.append(hashlib.blake2b(content, digest_size=16).digest())
        if modality == "text":
            texts.append(letters(item))
    if modality == "image":
        rows = _standardised(rows)
    if key is not None and not failed:
        digests = np.frombuffer(b"".join(one or bytes(16) for one in exact), dtype=np.uint8).reshape(-1, 16)
        table = np.concatenate([digests, rows.view(np.uint8)], axis=1)
        store.put(key, torch.from_numpy(table), encoder=f"(leak check, {modality})", identity=modality)
    return Contents(items, modality, exact, texts if modality == "text" else rows if width else None)


def _files(items: Items, modality: str) -> str | None:
    """A key that changes with the items' files and with the code here; None where an item is no file, is away or is very young."""
    lines = [modality, hashlib.blake2b(Path(__file__).read_bytes(), digest_size=16).hexdigest()]
    seen: dict[Path, str] = {}
    try:
        for i in range(len(items.labels)):
            item = items.items[i]
            if not isinstance(item, str | Path | Member):
                return None
            path = item.archive if isinstance(item, Member) else Path(item)
            if path not in seen:
                status = path.stat()
                if time.time() - status.st_mtime < FRESH:
                    return None
                seen[path] = f"{realpath(path)} {status.st_size} {status.st_mtime_ns}"
            lines.append(f"{seen[path]} {item.name if isinstance(item, Member) else ''}")
    except (OSError, MultifslError):
        return None
    return "\n".join(lines)


def _bytes(item: Any, modality: str) -> bytes:
    """What an item other than a clip is, and nothing of where it lies."""
    if modality == "text":
        return str(item).encode("utf-8", "surrogatepass")
    if isinstance(item, str | Path | Member):
        return (Path(item) if isinstance(item, str) else item).read_bytes()
    if isinstance(item, Image.Image):
        return f"{item.mode} {item.size} ".encode() + item.tobytes()
    array = np.asarray(item)
    return f"{array.dtype} {array.shape} ".encode() + array.tobytes()


def _samples(item: Any) -> tuple[np.ndarray, float]:
    """A clip as mono int16 [n], and its rate in hertz. Raises BadItem for what no encoder would read, and for silence."""
    import soundfile  # only where audio is asked for

    try:
        if isinstance(item, str | Path | Member):
            content = (Path(item) if isinstance(item, str) else item).read_bytes()
            wave, rate = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
        else:
            wave, rate = np.asarray(item[0]), float(item[1])
            if wave.dtype.kind == "u":
                wave = (wave.astype(np.float32) - 128) / 128
            elif wave.dtype.kind == "i":  # those of 8 bytes are 16-bit samples, which numpy made of a list
                wave = wave.astype(np.float32) / (32768 if wave.itemsize == 8 else 2.0 ** (8 * wave.itemsize - 1))
        mono = wave.mean(int(np.argmin(wave.shape))) if wave.ndim == 2 else wave  # the smaller axis: channels
        whole = np.clip(np.rint(mono * 32768), -32768, 32767)
    except (soundfile.SoundFileError, TypeError, ValueError, LookupError) as error:
        raise BadItem(f"no clip: {str(item)[:80]}") from error
    if not (np.isfinite(whole).all() and whole.any() and RATES[0] <= rate <= RATES[1]):
        raise BadItem(f"silence, or of no sensible rate: {str(item)[:80]}")
    return whole.astype(np.int16), float(rate)


def _sketch(wave: np.ndarray, rate: float) -> np.ndarray:
    """The fine structure of a clip's spectrum, float32 [230], of mean 0 and length 1, or all 0 where there is none.

    The power of the whole clip in bands of 8 Hz, as a logarithm, less the mean of the bands around. That knows neither when
    something is heard nor how loud, so that silence at the ends, volume and rate hardly count; two recordings of one word differ.
    """
    size = 1 << int(np.ceil(np.log2(max(len(wave), rate))))  # bins of 1 Hz at most
    edges = np.rint((LOWEST + BAND * np.arange(BANDS + 1)) * size / rate).astype(np.int64)
    power = np.abs(np.fft.rfft(wave, size)[: edges[-1]]) ** 2
    level = np.log(np.add.reduceat(power, edges[:-1]) / np.diff(edges) + 1)
    level -= np.convolve(np.pad(level, AROUND // 2, mode="edge"), np.full(AROUND, 1 / AROUND), "valid")
    level -= level.mean()
    length = float(np.linalg.norm(level))
    return np.asarray(level / length if length > 1e-3 else 0 * level, dtype=np.float32)


def _course(wave: np.ndarray, rate: float) -> np.ndarray:
    """The amplitudes of a clip in 15 bands, every 10 ms: float64 [frames, 15]."""
    size, count = round(FRAME * rate), max(0, int((len(wave) / rate - FRAME) / HOP) + 1)
    starts = np.rint(HOP * rate * np.arange(count)).astype(np.int64)
    frames = wave[np.minimum(starts[:, None] + np.arange(size), len(wave) - 1)]  # [frames, size]
    power = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2
    edges = np.rint(EDGES * size / rate).astype(np.int64)
    return np.asarray(np.sqrt(np.add.reduceat(power[:, : edges[-1]], edges[:-1], axis=1)))


def _go_together(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether courses [frames, 15] are of one recording, of which one may have more at its ends; those of a moment always are."""
    a, b = sorted((a, b), key=len)
    if len(a) < 4:
        return True
    most = round(SHIFT / HOP)
    for lag in range(-most, len(b) - len(a) + most + 1):
        x, y = a[max(0, -lag) : len(b) - lag], b[max(0, lag) : len(a) + lag]
        if 2 * len(x) < len(a):
            continue
        x, y = x - x.mean(0), y - y.mean(0)
        if (x * y).sum() > ALIKE_IN_TIME * np.linalg.norm(x) * np.linalg.norm(y):
            return True
    return False


def letters(text: str) -> str:
    """A text without case, spaces and punctuation; symbols and the vowel signs of any script stay.

    >>> letters("Where's my card -- the £5 one?")
    'wheresmycardthe£5one'
    """
    return "".join(c for c in text.casefold() if category(c)[0] not in "PZC")


def _small(item: Any, content: bytes) -> np.ndarray:
    """An image as grey, on white, [64]; all 0 of what is no picture (a damaged file, an array of another shape)."""
    try:
        image: Image.Image
        if isinstance(item, str | Path | Member):
            image = Image.open(BytesIO(content))
            image.draft("L", (8 * SIDE, 8 * SIDE))  # a JPEG need not be decoded in full
        else:
            image = item if isinstance(item, Image.Image) else picture(item)
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        return np.asarray(grey, dtype=np.float32).reshape(-1)
    # SyntaxError: Pillow, of a broken PNG
    except (OSError, SyntaxError, ValueError, BadItem, Image.DecompressionBombError):
        return np.zeros(SIDE * SIDE, dtype=np.float32)


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Rows [n, 64] of mean 0 and length 1, so that products are correlations; those of flat images are 0, and like nothing."""
    rows = rows - rows.mean(1, keepdims=True)
    spread = rows.std(1, keepdims=True)
    scale = np.where(spread < FLAT, 0.0, 1 / np.maximum(spread * SIDE, 1e-6))  # SIDE: the root of 64
    return (rows * scale).astype(np.float32)


Pair = tuple[int, int]


def equal_pairs(keys: Sequence[Any], others: Sequence[Any] | None = None) -> list[Pair]:
    """(i, j) for each key i that equals one of the others, j the first; without others, an earlier key. Empty keys equal none.

    >>> equal_pairs(["a", "b", "a", "", ""]), equal_pairs(["a", "b"], ["b"])
    ([(2, 0)], [(1, 0)])
    """
    first: dict[Any, int] = {}
    for j, key in enumerate(keys if others is None else others):
        first.setdefault(key, j)
    found = [(i, first[key]) for i, key in enumerate(keys) if key and key in first]
    return found if others is not None else [(i, j) for i, j in found if i != j]


def alike_pairs(
    rows: np.ndarray, others: np.ndarray | None = None, *, least: float = ALIKE, progress: Progress | None = None
) -> list[Pair]:
    """The same of images or clips, standardised [n, d]: those that correlate by `least` or more, j the one that does most.

    >>> alike_pairs(np.eye(3)[[0, 1, 0]]), alike_pairs(np.eye(3), np.eye(3)[2:])
    ([(2, 0)], [(2, 0)])
    """
    found: list[Pair] = []
    starts: Iterable[int] = range(0, len(rows), BLOCK)
    if progress and len(rows) * len(rows if others is None else others) > SLOW:
        starts = progress(starts, description="comparing items", total=-(-len(rows) // BLOCK))
    for start in starts:
        block = rows[start : start + BLOCK]
        like = block @ (rows[: start + BLOCK] if others is None else others).T
        if others is None:
            like[:, start:] = np.tril(like[:, start:], -1)
        best = like.argmax(1) if like.shape[1] else np.zeros(0, dtype=np.int64)
        found += [(start + i, int(j)) for i, j in enumerate(best) if like[i, j] >= least]
    return found


# ---- the checks ----


def find_leaks(
    task: Task,
    split: str,
    *,
    encoder: Encoder | str,
    test: Items | Contents,
    train: Items | Contents | None = None,
    run_info: dict[str, Any] | None = None,
    weights: str = "best",
    disjoint_groups: bool = False,
    most: int | None = READ_MOST,
    cache: bool = False,
    progress: Progress | None = None,
) -> list[Leak]:
    """What of the leaks is there, the errors first.

    Args:
        task, split, test: what is evaluated. encoder: what with; a spec is a resolved one, or names a run ("model:NAME").
        run_info: what the evaluated run's `run.json` says. weights: which of its weights are taken, "best" or "last".
        train: the train items of the run's own task, whatever task is evaluated; without a run they are not looked at. Where they
            are not given, or for their contents are more than `most` (None: any number), it says what was not compared.
        disjoint_groups: whether support and query are kept from sharing groups.
        cache: keep on disk what files are made of, see `read_contents`.
        progress: wraps loops, such as `rich.progress.track`.

    Raises:
        BadFile: a run that the encoder came from and that comes with the package is damaged.

    >>> data = Items(["hello", "hello", "bye"], np.array([0, 0, 1]), ["greeting", "parting"])
    >>> from multifsl.registry import build
    >>> leaks = find_leaks(build("tasks", "banking77"), "test", encoder="conv4", test=data)
    >>> [(leak.kind, leak.severe) for leak in leaks]
    [('same-items', True)]
    """
    past = _past(encoder, run_info)
    own, trained = parse(anchored(resolved(task))), [parse(text) for text in past.tasks]
    test = test if isinstance(test, Contents) else read_contents(test, task.modality, progress, cache=cache)
    met = _met(own, trained)
    leaks = [*_trained_on(met, split), *_repeats(test, None, split, progress=progress)]
    if split == "val" and past.validated and weights == "best" and _met(own, trained[:1]):
        leaks.append(Leak("chosen-on", "the run's weights are those that did best on these classes", False))
    if trained and train is not None:
        if isinstance(train, Items):
            many = most is not None and len(train.labels) > most
            if many:
                leaks.append(
                    _unchecked(
                        f"whether test items stand among the {len(train.labels):,} train items (--leak-check full does)"
                    )
                )
            train = (
                Contents(train, task.modality, [], None)
                if many
                else read_contents(train, task.modality, progress, cache=cache)
            )
        shared = _shared(test.items, own, train.items, trained[0])
        told = [_data_set(part) for part in met] if split in ("train", "all") else []
        leaks += _classes(shared, len(test.items.class_names), told)
        leaks += _repeats(test, train, split, {name for _, name in shared}, progress)
        leaks += _groups_across(task, split, test.items, train.items, past.tasks[0])
    elif trained:
        leaks.append(_unchecked(f"whether classes and items stand in the train split of {past.tasks[0]}"))
    if test.near is None:
        leaks.append(
            _unchecked(f"whether items are nearly the same: {test.modality} items are found where they are equal")
        )
    if not disjoint_groups:
        leaks += _groups_within(test.items)
    leaks += [leak for one in past.encoders for leak in _pretrained(one, own)]
    leaks += [_unchecked(what) for what in past.lost]
    return sorted(dict.fromkeys(leaks), key=lambda leak: not leak.severe)


def check_leaks(leaks: Iterable[Leak], allowed: Collection[str] = ()) -> list[Leak]:
    """The leaks to be marked beside a figure, those that were allowed too.

    Raises MultifslError for a severe one whose kind is not among those allowed, and for a name there that is none of KINDS.

    >>> check_leaks([Leak("classes", "both have 'cat'", True)], ["classes"])[0].kind
    'classes'
    """
    for name in allowed:
        if name not in KINDS:
            raise MultifslError(f"no leak {name!r} to allow{nearest(name, KINDS)}; known: {', '.join(KINDS)}")
    leaks = list(leaks)
    if bad := [leak for leak in leaks if leak.severe and leak.kind not in allowed]:
        found = "; ".join(f"{leak.kind}: {leak.message}" for leak in bad)
        flags = " ".join(f"--allow-leak {kind}" for kind in dict.fromkeys(leak.kind for leak in bad))
        raise MultifslError(f"the figure would leak: {found}. To have it all the same, with a mark beside it: {flags}")
    return leaks


def _unchecked(what: str) -> Leak:
    return Leak("not-checked", f"not checked for leaks: {what}", False)


class _Past(NamedTuple):
    """What went into weights: the tasks they were trained on, the evaluated run's first, and encoders; what is not known.

    validated: whether validation chose them.
    """

    tasks: list[str]
    encoders: list[Encoder | str]
    lost: list[str]
    validated: bool


def _past(encoder: Encoder | str, info: dict[str, Any] | None) -> _Past:
    """Follows a run to those that its encoder came from, as far as they come with the package: a path in a file is not followed."""
    if isinstance(encoder, str) and names_run(encoder):
        info = read_json(run_folder(encoder) / "run.json")
        encoder = str(info["encoder"])
    past = _Past(
        [], [] if (info or {}).get("encoder") else [encoder], [], "val_step" in ((info or {}).get("metrics") or {})
    )
    while info is not None:
        if isinstance(info.get("task"), str):
            past.tasks.append(anchored(info.get("task_at", info["task"])))
        teacher = (info.get("teacher") or [None])[0]
        past.encoders.extend(text for text in (info.get("encoder_began") or info.get("encoder"), teacher) if text)
        name = None if teacher is None else parse(teacher)[0].name
        if name is not None and not (name in names("encoders") and find("encoders", name).pretrained):  # type: ignore[attr-defined]
            past.lost.append(f"what the run's teacher, {teacher}, was trained on")
        source = (info.get("encoder_from") or [None])[0]
        if source is None:
            break
        if not is_shipped(source) or source.removeprefix(SHIPPED) not in model_names():
            past.lost.append(f"what {source} was trained on, from which the run's encoder came")
            break
        info = read_json(run_folder(source) / "run.json")
    return past


def anchored(task: str) -> str:
    """A resolved task whose files that lie under the working folder have their whole paths, the same wherever one works.

    >>> anchored("images(path='no/such/folder', splits=None, seed=0)")
    "images(path='no/such/folder', splits=None, seed=0)"
    """
    parts = []
    for spec in parse(task):
        given = {
            key: abspath(value) if key in FILES and isinstance(value, str) and exists(value) else value
            for key, value in spec.kwargs.items()
        }
        parts.append(
            f"{spec.name}({', '.join(f'{key}={value!r}' for key, value in given.items())})" if given else spec.name
        )
    return " + ".join(parts)


def _data_set(spec: Spec) -> tuple[str, ...]:
    """What tells data sets apart: the name, and of one's own files where they are."""
    where = (realpath(str(spec.kwargs.get(key) or ".")) for key in ("path", "config"))
    return (ONE_DATA_SET.get(spec.name, spec.name), *where)


def _same_classes(a: Spec, b: Spec) -> bool:
    """Whether two specs name the same classes, by the arguments that both have: an older run lacks the younger ones."""
    common = (a.kwargs.keys() & b.kwargs.keys()) - NEUTRAL
    return a.name == b.name and _data_set(a) == _data_set(b) and all(a.kwargs[k] == b.kwargs[k] for k in common)


def _met(own: list[Spec], trained: Iterable[list[Spec]]) -> list[Spec]:
    """The parts of the evaluated task that are parts of what was trained on, too."""
    return [part for part in own if any(_same_classes(part, other) for task in trained for other in task)]


def _trained_on(met: list[Spec], split: str) -> list[Leak]:
    if not met or split not in ("train", "all"):
        return []
    known = some(list(dict.fromkeys(part.name for part in met)))
    what = (
        f"the weights, or the method, learned from the train split of {known}, which split {split!r} "
        f"{'is' if split == 'train' else 'holds'}: its classes are not new; take the split 'test'"
    )
    return [Leak("trained-on", what, True)]


Class = tuple[tuple[str, ...], str]  # a data set, and a class's name in it


def _class_keys(items: Items, specs: list[Spec]) -> list[Class]:
    """Each class [C] with the data set that it is of; a speaker at another speed is the same speaker."""
    sources = np.zeros(len(items.class_names), dtype=np.int64) if items.sources is None else items.sources
    keys = []
    for name, source in zip(items.class_names, sources, strict=True):
        spec = specs[source]
        suffixes = [f" x{speed:g}" for speed in spec.kwargs.get("speeds", ())]
        keys.append((_data_set(spec), next((name.removesuffix(s) for s in suffixes if name.endswith(s)), name)))
    return keys


def _shared(test: Items, own: list[Spec], train: Items, trained: list[Spec]) -> list[Class]:
    """The classes of the test items that are among those of the train items."""
    known = set(_class_keys(train, trained))
    return [key for key in _class_keys(test, own) if key in known]


def _classes(shared: list[Class], count: int, told: Collection[tuple[str, ...]]) -> list[Leak]:
    """told: the data sets of which it was said that their classes were trained on."""
    found = [name for data_set, name in shared if data_set not in told]
    if not found:
        return []
    what = (
        f"the weights were trained on {len(found)} of the {count} classes: {some(found)}; take the arguments that choose "
        "classes (seed, fold, splits) as in training"
    )
    return [Leak("classes", what, True)]


def _repeats(
    test: Contents,
    train: Contents | None,
    split: str,
    shared: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Leak]:
    """Items of the test split that stand in the train items, or, without those, earlier in the test split.

    shared: classes of both, whose items are in both; they were told.
    """
    other = test if train is None else train
    exact = equal_pairs(test.exact, None if train is None else train.exact)
    near: list[Pair] = []
    if isinstance(test.near, list) and isinstance(other.near, list):
        near = equal_pairs(test.near, None if train is None else other.near)
    elif isinstance(test.near, np.ndarray) and isinstance(other.near, np.ndarray):
        least = SOUNDS_ALIKE if test.modality == "speech" else ALIKE
        near = alike_pairs(test.near, None if train is None else other.near, least=least, progress=progress)
    same = {i for i, _ in exact}
    near = [(i, j) for i, j in near if i not in same]
    if test.modality == "speech":
        near = _confirmed(near, test.items.items, other.items.items)

    leaks = []
    for kind, pairs, how in (("same-items", exact, "the same"), ("near-items", near, "nearly the same")):
        pairs = [(i, j) for i, j in pairs if train is None or _class(test, i) not in shared]
        if not pairs:
            continue
        total, within = len(test.items.labels), sum(_class(test, i) == _class(other, j) for i, j in pairs)
        where = "others of the split" if train is None else "train items"
        kinds = f" ({within} of one class, {len(pairs) - within} of two)" if train is None else ""
        examples = ", ".join(f"{_named(test, i)} and {_named(other, j)}" for i, j in pairs[:3])  # each is opened anew
        more = f" and {len(pairs) - 3:,} more" if len(pairs) > 3 else ""
        message = (
            f"{len(pairs):,} of the {total:,} items of split {split!r} are {how} as {where}{kinds}: {examples}{more}"
        )
        severe = kind == "same-items" and len(pairs) > MUCH * total
        if severe:
            message += f"; above {MUCH:.0%} of them that is an error: take out one of each"
        elif kind == "same-items":
            message += f"; up to {MUCH:.0%} of them that is no error"
        named = tuple((_named(test, i, whole=True), _named(other, j, whole=True)) for i, j in pairs[:LISTED])
        leaks.append(Leak(kind, message, severe, named))
    return leaks


def _confirmed(pairs: list[Pair], clips: Sequence[Any], others: Sequence[Any]) -> list[Pair]:
    """Those pairs that are of one recording in time too; a file that is no longer there is like no other."""

    @remembered
    def course(mine: bool, i: int) -> np.ndarray | None:
        try:
            return _course(*_samples((clips if mine else others)[i]))
        except (OSError, MultifslError):
            return None

    found = []
    for i, j in pairs:
        a, b = course(True, i), course(False, j)
        if a is not None and b is not None and _go_together(a, b):
            found.append((i, j))
    return found


def _class(contents: Contents, i: int) -> str:
    return str(contents.items.class_names[contents.items.labels[i]])


def _named(contents: Contents, i: int, *, whole: bool = False) -> str:
    """An item for people: a text, a file's name (whole: with its folders) or its position, and its class."""
    item = contents.items.items[i]
    is_file = isinstance(item, Path | Member)
    name = (
        str(item)
        if is_file and whole
        else Path(str(item)).name
        if is_file
        else repr(item[:40])
        if isinstance(item, str)
        else f"item {i}"
    )
    return f"{name} ({_class(contents, i)})"


def _groups_within(test: Items) -> list[Leak]:
    """Items of one class and one group: a query can be told by what it has in common with the support beside the class."""
    if test.groups is None:
        return []
    cells, counts = np.unique(np.stack([test.labels, test.groups]), axis=1, return_counts=True)
    classes = np.unique(cells[0][counts > 1])
    if not len(classes):
        return []
    what = (
        f"in {len(classes)} of {len(test.class_names)} classes several items are of one recording, session or speaker, and a "
        "query may share it with the support set; --disjoint-groups keeps them apart"
    )
    return [Leak("groups", what, False)]


def _groups_across(task: Task, split: str, test: Items, train: Items, trained: str) -> list[Leak]:
    """Groups that train and test share. Their numbers mean the same within one split alone, hence the split "all"."""
    own = anchored(resolved(task))
    if own != trained or split in ("train", "all") or train.groups is None or parse(own)[0].name in BY_DESIGN:
        return []
    try:
        every = task.items("all")
    except DataNotFound:
        return [_unchecked("whether train and test share groups, for which all splits are needed")]
    assert every.groups is not None
    keys = _class_keys(every, parse(own))
    sides = []
    for side in (train, test):
        inside = set(_class_keys(side, parse(own)))
        sides.append(np.unique(every.groups[np.array([key in inside for key in keys])[every.labels]]))
    count = len(np.intersect1d(sides[0], sides[1]))
    if not count:
        return []
    what = (
        f"{count} of the {len(sides[1])} recordings, sessions or speakers of split {split!r} are in the train items too"
    )
    return [Leak("groups", what, False)]


def _pretrained(encoder: Encoder | str, own: list[Spec]) -> list[Leak]:
    spec = parse(encoder if isinstance(encoder, str) else resolved(encoder))[0]
    if isinstance(encoder, Encoder):
        begins = encoder.pretrained
    else:
        begins = spec.name in names("encoders") and find("encoders", spec.name).pretrained  # type: ignore[attr-defined]
    if not begins or not spec.kwargs.get("published", True):
        return []
    model = str(spec.kwargs.get("model", ""))
    known = [row for row in SEEN if row.encoder == spec.name and fnmatch(model, row.model)]
    name = model or spec.name
    if not known:
        return [_unchecked(f"what {name} was trained on by those who published it")]
    hits = [row for row in known if any(part.name in row.tasks for part in own)]
    leaks = [Leak("pretrained", f"{row.what.format(name)} ({row.source})", False) for row in hits]
    if any(part.name not in names("tasks") or find("tasks", part.name).source is None for part in own):  # type: ignore[attr-defined]
        data = " and ".join(dict.fromkeys(row.data for row in known))
        leaks.append(_unchecked(f"whether {name} has seen such classes (it was trained on {data})"))
    return leaks
