"""Open-set scores: how much an item looks like one of each known class, and so whether it is of any of them.

A score is learned from the embeddings of the examples, and from a cohort, where there is one: embeddings of items that belong
to none of the classes, whatever else they are. It gives each item a number for each class, larger for more alike; the number
for the item as a whole is the largest of them (for `energy` their log-sum-exp).

    cosine       to the mean of the class's embeddings of length 1: nearest class mean.
    energy       log-sum-exp of the cosines over 0.05 (Liu, Wang, Owens, Li: Energy-based out-of-distribution detection, 2020)
    knn          mean cosine to the three nearest examples of the class.
    openmax      minus the distance to the class mean, over what is usual within the class (Bendale, Boult: Towards open set
                 deep networks, 2016). Their Weibull distribution is left out: it would not change the order.
    mahalanobis  minus the squared distance by the shrunk covariance within classes (Lee et al. 2018).
    whitened     the cosine after half the mean of all examples is taken off and what varies within classes is shrunk.
    snorm        the cosine, by how far it stands from cosines of cohort items to the class and to the item, the 200 largest
                 of each (symmetric normalisation of speaker verification; Matejka et al. 2017). It needs a cohort.
    gp           Gaussian process regression onto one-hot labels, kernel exp(4 (cos - 1)), noise 0.3, with the cohort's items as
                 examples of no class; far from all examples it falls to 0.
    mixed        whitened + gp, the default, chosen on development sets of the three modalities (docs/recognition.md).

Shape letters: S examples, N classes, Q queries, B cohort items, D embedding width.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from multifsl.errors import MultifslError
from multifsl.functional import (
    class_sums,
    full_precision,
    highest_precision,
    memberships,
    places_in_class,
    solve_positive,
)

COHORT = 1000  # of its items, as many are looked at
EXACT = 2000  # examples up to which a Gaussian process is worth its price, which grows with their cube


class Score:
    """One of the scores, learned; called with embeddings [Q, D], it gives [Q, N].

    z: [S, D]; y: int64 [S], from 0 to n - 1, at least one of each; cohort: [B, D], or None.
    """

    needs_cohort: ClassVar[bool] = False

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def overall(self, scores: Tensor) -> Tensor:
        """Scores [Q, N] as one for each item, [Q]."""
        return scores.amax(1)


class Cosine(Score):
    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        self.means = F.normalize(_means(_unit(z), y, n), dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        return _unit(x) @ self.means.T


class Energy(Cosine):
    temperature = 0.05

    def overall(self, scores: Tensor) -> Tensor:
        return self.temperature * torch.logsumexp(scores / self.temperature, dim=1)


class NearestNeighbours(Score):
    k = 3

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        counts = y.bincount(minlength=n)
        self.z, self.y, self.n, self.place = _unit(z), y, n, places_in_class(y)
        self.most = int(counts.max())
        self.used = counts.clamp(max=self.k)

    def __call__(self, x: Tensor) -> Tensor:
        cosines = _unit(x) @ self.z.T  # [Q, S]
        table = cosines.new_full((len(x), self.n, self.most), -math.inf)
        table[:, self.y, self.place] = cosines
        best = table.topk(min(self.k, self.most), dim=2).values  # a class with fewer has -inf at the end
        return best.where(best > -math.inf, 0.0).sum(2) / self.used


class OpenMax(Score):
    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        z = _unit(z)
        sums, counts = class_sums(z, y, n)
        self.means = sums / counts[:, None]
        rest = (counts - 1).clamp(min=1)[y, None]
        apart = (z - (sums[y] - z) / rest).norm(dim=1).where(counts[y] > 1, 0.0)  # from the mean of the class's others
        within, alone = class_sums(apart[:, None], y, n)[0][:, 0], counts == 1
        typical = within.sum() / (counts * ~alone).sum().clamp(min=1)
        typical = typical.where(typical > 0, 1.0)
        # A class's own figure counts as its examples, and what is usual over all classes as five.
        self.usual = (within + 5 * typical) / (counts.where(~alone, 0.0) + 5)

    def __call__(self, x: Tensor) -> Tensor:
        return -torch.cdist(_unit(x), self.means) / self.usual


class Mahalanobis(Score):
    shrink = 0.9

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        self.whiten = _whitening(_unit(z), y, n, self.shrink)
        self.means = _means(_unit(z), y, n) @ self.whiten

    def __call__(self, x: Tensor) -> Tensor:
        return -torch.cdist(_unit(x) @ self.whiten, self.means).square()


class Whitened(Score):
    centre, shrink = 0.5, 0.9

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        self.mean = self.centre * _unit(z).mean(0)
        self.whiten = _whitening(_unit(_unit(z) - self.mean), y, n, self.shrink)
        self.means = F.normalize(_means(_unit(_unit(z) - self.mean), y, n) @ self.whiten, dim=1)

    def move(self, x: Tensor) -> Tensor:
        """Embeddings as they are compared: of length 1, [Q, D]."""
        return _unit(_unit(_unit(x) - self.mean) @ self.whiten)

    def __call__(self, x: Tensor) -> Tensor:
        return self.move(x) @ self.means.T


class SNorm(Cosine):
    needs_cohort, top = True, 200

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        super().__init__(z, y, n, cohort)
        assert cohort is not None
        self.cohort = _unit(cohort)
        self.of_class = self._usual(self.means)

    def _usual(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [Q] of the largest cosines of each x [Q, D] to the cohort."""
        best = (x @ self.cohort.T).topk(min(self.top, len(self.cohort)), dim=1).values
        return best.mean(1), best.std(1, correction=0).clamp(min=1e-4)

    def __call__(self, x: Tensor) -> Tensor:
        cosines = super().__call__(x)
        (class_mean, class_spread), (mean, spread) = self.of_class, self._usual(_unit(x))
        return ((cosines - class_mean) / class_spread + (cosines - mean[:, None]) / spread[:, None]) / 2


