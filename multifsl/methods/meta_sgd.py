"""Meta-SGD: MAML with a learned learning rate, and direction, for every single weight.

Li, Zhou, Chen, Li: Meta-SGD: Learning to Learn Quickly for Few-Shot Learning. 2017. https://arxiv.org/abs/1707.09835

    theta' = theta - alpha * grad of L_support(theta), entry by entry                              (equation 2)
    (theta, alpha) <- outer step on the mean over tasks of L_query(theta')                         (equation 3, Algorithm 1)

with alpha a learned vector of theta's size: its entries' sizes are learning rates, and as they differ from weight to
weight, and may fall below 0, they turn the step's direction. One step is the paper's; further ones share alpha.
The same as `maml(learn_lr="weight", steps=1)`.

Departures: alpha starts at `lr` in every entry, where the paper draws that one number at random from [0.005, 0.1]. At
evaluation batch normalisation is as in `maml`.
"""

from typing import Literal

from multifsl.encoder import Encoder
from multifsl.methods.maml import Maml
from multifsl.options import check_choice


class MetaSgd(Maml):
    """One gradient step from a learned initialisation, by learned rates.

    Args:
        steps: inner steps in training. test_steps: at evaluation; None takes as many. lr: where the rates start.
        first_order: leave second derivatives out.
        trainable, max_way, head, batch_norm, vectorize: see AdaptationMethod.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> from multifsl.episode import Batch
    >>> method = MetaSgd(Features(2), lr=1.0, head="shared")
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
        steps: int = 1,
        lr: float = 0.1,
        test_steps: int | None = None,
        first_order: bool = False,
        trainable: str = "all",
        max_way: int | None = None,
        head: Literal["fixed", "shared"] = "fixed",
        batch_norm: Literal["support", "query"] = "support",
        vectorize: bool = False,
    ) -> None:
        check_choice("batch_norm", batch_norm, ("support", "query"))
        super().__init__(
            encoder, steps=steps, lr=lr, test_steps=test_steps, first_order=first_order, trainable=trainable,
            max_way=max_way, head=head, batch_norm=batch_norm, learn_lr="weight", vectorize=vectorize,
        )  # fmt: skip
