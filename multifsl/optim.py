"""How weights are moved: the optimiser, its learning rate over a run, and the average of the weights that it leaves behind.

Everything here is a function of how far a run is, from 0 to 1, so that a run given in minutes has the same shape as one in steps.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]
MOMENTUM = 0.9  # of SGD, with Nesterov's correction


def optimizer_of(kind: Optimizer, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """An optimiser, by name, of the parameters that a model trains.

    kind: "adam"; "adamw", whose decay is apart from the gradient (Loshchilov and Hutter 2019); "sgd", with momentum 0.9.
    Layers' matrices and kernels are decayed. Vectors (biases, gains) and learned numbers (rates, gains of each step), of whatever
    shape, are not: a tensor to be decayed has two axes or more and is named `weight...`, as in torch's layers.

    >>> [group["weight_decay"] for group in optimizer_of("adamw", nn.Linear(2, 2), 0.1, 0.01).param_groups]
    [0.01, 0.0]
    """
    decayed: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decayed[p.ndim > 1 and name.rpartition(".")[2].startswith("weight")].append(p)
    groups = [
        {"params": decayed[True], "weight_decay": weight_decay},
        {"params": decayed[False], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM, nesterov=True)
    return (torch.optim.AdamW if kind == "adamw" else torch.optim.Adam)(groups, lr=lr)


def learning_rate(schedule: Schedule, warmup: float, done: float) -> float:
    """What the learning rate is multiplied by when the share `done` of a run is behind.

    It rises along a line during the share `warmup`. Over the rest: "cosine" falls to 0 along half a cosine; "step" is halved
    at every tenth; "constant" stays.

    >>> [round(learning_rate("cosine", 0.2, done), 3) for done in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    >>> [learning_rate("step", 0.0, done) for done in (0.0, 0.09, 0.1, 0.35, 1.0)]
    [1.0, 1.0, 0.5, 0.125, 0.001953125]
    """
    if done < warmup:
        return done / warmup
    left = (done - warmup) / (1 - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * left))
    return 0.5 ** min(9, math.floor(10 * left + 1e-9)) if schedule == "step" else 1.0


class Average:
    """An exponential moving average of a module's parameters and of its other numbers (running statistics).

    After step n it keeps min(decay, (1 + n) / (10 + n)) of itself: at the start it forgets fast, else it would be the
    random weights for a thousand steps.

    >>> layer = nn.Linear(1, 1)
    >>> average = Average(layer, 0.9)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> for step in range(200):
    ...     average.update(layer, step)
    >>> average.tensors["weight"].round(decimals=3)
    tensor([[1.]])
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            mine: Tensor = self.tensors[name]
            if mine.is_floating_point():
                mine.lerp_(value, 1 - keep)
            else:
                mine.copy_(value)

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up another average of the same names. Raises KeyError where one is missing."""
        for name, mine in self.tensors.items():
            mine.copy_(tensors[name])

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Within it, the module has the averaged numbers; afterwards its own again."""
        own = {k: v.detach().clone() for k, v in module.state_dict().items()}
        module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            module.load_state_dict(own)
