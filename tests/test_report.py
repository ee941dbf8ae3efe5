"""Reports. Oracles: `multifsl evaluate` for the figures; a plain loop for the mistakes; tones and pictures made here for what is
shown; and a browser, which must find every figure and nothing to complain of."""

import base64
import html
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import multifsl
from multifsl import cli
from multifsl.bank import Bank
from multifsl.comparison import compare
from multifsl.demo import data as demo_data
from multifsl.encoder import Features
from multifsl.errors import BadFile, BadItem, MultifslError
from multifsl.evaluation import Drawn, Subject, answer, blocks, embedded, open_subject
from multifsl.page import Axes, el, page, ticks
from multifsl.registry import build
from multifsl.report import _on_the_map, _Seen, read_result, report
from multifsl.report_figures import Point, Shown, body
from multifsl.report_media import medium, waveform
from multifsl.task import Items
from tests.test_classifier import WORDS, tiny_bert
from tests.test_cli import HEAVY, LOADED

pytestmark = pytest.mark.filterwarnings("ignore:.* tokens .* are unknown")  # what is hostile is in no vocabulary
HOSTILE = "<script>boom()</script>"
SHAPE: dict[str, Any] = {"way": 2, "query": 3, "episodes": 12, "seed": 3}
FIGURES = [
    "headline",
    "curves",
    "shots",
    "reliability",
    "reliability-2",
    "coverage",
    "confusion",
    "classes",
    "map",
    "mistakes",
    "made",
]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of each modality, and a run on them; every class and every text would be a script if it could."""
    root = tmp_path_factory.mktemp("toys")
    images, digits = demo_data("image")
    for i, (image, digit) in enumerate(zip(images[:150], digits[:150], strict=True)):
        (root / "photos" / f"<b>{digit}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "photos" / f"<b>{digit}" / f"{i}.png")
    clips, voices = demo_data("speech")
    for path, voice in zip(clips, voices, strict=True):
        (root / "voices" / voice).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / "voices" / voice / path.name)
    rng = np.random.default_rng(0)
    rows = [
        {"text": " ".join([*rng.choice(WORDS[5:], 3), WORDS[5 + kind], HOSTILE]), "label": f"kind {kind}{HOSTILE}"}
        for kind in range(12)
        for _ in range(12)
    ]
    (root / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    bert = str(tiny_bert(root / "bert"))
    for name, task, encoder in (
        ("image", f"images({str(root / 'photos')!r})", "conv4(width=4, channels=1, image_size=16)"),
        ("speech", f"speakers({str(root / 'voices')!r})", "conv4_mel(width=4)"),
        ("text", f"texts({str(root / 'texts.jsonl')!r})", f"transformer(model={bert!r})"),
    ):
        multifsl.train(
            task, encoder, "prototypical(distance='cosine')", out=root / name, steps=2, way=2, query=3, seed=0
        )
    return root


@pytest.fixture(scope="module")
def result(toys: Path) -> dict[str, Any]:
    """What `multifsl evaluate --json` would write of an encoder as it is."""
    encoder = f"transformer(model={str(toys / 'bert')!r})"
    found = multifsl.evaluate(task=f"texts({str(toys / 'texts.jsonl')!r})", encoder=encoder, shot=1, **SHAPE)
    made = {"command": "multifsl evaluate --so", "date": "2026-01-01T00:00:00", "versions": {"numpy": "2"}}
    content: dict[str, Any] = json.loads(json.dumps({**found.to_json(), **made}))
    return content


def written(sources: list[str], out: Path, **options: Any) -> str:
    return report(sources, out, **{**SHAPE, **options}).read_text(encoding="utf-8")


class Tags(HTMLParser):
    """How often a page has each element, and the attributes that any has."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] += 1
        self.attributes |= {name for name, _ in attrs}


def ids(text: str) -> list[str]:
    return re.findall(r'<figure id="([^"]+)"', text)


# ---- the page as a whole ----


