"""The sets of texts: against files made here in their official layout, and against the real data where they are.

Oracles: the files as they were written, and the counts and class lists that the authors publish.
"""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from multifsl import registry
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.task import Joined, Task
from multifsl.tasks.clinc150 import Clinc150
from multifsl.tasks.huffpost import SPLITS, HuffPost
from multifsl.tasks.hwu64 import Hwu64
from tests.needs import needs_data
from tests.sets import PARTS, check_splits
from tests.test_tasks import TEN, make_texts, rooted, write

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "duplicate_texts.py"


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("task", [Hwu64(), Clinc150(), HuffPost()], ids=lambda task: type(task).__name__)
def test_missing_data(tmp_path: Path, task: Task) -> None:
    rooted(task, tmp_path)
    with pytest.raises(DataNotFound, match=r"was not found; looked for .*--data-root or \$MULTIFSL_DATA"):
        task.items("train")
    (tmp_path / f"text_{type(task).__name__.lower()}").mkdir()
    with pytest.raises(DataNotFound, match=r"has no data\.jsonl|has neither News_Category_Dataset_v3\.json nor"):
        task.items("train")
    assert registry.resolved(registry.build("tasks", registry.resolved(task))) == registry.resolved(task)


# ---- HWU64 ----


def test_hwu64_folds(tmp_path: Path) -> None:
    folder = tmp_path / "text_hwu64"
    make_texts(folder / "data.jsonl")
    for fold in range(1, 6):
        turned = TEN[fold:] + TEN[:fold]
        lists = {"train": turned[:3], "valid": turned[3:6], "test": turned[6:]}
        write(folder / "splits" / f"split_0{fold}.json", json.dumps(lists))
    splits = check_splits(rooted(Hwu64(fold=3), tmp_path), (3, 3, 4))
    assert splits["val"].class_names == ["g", "h", "i"] and splits["val"].items[:2] == ["g 0", "g 1"]
    with pytest.raises(MultifslError, match="hwu64 has the folds 1 to 5, not 6"):
        Hwu64(fold=6)
    write(folder / "splits" / "split_03.json", json.dumps({"train": ["a"], "valid": ["a"], "test": ["b"]}))
    with pytest.raises(MultifslError, match="class 'a' stands in 'train' and in 'val'"):
        rooted(Hwu64(fold=3), tmp_path).items("train")
    (folder / "splits" / "split_03.json").unlink()
    with pytest.raises(DataNotFound, match=r"has no splits/split_03\.json"):
        rooted(Hwu64(fold=3), tmp_path).items("train")


def test_real_hwu64() -> None:
    needs_data("text_hwu64")
    counts = {1: (16, 23, 25), 2: (30, 15, 19), 3: (24, 18, 22), 4: (20, 15, 29), 5: (25, 11, 28)}
    for fold, expected in counts.items():
        splits = check_splits(Hwu64(fold=fold), expected)
        assert len(splits["all"].class_names) == 64 and len(splits["all"].items) == 11_036
        domains = [{name.partition("/")[0] for name in splits[part].class_names} for part in PARTS]
        assert [len(names) for names in domains] == [6, 6, 6] and len(set.union(*domains)) == 18
        assert len(set(splits["all"].items)) == 11_036  # no text stands twice


# ---- CLINC150 ----


def make_clinc(root: Path, domains: int, intents: int = 15) -> Path:
    """Domains of 15 intents of two queries each, and seven queries out of scope."""
    folder = root / "text_clinc150"
    rows = [
        {"text": f"query {q} of {d}_{i}", "label": f"intent_{i:02}_of_{d}", "domain": f"domain_{d}"}
        for q in range(2) for i in range(intents) for d in range(domains)
    ]  # fmt: skip
    write(folder / "data.jsonl", lines(rows))
    write(folder / "out_of_scope.jsonl", lines([{"text": f"out {i}", "part": "val"} for i in range(7)]))
    return folder


