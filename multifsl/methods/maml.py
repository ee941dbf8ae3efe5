"""MAML: an initialisation from which a few gradient steps learn a new task.

Finn, Abbeel, Levine: Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks. ICML 2017.
https://arxiv.org/abs/1703.03400

    theta_0 = theta,  theta_{k+1} = theta_k - lr * grad of L_support(theta_k),  k = 0..steps-1
    theta <- Adam step on the sum over tasks of L_query(theta_steps)                               (equation 1)

with L the mean cross-entropy. The meta-gradient goes through the inner steps (second order), or, with `first_order`,
takes their Jacobian for the identity (section 5.2).

The options of MAML++ (Antoniou, Edwards, Storkey: How to train your MAML. ICLR 2019, https://arxiv.org/abs/1810.09502):
learned rates per layer and step, `learn_lr` (LSLR); a loss after every step, weighted, whose weight moves to the last step
while training goes on, `multi_step_loss` (MSL); first order in the first steps of training, `first_order_until` (DA);
gains, biases and running statistics of batch normalisation for each step of their own, `batch_norm="per_step"` (BNWB, BNRS).

Departures: at evaluation queries are normalised by the support set's statistics, unless `batch_norm="query"`, as in the
paper's own figures, which makes them transductive. The meta-gradient is the mean over tasks, not the sum.

Shape letters: K inner steps, L adapted parameters, C channels, N ways.
"""

from collections.abc import Iterator
from typing import Literal

from torch import Tensor

from multifsl.adaptation import AdaptationMethod, Adapted, Weights, gradients
from multifsl.encoder import Encoder
from multifsl.episode import Batch, Episode, Inputs
from multifsl.errors import MultifslError
from multifsl.functional import mask_absent
from multifsl.inner import Clock, StepNorms, StepRates, WeightRates
from multifsl.method import Output
from multifsl.options import check_choice, check_counts, check_flags, check_positive


