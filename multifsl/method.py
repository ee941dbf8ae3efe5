"""A method: how a task is learned from its support set.

A method is written for ONE task; `forward` runs it over a meta-batch. Its state is returned, never kept on the module,
so that one module serves any number of users and can be vectorised.

Shape letters: T tasks, S support items, Q queries, N ways, D embedding width, `*` the shape of one item.
"""

import math
import warnings
from inspect import signature
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs, concat, map_inputs, size
from multifsl.errors import MultifslError
from multifsl.functional import masked_cross_entropy
from multifsl.options import check_number_or_learned

State = Any  # a pytree of tensors


class Output(NamedTuple):
    """What a method says of its episodes. loss: [T]; logits: [T, Q, N], -inf where a class is absent."""

    loss: Tensor
    logits: Tensor


class Method(nn.Module):
    """Base of all methods. A subclass is one file in `multifsl/methods/`, whose name is the method's name.

    The first constructor argument is the encoder; the keywords after it are the configuration, each kept, resolved, as an
    attribute of the same name.

    max_way: the most classes that it can tell apart, None for any number; a method with a number tells its classes apart
    by their places, so that renumbering them changes its answers. transductive: whether a query's answer depends on the
    queries beside it. class_by_class: whether a class's logit depends on the query and that class's support items alone, as a score
    of verification must. sequential: whether the order of the support items matters. takes_embeddings: whether `x` in
    `adapt` and `classify` is embeddings [B, D], or what the encoder reads. family: where it stands in
    `multifsl list methods`. learns_from: what it is meta-trained on, "episodes", or "classes", where the encoder is
    trained as a plain classifier of all train classes (`multifsl.base_training`, under a head of the kind `base_head`) and
    the method comes in afterwards.
    calibration: what its run learned of how sure it may be, as `multifsl.calibration` writes it; None where there is nothing.
    wants_base: whether it wants to see embeddings of the train classes before it is used (`learn_base`); saw_base: whether it did.
    """

    max_way: int | None = None
    transductive: bool = False
    class_by_class: ClassVar[bool] = False
    sequential: bool = False
    takes_embeddings: bool = False
    family: ClassVar[Literal["metric", "memory", "optimisation", "transfer"]]
    learns_from: ClassVar[Literal["episodes", "classes"]] = "episodes"
    base_head: ClassVar[Literal["linear", "cosine"]] = "linear"
    wants_base: bool = False
    calibration: dict[str, Any] | None = None

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def __repr__(self) -> str:
        """The method and its arguments on one line; `print(method.encoder)` shows modules."""
        named = [p.name for p in list(signature(type(self)).parameters.values())[1:] if p.kind is p.KEYWORD_ONLY]
        arguments = [f"{name}={getattr(self, name)!r}" for name in named]
        return f"{type(self).__name__}({', '.join([type(self.encoder).__name__, *arguments])})"

    def __sklearn_clone__(self) -> Self:
        """scikit-learn's `clone` shares what was trained."""
        return self

    def number_or_learned(self, name: str, value: float | Literal["learned"], start: float) -> None:
        """Keep an option as `NAME`; where it is "learned", train its logarithm, `log_NAME`, from that of `start`.

        Raises MultifslError where it is neither "learned" nor a number above 0.
        """
        check_number_or_learned(name, value)
        setattr(self, name, value)
        if value == "learned":
            self.register_parameter(f"log_{name}", nn.Parameter(torch.tensor(math.log(start))))

    def number(self, name: str) -> Any:
        """What such an option now is: the number that was given, or a tensor."""
        value = getattr(self, name)
        return getattr(self, f"log_{name}").exp() if value == "learned" else value

    def warn_of_random_weights(self) -> None:
        """Warn where the method, freshly built, has weights of its own that episodes would have to train."""
        own = [p for name, p in self.named_parameters() if not name.startswith("encoder.") and p.numel() > 1]
        if own and self.learns_from == "episodes":
            warnings.warn(
                f"the weights of {type(self).__name__} beside its encoder's are random: `multifsl train` trains them, and a run "
                "(--run, or FewShotClassifier.from_run) has them",
                stacklevel=3,
            )

    def check_ways(self, n_ways: int) -> None:
        """Raises MultifslError where there are more classes than `max_way`."""
        if self.max_way is not None and n_ways > self.max_way:
            raise MultifslError(
                f"this method tells at most {self.max_way} classes apart, not {n_ways}: train with --way {n_ways}, or with "
                f"max_way={n_ways}"
            )

    def begin_step(self, step: int) -> None:
        """Take note that training step `step`, counted from 0, begins. A training loop says so before the step's micro-batches.

        What a method hands on then goes from step to step, and does not depend on the number of micro-batches and processes.
        """

    @property
    def saw_base(self) -> bool:
        return False

    def learn_base(self, z: Tensor) -> None:
        """Take note of embeddings [B, D] of the train classes, made by the encoder as it now is."""
        raise NotImplementedError

    def adapt(self, support: Batch, present: Tensor) -> State:
        """Learn one task from its support set."""
        raise NotImplementedError

    def prepared(self, state: State) -> State:
        """The state as `classify` takes it too, with those sums done that are the same for all queries."""
        return state

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

    def solve_embedded(self, episodes: Episode) -> Output:
        """Solve a meta-batch whose `x` are embeddings [T, S, D] and [T, Q, D]."""
        check_support(episodes)
        (sx, sy), (qx, qy), present, padded = episodes
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        if padded:  # padding may hold NaN, and 0 * NaN would find its way into the gradient of a method's weights
            sx, qx = (x.where((y != PADDING).unsqueeze(-1), 0.0) for x, y in ((sx, sy), (qx, qy)))
        if sy.shape[0] == 1:  # vmap costs more than it saves
            loss, logits = self._solve_leaves(sx[0], sy[0], qx[0], qy[0], present[0])
            return Output(loss[None], logits[None])
        return Output(*torch.vmap(self._solve_leaves, randomness="different")(sx, sy, qx, qy, present))

    def _solve_leaves(self, sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        out = self.solve(Episode(Batch(sx, sy), Batch(qx, qy), present))
        return out.loss, out.logits

    def encode(self, episodes: Episode) -> Episode:
        """The same episodes with embeddings [T, S, D] and [T, Q, D] in place of the items."""
        return encode(self.encoder, episodes)


class EmbeddingMethod(Method):
    """A method whose `adapt` and `classify` take *embeddings* [B, D] as `x`, ready-made or encoded here.

    Where its state can grow, `update` and `remove` equal a fresh `adapt`.
    """

    takes_embeddings = True

    def update(self, state: State, support: Batch, present: Tensor) -> State:
        """The state after more support items; `present` may have grown by new classes at its end."""
        raise NotImplementedError

    def remove(self, state: State, label: int) -> State:
        """The state without a class; the classes behind it move up by one."""
        raise NotImplementedError

    def forward(self, episodes: Episode) -> Output:
        """Encode the items, then solve every task on its embeddings."""
        return self.solve_embedded(self.encode(episodes))


class TransductiveMethod(EmbeddingMethod):
    """A method that classifies all queries of a task together; each query's answer depends on the others."""

    transductive = True

    def classify_together(self, state: State, x: Tensor, real: Tensor) -> Tensor:
        """Logits [Q, N] of queries x [Q, D]; those with real [Q] False are padding, and must not count for the others."""
        raise NotImplementedError

    def classify(self, state: State, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        return self.classify_together(state, x, torch.ones(x.shape[0], dtype=torch.bool, device=x.device))

    def solve(self, episode: Episode) -> Output:
        assert isinstance(episode.query.x, Tensor)
        state = self.adapt(episode.support, episode.present)
        logits = self.classify_together(state, episode.query.x, episode.query.y != PADDING)
        return Output(masked_cross_entropy(logits, episode.query.y), logits)


def encode(encoder: Encoder, episodes: Episode) -> Episode:
    """The same episodes with embeddings [T, S, D] and [T, Q, D] in place of the items.

    An encoder that uses batch statistics sees one task at a time, support and query together and without padding
    rows, so that neither other tasks nor padding enter the statistics; any other encoder sees all items at once.
    """
    (sx, sy), (qx, qy), present, padded = episodes
    tasks, n_support = sy.shape
    x = concat([sx, qx], dim=1)  # [T, S + Q, *]
    if not encoder.uses_batch_statistics:
        z: Tensor = encoder(map_inputs(lambda leaf: leaf.flatten(0, 1), x)).unflatten(0, (tasks, -1))
    else:
        keep = torch.cat([sy, qy], 1) != PADDING
        z = torch.stack([_encode_task(encoder, row(x, t), keep[t] if padded else None) for t in range(tasks)])
    return Episode(Batch(z[:, :n_support], sy), Batch(z[:, n_support:], qy), present, padded)


def _encode_task(encoder: Encoder, x: Inputs, keep: Tensor | None) -> Tensor:
    """Embeddings [B, D] of one task; with `keep`, zeros for the rows that are not kept."""
    if keep is None:
        return encoder(x)  # type: ignore[no-any-return]
    z = encoder(map_inputs(lambda leaf: leaf[keep], x))
    return z.new_zeros(size(x), z.shape[1]).index_put((keep.nonzero().squeeze(1),), z)  # type: ignore[no-any-return]


def check_support(episodes: Episode) -> None:
    """Raises MultifslError where a class that takes part has no support item.

    Looked at where that is free, on the CPU; on an accelerator it would be a host sync.
    """
    y, present = episodes.support.y, episodes.present
    if y.device.type != "cpu" or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    counts = torch.zeros(present.shape[0], present.shape[1] + 1, dtype=torch.int64)
    counts.scatter_add_(1, y.clamp(min=-1) + 1, torch.ones_like(y))  # column 0: padding
    if bool((present & (counts[:, 1:] == 0)).any()):
        task, label = (present & (counts[:, 1:] == 0)).nonzero()[0].tolist()
        raise MultifslError(
            f"class {label} of task {task} takes part but has no support item: give it one, or set its `present` to False"
        )


def row(x: Inputs, t: int) -> Inputs:
    """Task t of inputs with a leading axis T."""
    return map_inputs(lambda leaf: leaf[t], x)