@pytest.mark.parametrize(
    ("domains", "by", "counts"),
    [
        (10, "intent", (50, 50, 50)),
        (5, "intent", (25, 25, 25)),
        (10, "domain", (60, 30, 60)),
        (5, "domain", (30, 15, 30)),
    ],
)
def test_clinc150_is_dealt(tmp_path: Path, domains: int, by: str, counts: tuple[int, ...]) -> None:
    make_clinc(tmp_path, domains)
    splits = check_splits(rooted(Clinc150(by=by), tmp_path), counts)
    places = [{name.rpartition("_")[2] for name in splits[part].class_names} for part in PARTS]
    whole = sum(len(names) for names in places) == domains  # each domain in one split
    assert whole == (by == "domain")
    other = rooted(Clinc150(by=by, seed=1), tmp_path).items("test").class_names
    assert other != splits["test"].class_names and len(other) == counts[2]


def test_clinc150_unknowns(tmp_path: Path) -> None:
    folder = make_clinc(tmp_path, 2)
    task = rooted(Clinc150(), tmp_path)
    assert list(task.unknowns("train")) == ["out 0", "out 3", "out 6"] and list(task.unknowns("val")) == [
        "out 1",
        "out 4",
    ]
    assert sorted(text for part in PARTS for text in task.unknowns(part)) == sorted(task.unknowns("all"))
    with pytest.raises(MultifslError, match="no split 'dev'"):
        task.unknowns("dev")
    joined = Joined(task, rooted(Clinc150(seed=1), tmp_path))
    assert len(joined.unknowns("val")) == 4 and joined.unknowns("val")[2] == "out 1"
    write(folder / "out_of_scope.jsonl", '{"text": "out"}')
    with pytest.raises(MultifslError, match="no column 'part'"):
        task.unknowns("val")
    (folder / "out_of_scope.jsonl").unlink()
    with pytest.raises(DataNotFound, match=r"has no out_of_scope\.jsonl"):
        task.unknowns("val")
    assert len(task.items("train").items) == 20  # which needs no unknowns


def test_tasks_have_no_unknowns_unless_they_say_so() -> None:
    assert [len(Hwu64().unknowns(split)) for split in (*PARTS, "all")] == [0, 0, 0, 0]
    with pytest.raises(MultifslError, match="no split 'dev'"):
        Hwu64().unknowns("dev")


def test_clinc150_errors(tmp_path: Path) -> None:
    for wrong in ("domains", None):
        with pytest.raises(MultifslError, match="by must be 'intent' or 'domain'"):
            Clinc150(by=wrong)  # type: ignore[arg-type]
    with pytest.raises(MultifslError, match="clinc150: seed is a whole number from 0, not -1"):
        Clinc150(seed=-1)
    path = make_clinc(tmp_path, 5) / "data.jsonl"
    good = path.read_text()
    write(path, good + lines([{"text": "x", "label": "intent_00_of_0", "domain": "domain_1"}]))
    with pytest.raises(BadFile, match="'intent_00_of_0' stands in the domains 'domain_0' and 'domain_1'"):
        rooted(Clinc150(by="domain"), tmp_path).items("train")
    write(path, lines([{"text": "x", "label": "a"}]))
    with pytest.raises(MultifslError, match="no column 'domain'; there are 'text', 'label'"):
        rooted(Clinc150(by="domain"), tmp_path).items("train")
    write(path, good + '{"text": "cut')
    with pytest.raises(BadFile, match=r"data\.jsonl, line 151: broken JSON"):
        rooted(Clinc150(), tmp_path).items("train")


def test_real_clinc150() -> None:
    needs_data("text_clinc150")
    for by in ("intent", "domain"):
        everything = Clinc150(by=by).items("all")
        counts = [len(Clinc150(by=by).items(part).class_names) for part in PARTS]
        splits = check_splits(Clinc150(by=by), counts)
        assert len(everything.class_names) in (75, 150) and len(everything.items) == 150 * len(everything.class_names)
        third = len(everything.class_names) // 3
        assert by == "domain" or counts == [third] * 3
        known = set(splits["all"].items)
        assert not known & set(Clinc150().unknowns("all"))  # what is out of scope is in no class
    unknowns = [set(Clinc150().unknowns(part)) for part in PARTS]
    assert len(set.union(*unknowns)) == sum(len(texts) for texts in unknowns) == len(Clinc150().unknowns("all")) >= 200


# ---- HuffPost ----


