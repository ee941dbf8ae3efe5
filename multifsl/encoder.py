"""An encoder: from files, arrays or texts to embeddings.

Shape letters: B items, D embedding width, `*` the shape of one item.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from multifsl.episode import Inputs, first_leaf, lengths, map_inputs, size, trim
from multifsl.windows import Windows

_downloads: ContextVar[bool] = ContextVar("downloads", default=True)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Within it, encoders are built from what is on this machine alone."""
    token = _downloads.set(False)
    try:
        yield
    finally:
        _downloads.reset(token)


def downloads_allowed() -> bool:
    return _downloads.get()


class Encoder(nn.Module):
    """Base of all encoders. A subclass is one file in `encoders/`, whose name is the encoder's name.

    Constructor keywords are the configuration, each kept, resolved, as an attribute of the same name.
    `pretrained` says that it begins with weights that someone else published; a task's hints are not for it. `published` is True
    while they still are those of the encoder's arguments, so that a saved model or run needs to name them only. `run` is the run
    that its weights were taken from, where they were.
    """

    modality: ClassVar[str]
    dim: int
    pretrained: bool = False
    run: str | None = None
    published: bool = False

    def load(self, item: Any) -> Any:
        """Read and decode one item. Raises BadItem, which names it, where it cannot be used."""
        raise NotImplementedError

    def windows(self, item: Any) -> Windows:
        """The pieces of an item that a classifier embeds and takes the mean of: the whole item, unless an encoder knows better."""
        return Windows([self.load(item)])

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        """Loaded items as one padded batch, compact (uint8 images, int16 audio, token ids), on the CPU."""
        raise NotImplementedError

    def preprocess(self, items: Sequence[Any]) -> Inputs:
        """Files, arrays, PIL images or texts -> one padded batch."""
        return self.collate([self.load(item) for item in items])

    def forward(self, x: Inputs) -> Tensor:
        """Inputs [B, *] -> embeddings [B, D], raw: normalising is the method's choice."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        for tensor in [*self.parameters(), *self.buffers()]:
            return tensor.device
        return torch.device("cpu")

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether an item's embedding depends, now, on the items beside it: such a batch is one task, no more."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.modules())

    @torch.no_grad()
    def embed(self, x: Inputs, batch_size: int = 64) -> Tensor:
        """Embeddings [B, D] of a prepared batch of any size, in evaluation mode; similar lengths are run together."""
        was_training = self.training
        self.eval()
        try:
            count, valid = size(x), lengths(x)
            order = torch.arange(count) if valid is None else torch.argsort(valid.cpu(), descending=True, stable=True)
            longest = None if valid is None else valid.cpu()[order].tolist()
            out: Tensor | None = None
            for start in range(0, count, batch_size):
                rows = order[start : start + batch_size]
                block = map_inputs(lambda leaf, rows=rows: leaf[rows.to(leaf.device)], x)  # type: ignore[misc]
                if longest is not None:
                    block = trim(block, longest[start])
                z = self(map_inputs(lambda leaf: leaf.to(self.device), block))
                if out is None:
                    out = z.new_empty(count, z.shape[1])
                out[rows.to(out.device)] = z
            return first_leaf(x).new_zeros(0, self.dim, dtype=torch.float32) if out is None else out
        finally:
            self.train(was_training)

    def __sklearn_clone__(self) -> Self:
        """scikit-learn's `clone` shares the encoder instead of copying a network for every fold."""
        return self


class Features(Encoder):
    """Embeddings that come ready-made: arrays [B, D] pass through."""

    modality = "features"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def load(self, item: Any) -> Tensor:
        return torch.as_tensor(item)

    def collate(self, loaded: Sequence[Any]) -> Inputs:
        return torch.stack(list(loaded))

    def forward(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return x
