"""The folder of a run that is being trained: its settings, its metrics, and the checkpoint that it goes on from."""

import json
import math
import shutil
import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multifsl import curves
from multifsl.checkpoint import CHECKPOINTS, read_json, read_tensors, to_bytes, write_atomically
from multifsl.errors import BadFile, MultifslError
from multifsl.optim import Average


@dataclass
class Progressed:
    """Where a training stands; all that a resumed one needs beside the weights."""

    step: int = 0
    seconds: float = 0.0
    validations: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0
    without_better: int = 0  # validations since the best one
    best: dict[str, Tensor] = field(default_factory=dict)


def remove_checkpoints(out: Path) -> None:
    for name in CHECKPOINTS:
        (out / name).unlink(missing_ok=True)


OWN_FILES = ("run.json", "model.safetensors", *CHECKPOINTS, "metrics.jsonl", "settings.json", curves.NAME)


BOARD = "tensorboard"  # a folder in a run's


def check_folder(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Agree to the place of a run, before the long part and before anything in it changes."""
    if resume and overwrite:
        raise MultifslError("give resume or overwrite, not both")
    config = out / "settings.json"
    if resume:
        if (out / "run.json").exists():
            raise MultifslError(f"the run {out} is finished; there is nothing to resume")
        if not config.exists():
            raise MultifslError(f"there is no run to resume at {out}")
        old = read_json(config)
        differ = [f"{k}: {old.get(k)!r} then, {v!r} now" for k, v in settings.items() if old.get(k) != v]
        if differ:
            raise MultifslError(
                f"the run {out} was started with other settings ({'; '.join(differ)}); resume with the same ones"
            )
        return
    if out.exists() and not out.is_dir():
        raise MultifslError(f"{out} is a file; a run is a folder")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = config.exists() and {"task", "encoder", "method"} <= read_json(config).keys()
    if there and not (ours and there == {"settings.json"}):  # alone, ours is of a run that never began
        if not overwrite:
            raise MultifslError(f"{out} exists already; go on with it by --resume, or replace it by --overwrite")
        if not ours:
            raise MultifslError(f"{out} is no run: it is not overwritten")


def open_folder(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Make the run's folder; of an old run in it, the run's own files go."""
    if resume:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES:
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / BOARD, ignore_errors=True)
        write_atomically(out / "settings.json", json.dumps(settings, indent=2).encode())
    except OSError as error:
        raise MultifslError(f"cannot write the run to {out}: {error.strerror}") from error


class Metrics:
    """`metrics.jsonl`: a line a look; lines that a lost stretch of training wrote are dropped. TensorBoard, where it is installed,
    finds the same numbers in the folder `tensorboard`."""

    def __init__(self, path: Path, keep_through: int) -> None:
        self.path = path
        if path.exists():
            rows = [line for line in path.read_text().splitlines() if _step_of(line) <= keep_through]
            write_atomically(path, "".join(f"{row}\n" for row in rows).encode())
        self.board: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(path.parent / BOARD), purge_step=keep_through + 1)

    def write(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if name != "step":
                    self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that a crash cut off
        return math.inf


def save(
    out: Path, model: nn.Module, optimizer: Any, average: Average | None, at: Progressed, states: list[Tensor]
) -> None:
    """Weights, their average, optimiser, random states and progress in one file; the one before stays as the second.

    states: the random state of each process.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in at.best.items()}
    tensors |= {} if average is None else {f"average.{k}": v for k, v in average.tensors.items()}
    tensors |= {
        f"optimizer.{i}.{k}": v for i, entry in state["state"].items() for k, v in entry.items() if v is not None
    }
    tensors |= {f"rng.{rank}": v for rank, v in enumerate(states)}
    if torch.cuda.is_available():
        tensors["rng_cuda"] = torch.cuda.get_rng_state()
    progressed = {k: v for k, v in vars(at).items() if k != "best"}
    data = to_bytes(tensors, {"progress": json.dumps(progressed), "groups": json.dumps(state["param_groups"])})
    newest, previous = (out / name for name in CHECKPOINTS)
    if newest.exists():
        newest.replace(previous)
    write_atomically(newest, data)


def restore(out: Path, model: nn.Module, optimizer: Any, average: Average | None, *, rank: int = 0) -> Progressed:
    """Put back what `save` wrote last; where that is damaged, with a warning, what it wrote before.

    Raises BadFile where nothing whole is left, or it is of another training.
    """
    there = [out / name for name in CHECKPOINTS if (out / name).exists()]
    for i, path in enumerate(there):
        try:
            tensors, header = read_tensors(path)
            break
        except BadFile as error:
            if i + 1 == len(there):
                raise
            warnings.warn(f"{error}; going on from the checkpoint before it, {there[i + 1].name}", stacklevel=3)
    try:
        at = Progressed(**json.loads(header["progress"]))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": json.loads(header["groups"])})
        model.load_state_dict(_under("model.", tensors))
        if average is not None:
            average.restore(_under("average.", tensors))
        torch.set_rng_state(tensors[f"rng.{rank}"])
        if "rng_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng_cuda"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadFile(f"the checkpoint {path} does not fit this training: {error}") from error
    at.best = _under("best.", tensors)
    return at


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
