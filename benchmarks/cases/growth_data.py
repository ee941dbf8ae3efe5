"""How cost grows with the items of a data set, and how it falls with the processes that train."""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import multifsl
from benchmarks.cases.prototypical import Drawings
from benchmarks.harness import Curve, Setting, taken
from multifsl.bank import open_data, sampler_of
from multifsl.registry import build
from multifsl.task import Items

TITLE = "How cost grows: items of a data set, processes"
EACH = 20  # items of a class
TASKS = 4  # episodes a step, which the processes share


def curves(setting: Setting) -> Sequence[Curve]:
    items = setting.pick((1000, 10_000, 100_000, 1_000_000), (100,))
    processes = setting.pick((1, 2), (1,))
    kept = "Images of 28 x 28 pixels, given as arrays, decoded once into a bank: 784 bytes each, twice that while it is built."
    streamed = (
        "Where that would not fit into the memory allowed, each is read once, to find those that cannot be, and let go."
    )
    return [
        Curve("Start-up, in memory", "items", items, lambda n: opened(setting.quick, n).bank_seconds, 1, note=kept),
        Curve(
            "Start-up, streamed", "items", items, lambda n: opened(setting.quick, n).stream_seconds, 1, note=streamed
        ),
        Curve("Memory, in memory", "items", items, lambda n: opened(setting.quick, n).bank_mib, 1, "MiB"),
        Curve("Memory, streamed", "items", items, lambda n: opened(setting.quick, n).stream_mib, 1, "MiB"),
        Curve("Training, an episode", "processes", processes, partial(trained, setting), -1, note=SHARED),
    ]


SHARED = f"20-way 1-shot 5-query, Conv4, {TASKS} episodes a step, one thread each, started by torchrun."


class Made(Sequence[Any]):
    """Any number of images, made when they are asked for."""

    def __init__(self, count: int) -> None:
        self.size = count
        self.few = np.random.default_rng(0).integers(0, 256, (64, 28, 28), dtype=np.uint8)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        return self.few[index % len(self.few)]


class Opened(NamedTuple):
    """Until the first episode can be drawn: seconds, and the MiB that it takes at its peak."""

    stream_seconds: float
    stream_mib: float
    bank_seconds: float
    bank_mib: float


@cache
def opened(quick: bool, count: int) -> Opened:
    """In a process of its own, whose memory nothing else has filled."""
    return (
        opened_here(count) if quick else Opened(*json.loads(_own([sys.executable, "-m", __name__, "open", str(count)])))
    )


def opened_here(count: int) -> Opened:
    encoder = build("encoders", "conv4(channels=1)")
    found: list[float] = []

    def once(count: int, limit: int | None) -> None:
        labels = np.arange(count) // EACH
        start = perf_counter()
        with warnings.catch_warnings(action="ignore"):  # that it is streamed
            source = open_data(
                encoder, Items(Made(count), labels, [str(c) for c in range(labels[-1] + 1)]), limit=limit
            )
        sampler_of(source.items, way=5, shot=1, query=5)
        found.append(perf_counter() - start)

    for limit in (0, None):
        once(100, limit)  # what is loaded for the first time is no cost of items
        found[-1:] = []
        found.append(taken(partial(once, count, limit)))
    return Opened(*found)


def trained(setting: Setting, processes: int) -> float:
    """Seconds an episode, as the training reports it."""
    asked = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        __name__,
    ]
    with tempfile.TemporaryDirectory() as folder:
        if setting.quick:
            train_here(1, setting.device, folder)
        else:
            _own([*asked, "train", "40", setting.device, folder])
        rows = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return 1 / float(json.loads(rows[-1])["episodes_per_second"])


def train_here(steps: int, device: str, folder: str) -> None:
    with warnings.catch_warnings(action="ignore"):  # no val classes
        multifsl.train(
            Drawings(), "conv4(channels=1)", out=Path(folder) / "run", way=20, query=5, episodes_per_step=TASKS, steps=steps,
            device=device,
        )  # fmt: skip


def _own(asked: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(asked, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


if __name__ == "__main__":
    what, size, *rest = sys.argv[1:]
    if what == "train":
        train_here(int(size), *rest)
    else:
        print(json.dumps(opened_here(int(size))))
