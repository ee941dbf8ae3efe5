"""Scores the runs of the recipes, ships those that are to come with the package, and writes docs/results.md.

    multifsl reproduce NAME --out runs/recipes/NAME         # trains; stopped, it goes on
    python scripts/results.py NAME...                       # scores those runs, and writes the page and the recipes' headers
    python scripts/results.py --ship NAME...                # copies the runs into multifsl/models/ first
    python scripts/results.py                               # the page alone, from docs/results/

A run's record is one file in docs/results/. Where a task's test classes are not at hand the val classes are scored: they chose the
weights, and the page says so. Episodes are drawn by seed 0.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from multifsl import recipe as recipes
from multifsl import shipped
from multifsl.bank import Bank, embed_items
from multifsl.checkpoint import load_run, read_pair, to_bytes, write_pair
from multifsl.encoder import Features
from multifsl.episode import EpisodeSampler
from multifsl.methods.mann import Mann
from multifsl.recipe import Recipe, Row, load_recipe, recipe_names, reproduce
from multifsl.registry import build, parse

ROOT = Path(__file__).parent.parent
RECORDS, PAGE, RUNS = ROOT / "docs" / "results", ROOT / "docs" / "results.md", ROOT / "runs" / "recipes"
VAL_ONLY = ("omniglot", "cifar_fs")  # whose test classes are not at hand
MIB = 2**20
MARK = ("<!-- tables: scripts/results.py -->", "<!-- end of tables -->")


def ship(name: str) -> None:
    """Put a finished run into the package, its weights in half precision where they are too large for 5 MiB, without a word of
    its last weights, which stay behind. Raises ValueError where it is too large all the same, or half precision cannot hold it.
    """
    run = RUNS / name
    load_run(run)  # whole, and readable
    info, tensors = read_pair(run, "run.json", "run")
    rest = (run / "run.json").stat().st_size
    if len(to_bytes(tensors)) + rest > 5 * MIB:
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError(f"{name} has weights that half precision cannot hold")
    size = len(to_bytes(tensors)) + rest
    others = sum(f.stat().st_size for f in shipped.FOLDER.rglob("*") if f.is_file() and f.parent.name != name)
    if size > 5 * MIB or size + others > 25 * MIB:
        raise ValueError(
            f"{name} has {size / MIB:.1f} MiB, all others {others / MIB:.1f}: 5 each and 25 in all may be shipped"
        )
    (shipped.FOLDER / name).mkdir(parents=True, exist_ok=True)
    info.pop("last_sha256", None)
    write_pair(shipped.FOLDER / name, "run.json", info, tensors)


def score(name: str) -> None:
    """Write the record of a run, as it is shipped if it is, and the first line of what came of it into its recipe."""
    run = f"{shipped.SHIPPED}{name}" if name in shipped.model_names() else RUNS / name
    recipe, scored = load_recipe(name), load_run(run)
    info, method = scored.info, scored.method
    split = "val" if info["task"].startswith(VAL_ONLY) else None
    figures = [figure.to_json() for figure in reproduce(name, out=run, eval_only=True, split=split)]
    done = info["metrics"]
    record = {
        "recipe": name, "seed": info["seed"], "commit": _commit(), "encoder": info["encoder"], "method": info["method"],
        "encoder_from": (info.get("encoder_from") or [None])[0], "steps": done["steps_done"], "seconds": done["seconds"],
        "threads": done.get("threads"), "figures": [{k: v for k, v in one.items() if k != "details"} for one in figures],
    }  # fmt: skip
    if isinstance(method, Mann) and method.setting == "sequence":
        record["by_instance"] = by_instance(method)
    RECORDS.mkdir(exist_ok=True)
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    shown = ", ".join(f"{f['name']} {100 * f['accuracy']:.2f} ± {100 * f['ci95']:.2f}" for f in figures)
    splits = " and ".join(sorted({f["split"] for f in figures}))
    where = "all" if splits == "all" else f"the {splits}"
    result = f"{shown}; on {where} classes, seed {info['seed']}; {_minutes(record)}"
    path = recipes.FOLDER / f"{name}.toml"
    text, count = re.subn(
        r'^result = ".*"$', lambda _: f"result = {json.dumps(result, ensure_ascii=False)}", path.read_text(), flags=re.M
    )
    assert count == 1, f"{path} has {count} lines `result = ...`"
    path.write_text(text)
    print(f"{recipe.name}: {result}")


@torch.inference_mode()
def by_instance(method: Mann) -> list[float]:
    """Accuracy at the 1st to 10th time that a class is seen in a sequence, over 960 episodes of val classes, seed 0."""
    items = build("tasks", "omniglot").items("val")
    z, kept = embed_items(method.encoder, items)
    bank, sampler = Bank(z, kept), EpisodeSampler(kept.labels, way=5, shot=5, query=5, seed=0)
    method.encoder = Features(z.shape[1])
    found = [method.accuracy_by_instance(bank.episodes(sampler.tasks(step, 32))) for step in range(30)]
    return [round(value, 4) for value in torch.stack(found).mean(0).tolist()]


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _minutes(record: dict[str, Any]) -> str:
    """How long a run took, and on how many threads, where it says so."""
    threads = record["threads"]
    minutes = round(record["seconds"] / 60)
    return f"{minutes} minute{'s' * (minutes != 1)}" + (f" on {threads} thread{'s' * (threads > 1)}" if threads else "")


def _record(name: str) -> dict[str, Any] | None:
    path = RECORDS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def render() -> None:
    """The tables of docs/results.md, between its marks: one for each data that runs are trained on, a row a recipe."""
    parts: list[str] = []
    groups: dict[str, list[tuple[Recipe, dict[str, Any] | None]]] = {}
    for recipe in map(load_recipe, recipe_names()):
        task = " + ".join(spec.name for spec in parse(recipe.train["task"]))
        groups.setdefault(task, []).append((recipe, _record(recipe.name)))
    for task, rows in groups.items():
        columns = list(dict.fromkeys(row.name for recipe, _ in rows for row in recipe.rows))
        parts += [f"## `{task}`", ""]
        parts += ["| command | " + " | ".join(columns) + " | training | |", "|---" * (len(columns) + 3) + "|"]
        for recipe, record in rows:
            figures = {} if record is None else {figure["name"]: figure for figure in record["figures"]}
            cells = {row.name: _cell(row, figures.get(row.name)) for row in recipe.rows}
            command, cost = f"multifsl reproduce {recipe.name}", "no run yet"
            if record is not None:
                command += "" if record["seed"] == recipe.train.get("seed", 0) else f" --seed {record['seed']}"
                cost = f"{record['steps']:,} steps, {_minutes(record)}, seed {record['seed']}"
                if record["encoder_from"]:
                    cost += f", from the encoder of `{record['encoder_from']}`"
            there = "shipped" if recipe.name in shipped.model_names() else ""
            parts.append(f"| `{command}` | {' | '.join(cells.get(c, '') for c in columns)} | {cost} | {there} |")
        parts.append("")
        for recipe, record in rows:
            notes = f" {recipe.notes.strip()}" if recipe.notes else ""
            if record is not None and "by_instance" in record:
                ours = [f"{100 * value:.1f}" for value in record["by_instance"]]
                notes += f" Ours: {', '.join(ours[:5])}, {ours[9]} (960 episodes of 5 classes and 50 items, seed 0)."
            parts.append(f"- `{recipe.name}`: {recipe.title}. Published: {recipe.source}.{notes}")
        parts.append("")
    text = PAGE.read_text()
    before, after = text.split(MARK[0])[0], text.split(MARK[1])[1]
    PAGE.write_text(before + MARK[0] + "\n" + "\n".join(parts) + MARK[1] + after)


def _cell(row: Row, figure: dict[str, Any] | None) -> str:
    """Ours with its interval, and the published figure; (T) where queries are classified, or normalised, together."""
    shown = []
    if figure is not None:
        together = " (T)" if figure["transductive"] else ""
        few = f" ({figure['episodes']} episodes)" if figure["episodes"] < 1000 else ""
        shown.append(f"{100 * figure['accuracy']:.2f} ± {100 * figure['ci95']:.2f}{together}{few}")
    if row.published is not None:
        shown.append(f"published {row.published}")
    return "; ".join(shown)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*")
    parser.add_argument("--ship", action="store_true")
    options = parser.parse_args()
    for one in options.name:
        if options.ship:
            ship(one)
        score(one)
    render()
