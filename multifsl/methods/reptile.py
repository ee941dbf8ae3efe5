"""Reptile: an initialisation that moves towards the weights of each task, without any second derivative.

Nichol, Achiam, Schulman: On First-Order Meta-Learning Algorithms. 2018. https://arxiv.org/abs/1803.02999 (version 3)

    phi_0 = theta,  phi_{k+1} = inner step on a minibatch of the task,  k = 0..steps-1         (Algorithm 1)
    theta <- theta + eps * mean over tasks of (phi_steps - theta)                             (Algorithms 1 and 2)

with the inner step one of Adam without momentum (beta1 = 0), or of SGD. In training a task's items are all of its
episode's, support and query together: the paper trains with more shots than it tests with (10 to 15, Appendix A).

The loss is 0.5 * ||theta - phi||^2 with phi constant, whose gradient is theta - phi: SGD of rate eps is the outer step
above, serial with one task a step, batched with more; any other optimiser works too. The loss is no cross-entropy.

Departures: minibatches are dealt out evenly over the classes, in the order of the items, where the authors shuffle them;
a task with fewer items than `batch_size` is one batch. At evaluation queries are normalised by the statistics of the
support set, where the authors run each of them in one batch with the support set. Adam's second moments are handed on, as in
the authors' code (one optimiser for the whole of training), but from step to step: where a step has more tasks than one, each of
them starts from what the last task of the step before left, so that it does not matter in how many micro-batches and processes
they are run. `carry=False` begins each task afresh. Differentiated at evaluation, the inner loop's Jacobian is taken for the
identity.

Shape letters: B items of a minibatch, S items of a task, N ways.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from multifsl.adaptation import AdaptationMethod, Weights, gradients
from multifsl.encoder import Encoder
from multifsl.episode import PADDING, Batch, Episode, concat, map_inputs
from multifsl.errors import MultifslError
from multifsl.inner import Clock, flat
from multifsl.method import Output, row
from multifsl.options import check_choice, check_counts, check_flags, check_positive

BETA2, EPSILON = 0.999, 1e-8  # Adam's


class Reptile(AdaptationMethod):
    """Training that moves the first weights towards the last.

    Args:
        steps: inner steps in training. test_steps: at evaluation. lr: the inner learning rate.
        batch_size: items of an inner step; None takes all that the task has.
        optimizer: of the inner steps, "adam" (without momentum) or "sgd".
        carry: start Adam's second moments where the last task of the training step before left them, or, where nobody says that a
            step begins (see `begin_step`), the task before; at evaluation where training left them.
        trainable: see AdaptationMethod. What is not adapted is frozen: nothing here could train it.
        max_way, head, batch_norm, vectorize: see AdaptationMethod. A shared head's row moves towards the mean of the classes'.

    >>> from multifsl.encoder import Features
    >>> method = Reptile(Features(2), head="shared", optimizer="sgd", lr=1.0)
    >>> support = Batch(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[0.0, 1.0]])).argmax(1)
    tensor([0])
    """

    family = "optimisation"

    def __init__(
        self,
        encoder: Encoder,
        *,
        steps: int = 5,
        test_steps: int = 50,
        lr: float = 1e-3,
        batch_size: int | None = 10,
        optimizer: Literal["adam", "sgd"] = "adam",
        carry: bool = True,
        trainable: str = "all",
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        batch_norm: Literal["support", "query"] = "support",
        vectorize: bool = False,
    ) -> None:
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        check_flags(carry=carry)
        check_counts(steps=steps, test_steps=test_steps, batch_size=1 if batch_size is None else batch_size)
        check_positive(lr=lr)
        if vectorize and carry and optimizer == "adam":
            raise MultifslError(
                "carry=True hands Adam's second moments from task to task, which cannot be vectorised: "
                "take carry=False or vectorize=False"
            )
        super().__init__(
            encoder, trainable=trainable, max_way=max_way, head=head, batch_norm=batch_norm, vectorize=vectorize
        )
        self.steps, self.test_steps, self.lr, self.batch_size = steps, test_steps, lr, batch_size
        self.optimizer, self.carry = optimizer, carry and optimizer == "adam"
        self.sequential = batch_size is not None
        for name, parameter in encoder.named_parameters():
            if name not in self.adapted:
                parameter.requires_grad_(False)
        self.clock = Clock() if self.carry else None  # how many tasks in a row have moved the second moments
        self._begun: tuple[Weights, int] | None = (
            None  # second moments that a training step starts from, and their clock
        )
        if self.carry:
            for name, weight in self.initial(self.max_way or 1).items():
                self.register_buffer(_moment(name), torch.zeros_like(weight))

    def begin_step(self, step: int) -> None:
        if self.carry:
            second, tasks = self._held()
            self._begun = {k: v.clone() for k, v in second.items()}, tasks

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        phi, _ = self.descend(support, present, self.steps if self.training else self.test_steps)
        return {k: w + (phi[k] - w).detach() for k, w in self.initial(present.shape[0]).items()}

    def descend(self, task: Batch, present: Tensor, steps: int) -> tuple[Weights, Weights]:
        """The weights after some inner steps, and Adam's second moments, both constants."""
        weights = {k: w.detach() for k, w in self.initial(present.shape[0]).items()}
        second, tasks = {k: torch.zeros_like(w) for k, w in weights.items()}, 0
        if self.carry:
            held, tasks = self._start()
            second = {k: self.rows(v, present.shape[0]) if k.startswith("head.") else v for k, v in held.items()}
        for step, batch in enumerate(
            minibatches(task, present.shape[0], self.batch_size, steps), tasks * self.steps + 1
        ):

            def loss(weights: Weights, batch: Batch = batch) -> Tensor:
                return self.loss(weights, batch, present)

            found, _ = gradients(loss, weights)
            if self.optimizer == "adam":
                second = {k: BETA2 * v + (1 - BETA2) * found[k].square() for k, v in second.items()}
                unbias = 1 - BETA2**step
                found = {k: g / ((second[k] / unbias).sqrt() + EPSILON) for k, g in found.items()}
            weights = {k: w - self.lr * found[k] for k, w in weights.items()}
        return weights, second

    def learn(self, episode: Episode) -> tuple[Output, Weights]:
        """Half the squared distance to the adapted weights, and the queries' logits under them."""
        (sx, sy), (qx, qy), present, _ = episode
        with self.adapting(sx):
            task = self.usable(Batch(concat([sx, qx]), torch.cat([sy, qy])))
            phi, second = self.descend(task, present, self.steps)
        with torch.no_grad():
            _, logits, noted = self.query_loss(phi, episode.query, present)
        distance = phi[next(iter(phi))].new_zeros(())
        for name, start in self.initial(present.shape[0]).items():
            goal = self._joined(name, phi[name], present)
            distance = distance + (_like(start, goal) - goal).square().sum()
        if self.carry:
            noted = noted | {_moment(k): self._joined(k, v, present) for k, v in second.items()}
        return Output(0.5 * distance, logits), noted

    def solve_embedded(self, episodes: Episode) -> Output:
        if not (self.training and self.carry):
            return super().solve_embedded(episodes)
        (sx, sy), (qx, qy), present, _ = episodes

        def one(t: int) -> tuple[Output, Weights]:
            return self._solve(Episode(Batch(row(sx, t), sy[t]), Batch(row(qx, t), qy[t]), present[t]))

        return self._in_turn(one, present.shape[0])

    @torch.no_grad()
    def _note(self, noted: Weights) -> None:
        moments = {k: v for k, v in noted.items() if k.startswith(_moment(""))}
        super()._note({k: v for k, v in noted.items() if k not in moments})
        for name, value in moments.items():
            _like(self.get_buffer(name), value).copy_(value)
        if moments and self.clock is not None:
            self.clock.set(self._start()[1] + 1)

    def _held(self) -> tuple[Weights, int]:
        """Adam's second moments, and how many tasks moved them."""
        assert self.clock is not None
        return {k: self.get_buffer(_moment(k)) for k in self.initial(self.max_way or 1)}, self.clock.steps

    def _start(self) -> tuple[Weights, int]:
        """The same, as a task starts from them."""
        return self._begun if self.training and self._begun is not None else self._held()

    def _joined(self, name: str, value: Tensor, present: Tensor) -> Tensor:
        """For the one row of a shared head, the mean of what the classes that take part made of it."""
        if self.max_way is not None or not name.startswith("head."):
            return value
        takes_part = present.view(-1, *[1] * (value.ndim - 1))
        return value.where(takes_part, 0.0).sum(0, keepdim=True) / present.sum().clamp(min=1)


