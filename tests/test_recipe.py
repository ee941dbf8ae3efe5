"""Recipes and the models that come along. Oracles: `train` and `evaluate` called by hand, and the recipes' own files."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import multifsl
from multifsl import recipe, registry, shipped, training
from multifsl.checkpoint import read_json
from multifsl.defaults import open_encoder
from multifsl.encoder import Encoder
from multifsl.errors import BadFile, DataNotFound, MultifslError
from multifsl.evaluation import highest
from multifsl.recipe import load_recipe, recipe_names, reproduce
from multifsl.shipped import model_names, run_folder
from tests.needs import needs_data
from tests.test_training import ENCODER, equal, pictures, run, weights  # noqa: F401 (pictures is a fixture)

MEBIBYTE = 2**20
SPEED = {
    "device",
    "report",
    "progress",
    "data_root",
    "compile",
}  # arguments that change no result, or nothing but rounding


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:  # noqa: F811
    path = tmp_path / "bars.toml"
    path.write_text(
        f"""
title = "Bars"
source = "by hand"

[train]
task = "images({str(pictures)!r})"
encoder = {ENCODER!r}
method = "prototypical"
way = [2, 3]
query = 2
steps = 30

[[evaluate]]
name = "2-way"
way = 2
query = 2
episodes = 40
split = "val"
published = 99.5

[[evaluate]]
name = "3-way, by cosine"
way = 3
query = 2
episodes = 40
method = "matching"
"""
    )
    return path


# ---- what is written in them ----


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_followed(name: str) -> None:
    """Specs that build, options of `train`, figures with names of their own; no path of anybody's machine."""
    one = load_recipe(str(recipe.FOLDER / f"{name}.toml"))  # with its arguments checked
    assert one == load_recipe(name)
    assert one.title and one.source and name == name.lower()
    registry.build("tasks", one.train["task"])
    way = one.train.get("way", 5)
    if not one.train["encoder"].startswith("model:"):
        encoder = registry.find("encoders", registry.parse(one.train["encoder"])[0].name)
        assert inspect.signature(encoder).bind(**registry.parse(one.train["encoder"])[0].kwargs)
    head = registry.build("encoders", "conv4(width=8)")
    for row in one.rows:
        registry.build("methods", row.asked.get("method", one.train["method"]), encoder=head, way=highest(way))
    assert len({row.name for row in one.rows}) == len(one.rows)
    assert "run:" not in (recipe.FOLDER / f"{name}.toml").read_text()


@pytest.mark.parametrize("name", model_names())
def test_a_model_is_what_its_recipe_makes(name: str) -> None:
    """Its settings are the recipe's; the options that the recipe leaves open are the defaults of `train`."""
    info, one = read_json(shipped.FOLDER / name / "run.json"), load_recipe(name)
    defaults = {k: p.default for k, p in inspect.signature(multifsl.train).parameters.items()}
    open_ones = defaults.keys() - SPEED - {"task", "encoder", "method", "out", "resume", "overwrite"}
    for key in sorted(open_ones):
        expected = one.train.get(key, defaults[key])
        assert info.get(key) == (list(expected) if isinstance(expected, tuple) else expected), key
    assert info["task"] == registry.resolved(registry.build("tasks", one.train["task"]))
    assert info["encoder_from"][0] == one.train["encoder"] if "model:" in one.train["encoder"] else True
    assert one.result, "the recipe says nothing of what came of it"
    assert not re.search(r"/(home|work|tmp|root)/", json.dumps(info))


def test_models_are_small() -> None:
    sizes = {n: sum(f.stat().st_size for f in (shipped.FOLDER / n).rglob("*")) for n in model_names()}
    assert sizes and max(sizes.values()) <= 5 * MEBIBYTE and sum(sizes.values()) <= 25 * MEBIBYTE
    for name in model_names():
        assert {path.name for path in (shipped.FOLDER / name).iterdir()} == {"run.json", "model.safetensors"}


