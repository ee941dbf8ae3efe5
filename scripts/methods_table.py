"""Trains and evaluates the methods on three modalities, and writes the table and the curves of docs/methods.md.

    python scripts/methods_table.py                         # all rows that are not there yet; goes on where it was stopped
    python scripts/methods_table.py --times 4 --only "omniglot/ma*"  # four times as long
    python scripts/methods_table.py --render                # docs/methods.md and docs/methods/curves.svg from the results

A row is one run, trained with 1 to 5 shots on the train classes, and two evaluations on the VALIDATION classes, which also chose
the run's weights. No test class is touched. Each row is a process of its own, so that its peak memory is its own; its result is
one file in docs/methods/results/. A row with a result of fewer minutes than asked for is trained anew. Loops started side by side
share the rows.
"""

import argparse
import fnmatch
import json
import math
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "methods" / "results"
SEED = 0

# task -> spec, encoder, learning rate, and the queries of training, 1-shot and 5-shot evaluation
TASKS: dict[str, dict[str, Any]] = {
    "omniglot": {"task": "omniglot", "encoder": "conv4", "lr": 1e-3, "query": (5, 15, 15)},
    "speakers": {"task": "speech_commands", "encoder": "ecapa(channels=64)", "lr": 1e-3, "query": (1, 3, 1)},
    "banking77": {"task": "banking77(fold=1)", "encoder": "transformer", "lr": 2e-5, "query": (3, 15, 15)},
}

# method -> task -> spec; "*" stands for the tasks that are not named
METHODS: dict[str, dict[str, str]] = {
    "siamese": {"*": "siamese"},
    "matching": {"*": "matching(temperature='learned')"},
    "prototypical": {"omniglot": "prototypical", "*": "prototypical(distance='cosine')"},
    "mann": {"*": "mann(temperature='learned')"},  # off the ground sooner than with the paper's, 1
    "meta_lstm": {
        "omniglot": "meta_lstm(lr=0.1)",  # 0.01 is slower
        "speakers": "meta_lstm(lr=0.1, trainable='last')",
        "banking77": "meta_lstm(lr=0.1, trainable='head')",
    },
    "maml": {
        "omniglot": "maml(steps=1, lr=0.4, test_steps=3)",
        "speakers": "maml(steps=3, lr=0.1, trainable='last')",
        "banking77": "maml(steps=3, lr=0.05, trainable='last')",
    },
    "reptile": {
        "omniglot": "reptile",
        "speakers": "reptile(trainable='last', test_steps=10)",  # with the default's 50 a validation takes longer than the run
        "banking77": "reptile(trainable='last', test_steps=10)",
    },
    "ridge": {"*": "ridge"},
    "anil": {"*": "anil(steps=5, lr=0.1)"},
    "logistic": {"*": "logistic"},
    "simpleshot": {"*": "simpleshot"},
    "finetune": {
        "omniglot": "finetune(lr=1e-3)",
        "speakers": "finetune(trainable='last')",
        "banking77": "finetune(trainable='last')",
    },
    "caml": {"*": "caml"},
}
WIDE = {"siamese", "matching", "prototypical", "ridge", "logistic", "simpleshot"}  # trained with more ways
ADAPTING = {"maml", "reptile", "meta_lstm", "finetune"}
# The encoder comes from that row's run. (From random weights caml was at 25 % on speakers after 4 minutes.)
START = {"omniglot/mann": "simpleshot", "speakers/mann": "simpleshot", "speakers/caml": "simpleshot"}  # fmt: skip
SAME_RUN = {"finetune": "simpleshot"}  # both start from an encoder trained as a plain classifier
MINUTES = {  # where not 4
    "omniglot/mann": 10, "omniglot/maml": 15, "omniglot/reptile": 15, "omniglot/meta_lstm": 10, "omniglot/simpleshot": 15,
    "omniglot/caml": 6, "speakers/simpleshot": 10, "speakers/reptile": 10, "speakers/maml": 20, "speakers/meta_lstm": 20,
    **{f"banking77/{method}": 10 for method in METHODS}, "banking77/maml": 20, "banking77/meta_lstm": 15,
}  # fmt: skip
# With these encoders trained along, a step takes seconds, and both methods need thousands.
FROZEN = {"freeze_encoder": True, "episodes_per_step": 16, "lr": 1e-3}
EXTRA: dict[str, dict[str, Any]] = {  # what a row's training does otherwise
    "omniglot/mann": {"episodes_per_step": 16},
    **{f"{task}/{method}": FROZEN for task in ("speakers", "banking77") for method in ("mann", "caml")},
    "omniglot/simpleshot": {"way": 60, "shot": 1, "query": 1},
}  # fmt: skip
UNTRAINED = "untrained"  # the frozen encoder: nearest class mean by cosine


