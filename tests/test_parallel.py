"""However a step's tasks are dealt, to processes or micro-batches, stopped or not, the same is computed.

Oracle: the same training in one process and one batch, never stopped; every method, in all of its variants.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import multifsl
from multifsl import curves, registry, training
from multifsl.bank import sampler_of
from multifsl.checkpoint import read_tensors
from multifsl.errors import MultifslError
from multifsl.parallel import Processes, Share, one_after_the_other
from multifsl.task import Items
from tests.contracts.test_methods import SPECS as VARIANTS

ENCODER = "conv4(width=4, channels=1, image_size=16)"
SHAPE: dict[str, Any] = {"way": 3, "shot": 2, "query": 2, "episodes_per_step": 2, "lr": 1e-3, "optimizer": "sgd"}
HANDING_ON = [  # something of their own from step to step
    "maml(batch_norm='per_step', steps=2, lr=0.02)",
    "maml(multi_step_loss=10)",
    "maml(first_order_until=4)",
    "mann(memory='persistent', order='given')",
    "reptile",
]


def _all_that_differ() -> list[str]:
    """The variants, which draw no random numbers; of a method that its encoder is trained for by itself, the first alone."""
    kept, seen = list(HANDING_ON), set()
    for spec in VARIANTS:
        name = registry.parse(spec)[0].name
        kind: Any = registry.find("methods", name)
        if kind.learns_from == "episodes" or name not in seen:
            kept.append(spec)
        seen.add(name)
    return kept


SPECS = _all_that_differ()
ONE_EACH = list({registry.parse(spec)[0].name: spec for spec in reversed(SPECS)}.values())


def trained(pictures: str, out: str, specs: list[str], stop: bool = False, **options: Any) -> None:
    """Trainings one after another, each in a folder named by its number; what each process runs. stop: halfway, and go on."""
    import warnings

    torch.set_num_threads(1)
    task = f"images({pictures!r}, splits={pictures + '.json'!r})"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(curves, "draw", lambda out: None)  # takes longer than these trainings
        for i, spec in enumerate(specs):
            arguments: dict[str, Any] = {"out": Path(out) / str(i), "device": "cpu", **SHAPE, **options}
            if stop:
                patch.setattr(training, "LOG_EVERY", options["steps"] // 2)
                with pytest.raises(MultifslError, match="stopped at step"):
                    multifsl.train(
                        task, ENCODER, spec, **arguments, report=lambda *_: signal.raise_signal(signal.SIGINT)
                    )
            multifsl.train(task, ENCODER, spec, **arguments, resume=stop)


def launched(*arguments: Any, **options: Any) -> None:
    """`trained` in two processes, as `accelerate launch` starts them where it is asked for a precision, which is not taken."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import json, sys; from tests.test_parallel import trained\n"
        "arguments, options = json.loads(sys.argv[1])\n"
        "trained(*arguments, **options)"
    )
    children = []
    for rank in (0, 1):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "bf16",
        }  # fmt: skip
        command = [sys.executable, "-c", code, json.dumps([arguments, options])]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=900)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors


def assert_equal(a: Path, b: Path, specs: list[str], tolerance: float) -> None:
    for i, spec in enumerate(specs):
        one, two = (read_tensors(folder / str(i) / "model.safetensors")[0] for folder in (a, b))
        assert one.keys() == two.keys()
        far = {k: float((one[k].double() - two[k].double()).abs().max()) for k in one if one[k].numel()}
        assert max(far.values()) <= tolerance, (spec, max(far, key=lambda k: far[k]), max(far.values()))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label in range(12):
        (root / f"class{label:02}").mkdir()
        for i in range(5):
            pixels = rng.integers(0, 80, (16, 16)).astype(np.uint8)
            pixels[:, label] = 255
            Image.fromarray(pixels).save(root / f"class{label:02}" / f"{i}.png")
    every = [f"class{label:02}" for label in range(12)]
    root.with_name(root.name + ".json").write_text(json.dumps({"train": every}))  # nothing to validate on: faster
    return str(root)