@pytest.mark.parametrize("modality", ["image", "speech", "text"])
def test_the_page_opens_in_a_browser(toys: Path, tmp_path: Path, modality: str) -> None:
    """Every figure is there, an item shows itself under the pointer, and the browser has nothing to complain of."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")
    out = tmp_path / "report.html"
    text = written([str(toys / modality)], out)
    point = '<script>document.querySelector(".map .item").dispatchEvent(new PointerEvent("pointerover", {bubbles: true}))</script>'
    out.write_text(text.replace("</body>", f"{point}</body>"), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'user'}",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", out.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert set(ids(done.stdout)) >= {*FIGURES, *(["detection"] if modality == "speech" else [])}
    assert re.search(
        r'<p id="errors" role="alert" hidden="">\s*</p>', done.stdout
    )  # what its own handler would have said
    assert "CONSOLE" not in done.stderr
    (shows,) = re.findall(r'<div class="shows"[^>]*>(.*?)</div>', done.stdout, re.DOTALL)
    assert shows.startswith("<b>") and ("<blockquote>" if modality == "text" else '<img src="data:image/') in shows
    assert ('<audio src="data:audio/flac;base64,' in done.stdout) == (modality == "speech")


def test_nothing_is_loaded_and_nothing_in_the_data_acts(toys: Path, tmp_path: Path) -> None:
    text = written([str(toys / "text"), str(toys / "image")], tmp_path / "report.html")
    addresses = re.findall(r'(?:src|href|srcset|data|action)="([^"]*)"', text)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert "url(" not in text and "@import" not in text and "fetch(" not in text
    assert HOSTILE not in text and html.escape(HOSTILE, quote=False) in text
    tags = Tags()
    tags.feed(text)
    assert tags.count["script"] == 4  # two of ours, and the items of two maps, which are JSON
    assert not any(name.startswith("on") for name in tags.attributes)
    assert len(text) < 5e6
    assert [name for name in ids(text) if name.endswith("-2")] == [
        "curves-2",
        "reliability-2",
        "confusion-2",
        "classes-2",
        "map-2",
        "mistakes-2",
    ]


def test_the_commands_give_the_figures(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written([str(toys / "image")], tmp_path / "report.html", skip_small_classes=True, allow_leaks=["classes"])
    commands = [html.unescape(line) for line in re.findall(r"<pre[^>]*>(multifsl evaluate .*?)</pre>", text)]
    accuracies = re.findall(r"</th><td>([0-9.]+)</td>", text.partition("</figure>")[0])
    assert len(commands) == len(accuracies) == 2
    for command, accuracy in zip(commands, accuracies, strict=True):
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--json", str(tmp_path / "found.json")])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code in (0, None)
        found = json.loads((tmp_path / "found.json").read_text())
        assert f"{found['accuracy']:.4f}" == accuracy
        assert found["command"].startswith(command) and found["date"] and found["versions"]["torch"]


def test_the_mistakes_are_the_most_confident(toys: Path, tmp_path: Path) -> None:
    """A plain loop over all answers: wrong ones by confidence, each query once."""
    text = written([str(toys / "text")], tmp_path / "report.html", shots=[1])
    subject = open_subject(toys / "text", task=None, encoder=None, method=None, ways=2)
    shape = {k: SHAPE[k] for k in ("way", "query", "seed")} | {"shot": 1}
    items = subject.task.items("test")
    bank = embedded(subject.method, items)
    tasks = [task for block in blocks(Drawn(items, [], 0, shape).sampler(bank), 12) for task in block]
    a = answer(subject.method, bank, tasks, 12)
    best: dict[int, float] = {}
    for i in range(len(a.item)):
        if a.true[i] != a.predicted[i]:
            best[int(a.item[i])] = max(best.get(int(a.item[i]), 0.0), float(a.confidence[i]))
    expected = [f"{p:.2f}" for p in sorted(best.values(), reverse=True)[:24]]
    asked = len(set(a.item.tolist()))
    assert f"{len(expected)} of the {len(best)} items that were answered wrongly at least once, of {asked} that" in text
    assert re.findall(r"<summary>(\d+) more", text) == ([str(len(expected) - 6)] if len(expected) > 6 else [])
    assert re.findall(r"with confidence ([0-9.]+); it is", text) == expected
    first = items.items[max(best, key=lambda item: best[item])]
    assert f"<small>query</small><blockquote>{html.escape(first, quote=False)}</blockquote>" in text


# ---- runs ----


def test_without_data_the_run_is_shown_as_far_as_it_goes(toys: Path, tmp_path: Path) -> None:
    shutil.copytree(toys / "text", tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**info, "task": "banking77(fold=1)"}))
    text = written([str(tmp_path / "run")], tmp_path / "report.html", data_root=tmp_path)
    assert ids(text) == ["curves", "made", "missing"]
    assert f"looked for {tmp_path}" in text


def test_shots_that_do_not_fit(toys: Path, tmp_path: Path) -> None:
    """The default ones are left out, and that is said; those that were asked for are an error."""
    run, query = str(toys / "speech"), 9  # a voice has 12 clips
    with pytest.warns(UserWarning, match="5 shots are left out: "):
        text = written([run], tmp_path / "report.html", query=query)
    assert "shots" not in ids(text) and "5 shot + 9 query items ask for 14" in text
    with pytest.raises(MultifslError, match="5 shot \\+ 9 query items ask for 14"):
        written([run], tmp_path / "report.html", query=query, shots=[1, 5])


def test_damaged_metrics(toys: Path, tmp_path: Path) -> None:
    shutil.copytree(toys / "text", tmp_path / "run")
    for line in ("{", '{"step": "one"}', '{"step": 1, "loss": null}', "3"):
        (tmp_path / "run" / "metrics.jsonl").write_text(f'{{"step": 1, "loss": 2}}\n{line}\n')
        with pytest.raises(BadFile, match=r"metrics.jsonl is damaged in line 2"):
            written([str(tmp_path / "run")], tmp_path / "report.html")


# ---- results ----


def test_results_of_two_files(result: dict[str, Any], toys: Path, tmp_path: Path) -> None:
    """One has its map, since its accuracy comes out again; the other does not. Of other shots, they are one curve."""
    (tmp_path / "one.json").write_text(json.dumps(result))
    (tmp_path / "five.json").write_text(json.dumps({**result, "shot": 5, "accuracy": 0.123}))
    text = written([str(tmp_path / "one.json"), str(tmp_path / "five.json")], tmp_path / "report.html")
    assert {"headline", "shots", "map", "mistakes", "missing"} <= set(ids(text)) and "map-2" not in ids(text)
    assert "multifsl evaluate --so" in text and "numpy 2" in text
    assert "five.json: the map and the mistakes: the same arguments gave an accuracy of" in text
    assert "1-shot" in text and "5-shot" in text and f"{result['accuracy']:.4f}" in text


def test_a_run_and_its_result_have_one_map(toys: Path, tmp_path: Path) -> None:
    """The file says by which arguments it was made, so that its mistakes are here too; its episodes were read from a file."""
    found = multifsl.evaluate(
        toys / "image", shot=2, imbalance=0.5, skip_small_classes=True, allow_leaks=["classes"], **SHAPE
    )
    (tmp_path / "drawn.json").write_text(json.dumps(found.to_json()))
    for way in (2, "all"):  # the second time they are there, and the way does not count
        listed = multifsl.evaluate(
            toys / "image", shot=2, episodes_file=tmp_path / "episodes.jsonl", **{**SHAPE, "way": way}
        )
    assert listed.arguments["way"] == "all"
    (tmp_path / "listed.json").write_text(json.dumps(listed.to_json()))
    sources = [str(toys / "image"), str(tmp_path / "drawn.json"), str(tmp_path / "listed.json")]
    text = written(sources, tmp_path / "report.html")
    assert f"Map of embeddings: {sources[0]}, drawn.json, listed.json</h3>" in html.unescape(text)
    assert {"map", "mistakes", "mistakes-2", "mistakes-3"} <= set(ids(text)) and "map-2" not in ids(text)
    assert "imbalance=0.5, skip_small_classes=True" in text and "episodes_file=" in text


@pytest.mark.filterwarnings("ignore:.*random weights")
def test_joined_classes_of_one_name_are_two(toys: Path, tmp_path: Path) -> None:
    task = " + ".join(f"images({str(toys / 'photos')!r}, seed={seed})" for seed in (0, 1))
    found = multifsl.evaluate(
        task=task, encoder="conv4(width=4, channels=1, image_size=16)", split="all", allow_leaks=["same-items"], **SHAPE
    )
    (tmp_path / "found.json").write_text(json.dumps(found.to_json()))
    text = html.unescape(written([str(tmp_path / "found.json")], tmp_path / "report.html"))
    assert "mistakes" in ids(text)
    pairs = {(one["true"], one["answered"]) for one in found.details["confused"]}
    shown = re.findall(r'title="(\S+ \[photos \d\]) answered as (\S+ \[photos \d\]): (?!0\.000)', text)
    assert pairs == {pair for pair in shown if pair[0] != pair[1]} and {pair[0][-2] for pair in pairs} == {"1", "2"}


def test_a_page_shows_items_of_its_first_sources(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(json.dumps(result))
    text = written([str(tmp_path / "found.json")] * 7, tmp_path / "report.html")
    assert "mistakes-6" in ids(text) and "mistakes-7" not in ids(text)
    assert text.count("a page shows items of its first 6 sources") == 1
    assert re.findall(r"(\d+) of the \d+ items that were answered wrongly", text) == ["8"] * 6  # 48 of a page


def test_a_result_that_cannot_be_had_again(result: dict[str, Any], toys: Path, tmp_path: Path) -> None:
    for change, why in (
        ({"arguments": None}, "the file does not say what it was made by"),
        ({"arguments": {**result["arguments"], "way": "all"}}, "it.arguments.way must be"),
        ({"arguments": {**result["arguments"], "run": "/no/such", "encoder": None, "method": None}}, "/no/such"),
        ({"arguments": {**result["arguments"], "episodes_file": "/no/such"}}, "cannot read the episodes in /no/such"),
    ):
        (tmp_path / "found.json").write_text(json.dumps({**result, **change}))
        text = written([str(tmp_path / "found.json")], tmp_path / "report.html")
        assert "map" not in ids(text) and why in html.unescape(text.partition('id="missing"')[2])


def test_the_page_never_scrolls_sideways(result: dict[str, Any], tmp_path: Path) -> None:
    """The browser's own measure, in windows of four widths (frames: a window has a least width), with all the columns there are."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium: apt-get install chromium")
    others = {
        "task": "x" * 90, "unknown": {"auroc": 0.5, "aupr": 0.5, "fpr_at_95_tpr": 0.5}, "seed": 7, "arguments": None,
        "verification": {"equal_error_rate": 0.1, "min_dcf_0.01": 0.5, "min_dcf_0.05": 0.5},
    }  # fmt: skip
    (tmp_path / "one.json").write_text(json.dumps(result))
    (tmp_path / f"{'n' * 60}.json").write_text(json.dumps({**result, **others}))
    text = html.escape(written([str(path) for path in sorted(tmp_path.glob("*.json"))], tmp_path / "report.html"))
    points = [Point(float(i), 0.0, f"Mkhedruli_(Georgian)/character{i}/rot180", {"text": "x"}) for i in range(20)]
    one_map = html.escape(page("a map", body([Shown("a run", points=points, mapped=["a run"])])).decode())
    frames = "".join(
        f'<iframe style="width:{width}px" srcdoc="{one}"></iframe>'
        for one in (text, one_map)
        for width in (320, 700, 1024, 1400)
    )
    script = """onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame => {
        const page = frame.contentDocument.documentElement;
        return page.scrollWidth + " " + page.clientWidth;
    })"""
    (tmp_path / "frames.html").write_text(f"<title></title>{frames}<script>{script}</script>")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'user'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    (title,) = re.findall("<title>(.*?)</title>", done.stdout)
    sizes = [tuple(map(int, one.split())) for one in title.split(",")]
    assert [wide for wide, _ in sizes] == [seen for _, seen in sizes]
    assert sizes[0][1] <= 320 and 1300 < sizes[3][1] <= 1400


