"""ANIL: MAML whose inner loop adapts the head alone.

Raghu, Raghu, Bengio, Vinyals: Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML. ICLR 2020.
https://arxiv.org/abs/1909.09157

    theta = the encoder's weights and the head's;  inner steps as in MAML, on the head's weights alone       (section 4, equation 2)
    theta <- outer step on the mean over tasks of L_query, of encoder and head alike

"Almost no inner loop": the same as `maml(trainable="head")`. The encoder runs once an episode, forward and backward, and
the inner loop on its embeddings costs next to nothing; second order is as cheap.

Departures: where the encoder has batch normalisation, support and query items of a task are encoded together in training,
and by the running statistics at evaluation, where MAML's two passes would each use their own.
"""

from typing import Literal

from multifsl.encoder import Encoder
from multifsl.methods.maml import Maml


class Anil(Maml):
    """Gradient descent on the head, from a learned initialisation.

    Args:
        steps: inner steps in training. test_steps: at evaluation; None takes as many. lr: the inner learning rate.
        first_order: leave second derivatives out.
        max_way, head: see AdaptationMethod.
        learn_lr: None, "step" or "weight", as in Maml.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> from multifsl.episode import Batch
    >>> method = Anil(Features(2), steps=5, lr=1.0, head="shared")
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
        test_steps: int | None = None,
        first_order: bool = False,
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        learn_lr: Literal["step", "weight"] | None = None,
    ) -> None:
        super().__init__(
            encoder, steps=steps, lr=lr, test_steps=test_steps, first_order=first_order, trainable="head",
            max_way=max_way, head=head, learn_lr=learn_lr,
        )  # fmt: skip