FEW: dict[str, Any] = {"steps": 3, "precision": "float64"}


@pytest.fixture(scope="module")
def plain(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps in one process and one batch."""
    out = tmp_path_factory.mktemp("plain")
    trained(pictures, str(out), SPECS, **FEW)
    return out


def test_micro_batches_equal_one_batch(pictures: str, plain: Path, tmp_path: Path) -> None:
    trained(pictures, str(tmp_path), SPECS, accumulate=2, **FEW)
    assert_equal(plain, tmp_path, SPECS, 1e-9)


def test_two_processes_equal_one(pictures: str, plain: Path, tmp_path: Path) -> None:
    launched(pictures, str(tmp_path), SPECS, **FEW)
    assert_equal(plain, tmp_path, SPECS, 1e-9)


@pytest.mark.parametrize(
    ("precision", "steps", "specs", "tolerance"),
    [("float32", 1, ONE_EACH, 1e-6), pytest.param("float64", 20, SPECS, 1e-9, marks=pytest.mark.slow)],
)
def test_two_processes_equal_one_for_longer_and_in_float32(
    pictures: str, tmp_path: Path, precision: str, steps: int, specs: list[str], tolerance: float
) -> None:
    launched(pictures, str(tmp_path / "two"), specs, precision=precision, steps=steps)
    trained(pictures, str(tmp_path / "one"), specs, precision=precision, steps=steps)
    assert_equal(tmp_path / "one", tmp_path / "two", specs, tolerance)


def test_two_processes_stopped_and_gone_on_with_equal_one_never_stopped(pictures: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 6, "precision": "float64", "episodes_per_step": 4}
    launched(pictures, str(tmp_path / "cut"), HANDING_ON, stop=True, accumulate=2, **options)
    trained(pictures, str(tmp_path / "one"), HANDING_ON, **options)
    assert_equal(tmp_path / "one", tmp_path / "cut", HANDING_ON, 1e-9)


def test_accelerate_s_mixed_precision_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.warns(UserWarning, match="accelerate's mixed precision, bf16, is not used"):
        Processes(torch.device("cpu"))


def test_running_statistics_are_those_of_one_task_after_another() -> None:
    """Three processes of two batches each, against one that sees all six."""
    torch.manual_seed(0)
    batches = torch.randn(6, 8, 3, dtype=torch.float64)
    one, start = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    start(torch.randn(8, 3, dtype=torch.float64))
    one.load_state_dict(start.state_dict())
    found = []
    for part in batches.split(2):
        own = nn.BatchNorm1d(3).double()
        own.load_state_dict(start.state_dict())
        for batch in part:
            own(batch)
        found.append({k: b.clone() for k, b in own.named_buffers()})
    for batch in batches:
        one(batch)
    combined = one_after_the_other(start, {k: b.clone() for k, b in start.named_buffers()}, found)
    expected = {k: b.double() for k, b in one.named_buffers()}
    torch.testing.assert_close({k: b.double() for k, b in combined.items()}, expected, rtol=1e-12, atol=1e-12)


def test_the_shares_of_a_step_are_its_tasks_in_order() -> None:
    labels = np.repeat(np.arange(8), 6)
    items = Items(list(range(48)), labels, [str(i) for i in range(8)])
    sampler = sampler_of(items, way=3, shot=1, query=2, seed=3)
    whole = [task.support.tolist() for step in range(3) for task in sampler.tasks(step, 12)]
    dealt = []
    for step in range(3):
        for rank in range(3):
            share = Share(sampler, tasks=12, parts=2, rank=rank, size=3)
            dealt += [t.support.tolist() for part in range(2) for t in share.tasks(2 * step + part, share.count)]
    assert dealt == whole
    with pytest.raises(MultifslError, match="12 episodes a step cannot be dealt evenly to 5 processes"):
        Share(sampler, tasks=12, parts=1, rank=0, size=5)
