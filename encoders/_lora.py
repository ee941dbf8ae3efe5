"""LoRA: a frozen network that learns through small matrices beside its linear layers.

Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen. LoRA: Low-Rank
Adaptation of Large Language Models. ICLR 2022. https://arxiv.org/abs/2106.09685

    W x  becomes  W x + B A x,    A [rank, in] random, B [out, rank] zero at first, W frozen

Where we depart from the paper: every linear layer has its pair, not the attention's query and value alone, as later work
found to matter most (Dettmers et al., QLoRA, 2023, https://arxiv.org/abs/2305.14314). Their scale, alpha / rank, is 1. A
network without linear layers, such as ResNet, has them beside its convolutions.

The pairs are made by the package peft, which is imported only here.
"""

from importlib.util import find_spec

from torch import nn

from multifsl.errors import MultifslError


def check_lora(rank: int | None) -> None:
    """Raises MultifslError where that is no rank, or there is nothing to make adapters with."""
    if rank is None:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise MultifslError(f"lora is the rank of the adapters, a whole number from 1 on, or None; not {rank!r}")
    if find_spec("peft") is None:
        raise MultifslError(f'lora={rank} needs the package peft, which is not installed: pip install "multifsl[lora]"')


def add_lora(network: nn.Module, rank: int) -> None:
    """Freeze a network and put adapters beside its linear layers; it computes what it did, until they are trained.

    Their parameters have "lora_" in their names: `trainable="lora_"` has MAML and its kin adapt them alone.

    >>> net = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    >>> add_lora(net, rank=2)
    >>> {name: list(p.shape) for name, p in net.named_parameters() if p.requires_grad}
    {'0.lora_A.default.weight': [2, 6], '0.lora_B.default.weight': [4, 2]}
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = _layers(network, nn.Linear) or _layers(network, nn.Conv2d)
    if not targets:
        raise MultifslError(f"lora={rank} has no place in a {type(network).__name__}: it has no linear layer")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)


def _layers(network: nn.Module, kind: type[nn.Module]) -> list[str]:
    """Names of the layers of exactly that kind whose weights are parameters, and not in groups."""
    return [
        name
        for name, module in network.named_modules()
        if type(module) is kind and isinstance(module.weight, nn.Parameter) and getattr(module, "groups", 1) == 1
    ]
