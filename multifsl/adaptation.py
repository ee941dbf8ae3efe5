"""Adaptation: methods that learn a task by changing weights, on an encoder under a linear head.

A subclass writes the inner loop of ONE task, from first weights to adapted ones; what surrounds it stands here: which
weights are adapted, the head, batch normalisation inside a task, and the gradient of a meta-batch.

**The gradient.** In training each task is solved and differentiated on its own, inside `forward`, and the loss that comes out
carries the finished gradient: memory holds the graph of one task, however many there are. Within it, the queries' pass is an
ordinary first-order one, and one vector-Jacobian product leads back through the inner loop: exact.

**Batch normalisation.** The inner loop normalises by the statistics of the support set. In training the queries are normalised
by their own. At evaluation `batch_norm` decides: "support", by the statistics of the support set under the adapted weights
(inductive), or "query", by their own (transductive, as many published numbers are).

**Threads.** While it runs, a method puts weights in the place of its encoder's, and layers into another mode: nothing else may use
these modules meanwhile. A classifier gives each pass modules of its own (`multifsl.learned`).

Shape letters: T tasks, S support items, Q queries, N ways, D embedding width, `*` the shape of one item.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs, first_leaf, map_inputs
from multifsl.errors import MultifslError
from multifsl.functional import full_precision, mask_absent, masked_cross_entropy, without_autocast
from multifsl.method import Method, Output, check_support, row
from multifsl.norms import apply_gains_outside, batch_norms
from multifsl.options import check_choice, check_counts, check_flags

Weights = dict[str, Tensor]


class Adapted(NamedTuple):
    """weights: those that were adapted, by parameter name. statistics: of the batch-norm layers, by buffer name, where the
    queries are to be normalised by them. present: bool [N]."""

    weights: Weights
    statistics: Weights
    present: Tensor


class AdaptationMethod(Method):
    """Base of the methods that adapt weights. A subclass writes `inner_loop`, and passes on the options that it offers.

    Args:
        trainable: what is adapted beside the head: "head", nothing; "last", the encoder's last block and what follows it;
            "all"; or a regular expression that is searched for in the encoder's parameter names (see `last_block`).
        max_way: outputs of a fixed head; 5 where neither this nor a run says otherwise.
        head: "fixed", a learned row for each of max_way places, as in the papers; or "shared", one row that every class
            starts from, for any number of classes, in any order (Ye and Chao, ICLR 2022). Equal rows cancel out in the softmax:
            where weights move by their gradients, neither the row nor, in the first step, the encoder gets any.
        batch_norm: how queries are normalised at evaluation, "support" or "query"; see the page's top.
        vectorize: run the tasks of a meta-batch together, by torch.vmap, where the encoder is adapted. Pays on accelerators
            with small networks; on a CPU the loop over tasks is faster for convolutions. (Heads are always run together.)
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        trainable: str = "all",
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        batch_norm: Literal["support", "query"] = "support",
        vectorize: bool = False,
    ) -> None:
        super().__init__(encoder)
        check_choice("head", head, ("fixed", "shared"))
        check_choice("batch_norm", batch_norm, ("support", "query"))
        check_flags(vectorize=vectorize)
        check_counts(max_way=1 if max_way is None else max_way)
        self.trainable, self.vectorize = trainable, vectorize
        self.batch_norm: str = batch_norm
        self.max_way = None if head == "shared" else 5 if max_way is None else max_way
        self.head: str = head
        self.linear = nn.Linear(encoder.dim, 1 if self.max_way is None else self.max_way)
        if head == "shared":
            nn.init.zeros_(self.linear.weight)
        self.adapted = chosen_parameters(encoder, trainable)
        self.takes_embeddings = not self.adapted
        self.norms = [] if self.takes_embeddings else batch_norms(encoder)
        if batch_norm == "query" and trainable == "head" and batch_norms(encoder):
            raise MultifslError(
                "batch_norm='query' has no part where trainable='head': embeddings are made by the encoder's running statistics"
            )
        self.inner_batch_statistics = True  # else at evaluation the inner loop takes those that the layers hold
        self.transductive = bool(self.norms) and batch_norm == "query"
        if vectorize:
            apply_gains_outside(encoder)

    # ---- what a subclass writes, and what it builds on ----

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        """The adapted weights of one task, from `self.initial(N)`; no row of the support set is padding or NaN."""
        raise NotImplementedError

    def serve(self, support: Batch, present: Tensor) -> Weights:
        """`inner_loop` where nobody asks for the gradient of what it returns; to be overridden where that saves something."""
        return self.inner_loop(support, present)

    def initial(self, n_ways: int) -> Weights:
        """The weights that adaptation starts from, by name: the head's, of n_ways rows, and the encoder's adapted ones."""
        own = dict(self.encoder.named_parameters())
        head = {"head.weight": self.rows(self.linear.weight, n_ways), "head.bias": self.rows(self.linear.bias, n_ways)}
        return head | {f"encoder.{name}": own[name] for name in self.adapted}

    def rows(self, value: Tensor, n_ways: int) -> Tensor:
        """The rows of n_ways classes of something that the head has for each of its outputs."""
        if self.max_way is None:
            return value.expand(n_ways, *value.shape[1:])
        if n_ways > self.max_way:
            raise MultifslError(
                f"this head tells at most {self.max_way} classes apart, not {n_ways}: train with --way {n_ways} and no smaller "
                "max_way, or with head='shared'"
            )
        return value[:n_ways]

    def logits(self, weights: Weights, x: Inputs, *, layers: Weights | None = None) -> Tensor:
        """Logits [B, N] of items, or of embeddings where the encoder is not adapted, under some weights.

        layers: further parameters and buffers of the encoder. Without, batch-norm layers that use batch statistics note
        them nowhere.
        """
        z = self.embeddings(weights, x, layers=layers)
        with without_autocast(z):
            return F.linear(z, weights["head.weight"], weights["head.bias"])

    def embeddings(self, weights: Weights, x: Inputs, *, layers: Weights | None = None) -> Tensor:
        """Embeddings [B, D] of items under some weights, in float32 or better."""
        if self.takes_embeddings:
            assert isinstance(x, Tensor)
            return full_precision(x)
        own = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
        layers = self.blank_statistics(x) if layers is None else layers
        return full_precision(functional_call(self.encoder, self.constants() | own | layers, (x,)))

    def constants(self) -> Weights:
        """Parameters of the encoder that take part without a gradient, which saves their share of every pass."""
        return {}

    def loss(self, weights: Weights, support: Batch, present: Tensor, *, layers: Weights | None = None) -> Tensor:
        """Mean cross-entropy of a batch under some weights."""
        logits = self.logits(weights, support.x, layers=layers)
        return masked_cross_entropy(mask_absent(logits, present), support.y)

    def blank_statistics(self, x: Inputs) -> Weights:
        """Buffers of 0 for the batch-norm layers, for a pass to write to; under vmap, each task's own."""
        like = first_leaf(x)
        found = {}
        for name, norm in self.norms:
            for kind in ("running_mean", "running_var", "num_batches_tracked"):
                buffer = getattr(norm, kind)
                if buffer is not None:
                    found[f"{name}.{kind}"] = like.new_zeros(buffer.shape, dtype=buffer.dtype)
        return found

    # ---- one task ----

    def adapt(self, support: Batch, present: Tensor) -> Adapted:
        self._check(support, present)
        wants_gradient = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with self.adapting(support.x):
            support, present = self.usable(support), _normal(present)
            if wants_gradient:
                weights = self.inner_loop(support, present)
            else:
                weights = {k: v.detach() for k, v in self.serve(support, present).items()}
            return Adapted(weights, self._statistics(weights, support.x), present)

    def classify(self, state: Adapted, x: Inputs) -> Tensor:
        by_query = self.training or self.batch_norm == "query"
        with batch_statistics(self.norms if by_query else []):
            layers = None if by_query else state.statistics
            return mask_absent(self.logits(state.weights, x, layers=layers), state.present)

    def solve(self, episode: Episode) -> Output:
        return self._solve(episode)[0]

    def _solve(self, episode: Episode) -> tuple[Output, Weights]:
        if self.training:
            self._check(episode.support, episode.present)
            return self.learn(episode)
        state = self.adapt(episode.support, episode.present)
        query = self.usable(episode.query)
        logits = self.classify(state, query.x)
        return Output(masked_cross_entropy(logits, query.y), logits), {}

    def learn(self, episode: Episode) -> tuple[Output, Weights]:
        """In training: loss and logits of the queries after the inner loop, and the batch statistics of the queries."""
        state = self.adapt(episode.support, episode.present)
        loss, logits, noted = self.query_loss(state.weights, episode.query, episode.present)
        return Output(loss, logits), noted

    def query_loss(
        self, weights: Weights, query: Batch, present: Tensor, *, layers: Weights | None = None
    ) -> tuple[Tensor, Tensor, Weights]:
        """In training: loss, logits [Q, N], and the batch statistics that were noted, where `layers` did not take them."""
        x, y = self.usable(query)
        noted = self.blank_statistics(x) if layers is None else {}
        logits = mask_absent(self.logits(weights, x, layers=noted if layers is None else layers), present)
        return masked_cross_entropy(logits, y), logits, noted

    def usable(self, batch: Batch) -> Batch:
        """A batch that an inner loop may use: made under inference_mode or not; padding rows of embeddings [B, D] as 0."""
        x, y = batch
        x, y = map_inputs(_normal, x), _normal(y)
        if self.takes_embeddings:
            assert isinstance(x, Tensor)
            x = full_precision(x).where((y != PADDING).unsqueeze(1), 0.0)
        return Batch(x, y)

    def _statistics(self, weights: Weights, x: Inputs) -> Weights:
        """The support set's statistics under the adapted weights, where the queries are to be normalised by them."""
        if self.training or self.batch_norm != "support" or not self.norms:
            return {}
        noted = self.blank_statistics(x)
        with torch.no_grad():
            self.logits(weights, x, layers=noted)
        for name, norm in self.norms:  # begun at 0, a buffer now holds momentum * statistic
            for kind in ("running_mean", "running_var"):
                if f"{name}.{kind}" in noted and norm.momentum is not None:
                    noted[f"{name}.{kind}"] = noted[f"{name}.{kind}"] / norm.momentum
        return noted

    def _check(self, support: Batch, present: Tensor) -> None:
        self.rows(self.linear.weight, present.shape[0])  # says what is wrong with the number of ways
        if self.norms and support.y.shape[0] < 2:
            raise MultifslError(
                "batch normalisation inside a task needs a support set of at least 2 items; 1 came: "
                "give more, or take an encoder without it (norm='group')"
            )

    @contextmanager
    def adapting(self, x: Inputs) -> Iterator[None]:
        """Gradients on, whatever surrounds it; full precision; batch statistics; attention that can be differentiated twice."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(without_autocast(first_leaf(x)))
            stack.enter_context(batch_statistics(self.norms if self.inner_batch_statistics else []))
            if not self.takes_embeddings:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    # ---- a meta-batch ----

    def forward(self, episodes: Episode) -> Output:
        if self.takes_embeddings:
            return self.solve_embedded(self.encode(episodes))
        if torch.is_inference_mode_enabled():
            return self._outside_inference_mode(self.forward, episodes)
        check_support(episodes)
        if self.vectorize and not episodes.padded and episodes.present.shape[0] > 1:
            return self._solve_together(episodes)
        return self._in_turn(lambda t: self._solve_one(episodes, t), episodes.present.shape[0])

    def _in_turn(self, solve: Callable[[int], tuple[Output, Weights]], tasks: int) -> Output:
        """Task after task, each noting what it leaves behind before the next begins."""
        outputs = []
        for t in range(tasks):
            output, noted = solve(t)
            self._note(noted)
            outputs.append(output)
        return Output(torch.stack([o.loss for o in outputs]), torch.stack([o.logits for o in outputs]))

    def solve_embedded(self, episodes: Episode) -> Output:
        if torch.is_inference_mode_enabled():
            return self._outside_inference_mode(self.solve_embedded, episodes)
        return super().solve_embedded(episodes)

    def _outside_inference_mode(self, function: Callable[[Episode], Output], episodes: Episode) -> Output:
        """The inner loop needs gradients, which tensors made under inference_mode cannot have."""
        with torch.inference_mode(False), torch.no_grad():
            (sx, sy), (qx, qy), present, padded = episodes
            sx, qx = map_inputs(torch.clone, sx), map_inputs(torch.clone, qx)
            return function(Episode(Batch(sx, sy.clone()), Batch(qx, qy.clone()), present.clone(), padded))

    def _solve_one(self, episodes: Episode, t: int) -> tuple[Output, Weights]:
        """Task t, with its gradient already in its loss."""
        (sx, sy), (qx, qy), present, padded = episodes
        support, query = Batch(row(sx, t), sy[t]), Batch(row(qx, t), qy[t])
        if padded:  # padding rows must not enter batch statistics
            kept, (support, query) = qy[t] != PADDING, (without_padding(support), without_padding(query))
        parameters = [p for p in self.parameters() if p.requires_grad]
        output, noted = self._solve(Episode(support, query, present[t], False))
        loss, logits = output
        if torch.is_grad_enabled() and loss.requires_grad:
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            torch.clear_autocast_cache()  # it would keep casts of weights whose graph is gone
            loss, logits = known_gradient(loss, parameters, gradients), logits.detach()
        if padded:
            logits = logits.new_zeros(qy.shape[1], logits.shape[1]).index_put((kept.nonzero().squeeze(1),), logits)
        return Output(loss, logits), noted

    def _solve_together(self, episodes: Episode) -> Output:
        (sx, sy), (qx, qy), present, _ = episodes

        def one(sx: Inputs, sy: Tensor, qx: Inputs, qy: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Weights]:
            (loss, logits), noted = self._solve(Episode(Batch(sx, sy), Batch(qx, qy), present, False))
            return loss, logits, noted

        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no batching rule
            loss, logits, noted = torch.vmap(one, randomness="different")(sx, sy, qx, qy, present)
        for t in range(present.shape[0]):
            self._note({k: v[t] for k, v in noted.items()})
        return Output(loss, logits)

    @torch.no_grad()
    def _note(self, noted: Weights) -> None:
        """Move the encoder's running statistics by a task's, so that they are there for whoever uses it without adaptation."""
        for name, norm in self.norms if noted else ():
            if norm.running_mean is None or norm.running_var is None:
                continue
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
            # What is noted is momentum * statistic, or the statistic, of which None wants the average over all tasks.
            share = 1.0 if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            keep = 1 - (share if norm.momentum is None else norm.momentum)
            norm.running_mean.mul_(keep).add_(noted[f"{name}.running_mean"], alpha=share)
            norm.running_var.mul_(keep).add_(noted[f"{name}.running_var"], alpha=share)


class TransferAdaptation(AdaptationMethod):
    """Base of the adaptation methods that meta-learn nothing: a trained encoder, and a head that comes from the support set.

    The encoder works as in evaluation mode, whatever mode it is in: batch normalisation keeps the statistics that it was
    trained with, and dropout is off, so that the same support set gives the same answer. Nor does training change the
    method's own answers; what trains the encoder is `multifsl.base_training`.
    """

    learns_from = "classes"

    def __init__(self, encoder: Encoder, *, trainable: str = "all", vectorize: bool = False) -> None:
        super().__init__(encoder, trainable=trainable, head="shared", vectorize=vectorize)
        self.linear.requires_grad_(False)  # stands unused: the head comes from the support set
        self.norms = []  # none that would take a task's statistics

    def constants(self) -> Weights:
        return {name: p.detach() for name, p in self.encoder.named_parameters() if name not in self.adapted}

    def encode(self, episodes: Episode) -> Episode:
        with evaluating(self.encoder):
            return super().encode(episodes)

    def adapt(self, support: Batch, present: Tensor) -> Adapted:
        with evaluating(self.encoder):
            return super().adapt(support, present)

    def classify(self, state: Adapted, x: Inputs) -> Tensor:
        with evaluating(self.encoder):
            return mask_absent(self.logits(state.weights, x), state.present)

    def learn(self, episode: Episode) -> tuple[Output, Weights]:
        state = self.adapt(episode.support, episode.present)
        x, y = self.usable(episode.query)
        logits = self.classify(state, x)
        return Output(masked_cross_entropy(logits, y), logits), {}


# ---- which weights ----


def chosen_parameters(encoder: Encoder, trainable: str) -> list[str]:
    """Names of the encoder's parameters that `trainable` stands for, in order.

    >>> from multifsl.registry import build
    >>> chosen_parameters(build("encoders", "conv4"), r"norms\\.0")
    ['norms.0.weight', 'norms.0.bias']
    """
    names = [name for name, _ in encoder.named_parameters()]
    if not isinstance(trainable, str):
        raise MultifslError(
            f"trainable must be 'head', 'last', 'all' or a regular expression of parameter names, not {trainable!r}"
        )
    if trainable == "all":
        return names
    if trainable == "head":
        return []
    if trainable == "last":
        return last_block(encoder)
    try:
        found = [name for name in names if re.search(trainable, name)]
    except re.error:
        raise MultifslError(
            f"trainable must be 'head', 'last', 'all' or a regular expression of parameter names, not {trainable!r}"
        ) from None
    if names and not found:
        raise MultifslError(
            f"trainable={trainable!r} fits none of the encoder's {len(names)} parameters, such as {', '.join(names[:4])}"
        )
    return found


def last_block(encoder: Encoder) -> list[str]:
    """Parameters of the encoder's last block and of what comes after it.

    Blocks are the entries of the last of the outermost ModuleLists and Sequentials, together with those of lists of the same
    length beside it (convolutions and their norms); what stands behind them counts too. Without such a list, it is the last
    layer that has parameters.

    >>> from multifsl.registry import build
    >>> last_block(build("encoders", "conv4"))
    ['convs.3.weight', 'convs.3.bias', 'norms.3.weight', 'norms.3.bias']
    """
    lists: list[tuple[str, int, int]] = []  # name, its last entry that has parameters, its length
    for name, module in encoder.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, *_ in lists)
        if name and not inside and isinstance(module, nn.ModuleList | nn.Sequential):
            filled = [i for i, entry in enumerate(module) if any(True for _ in entry.parameters())]
            lists += [(name, filled[-1], len(module))] if filled else []  # an activation is no block
    names = [name for name, _ in encoder.named_parameters()]
    if lists:
        last_list, _, length = lists[-1]
        home = last_list.rpartition(".")[0]
        lists = [entry for entry in lists if (entry[0].rpartition(".")[0], entry[2]) == (home, length)]
    if not lists:
        last = names[-1].rpartition(".")[0] if names else ""
        return [name for name in names if name.rpartition(".")[0] == last]
    in_lists = [i for i, name in enumerate(names) if any(name.startswith(f"{outer}.") for outer, *_ in lists)]
    behind = names[max(in_lists) + 1 :] if in_lists else []
    ends = tuple(f"{outer}.{index}." for outer, index, _ in lists)
    return [name for name in names if name.startswith(ends) or name in behind]


# ---- rows ----


def without_padding(batch: Batch) -> Batch:
    """The rows that are there. Waits for an accelerator."""
    keep = batch.y != PADDING
    return Batch(map_inputs(lambda leaf: leaf[keep], batch.x), batch.y[keep])


def _normal(leaf: Tensor) -> Tensor:
    """A tensor made under inference_mode, outside of it, as one that autograd may use."""
    if torch.is_inference_mode_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
        return leaf
    return leaf.clone() if leaf.is_inference() else leaf


# ---- gradients ----


def gradients(
    loss: Callable[[Weights], Tensor], weights: Weights, *, create_graph: bool = False
) -> tuple[Weights, Tensor]:
    """Gradients of a loss with respect to weights, and its value, in a plain pass as well as under torch.vmap.

    create_graph: whether the gradients themselves can be differentiated, back to whatever the weights came from; else
    gradients and value are constants.

    >>> gradients(lambda w: w["a"].square().sum(), {"a": torch.tensor([3.0])})
    ({'a': tensor([6.])}, tensor(9.))
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        found, value = torch.func.grad_and_value(loss)(weights)
        if create_graph:
            return found, value
        return {k: v.detach() for k, v in found.items()}, value.detach()
    leaves = {k: v if create_graph and v.requires_grad else v.detach().requires_grad_() for k, v in weights.items()}
    value = loss(leaves)
    each = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph)
    return dict(zip(leaves, each, strict=True)), value if create_graph else value.detach()


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, out: Tensor) -> Any:
        return None, None, *(None if g is None else out * g for g in ctx.gradients)


def known_gradient(value: Tensor, parameters: Sequence[Tensor], gradients: tuple[Tensor | None, ...]) -> Tensor:
    """`value`, whose gradient with respect to the parameters is given, and needs no graph.

    >>> w = torch.tensor([2.0], requires_grad=True)
    >>> (3 * known_gradient(torch.tensor(1.0), [w], (torch.tensor([5.0]),))).backward()
    >>> w.grad
    tensor([15.])
    """
    loss: Tensor = _KnownGradient.apply(value.detach(), gradients, *parameters)
    return loss


@contextmanager
def evaluating(encoder: nn.Module) -> Iterator[None]:
    """Within it, an encoder is in evaluation mode."""
    before = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, was in before:
            module.training = was


@contextmanager
def batch_statistics(norms: list[tuple[str, Any]]) -> Iterator[None]:
    """Within it, these batch-norm layers normalise by the statistics of their batch."""
    before = [norm.training for _, norm in norms]
    for _, norm in norms:
        norm.training = True
    try:
        yield
    finally:
        for (_, norm), was in zip(norms, before, strict=True):
            norm.training = was