def make_huffpost(root: Path, version: int = 3, without: str = "") -> Path:
    """Two headlines a category; of POLITICS one more, one twice, and rows with nothing to say; one category too many."""
    categories = [name for names in SPLITS.values() for name in names if name != without]
    rows = [
        {"category": name, "headline": f"{name} {i}", "short_description": f"About {i}.", "link": "x"}
        for i in range(2) for name in [*categories, "U.S. NEWS"]
    ]  # fmt: skip
    rows += [
        {"category": "POLITICS", "headline": text, "short_description": ""} for text in ("POLITICS 0", " ", "", " New ")
    ]
    return write(root / "text_huffpost" / f"News_Category_Dataset_v{version}.json", lines(rows))


@pytest.mark.parametrize("version", [2, 3])
def test_huffpost(tmp_path: Path, version: int) -> None:
    make_huffpost(tmp_path, version)
    splits = check_splits(rooted(HuffPost(), tmp_path), (20, 5, 16))
    assert splits["val"].class_names == ["CRIME", "GREEN", "MEDIA", "WEIRD NEWS", "WORLDPOST"]
    assert splits["val"].items[:2] == ["CRIME 0", "CRIME 1"]
    assert len(splits["train"].items) == 20 * 2 + 1 and "New" in splits["train"].items  # each text once, none empty
    assert "U.S. NEWS" not in splits["all"].class_names
    described = rooted(HuffPost(description=True), tmp_path).items("train").items
    assert "WOMEN 1 About 1." in described and "New" in described and "POLITICS 0" in described


def test_huffpost_split_is_the_order_of_size() -> None:
    """Bao et al. take the first 20, the next 5 and the last 16 of the numbered categories; the numbers are by size."""
    order = [name for part in PARTS for name in SPLITS[part]]
    assert len(order) == len(set(order)) == 41
    assert [order.index(name) for name in ("POLITICS", "WELLNESS", "DIVORCE", "CRIME", "RELIGION", "EDUCATION")] == [
        0, 1, 19, 20, 25, 40
    ]  # fmt: skip


def test_huffpost_errors(tmp_path: Path) -> None:
    path = make_huffpost(tmp_path, without="TECH")
    task = rooted(HuffPost(), tmp_path)
    assert len(task.items("train").class_names) == 20
    with pytest.raises(DataNotFound, match=r"1 of the 16 classes of split 'test' are not in .*_v3\.json: TECH\."):
        task.items("test")
    good = path.read_text()
    write(path, good + '{"category": "TECH", "headline": null}')
    with pytest.raises(
        BadFile, match=r"_v3\.json, line 87: category, headline should be strings, not \['TECH', None\]"
    ):
        task.items("train")
    write(path, good + '{"headline": "no category"}')
    with pytest.raises(BadFile, match="should be strings, not \\[None, 'no category'\\]"):
        task.items("train")
    write(path, json.dumps([{"category": "TECH", "headline": "a list, not lines"}]))
    with pytest.raises(BadFile, match="line 1: each line must be a JSON object"):
        task.items("train")


def test_real_huffpost() -> None:
    needs_data("text_huffpost")
    splits = check_splits(HuffPost(), (20, 5, 16))
    assert 190_000 < len(splits["all"].items) < 212_000


# ---- texts that stand twice ----


def test_duplicates_are_counted() -> None:
    """By letters and digits alone, of any alphabet."""
    letters = runpy.run_path(str(SCRIPT))["letters"]
    assert letters("Where's my card,  then?") == letters("wheres my_CARD then") == "wheresmycardthen"
    assert letters("Wo ist die Karte für 1?") == "woistdiekartefür1"


@pytest.mark.parametrize(("name", "letter", "alike"), [("banking77", (11, 0), (62, 3)), ("hwu64", (0, 0), (5, 3))])
def test_real_duplicates(name: str, letter: tuple[int, int], alike: tuple[int, int]) -> None:
    """As docs/data.md has them: texts that stand more than once, under one intent and under several."""
    needs_data(f"text_{name}")
    script = runpy.run_path(str(SCRIPT))
    for key, expected in (("exactly", letter), ("letters", alike)):
        places = [labels for labels in script["intents"](name, script[key]).values() if len(labels) > 1]
        assert (sum(len(set(p)) == 1 for p in places), sum(len(set(p)) > 1 for p in places)) == expected
