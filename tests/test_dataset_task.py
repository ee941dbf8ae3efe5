"""The task over any data set of `datasets`, on sets made here and saved with `save_to_disk`.

Oracles: the rows as they were written; the hub's own errors, put in the place of a network.
"""

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image

import multifsl
from multifsl.encoders._speech import load_waveform
from multifsl.errors import BadFile, BadItem, DataNotFound, MultifslError
from multifsl.registry import build, resolved
from multifsl.tasks import _datasets, dataset
from multifsl.tasks.dataset import Dataset
from tests.test_tasks import handed_over

NAMES = ["ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibi", "jay"]
EACH = 3
RATE = 16_000


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.full((32, 32, 3), number, dtype=np.uint8))


def shade(row: int) -> int:
    """Row i is of class i % 10, whose pictures are of about the same grey."""
    return 25 * (row % 10) + row // 10


def encoded(number: int, suffix: str = "PNG") -> bytes:
    out = BytesIO()
    picture(number).save(out, suffix)
    return out.getvalue()


def recorded(number: int, suffix: str, channels: int = 1) -> bytes:
    out = BytesIO()
    wave = np.full((1600 + number, channels), 1000 + number, dtype=np.int16)
    soundfile.write(out, wave, RATE, format=suffix)
    return out.getvalue()


def texts(names: list[str] | None = None, offset: int = 0) -> datasets.Dataset:
    rows = [(f"{name} {offset + i}", k) for i in range(EACH) for k, name in enumerate(NAMES)]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names or NAMES)})
    return datasets.Dataset.from_dict({"text": [t for t, _ in rows], "label": [k for _, k in rows]}, features)


def images(column: dict[str, Any] | None = None) -> datasets.Dataset:
    labels = [k for _ in range(EACH) for k in range(10)]
    rows = {
        "picture": [{"bytes": encoded(shade(i)), "path": None} for i in range(30)],
        "kind": labels,
        **(column or {}),
    }
    return datasets.Dataset.from_dict(rows).cast_column("picture", datasets.Image())


def clips(suffix: str = "FLAC", channels: int = 1) -> datasets.Dataset:
    rows = {
        "audio": [{"bytes": recorded(i, suffix, channels), "path": f"{i}.{suffix.lower()}"} for i in range(30)],
        "speaker": [NAMES[i % 10] for i in range(30)],
        "session": [f"day {i % 2}" for i in range(30)],
    }
    return datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))


def saved(data: Any, folder: Path) -> str:
    data.save_to_disk(str(folder))
    return str(folder)


# ---- the three modalities ----


def test_texts_with_class_labels(tmp_path: Path) -> None:
    task = Dataset(saved(texts(), tmp_path / "set"))
    assert task.modality == "text"
    everything = task.items("all")
    assert everything.class_names == sorted(NAMES)
    assert list(everything.items) == [f"{name} {i}" for name in sorted(NAMES) for i in range(EACH)]
    assert everything.labels.tolist() == [k for k in range(10) for _ in range(EACH)]
    assert everything.groups is None
    dealt = [task.items(split) for split in ("train", "val", "test")]
    assert [len(part.class_names) for part in dealt] == [6, 2, 2]
    assert sorted(name for part in dealt for name in part.class_names) == sorted(NAMES)
    assert Dataset(task.path, seed=1).items("train").class_names != dealt[0].class_names


def test_images_by_whole_numbers(tmp_path: Path) -> None:
    task = Dataset(saved(images(), tmp_path / "set"))
    assert task.modality == "image"
    items = task.items("all")
    assert items.class_names == [str(k) for k in range(10)]
    assert items.labels.dtype == np.int64
    greys = [np.asarray(item)[0, 0, 0] for item in items.items]
    assert greys == [
        shade(k + 10 * i) for k in range(10) for i in range(EACH)
    ]  # class k has the rows k, k + 10, k + 20
    assert items.items[0].size == (32, 32)