class GaussianProcess(Score):
    sharpness, noise = 4.0, 0.3

    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        if len(z) > EXACT:
            raise MultifslError(f"the score 'gp' takes at most {EXACT:,} examples, not {len(z):,}; take 'whitened'")
        self._learn(Whitened(z, y, n, cohort), z, y, n, cohort)

    def _learn(self, space: Whitened, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        self.space, x = space, z
        target = memberships(y, n).to(_unit(z).dtype)
        if cohort is not None:
            others = _unit(cohort)
            # From another recording or collection, they are moved to where the examples are.
            others = others + (_unit(z).mean(0) - others.mean(0))
            x, target = torch.cat([_unit(z), others]), F.pad(target, (0, 0, 0, len(others)))
        self.x = space.move(x)
        kernel = self._kernel(self.x)
        self.weight = solve_positive(
            kernel + self.noise * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device), target
        )

    def _kernel(self, x: Tensor) -> Tensor:
        return (self.sharpness * (x @ self.x.T - 1)).exp()

    def __call__(self, x: Tensor) -> Tensor:
        return self._kernel(self.space.move(x)) @ self.weight


class Mixed(Score):
    def __init__(self, z: Tensor, y: Tensor, n: int, cohort: Tensor | None) -> None:
        self.whitened = Whitened(z, y, n, cohort)
        self.gp: GaussianProcess | None = None
        if len(z) <= EXACT:
            self.gp = GaussianProcess.__new__(GaussianProcess)
            self.gp._learn(self.whitened, z, y, n, cohort)

    def __call__(self, x: Tensor) -> Tensor:
        scores = self.whitened(x)
        return scores if self.gp is None else scores + self.gp(x)


SCORES: dict[str, type[Score]] = {
    "mixed": Mixed,
    "cosine": Cosine,
    "energy": Energy,
    "knn": NearestNeighbours,
    "openmax": OpenMax,
    "mahalanobis": Mahalanobis,
    "whitened": Whitened,
    "snorm": SNorm,
    "gp": GaussianProcess,
}


def _unit(x: Tensor) -> Tensor:
    return F.normalize(full_precision(x), dim=-1)


def _means(z: Tensor, y: Tensor, n: int) -> Tensor:
    sums, counts = class_sums(z, y, n)
    return sums / counts[:, None]


def _whitening(z: Tensor, y: Tensor, n: int, shrink: float) -> Tensor:
    """A matrix [D, D] after which what varies within classes varies alike in all directions, `shrink` of the way to none.

    Where no class has two examples it is the identity.
    """
    within = highest_precision(z - _means(z, y, n)[y])
    eye = torch.eye(z.shape[1], dtype=within.dtype, device=z.device)
    size = within.square().sum() / z.shape[1]  # the trace's mean
    covariance = (1 - shrink) * (within.T @ within / size.clamp(min=1e-12)) + shrink * eye
    values, vectors = torch.linalg.eigh(covariance.where(size > 1e-9, eye))
    whiten: Tensor = (vectors * values.rsqrt()).to(z.dtype)
    return whiten