@pytest.mark.parametrize("name", model_names())
def test_a_model_scores_what_its_recipe_says(name: str) -> None:
    """On data that are at hand: within the two intervals of the figure in the recipe's header."""
    one = load_recipe(name)
    stated = re.match(r"(.+?) (\d+\.\d+) ± (\d+\.\d+)", one.result)
    assert stated is not None
    (row,) = [row for row in one.rows if row.name == stated[1]]
    split = re.search(r"on (?:the )?(\w+) classes", one.result)
    assert split is not None
    task = registry.find("tasks", registry.parse(row.asked.get("task", one.train["task"]))[0].name)
    needs_data(task.source.folder)  # type: ignore[attr-defined]
    adapts = not multifsl.load_run(f"model:{name}").method.takes_embeddings
    asked = {**row.asked, "split": split[1], "episodes": 48 if adapts else 300}
    found = multifsl.evaluate(f"model:{name}", **asked)
    assert abs(100 * found.accuracy - float(stated[2])) <= 2 * (float(stated[3]) + 100 * found.ci95)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("way = [2, 3]", "ways = 2"), r"\[train\] has no 'ways'; did you mean 'way'\?"),
        (("steps = 30", "steps = 30\nout = 'x'"), r"\[train\] has no 'out'"),
        (('method = "prototypical"', ""), r"\[train\] lacks method"),
        (('split = "val"', "splitt = 'val'"), r"\[\[evaluate\]\] has no 'splitt'; did you mean 'split'\?"),
        (("published = 99.5", "published = 'high'"), "published must be a number from 0 to 100, per cent, not 'high'"),
        (("published = 99.5", "published = nan"), "published must be a number from 0 to 100, per cent, not nan"),
        (("published = 99.5", "published = true"), "published must be a number from 0 to 100, per cent, not True"),
        (('name = "2-way"', "name = 2"), r"\[\[evaluate\]\] name must be a text, not 2"),
        (('split = "val"', "split = 'dev'"), r"\[\[evaluate\]\] no split 'dev'; known: train, val, test, all"),
        (("[train]", "[train"), "cannot be read as TOML"),
        (('name = "3-way, by cosine"', 'name = "2-way"'), "has a name of its own"),
        (("title =", "tittle ="), "a recipe has title, source, result, notes, one"),
        (('title = "Bars"', "title = 3"), "are texts"),
        (("[[evaluate]]", "[[other]]"), r"no 'other' is known, \[\[evaluate\]\] is missing; a recipe has"),
    ],
)
def test_a_recipe_that_cannot_be_followed(own: Path, change: tuple[str, str], message: str) -> None:
    own.write_text(own.read_text().replace(*change))
    with pytest.raises(BadFile, match=message):
        load_recipe(str(own))


