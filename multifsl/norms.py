"""Normalisation layers inside an inner loop.

Under torch.vmap, the gradient of a gradient through the fused `F.layer_norm` or `F.batch_norm` is silently wrong where the
layer's gain is among the weights that are differentiated (torch 2.13 and 2.14): the loss is right, the meta-gradient is not.
Gain and bias applied after the fused operation, as plain products and sums, are the cure.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.errors import MultifslError


def batch_norms(module: nn.Module) -> list[tuple[str, Any]]:
    """Names and layers of the batch normalisations in a module.

    >>> [name for name, _ in batch_norms(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))]
    ['1']
    """
    return [(name, m) for name, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


class _LayerNorm(nn.LayerNorm):
    gain_outside = True

    def forward(self, x: Tensor) -> Tensor:
        out = F.layer_norm(x, self.normalized_shape, None, None, self.eps)
        return _gained(out, self.weight, self.bias, out.shape[-len(self.normalized_shape) :])


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    gain_outside = True

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        shape = (1, -1, *[1] * (x.ndim - 2))
        use_batch = self.training or self.running_mean is None
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                raise MultifslError(
                    "batch normalisation with a cumulative average (momentum=None) cannot be vectorised"
                )
        out = F.batch_norm(x, self.running_mean, self.running_var, None, None, use_batch, momentum, self.eps)
        return _gained(out, self.weight, self.bias, shape)


class _BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    pass


class _BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    pass


def _gained(x: Tensor, gain: Tensor | None, bias: Tensor | None, shape: Any) -> Tensor:
    x = x if gain is None else x * gain.view(shape)
    return x if bias is None else x + bias.view(shape)


_FUSED = (nn.LayerNorm, nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
_CURED: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: _LayerNorm,
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
}


def apply_gains_outside(module: nn.Module) -> None:
    """Let every LayerNorm and BatchNorm in a module apply its gain and bias outside the fused operation, for good.

    The same function to rounding, with the same parameters. Raises MultifslError for kinds that have no cure here: InstanceNorm,
    and layers of one's own, unless their class has `gain_outside = True`. What calls `F.layer_norm` by itself is not found.

    >>> import torch
    >>> net = nn.Sequential(nn.LayerNorm(4))
    >>> x, before = torch.arange(4.0), net(torch.arange(4.0))
    >>> apply_gains_outside(net)
    >>> torch.allclose(net(x), before)
    True
    """
    for name, layer in module.named_modules():
        if type(layer) in _CURED:
            layer.__class__ = _CURED[type(layer)]
        elif (
            isinstance(layer, _FUSED)
            and not hasattr(layer, "gain_outside")
            and getattr(layer, "weight", None) is not None
        ):
            raise MultifslError(
                f"{name} is a {type(layer).__name__} with a gain, whose second derivative torch.vmap gets wrong: take "
                "vectorize=False, or apply the gain outside of the fused operation and say `gain_outside = True` in its class"
            )
