"""A picture of how a run went: its loss, and its accuracy in training and on the validation classes, over the steps."""

import json
from pathlib import Path
from typing import Any

NAME = "curves.svg"


def draw(run: Path) -> Path | None:
    """Write `curves.svg` into a finished run's folder, from its metrics; None, and no picture, where they have nothing to show."""
    done = json.loads((run / "run.json").read_text())["metrics"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [row for row in rows if "loss" in row]
    validations = [row for row in rows if "val_accuracy" in row]
    if not looks:
        return None
    from matplotlib.figure import Figure  # not pyplot: no window, no state

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    steps = [row["step"] for row in looks]
    mark = "o" if len(looks) == 1 else ""
    loss.plot(steps, [row["loss"] for row in looks], marker=mark)
    loss.set(xlabel="step", ylabel="loss")
    accuracy.plot(
        steps, [row["accuracy"] for row in looks], marker=mark, label=f"training, {done['train_way']}-way", alpha=0.6
    )
    if validations:
        best: dict[str, Any] = max(validations, key=lambda row: row["val_accuracy"])
        bars = {"marker": "o", "capsize": 2, "label": f"validation, {done['val_episode']['way']}-way"}
        accuracy.errorbar(
            [row["step"] for row in validations],
            [row["val_accuracy"] for row in validations],
            yerr=[row["val_ci95"] for row in validations],
            **bars,
        )
        accuracy.plot(
            best["step"],
            best["val_accuracy"],
            "k*",
            markersize=12,
            fillstyle="none",
            label="the weights kept",
            zorder=9,
        )
    accuracy.set(xlabel="step", ylabel="accuracy", ylim=(None, 1))
    accuracy.legend(loc="lower right")
    write(figure, run / NAME)
    return run / NAME


def write(figure: Any, path: Path) -> None:
    """A figure in the house's style as a file; of the same numbers the same SVG, whose text stays text."""
    from matplotlib import rc_context

    for axis in figure.axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.hashsalt": "multifsl", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