def test_a_comparison(toys: Path, tmp_path: Path) -> None:
    task, encoder = f"texts({str(toys / 'texts.jsonl')!r})", f"transformer(model={str(toys / 'bert')!r})"
    found = compare(
        task, encoders=[encoder], methods=["ridge", "simpleshot"], runs=[str(toys / "text")], shots=[1, 5], **SHAPE
    )
    (tmp_path / "found.json").write_text(json.dumps({"comparisons": [one.to_json() for one in found]}))
    text = written([str(tmp_path / "found.json")], tmp_path / "report.html")
    assert {"headline", "paired", "paired-2", "shots", "map", "mistakes"} <= set(ids(text))
    unshown = sum(not pair.shown for one in found for pair in one.pairs)
    assert text.count("<td>no difference shown</td>") == unshown > 0
    assert text.count("<polyline") >= 3 and "the file does not say which command made it" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": "high"}, r"it\.accuracy must be a number from 0 to 1, not high"),
        ({"accuracy": 7}, r"it\.accuracy must be a number from 0 to 1, not 7"),
        ({"ci95": float("nan")}, r"it\.ci95 must be a number, not nan"),
        ({"way": [5]}, r"it\.way must be a list"),
        ({"marks": [{"kind": 3}]}, r"it\.marks\[0\] lacks message"),
        ({"details": {}}, r"it\.details lacks classes, confused, coverage, detection, reliability"),
        ({"unknown": {}}, r"it\.unknown lacks aupr, auroc, fpr_at_95_tpr"),
        ({"transductive": None}, r"it\.transductive must be true or false"),
        ({"task": None}, r"it\.task must be a text"),
        ({"comparisons": [{}]}, r"it\.comparisons\[0\] lacks entries, pairs"),
    ],
    ids=str,
)
def test_damaged_results(result: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(json.dumps({**result, **change}))
    with pytest.raises(BadFile, match=message):
        read_result(path)


def test_what_is_no_result(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(MultifslError, match="there is no run and no result at /no/such"):
        report(["/no/such"], out)
    for content in ("{", "[]", '{"a": 1}'):
        (tmp_path / "found.json").write_text(content)
        with pytest.raises(BadFile, match=r"found.json"):
            report([str(tmp_path / "found.json")], out)
    with pytest.raises(MultifslError, match="at least one run or result"):
        report([], out)
    assert not out.exists()


def test_where_it_cannot_be_written(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(json.dumps({**result, "task": "nothing"}))
    for out, why in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "a.html", "its folder is not there"),
        (tmp_path / ("a" * 300), "File name"),
    ):
        with pytest.raises(MultifslError, match=f"cannot write .*{why}"):
            report([str(tmp_path / "found.json")], out)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_the_command(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "found.json").write_text(json.dumps({**result, "task": "nothing"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["multifsl", "report", "found.json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code in (0, None)
    assert re.fullmatch(r"wrote report.html \(0\.\d MB\)\n", capsys.readouterr().out)
    assert "headline" in ids(Path("report.html").read_text())


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED, "report", "--help"], capture_output=True, text=True, check=True
    )
    assert not set(json.loads(done.stderr)) & set(HEAVY)


# ---- the parts ----


def test_texts_are_never_markup() -> None:
    content = page(HOSTILE, [el("p", HOSTILE, "\ud800", title='"><i>')]).decode()
    assert f"<title>{html.escape(HOSTILE)}</title>" in content
    assert '<p title="&quot;&gt;<i&gt;">&lt;script&gt;boom()&lt;/script&gt;?</p>' in content.replace("\n", "")


def test_embeddings_of_bfloat16_have_a_map() -> None:
    items = Items(list(range(12)), np.repeat(np.arange(3), 4), ["a", "b", "c"])
    method = build("methods", "prototypical", encoder=Features(2))
    bank = Bank(torch.arange(24, dtype=torch.bfloat16).reshape(12, 2), items)
    empty: Any = None
    rows, z = _on_the_map(_Seen(Subject(method, empty, None, {}), bank, [], empty), seed=0)
    np.testing.assert_array_equal(z, np.stack([2 * rows, 2 * rows + 1], axis=1))


def test_where_a_point_is_drawn() -> None:
    """By hand: the plot is 420 by 280 with margins of 60, 12, 10 and 42, so its inside is 348 by 228."""
    axes = Axes("a plot", x=(0.0, 10.0), y=(1.0, 3.0), x_label="x", y_label="y")
    assert axes.at(0, 1) == (60, 238) and axes.at(10, 3) == (408, 10) and axes.at(5, 2) == (234, 124)
    assert axes.at(11, 0) == (408, 238)  # beyond: at the edge
    assert [text for _, text in ticks(0.93, 1.0)] == ["0.94", "0.96", "0.98", "1"]


def test_a_clip_is_heard_and_seen() -> None:
    """A tone of 2 kHz, at a quarter of the height of a spectrogram of 8 kHz; its file is the tone, 3 s of it at most."""
    tone = np.sin(2 * np.pi * 2000 * np.arange(4 * 8000) / 8000)[:, None] * [0.5, 0.5]  # two channels
    shown = medium((tone, 8000), "speech", side=160, sound=True)
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(shown["sound"].partition(",")[2])))
    assert rate == 16000 and wave.shape == (48000,)
    spectrum = np.abs(np.fft.rfft(wave[8000:24000]))
    assert spectrum.argmax() == 2000 and np.abs(wave).max() == pytest.approx(0.5, abs=0.02)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["image"].partition(",")[2]))).convert("L"))
    assert picture.shape == (64, 300)
    assert 63 - picture[:, 10:-10].mean(1).argmin() in (15, 16)  # rows from the bottom, of 125 Hz each


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 1), (6, 9, 3), (3, 6, 9)], ids=str)
def test_a_picture_is_seen(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(base64.b64decode(medium(array, "image")["image"].partition(",")[2])))
    assert image.size == (9, 6)
    if shape[:2] == (6, 9) and shape[-1] != 3:  # grey: nothing is lost
        np.testing.assert_array_equal(np.asarray(image), array.reshape(6, 9))
    wide = medium(np.zeros((10, 1000), dtype=np.uint8), "image")["image"]
    assert Image.open(io.BytesIO(base64.b64decode(wide.partition(",")[2]))).size == (64, 1)


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    for item, modality in (
        (tmp_path / "a.png", "image"),
        (object(), "image"),
        (tmp_path / "a.png", "speech"),
        (3, "speech"),
    ):
        with pytest.raises(BadItem, match="cannot show the"):
            medium(item, modality)
    assert medium("x" * 1000, "text")["text"] == "x" * 400 + "…"
    assert waveform((torch.zeros(8000).numpy(), 16000)).shape == (8000,)