class Maml(AdaptationMethod):
    """Gradient descent from a learned initialisation.

    Args:
        steps: inner steps in training. test_steps: at evaluation; None takes as many.
        lr: the inner learning rate. head_lr: the head's; None takes the same. A shared head, which starts from zeros, wants ten to
            a hundred times the encoder's.
        first_order: leave second derivatives out (FOMAML).
        trainable, max_way, head, vectorize: see AdaptationMethod.
        batch_norm: "support", "query" (transductive), or "per_step", as above.
        learn_lr: None; "step", a learned rate for each tensor of weights and step; or "weight", for each weight (Meta-SGD).
        multi_step_loss: over how many training steps the loss after every inner step fades out; 0: only the last counts.
        first_order_until: the training step at which second order sets in. Both count the steps that `begin_step` is told.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> method = Maml(Features(2), steps=5, lr=1.0, head="shared")
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
        lr: float = 0.1,
        head_lr: float | None = None,
        test_steps: int | None = None,
        first_order: bool = False,
        trainable: str = "all",
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        batch_norm: Literal["support", "query", "per_step"] = "support",
        learn_lr: Literal["step", "weight"] | None = None,
        multi_step_loss: int = 0,
        first_order_until: int = 0,
        vectorize: bool = False,
    ) -> None:
        check_choice("batch_norm", batch_norm, ("support", "query", "per_step"))
        check_choice("learn_lr", learn_lr, (None, "step", "weight"))
        check_counts(steps=steps, test_steps=1 if test_steps is None else test_steps)
        check_counts(least=0, multi_step_loss=multi_step_loss, first_order_until=first_order_until)
        head_lr = lr if head_lr is None else head_lr
        check_positive(lr=lr, head_lr=head_lr)
        check_flags(first_order=first_order)
        per_step = batch_norm == "per_step"
        if vectorize and per_step:
            raise MultifslError("batch_norm='per_step' notes statistics task by task, and cannot be vectorised")
        super().__init__(
            encoder, trainable=trainable, max_way=max_way, head=head, vectorize=vectorize,
            batch_norm="support" if batch_norm == "per_step" else batch_norm,
        )  # fmt: skip
        self.steps, self.test_steps = steps, steps if test_steps is None else test_steps
        self.lr, self.head_lr = lr, head_lr
        if head == "shared" and self.adapted and min(self.steps, self.test_steps) < 2:
            raise MultifslError(
                "with head='shared' the rows are equal at first, so that the first inner step moves the head alone: "
                "take steps of 2 or more, head='fixed', or trainable='head'"
            )
        if per_step and trainable == "head":
            raise MultifslError("batch_norm='per_step' needs an encoder that is adapted, not trainable='head'")
        self.first_order, self.first_order_until = first_order, first_order_until
        self.learn_lr, self.multi_step_loss, self.batch_norm = learn_lr, multi_step_loss, batch_norm
        self.inner_batch_statistics = not per_step
        self.step_norms = StepNorms(self.norms, steps=steps) if per_step and self.norms else None
        if self.step_norms is not None:
            self.adapted = [name for name in self.adapted if name not in self.step_norms.names]
            for _, norm in self.norms:  # the steps' own stand in for them
                norm.requires_grad_(False)
        start = self.initial(self.max_way or 1)
        self.rates = {name: head_lr if name.startswith("head.") else lr for name in start}
        self.step_rates = StepRates(self.rates, steps=steps) if learn_lr == "step" else None
        self.weight_rates = WeightRates(start, self.rates) if learn_lr == "weight" else None
        self.clock = Clock() if multi_step_loss or first_order_until else None

    def begin_step(self, step: int) -> None:
        if self.clock is not None:
            self.clock.set(step)

    def inner_loop(self, support: Batch, present: Tensor) -> Weights:
        *_, last = self.trajectory(support, present, self.steps if self.training else self.test_steps)
        return last

    def trajectory(self, support: Batch, present: Tensor, steps: int) -> Iterator[Weights]:
        """The weights after each of some inner steps."""
        weights = self.initial(present.shape[0])
        second_order = self.training and not self.first_order and self._now() >= self.first_order_until
        fixed = self.rates if self.weight_rates is None else self.weight_rates(self, present.shape[0])
        for step in range(steps):

            def loss(weights: Weights, step: int = step) -> Tensor:
                return self.loss(weights, support, present, layers=self._layers(step))

            found, _ = gradients(loss, weights, create_graph=second_order)
            rates = fixed if self.step_rates is None else self.step_rates(step)
            weights = {k: w - rates[k] * found[k] for k, w in weights.items()}
            yield weights

    def classify(self, state: Adapted, x: Inputs) -> Tensor:
        if self.step_norms is None:
            return super().classify(state, x)
        return mask_absent(self.logits(state.weights, x, layers=self._layers(self.test_steps)), state.present)

    def forward(self, episodes: Episode) -> Output:
        output = super().forward(episodes)
        if self.training and self.step_norms is not None:
            self.step_norms.copy_last(self.norms)
        return output

    def learn(self, episode: Episode) -> tuple[Output, Weights]:
        """The loss of the last step, or, while `multi_step_loss` fades out, of every step, weighted."""
        fade = 1 - self._now() / self.multi_step_loss if self.multi_step_loss else 0.0
        (support, query), present = episode[:2], episode.present
        with self.adapting(support.x):
            path = list(self.trajectory(self.usable(support), present, self.steps))
        if fade <= 0:
            path = path[-1:]
        total: Tensor | float = 0.0
        for k, weights in enumerate(path, 1):
            share = fade / self.steps if k < len(path) else 1 - fade * (len(path) - 1) / self.steps
            step = self.steps - len(path) + k
            loss, logits, noted = self.query_loss(weights, query, present, layers=self._layers(step))
            total = total + share * loss
        assert isinstance(total, Tensor)
        return Output(total, logits), noted

    def _layers(self, step: int) -> Weights | None:
        return None if self.step_norms is None else self.step_norms(step)

    def _now(self) -> int:
        return 0 if self.clock is None else self.clock.steps