WRONG: list[tuple[str, Any, str]] = [  # of `train` and, but for the last ones, of `evaluate`
    ("way", "3", "way must be a whole number or a pair of whole numbers(?: or 'all')?, not '3'"),
    ("way", [3], r"way must be a whole number or a pair of whole numbers(?: or 'all')?, not \[3\]"),
    ("way", 3.5, "way must be a whole number or a pair of whole numbers(?: or 'all')?, not 3.5"),
    ("way", 1, "way must be at least 2, not 1"),
    ("way", [3, 2], r"way must be at least 2, and a range from low to high, not \[3, 2\]"),
    ("shot", 0, "shot must be at least 1, not 0"),
    ("query", "2", "query must be a whole number, not '2'"),
    ("query", True, "query must be a whole number, not True"),
    ("query", 0, "query must be a whole number from 1, not 0"),
    ("seed", "x", "seed must be a whole number, not 'x'"),
    ("seed", -1, "seed must be a whole number from 0, not -1"),
    ("seed", 2**63, r"seed must be below 2\*\*63, which is what torch takes, not 9223372036854775808"),
    ("imbalance", "a", "imbalance must be a number, not 'a'"),
    ("imbalance", -0.5, "imbalance must be a number of at least 0, not -0.5"),
    ("disjoint_groups", 1, "disjoint_groups must be True or False, not 1"),
    ("task", 5, "task must be a text or a built Task, not 5"),
    ("method", ["ridge"], r"method must be a text, not \['ridge'\]"),
]
OF_TRAIN: list[tuple[str, Any, str]] = [
    ("steps", "many", "steps must be a whole number, not 'many'"),
    ("steps", 30.5, "steps must be a whole number, not 30.5"),
    ("steps", True, "steps must be a whole number, not True"),
    ("steps", 0, "steps must be a whole number from 1, not 0"),
    ("ema", "no", "ema must be a number, not 'no'"),
    ("ema", 1, "ema must be a number above 0 and below 1, not 1"),
    ("lr", float("inf"), "lr must be a number above 0, not inf"),
    ("warmup", 1.0, "warmup must be a number from 0 and below 1, not 1.0"),
    ("weight_decay", -1, "weight_decay must be a number of at least 0, not -1"),
    ("freeze_encoder", "no", "freeze_encoder must be True or False, not 'no'"),
    ("optimizer", "lion", "no optimizer 'lion'; known: 'adam', 'adamw', 'sgd'"),
    ("augment", True, "no augment True; known: 'photos', 'drawings', 'speech'"),
]
OF_EVALUATE: list[tuple[str, Any, str]] = [
    ("episodes", "x", "episodes must be a whole number, not 'x'"),
    ("episodes", 1, "an interval needs at least 2 episodes, not 1"),
    ("weights", "first", "no weights 'first'; known: 'best', 'last'"),
]


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [("train", *case) for case in WRONG + OF_TRAIN] + [("evaluate", *case) for case in WRONG + OF_EVALUATE],
)
def test_what_is_of_a_wrong_kind_or_size(
    own: Path, tmp_path: Path, table: str, key: str, value: Any, message: str
) -> None:
    """In a recipe and from Python the same is said; in a recipe with the file and the table, and before any training."""
    lines = own.read_text().splitlines()
    first = lines.index("[train]" if table == "train" else "[[evaluate]]") + 1
    end = lines.index("", first)
    kept = [line for line in lines[first:end] if not line.startswith(f"{key} =")]
    written = json.dumps(value).replace("Infinity", "inf")
    own.write_text("\n".join([*lines[:first], *kept, f"{key} = {written}", *lines[end:]]))
    where = r"\[train\]" if table == "train" else r"\[\[evaluate\]\]"
    with pytest.raises(BadFile, match=f"bars.toml: {where} {message}$"):
        reproduce(str(own), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    plain: dict[str, Any] = {"task": "images('nowhere')", "encoder": ENCODER, key: value}
    call = partial(multifsl.train, out=tmp_path / "run") if table == "train" else multifsl.evaluate
    with pytest.raises(MultifslError, match=f"^{message}$"):
        call(**plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("way = 2\n", "way = 9\n"),
            "[[evaluate]] '2-way', on the val split: way 9 asks for more classes than there are: 3",
        ),
        (("way = [2, 3]", "way = 19"), "the train split has 13 of your 20 classes: way 19 asks for more"),
        (('"matching"', '"matchin"'), "no method 'matchin'; did you mean 'matching'?"),
        (('"matching"', '"prototypical(distance=3)"'), "distance"),
    ],
)
def test_figures_that_cannot_be_had_are_told_before_the_training(
    own: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    own.write_text(own.read_text().replace(*change))
    with pytest.raises(MultifslError, match=re.escape(message)):
        reproduce(str(own), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "bare.toml").write_text('title = "Bare"')
    with pytest.raises(
        BadFile, match=r"bare.toml: \[train\] is missing, \[\[evaluate\]\] is missing; a recipe has title"
    ):
        load_recipe(str(tmp_path / "bare.toml"))


def test_weights_that_do_not_come_along_are_told_before_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name in recipe_names() if name not in model_names())
    monkeypatch.chdir(tmp_path)
    says = rf"no weights of {name} come along, and there is no run at runs/{name}; without eval_only .* it is trained"
    with pytest.raises(MultifslError, match=says):
        reproduce(name, eval_only=True, data_root=tmp_path)


def test_unknown_names_are_told_with_the_nearest() -> None:
    with pytest.raises(MultifslError, match=r"no recipe 'omniglot-protypical'; did you mean 'omniglot-prototypical'\?"):
        load_recipe("omniglot-protypical")
    with pytest.raises(MultifslError, match=r"no model 'x' comes with this version; known: .*omniglot-prototypical"):
        multifsl.load_run("model:x")
    with pytest.raises(MultifslError, match="there is no recipe at"):
        load_recipe("nowhere.toml")
    with pytest.raises(MultifslError, match=r"no model '\.\./recipes'"):
        run_folder("model:../recipes")


