"""scripts/results.py on a tiny run of its own: what it ships, scores, writes. Oracles: the run's files, `evaluate` by hand."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import multifsl
from multifsl import recipe, shipped, training
from multifsl.checkpoint import read_json, to_bytes
from multifsl.errors import MultifslError
from multifsl.recipe import load_recipe, reproduce
from tests.test_training import ENCODER, equal, pictures, weights  # noqa: F401 (pictures is a fixture)

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "results.py"
BEST_AND_LAST = [0.9, 0.5]  # validation accuracies: the best weights are not the last


def write_recipe(path: Path, pictures: Path, title: str = "Bars") -> None:  # noqa: F811
    path.write_text(
        f"""
title = "{title}"
source = "by hand, table 1"
result = ""
notes = "A note."

[train]
task = "images({str(pictures)!r})"
encoder = {ENCODER!r}
method = "prototypical"
way = 3
query = 2
steps = 20

[[evaluate]]
name = "2-way"
way = 2
query = 2
episodes = 40
split = "val"
published = 99.5

[[evaluate]]
name = "3-way"
way = 3
query = 2
episodes = 40
"""
    )


@pytest.fixture
def script(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:  # noqa: F811
    """The script, with all that it reads and writes in a temporary folder: two recipes, one of them with a finished run."""
    spec = importlib.util.spec_from_file_location("results", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("recipes", "models", "runs"):
        (tmp_path / name).mkdir()
    write_recipe(tmp_path / "recipes" / "bars.toml", pictures)
    write_recipe(tmp_path / "recipes" / "later.toml", pictures, "Not yet")
    (tmp_path / "results.md").write_text("Before.\n\n{}\nold\n{}\n\nAfter.\n".format(*module.MARK))
    monkeypatch.setattr(recipe, "FOLDER", tmp_path / "recipes")
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "models")
    for name, value in {"RECORDS": "records", "PAGE": "results.md", "RUNS": "runs"}.items():
        monkeypatch.setattr(module, name, tmp_path / value)
    monkeypatch.setattr(module, "_commit", lambda: "abc1234")
    with monkeypatch.context() as patch:
        scores = iter(BEST_AND_LAST)
        patch.setattr(training, "STEPS_BETWEEN_VALIDATIONS", 10)
        patch.setattr(training, "episode_accuracies", lambda *_, **__: torch.full((2,), next(scores)).numpy())
        reproduce("bars", out=tmp_path / "runs" / "bars", seed=3)
    return module


def test_what_is_shipped_is_the_best_weights_and_their_page(script: ModuleType, tmp_path: Path) -> None:
    """Asked for the last weights, where the run itself has others, it says that it has none."""
    run, model = tmp_path / "runs" / "bars", tmp_path / "models" / "bars"
    script.ship("bars")
    assert {path.name for path in model.iterdir()} == {"run.json", "model.safetensors"}
    kept, info = read_json(model / "run.json"), read_json(run / "run.json")
    assert kept == {key: value for key, value in info.items() if key != "last_sha256"} and kept != info
    assert equal(weights(model), weights(run))
    assert multifsl.evaluate("model:bars", split="val", way=2, query=2, episodes=40).split == "val"
    with pytest.raises(MultifslError, match="of bars the best weights alone are here"):
        multifsl.load_run("model:bars", weights="last")


def test_what_is_too_large_is_not_shipped(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits, 5 MiB each and 25 in all, in a MiB made so small that the run, halved, meets them to the byte."""
    models, run = tmp_path / "models", tmp_path / "runs" / "bars"
    whole = sum((run / name).stat().st_size for name in ("run.json", "model.safetensors"))
    halved = (run / "run.json").stat().st_size + len(to_bytes({k: v.half() for k, v in weights(run).items()}))
    assert halved < whole
    monkeypatch.setattr(script, "MIB", (halved - 1) / 5)
    with pytest.raises(ValueError, match="bars has 5.0 MiB, all others 0.0: 5 each and 25 in all may be shipped"):
        script.ship("bars")
    monkeypatch.setattr(script, "MIB", size := whole)
    (models / "other").mkdir()
    (models / "other" / "model.safetensors").write_bytes(bytes(24 * size + 1))
    with pytest.raises(ValueError, match="bars has 1.0 MiB, all others 24.0"):
        script.ship("bars")
    assert not (models / "bars").exists()
    (models / "other" / "model.safetensors").write_bytes(bytes(24 * size))
    script.ship("bars")
    script.ship("bars")  # again, in its own place: what it takes there is not counted beside it
    assert (models / "bars" / "run.json").exists()


