"""Memory-augmented network: an LSTM that writes what it sees to a memory, and reads it back by content.

Santoro, Bartunov, Botvinick, Wierstra, Lillicrap: Meta-Learning with Memory-Augmented Neural Networks. ICML 2016.
https://arxiv.org/abs/1605.06065

At time t the controller sees item x_t and the label of the item before it, y_t-1 (none at first); each read head has a key k_t:

    h_t, c_t = LSTM([x_t, y_t-1, r_t-1], h_t-1, c_t-1), and k_t, alpha_t = linear(h_t)
    w^w_t = sigmoid(alpha_t) w^r_t-1 + (1 - sigmoid(alpha_t)) w^lu_t-1              (equation 7)
    M_t(i) = M_t-1(i) + w^w_t(i) k_t, the least used slot set to 0 before           (equation 8)
    w^r_t = softmax over slots i of the cosine of k_t and M_t(i)                    (equations 2 and 3)
    r_t = sum over i of w^r_t(i) M_t(i)                                             (equation 4)
    w^u_t = gamma w^u_t-1 + w^r_t + w^w_t, summed over the heads                    (equation 5)
    w^lu_t = 1 at the n least used slots, n the number of heads, else 0             (equation 6)
    p(y_t) = softmax(linear([h_t, r_t])), and loss = sum over t of -log p(y_t)      (section 2)

Departures. x_t is the encoder's embedding, brought to one length; the paper's are raw pixels, of 0 to 1. Where slots tie in
equation 6, the first count: if all did, as it reads, an empty memory's slots would stay alike for ever. `setting="sequence"`
trains as the paper does, on all items in one sequence. By default the support items are the sequence, and each query is answered
as the next item, unseen by the others; however it was trained, that is how the network answers.

Shape letters: T tasks, L items of a sequence, Q queries, N ways, D embedding width, H controller units, C `max_way`, R heads,
M slots, W slot width. `...` stands for the tasks, for tasks and queries, or for nothing.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.functional import full_precision, lstm_cell, mask_absent, masked_cross_entropy, without_autocast
from multifsl.method import EmbeddingMethod, Output, check_support
from multifsl.options import check_below_one, check_choice, check_counts, check_flags

LENGTH = 8.0  # of a standardised embedding, beside labels of length 1: with 20, of 384 numbers of variance 1, nothing is learned


class MannState(NamedTuple):
    """h, c: [H]; memory: [M, W]; usage: [M]; weights: [R, M], of the last reading; read: [R * W]; label: [C], the last one shown;
    present: bool [N]."""

    h: Tensor
    c: Tensor
    memory: Tensor
    usage: Tensor
    weights: Tensor
    read: Tensor
    label: Tensor
    present: Tensor


class Mann(EmbeddingMethod):
    """An LSTM with an external memory, whose least recently used slots are written to.

    Args:
        setting: what is trained on: "episode", queries answered one by one after the support set, loss their mean; or
            "sequence", the paper's, all items of both in one sequence, loss the sum over it.
        memory: what an episode starts with: "episode", an empty memory, as in the paper; or "persistent", the memory and usage
            that the last task of the last training step left, labels of other episodes among them.
        order: of items as they are read, "shuffled" (in training at random, by torch's numbers; else mixed, always in the same way)
            or as "given".
        max_way: outputs, and places of the label that is shown; 5 where neither this nor a run says otherwise.
        slots, slot_width, controller, heads: sizes of the memory, of the LSTM, and the number of read heads.
        gamma: what is left of a slot's usage after one more item, a number from 0 and below 1.
        temperature: what cosines are divided by in reading, a number above 0, or "learned", trained from 0.1. With the paper's 1,
            one of 128 slots gets no more than 6 % of the weight, and learning takes longer.
        standardise: whether each embedding is brought to mean 0 over its own numbers and to a length of 8. Long ones, such as
            conv4's of a length of 34, saturate the LSTM and drown the labels, and nothing is learned.

    >>> from multifsl.encoder import Features
    >>> method = Mann(Features(2), max_way=3)
    >>> support = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).shape
    torch.Size([1, 2])
    """

    family = "memory"
    sequential = True

    def __init__(
        self,
        encoder: Encoder,
        *,
        setting: Literal["episode", "sequence"] = "episode",
        memory: Literal["episode", "persistent"] = "episode",
        order: Literal["shuffled", "given"] = "shuffled",
        max_way: int | None = None,
        slots: int = 128,
        slot_width: int = 40,
        controller: int = 200,
        heads: int = 4,
        gamma: float = 0.99,
        temperature: float | Literal["learned"] = 1.0,
        standardise: bool = True,
    ) -> None:
        super().__init__(encoder)
        check_choice("setting", setting, ("episode", "sequence"))
        check_choice("memory", memory, ("episode", "persistent"))
        check_choice("order", order, ("shuffled", "given"))
        max_way = 5 if max_way is None else max_way
        check_counts(max_way=max_way, slots=slots, slot_width=slot_width, controller=controller, heads=heads)
        if heads > slots:
            raise MultifslError(
                f"each of the {heads} heads needs a slot to write to, but there are {slots}: ask for more"
            )
        check_below_one(gamma=gamma)
        check_flags(standardise=standardise)
        self.standardise = standardise
        self.setting, self.memory, self.order, self.max_way, self.gamma = setting, memory, order, max_way, gamma
        self.slots, self.slot_width, self.controller, self.heads = slots, slot_width, controller, heads
        read = heads * slot_width
        self.cell = nn.LSTMCell(encoder.dim + max_way + read, controller)  # holds weights; `lstm_cell` uses them
        self.interface = nn.Linear(controller, heads * (slot_width + 1))  # a key and a gate for each head
        self.output = nn.Linear(controller + read, max_way)
        self.number_or_learned("temperature", temperature, 0.1)
        if memory == "persistent":
            self.register_buffer("kept_memory", torch.zeros(slots, slot_width))
            self.register_buffer("kept_usage", torch.zeros(slots))
        self._begun: tuple[Tensor, Tensor] | None = None  # memory and usage that a training step starts from

    # ---- the protocol ----

    def begin_step(self, step: int) -> None:
        if self.memory == "persistent":
            self._begun = self.kept_memory.clone(), self.kept_usage.clone()

    def adapt(self, support: Batch, present: Tensor) -> MannState:
        assert isinstance(support.x, Tensor)
        if self.order == "shuffled":
            x, y = _taken(support.x[None], support.y[None], _mixed(support.y[None]))
            return self._watch(x[0], y[0], present)[1]
        return self._watch(support.x, support.y, present)[1]

    def classify(self, state: MannState, x: Inputs) -> Tensor:
        """Every query is the item after the support set, in a copy of the state."""
        assert isinstance(x, Tensor)
        before = MannState(*(leaf.unsqueeze(state.present.ndim - 1) for leaf in state))  # one for all queries
        with without_autocast(x):
            _, seen = self._step(before, self._input(x), x.new_ones(x.shape[:-1], dtype=torch.bool))
            return self._logits(seen, state.present)

    def solve(self, episode: Episode) -> Output:
        (sx, sy), (qx, qy), present, padded = episode
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        one = Episode(Batch(sx[None], sy[None]), Batch(qx[None], qy[None]), present[None], padded)
        loss, logits = self.solve_embedded(one)
        return Output(loss[0], logits[0])

    def forward(self, episodes: Episode) -> Output:
        output, state = self._solve(self.encode(episodes))
        if self.memory == "persistent" and self.training:
            self.kept_memory, self.kept_usage = state.memory[-1].detach(), state.usage[-1].detach()
        return output

    def solve_embedded(self, episodes: Episode) -> Output:
        """All tasks side by side, without vmap: half the time."""
        return self._solve(episodes)[0]

    def accuracy_by_instance(self, episodes: Episode, instances: int = 10) -> Tensor:
        """Accuracy [instances] at the 1st, 2nd, ... time that a class is seen in a sequence of all items, as the paper reports it.

        Items are ordered as `order` says. NaN where no class is seen so often.
        """
        (sx, sy), (qx, qy), present, _ = self.encode(episodes)
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        x, y = _taken(torch.cat([sx, qx], 1), torch.cat([sy, qy], 1), self._order(torch.cat([sy, qy], 1)))
        right = self._watch(x, y, present)[0].argmax(-1) == y  # [T, L]
        times = _one_hot(y, present.shape[1], torch.int64).cumsum(1).gather(2, y.clamp(min=0).unsqueeze(2)).squeeze(2)
        at = (times.unsqueeze(2) == torch.arange(1, instances + 1, device=y.device)) & (y >= 0).unsqueeze(
            2
        )  # [T, L, *]
        return (at & right.unsqueeze(2)).sum((0, 1)) / at.sum((0, 1))

    # ---- a meta-batch ----

    def _solve(self, episodes: Episode) -> tuple[Output, MannState]:
        """Loss [T], logits [T, Q, N], and the state [T, ...] in which the items leave the network."""
        check_support(episodes)
        (sx, sy), (qx, qy), present, _ = episodes
        assert isinstance(sx, Tensor) and isinstance(qx, Tensor)
        if self.setting == "sequence" and self.training:
            x, y = torch.cat([sx, qx], 1), torch.cat([sy, qy], 1)
            order = self._order(y)
            x, y = _taken(x, y, order)
            logits, state = self._watch(x, y, present)
            loss = torch.vmap(masked_cross_entropy)(logits, y) * (y >= 0).sum(1)
            back = order.argsort(1)[:, sy.shape[1] :, None].expand(-1, -1, logits.shape[2])
            return Output(loss, logits.gather(1, back)), state
        if self.order == "shuffled":
            sx, sy = _taken(sx, sy, self._order(sy) if self.training else _mixed(sy))
        _, state = self._watch(sx, sy, present)
        logits = self.classify(state, qx.where((qy != PADDING).unsqueeze(2), 0.0))
        return Output(torch.vmap(masked_cross_entropy)(logits, qy), logits), state

    def _order(self, y: Tensor) -> Tensor:
        """A permutation [T, L] for each task."""
        if self.order == "given":
            return torch.arange(y.shape[1], device=y.device).expand_as(y)
        return torch.rand(y.shape, device=y.device).argsort(1)

    # ---- a sequence ----

    def _watch(self, x: Tensor, y: Tensor, present: Tensor) -> tuple[Tensor, MannState]:
        """Logits [..., L, N] of items x [..., L, D], each before its label y [..., L] is shown, and the last state.

        An item without a label (y < 0) is answered, but leaves no trace.
        """
        assert self.max_way is not None
        self.check_ways(present.shape[-1])
        with without_autocast(x):
            x = self._input(x.where((y != PADDING).unsqueeze(-1), 0.0))  # padding may hold NaN
            labels, known = _one_hot(y, self.max_way, x.dtype), y >= 0
            state, seen = self._start(x, present), []
            for t in range(y.shape[-1]):
                state, features = self._step(state, x[..., t, :], known[..., t])
                state = state._replace(label=labels[..., t, :].where(known[..., t, None], state.label))
                seen.append(features)
            return self._logits(torch.stack(seen, -2), present), state

    def _input(self, x: Tensor) -> Tensor:
        x = full_precision(x)
        return F.layer_norm(x, x.shape[-1:]) * (LENGTH / x.shape[-1] ** 0.5) if self.standardise else x

    def _start(self, x: Tensor, present: Tensor) -> MannState:
        """What a task begins with; x [..., L, D]."""
        lead = x.shape[:-2]
        h, c = x.new_zeros(2, *lead, self.controller)
        if self.memory == "persistent":
            kept = self.kept_memory, self.kept_usage
            kept = self._begun if self.training and self._begun is not None else kept
            memory, usage = (leaf.to(x.dtype).expand(*lead, *leaf.shape) for leaf in kept)
        else:
            memory, usage = x.new_zeros(*lead, self.slots, self.slot_width), x.new_zeros(*lead, self.slots)
        weights = x.new_zeros(*lead, self.heads, self.slots)
        read = x.new_zeros(*lead, self.heads * self.slot_width)
        return MannState(h, c, memory, usage, weights, read, x.new_zeros(*lead, self.output.out_features), present)

    def _step(self, state: MannState, x: Tensor, known: Tensor) -> tuple[MannState, Tensor]:
        """The state after items x [..., D], the same where they are not `known` [...], and what the output sees [..., *]."""
        joined = [leaf.expand(*x.shape[:-1], -1) for leaf in (x, state.label, state.read)]
        cell = self.cell
        h, c = lstm_cell(
            torch.cat(joined, -1), state.h, state.c, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh
        )
        interface = self.interface(h).unflatten(-1, (self.heads, self.slot_width + 1))
        keys, gate = interface[..., :-1], interface[..., -1:].sigmoid()  # [..., R, W] and [..., R, 1]
        counts = known[..., None, None]
        with torch.no_grad():
            ranking = state.usage.argsort(stable=True)
            least = torch.zeros_like(state.usage).scatter(-1, ranking[..., : self.heads], 1.0)  # [..., M]
            kept = torch.ones_like(state.usage).scatter(-1, ranking[..., :1], 0.0).unsqueeze(-1).where(counts, 1.0)
        writing = (gate * state.weights + (1 - gate) * least.unsqueeze(-2)).where(counts, 0.0)  # [..., R, M]
        memory = state.memory * kept + writing.mT @ keys  # [..., M, W]
        cosines = (keys @ memory.mT) * _inverse_length(keys) * _inverse_length(memory).mT
        weights = (cosines / self.number("temperature")).softmax(-1)  # [..., R, M]
        read = (weights @ memory).flatten(-2)
        usage = self.gamma * state.usage + (weights + writing).detach().sum(-2)
        new = (h, c, usage, weights, read)
        old = (state.h, state.c, state.usage, state.weights, state.read)
        h_, c_, usage, weights_, read_ = (
            n.where(counts if n.ndim > known.ndim + 1 else known.unsqueeze(-1), o)
            for n, o in zip(new, old, strict=True)
        )
        return MannState(h_, c_, memory, usage, weights_, read_, state.label, state.present), torch.cat([h, read], -1)

    def _logits(self, seen: Tensor, present: Tensor) -> Tensor:
        """[..., L, N] from [..., L, H + R * W]."""
        logits: Tensor = self.output(seen)
        return mask_absent(logits[..., : present.shape[-1]], present.unsqueeze(-2))


def _one_hot(y: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """[..., n], zeros where y < 0."""
    return (y.unsqueeze(-1) == torch.arange(n, device=y.device)).to(dtype)


def _taken(x: Tensor, y: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Items x [T, L, D] and labels y [T, L] in an order [T, L]."""
    return x.gather(1, order.unsqueeze(2).expand_as(x)), y.gather(1, order)


def _mixed(y: Tensor) -> Tensor:
    """An order [T, L] of the items with labels y [T, L] that is always the same and mixes the classes; padding stands last.

    >>> _mixed(torch.tensor([[0, 0, -1, 1, 1]]))
    tensor([[3, 4, 0, 1, 2]])
    """
    place = (y >= 0).cumsum(1)
    key = place * 2654435761 % 2**32  # scrambles, by Knuth's multiplier and shifts of its bits
    key = (key ^ (key >> 15)) * 2246822519 % 2**32
    return (key ^ (key >> 13)).where(y >= 0, 2**32).argsort(1)


def _inverse_length(x: Tensor) -> Tensor:
    """1 / ||x|| [..., 1] of the last axis; 1 for a zero vector, whose gradient stays finite so."""
    squared = x.square().sum(-1, keepdim=True)
    return squared.where(squared > 0, 1.0).rsqrt()
