"""What the optimiser decays. Oracle: which module holds a parameter, where the optimiser goes by its name and its axes."""

import pytest
import torch
from torch import nn

from multifsl.inner import StepNorms, StepRates, WeightRates
from multifsl.optim import optimizer_of
from multifsl.registry import build

CONV = "conv4(width=4, channels=1, image_size=16)"
LEARNED = (StepRates, WeightRates, StepNorms)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.LSTM, nn.LSTMCell, nn.Embedding)
METHODS = (
    "maml(batch_norm='per_step', learn_lr='step')",
    "meta_sgd",
    "meta_lstm",
    "reptile",
    "feat",
    "mann",
    "caml",
    "relation",
    "ridge",
    "siamese(loss='koch')",
    "prototypical",
)


def decays(model: nn.Module) -> dict[str, float]:
    """The weight decay of each parameter that an optimiser moves."""
    groups = optimizer_of("adamw", model, 0.1, 0.01).param_groups
    found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


@pytest.mark.parametrize(("encoder", "method"), [(CONV, method) for method in METHODS] + [("ecapa", "prototypical")])
def test_matrices_and_kernels_of_layers_are_decayed_and_nothing_else(encoder: str, method: str) -> None:
    model = build("methods", method, encoder=build("encoders", encoder), way=5)
    found, seen = decays(model), 0
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for owner_name, owner in model.named_modules():
        for name, p in owner.named_parameters(prefix=owner_name, recurse=False):
            if p.requires_grad:
                expected = isinstance(owner, LAYERS) and p.ndim > 1
                assert found[name] == (0.01 if expected else 0.0), name
                seen += 1
    assert seen == len(found)


def test_learned_rates_and_gains_of_each_step_are_left_alone() -> None:
    """By hand: without a gradient a step of AdamW moves what is decayed, by lr * decay of it, and nothing else."""
    for spec, count in (("maml(batch_norm='per_step', learn_lr='step')", 1 + 8), ("meta_sgd", 2 + 4 * 4)):
        model = build("methods", spec, encoder=build("encoders", CONV), way=5)
        learned = [p for part in model.modules() if isinstance(part, LEARNED) for p in part.parameters()]
        assert len(learned) == count
        before = [p.detach().clone() for p in learned]
        kernel = model.encoder.convs[0].weight
        start = kernel.detach().clone()
        mover = optimizer_of("adamw", model, 0.1, 0.5)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        mover.step()
        assert all(torch.equal(p, old) for p, old in zip(learned, before, strict=True))
        torch.testing.assert_close(kernel, start * (1 - 0.1 * 0.5))


def test_what_is_frozen_is_not_moved() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    assert decays(model) == {"1.weight": 0.01, "1.bias": 0.0}