def test_what_is_too_large_in_single_precision_is_shipped_and_scored_in_half(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "bars"
    whole = sum((run / name).stat().st_size for name in ("run.json", "model.safetensors"))
    monkeypatch.setattr(script, "MIB", (whole - 1) / 5)
    script.ship("bars")
    assert equal(weights(tmp_path / "models" / "bars"), {k: v.half() for k, v in weights(run).items()})
    state = multifsl.load_run("model:bars").method.state_dict()
    assert equal(state, {k: v.half().float() for k, v in weights(run).items()})
    scored: list[object] = []

    def reproduced(name: str, *, out: object, **_: object) -> list[object]:
        scored.append(out)
        return []

    monkeypatch.setattr(script, "reproduce", reproduced)
    script.score("bars")
    assert scored == ["model:bars"]


def test_what_half_precision_cannot_hold_is_not_shipped(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "bars"
    whole = sum((run / name).stat().st_size for name in ("run.json", "model.safetensors"))
    monkeypatch.setattr(script, "MIB", (whole - 1) / 5)
    info, tensors = script.read_pair(run, "run.json", "run")
    next(value for value in tensors.values() if value.is_floating_point()).fill_(1e5)  # half ends at 65,504
    script.write_pair(run, "run.json", info, tensors)
    with pytest.raises(ValueError, match="bars has weights that half precision cannot hold"):
        script.ship("bars")
    assert not (tmp_path / "models" / "bars").exists()


def test_the_page_and_the_recipe_say_what_came_of_it(script: ModuleType, tmp_path: Path) -> None:
    script.ship("bars")
    script.score("bars")
    script.render()
    run, info = tmp_path / "runs" / "bars", read_json(tmp_path / "runs" / "bars" / "run.json")
    by_hand = [
        multifsl.evaluate(run, way=2, query=2, episodes=40, split="val"),
        multifsl.evaluate(run, way=3, query=2, episodes=40),
    ]
    two, three = (f"{100 * one.accuracy:.2f} ± {100 * one.ci95:.2f}" for one in by_hand)
    threads = info["metrics"]["threads"]
    assert threads == torch.get_num_threads()
    cost = f"0 minutes on {threads} thread" + "s" * (threads > 1)
    assert load_recipe("bars").result == f"2-way {two}, 3-way {three}; on the test and val classes, seed 3; {cost}"
    assert load_recipe("later").result == ""
    page = (tmp_path / "results.md").read_text()
    assert page.startswith("Before.\n\n") and page.endswith("\n\nAfter.\n") and "old" not in page
    lines = page.splitlines()
    assert "## `images`" in lines and "| command | 2-way | 3-way | training | |" in lines
    two, three = f"{two} (40 episodes)", f"{three} (40 episodes)"
    row = (
        f"| `multifsl reproduce bars --seed 3` | {two}; published 99.5 | {three} | 20 steps, {cost}, seed 3 | shipped |"
    )
    assert row in lines
    assert "| `multifsl reproduce later` | published 99.5 |  | no run yet |  |" in lines
    assert "- `bars`: Bars. Published: by hand, table 1. A note." in lines
    script.render()
    assert (tmp_path / "results.md").read_text() == page


def test_a_record_of_an_older_run_names_no_threads(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "bars" / "run.json"
    info = read_json(path)
    del info["metrics"]["threads"]
    path.write_text(json.dumps(info))
    script.score("bars")
    assert load_recipe("bars").result.endswith("seed 3; 0 minutes")


def test_every_row_of_the_page_has_a_recipe_and_its_command() -> None:
    """The page as it stands: written by the script from the recipes and records that are there."""
    page = (SCRIPT.parent.parent / "docs" / "results.md").read_text()
    commands = re.findall(r"^\| `multifsl reproduce ([\w-]+)", page, re.M)
    assert sorted(commands) == recipe.recipe_names()