@pytest.mark.parametrize("suffix", ["FLAC", "WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_audio_is_what_the_speech_encoders_read(suffix: str, channels: int, tmp_path: Path) -> None:
    task = Dataset(saved(clips(suffix, channels), tmp_path / "set"), label="speaker", group="session")
    assert task.modality == "speech"
    items = task.items("all")
    assert items.groups is not None
    for position, item in enumerate(items.items):
        name, again = items.class_names[items.labels[position]], position % EACH
        row = NAMES.index(name) + 10 * again
        np.testing.assert_array_equal(load_waveform(item), np.full(1600 + row, 1000 + row, dtype=np.int16))
        assert items.groups[position] == row % 2  # the first item, row 0, is of the first session


def test_audio_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set that names its files instead of holding them (`save_to_disk` would take them in)."""
    for i in range(2):
        (tmp_path / f"{i}.wav").write_bytes(recorded(i, "WAV"))
    rows = {"audio": [str(tmp_path / f"{i}.wav") for i in range(2)], "label": ["a", "b"]}
    data = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    monkeypatch.setattr(dataset, "load", lambda *_: {"train": data})
    items = Dataset("owner/name").items("all")
    assert [(len(wave), rate) for wave, rate in items.items] == [(1600, RATE), (1601, RATE)]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path: Path) -> None:
    """One row of thirty is broken: only that item says so, and names the row."""
    data = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": b"no picture" if i == 17 else encoded(i), "path": None} for i in range(30)],
            "kind": [NAMES[i % 10] for i in range(30)],
        }
    ).cast_column("picture", datasets.Image())
    items = Dataset(saved(data, tmp_path / "set")).items("all")
    broken = []
    for position in range(30):
        try:
            _ = items.items[position]
        except BadItem as error:
            broken.append(str(error))
    assert len(broken) == 1
    assert "row 17 of part 'all'" in broken[0]


@pytest.mark.parametrize("content", [b"", b"RIFF0000WAVE", recorded(5, "FLAC")[:60], None])
def test_a_clip_that_is_no_clip(content: bytes | None, tmp_path: Path) -> None:
    row = None if content is None else {"bytes": content, "path": None}
    data = datasets.Dataset.from_dict({"audio": [row, row], "label": ["a", "b"]})
    task = Dataset(saved(data.cast_column("audio", datasets.Audio(decode=False)), tmp_path / "set"))
    with pytest.raises(BadItem, match="row 0 of part 'all'"):
        _ = task.items("all").items[0]


def test_items_go_to_another_process(tmp_path: Path) -> None:
    for name, data, label in (("t", texts(), "label"), ("i", images(), "kind"), ("c", clips(), "speaker")):
        items = Dataset(saved(data, tmp_path / name), label=label, part="all", group=label).items("train").items
        again = handed_over(items)
        assert len(again) == len(items) > 0
        for one, other in zip(items, again, strict=True):
            np.testing.assert_equal(
                np.asarray(one[0] if name == "c" else one), np.asarray(other[0] if name == "c" else other)
            )


# ---- parts, columns, splits ----


def test_parts_are_pooled_or_chosen(tmp_path: Path) -> None:
    path = saved(datasets.DatasetDict({"train": texts(), "test": texts(offset=3)}), tmp_path / "set")
    assert list(Dataset(path).items("all").items[:6]) == [f"ant {i}" for i in range(6)]
    assert list(Dataset(path, part="test").items("all").items[:3]) == ["ant 3", "ant 4", "ant 5"]
    with pytest.raises(MultifslError, match="no part 'dev'; there are 'train', 'test'"):
        Dataset(path, part="dev").items("all")


def test_parts_whose_class_numbers_differ_are_pooled_by_name(tmp_path: Path) -> None:
    turned = texts(names=NAMES[::-1])  # number 0 is 'jay' there
    items = Dataset(saved(datasets.DatasetDict({"a": texts(), "b": turned}), tmp_path / "set")).items("all")
    assert list(items.items[:6]) == ["ant 0", "ant 1", "ant 2", "jay 0", "jay 1", "jay 2"]


def test_parts_with_other_columns(tmp_path: Path) -> None:
    other = texts().rename_column("text", "query")
    path = saved(datasets.DatasetDict({"train": texts(), "test": other}), tmp_path / "set")
    with pytest.raises(MultifslError, match="'train', 'test' of .* have other columns; choose one with part="):
        Dataset(path).items("all")
    assert len(Dataset(path, part="test").items("all").items) == 30


def test_a_class_without_a_name(tmp_path: Path) -> None:
    """-1 is how many hidden test labels are written."""
    data = datasets.DatasetDict({"train": texts(), "test": texts().map(lambda _: {"label": -1})})
    path = saved(data, tmp_path / "set")
    with pytest.raises(MultifslError, match="row 0 of part 'test' .* no label in 'label', but -1; choose another part"):
        Dataset(path).items("all")
    assert len(Dataset(path, part="train").items("all").items) == 30


def test_the_parts_to_choose_instead_are_others(tmp_path: Path) -> None:
    hidden = texts().map(lambda _: {"label": -1})
    path = saved(datasets.DatasetDict({"train": texts(), "test": hidden}), tmp_path / "set")
    with pytest.raises(
        MultifslError, match=r"part 'test' .* but -1; choose another part \('train'\) with part=, or save"
    ):
        Dataset(path, part="test").items("all")
    with pytest.raises(MultifslError, match="row 0 of part 'all' .* but -1; save the set without such rows$"):
        Dataset(saved(hidden, tmp_path / "one")).items("all")


@pytest.mark.parametrize(
    ("values", "feature", "says"),
    [
        (
            ["day", None] * 15,
            datasets.Value("string"),
            "row 1 of part 'all' .* has no group in 'session', but None; .*leave out",
        ),
        (["day"] * 29 + [" "], datasets.Value("large_string"), "row 29 of .* has no group in 'session', but ' '"),
        ([1] * 5 + [None] * 25, datasets.Value("int64"), "row 5 of .* has no group in 'session', but None"),
        ([0] * 7 + [-1] * 23, datasets.ClassLabel(names=["day"]), "row 7 of .* has no group in 'session', but -1"),
        (
            [1.0, float("nan")] * 15,
            datasets.Value("float64"),
            "groups' column 'session' must be of class labels, strings or",
        ),
        (
            [True] * 30,
            datasets.Value("bool"),
            "groups' column 'session' must be of class labels, strings or whole numbers",
        ),
        ([["day"]] * 30, datasets.List(datasets.Value("string")), r"groups' column 'session' .*session \(List\)"),
        ([{"day": 1}] * 30, {"day": datasets.Value("int64")}, r"groups' column 'session' .*session \(dict\)"),
    ],
)
def test_a_row_has_one_group(values: list[Any], feature: Any, says: str, tmp_path: Path) -> None:
    """A row without a group is in none: neither are all such rows one recording, nor is each of them one."""
    features = datasets.Features({**texts().features, "session": feature})
    rows = {"text": [f"t {i}" for i in range(30)], "label": [i % 10 for i in range(30)], "session": values}
    data = datasets.Dataset.from_dict(rows, features)
    task = Dataset(saved(data, tmp_path / "set"), item="text", group="session")
    with pytest.raises(MultifslError, match=says):
        task.items("train")
    assert Dataset(task.path, item="text", label="label").items("all").groups is None


@pytest.mark.parametrize(
    ("values", "feature"),
    [
        (["a", "b", "b"], datasets.Value("string")),
        ([4, -1, -1], datasets.Value("int32")),
        ([1, 0, 0], datasets.ClassLabel(names=["x", "y"])),
    ],
)
def test_groups_by_any_kind_of_name(values: list[Any], feature: Any, tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.Value("string"), "by": feature})
    data = datasets.Dataset.from_dict({"text": ["t", "u", "v"], "label": ["a", "a", "b"], "by": values}, features)
    items = Dataset(saved(data, tmp_path / "set"), item="text", label="label", group="by").items("all")
    assert items.groups is not None and items.groups.tolist() == [0, 1, 1]


def test_arguments_that_a_folder_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = saved(texts(), tmp_path / "set")
    with pytest.raises(
        MultifslError, match="config='small' chooses .*set, which save_to_disk wrote, is one set; leave it out"
    ):
        Dataset(path, config="small").items("all")
    (tmp_path / "files").mkdir()
    texts().to_parquet(str(tmp_path / "files" / "train.parquet"))
    for folder in (path, str(tmp_path / "files")):
        with pytest.raises(
            MultifslError, match="revision='v1' is of a name on the hub, and .* is a folder; leave it out"
        ):
            Dataset(folder, revision="v1").items("all")
    with pytest.raises(
        MultifslError, match="item= and label= are both the column 'text'; give each its own; .*has the columns"
    ):
        Dataset(path, item="text", label="text").items("all")


def test_class_lists(tmp_path: Path) -> None:
    lists = {"train": NAMES[:5], "val": NAMES[5:7], "test": NAMES[7:]}
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    saved(texts(), tmp_path / "set")
    task = Dataset("set", splits="splits.json")
    task.data_root = tmp_path  # both are found under it
    assert task.items("test").class_names == NAMES[7:]
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["bat"]}))
    with pytest.raises(MultifslError, match="'bat'"):
        task.items("train")


def test_columns_are_guessed_only_where_one_will_do(tmp_path: Path) -> None:
    data = texts().add_column("origin", ["phone"] * 30).add_column("score", [0.5] * 30)
    path = saved(data, tmp_path / "set")
    columns = r"text \(string\), label \(ClassLabel\), origin \(string\), score \(float64\)"
    with pytest.raises(MultifslError, match=f"with item=: it could be any of 'text', 'origin' .*{columns}"):
        Dataset(path).items("all")
    assert len(Dataset(path, item="text").items("all").items) == 30
    assert Dataset(path, group="origin").items("all").groups is not None  # which leaves one string column
    with pytest.raises(MultifslError, match=f"no column 'body' for item=; .*{columns}"):
        Dataset(path, item="body").items("all")
    with pytest.raises(
        MultifslError, match=f"items' column 'score' must be of images, of audio or of strings; .*{columns}"
    ):
        Dataset(path, item="score").items("all")
    with pytest.raises(MultifslError, match="labels' column 'score' must be of class labels, strings or whole numbers"):
        Dataset(path, item="text", label="score").items("all")
    with pytest.raises(MultifslError, match="with label=: it could be any of 'speaker', 'session'"):
        Dataset(saved(clips(), tmp_path / "clips")).items("all")


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a data set's repository, brought here from the hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    texts().to_parquet(str(tmp_path / "set" / "train.parquet"))
    items = Dataset(tmp_path / "set").items("all")
    assert list(items.items[:3]) == ["ant 0", "ant 1", "ant 2"]


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text("{")
    with pytest.raises(BadFile, match="datasets cannot read the folder"):
        Dataset(tmp_path / "set").items("all")


# ---- the hub, which no test asks ----


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_offline(no_cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataNotFound, match="tried the folder .*HF_DATASETS_OFFLINE.* is set; .*hf download PolyAI/banking77"
    ):
        _ = Dataset("PolyAI/banking77").modality


@pytest.mark.parametrize("slow", [False, True])
def test_no_network(no_cache: None, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or dropped by a firewall: either way the answer comes soon, and the hub is asked once."""
    asked = []

    def no_answer(*_: Any, **__: Any) -> None:
        asked.append(1)
        time.sleep(3 if slow else 0)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", no_answer)
    monkeypatch.setattr(_datasets, "PATIENCE", 0.2)
    start = time.monotonic()
    says = "no answer within 0.2 seconds" if slow else "no route to the hub"
    with pytest.raises(DataNotFound, match=f"no data set 'PolyAI/banking77'; tried the folder .*{says}"):
        _ = Dataset("PolyAI/banking77").modality
    assert time.monotonic() - start < 2
    assert asked == [1]
    assert not datasets.config.HF_HUB_OFFLINE  # as it was


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return datasets.DatasetDict({"train": texts()})

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    task = Dataset("owner/name", config="small", revision="v1")
    assert len(task.items("all").items) == 30
    assert task.modality == "text"
    assert asked == [(("owner/name", "small"), {"revision": "v1"})]  # once, and without trust_remote_code


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            RuntimeError("Dataset scripts are no longer supported, but found name.py"),
            "runs none .*refs/convert/parquet",
        ),
        (ValueError("Config name is missing.\nPlease pick one: ['a', 'b']"), r"missing. Please pick one: \['a', 'b'\]"),
    ],
)
def test_what_the_library_says_is_told(error: Exception, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with pytest.raises(MultifslError, match=says):
        _ = Dataset("owner/name").modality


@pytest.mark.parametrize("path", ["a/b/c", "/nowhere", "../up"])
def test_what_cannot_be_a_name(path: str) -> None:
    with pytest.raises(DataNotFound, match="tried the folder .*a name on the hub is 'owner/name'"):
        _ = Dataset(path).modality


# ---- its spec ----


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")  # Python's own, of \\d
@pytest.mark.parametrize(
    "spec", [r"dataset('C:\data\x')", r"texts('D:\new\table.csv')", r"texts('sets\x')", r"C:\data\x"]
)
def test_a_path_with_backslashes(spec: str) -> None:
    """Where it cannot be read, and where a piece of it would become a line break, the way to write it is told."""
    with pytest.raises(MultifslError, match="cannot read the spec .*write a path with /, such as 'C:/data/x'"):
        build("tasks", spec)
    doubled = "C:\\new\\x"
    assert build("tasks", f"dataset({doubled!r})").path == doubled


def test_no_word_of_backslashes_where_there_is_none() -> None:
    with pytest.raises(MultifslError) as error:
        build("tasks", "dataset('C:/data/x'")
    assert "write a path" not in str(error.value)


# ---- end to end ----


def test_evaluate(tmp_path: Path) -> None:
    """Pictures of one grey for each class: conv4 tells them apart as it is."""
    path = saved(images(), tmp_path / "set")
    spec = f"dataset({path!r}, label='kind')"
    assert build("tasks", resolved(build("tasks", spec))).items("test").class_names
    with pytest.warns(UserWarning, match="random weights"):
        result = multifsl.evaluate(
            task=spec,
            encoder="conv4(channels=3, width=8)",
            method="prototypical(distance='euclidean')",
            split="all",
            way=5,
            shot=1,
            query=2,
            episodes=20,
            device="cpu",
        )
    assert result.accuracy > 0.9
