"""The processes that train one run together: what each does of a step, and what they agree on.

The tasks of a step are dealt to the processes in order, and each process's, with gradient accumulation, to its micro-batches.
Gradients are averaged by DistributedDataParallel. Running statistics of batch normalisation follow one task after the other
in one process; here each process begins with the same ones and sees its own tasks only, and `combine` then finds what one
process would have had, exactly. What else a method hands on goes from step to step (`Method.begin_step`). So how many processes
there are does not change what is computed, up to rounding. Random numbers (dropout, augmentation, `mann(order="shuffled")`) alone
are each process's own.

Shape letters: T tasks a step, P processes.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from multifsl.episode import EpisodeSampler, Indices
from multifsl.errors import MultifslError
from multifsl.inner import StepNorms
from multifsl.norms import batch_norms

COUNTERS = ("num_batches_tracked", "batches")  # how the names of buffers end that count what a process has seen


class Processes:
    """This process among those of a run; one alone where nothing was launched by torchrun or `accelerate launch`.

    rank, size: of this process, and how many there are. device: where it works.

    >>> Processes(torch.device("cpu")).size
    1
    """

    def __init__(self, device: torch.device) -> None:
        self.size, self.rank, self.device = int(os.environ.get("WORLD_SIZE", "1")), 0, device
        self._accelerator: Any = None
        if self.size > 1:
            from accelerate import Accelerator
            from accelerate.utils import DistributedDataParallelKwargs

            keep_own_buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
            self._accelerator = Accelerator(
                cpu=device.type == "cpu", mixed_precision="no", kwargs_handlers=[keep_own_buffers]
            )
            self.rank, self.device = self._accelerator.process_index, self._accelerator.device
        mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        if mixed != "no" and self.first:
            warnings.warn(
                f"accelerate's mixed precision, {mixed}, is not used: the precision is what `precision` says",
                stacklevel=3,
            )

    @property
    def first(self) -> bool:
        """Whether it is the one that writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model, with its gradients averaged over the processes in every backward pass."""
        return model if self._accelerator is None else self._accelerator.prepare(model)

    def without_sync(self, model: nn.Module) -> Any:
        """A context in which gradients are added up here alone."""
        return nullcontext() if self._accelerator is None else self._accelerator.no_sync(model)

    def wait(self) -> None:
        """For all of them to come here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def agree(self, seconds: float, *flags: bool) -> tuple[float, ...]:
        """The first process's seconds, and whether any process raised each flag."""
        if self._accelerator is None:
            return (seconds, *map(float, flags))
        told = torch.tensor([seconds if self.first else 0.0, *map(float, flags)], dtype=torch.float64)
        told = told.to(self.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return tuple(told.tolist())

    def mean(self, value: Tensor) -> Tensor:
        """Over the processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "mean")

    def gather_states(self) -> list[list[Tensor]]:
        """The random states of each process, the host's and its device's, in the order of their ranks."""
        own = [torch.get_rng_state()]
        if self.device.type == "cuda":
            own.append(torch.cuda.get_rng_state(self.device))
        elif self.device.type == "mps":
            own.append(torch.mps.get_rng_state())
        if self._accelerator is None:
            return [own]
        every: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(every, own)
        return every

    def set_states(self, states: list[Tensor]) -> None:
        """Put back what `gather_states` found of this process; nothing, where it had none."""
        if states:
            torch.set_rng_state(states[0])
        if len(states) > 1 and self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)
        elif len(states) > 1 and self.device.type == "mps":
            torch.mps.set_rng_state(states[1])

    # ---- what batches leave behind in a model ----

    def buffers(self, model: nn.Module) -> dict[str, Tensor]:
        """A copy of what a step may change beside the weights; empty in one process, which needs none."""
        if self._accelerator is None:
            return {}
        kept = model.state_dict().keys()
        return {name: b.detach().clone() for name, b in model.named_buffers() if name in kept}

    @torch.no_grad()
    def combine(self, model: nn.Module, before: dict[str, Tensor]) -> None:
        """Give all processes the buffers that one alone would have after all tasks of a step."""
        if not before:
            return
        now = {name: b for name, b in model.named_buffers() if name in before}
        flat = torch.cat([b.detach().double().flatten() for b in now.values()])
        rows = [torch.empty_like(flat) for _ in range(self.size)]
        torch.distributed.all_gather(rows, flat)
        found = [
            {name: piece.view(before[name].shape) for name, piece in zip(now, row.split(_sizes(now)), strict=True)}
            for row in rows
        ]
        for name, value in one_after_the_other(model, before, found).items():
            now[name].copy_(value)


def _sizes(tensors: dict[str, Tensor]) -> list[int]:
    return [t.numel() for t in tensors.values()]


def one_after_the_other(
    model: nn.Module, before: dict[str, Tensor], found: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """The buffers after all tasks in turn, where each process began with `before` and came to `found`.

    A running statistic r moves by r <- (1 - m) r + m s at each of n updates, so a process makes (1 - m)^n r + A of it, and
    A does not depend on where it began. (In `StepNorms` each inner step has an r and an n of its own.) Counters are added up.
    Any other buffer is what the last process has.

    >>> norm = nn.BatchNorm1d(1, momentum=0.5)
    >>> before = {"running_mean": torch.tensor([4.0]), "num_batches_tracked": torch.tensor(0)}
    >>> seen = [{"running_mean": torch.tensor([r]), "num_batches_tracked": torch.tensor(1)} for r in (3.0, 5.0)]
    >>> one_after_the_other(norm, before, seen)["running_mean"]  # 4 -> 3 by a mean of 2, -> 4.5 by one of 6
    tensor([4.5000], dtype=torch.float64)
    """
    # By what the names of running statistics begin with.
    momenta = {f"{name}.".lstrip("."): norm.momentum for name, norm in batch_norms(model)}
    for name, module in model.named_modules():
        if isinstance(module, StepNorms):
            momenta |= {f"{name}.{layer}__": momentum for layer, momentum in module.momenta.items()}
    after = {name: value.double() for name, value in found[-1].items()}
    for name, start in before.items():
        home = name.removesuffix("running_mean").removesuffix("running_var")
        if name.endswith(COUNTERS):
            after[name] = start + sum(row[name] - start for row in found)
        elif name != home and home in momenta:
            count, momentum = f"{home}num_batches_tracked", momenta[home]
            if momentum is None:
                raise MultifslError("batch normalisation with momentum=None cannot be trained in several processes")
            value = start.double()
            for row in found:
                keep = (1 - momentum) ** (row[count] - before[count]).double()  # [], or [K + 1] of inner steps
                value = row[name] + keep.unsqueeze(-1) * (value - start)
            after[name] = value
    return after


class Share:
    """The part of each step's tasks that one process takes, in `parts` micro-batches.

    >>> import numpy as np
    >>> sampler = EpisodeSampler(np.repeat(np.arange(6), 4), way=2, shot=1, query=1)
    >>> share = Share(sampler, tasks=4, parts=2, rank=1, size=2)
    >>> share.count, [len(share.tasks(step, 1)) for step in (0, 1)]
    (1, [1, 1])
    """

    def __init__(self, sampler: EpisodeSampler, *, tasks: int, parts: int, rank: int, size: int) -> None:
        if tasks % (parts * size):
            raise MultifslError(
                f"{tasks} episodes a step cannot be dealt evenly to {size} processes in {parts} micro-batches each; "
                f"take a multiple of {parts * size}"
            )
        self.sampler, self.all, self.parts, self.rank = sampler, tasks, parts, rank
        self.count = tasks // (parts * size)

    def tasks(self, at: int, count: int) -> list[Indices]:
        """The tasks of micro-batch `at`, counted over all steps."""
        assert count == self.count
        step, part = divmod(at, self.parts)
        start = (self.rank * self.parts + part) * count
        return list(self.sampler.tasks(step, self.all)[start : start + count])