# ---- following them ----


def test_reproducing_is_training_and_evaluating_by_hand(own: Path, tmp_path: Path) -> None:
    figures = reproduce(str(own), out=tmp_path / "run")
    arguments = tomllib.loads(own.read_text())["train"]
    by_hand = multifsl.train(**{**arguments, "way": (2, 3)}, out=tmp_path / "hand")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "hand"))
    shape: dict[str, Any] = {"query": 2, "episodes": 40}
    first = multifsl.evaluate(by_hand.path, way=2, split="val", **shape)
    second = multifsl.evaluate(by_hand.path, way=3, method="matching", **shape)
    assert [f.ours.accuracy for f in figures] == [first.accuracy, second.accuracy]
    assert [(f.row.name, f.row.published) for f in figures] == [("2-way", 99.5), ("3-way, by cosine", None)]


def test_a_recipe_goes_on_where_it_was_stopped(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reproduce(str(own), out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "save_run", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(MultifslError, match="cannot write to .*: disk full; what was saved before is whole"):
            reproduce(str(own), out=tmp_path / "run")
    again = reproduce(str(own), out=tmp_path / "run")
    assert [f.ours.accuracy for f in again] == [f.ours.accuracy for f in whole]
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    drawn = (tmp_path / "run" / "curves.svg").stat().st_mtime_ns
    with pytest.warns(UserWarning, match="run is finished already: it is scored, not trained"):
        more = reproduce(str(own), out=tmp_path / "run", episodes=50, split="test")
    assert (tmp_path / "run" / "curves.svg").stat().st_mtime_ns == drawn
    assert [(f.ours.episodes, f.ours.split) for f in more] == [(50, "test")] * 2
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before
    own.write_text(own.read_text().replace("query = 2\nsteps", "query = 1\nsteps"))
    with pytest.raises(MultifslError, match="other settings \\(query: 2 then, 1 now\\)"):
        reproduce(str(own), out=tmp_path / "run")


def test_without_training(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(MultifslError, match="there is no run at runs/bars"):
            reproduce(str(own), eval_only=True)
        made = reproduce(str(own))
        assert [f.ours.accuracy for f in reproduce(str(own), eval_only=True)] == [f.ours.accuracy for f in made]
        with pytest.raises(MultifslError, match="did you mean 'model:omniglot-prototypical'"):
            multifsl.load_run("omniglot-prototypical")
    with pytest.raises(MultifslError, match="there is no run at"):
        reproduce(str(own), out=tmp_path / "none", eval_only=True)
    with pytest.raises(MultifslError, match="the seed is of the training"):
        reproduce(str(own), seed=3, eval_only=True)
    assert not (tmp_path / "none").exists()


def test_a_recipe_that_is_stopped_says_how_it_goes_on(own: Path, tmp_path: Path) -> None:
    own.write_text(own.read_text().replace("steps = 30", "steps = 60"))
    stop = lambda *_: signal.raise_signal(signal.SIGINT)  # noqa: E731
    with pytest.raises(MultifslError, match="stopped at step .* and goes on by the same command"):
        reproduce(str(own), out=tmp_path / "run", report=stop)
    with pytest.raises(MultifslError, match=r"run is not finished; without eval_only \(--eval-only\) it goes on"):
        reproduce(str(own), out=tmp_path / "run", eval_only=True)
    reproduce(str(own), out=tmp_path / "run")
    whole = reproduce(str(own), out=tmp_path / "whole")
    assert equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert whole[0].to_json()["published"] == 0.995


def test_missing_data_are_told_before_the_training(own: Path, tmp_path: Path) -> None:
    own.write_text(own.read_text().replace('method = "matching"', "task = \"images('nowhere')\""))
    with pytest.raises(DataNotFound, match="nowhere"):
        reproduce(str(own), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_two_processes_train_and_one_scores(own: Path, tmp_path: Path) -> None:
    own.write_text(own.read_text().replace("steps = 30", "steps = 6\nepisodes_per_step = 2"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "multifsl.cli", "reproduce", str(own), "--out", str(tmp_path / "run"), "--device", "cpu"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3-way, by cosine") == 1 and done.stdout.count("published: by hand") == 1
    assert read_json(tmp_path / "run" / "run.json")["processes"] == 2


def test_another_seed_has_a_folder_of_its_own(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reproduce(str(own), seed=7)
    assert read_json(Path("runs/bars-seed7/run.json"))["seed"] == 7


# ---- runs by name ----


def test_the_encoder_of_a_run_is_a_beginning(pictures: Path, tmp_path: Path) -> None:  # noqa: F811
    """Training goes on from its weights; the run notes which; a resumed run wants the same ones."""
    first = run(pictures, tmp_path / "first", steps=20)
    name = f"run:{tmp_path / 'first'}"
    found = open_encoder(name)
    assert equal(dict(found.state_dict()), dict(first.method.encoder.state_dict()))
    task = f"images({str(pictures)!r})"
    second = multifsl.train(task, name, "ridge", out=tmp_path / "second", way=3, query=2, steps=1, lr=1e-12)
    moved = second.method.encoder.state_dict()
    for key, value in first.method.encoder.state_dict().items():
        if "running" not in key and "batches" not in key:
            torch.testing.assert_close(moved[key], value, rtol=1e-6, atol=1e-9)
    assert second.info["encoder_from"][0] == name and second.info["encoder"] == first.info["encoder"]
    as_it_is = multifsl.evaluate(task=task, encoder=name, way=3, query=2, episodes=40)
    assert (
        as_it_is.accuracy
        == multifsl.evaluate(
            tmp_path / "first", method="prototypical(distance='cosine')", way=3, query=2, episodes=40
        ).accuracy
    )  # and no warning of random weights, which would be an error here


def test_a_model_by_name_wherever_a_run_is_taken(tmp_path: Path) -> None:
    name = "omniglot-prototypical"
    loaded = multifsl.load_run(f"model:{name}")
    assert loaded.method.encoder.dim == 64
    for model in (
        multifsl.FewShotClassifier.from_pretrained(name),
        multifsl.FewShotClassifier.from_pretrained(f"model:{name}"),
        multifsl.FewShotClassifier.from_run(f"model:{name}"),
    ):
        assert isinstance(model.encoder, Encoder)
        assert equal(dict(model.encoder.state_dict()), dict(loaded.method.encoder.state_dict()))
    assert equal(dict(open_encoder(f"model:{name}").state_dict()), dict(loaded.method.encoder.state_dict()))


# ---- the last weights ----


def test_the_last_weights_stand_beside_the_best(
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Best at step 10 of 20: `last` is what a run without validation keeps, and the best what one of 10 steps does."""
    monkeypatch.setattr(training, "STEPS_BETWEEN_VALIDATIONS", 10)
    scores = iter([0.9, 0.5])
    monkeypatch.setattr(training, "episode_accuracies", lambda *_, **__: torch.full((2,), next(scores)).numpy())
    run(pictures, tmp_path / "run", steps=20)
    monkeypatch.setattr(training, "episode_accuracies", lambda *_, **__: torch.full((2,), 0.5).numpy())
    monkeypatch.setattr(training, "STEPS_BETWEEN_VALIDATIONS", 20)
    run(pictures, tmp_path / "whole", steps=20)
    assert not (tmp_path / "whole" / "last.safetensors").exists()
    last, best = (multifsl.load_run(tmp_path / "run", weights=w).method.state_dict() for w in ("last", "best"))
    whole = multifsl.load_run(tmp_path / "whole", weights="last").method.state_dict()
    assert equal(dict(last), dict(whole)) and not equal(dict(last), dict(best))
    (tmp_path / "run" / "last.safetensors").write_bytes(b"0")
    assert equal(dict(multifsl.load_run(tmp_path / "run").method.state_dict()), dict(best))
    with pytest.raises(BadFile, match="last.safetensors is damaged or missing"):
        multifsl.load_run(tmp_path / "run", weights="last")
    with pytest.raises(MultifslError, match="weights"):
        multifsl.load_run(tmp_path / "run", weights="first")
