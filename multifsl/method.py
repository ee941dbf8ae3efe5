"""A method: how a task is learned from its support set.

A method is written for ONE task; `forward` runs it over a meta-batch. Its state is returned, never kept on the module,
so that one module serves any number of users and can be vectorised.

Shape letters: T tasks, S support items, Q queries, N ways, D embedding width, `*` the shape of one item.
"""

from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs, concat, map_inputs, size
from multifsl.functional import masked_cross_entropy

State = Any  # a pytree of tensors


class Output(NamedTuple):
    """What a method says of its episodes. loss: [T]; logits: [T, Q, N], -inf where a class is absent."""

    loss: Tensor
    logits: Tensor


class Method(nn.Module):
    """Base of all methods. A subclass is one file in `multifsl/methods/`, whose name is the method's name.

    The first constructor argument is the encoder; the keywords after it are the configuration, each kept, resolved, as an
    attribute of the same name.

    max_way: the most classes that it can tell apart, None for any number. transductive: whether a query's answer depends
    on the queries beside it. family: where it stands in `multifsl list methods`.
    """

    max_way: int | None = None
    transductive: bool = False
    family: ClassVar[Literal["metric", "memory", "optimisation", "transfer"]]

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def __sklearn_clone__(self) -> Self:
        """scikit-learn's `clone` shares what was trained."""
        return self

    def adapt(self, support: Batch, present: Tensor) -> State:
        """Learn one task from its support set."""
        raise NotImplementedError

    def classify(self, state: State, x: Inputs) -> Tensor:
        """Logits [Q, N] of queries, -inf where a class is absent."""
        raise NotImplementedError

    def solve(self, episode: Episode) -> Output:
        """One task, no leading axis: loss (a scalar) and logits [Q, N]."""
        state = self.adapt(episode.support, episode.present)
        logits = self.classify(state, episode.query.x)
        return Output(masked_cross_entropy(logits, episode.query.y), logits)

    def forward(self, episodes: Episode) -> Output:
        """A meta-batch, with a leading axis T on every leaf."""
        raise NotImplementedError


class EmbeddingMethod(Method):
    """A method whose `adapt` and `classify` take *embeddings* [B, D] as `x`, ready-made or encoded here.

    Where its state can grow, `update` and `remove` equal a fresh `adapt`.
    """

    def update(self, state: State, support: Batch, present: Tensor) -> State:
        """The state after more support items; `present` may have grown by new classes at its end."""
        raise NotImplementedError

    def remove(self, state: State, label: int) -> State:
        """The state without a class; the classes behind it move up by one."""
        raise NotImplementedError

    def forward(self, episodes: Episode) -> Output:
        """Encode the items, then solve every task on its embeddings."""
        return self.solve_embedded(self.encode(episodes))

    def solve_embedded(self, episodes: Episode) -> Output:
        """Solve a meta-batch whose `x` are embeddings [T, S, D] and [T, Q, D]."""
        (sx, sy), (qx, qy), present, _ = episodes
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        if sy.shape[0] == 1:  # vmap costs more than it saves
            loss, logits = self._solve_leaves(sx[0], sy[0], qx[0], qy[0], present[0])
            return Output(loss[None], logits[None])
        return Output(*torch.vmap(self._solve_leaves, randomness="different")(sx, sy, qx, qy, present))

    def _solve_leaves(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        out = self.solve(Episode(Batch(sx, sy), Batch(qx, qy), present))
        return out.loss, out.logits

    def encode(self, episodes: Episode) -> Episode:
        """The same episodes with embeddings [T, S, D] and [T, Q, D] in place of the items.

        An encoder that uses batch statistics sees one task at a time, support and query together and without padding
        rows, so that neither other tasks nor padding enter the statistics; any other encoder sees all items at once.
        """
        (sx, sy), (qx, qy), present, padded = episodes
        tasks, n_support = sy.shape
        x = concat([sx, qx], dim=1)  # [T, S + Q, *]
        if not self.encoder.uses_batch_statistics:
            z: Tensor = self.encoder(map_inputs(lambda leaf: leaf.flatten(0, 1), x)).unflatten(0, (tasks, -1))
        else:
            keep = torch.cat([sy, qy], 1) != PADDING
            z = torch.stack([self._encode_task(_row(x, t), keep[t] if padded else None) for t in range(tasks)])
        return Episode(Batch(z[:, :n_support], sy), Batch(z[:, n_support:], qy), present, padded)

    def _encode_task(self, x: Inputs, keep: Tensor | None) -> Tensor:
        """Embeddings [B, D] of one task; with `keep`, zeros for the rows that are not kept."""
        if keep is None:
            return self.encoder(x)  # type: ignore[no-any-return]
        z = self.encoder(map_inputs(lambda leaf: leaf[keep], x))
        return z.new_zeros(size(x), z.shape[1]).index_put((keep.nonzero().squeeze(1),), z)  # type: ignore[no-any-return]


def _row(x: Inputs, t: int) -> Inputs:
    return map_inputs(lambda leaf: leaf[t], x)
