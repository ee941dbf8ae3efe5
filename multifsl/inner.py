"""What an inner loop may be given to learn: its rates, and batch normalisation for each of its steps.

Shape letters: K inner steps, L adapted weights (tensors), C channels, N ways.
"""

from typing import Any

import torch
from torch import Tensor, nn

from multifsl.adaptation import AdaptationMethod, Weights


class StepRates(nn.Module):
    """A learned rate for each adapted weight tensor and each step, [K, L]; steps beyond the last take the last's (LSLR).

    Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, section 4.

    >>> StepRates({"a": 0.2, "b": 0.1}, steps=3)(7)["b"]
    tensor(0.1000, grad_fn=<UnbindBackward0>)
    """

    def __init__(self, start: dict[str, float], *, steps: int) -> None:
        super().__init__()
        self.names = list(start)
        self.rates = nn.Parameter(torch.tensor(list(start.values())).repeat(steps, 1))

    def forward(self, step: int) -> Weights:
        """The rates of a step, by name."""
        return dict(zip(self.names, self.rates[min(step, len(self.rates) - 1)].unbind(), strict=True))


class WeightRates(nn.Module):
    """A learned rate for every single weight, the same at all steps.

    Li, Zhou, Chen, Li: Meta-SGD, 2017, equation 2.
    """

    def __init__(self, weights: Weights, start: dict[str, float]) -> None:
        super().__init__()
        self.names = list(weights)
        self.rates = nn.ParameterList(torch.full_like(w, start[name]) for name, w in weights.items())

    def forward(self, method: AdaptationMethod, n_ways: int) -> Weights:
        """The rates by name, the head's cut to its n_ways rows."""
        return {
            name: method.rows(rate, n_ways) if name.startswith("head.") else rate
            for name, rate in zip(self.names, self.rates, strict=True)
        }


class StepNorms(nn.Module):
    """Gains, biases and running statistics of an encoder's batch-norm layers, one of each for each step (BNWB, BNRS).

    Antoniou, Edwards, Storkey: How to train your MAML, ICLR 2019, section 4. Step k is whatever is computed with the weights after
    k inner steps, 0..K; steps beyond take K's.
    """

    def __init__(self, norms: list[tuple[str, Any]], *, steps: int) -> None:
        super().__init__()
        self.names = [f"{name}.{kind}" for name, norm in norms for kind in _affine(norm)]
        self.values = nn.ParameterList(
            getattr(norm, kind).detach().expand(steps + 1, -1).clone() for _, norm in norms for kind in _affine(norm)
        )
        self.momenta = {flat(name): norm.momentum for name, norm in norms}
        self.running = [
            f"{name}.{kind}" for name, norm in norms for kind in _RUNNING if getattr(norm, kind) is not None
        ]
        for name, norm in norms:
            for kind in _RUNNING:
                if (buffer := getattr(norm, kind)) is not None:
                    self.register_buffer(flat(f"{name}.{kind}"), buffer.expand(steps + 1, *buffer.shape).clone())

    def forward(self, step: int) -> Weights:
        """Parameters and buffers of the layers at a step; a pass in training moves the running statistics of that step."""
        step = min(step, len(self.values[0]) - 1)
        affine = {name: value[step] for name, value in zip(self.names, self.values, strict=True)}
        return affine | {name: self.get_buffer(flat(name))[step] for name in self.running}

    @torch.no_grad()
    def copy_last(self, norms: list[tuple[str, Any]]) -> None:
        """Give the layers the last step's values, for whoever uses the encoder without adaptation."""
        of_last = {name: value[-1] for name, value in zip(self.names, self.values, strict=True)}
        of_last |= {name: self.get_buffer(flat(name))[-1] for name in self.running}
        for name, norm in norms:
            for kind in ("weight", "bias", *_RUNNING):
                if f"{name}.{kind}" in of_last:
                    getattr(norm, kind).copy_(of_last[f"{name}.{kind}"])


_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def _affine(norm: Any) -> tuple[str, ...]:
    return () if norm.weight is None else ("weight", "bias")


def flat(name: str) -> str:
    """A weight's name as one for a buffer, which may hold no dot.

    >>> flat("head.bias")
    'head__bias'
    """
    return name.replace(".", "__")


class Clock(nn.Module):
    """A number of training steps, in the state dict; reading it never waits for an accelerator.

    >>> clock = Clock()
    >>> clock.set(3)
    >>> clock.steps, clock.count
    (3, tensor(3))
    """

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_catch_up)  # type: ignore[no-untyped-call]

    def set(self, steps: int) -> None:
        self.steps = steps
        self.count.fill_(steps)


def _catch_up(clock: Any, _: Any) -> None:
    clock.steps = int(clock.count)
