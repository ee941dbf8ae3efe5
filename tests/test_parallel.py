"""Several processes compute what one does. Oracle: the same training in one process, every method."""

import json
import os
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
from multifsl import registry
from multifsl.bank import sampler_of
from multifsl.checkpoint import read_tensors
from multifsl.errors import MultifslError
from multifsl.parallel import Share, one_after_the_other
from multifsl.task import Items

ENCODER = "conv4(width=4, channels=1, image_size=16)"
# Options under which a method draws no random numbers, which are each process's own, and hands nothing from task to task.
CALM = {"mann": "mann(order='given')", "feat": "feat(dropout=0.0)", "reptile": "reptile(carry=False)"}
SHAPE: dict[str, Any] = {"way": 3, "shot": 2, "query": 2, "episodes_per_step": 2, "lr": 1e-3, "optimizer": "sgd"}


def trained(pictures: str, out: str, steps: int, precision: str) -> None:
    """Every method, one after another; what each process runs."""
    import warnings

    torch.set_num_threads(1)
    with warnings.catch_warnings(action="ignore"):
        for name in registry.names("methods"):
            task = f"images({pictures!r}, splits={pictures + '.json'!r})"
            multifsl.train(
                task, ENCODER, CALM.get(name, name), out=Path(out) / name, steps=steps, precision=precision, device="cpu",
                **SHAPE,
            )  # fmt: skip


def launched(pictures: Path, out: Path, *options: Any) -> None:
    """Two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; from tests.test_parallel import trained\n"
        "trained(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])"
    )
    children = []
    for rank in (0, 1):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", code, str(pictures), str(out), *map(str, options)]
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [child.communicate(timeout=900)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0], errors


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    return root


@pytest.mark.parametrize(
    ("precision", "steps", "tolerance"),
    [("float32", 1, 1e-6), pytest.param("float64", 20, 1e-9, marks=pytest.mark.slow), ("float64", 3, 1e-9)],
)
def test_two_processes_equal_one(pictures: Path, tmp_path: Path, precision: str, steps: int, tolerance: float) -> None:
    launched(pictures, tmp_path / "two", steps, precision)
    trained(str(pictures), str(tmp_path / "one"), steps, precision)
    for name in registry.names("methods"):
        one, two = (read_tensors(tmp_path / count / name / "model.safetensors")[0] for count in ("one", "two"))
        assert one.keys() == two.keys()
        far = {k: float((one[k].double() - two[k].double()).abs().max()) for k in one if one[k].numel()}
        assert max(far.values()) <= tolerance, (name, max(far, key=lambda k: far[k]), max(far.values()))


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
