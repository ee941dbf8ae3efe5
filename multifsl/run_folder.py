"""The folder of a run that is being trained: its settings, its metrics, and the checkpoint that it goes on from."""

import json
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from multifsl import curves
from multifsl.checkpoint import CHECKPOINTS, LAST, has_checkpoint, read_json, read_tensors, to_bytes, write_atomically
from multifsl.errors import BadFile, MultifslError
from multifsl.functional import digest
from multifsl.optim import Average
from multifsl.parallel import Processes


class Finished(MultifslError):
    """A run that is asked to go on has come to its end."""


class Stopped(MultifslError):
    """A run was interrupted; it can go on. signal: the number of the one that did it, such as 2 (SIGINT) or 15 (SIGTERM)."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass
class Progressed:
    """Where a training stands; all that a resumed one needs beside the weights."""

    step: int = 0
    seconds: float = 0.0
    validations: int = 0
    best_accuracy: float = -1.0
    best_step: int = 0
    without_better: int = 0  # validations since the best one
    validating: float = 0.0  # seconds
    best: dict[str, Tensor] = field(default_factory=dict)


OWN_FILES = ("run.json", "model.safetensors", LAST, *CHECKPOINTS, "metrics.jsonl", "settings.json", curves.NAME)


BOARD = "tensorboard"  # a folder in a run's


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Where something is written to a run's folder: a full disk is the user's to mend."""
    try:
        yield
    except OSError as error:
        saved = "nothing was saved yet"
        if has_checkpoint(out):
            saved = "what was saved before is whole, and the run goes on from there by --resume (`reproduce`: by the same command)"
        raise MultifslError(f"cannot write to {out}: {error.strerror or error}; {saved}") from error


def tidy(out: Path) -> None:
    """Leave a finished run's folder as it is to be: with its picture, without checkpoints. One that is so is not touched."""
    if has_checkpoint(out) or not (out / curves.NAME).exists():
        curves.draw(out)
    for name in CHECKPOINTS:
        if (out / name).exists():
            (out / name).unlink()
    remove_unfinished(out)


def remove_unfinished(out: Path) -> None:
    """What a kill left of files that were being written."""
    for name in OWN_FILES:
        for path in out.glob(f".{name}.*"):
            path.unlink()


def check_folder(out: Path, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Agree to the place of a run, before the long part and before anything in it changes."""
    if resume and overwrite:
        raise MultifslError("give resume or overwrite, not both")
    config = out / "settings.json"
    if resume:
        if not config.exists():
            raise MultifslError(f"there is no run to resume at {out}")
        old, new = (_compared(each) for each in (read_json(config), settings))
        differ = [f"{k}: {v!r} then, {new.get(k)!r} now" for k, v in old.items() if v != new.get(k)]
        if differ:
            raise MultifslError(
                f"the run {out} was started with other settings ({'; '.join(differ)}): with the same ones it goes on; or begin "
                "anew with --overwrite, or elsewhere with another --out"
            )
        if (out / "run.json").exists():
            with writing(out):
                tidy(out)
            raise Finished(f"the run {out} is finished; there is nothing to resume")
        return
    if out.exists() and not out.is_dir():
        raise MultifslError(f"{out} is a file; a run is a folder")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    ours = config.exists() and {"task", "encoder", "method"} <= read_json(config).keys()
    if there and not (ours and there == {"settings.json"}):  # alone, ours is of a run that never began
        if not ours:
            raise MultifslError(f"{out} exists and is no run: it is not overwritten; choose another place")
        if not overwrite:
            raise MultifslError(f"{out} exists already; go on with it by --resume, or replace it by --overwrite")


def _compared(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they must be again: of a run that the encoder came from the weights, not where they stood."""
    given = settings.get("encoder_from")
    return settings | ({"encoder_from": given[1]} if given else {})


def open_folder(out: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Make the run's folder; of an old run in it, the run's own files go."""
    if resume:
        remove_unfinished(out)
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
            rows = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= keep_through]
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
    out: Path, model: nn.Module, optimizer: Any, average: Average | None, at: Progressed, states: list[list[Tensor]]
) -> None:
    """Weights, their average, optimiser, random states and progress in one file; the one before stays as the second.

    states: the random states of each process, the host's and its device's.
    """
    state = optimizer.state_dict()
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in at.best.items()}
    tensors |= {} if average is None else {f"average.{k}": v for k, v in average.tensors.items()}
    tensors |= {
        f"optimizer.{i}.{k}": v for i, entry in state["state"].items() for k, v in entry.items() if v is not None
    }
    tensors |= {f"rng.{rank}.{i}": v for rank, each in enumerate(states) for i, v in enumerate(each)}
    progressed = {k: v for k, v in vars(at).items() if k != "best"}
    header = {
        "progress": json.dumps(progressed),
        "groups": json.dumps(state["param_groups"]),
        "processes": str(len(states)),
        "digest": digest(tensors),
    }
    data = to_bytes(tensors, header)
    newest, previous = (out / name for name in CHECKPOINTS)
    if newest.exists():
        newest.replace(previous)
    write_atomically(newest, data)


def restore(out: Path, model: nn.Module, optimizer: Any, average: Average | None, processes: Processes) -> Progressed:
    """Put back what `save` wrote last; where that is damaged, with a warning, what it wrote before.

    Raises BadFile where nothing whole is left, or it is of another training.
    """
    there = [out / name for name in CHECKPOINTS if (out / name).exists()]
    for i, path in enumerate(there):
        try:
            tensors, header = read_tensors(path)
            if not header.keys() >= {"progress", "groups", "processes"} or digest(tensors) != header.get("digest"):
                raise BadFile(f"{path} is damaged: its content is not what was written")
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
        processes.set_states(list(_under(f"rng.{processes.rank}.", tensors).values()))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise BadFile(f"the checkpoint {path} does not fit this training: {error}") from error
    if header["processes"] != str(processes.size):
        warnings.warn(
            f"the run was stopped with {header['processes']} processes and goes on with {processes.size}: it is the same training, "
            "but for random numbers (dropout, augmentation), which are drawn anew",
            stacklevel=3,
        )
    at.best = _under("best.", tensors)
    return at


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