def minibatches(task: Batch, n_ways: int, batch_size: int | None, steps: int) -> Iterator[Batch]:
    """Minibatches of a task's items, dealt out evenly over the classes, over and over; rows with y < 0 are never dealt.

    >>> task = Batch(torch.arange(5.0), torch.tensor([0, 0, 0, 1, 1]))
    >>> [batch.x.tolist() for batch in minibatches(task, 2, 2, 3)]
    [[0.0, 3.0], [1.0, 4.0], [2.0, 0.0]]
    """
    x, y = task
    items, place = y.shape[0], torch.arange(y.shape[0], device=y.device)
    valid = y >= 0
    of_class = y.unsqueeze(1) == torch.arange(n_ways, device=y.device)  # [S, N]
    nth = of_class.cumsum(0).gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1)  # [S], the how manyth of its class
    order = torch.where(valid, nth * items + place, (items + 1) * items + place).argsort()  # [S]
    count = valid.sum().clamp(min=1)
    slots = torch.arange(items if batch_size is None else min(batch_size, items), device=y.device)  # [B]
    size = count.clamp(max=slots.shape[0])  # fewer than the slots where rows are padding
    for step in range(steps):
        rows = order[(step * size + slots) % count]
        yield Batch(map_inputs(lambda leaf, rows=rows: leaf[rows], x), y[rows].where(slots < size, PADDING))  # type: ignore[misc]


def _moment(name: str) -> str:
    return f"second_{flat(name)}"


def _like(value: Tensor, other: Tensor) -> Tensor:
    """As many rows as the other has: a head may have more than a task needs."""
    return value if value.shape == other.shape else value[: len(other)]
