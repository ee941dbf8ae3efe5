"""LoRA: a frozen network that learns through small matrices beside its linear layers.

Edward J. Hu, Yelong Shen, Phillip Wallis, Zeyuan Allen-Zhu, Yuanzhi Li, Shean Wang, Lu Wang, Weizhu Chen. LoRA: Low-Rank
Adaptation of Large Language Models. ICLR 2022. https://arxiv.org/abs/2106.09685

    W x  becomes  W x + B A x,    A [rank, in] random, B [out, rank] zero at first, W frozen

Where we depart from the paper: every linear layer has its pair, not the attention's query and value alone, as later work
found to matter most (Dettmers et al., QLoRA, 2023, https://arxiv.org/abs/2305.14314). Their scale, alpha / rank, is 1.

The pairs are made by the package peft, which is imported only here.
"""

from importlib.util import find_spec

import torch
from torch import nn

from multifsl.encoders._models import make_constant
from multifsl.errors import MultifslError
from multifsl.functional import digest

BASE = "lora_base"  # the name of the digest among a network's buffers


def check_lora(rank: int | None) -> None:
    """Raises MultifslError where that is no rank, or there is nothing to make adapters with."""
    if rank is None:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise MultifslError(f"lora is the rank of the adapters, a whole number from 1 on, or None; not {rank!r}")
    if find_spec("peft") is None:
        raise MultifslError(f'lora={rank} needs the package peft, which is not installed: pip install "multifsl[lora]"')


def add_lora(network: nn.Module, rank: int) -> None:
    """Put adapters beside a network's linear layers; it computes what it did, until they are trained.

    All else becomes constants, neither trained, adapted nor saved; `lora_base`, a digest of them that is saved, tells whether
    the published weights that are found later are those that the adapters were trained beside.

    >>> net = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
    >>> add_lora(net, rank=2)
    >>> {name: list(t.shape) for name, t in net.state_dict().items()}
    {'lora_base': [16], '0.lora_A.default.weight': [2, 6], '0.lora_B.default.weight': [4, 2]}
    """
    from peft import LoraConfig, inject_adapter_in_model

    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise MultifslError(
            f"lora={rank} is not for a {type(network).__name__}: training would move its batch normalisation's statistics"
        )
    base = digest(network.state_dict())
    targets = [name for name, module in network.named_modules() if type(module) is nn.Linear and _is_learned(module)]
    if not targets:
        raise MultifslError(f"lora={rank} has no place in a {type(network).__name__}: it has no linear layer")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    make_constant(network, lambda parameter: not parameter.requires_grad)
    network.register_buffer(BASE, torch.tensor(list(bytes.fromhex(base)), dtype=torch.uint8))


def _is_learned(layer: nn.Linear) -> bool:
    return isinstance(layer.weight, nn.Parameter)  # else it was made constant, since no embedding depends on it