def spec_of(task: str, method: str) -> str:
    specs = METHODS[method]
    return specs.get(task, specs.get("*", method))


def train_and_evaluate(task: str, method: str, minutes: float, runs: Path) -> dict[str, Any]:
    """One row, in this process."""
    import torch

    import multifsl

    torch.set_num_threads(1)
    about = TASKS[task]
    result: dict[str, Any] = {"task": task, "method": method, "seed": SEED, "commit": _commit()}
    if method == UNTRAINED:
        subject: dict[str, Any] = {"task": about["task"], "encoder": about["encoder"]}
        result |= {"spec": "prototypical(distance='cosine')", "minutes": 0}
    else:
        trained_as = SAME_RUN.get(method, method)
        out = runs / task / trained_as
        way = 20 if trained_as in WIDE and task == "omniglot" else 10 if trained_as in WIDE else 5
        command: dict[str, Any] = {
            "way": way, "shot": (1, 5), "query": about["query"][0], "minutes": minutes, "lr": about["lr"], "seed": SEED,
            "skip_small_classes": True,
        } | EXTRA.get(f"{task}/{trained_as}", {})  # fmt: skip
        asked_before = _minutes_of(out) == minutes
        if not (asked_before and (out / "run.json").exists()):
            goes_on = asked_before and (out / "checkpoint.safetensors").exists()
            start = START.get(f"{task}/{method}")
            encoder = multifsl.load_run(runs / task / start).method.encoder if start else about["encoder"]
            multifsl.train(
                about["task"], encoder, spec_of(task, trained_as), out=out, resume=goes_on,
                overwrite=not goes_on and out.exists(), **command,
            )  # fmt: skip
        done = multifsl.load_run(out).info["metrics"]
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        seconds = {row["step"]: row["seconds"] for row in rows if "seconds" in row}
        curve = [(_at(seconds, row["step"]), row["val_accuracy"]) for row in rows if "val_accuracy" in row]
        subject = {"run": out} | ({"method": spec_of(task, method)} if trained_as != method else {})
        result |= {
            "spec": spec_of(task, method), "trained_as": trained_as, "minutes": minutes,
            "train": {k: v for k, v in command.items() if k != "seed"},
            "encoder_from": START.get(f"{task}/{method}"),
            "steps": done["steps_done"], "trained_seconds": done["seconds"], "curve": curve,
        }  # fmt: skip
    result["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    slow = method in ADAPTING and task != "omniglot"
    for shot, query in zip((1, 5), about["query"][1:], strict=True):
        scored = multifsl.evaluate(
            **subject, split="val", way=5, shot=shot, query=min(5, query) if slow else query, seed=SEED,
            episodes=120 if slow else 400 if method in ADAPTING else 1000, skip_small_classes=True,
        )  # fmt: skip
        result[f"5w{shot}s"] = {
            "accuracy": scored.accuracy, "ci95": scored.ci95, "episodes": scored.episodes, "query": scored.query,
            "seconds": scored.seconds, "transductive": scored.transductive,
        }  # fmt: skip
    return result


def _minutes_of(out: Path) -> float | None:
    settings = out / "settings.json"
    return json.loads(settings.read_text()).get("minutes") if settings.exists() else None


def _at(seconds: dict[int, float], step: int) -> float:
    """Seconds of training when a step was done: those noted last before it."""
    return max((s for at, s in seconds.items() if at <= step), default=0.0)


def _commit() -> str:
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()


def minutes_of(task: str, method: str, times: float) -> float:
    """Of a row's training."""
    return times * MINUTES.get(f"{task}/{SAME_RUN.get(method, method)}", 4)


def run_rows(chosen: list[tuple[str, str]], times: float, runs: Path) -> None:
    """Rows one after another, each in a process of its own; several such loops may share a folder."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task, method in chosen:
        file = RESULTS / f"{task}-{method}.json"
        minutes = minutes_of(task, method, times)
        if file.exists() and (method == UNTRAINED or json.loads(file.read_text())["minutes"] >= minutes):
            continue
        runs.mkdir(parents=True, exist_ok=True)
        claim = runs / f"{task}-{SAME_RUN.get(method, method)}.claim"
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue  # another loop is at it
        try:
            begin = time.monotonic()
            row = ["--row", f"{task}/{method}", "--times", str(times), "--runs", str(runs)]
            done = subprocess.run([sys.executable, __file__, *row], capture_output=True, text=True)
            print(
                f"{task}/{method}: {time.monotonic() - begin:.0f} s, {done.stdout.strip() or done.stderr[-600:]}",
                flush=True,
            )
        finally:
            claim.unlink()


# ---- the page ----

MARK = ("<!-- table: scripts/methods_table.py --render -->", "<!-- end of table -->")


def render() -> None:
    """Put the table between the marks of docs/methods.md, and draw the learning curves."""
    found = {(r["task"], r["method"]): r for r in (json.loads(f.read_text()) for f in sorted(RESULTS.glob("*.json")))}
    lines = [
        "| method | "
        + " | ".join(f"{t}, 5-way 1-shot | 5-shot" for t in TASKS)
        + " | training: minutes, steps | peak memory, GiB |"
    ]
    lines.append("|---|" + "---|" * (2 * len(TASKS) + 2))
    for method in [UNTRAINED, *METHODS]:
        rows = [found.get((task, method)) for task in TASKS]
        cells = [_score(row, key) for row in rows for key in ("5w1s", "5w5s")]
        training = " / ".join(_training(row, method) for row in rows)
        memory = " / ".join("?" if row is None else f"{row['peak_mib'] / 1024:.1f}" for row in rows)
        name = "encoder as it is, nearest class mean" if method == UNTRAINED else f"[{method}](methods/{method}.md)"
        lines.append(f"| {name} | {' | '.join(cells)} | {training} | {memory} |")
    page = ROOT / "docs" / "methods.md"
    before, _, rest = page.read_text().partition(MARK[0])
    page.write_text(before + MARK[0] + "\n" + "\n".join(lines) + "\n" + MARK[1] + rest.partition(MARK[1])[2])
    draw(found)


def _score(row: dict[str, Any] | None, key: str) -> str:
    if row is None or key not in row:
        return "not run"
    return f"{100 * row[key]['accuracy']:.1f} ± {100 * row[key]['ci95']:.1f}" + (
        " (T)" if row[key]["transductive"] else ""
    )


def _training(row: dict[str, Any] | None, method: str) -> str:
    if row is None:
        return "?"
    if "steps" not in row:
        return "none"
    return f"as {row['trained_as']}" if method in SAME_RUN else f"{row['minutes']:g} min, {row['steps']:,}"


def draw(found: dict[tuple[str, str], dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "multifsl"  # the same drawing, the same file
    figure, axes = plt.subplots(1, len(TASKS), figsize=(5 * len(TASKS), 4.2), layout="constrained")
    for axis, task in zip(axes, TASKS, strict=True):
        for i, method in enumerate(METHODS):
            curve = [] if method in SAME_RUN else found.get((task, method), {}).get("curve", [])
            style = ("-", "--", ":")[i // 5 % 3]
            if method not in SAME_RUN:
                axis.plot([s / 60 for s, _ in curve], [100 * a for _, a in curve], style, marker=".", label=method)
        start = found.get((task, UNTRAINED))
        if start:
            axis.axhline(100 * start["5w1s"]["accuracy"], color="grey", lw=0.8, label="the encoder as it is")
        axis.set(title=task, xlabel="minutes of training", ylabel="5-way 1-shot validation accuracy, %")
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=7)
    figure.savefig(ROOT / "docs" / "methods" / "curves.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=1.0, help="train each row so many times its minutes")
    parser.add_argument("--only", default="*", help="rows to run, such as 'omniglot/*'")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "methods", help="where the runs go")
    parser.add_argument("--render", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.render:
        return render()
    if given.row:
        task, method = given.row.split("/")
        result = train_and_evaluate(task, method, minutes_of(task, method, given.times), given.runs)
        assert all(math.isfinite(result[key]["accuracy"]) for key in ("5w1s", "5w5s"))
        (RESULTS / f"{task}-{method}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(" ".join(f"{key} {result[key]['accuracy']:.4f}" for key in ("5w1s", "5w5s")))
        return None
    rows = [(task, method) for method in [UNTRAINED, *METHODS] for task in TASKS]
    run_rows([row for row in rows if fnmatch.fnmatch("/".join(row), given.only)], given.times, given.runs)
    return None


if __name__ == "__main__":
    main()
