"""SimpleShot: the nearest class mean, of embeddings that are centred and brought to length 1.

Wang, Chao, Weinberger, van der Maaten: SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning. 2019.
https://arxiv.org/abs/1911.04623

    m = mean of f(x) over the items of the train ("base") classes
    CL2N: z = (f(x) - m) / ||f(x) - m||;  L2N: z = f(x) / ||f(x)||;  UN: z = f(x)
    c_k = mean of z_i over the support items of class k, not brought to length 1 again
    the class of a query is the k of the smallest ||z - c_k||

The encoder is trained as a plain classifier of the train classes. m comes in by `learn_base`, which `train` and `evaluate`
call; until then it is 0, and CL2N is L2N.

Departures. The paper names a class and no probabilities; here they are the softmax of -||z - c_k||^2 / temperature, whose arg max
is the paper's class for any temperature. m is the mean over some thousands of the train items, evenly spread, where there are more.
"""

from typing import Literal

from torch import Tensor

from multifsl.centring import Centred
from multifsl.encoder import Encoder
from multifsl.episode import Batch, Inputs
from multifsl.functional import ClassSums, mask_absent, squared_distances
from multifsl.method import EmbeddingMethod
from multifsl.options import check_positive


class Simpleshot(Centred, EmbeddingMethod):
    """Nearest class mean, of transformed embeddings.

    Args:
        transform: "cl2n" (centred, then length 1), "l2n" (length 1) or "un" (as they are).
        temperature: what squared distances are divided by, a number above 0; it changes how sure the answers are, not which.

    >>> import torch
    >>> from multifsl.encoder import Features
    >>> method = Simpleshot(Features(2))
    >>> method.learn_base(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
    >>> support = Batch(torch.tensor([[1.0, 4.0], [3.0, 1.0]]), torch.tensor([0, 1]))
    >>> state = method.adapt(support, present=torch.tensor([True, True]))
    >>> method.classify(state, torch.tensor([[1.0, 2.0]]))
    tensor([[-0., -2.]])
    """

    family = "transfer"
    class_by_class = True
    learns_from = "classes"

    def __init__(
        self, encoder: Encoder, *, transform: Literal["cl2n", "l2n", "un"] = "cl2n", temperature: float = 1.0
    ) -> None:
        super().__init__(encoder)
        self.centre(transform)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def adapt(self, support: Batch, present: Tensor) -> ClassSums:
        return ClassSums.of(self._transformed(support.x), support.y, present)

    def classify(self, state: ClassSums, x: Inputs) -> Tensor:
        return mask_absent(-squared_distances(self._transformed(x), state.means()) / self.temperature, state.present)

    def update(self, state: ClassSums, support: Batch, present: Tensor) -> ClassSums:
        return state.and_more(self.adapt(support, present))

    def remove(self, state: ClassSums, label: int) -> ClassSums:
        return state.without(label)

    def _transformed(self, x: Inputs) -> Tensor:
        assert isinstance(x, Tensor)
        z: Tensor = self.centring(x)
        return z
